"""Logs of a service or a task: every container's log from its node's Engine, as one stream.

Edge: HTTP to the Engines of all nodes. Source: Docker Engine API 1.44 /services/{id}/logs, /tasks/{id}/logs; moby
daemon/cluster/services.go. Without `follow` the logs are merged by time; with it lines come as they are written, and tasks that start
later are followed too. Nothing is held but one chunk a container: a slow reader slows the Engines down.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from orchestrator.api import access, references
from orchestrator.api.backend import Backend
from orchestrator.api.frames import SYSTEM_ERROR, FrameReader, Line, RawReader, frame, shown
from orchestrator.errors import ApiError, Compacted, RemoteProtocolError
from orchestrator.model import Service, Task
from orchestrator.store.base import Store
from orchestrator.store.snapshot import Snapshot

log = logging.getLogger(__name__)

# an Engine's lines have at most 16 KiB: 2 MiB for a client that doesn't read
_QUEUED_LINES = 128
_CHUNK_BYTES = 64 * 1024
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

    def query(self, tail: str) -> dict[str, str]:
        """Timestamps always: the merge goes by them."""
        asked = {"stdout": str(int(self.stdout)), "stderr": str(int(self.stderr)), "timestamps": "1", "tail": tail or "all"}
        if self.follow:
            asked["follow"] = "1"
        if self.since:
            asked["since"] = self.since
        return asked

    def bytes_of(self, task: Task, line: Line) -> bytes:
        details = (
            f"com.docker.swarm.node.id={task.node_id},com.docker.swarm.service.id={task.service_id},com.docker.swarm.task.id={task.id}"
            if self.details
            else ""
        )
        payload = shown(line, timestamps=self.timestamps, details=details)
        return payload if self.tty else frame(line.stream, payload)


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
        await _follow(answer, backend, store, asked, tasks_of, failures)
    else:
        await _merge(answer, backend, tasks_of(store.snapshot()), asked, failures)
    if failures and not asked.tty:
        # The frame type that the CLI reports as an error of the daemon, after all that could be shown.
        text = "warning: incomplete log stream. some logs could not be retrieved for the following reasons: " + ", ".join(failures)
        await answer.write(frame(SYSTEM_ERROR, text.encode()))
    await answer.write_eof()
    return answer


async def _merge(answer: web.StreamResponse, backend: Backend, tasks: list[Task], asked: _Asked, failures: list[str]) -> None:
    """k-way by timestamp; each Engine's log is in order itself."""
    sources = [(task, _lines(backend, task, asked, asked.tail, failures)) for task in sorted(tasks, key=_order) if _has_log(task)]
    try:
        heads = await asyncio.gather(*(anext(source, None) for _, source in sources))
        heap = [(line.timestamp, index, line) for index, line in enumerate(heads) if line is not None]
        heapq.heapify(heap)
        while heap:
            _, index, line = heapq.heappop(heap)
            task, source = sources[index]
            await answer.write(asked.bytes_of(task, line))
            following = await anext(source, None)
            if following is not None:
                heapq.heappush(heap, (following.timestamp, index, following))
    finally:
        for _, source in sources:
            await source.aclose()


async def _follow(
    answer: web.StreamResponse, backend: Backend, store: Store, asked: _Asked, tasks_of: TasksOf, failures: list[str]
) -> None:
    """Until the client goes away, or, when only finished tasks can be followed, never before: a service may always get new ones."""
    queue: asyncio.Queue[bytes] = asyncio.Queue(_QUEUED_LINES)
    readers: dict[str, asyncio.Task[None]] = {}

    def attach(snapshot: Snapshot, tail: str) -> None:
        for task in sorted(tasks_of(snapshot), key=_order):
            if _has_log(task) and task.id not in readers:
                readers[task.id] = asyncio.create_task(_read_into(queue, backend, task, asked, tail, failures))

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


async def _read_into(queue: asyncio.Queue[bytes], backend: Backend, task: Task, asked: _Asked, tail: str, failures: list[str]) -> None:
    async with aclosing(_lines(backend, task, asked, tail, failures)) as lines:
        async for line in lines:
            await queue.put(asked.bytes_of(task, line))


async def _lines(backend: Backend, task: Task, asked: _Asked, tail: str, failures: list[str]) -> AsyncGenerator[Line, None]:
    """One container's log. A container that is gone has none; an Engine that can't be asked is named in `failures`."""
    container = task.status.container_status
    assert container is not None, "only tasks with a container are asked"
    reader = RawReader() if asked.tty else FrameReader()
    try:
        session, base = await backend.engine_session(task.node_id)
        async with session.get(
            f"{base}/containers/{container.container_id}/logs",
            params=asked.query(tail),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        ) as response:
            if response.status == 404:
                return
            if response.status != 200:
                failures.append(f"node {task.node_id}: {(await response.text()).strip()}")
                return
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                for line in reader.feed(chunk):
                    yield line
            for line in reader.end():
                yield line
    except (aiohttp.ClientError, OSError, ApiError, RemoteProtocolError) as error:
        log.info("task log unavailable task=%s node=%s error=%s", task.id, task.node_id, error)
        failures.append(f"node {task.node_id} is not available")


def _has_log(task: Task) -> bool:
    return bool(task.node_id and task.status.container_status is not None and task.status.container_status.container_id)


def _order(task: Task) -> tuple[int, str, str]:
    return task.slot, task.node_id, task.id
