"""Subscribers of a store's changes, each with a bounded backlog.

Pure: no I/O, no clock; it only wakes the readers of its own event loop. A reader that takes longer than the writers gets several
revisions in one batch; one that stops reading costs at most `max_backlog` events, then it gets Compacted and has to list again.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Container

from orchestrator.errors import Compacted, StoreUnavailable
from orchestrator.model import Kind
from orchestrator.store.base import Event, Store
from orchestrator.store.snapshot import Snapshot

MAX_BACKLOG = 100_000


class Subscription(AsyncIterator[tuple[Snapshot, list[Event]]]):
    """One watch. Safe to cancel while it waits (nothing is lost); forgotten by the store when nobody refers to it any more."""

    def __init__(self, snapshot: Snapshot, max_backlog: int) -> None:
        self._snapshot = snapshot
        self._backlog: list[Event] = []
        self._max_backlog = max_backlog
        self._moved = asyncio.Event()
        self._overrun = False
        self._closed = False

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> tuple[Snapshot, list[Event]]:
        while not self._backlog and not self._overrun and not self._closed:
            self._moved.clear()
            await self._moved.wait()
        if self._overrun:
            raise Compacted(f"the reader of this watch is more than {self._max_backlog} changes behind: list again")
        if not self._backlog:
            raise StopAsyncIteration
        events, self._backlog = self._backlog, []
        return self._snapshot, events

    async def aclose(self) -> None:
        self.close()

    def push(self, snapshot: Snapshot, events: list[Event]) -> None:
        if self._closed or self._overrun:
            return
        if len(self._backlog) + len(events) > self._max_backlog:
            self._overrun = True
            self._backlog = []
        else:
            self._snapshot = snapshot
            self._backlog.extend(events)
        self._moved.set()

    def close(self) -> None:
        """What is in the backlog is still delivered; then the iteration ends."""
        self._closed = True
        self._moved.set()


class Subscribers:
    """All watches of one store."""

    def __init__(self, max_backlog: int = MAX_BACKLOG) -> None:
        self._max_backlog = max_backlog
        # in the order of their coming, so that equal runs are told alike
        self._subscriptions: weakref.WeakValueDictionary[int, Subscription] = weakref.WeakValueDictionary()
        self._count = 0
        self._closed = False

    def subscribe(self, snapshot: Snapshot) -> Subscription:
        subscription = Subscription(snapshot, self._max_backlog)
        if self._closed:
            subscription.close()
        else:
            self._count += 1
            self._subscriptions[self._count] = subscription
        return subscription

    def publish(self, snapshot: Snapshot, events: list[Event]) -> None:
        if events:
            for subscription in list(self._subscriptions.values()):
                subscription.push(snapshot, events)

    def close(self) -> None:
        self._closed = True
        for subscription in list(self._subscriptions.values()):
            subscription.close()


async def at_changes(store: Store, kinds: Container[Kind], step: Callable[[], Awaitable[None]]) -> None:
    """`step()` now and after whatever changes objects of these kinds, until cancelled. StoreUnavailable: the store was closed."""
    while True:
        watch = store.watch()
        await step()
        try:
            async for _, events in watch:
                if any(event.kind in kinds for event in events):
                    await step()
        except Compacted:
            # a step looks at everything
            continue
        raise StoreUnavailable("the store was closed")


async def wait_for(store: Store, predicate: Callable[[Snapshot], bool], timeout_s: float) -> Snapshot:
    """The first snapshot (now or later) that satisfies the predicate; TimeoutError when none came in time or the store was closed."""
    async with asyncio.timeout(timeout_s):
        while True:
            watch = store.watch()
            snapshot = store.snapshot()
            if predicate(snapshot):
                return snapshot
            try:
                async for snapshot, _ in watch:
                    if predicate(snapshot):
                        return snapshot
            except Compacted:
                continue
            raise TimeoutError("the store was closed while waiting for a change")
