"""What the Engines of all nodes tell of, as lines that all clients share, each with its node.

Edge: one connection a node, as long as anybody listens, made again when it breaks; short requests for the past. Whoever listens is told
when a node's Engine is out of sight, and when it is back. Source: Docker Engine API 1.44 /events; classicswarm cluster/engine.go and
event.go for the attributes node.name, node.id and node.ip and for the events (dis)connect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import aiohttp

from orchestrator.api import access, broadcast, codec, event_filters, progress
from orchestrator.api.engine_times import nanoseconds, seconds
from orchestrator.api.engines import Engines, Member
from orchestrator.api.event_fan import Fan
from orchestrator.api.event_filters import Described
from orchestrator.api.event_position import Position
from orchestrator.api.filters import Filters
from orchestrator.api.versions import API_VERSION
from orchestrator.errors import ApiError

log = logging.getLogger(__name__)

# A client's answer begins once the Engines are listened to. One that takes longer doesn't hold it up.
READY_S = 1.0
_RETRY_S = 1.0
# An Engine tells the past at once. One that is asked until a moment which its clock has still to reach says nothing more until then.
_PAST_S = 5.0
_SILENT_S = 1.0
_INFO_S = 5.0
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PastLine:
    time_ns: int
    line: bytes


class Source:
    """One Engine's events, published to the fan. ready: set when it is known from where on, or that the Engine can't be asked now."""

    def __init__(self, engines: Engines, fan: Fan, member: Member) -> None:
        self.member = member
        self.position: Position | None = None
        self.ready = asyncio.Event()
        self._engines = engines
        self._fan = fan
        self._begun_s = asyncio.get_running_loop().time()
        self._seen = True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._follow()
                reason = "the Engine ended the stream"
            except (aiohttp.ClientError, OSError, ApiError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
            except Exception as error:
                log.exception("events: bug with node=%s", self.member.name)
                reason = f"{type(error).__name__}: {error}"
            self.ready.set()
            self._sees(False, self.member.away or reason)
            await asyncio.sleep(_RETRY_S)

    async def _follow(self) -> None:
        engine = self._engines.engine(self.member)
        if self.position is None:
            asked_s = self._age_s()
            info = await engine.ask("GET", f"/v{API_VERSION}/info", timeout_s=_INFO_S)
            # By the Engine's clock, a moment between the first client's coming and the head of its answer: nothing older is told, nothing
            # younger is missed. When that head has gone already, rather somewhat before than after.
            waited_s = self._age_s() if self.ready.is_set() else max(asked_s, self._age_s() - READY_S)
            by_engine_ns = nanoseconds(str((info.json() or {}).get("SystemTime", "")))
            # one that tells no time has this machine's clock
            now_ns = by_engine_ns if by_engine_ns is not None else int(access.now().timestamp() * 1e9)
            self.position = Position(now_ns - int(waited_s * 1e9))
        self.ready.set()
        position = self.position
        async with engine.request("GET", await engine.path(_path(since_ns=position.resume_ns))) as response:
            if response.status != HTTPStatus.OK:
                raise ApiError(response.status, f"the Engine answers with status {response.status}")
            self._sees(True, "")
            async for event in progress.lines(response.content, None):
                line, described = _told(self.member, event)
                if position.admits(line, _time_ns(event)):
                    self._publish(line, described)

    def _age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._begun_s

    def _publish(self, line: bytes, described: Described) -> None:
        self._fan.publish(line, lambda wanted: names(wanted, self.member) and event_filters.passes(wanted, described))

    def _sees(self, seen: bool, reason: str) -> None:
        """Tells of a change only."""
        if seen is self._seen:
            return
        self._seen = seen
        log.info("events of node=%s connected=%s reason=%s", self.member.name, seen, reason)
        attributes = {"name": self.member.name, **({"reason": reason} if reason else {})}
        self._publish(*_told(self.member, of_daemon("connect" if seen else "disconnect", self.member.node_id, attributes)))


class Sources:
    """Those that anybody needs, no others."""

    def __init__(self, engines: Engines, fan: Fan) -> None:
        self._engines = engines
        self._fan = fan
        self._changed = asyncio.Event()
        self._sources: dict[str, Source] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        fan.changed = self._changed.set

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._changed.clear()
                self._arrange()
                try:
                    # nodes come and go while somebody listens
                    async with asyncio.timeout(_RETRY_S if self._sources or self._fan.wanted() else None):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def ready(self, wanted: Filters) -> None:
        """What happens from now on is told to those who want it, unless an Engine says nothing within READY_S."""
        self._arrange()
        waiting = [asyncio.create_task(source.ready.wait()) for source in self._of(wanted) if not source.ready.is_set()]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=READY_S)
            for task in late:
                task.cancel()

    def reached(self, wanted: Filters) -> dict[str, int]:
        """By node id: the time up to which the past goes, for those who listen from now on."""
        return {source.member.node_id: source.position.newest_ns for source in self._of(wanted) if source.position is not None}

    def members(self, wanted: Filters) -> list[Member]:
        """Those of nodes that exist: `docker events --filter node=x` is no error if there is no x."""
        return [member for member in self._engines.members() if names(wanted, member)] if event_filters.asks_engines(wanted) else []

    async def past(self, wanted: Filters, since: str, until: dict[str, str]) -> list[PastLine]:
        """What the Engines still know of; until: by node id, else they aren't asked. One that doesn't answer is not waited for."""
        asked = [member for member in self.members(wanted) if not member.away and member.node_id in until]
        told = await asyncio.gather(*(self._past_of(member, wanted, since, until[member.node_id]) for member in asked))
        return [line for lines in told for line in lines]

    async def _past_of(self, member: Member, wanted: Filters, since: str, until: str) -> list[PastLine]:
        found: list[PastLine] = []
        try:
            async with asyncio.timeout(_PAST_S):
                engine = self._engines.engine(member)
                async with engine.request("GET", await engine.path(_path(since=since, until=until))) as response:
                    if response.status == HTTPStatus.OK:
                        stall_s = _SILENT_S if _is_ahead_of(until, response.headers.get("Date", "")) else None
                        async for event in progress.lines(response.content, stall_s):
                            line, described = _told(member, event)
                            if event_filters.passes(wanted, described):
                                found.append(PastLine(_time_ns(event), line))
        except (aiohttp.ClientError, OSError, ApiError, TimeoutError) as error:
            log.info("past events without node=%s error=%s", member.name, error or type(error).__name__)
        return found

    def _of(self, wanted: Filters) -> Iterable[Source]:
        keys = {_key(member) for member in self.members(wanted)}
        return [source for key, source in self._sources.items() if key in keys]

    def _arrange(self) -> None:
        """A source for each member that anybody wants; none for others."""
        asking = [wanted for wanted in self._fan.wanted() if event_filters.asks_engines(wanted)]
        members = self._engines.members() if asking else []
        needed = {_key(member): member for member in members if any(names(wanted, member) for wanted in asking)}
        for key in [key for key in self._sources if key not in needed]:
            del self._sources[key]
            self._tasks.pop(key).cancel()
        for key, member in needed.items():
            if key in self._sources:
                self._sources[key].member = member
            else:
                self._sources[key] = Source(self._engines, self._fan, member)
                self._tasks[key] = asyncio.create_task(self._sources[key].run(), name=f"events of {member.name}")


def names(wanted: Filters, member: Member) -> bool:
    """Pure: whether the client wants that node's events."""
    named = wanted.get(broadcast.NODE_FILTER)
    return not named or member.name in named or member.node_id in named


def of_daemon(action: str, id: str, attributes: dict[str, str]) -> Json:
    """An event of our own, about the stream itself."""
    time_ns = int(access.now().timestamp() * 1e6) * 1000
    actor = {"ID": id, "Attributes": attributes}
    return {"Type": "daemon", "Action": action, "Actor": actor, "scope": "local", "time": time_ns // 10**9, "timeNano": time_ns}


def told_by(member: Member, event: Json) -> Json:
    """Pure."""
    actor = event.get("Actor") or {}
    named = {"node.name": member.name, "node.id": member.node_id, "node.ip": member.addr}
    attributes = {**(actor.get("Attributes") or {}), **{key: value for key, value in named.items() if value}}
    return {**event, "Actor": {**actor, "Attributes": attributes}}


def _told(member: Member, event: Json) -> tuple[bytes, Described]:
    told = told_by(member, event)
    actor = told["Actor"]
    described = Described(
        str(event.get("Type", "")), str(event.get("Action", "")), str(actor.get("ID", "")), str(event.get("scope", "")), actor["Attributes"]
    )
    return codec.encode(told), described


def _key(member: Member) -> str:
    """This node's Engine stays the same whatever the node becomes."""
    return "" if member.local else member.node_id


def _path(*, since: str = "", since_ns: int | None = None, until: str = "") -> str:
    asked = {"since": since if since_ns is None else seconds(since_ns), "until": until}
    return f"/v{API_VERSION}/events?" + urlencode({key: value for key, value in asked.items() if value})


def _time_ns(event: Json) -> int:
    time_ns = event.get("timeNano")
    return time_ns if isinstance(time_ns, int) else 0


def _is_ahead_of(moment: str, date: str) -> bool:
    """date: a header, of whole seconds."""
    try:
        return float(moment) > parsedate_to_datetime(date).timestamp() + 1
    except ValueError:
        return False
