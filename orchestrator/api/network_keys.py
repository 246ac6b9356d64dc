"""New keys for encrypted networks, now: `POST /mesh/v1/network-keys/rotate`. How far they are: `GET /mesh/v1/network-keys`.

Edge: routes over the store; the leader's loop does it (`control.encryption`).
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from msgspec.structs import replace

from orchestrator.api import access, validate
from orchestrator.encryption import STEPS
from orchestrator.errors import ApiError
from orchestrator.mesh_api import NetworkKeys
from orchestrator.model import Cluster, Network
from orchestrator.store.base import Change, Put
from orchestrator.store.snapshot import Snapshot


async def rotate(request: web.Request) -> web.Response:
    def plan(snapshot: Snapshot) -> Sequence[Change]:
        if not any(network.mesh_encrypted for network in snapshot.all(Network)):
            raise validate.precondition("no network of this cluster is encrypted: there are no keys to change")
        cluster = _cluster(snapshot)
        return [Put(replace(cluster, mesh_keys=replace(cluster.mesh_keys, wanted=True), updated_at=access.now()))]

    await access.commit(access.store_of(request), plan)
    return web.Response(status=202)


async def progress(request: web.Request) -> web.Response:
    keys = _cluster(access.store_of(request).snapshot()).mesh_keys
    under_way = keys.wanted or bool(keys.step % STEPS)
    return access.answer(NetworkKeys(keys.step // STEPS, keys.since.isoformat(), under_way))


def _cluster(snapshot: Snapshot) -> Cluster:
    if snapshot.cluster is None:
        raise ApiError(503, "the cluster's own object has not been read yet: try again")
    return snapshot.cluster


ROUTES = [
    web.post("/mesh/v1/network-keys/rotate", rotate),
    web.get("/mesh/v1/network-keys", progress),
]
