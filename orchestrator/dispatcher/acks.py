"""What one agent is known to show: revisions sent to it against revisions it has acknowledged, and its counts of open connections.

Pure: no I/O. An agent is sent only what concerns it, so silence is knowledge too: with nothing outstanding it shows every revision
its rows were compared with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice

# Open counts of one agent; far more than tasks ever drain at once on the networks of one node.
MAX_OPEN_COUNTS = 20_000
MAX_BEHIND = 20_000


class AgentAcks:
    """Revisions only grow. Nothing counts before the first complete assignment has been acknowledged."""

    __slots__ = ("_acked", "_open", "_outstanding", "_processed", "_synced", "behind")

    def __init__(self) -> None:
        self._processed = 0
        self._acked = 0
        # (what was processed before it was sent, its revision): a delta may hold the changes of many revisions.
        self._outstanding: deque[tuple[int, int]] = deque()
        self._open: dict[str, int] = {}
        self._synced = False
        # networks on which it shows less than what it acknowledged
        self.behind: frozenset[str] = frozenset()

    def processed(self, revision: int) -> None:
        """The agent's rows were compared with `revision`; what differs has been passed to `sent` before."""
        self._processed = max(self._processed, revision)

    def sent(self, revision: int) -> None:
        self._outstanding.append((self._processed, revision))
        self.processed(revision)

    def acknowledge(self, revision: int, open_connections: Mapping[str, int], behind: Iterable[str] = ()) -> bool:
        """The agent's word. True: what is known of it has changed. An agent can't acknowledge what it was never sent."""
        before = (self.applied, self._open, self.behind)
        self.behind = frozenset(islice(behind, MAX_BEHIND))
        last = None
        while self._outstanding and self._outstanding[0][1] <= revision:
            last = self._outstanding.popleft()[1]
        if last is not None:
            self._acked, self._synced = last, True
        if self._synced and revision >= self._acked and len(open_connections) <= MAX_OPEN_COUNTS:
            # A report made before the newest acknowledgement would show connections of an older picture.
            self._open = {task_id: count for task_id, count in open_connections.items() if count > 0}
        return before != (self.applied, self._open, self.behind)

    @property
    def applied(self) -> int:
        """The highest revision it is known to show; 0 = none yet."""
        if not self._synced:
            return 0
        return max(self._acked, self._outstanding[0][0]) if self._outstanding else max(self._acked, self._processed)

    def open(self, task_id: str) -> int:
        return self._open.get(task_id, 0)
