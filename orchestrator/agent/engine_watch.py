"""How changes of containers are noticed: a pidfd for each process, a thread for the Engine's events.

Edge: holds file descriptors and one connection. Source: pidfd_open(2); Docker Engine API 1.41, SystemEvents.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import docker
import docker.errors
import requests

from orchestrator.agent.runtime import RuntimeEvent

log = logging.getLogger(__name__)

_EVENTS = ["create", "start", "die", "destroy", "health_status"]


class Death:
    """Tells within microseconds that a process has ended, long before the Engine does."""

    def __init__(self, pid: int, on_death: Callable[[], None]) -> None:
        self.pid = pid
        self.happened = asyncio.Event()
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.happened.set()
        else:
            self._loop.add_reader(self._fd, self._ended)

    def _ended(self) -> None:
        self.close()
        self.happened.set()
        self._on_death()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class EventStream:
    """A thread that reads the Engine's events, connecting again with back-off, until closed."""

    def __init__(
        self,
        engine_url: str,
        task_of: Callable[[str, Mapping[str, str]], str],
        loop: asyncio.AbstractEventLoop,
        put: Callable[[RuntimeEvent], None],
    ) -> None:
        """task_of: from a container's id and labels, whose it is; "" = nobody's of ours."""
        self._engine_url = engine_url
        self._task_of = task_of
        self._loop = loop
        self._put = put
        self._closed = threading.Event()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._run, name="engine-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._stream is not None:
            with contextlib.suppress(Exception):
                self._stream.close()

    def _run(self) -> None:
        delay_s = 0.1
        while not self._closed.is_set():
            try:
                for event in self._events():
                    delay_s = 0.1
                    self._loop.call_soon_threadsafe(self._put, event)
            except (docker.errors.DockerException, requests.exceptions.RequestException, OSError, ValueError) as error:
                if not self._closed.is_set():
                    log.warning("engine_events lost error=%r retry_s=%.1f", str(error), delay_s)
            except RuntimeError:
                return  # the event loop is closed
            self._closed.wait(delay_s)
            delay_s = min(delay_s * 2, 2.0)

    def _events(self) -> Iterator[RuntimeEvent]:
        # None: events may be days apart. The stubs know only numbers
        client = docker.APIClient(base_url=self._engine_url, version="auto", timeout=None)  # type: ignore[arg-type]
        try:
            # not by label: a container may have joined our networks long after it was made
            self._stream = client.events(decode=True, filters={"type": ["container"], "event": _EVENTS})
            if self._closed.is_set():
                return
            yield RuntimeEvent("", "connected")
            for event in self._stream:
                actor = event["Actor"]
                if task_id := self._task_of(actor["ID"], actor["Attributes"]):
                    yield RuntimeEvent(task_id, event["Action"])
        finally:
            self._stream = None
            client.close()
