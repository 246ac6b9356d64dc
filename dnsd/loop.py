"""Sockets that are served before the event loop hears of them.

Edge. asyncio takes several microseconds to get from a readable socket to a callback: as long as answering a query. A Poller calls
at once; `new_event_loop` makes a loop that waits by means of one, in the loop's own thread, so that nothing needs a lock. In any
other loop (a library's user has his own) a Poller is one file descriptor among others, and works all the same.
Source: epoll(7): an epoll descriptor is readable when one of its own is ready, and so can be watched by another.
"""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Callable, Coroutine, Generator
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

_T = TypeVar("_T")

# How long askers may be kept waiting by work that can be interrupted.
_SLICE_S = 0.001

# Reads and answers. True: the event loop has something to do now (a task was created).
Serve = Callable[[], bool]


class Poller:
    """Calls what is registered for a descriptor whenever that can be read. `close` closes no other descriptor than its own."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._serve: dict[int, Serve] = {}
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close

    def add(self, fd: int, serve: Serve) -> None:
        self._serve[fd] = serve
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Before the descriptor is closed."""
        del self._serve[fd]
        self._epoll.unregister(fd)

    def poll(self, timeout_s: float | None = 0) -> bool:
        """Serves what can be read, waiting for it if it must. True: the loop has something to do, or nothing came in time."""
        events = self._epoll.poll(timeout_s)
        due = not events
        for fd, _ in events:
            serve = self._serve.get(fd)
            # One that was served just now may have closed this one.
            if serve is not None and serve():
                due = True
        return due


_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, Poller] = WeakKeyDictionary()


def poller_of(loop: asyncio.AbstractEventLoop) -> Poller:
    """The loop's own Poller, or one that is watched by it from now on."""
    poller = _pollers.get(loop)
    if poller is None:
        poller = _pollers[loop] = Poller()
        loop.add_reader(poller.fileno(), poller.poll)
    return poller


class _ServingSelector(selectors.EpollSelector):
    """Serves the Poller's descriptors while asyncio waits for its own; these are one descriptor among the Poller's."""

    def __init__(self) -> None:
        super().__init__()
        self.poller = Poller()
        self.poller.add(self.fileno(), lambda: True)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        until = None if timeout is None else monotonic() + timeout
        while not self.poller.poll(timeout):
            if until is not None:
                timeout = until - monotonic()
                if timeout <= 0:
                    break
        return super().select(0)

    def close(self) -> None:
        self.poller.close()
        super().close()


class Pace:
    """For long work in the event loop: `rest` wherever it may be interrupted, and sockets are served once in a millisecond."""

    def __init__(self) -> None:
        self._until = monotonic() + _SLICE_S

    async def rest(self) -> None:
        if monotonic() > self._until:
            await asyncio.sleep(0)
            self._until = monotonic() + _SLICE_S

    async def run(self, steps: Generator[None, None, _T]) -> _T:
        """What the generator returns."""
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: _T = end.value
                return result
            await self.rest()


def new_event_loop() -> asyncio.AbstractEventLoop:
    selector = _ServingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    _pollers[loop] = selector.poller
    return loop


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """As asyncio.run, in such a loop."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
