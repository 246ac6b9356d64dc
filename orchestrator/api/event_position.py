"""How far an Engine's events have been told, over connections that break and are made again: each once, whatever the Engine says twice.

Pure: no I/O. Times are the Engine's own, in nanoseconds; none is compared with this machine's. Source: moby daemon/events/events.go: an
Engine keeps its last 256 events; those since a time, and what follows them, come as one piece on one connection, though an event that
happens at that moment can come as both; an event's time is taken before it is its turn, so neighbours may be swapped.
"""

from __future__ import annotations

# further than that no event comes behind a younger one
OVERLAP_NS = 1_000_000_000
# what an Engine says again is among the last that it has said
_KEPT = 256


class Position:
    """begun_ns: everything younger is told."""

    def __init__(self, begun_ns: int) -> None:
        self.newest_ns = begun_ns
        # `since` of the next connection
        self.resume_ns = begun_ns
        self._recent: dict[bytes, int] = {}

    def admits(self, line: bytes, time_ns: int) -> bool:
        """Whether the line is new. Each line of a connection, in their order."""
        if line in self._recent:
            return False
        self._recent[line] = time_ns
        if time_ns > self.newest_ns:
            self.newest_ns = time_ns
            self.resume_ns = max(self.resume_ns, time_ns - OVERLAP_NS)
        # oldest first but for neighbours: one that stays a while too long does no harm
        while self._recent and (len(self._recent) > _KEPT or next(iter(self._recent.values())) < self.resume_ns):
            del self._recent[next(iter(self._recent))]
        return True
