"""Every event once, to all who listen: what each listener has not read yet, in bounded memory.

Pure: no I/O; `Listener.grown` alone waits. Listeners that want the same are asked once whether an event passes, and lines are shared, so
a thousand of them cost an event a thousand references. One that reads slower than the cluster changes loses what waits for it and is told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from orchestrator.api.filters import Filters

_Key = frozenset[tuple[str, frozenset[str]]]

# what waits for one listener, in bytes: some 2,000 events
UNREAD_BYTES = 1 << 20
# of a line besides its text: its object and the reference to it
_LINE_BYTES = 64


class Listener:
    """One client's unread lines. `lost`: how many it was too slow for; once there are any, nothing more comes."""

    def __init__(self, wanted: Filters) -> None:
        self.wanted = wanted
        self.lost = 0
        self._lines: deque[bytes] = deque()
        self._size_bytes = 0
        self._growth = asyncio.Event()

    def add(self, line: bytes, limit_bytes: int) -> None:
        if not self.lost and self._size_bytes + len(line) + _LINE_BYTES <= limit_bytes:
            self._lines.append(line)
            self._size_bytes += len(line) + _LINE_BYTES
        else:
            # The rest would be no stream any more: it has a hole. Nothing is held for one that may never read again.
            self.lost += len(self._lines) + 1
            self._lines.clear()
            self._size_bytes = 0
        self._growth.set()

    def take(self, most_bytes: int = UNREAD_BYTES) -> list[bytes]:
        """The oldest unread lines; one at least, if there is any."""
        taken: list[bytes] = []
        size_bytes = 0
        while self._lines and (not taken or size_bytes + len(self._lines[0]) <= most_bytes):
            line = self._lines.popleft()
            self._size_bytes -= len(line) + _LINE_BYTES
            size_bytes += len(line)
            taken.append(line)
        return taken

    async def grown(self) -> None:
        """Returns when there is something to take, or something was lost."""
        while not (self._lines or self.lost):
            self._growth.clear()
            await self._growth.wait()


class Fan:
    """changed: called when a listener came or went."""

    def __init__(self, limit_bytes: int = UNREAD_BYTES) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._limit_bytes = limit_bytes
        self._alike: dict[_Key, set[Listener]] = {}

    def listen(self, wanted: Filters) -> Listener:
        """From now on; `leave` ends it."""
        listener = Listener(wanted)
        self._alike.setdefault(_key(wanted), set()).add(listener)
        self.changed()
        return listener

    def leave(self, listener: Listener) -> None:
        key = _key(listener.wanted)
        listeners = self._alike.get(key, set())
        listeners.discard(listener)
        if not listeners:
            self._alike.pop(key, None)
        self.changed()

    def publish(self, line: bytes, passes: Callable[[Filters], bool]) -> None:
        for listeners in self._alike.values():
            if passes(next(iter(listeners)).wanted):
                for listener in listeners:
                    listener.add(line, self._limit_bytes)

    def wanted(self) -> list[Filters]:
        """What anybody wants; what several want, once."""
        return [next(iter(listeners)).wanted for listeners in self._alike.values()]


def _key(wanted: Filters) -> _Key:
    return frozenset((key, frozenset(values)) for key, values in wanted.values.items() if values)
