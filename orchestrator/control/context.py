"""What every control loop is given besides the snapshot: time, ids, and what the agents have acknowledged.

Pure: types only. A control loop is a function `(snapshot, context) -> list[Change]`: it reads no clock, makes no id by itself and
does no I/O, so a new leader that starts from the same snapshot decides the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class NetworkAcks:
    """What the agents have said. `applied(node_id)`: highest revision that node's balancers and DNS are known to show
    (a node with nothing outstanding counts as having the newest); None = not connected. `open(task_id)`: connections still
    open to a draining task, summed over all nodes; None = some node that is in sync has not reported yet. `behind(node_id)`: networks
    on which that node could not do what it acknowledged.
    """

    applied: Callable[[str], int | None] = field(default=lambda node_id: None)
    open: Callable[[str], int | None] = field(default=lambda task_id: None)
    behind: Callable[[str], frozenset[str]] = field(default=lambda node_id: frozenset())


@dataclass(frozen=True, slots=True)
class Context:
    now: datetime
    new_id: Callable[[], str]
    acks: NetworkAcks = NetworkAcks()
    drain_deadline: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Wakeup:
    """A loop's word that it wants to be run again at a time even if nothing changes."""

    at: datetime
