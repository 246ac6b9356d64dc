"""What is worked out from a snapshot and then kept, brought up from one snapshot to the next by their differences.

Pure: a function of the snapshot. What was built from nothing and what has followed a thousand changes are equal, so it is a cache that a
new leader does without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from orchestrator.model import Kind
from orchestrator.store.snapshot import Snapshot, differences

# beyond it building anew is cheaper than following
_MAX_DIFFERENCES = 50_000


class Following(Protocol):
    def follow(self, snapshot: Snapshot) -> None:
        """Show `snapshot` from now on."""
        ...


T = TypeVar("T", bound=Following)


class Resident(Generic[T]):
    """build: makes one that shows a snapshot."""

    def __init__(self, build: Callable[[Snapshot], T]) -> None:
        self._build = build
        self._kept: T | None = None

    def showing(self, snapshot: Snapshot) -> T:
        """The one of the last call, brought up to the snapshot. Valid until the next call."""
        if self._kept is None:
            self._kept = self._build(snapshot)
        else:
            try:
                self._kept.follow(snapshot)
            except BaseException:
                # it shows neither the one nor the other
                self._kept = None
                raise
        return self._kept

    def forget(self) -> None:
        """As in a process that has just started."""
        self._kept = None


def to_follow(shown: Snapshot, snapshot: Snapshot) -> set[tuple[Kind, str]] | None:
    """The objects in which they may differ; None: not known, or so many that building anew is cheaper."""
    changed = differences(shown, snapshot)
    return None if changed is None or len(changed) > _MAX_DIFFERENCES else changed
