"""How long ago a leader surely still heard this node: what fenced tasks may run on.

Edge: a clock and one small file on tmpfs. CLOCK_BOOTTIME goes on while the machine sleeps and starts anew when it boots, as the file
does; so a fresh process knows what its predecessor knew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec


def boot_time_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Kept(msgspec.Struct):
    heard_s: float
    fenced: set[str]


class Lease:
    """`fenced`: tasks that were stopped because it had run out, until their containers are gone."""

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = boot_time_s) -> None:
        self._path, self._clock = path, clock
        self._heard_s: float | None = None
        self.fenced: frozenset[str] = frozenset()
        if path is not None and path.exists():
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            except msgspec.DecodeError:
                # as if nobody had been heard of: what is fenced stops
                return
            self._heard_s, self.fenced = kept.heard_s, frozenset(kept.fenced)

    def heard(self, ago_s: float) -> None:
        """A leader has proved that it heard this node so long ago."""
        self._heard_s = max(self._clock() - ago_s, self._heard_s if self._heard_s is not None else 0.0)
        self._keep()

    def age_s(self) -> float:
        return float("inf") if self._heard_s is None else self._clock() - self._heard_s

    def fence(self, task_id: str) -> None:
        self.fenced |= {task_id}
        self._keep()

    def forget(self, known: frozenset[str]) -> None:
        """Of the fenced tasks only those of `known` still have a container."""
        if not self.fenced <= known:
            self.fenced &= known
            self._keep()

    def _keep(self) -> None:
        if self._path is None:
            return
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.write_bytes(msgspec.json.encode(_Kept(self._heard_s or 0.0, set(self.fenced))))
        temporary.replace(self._path)
