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
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import msgspec
from aiohttp import web

from orchestrator.api import access, codec, filters
from orchestrator.api.changes import SwarmEvent, described
from orchestrator.api.engine_events import engine_lines
from orchestrator.errors import ApiError, Compacted
from orchestrator.store.base import Store

log = logging.getLogger(__name__)

_KEPT = 256
# A client that reads slower than the cluster changes loses its stream at this many lines, instead of holding the daemon's memory.
_BACKLOG = 4096
_ROLE_POLL_S = 0.5
_TOO_SLOW = b""
_PAST_S = 5.0


class Journal:
    """The last events, and those who listen."""

    def __init__(self) -> None:
        self.kept: deque[SwarmEvent] = deque(maxlen=_KEPT)
        self._listeners: set[asyncio.Queue[SwarmEvent | None]] = set()
        self.wake = asyncio.Event()

    def add(self, event: SwarmEvent) -> None:
        self.kept.append(event)
        for queue in list(self._listeners):
            if queue.qsize() >= _BACKLOG:
                queue.put_nowait(None)
                self._listeners.discard(queue)
            else:
                queue.put_nowait(event)

    @contextlib.contextmanager
    def listening(self) -> Iterator[asyncio.Queue[SwarmEvent | None]]:
        """None in the queue: the listener is too slow and gets nothing more."""
        queue: asyncio.Queue[SwarmEvent | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)


JOURNAL: web.AppKey[Journal] = web.AppKey("journal", Journal)


async def keep_journal(app: web.Application) -> AsyncIterator[None]:
    """As long as the application runs."""
    keeper = asyncio.create_task(_keep(app), name="api-journal")
    yield
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)


async def _keep(app: web.Application) -> None:
    journal = app[JOURNAL]
    while True:
        journal.wake.clear()
        store = app[access.BACKEND].store
        if store is not None:
            try:
                await _follow(journal, store)
            except Compacted:
                log.warning("events lost: the journal fell behind the store")
            except Exception:
                log.exception("events: the journal's watch failed")
        # A store comes and goes with the node's role: through this API, which wakes us, or at the cluster's word.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ROLE_POLL_S):
                await journal.wake.wait()


async def _follow(journal: Journal, store: Store) -> None:
    async for _, events in store.watch():
        now = access.now()
        for event in events:
            shown = described(event, now)
            if shown is not None:
                journal.add(shown)


async def stream_events(request: web.Request) -> web.StreamResponse:
    since = moment(request.query.get("since", ""))
    until = moment(request.query.get("until", ""))
    if since is not None and until is not None and since > until:
        times = (f"`{name}` time ({int(when.timestamp())})" for name, when in (("since", since), ("until", until)))
        raise ApiError(400, " cannot be after ".join(times))
    # Docker ignores what it does not know here, and so does the Engine, which is asked the same
    wanted = access.any_filters_of(request)
    answer = web.StreamResponse()
    answer.content_type = "application/json"
    lines: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=_BACKLOG)
    journal = request.app[JOURNAL]
    with journal.listening() as queue:
        past = [event for event in journal.kept if since is not None and since <= event.time and (until is None or event.time <= until)]
        await answer.prepare(request)
        engine = asyncio.create_task(engine_lines(request, lines, wanted, until))
        cluster = asyncio.create_task(_cluster_lines(queue, lines, wanted))
        try:
            told = [codec.encode(event.shown()) for event in past if event.passes(wanted)]
            if until is not None and until <= access.now():
                for line in sorted([*told, *await _all_of(lines)], key=_time_ns):
                    await answer.write(line)
            else:
                for line in told:
                    await answer.write(line)
                await _write_lines(answer, lines, until)
        finally:
            engine.cancel()
            cluster.cancel()
            await asyncio.gather(engine, cluster, return_exceptions=True)
    await answer.write_eof()
    return answer


ROUTES = [web.get("/events", stream_events)]


def moment(text: str) -> datetime | None:
    """Unix seconds with or without a fraction (what the CLI sends), or RFC 3339."""
    if not text:
        return None
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return datetime.fromtimestamp(float(text), UTC)
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ApiError(400, f'failed to parse value as time or duration: "{text}"') from None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


class _Moment(msgspec.Struct):
    time_ns: int = msgspec.field(default=0, name="timeNano")


def _time_ns(line: bytes) -> int:
    return msgspec.json.decode(line, type=_Moment).time_ns


async def _all_of(lines: asyncio.Queue[bytes | None]) -> list[bytes]:
    """What the Engines have to say about the past: each keeps 256 events. One that doesn't answer is not waited for."""
    found = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PAST_S):
            while line := await lines.get():
                found.append(line)
    return found


async def _write_lines(answer: web.StreamResponse, lines: asyncio.Queue[bytes | None], until: datetime | None) -> None:
    loop = asyncio.get_running_loop()
    # The Engine's past arrives within moments; what it has to say about the past is waited for before the stream ends.
    deadline = None if until is None else loop.time() + max((until - access.now()).total_seconds(), 0.0)
    engine_done = False
    while deadline is None or loop.time() < deadline or not engine_done:
        try:
            async with asyncio.timeout_at(None if deadline is None else max(deadline, loop.time() + (0 if engine_done else 1))):
                line = await lines.get()
        except TimeoutError:
            return
        if line == _TOO_SLOW:
            return
        if line is None:
            engine_done = True
        else:
            await answer.write(line)


async def _cluster_lines(queue: asyncio.Queue[SwarmEvent | None], lines: asyncio.Queue[bytes | None], wanted: filters.Filters) -> None:
    while (event := await queue.get()) is not None:
        if event.passes(wanted):
            await lines.put(codec.encode(event.shown()))
    await lines.put(_TOO_SLOW)
