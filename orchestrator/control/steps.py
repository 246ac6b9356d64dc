"""What a control loop decides: steps, each of which must be committed as a whole, and when it wants to look again.

Pure: types only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from orchestrator.control.context import Context
from orchestrator.model import KIND_OF
from orchestrator.store.base import Change, Guard, Put
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
    return snapshot.with_changes(
        (KIND_OF[type(change.obj)], change.obj.id, change.obj) if isinstance(change, Put) else (change.kind, change.id, None)
        for step in steps
        for change in step
        if not isinstance(change, Guard)
    )
