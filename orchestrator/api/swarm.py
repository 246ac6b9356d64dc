"""The cluster itself: init, join, leave, inspect, update, token rotation.

Edge: routes over the daemon and the store. Source: Docker Engine API 1.44 /swarm; moby daemon/cluster/swarm.go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from aiohttp import web
from msgspec.structs import replace

from orchestrator.api import access, validate, views
from orchestrator.api.backend import InitRequest, JoinRequest, JoinRole
from orchestrator.api.events import JOURNAL
from orchestrator.api.versions import before
from orchestrator.errors import ApiError, ConfigError
from orchestrator.model import (
    SECOND,
    CAConfig,
    Cluster,
    ClusterSpec,
    DispatcherConfig,
    Node,
    OrchestrationConfig,
    RaftConfig,
)
from orchestrator.security import keyring
from orchestrator.store.base import Change, Put
from orchestrator.store.snapshot import Snapshot

_ALREADY = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
_NOT_PART = "This node is not part of a swarm"
_LOCKED = "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message."
_LEAVING = "You are attempting to leave the swarm on a node that is participating as a manager. "

# swarmkit api/defaults, moby cluster/convert: what `docker swarm init` alone gives.
DEFAULT_SPEC = ClusterSpec(
    name="default",
    labels={},
    orchestration=OrchestrationConfig(task_history_retention_limit=5),
    raft=RaftConfig(snapshot_interval=10_000, keep_old_snapshots=0, log_entries_for_slow_followers=500, election_tick=10, heartbeat_tick=1),
    dispatcher=DispatcherConfig(heartbeat_period=5 * SECOND),
    ca_config=CAConfig(node_cert_expiry=90 * 24 * 3600 * SECOND),
)


class _Init(msgspec.Struct, rename="pascal"):
    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0
    force_new_cluster: bool = False
    spec: ClusterSpec = ClusterSpec()
    auto_lock_managers: bool = False
    availability: str = ""
    default_addr_pool: list[str] = msgspec.field(default_factory=list)
    subnet_size: int = 0


class _Join(msgspec.Struct, rename="pascal"):
    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    remote_addrs: list[str] = msgspec.field(default_factory=list)
    join_token: str = ""
    availability: str = ""


class _Unlock(msgspec.Struct, rename="pascal"):
    unlock_key: str = ""


async def init_swarm(request: web.Request) -> web.Response:
    sent = await access.body_as(request, _Init)
    backend = access.backend_of(request)
    spec = merged(DEFAULT_SPEC, sent.spec)
    validate.cluster_spec(spec)
    validate.first_ca(spec.ca_config)
    validate.availability(sent.availability or "active")
    if before(access.api_version(request), "1.39"):
        sent.default_addr_pool, sent.subnet_size = [], 0
    validate.address_pools(sent.default_addr_pool, sent.subnet_size)
    if sent.data_path_port and not 1024 <= sent.data_path_port <= 49151:
        raise ApiError(400, f"Datapath port number is not in valid range (1024-49151) : {sent.data_path_port}")
    if sent.force_new_cluster and backend.state in ("manager", "error"):
        return access.answer(await asyncio.shield(backend.recover()))
    if backend.state != "inactive":
        raise ApiError(503, _ALREADY)
    order = InitRequest(
        spec=spec,
        advertise_addr=sent.advertise_addr,
        listen_addr=sent.listen_addr,
        data_path_addr=sent.data_path_addr,
        data_path_port=sent.data_path_port,
        default_addr_pool=tuple(sent.default_addr_pool),
        subnet_size=sent.subnet_size,
        availability=sent.availability or "active",
        auto_lock_managers=sent.auto_lock_managers or spec.encryption_config.auto_lock_managers,
    )
    # A client that goes away must not leave half a cluster behind.
    node_id = await asyncio.shield(backend.init(order))
    request.app[JOURNAL].wake.set()
    return access.answer(node_id)


async def join_swarm(request: web.Request) -> web.Response:
    sent = await access.body_as(request, _Join)
    backend = access.backend_of(request)
    if backend.state != "inactive":
        raise ApiError(503, _ALREADY)
    if not sent.remote_addrs:
        raise ApiError(400, "at least 1 RemoteAddr is required to join")
    validate.availability(sent.availability or "active")
    order = JoinRequest(
        remote_addrs=tuple(sent.remote_addrs),
        token=sent.join_token,
        advertise_addr=sent.advertise_addr,
        listen_addr=sent.listen_addr,
        data_path_addr=sent.data_path_addr,
        availability=sent.availability or "active",
    )
    await asyncio.shield(backend.join(order))
    request.app[JOURNAL].wake.set()
    return web.Response(status=200)


async def leave_swarm(request: web.Request) -> web.Response:
    backend = access.backend_of(request)
    force = access.flag(request, "force")
    if backend.state == "inactive":
        raise ApiError(503, _NOT_PART)
    if backend.state == "locked" and not force:
        raise ApiError(503, _LOCKED)
    if backend.state == "manager" and not force:
        raise ApiError(503, _leaving_text(backend.store.snapshot() if backend.store is not None else None))
    await asyncio.shield(backend.leave(force))
    return web.Response(status=200)


async def inspect_swarm(request: web.Request) -> web.Response:
    return access.answer(views.swarm(_cluster(access.store_of(request).snapshot())))


async def update_swarm(request: web.Request) -> web.Response:
    store = access.store_of(request)
    backend = access.backend_of(request)
    seen = access.version_of(request, "swarm")
    sent = await access.body_as(request, ClusterSpec)
    roles: list[JoinRole] = []
    if access.flag(request, "rotateWorkerToken"):
        roles.append("worker")
    if access.flag(request, "rotateManagerToken"):
        roles.append("manager")
    rotate_unlock_key = access.flag(request, "rotateManagerUnlockKey")

    known = _cluster(store.snapshot())
    access.in_sequence(known, seen)
    spec = merged(known.spec, sent)
    validate.cluster_spec(spec)
    try:
        # may ask external CAs, so not within the plan: what it is made of is what the caller has seen, or nothing is written
        ordered = await backend.order_ca(known, spec)
    except ConfigError as error:
        raise validate.invalid(str(error)) from None

    def plan(snapshot: Snapshot) -> Sequence[Change]:
        current = _cluster(snapshot)
        access.in_sequence(current, seen)
        key = unlock_key_of(current, autolock=spec.encryption_config.auto_lock_managers, rotate=rotate_unlock_key)
        changed = replace(ordered, mesh_unlock_key=key, updated_at=access.now())
        for role in roles:
            changed = replace(changed, join_tokens=backend.rotate_token(changed, role))
        return [Put(changed)]

    await access.commit(store, plan)
    await backend.follow_unlock_key()
    return web.Response(status=200)


async def unlock_key(request: web.Request) -> web.Response:
    return access.answer({"UnlockKey": keyring.shown(_cluster(access.store_of(request).snapshot()).mesh_unlock_key)})


async def unlock_swarm(request: web.Request) -> web.Response:
    sent = await access.body_as(request, _Unlock)
    backend = access.backend_of(request)
    if backend.state == "inactive":
        raise ApiError(503, _NOT_PART)
    if backend.state != "locked":
        raise ApiError(409, "swarm is not locked")
    await asyncio.shield(backend.unlock(sent.unlock_key))
    request.app[JOURNAL].wake.set()
    return web.Response(status=200)


ROUTES = [
    web.post("/swarm/init", init_swarm),
    web.post("/swarm/join", join_swarm),
    web.post("/swarm/leave", leave_swarm),
    web.get("/swarm", inspect_swarm),
    web.post("/swarm/update", update_swarm),
    web.get("/swarm/unlockkey", unlock_key),
    web.post("/swarm/unlock", unlock_swarm),
]


def merged(old: ClusterSpec, sent: ClusterSpec) -> ClusterSpec:
    """What is absent or zero in `sent` stays as it was; labels and external CAs are replaced whole (moby MergeSwarmSpecToGRPC)."""
    limit = sent.orchestration.task_history_retention_limit
    raft, kept = sent.raft, old.raft
    return ClusterSpec(
        name=sent.name or old.name,
        labels=sent.labels if sent.labels is not None else old.labels,
        orchestration=old.orchestration if limit is None else sent.orchestration,
        raft=RaftConfig(
            snapshot_interval=raft.snapshot_interval or kept.snapshot_interval,
            keep_old_snapshots=kept.keep_old_snapshots if raft.keep_old_snapshots is None else raft.keep_old_snapshots,
            log_entries_for_slow_followers=raft.log_entries_for_slow_followers or kept.log_entries_for_slow_followers,
            election_tick=raft.election_tick or kept.election_tick,
            heartbeat_tick=raft.heartbeat_tick or kept.heartbeat_tick,
        ),
        dispatcher=DispatcherConfig(heartbeat_period=sent.dispatcher.heartbeat_period or old.dispatcher.heartbeat_period),
        ca_config=replace(
            sent.ca_config,
            node_cert_expiry=sent.ca_config.node_cert_expiry or old.ca_config.node_cert_expiry,
            force_rotate=sent.ca_config.force_rotate or old.ca_config.force_rotate,
        ),
        task_defaults=old.task_defaults if sent.task_defaults.log_driver is None else sent.task_defaults,
        encryption_config=sent.encryption_config,
    )


def unlock_key_of(cluster: Cluster, *, autolock: bool, rotate: bool) -> bytes:
    """The cluster's unlock key after an update. A rotation without autolock changes nothing, as in SwarmKit."""
    if not autolock:
        return b""
    return keyring.new_unlock_key() if rotate or not cluster.mesh_unlock_key else cluster.mesh_unlock_key


def _cluster(snapshot: Snapshot) -> Cluster:
    if snapshot.cluster is None:
        raise ApiError(500, "the cluster's own object is missing from the store")
    return snapshot.cluster


def _leaving_text(snapshot: Snapshot | None) -> str:
    managers = [node for node in snapshot.all(Node) if node.manager_status is not None] if snapshot is not None else []
    reachable = sum(node.manager_status is not None and node.manager_status.reachability == "reachable" for node in managers)
    if len(managers) <= 1:
        return _LEAVING + "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
    text = _LEAVING
    if reachable - 1 < len(managers) // 2 + 1:
        text += (
            f"Removing this node leaves {max(reachable - 1, 0)} managers out of {len(managers)}. "
            "Without a Raft quorum your swarm will be inaccessible. "
        )
    return text + (
        "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. "
        "Use `--force` to suppress this message."
    )
