"""A store in memory: for tests, simulation and use as a library.

Pure: no I/O, no clock. The same promises as `etcd` under the same contract suite; gone with the process. Any number of callers of one
event loop may share one MemoryStore, as managers share etcd.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from orchestrator.errors import StoreUnavailable
from orchestrator.store.base import Change, Event
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.subscription import MAX_BACKLOG, Subscribers, Subscription
from orchestrator.store.transaction import MAX_CHANGES, apply, check_conflicts, check_shape


class MemoryStore:
    """Revisions start at 1, as etcd's do: the first write is revision 2."""

    def __init__(self, *, max_changes: int = MAX_CHANGES, max_backlog: int = MAX_BACKLOG) -> None:
        self.max_changes = max_changes
        self._snapshot = Snapshot(revision=1)
        self._subscribers = Subscribers(max_backlog)
        self._closed = False

    @property
    def available(self) -> bool:
        return not self._closed

    def snapshot(self) -> Snapshot:
        return self._snapshot

    async def sync(self) -> None:
        await asyncio.sleep(0)
        if self._closed:
            raise StoreUnavailable("the store is closed")

    async def commit(self, changes: Sequence[Change]) -> int:
        check_shape(changes, self.max_changes)
        # a real store lets others run between the call and the write: so does this one, or tests would miss races
        await asyncio.sleep(0)
        if self._closed:
            raise StoreUnavailable("the store is closed")
        check_conflicts(self._snapshot, changes)
        snapshot, events = apply(self._snapshot, changes)
        self._publish(snapshot, events)
        return snapshot.revision

    def watch(self) -> Subscription:
        return self._subscribers.subscribe(self._snapshot)

    async def close(self) -> None:
        self._closed = True
        self._subscribers.close()

    def _publish(self, snapshot: Snapshot, events: list[Event]) -> None:
        self._snapshot = snapshot
        self._subscribers.publish(snapshot, events)
