"""`docker events`: the events of all Engines (`engine_events`) and of the cluster's objects, as one stream of JSON lines.

Edge: watches the store, streams. Source: Docker Engine API 1.44 /events; moby daemon/events keeps the last 256 for `since`, and so
does this, from the moment that this process has been a manager.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web

from orchestrator.api import access, codec
from orchestrator.api.changes import SwarmEvent, described
from orchestrator.api.engine_events import PastLine, Sources, of_daemon
from orchestrator.api.engine_times import seconds
from orchestrator.api.engines import ENGINES, Replies, engines_of
from orchestrator.api.event_fan import Fan, Listener
from orchestrator.api.event_position import OVERLAP_NS
from orchestrator.api.filters import Filters
from orchestrator.errors import ApiError, Compacted
from orchestrator.store.base import Store

log = logging.getLogger(__name__)

_KEPT = 256
_ROLE_POLL_S = 0.5
_WRITE_BYTES = 64 * 1024
_SECONDS = re.compile(r"[0-9]+(\.[0-9]{1,9})?")


class Journal:
    """The last events of the cluster's objects, told to all who listen."""

    def __init__(self, fan: Fan) -> None:
        self.kept: deque[SwarmEvent] = deque(maxlen=_KEPT)
        self.wake = asyncio.Event()
        self._fan = fan

    def add(self, event: SwarmEvent) -> None:
        self.kept.append(event)
        self._fan.publish(codec.encode(event.shown()), event.passes)

    def interrupted(self, node_id: str) -> None:
        """The stream has a hole here, and says so."""
        told = of_daemon(
            "disconnect", node_id, {"reason": "events of the cluster's objects are lost: they came faster than they were read"}
        )
        self._fan.publish(codec.encode(told), lambda wanted: wanted.exact("type", "daemon"))


JOURNAL: web.AppKey[Journal] = web.AppKey("journal", Journal)


FAN: web.AppKey[Fan] = web.AppKey("event fan", Fan)
SOURCES: web.AppKey[Sources] = web.AppKey("event sources", Sources)


def prepare(app: web.Application) -> None:
    """Once an application; `while_served` does the rest."""
    app[FAN] = Fan()
    app[JOURNAL] = Journal(app[FAN])
    app.cleanup_ctx.append(_while_served)


async def _while_served(app: web.Application) -> AsyncIterator[None]:
    app[SOURCES] = Sources(app[ENGINES], app[FAN])
    keepers = [asyncio.create_task(_keep(app), name="api-journal"), asyncio.create_task(app[SOURCES].run(), name="api-event-sources")]
    yield
    for keeper in keepers:
        keeper.cancel()
    await asyncio.gather(*keepers, return_exceptions=True)


async def _keep(app: web.Application) -> None:
    journal = app[JOURNAL]
    while True:
        journal.wake.clear()
        store = app[access.BACKEND].store
        if store is not None:
            try:
                await _record(journal, store)
            except Compacted:
                log.warning("events lost: the journal fell behind the store")
                journal.interrupted(app[access.BACKEND].node_id)
            except Exception:
                log.exception("events: the journal's watch failed")
        # A store comes and goes with the node's role: through this API, which wakes us, or at the cluster's word.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ROLE_POLL_S):
                await journal.wake.wait()


async def _record(journal: Journal, store: Store) -> None:
    async for _, events in store.watch():
        now = access.now()
        for event in events:
            shown = described(event, now)
            if shown is not None:
                journal.add(shown)


@dataclass(frozen=True, slots=True)
class _Asked:
    wanted: Filters
    since: datetime | None
    until: datetime | None
    # as the Engines read them
    since_text: str
    until_text: str

    @property
    def past(self) -> bool:
        """Whether what was before the request is asked for."""
        return self.since is not None or self.until is not None

    def covers(self, event: SwarmEvent) -> bool:
        within = (self.since is None or self.since <= event.time) and (self.until is None or event.time <= self.until)
        return within and event.passes(self.wanted)


async def stream_events(request: web.Request) -> web.StreamResponse:
    asked = _asked(request)
    sources = request.app[SOURCES]
    answer = web.StreamResponse()
    answer.content_type = "application/json"
    away = [(member, member.away) for member in sources.members(asked.wanted) if member.away]
    Replies([], away).warn(answer, "their events are not shown")
    if asked.until is not None and asked.until <= access.now():
        await answer.prepare(request)
        cluster = _kept(request, asked)
        until = {member.node_id: asked.until_text for member in engines_of(request).members()}
        await _write_past(answer, [*cluster, *await sources.past(asked.wanted, asked.since_text, until)])
    else:
        listener = request.app[FAN].listen(asked.wanted)
        try:
            await _follow(request, answer, asked, listener)
        finally:
            request.app[FAN].leave(listener)
    await answer.write_eof()
    return answer


ROUTES = [web.get("/events", stream_events)]


async def _follow(request: web.Request, answer: web.StreamResponse, asked: _Asked, listener: Listener) -> None:
    """The past, if asked for, and then what comes: nothing missing between the two, nothing twice."""
    sources = request.app[SOURCES]
    # in the same step as `listen`: what is kept now won't come, what comes is not kept
    cluster = _kept(request, asked) if asked.past else []
    await sources.ready(asked.wanted)
    reached = sources.reached(asked.wanted)
    await answer.prepare(request)
    told_already: frozenset[bytes] = frozenset()
    if asked.past:
        engines = await sources.past(asked.wanted, asked.since_text, {node_id: seconds(time_ns) for node_id, time_ns in reached.items()})
        await _write_past(answer, [*cluster, *engines])
        lines = frozenset(told.line for told in engines)
        for line in listener.take():
            if line not in lines:
                await answer.write(line)
        # an event whose time is older than its turn can be in both
        oldest_ns = min(reached.values(), default=0) - OVERLAP_NS
        told_already = frozenset(told.line for told in engines if told.time_ns >= oldest_ns)
    await _write_live(answer, listener, asked.until, told_already)
    if listener.lost:
        reason = f"this client reads slower than the cluster changes: {listener.lost} events are lost to it, and its stream ends"
        await answer.write(codec.encode(of_daemon("disconnect", access.backend_of(request).node_id, {"reason": reason})))


async def _write_past(answer: web.StreamResponse, past: list[PastLine]) -> None:
    for told in sorted(past, key=lambda told: told.time_ns):
        await answer.write(told.line)


async def _write_live(answer: web.StreamResponse, listener: Listener, until: datetime | None, told_already: frozenset[bytes]) -> None:
    """Until `until`, until the client goes, or until it was too slow."""

    async def write_unread() -> None:
        lines = [line for line in listener.take(_WRITE_BYTES) if line not in told_already]
        if lines:
            await answer.write(b"".join(lines))

    loop = asyncio.get_running_loop()
    deadline = None if until is None else loop.time() + (until - access.now()).total_seconds()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            while not listener.lost:
                await listener.grown()
                await write_unread()
    await write_unread()


def _kept(request: web.Request, asked: _Asked) -> list[PastLine]:
    kept = [event for event in request.app[JOURNAL].kept if asked.covers(event)]
    return [PastLine(event.time_ns, codec.encode(event.shown())) for event in kept]


def _asked(request: web.Request) -> _Asked:
    texts = {name: request.query.get(name, "") for name in ("since", "until")}
    since, until = (moment(text) for text in texts.values())
    if since is not None and until is not None and since > until:
        times = (f"`{name}` time ({int(when.timestamp())})" for name, when in (("since", since), ("until", until)))
        raise ApiError(400, " cannot be after ".join(times))
    # Docker ignores what it does not know here
    return _Asked(access.any_filters_of(request), since, until, _text(texts["since"], since), _text(texts["until"], until))


def moment(text: str) -> datetime | None:
    """Unix seconds with or without a fraction (what the CLI sends), or RFC 3339."""
    if not text:
        return None
    if _SECONDS.fullmatch(text):
        return datetime.fromtimestamp(float(text), UTC)
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ApiError(400, f'failed to parse value as time or duration: "{text}"') from None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


def _text(text: str, when: datetime | None) -> str:
    return "" if when is None else text if _SECONDS.fullmatch(text) else seconds(int(when.timestamp() * 1e6) * 1000)
