"""The Engines of all nodes: who they are, asking one, some or all of them, and whose answers are missing.

Edge: the local Engine's socket, other nodes' TLS servers. An Engine that does not answer holds nobody up for longer than `Patience` says;
whoever is left out is named with a reason, and said in the answer's header `Warning`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from orchestrator.api import access, references
from orchestrator.api.backend import Backend
from orchestrator.api.proxy import EngineProxy
from orchestrator.api.remote_engine import RemoteEngine
from orchestrator.engine_http import Answer, Engine, EngineAway
from orchestrator.errors import ApiError
from orchestrator.model import Node
from orchestrator.store.snapshot import Snapshot

# TLS handshakes with a thousand nodes at once would make each of them late
_AT_ONCE = 256
_NAMED_AWAY = 8
_SERVERS_FAULT = 500


@dataclass(frozen=True, slots=True)
class Member:
    """A node, as far as its Engine is concerned. away: why it isn't asked, "" = it is. addr: its address for clients."""

    node_id: str
    name: str
    addr: str
    local: bool
    away: str = ""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for Engines. Once half of them have answered, `first_s`, or `factor` times as long as that took if that is more
    (a busy machine makes all of them slow), but `most_s` at most; while fewer have, `silent_s`."""

    first_s: float
    silent_s: float
    most_s: float
    factor: float = 4.0

    def limit_s(self, half_after_s: float | None) -> float:
        if half_after_s is None:
            return self.silent_s
        return min(max(self.first_s, self.factor * half_after_s), self.most_s)


# a person waits for it
LIST = Patience(first_s=1.0, silent_s=3.0, most_s=10.0)
# prune, remove, create: the Engine works, and is to be left to it
CHANGE = Patience(first_s=60.0, silent_s=60.0, most_s=60.0)


@dataclass(frozen=True, slots=True)
class Replies:
    """What was answered, in the order of the members' names, and who is missing: (member, sentence)."""

    answers: Sequence[tuple[Member, Answer]]
    away: Sequence[tuple[Member, str]] = field(default_factory=tuple)

    def values(self) -> Iterator[tuple[Member, Any]]:
        """The JSON of those that did not refuse."""
        return ((member, answer.json()) for member, answer in self.answers if answer.ok)

    def refusals(self) -> list[tuple[Member, Answer]]:
        return [(member, answer) for member, answer in self.answers if not answer.ok]

    def require_one(self) -> None:
        """ApiError unless at least one Engine did what was asked: the first refusal, or who is away."""
        if any(answer.ok for _, answer in self.answers):
            return
        for _, answer in self.answers:
            raise ApiError(answer.status, answer.message())
        raise ApiError(503, self.missing() or "no node of the cluster has an Engine that can be asked")

    def missing(self, what: str = "") -> str:
        """A sentence that names who could not be asked, "" when nobody: "could not be asked: node-2 (...), node-3 (...); `what`"."""
        absent = [*self.away, *((member, answer.message()) for member, answer in self.refusals() if answer.status >= _SERVERS_FAULT)]
        if not absent:
            return ""
        named = [f"{member.name} ({reason})" for member, reason in absent[:_NAMED_AWAY]]
        if len(absent) > _NAMED_AWAY:
            named.append(f"{len(absent) - _NAMED_AWAY} more nodes")
        return f"could not be asked: {', '.join(named)}" + (f"; {what}" if what else "")

    def warn(self, response: web.StreamResponse, what: str = "") -> None:
        """RFC 7234, 5.5: 199, a warning of the agent that answers."""
        if text := self.missing(what):
            plain = text.encode("ascii", "replace").decode().replace("\\", "/").replace('"', "'")
            response.headers["Warning"] = f'199 meshd "{plain}"'


class Engines:
    """One an application."""

    def __init__(self, backend: Backend, local: EngineProxy) -> None:
        self._backend = backend
        self._local = local
        self._remote: dict[str, RemoteEngine] = {}

    def snapshot(self) -> Snapshot | None:
        """None on a node that is no manager: it speaks for its own Engine only."""
        return self._backend.store.snapshot() if self._backend.state == "manager" and self._backend.store is not None else None

    def members(self) -> list[Member]:
        """Every node of the cluster, by name; on a node that is no manager itself alone."""
        snapshot = self.snapshot()
        own = self._backend.node_id
        if snapshot is None:
            return [Member(own, "this node", "", True)]
        return sorted((_member(node, own) for node in snapshot.all(Node)), key=lambda member: (member.name, member.node_id))

    def find(self, reference: str) -> Member:
        """By id, name or the beginning of the id. ApiError(404, 400)."""
        snapshot = self.snapshot()
        if snapshot is None:
            raise ApiError(503, access.NOT_MANAGER)
        return _member(references.find(snapshot, Node, reference), self._backend.node_id)

    def local(self) -> Member:
        return next((member for member in self.members() if member.local), Member(self._backend.node_id, "this node", "", True))

    def engine(self, member: Member) -> Engine:
        """EngineAway: the cluster knows already that it can't be asked."""
        if member.local:
            return self._local
        if member.away:
            raise EngineAway(f"node {member.name} is away: {member.away}")
        engine = self._remote.get(member.node_id)
        if engine is None:
            engine = RemoteEngine(member.name, lambda: self._backend.engine_session(member.node_id))
            self._remote[member.node_id] = engine
        return engine

    async def ask_all(
        self,
        method: str,
        path: str | Callable[[Member], str],
        *,
        members: Iterable[Member] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        patience: Patience = LIST,
    ) -> Replies:
        """The same small request at many Engines (all, unless told which). path: with or without version."""

        async def ask(member: Member) -> Answer:
            return await self.engine(member).ask(method, path if isinstance(path, str) else path(member), headers=headers, body=body)

        return await self.each(ask, self.members() if members is None else list(members), patience)

    async def each(self, ask: Callable[[Member], Awaitable[Answer]], wanted: Sequence[Member], patience: Patience) -> Replies:
        """`ask` of each of them. It may raise ApiError."""

        async def one(member: Member) -> Answer:
            async with gate:
                return await ask(member)

        gate = asyncio.Semaphore(_AT_ONCE)
        asked = [member for member in wanted if not member.away]
        tasks = [asyncio.create_task(one(member)) for member in asked]
        try:
            waited_s = await _settled(tasks, patience)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        answers: list[tuple[Member, Answer]] = []
        away = [(member, member.away) for member in wanted if member.away]
        for member, task in zip(asked, tasks, strict=True):
            if task.cancelled():
                away.append((member, f"no answer within {waited_s:.1f} s"))
            elif (error := task.exception()) is None:
                answers.append((member, task.result()))
            elif isinstance(error, ApiError):
                away.append((member, error.message))
            else:
                raise error
        return Replies(answers, sorted(away, key=lambda entry: entry[0].name))


ENGINES: web.AppKey[Engines] = web.AppKey("engines", Engines)


def engines_of(request: web.Request) -> Engines:
    return request.app[ENGINES]


def asked_path(request: web.Request, path: str) -> str:
    """`path` at the API version of the request, for `ask` and `ask_all`: answers then have the shape that the client knows."""
    version = request.match_info.get("api_version")
    return f"/v{version}{path}" if version else path


async def _settled(tasks: Sequence[asyncio.Task[Answer]], patience: Patience) -> float:
    """Wait for the tasks as long as patience lasts; returns how long that was."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    half_after_s: float | None = None
    pending = set(tasks)
    while pending:
        left_s = begun + patience.limit_s(half_after_s) - loop.time()
        if left_s <= 0:
            break
        _, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if half_after_s is None and 2 * (len(tasks) - len(pending)) >= len(tasks):
            half_after_s = loop.time() - begun
    return loop.time() - begun


def _member(node: Node, own_id: str) -> Member:
    local = node.id == own_id
    away = ""
    if not local:
        if node.status.state == "down":
            away = node.status.message or "the node is down"
        elif not node.description.mesh_api_addr:
            away = "the node has not said its address yet"
    return Member(node.id, references.name_of(node), node.status.addr, local, away)
