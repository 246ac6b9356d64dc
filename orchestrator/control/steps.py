"""What a control loop decides: steps, each of which must be committed as a whole, and when it wants to look again.

Pure: types only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from orchestrator.control.context import Context
from orchestrator.store.base import Change, Delete, Put
from orchestrator.store.snapshot import Snapshot

Step: TypeAlias = tuple[Change, ...]
"""Changes that are right only together: one transaction holds all of them. Between two steps a leader may die."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`wakeup`: run the loop again at that time even if nothing changes before."""

    steps: list[Step] = field(default_factory=list)
    wakeup: datetime | None = None


Loop: TypeAlias = Callable[[Snapshot, Context], Decision]


def earliest(*times: datetime | None) -> datetime | None:
    """The first of the given times; None where none is given."""
    return min((time for time in times if time is not None), default=None)


def applied(snapshot: Snapshot, steps: Iterable[Step]) -> Snapshot:
    """The picture as it will be once the steps are committed. Versions and the revision stay: only the store gives those."""
    for step in steps:
        for change in step:
            match change:
                case Put(obj):
                    snapshot = snapshot.with_object(obj)
                case Delete(kind, id):
                    snapshot = snapshot.without_object(kind, id)
    return snapshot
