"""How much of a container's log has been shown, when its stream breaks and is asked for again: each line once, none left out.

Pure: no I/O. Source: moby daemon/logger: `since` includes its moment; the parts of a long line have one time, and may be alike; lines of
stdout and stderr that are written at once may be swapped.
"""

from __future__ import annotations

from collections import Counter, deque

from orchestrator.api.engine_times import nanoseconds, seconds
from orchestrator.api.frames import Line

# swapped lines are nearer to each other than that
_OVERLAP_NS = 1_000_000_000
_RECENT = 256


class LogPosition:
    def __init__(self) -> None:
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT)
        self._again: Counter[tuple[int, int]] = Counter()

    def resume(self) -> str:
        """`since` of the next stream, "" when nothing has been shown yet. What it repeats is not admitted."""
        if not self._recent:
            return ""
        times = [time_ns for time_ns, _ in self._recent]
        # of lines at the oldest one's moment some may be forgotten
        complete_ns = min(times) + 1 if len(times) == _RECENT else 0
        since_ns = max(complete_ns, max(times) - _OVERLAP_NS)
        self._again = Counter(entry for entry in self._recent if entry[0] >= since_ns)
        return seconds(since_ns)

    def admits(self, line: Line) -> bool:
        entry = (nanoseconds(line.timestamp) or 0, hash((line.stream, line.message)))
        if self._again[entry] > 0:
            self._again[entry] -= 1
            return False
        self._recent.append(entry)
        return True
