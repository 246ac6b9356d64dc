"""One etcd for all managers: the truth, and the copies that managers follow, each with its own lag, lost answers and partitions.

A manager's `Member` keeps the promises of `store.base.Store` that `EtcdStore` keeps: it reads from a copy that may be old, a commit
returns when the copy shows it, a Conflict comes after the copy shows what beat it, StoreUnavailable leaves the outcome open.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from random import Random

from orchestrator.errors import Conflict, StoreUnavailable
from orchestrator.store.base import Change, Event
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.subscription import MAX_BACKLOG, Subscribers, Subscription
from orchestrator.store.transaction import MAX_CHANGES, apply, check_conflicts, check_shape

ELECTION_S = 1.3
_COMMIT_TIMEOUT_S = 5.0


class Etcd:
    """`quorum(name)`: is this member among a connected majority. watchers: told (before, after, events) of every write."""

    def __init__(self, random: Random, quorum: Callable[[str], bool]) -> None:
        self.random = random
        self.quorum = quorum
        self.truth = Snapshot(revision=1)
        self.members: dict[str, Member] = {}
        self.watchers: list[Callable[[Snapshot, Snapshot, list[Event]], None]] = []
        self.raft_leader = ""
        self.lost_answers = 0.0
        self.slow_s = 0.0

    def commit(self, changes: Sequence[Change]) -> int:
        check_conflicts(self.truth, changes)
        before = self.truth
        self.truth, events = apply(before, changes)
        if events:
            for watcher in self.watchers:
                watcher(before, self.truth, events)
            for member in self.members.values():
                member.hear(self.truth, events)
        return self.truth.revision

    def join(self, name: str) -> Member:
        """A manager that (re)starts lists everything."""
        member = self.members[name] = Member(self, name)
        return member

    async def elect_forever(self) -> None:
        """Raft's election: among those with a quorum, some time after the last leader is gone."""
        while True:
            await asyncio.sleep(0.25)
            if self.raft_leader not in self.members or not self.quorum(self.raft_leader):
                await asyncio.sleep(ELECTION_S)
                able = sorted(name for name in self.members if self.quorum(name))
                if able and self.raft_leader not in able:
                    self.raft_leader = self.random.choice(able)


class RaftStatus:
    def __init__(self, is_leader: bool) -> None:
        self.is_leader = is_leader


class Member:
    """One manager's store."""

    max_changes = MAX_CHANGES

    def __init__(self, etcd: Etcd, name: str) -> None:
        self._etcd, self.name = etcd, name
        self._snapshot = etcd.truth
        self._subscribers = Subscribers(MAX_BACKLOG)
        self._coming: deque[tuple[Snapshot, list[Event]]] = deque()
        self._moved = asyncio.Event()
        self._following: asyncio.Task[None] = asyncio.create_task(self._follow(), name=f"etcd {name}")
        self._arrived = asyncio.Event()

    def hear(self, snapshot: Snapshot, events: list[Event]) -> None:
        self._coming.append((snapshot, events))
        self._moved.set()

    async def _follow(self) -> None:
        while True:
            await self._moved.wait()
            self._moved.clear()
            await asyncio.sleep(self._delay_s())
            while self._coming:
                if not self._etcd.quorum(self.name):
                    await asyncio.sleep(0.1)
                    continue
                self._snapshot, events = self._coming.popleft()
                self._subscribers.publish(self._snapshot, events)
                self._arrived.set()

    def _delay_s(self) -> float:
        return self._etcd.random.uniform(0.0005, 0.005) + self._etcd.random.random() * self._etcd.slow_s

    def snapshot(self) -> Snapshot:
        return self._snapshot

    async def commit(self, changes: Sequence[Change]) -> int:
        check_shape(changes, self.max_changes)
        await asyncio.sleep(self._delay_s())
        if not self._etcd.quorum(self.name):
            await asyncio.sleep(_COMMIT_TIMEOUT_S)
            raise StoreUnavailable("etcd has no quorum")
        try:
            revision = self._etcd.commit(changes)
        except Conflict:
            await self._reach(self._etcd.truth.revision)
            raise
        if self._etcd.random.random() < self._etcd.lost_answers:
            raise StoreUnavailable("the answer was lost")
        await asyncio.sleep(self._delay_s())
        await self._reach(revision)
        return revision

    async def _reach(self, revision: int) -> None:
        try:
            async with asyncio.timeout(_COMMIT_TIMEOUT_S):
                while self._snapshot.revision < revision:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise StoreUnavailable("the copy doesn't follow") from None

    def watch(self) -> Subscription:
        return self._subscribers.subscribe(self._snapshot)

    async def close(self) -> None:
        self._following.cancel()
        self._subscribers.close()
        if self._etcd.members.get(self.name) is self:
            del self._etcd.members[self.name]

    async def raft_status(self) -> RaftStatus:
        if not self._etcd.quorum(self.name):
            raise StoreUnavailable("etcd has no quorum")
        return RaftStatus(self._etcd.raft_leader == self.name)
