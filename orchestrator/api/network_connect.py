"""`docker network connect` and `disconnect` for networks of the cluster.

Edge: the store and the Engines. A container that was made for our networks has an attachment already; another one gets an attachment whose
id follows from its own, so that two clients at once make one. Source: Docker Engine API 1.44, NetworkConnect, NetworkDisconnect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web
from msgspec.structs import replace

from orchestrator.api import access, attached, engines
from orchestrator.api.attached_views import attachment_of, is_task
from orchestrator.api.attachments import find_overlay, refuse_unable, settled, until
from orchestrator.api.containers import inspected_owner_of
from orchestrator.control.slots import wanted as is_wanted
from orchestrator.control.transitions import removed
from orchestrator.errors import ApiError
from orchestrator.ids import base36
from orchestrator.model import STATE_ORDER, Network, NetworkAttachmentConfig, Task, TaskState, is_attachment, terminal
from orchestrator.store.base import Change, Put
from orchestrator.store.snapshot import Snapshot

_ASSIGNED = STATE_ORDER[TaskState.ASSIGNED]


async def connect(request: web.Request) -> web.StreamResponse | None:
    """POST /networks/{id}/connect; None: the network is not the cluster's."""
    network = _network(request)
    if network is None:
        return None
    asked = await access.body_as(request, _Connection)
    join = attached.Join(network, asked.endpoint_config or attached.Endpoint())
    attached.check(join)
    store = access.store_of(request)
    found = await inspected_owner_of(request, asked.container)
    member, details, container_id, name = found.member, found.shown, found.id, found.name
    known = attachment_of(store.snapshot(), container_id, (details.get("Config") or {}).get("Labels"))
    id = known.id if known is not None else _later_id(container_id)
    if known is None:
        _refuse_connection(details)
        refuse_unable(store.snapshot(), member)
    # Docker lets a container's short id be one of its names
    aliases = [*(join.endpoint.aliases or ()), container_id[:12]]
    join = attached.Join(network, replace(join.endpoint, aliases=aliases))

    def plan(snapshot: Snapshot) -> Sequence[Change]:
        task = snapshot.task(id)
        if task is None:
            made = attached.attachment(id, member.node_id, name, [join], access.now(), container_id=container_id)
            return [Put(made)]
        if _is_leaving(task):
            raise ApiError(409, f"container {name} is just leaving its networks: try again")
        configs = task.spec.networks or []
        if any(config.target == network.id for config in configs):
            raise ApiError(403, f"endpoint with name {name} already exists in network {network.name}")
        return [Put(_with_networks(task, [*configs, attached.config(join)]))]

    await settled(store, lambda snapshot: not _is_leaving(snapshot.task(id)))
    await access.commit(store, plan)
    try:
        await until(store, id, lambda task: _is_on(task, network.id))
    except ApiError:
        await access.commit(store, lambda snapshot: _left(snapshot, id, network.id))
        raise
    return web.Response(status=200)


async def disconnect(request: web.Request) -> web.StreamResponse | None:
    """POST /networks/{id}/disconnect; None: the network is not the cluster's."""
    network = _network(request)
    if network is None:
        return None
    asked = await access.body_as(request, _Connection)
    store = access.store_of(request)
    snapshot = store.snapshot()
    task = _attachment_called(snapshot, asked.container)
    if task is None:
        found = await inspected_owner_of(request, asked.container)
        task = attachment_of(snapshot, found.id, (found.shown.get("Config") or {}).get("Labels"))
    if task is None or all(config.target != network.id for config in task.spec.networks or ()):
        raise ApiError(500, f"container {asked.container} is not connected to network {network.name}")
    id = task.id
    await access.commit(store, lambda snapshot: _left(snapshot, id, network.id))
    # a network that was left can be removed
    await settled(store, lambda snapshot: all(task.id != id for task in snapshot.tasks_of_network(network.id)))
    return web.Response(status=200)


async def wait_for_removed(request: web.Request, network: Network) -> None:
    """Containers of this network that were removed just now hold their addresses until their agents have said so: `docker rm -f db` and
    `docker network rm net` follow one another."""
    store, all_engines = access.store_of(request), engines.engines_of(request)
    gone = set()
    for task in store.snapshot().tasks_of_network(network.id):
        status = task.status.container_status
        if not is_attachment(task) or status is None or not status.container_id:
            continue
        member = next((member for member in all_engines.members() if member.node_id == task.node_id), None)
        if member is not None and not member.away:
            replies = await all_engines.ask_all("GET", f"/containers/{status.container_id}/json", members=[member])
            if any(answer.status == HTTPStatus.NOT_FOUND for _, answer in replies.refusals()):
                gone.add(task.id)
    await settled(store, lambda snapshot: all(task.id not in gone for task in snapshot.tasks_of_network(network.id)))


def _is_leaving(task: Task | None) -> bool:
    return task is not None and (not is_wanted(task) or terminal(task.status.state))


class _Connection(msgspec.Struct, rename="pascal"):
    container: str = ""
    endpoint_config: attached.Endpoint | None = None
    force: bool = False


def _later_id(container_id: str) -> str:
    """Of the attachment of a container that was made without."""
    return base36(int(container_id[:32], 16), 25)


def _left(snapshot: Snapshot, id: str, network_id: str) -> list[Change]:
    """Off this network. Without any, a container that was connected later is nothing to us; one that was made for us stays known."""
    task = snapshot.task(id)
    if task is None or terminal(task.status.state):
        return []
    networks = [config for config in task.spec.networks or () if config.target != network_id]
    spec = task.spec.network_attachment_spec
    later = spec is not None and bool(spec.container_id) and id == _later_id(spec.container_id)
    return [Put(removed(task, access.now()) if later and not networks else _with_networks(task, networks))]


def _with_networks(task: Task, networks: list[NetworkAttachmentConfig]) -> Task:
    return replace(task, spec=replace(task.spec, networks=networks), updated_at=access.now())


def _is_on(task: Task, network_id: str) -> bool:
    joined = any(attachment.network.id == network_id for attachment in task.networks_attachments or ())
    return joined and STATE_ORDER[task.status.state] >= _ASSIGNED


def _attachment_called(snapshot: Snapshot, reference: str) -> Task | None:
    """By its container's name or id: its node needn't be there."""
    return next((task for task in snapshot.tasks_attaching() if task.name == reference), None) or attachment_of(snapshot, reference)


def _refuse_connection(details: Mapping[str, Any]) -> None:
    """ApiError where our network and names can't be beside those that the container has."""
    name = details["Name"].lstrip("/")
    if is_task((details.get("Config") or {}).get("Labels")):
        raise ApiError(403, f"container {name} is a task's: its networks are those of its service")
    mode = (details.get("HostConfig") or {}).get("NetworkMode") or ""
    if mode == "host" or mode.startswith("container:"):
        raise ApiError(403, "container sharing network namespace with another container or host cannot be connected to any other network")
    local = sorted((details.get("NetworkSettings") or {}).get("Networks") or {})
    if own := [network for network in local if network not in ("none", "bridge")]:
        raise ApiError(
            403,
            f"container {name} is on network {own[0]}, where its Engine answers for names: only containers of the default bridge, without "
            "network, or started on an overlay network can be connected to one",
        )


def _network(request: web.Request) -> Network | None:
    snapshot = engines.engines_of(request).snapshot()
    return find_overlay(snapshot, request.match_info["id"]) if snapshot is not None else None
