"""Logs of a service or a task: every container's log from its node's Engine, as one stream.

Edge: HTTP to the Engines of all nodes. Source: Docker Engine API 1.44 /services/{id}/logs, /tasks/{id}/logs; moby
daemon/cluster/services.go. What has been written is merged by time; with `follow` lines then come as they are written, and tasks that start
later are followed too. A stream that breaks is taken up again where it broke (`log_position`), and the log says so in between. Nothing is
held but one chunk a container: a slow reader slows the Engines down.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

import aiohttp
from aiohttp import web

from orchestrator.api import access, references
from orchestrator.api.backend import Backend
from orchestrator.api.frames import STDERR, SYSTEM_ERROR, FrameReader, Line, RawReader, frame, shown
from orchestrator.api.log_position import LogPosition
from orchestrator.errors import ApiError, Compacted, RemoteProtocolError
from orchestrator.model import Service, Task, terminal
from orchestrator.store.base import Store
from orchestrator.store.snapshot import Snapshot

log = logging.getLogger(__name__)

# an Engine's lines have at most 16 KiB: 2 MiB for a client that doesn't read
_QUEUED_LINES = 128
_CHUNK_BYTES = 64 * 1024
# an Engine that was asked for what is there, and says nothing for so long, is left out
_SILENT_S = 30.0
_RETRY_S = 1.0
TasksOf = Callable[[Snapshot], list[Task]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the client wants to see, and how."""

    stdout: bool
    stderr: bool
    follow: bool
    since: str
    tail: str
    timestamps: bool
    details: bool
    tty: bool

    def query(self, tail: str, since: str, *, follow: bool) -> dict[str, str]:
        """Timestamps always: the merge goes by them."""
        asked = {"stdout": str(int(self.stdout)), "stderr": str(int(self.stderr)), "timestamps": "1", "tail": tail or "all"}
        if follow:
            asked["follow"] = "1"
        if self.details:
            asked["details"] = "1"
        if since := since or self.since:
            asked["since"] = since
        return asked

    def own_line(self, text: str) -> Line:
        """Ours, as an Engine would send it: with details of its log driver first, which are none."""
        return Line(_rfc3339(access.now()), STDERR, f"{' ' if self.details else ''}{text}\n".encode())

    def bytes_of(self, task: Task, line: Line) -> bytes:
        payload = shown(line, timestamps=self.timestamps, details=_labels(task) if self.details else ())
        return payload if self.tty else frame(line.stream, payload)


def _labels(task: Task) -> tuple[str, ...]:
    """Three, without which the CLI can't tell whose line it is."""
    ids = (("node", task.node_id), ("service", task.service_id), ("task", task.id))
    return tuple(f"com.docker.swarm.{kind}.id={id}" for kind, id in ids)


async def service_logs(request: web.Request) -> web.StreamResponse:
    store = access.store_of(request)
    service = references.find(store.snapshot(), Service, request.match_info["id"])
    container = service.spec.task_template.container_spec
    asked = _asked(request, tty=container is not None and container.tty)
    return await _answer(request, store, asked, lambda snapshot: snapshot.tasks_of_service(service.id))


async def task_logs(request: web.Request) -> web.StreamResponse:
    store = access.store_of(request)
    task = references.find(store.snapshot(), Task, request.match_info["id"])
    container = task.spec.container_spec
    asked = _asked(request, tty=container is not None and container.tty)
    return await _answer(request, store, asked, lambda snapshot: [found] if (found := snapshot.task(task.id)) else [])


ROUTES = [
    web.get("/services/{id}/logs", service_logs),
    web.get("/tasks/{id}/logs", task_logs),
]


def _asked(request: web.Request, *, tty: bool) -> _Asked:
    asked = _Asked(
        stdout=access.flag(request, "stdout"),
        stderr=access.flag(request, "stderr"),
        follow=access.flag(request, "follow"),
        since=request.query.get("since", ""),
        tail=request.query.get("tail", ""),
        timestamps=access.flag(request, "timestamps"),
        details=access.flag(request, "details"),
        tty=tty,
    )
    if asked.tail not in ("", "all") and not re.fullmatch(r"\+?[0-9]+", asked.tail):
        raise ApiError(400, 'tail value must be a positive integer or "all"')
    if not (asked.stdout or asked.stderr):
        raise ApiError(400, "Bad parameters: you must choose at least one stream")
    return asked


async def _answer(request: web.Request, store: Store, asked: _Asked, tasks_of: TasksOf) -> web.StreamResponse:
    answer = web.StreamResponse()
    answer.content_type = "application/vnd.docker.raw-stream" if asked.tty else "application/vnd.docker.multiplexed-stream"
    await answer.prepare(request)
    backend = access.backend_of(request)
    failures: list[str] = []
    if asked.follow:
        await _follow(answer, backend, store, asked, tasks_of)
    else:
        await _merge(answer, backend, tasks_of(store.snapshot()), asked, failures)
    if failures and not asked.tty:
        # The frame type that the CLI reports as an error of the daemon, after all that could be shown.
        text = "warning: incomplete log stream. some logs could not be retrieved for the following reasons: " + ", ".join(failures)
        await answer.write(frame(SYSTEM_ERROR, text.encode()))
    await answer.write_eof()
    return answer


async def _merge(
    answer: web.StreamResponse, backend: Backend, tasks: list[Task], asked: _Asked, failures: list[str]
) -> dict[str, LogPosition]:
    """k-way by timestamp; each Engine's log is in order itself. Returns how much of each task's log was shown."""
    tasks = [task for task in sorted(tasks, key=_order) if _has_log(task)]
    positions = {task.id: LogPosition() for task in tasks}
    sources = [(task, _Log(backend, task, asked).until_now(failures)) for task in tasks]
    try:
        heads = await asyncio.gather(*(anext(source, None) for _, source in sources))
        heap = [(line.timestamp, index, line) for index, line in enumerate(heads) if line is not None]
        heapq.heapify(heap)
        while heap:
            _, index, line = heapq.heappop(heap)
            task, source = sources[index]
            positions[task.id].admits(line)
            await answer.write(asked.bytes_of(task, line))
            following = await anext(source, None)
            if following is not None:
                heapq.heappush(heap, (following.timestamp, index, following))
    finally:
        for _, source in sources:
            await source.aclose()
    return positions


async def _follow(answer: web.StreamResponse, backend: Backend, store: Store, asked: _Asked, tasks_of: TasksOf) -> None:
    """Until the client goes away, or, when only finished tasks can be followed, never before: a service may always get new ones."""
    queue: asyncio.Queue[bytes] = asyncio.Queue(_QUEUED_LINES)
    readers: dict[str, asyncio.Task[None]] = {}
    # who can't be asked is told of by its reader, which goes on trying
    positions: dict[str, LogPosition] = {}
    if asked.tail != "0":
        positions = await _merge(answer, backend, tasks_of(store.snapshot()), asked, [])

    def attach(snapshot: Snapshot, tail: str) -> None:
        for task in sorted(tasks_of(snapshot), key=_order):
            if _has_log(task) and task.id not in readers:
                log_of = _Log(backend, task, asked)
                reading = _read_into(queue, store, log_of, positions.pop(task.id, LogPosition()), tail)
                readers[task.id] = asyncio.create_task(reading)

    async def attach_new() -> None:
        while True:
            watch = store.watch()
            attach(store.snapshot(), "all")
            try:
                async for snapshot, events in watch:
                    if any(event.kind == "task" for event in events):
                        attach(snapshot, "all")
                return
            except Compacted:
                continue

    attach(store.snapshot(), asked.tail)
    watcher = asyncio.create_task(attach_new())
    try:
        while True:
            await answer.write(await queue.get())
    finally:
        for reader in (watcher, *readers.values()):
            reader.cancel()
        await asyncio.gather(watcher, *readers.values(), return_exceptions=True)


async def _read_into(queue: asyncio.Queue[bytes], store: Store, log_of: _Log, position: LogPosition, tail: str) -> None:
    """Until the container has ended, or its task is no more. A node that can't be asked is said once, as a line of its task's stderr: the
    CLI takes a frame of type 3 as the end of all."""
    said = ""
    while True:
        since = position.resume()
        failure: _Unavailable | None = None
        try:
            async with aclosing(log_of.lines("all" if since else tail, since, follow=True)) as lines:
                async for line in lines:
                    said = ""
                    if position.admits(line):
                        await queue.put(log_of.asked.bytes_of(log_of.task, line))
        except _Unavailable as error:
            failure = error
        # what broke is tried again before it is worth a word
        if failure is not None and not failure.broke:
            text = f"meshd: {failure}" + ("" if failure.final else ": its lines are shown once it is back")
            if text != said:
                await queue.put(log_of.asked.bytes_of(log_of.task, log_of.asked.own_line(text)))
            if failure.final:
                return
            said = text
        task = store.snapshot().task(log_of.task.id)
        # an Engine that is restarted ends its streams as if the containers had ended
        if task is None or (failure is None and terminal(task.status.state)):
            return
        await asyncio.sleep(_RETRY_S)


class _Unavailable(Exception):
    """The sentence of why a log can't be read. broke: it has been, until now; final: it won't be better later."""

    def __init__(self, reason: str, *, broke: bool = False, final: bool = False) -> None:
        super().__init__(reason)
        self.broke = broke
        self.final = final


@dataclass(frozen=True, slots=True)
class _Log:
    """One container's."""

    backend: Backend
    task: Task
    asked: _Asked

    async def until_now(self, failures: list[str]) -> AsyncGenerator[Line, None]:
        """What has been written; who can't be asked is named in `failures`."""
        try:
            async with aclosing(self.lines(self.asked.tail, "", follow=False)) as lines:
                async for line in lines:
                    yield line
        except _Unavailable as failure:
            failures.append(str(failure))

    async def lines(self, tail: str, since: str, *, follow: bool) -> AsyncGenerator[Line, None]:
        """A container that is gone has none. _Unavailable."""
        container, node_id = self.task.status.container_status, self.task.node_id
        assert container is not None, "only tasks with a container are asked"
        reader = RawReader() if self.asked.tty else FrameReader()
        begun = False
        try:
            session, base = await self.backend.engine_session(node_id)
            async with session.get(
                f"{base}/containers/{container.container_id}/logs",
                params=self.asked.query(tail, since, follow=follow),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=None if follow else _SILENT_S),
            ) as response:
                if response.status == 404:
                    return
                if response.status != 200:
                    for_good = response.status < 500 or response.status == 501
                    raise _Unavailable(f"node {node_id}: {(await response.text()).strip()}", final=for_good)
                begun = True
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    for line in reader.feed(chunk):
                        yield line
                for line in reader.end():
                    yield line
        except RemoteProtocolError as error:
            raise _Unavailable(f"node {node_id}: {error}", final=True) from None
        except (aiohttp.ClientError, OSError, ApiError) as error:
            log.info("task log unavailable task=%s node=%s error=%s", self.task.id, node_id, error)
            raise _Unavailable(f"node {node_id} is not available", broke=begun) from None


def _rfc3339(moment: datetime) -> str:
    """As the Engines write times into logs."""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond * 1000:09d}Z"


def _has_log(task: Task) -> bool:
    return bool(task.node_id and task.status.container_status is not None and task.status.container_status.container_id)


def _order(task: Task) -> tuple[int, str, str]:
    return task.slot, task.node_id, task.id
