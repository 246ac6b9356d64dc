"""`docker create` and `docker run`: a node is found, and the container is made there.

Edge: routes over the Engines. What is asked of a node, and which one it will be, is `container_placement`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from aiohttp import web

from orchestrator.api import access, attachments, codec, older_engines
from orchestrator.api.attached import Join
from orchestrator.api.container_names import held
from orchestrator.api.container_placement import Candidate, Creation, Present, Wanted, choose, name_holder, rewritten, wanted_of
from orchestrator.api.container_views import name_taken
from orchestrator.api.containers import OWNERS
from orchestrator.api.engines import CHANGE, LIST, Engines, Member, Replies, asked_path, engines_of
from orchestrator.api.proxy import PROXY, path_of
from orchestrator.api.queries import at
from orchestrator.control.demand import host_ports
from orchestrator.control.ports import claim_id
from orchestrator.engine_http import Answer
from orchestrator.errors import ApiError
from orchestrator.model import PortConfig, terminal
from orchestrator.relay import whole
from orchestrator.store.snapshot import Snapshot

log = logging.getLogger(__name__)

_SENT_ON = ("X-Registry-Auth", "X-Registry-Config", "User-Agent")


class Underway:
    """Containers that are being made, by node: a decision counts those that were not there yet when the Engines were asked."""

    def __init__(self) -> None:
        self._nodes: Counter[str] = Counter()
        self._made: deque[tuple[float, str]] = deque()

    @contextlib.contextmanager
    def on(self, node_id: str) -> Iterator[None]:
        self._nodes[node_id] += 1
        try:
            yield
        finally:
            self._nodes[node_id] -= 1
            now = asyncio.get_running_loop().time()
            self._made.append((now, node_id))
            while self._made and self._made[0][0] < now - 2 * LIST.most_s:
                self._made.popleft()

    def since(self, moment: float) -> Counter[str]:
        """By node id; moment: the loop's time when the Engines' lists were asked for."""
        return self._nodes + Counter(node_id for made_at, node_id in self._made if made_at >= moment)


UNDERWAY: web.AppKey[Underway] = web.AppKey("underway", Underway)


async def create_container(request: web.Request) -> web.StreamResponse:
    raw = await access.body(request)
    engines = engines_of(request)
    snapshot = engines.snapshot()
    if snapshot is None:
        return whole(await older_engines.create(request.app[PROXY], path_of(request), raw, _sent_on(request)))
    joining = attachments.asked(snapshot, raw)
    try:
        body: dict[str, Any] = codec.parse(raw)
        creation = codec.convert(body, Creation)
    except ApiError:
        # malformed: the Engine says how
        return await request.app[PROXY].forward(request, raw)
    options: dict[str, Any] = next((value for key, value in body.items() if key.lower() == "hostconfig"), {})
    overlays = {join.called for join in joining}
    wanted = wanted_of(creation, request.query.get("platform", ""), options, overlays.__contains__)
    name = request.query.get("name", "").lstrip("/")
    async with held(access.store_of(request), name):
        candidates, missing = await _candidates(request, engines, snapshot, wanted)
        if name and (holder := name_holder(candidates, name)) is not None:
            raise name_taken(name, holder.id)
        try:
            chosen = choose(wanted, candidates)
        except ApiError as error:
            raise ApiError(error.status, error.message + (f" ({missing})" if missing else "")) from None
        changed = rewritten(body, creation)
        with request.app[UNDERWAY].on(chosen.node.id):
            return await _create(request, chosen, candidates, raw if changed is None else codec.encode(changed), joining)


ROUTES = [web.post("/containers/create", create_container)]


async def _create(
    request: web.Request, chosen: Candidate, candidates: Sequence[Candidate], body: bytes, joining: Sequence[Join]
) -> web.Response:
    member = engines_of(request).find(chosen.node.id)
    engine = engines_of(request).engine(member)
    headers = _sent_on(request)
    path = at(request, "/containers/create")

    async def make(body: bytes) -> Answer:
        return await older_engines.create(engine, path, body, headers)

    answer = await (attachments.create(request, member, body, joining, make) if joining else make(body))
    made = answer.json()
    if answer.ok and isinstance(made, dict) and isinstance(made.get("Id"), str):
        request.app[OWNERS].made(made["Id"], chosen.node.id)
        log.info("container placed id=%s node=%s image=%r", made["Id"], chosen.node.id, request.query.get("name", ""))
        if not request.query.get("name"):
            others = {name for one in candidates if one is not chosen for present in one.containers for name in present.names}
            name = await _rename_if_taken(lambda method, path: engine.ask(method, path, timeout_s=CHANGE.most_s), made["Id"], others)
            if joining:
                await attachments.rename(access.store_of(request), made["Id"], name)
    return whole(answer)


def _sent_on(request: web.Request) -> dict[str, str]:
    return {header: request.headers[header] for header in _SENT_ON if header in request.headers}


async def _rename_if_taken(ask: Callable[[str, str], Awaitable[Answer]], id: str, others: set[str]) -> str:
    """An Engine makes up names that are unique on its node only. As it does itself, a digit is added to one that is taken."""
    shown = (await ask("GET", f"/containers/{id}/json")).json()
    name = str(shown.get("Name", "")).lstrip("/") if isinstance(shown, dict) else ""
    if name not in others:
        return name
    free = next(f"{name}{number}" for number in range(1, len(others) + 2) if f"{name}{number}" not in others)
    await ask("POST", f"/containers/{id}/rename?name={free}")
    return free


async def _candidates(request: web.Request, engines: Engines, snapshot: Snapshot, wanted: Wanted) -> tuple[list[Candidate], str]:
    """The nodes whose Engines answered all that has to be known of them, and who is missing."""
    members = engines.members()
    begun = asyncio.get_running_loop().time()

    async def every(path: str) -> Replies:
        return await engines.ask_all("GET", asked_path(request, path), members=members)

    image = quote(wanted.image, safe="/:@")
    listed, images, volumes, found_networks = await asyncio.gather(
        every("/containers/json?all=1"),
        every(f"/images/{image}/json"),
        every(f"/volumes?filters={_name_filter(wanted.volumes)}") if wanted.volumes else _nothing(),
        every("/networks") if wanted.networks else _nothing(),
    )
    with_image = {member.node_id: answer.ok for member, answer in images.answers}
    with_volumes = {member.node_id: {volume["Name"] for volume in value.get("Volumes") or ()} for member, value in volumes.values()}
    with_networks = {
        member.node_id: {part for network in value for part in (network["Name"], network["Id"])}
        for member, value in found_networks.values()
    }
    underway = request.app[UNDERWAY].since(begun)
    published = frozenset(
        (protocol, port)
        for protocol, _, port in wanted.ports
        if snapshot.claim(claim_id(PortConfig(protocol=protocol, published_port=port)))
    )
    candidates = []
    for member, entries in listed.values():
        node = snapshot.node(member.node_id)
        if node is None or member.node_id not in with_image:
            continue
        candidates.append(
            Candidate(
                node=node,
                name=member.name,
                local=member.local,
                containers=tuple(Present.listed(entry) for entry in entries),
                has_image=with_image[member.node_id],
                volumes=wanted.volumes & with_volumes.get(member.node_id, set()),
                networks=wanted.networks & with_networks.get(member.node_id, set()),
                pending=underway[member.node_id],
                task_memory_bytes=_task_memory_bytes(snapshot, member),
                task_ports=published | _task_ports(snapshot, member),
            )
        )
    return candidates, listed.missing() or images.missing()


async def _nothing() -> Replies:
    return Replies([])


def _name_filter(names: frozenset[str]) -> str:
    return quote(codec.encode({"name": sorted(names)}).decode().strip(), safe="")


def _task_ports(snapshot: Snapshot, member: Member) -> frozenset[tuple[str, int]]:
    """Those that tasks take on their node."""
    return frozenset(
        port for task in snapshot.tasks_of_node(member.node_id) if not terminal(task.status.state) for port in host_ports(task)
    )


def _task_memory_bytes(snapshot: Snapshot, member: Member) -> int:
    return sum(
        reserved.memory_bytes
        for task in snapshot.tasks_of_node(member.node_id)
        if not terminal(task.status.state)
        and task.spec.resources is not None
        and (reserved := task.spec.resources.reservations) is not None
    )
