"""Containers that are made on networks of the cluster.

Edge: the store and the Engines. An attachment is committed first, given its addresses by the leader and a gate by its node's
agent, and only then is the Engine asked to make the container; whoever dies in between leaves an attachment without container, which its
agent gives up (`agent.attachments`). Source: Docker Engine API 1.44, ContainerCreate.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote

import msgspec
from aiohttp import web
from msgspec.structs import replace

from orchestrator.api import access, attached, codec, engines, references, validate
from orchestrator.api.attached_views import attachment_of
from orchestrator.api.engines import Member
from orchestrator.control.eligibility import can_encrypt
from orchestrator.control.ports import claim_id
from orchestrator.control.slots import wanted as is_wanted
from orchestrator.control.transitions import removed
from orchestrator.engine_http import Answer, Engine
from orchestrator.errors import ApiError, MeshdError
from orchestrator.ids import new_id
from orchestrator.model import STATE_ORDER, Network, PortConfig, Task, TaskState, terminal
from orchestrator.store.base import Change, Put, Store
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.subscription import wait_for

log = logging.getLogger(__name__)

# for leader and agent together; Docker gives up after 20 s
_READY_WAIT_S = 20.0
_SETTLE_S = 5.0
_POLL_S = 0.01
_INSPECT_TIMEOUT_S = 30.0
_READY = STATE_ORDER[TaskState.READY]


def asked(snapshot: Snapshot, raw: bytes) -> list[attached.Join]:
    """The networks of the cluster that a request for a container names; [] = it is an Engine's business alone. ApiError: it can't be so."""
    try:
        wanted = codec.decode(raw, attached.Wanted)
    except ApiError:
        # what is malformed is for the Engine to refuse
        return []
    found = {}
    for name in wanted.networks():
        network = find_overlay(snapshot, name)
        if network is not None:
            found[name] = network
    return attached.joins(wanted, found)


def find_overlay(snapshot: Snapshot, reference: str) -> Network | None:
    """A short prefix may be a local network's too; Docker lets the cluster's win, and so does this."""
    try:
        return references.find(snapshot, Network, reference)
    except ApiError as error:
        if error.status == 404:
            return None
        raise


async def create(
    request: web.Request, member: Member, raw: bytes, joining: Sequence[attached.Join], make: Callable[[bytes], Awaitable[Answer]]
) -> Answer:
    """Make a container on this node that joins these networks. `raw`: as it was asked for; `make` asks the node's Engine for it."""
    # a client that goes away must not leave a container without the attachment that it was made for
    return await asyncio.shield(asyncio.ensure_future(_create(request, member, raw, joining, make)))


async def _create(
    request: web.Request, member: Member, raw: bytes, joining: Sequence[attached.Join], make: Callable[[bytes], Awaitable[Answer]]
) -> Answer:
    store, wanted = access.store_of(request), codec.decode(raw, attached.Wanted)
    refuse_unable(store.snapshot(), member)
    image = await _image(engines.engines_of(request).engine(member), wanted.image)
    # before anything is committed
    attached.command_line(wanted, image)
    name = request.query.get("name", "").lstrip("/")
    task = attached.attachment(new_id(), member.node_id, name, joining, access.now(), wanted=wanted, image=image)
    await access.commit(store, lambda snapshot: _made(snapshot, task))
    try:
        ready = await until(store, task.id, _is_ready)
        snapshot = store.snapshot()
        node, cluster = snapshot.node(member.node_id), snapshot.cluster
        if node is None or cluster is None:
            raise ApiError(503, f"node {member.name} is not of the cluster any more")
        answer = await make(codec.encode(attached.held(codec.parse(raw), wanted, image, ready, node, cluster.id)))
    except BaseException:
        await _change(store, task.id, _given_up)
        raise
    if answer.ok:
        container_id = answer.json()["Id"]
        await _change(store, task.id, lambda task: _bound(task, container_id))
    else:
        await _change(store, task.id, _given_up)
    return answer


async def rename(store: Store, container_id: str, name: str) -> None:
    """A container has got another name, and answers to it from now on."""
    task = attachment_of(store.snapshot(), container_id)
    if task is not None:
        await _change(store, task.id, lambda task: replace(task, name=name, updated_at=access.now()))


async def container_removed(store: Store, container_id: str) -> None:
    """Once this returns, its networks don't show the container any more, its addresses are free and its networks can be removed; unless its
    agent is not heard of for seconds. Whoever is interrupted in between leaves it to the agent to find out."""
    task = attachment_of(store.snapshot(), container_id)
    if task is None:
        return
    await _change(store, task.id, _given_up)
    await settled(store, lambda snapshot: (left := snapshot.task(task.id)) is None or terminal(left.status.state))


async def settled(store: Store, so: Callable[[Snapshot], bool]) -> None:
    """Wait a moment for what leader and agent are about to do; if they don't, the next step says what is in the way."""
    with contextlib.suppress(TimeoutError):
        await wait_for(store, so, _SETTLE_S)


def refuse_unable(snapshot: Snapshot, member: Member) -> None:
    """ApiError where the node's meshd knows nothing of attachments: it would take one for a task."""
    node = snapshot.node(member.node_id)
    if node is None or not node.description.mesh_tasks_dir:
        raise ApiError(
            503, f"node {member.name} can't attach containers to networks of the cluster: its meshd is too old, or its Engine is away"
        )


# ---- plans -----------------------------------------------------------------------------------------------------------------------


def _made(snapshot: Snapshot, task: Task) -> list[Change]:
    node = snapshot.node(task.node_id)
    for config in task.spec.networks or ():
        network = snapshot.network(config.target)
        if network is None:
            raise ApiError(404, f"network {config.target} not found")
        if network.mesh_encrypted and node is not None and not can_encrypt(node):
            raise validate.unsupported(
                f"network {network.name} is encrypted, and node {node.description.hostname} can't have such networks"
            )
    for port in task.mesh_endpoint_ports or ():
        if snapshot.claim(claim_id(port)) is not None or _holds_port(snapshot, task.node_id, port):
            raise ApiError(
                500,
                f"driver failed programming external connectivity on endpoint {task.name}: Bind for 0.0.0.0:{port.published_port} failed: "
                "port is already allocated",
            )
    return [Put(task)]


def _holds_port(snapshot: Snapshot, node_id: str, wanted: PortConfig) -> bool:
    return any(
        (port.protocol, port.published_port, port.publish_mode) == (wanted.protocol, wanted.published_port, "host")
        for task in snapshot.tasks_of_node(node_id)
        if not terminal(task.status.state)
        for port in task.mesh_endpoint_ports or ()
    )


def _bound(task: Task, container_id: str) -> Task:
    """Its container is there."""
    attachment = task.spec.network_attachment_spec
    assert attachment is not None
    networks = [replace(config, aliases=[*(config.aliases or ()), container_id[:12]]) for config in task.spec.networks or ()]
    spec = replace(task.spec, networks=networks, network_attachment_spec=replace(attachment, container_id=container_id))
    return replace(task, spec=spec, updated_at=access.now())


def _given_up(task: Task) -> Task:
    return removed(task, access.now())


# ---- waiting ---------------------------------------------------------------------------------------------------------------------


def _is_ready(task: Task) -> bool:
    return STATE_ORDER[task.status.state] >= _READY


async def until(store: Store, id: str, there: Callable[[Task], bool]) -> Task:
    """The attachment once it is `there`. ApiError: it can't be, or nobody said so in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _READY_WAIT_S
    why = "context deadline exceeded"
    while loop.time() < deadline:
        task = store.snapshot().task(id)
        if task is None or not is_wanted(task) or terminal(task.status.state):
            why = "it was removed meanwhile"
            break
        if there(task):
            return task
        if task.status.err:
            why = task.status.err
            break
        await asyncio.sleep(_POLL_S)
    raise ApiError(500, f"attaching to network failed, make sure your network options are correct and check manager logs: {why}")


async def _change(store: Store, id: str, change: Callable[[Task], Task]) -> None:
    """What can't be said now is found out by the node's agent: whose container it is, or that there is none."""

    def plan(snapshot: Snapshot) -> list[Change]:
        task = snapshot.task(id)
        return [] if task is None or terminal(task.status.state) else [Put(change(task))]

    try:
        await access.commit(store, plan)
    except MeshdError as error:
        log.warning("attachment=%s left=to its agent error=%s", id, error)


# ---- Engines ---------------------------------------------------------------------------------------------------------------------


async def _image(engine: Engine, name: str) -> attached.ImageConfig:
    """ApiError(404), as the Engine says it, makes the CLI pull."""
    answer = await engine.ask("GET", f"/images/{quote(name, safe='')}/json", timeout_s=_INSPECT_TIMEOUT_S)
    if not answer.ok:
        raise ApiError(answer.status, answer.message())
    config = (answer.json() or {}).get("Config") or {}
    return msgspec.convert(config, attached.ImageConfig)
