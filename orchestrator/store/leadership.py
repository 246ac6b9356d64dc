"""Who runs the control loops: the manager beside etcd's Raft leader, by a guarded write of one key that fences all its later writes.

Edge: clock, store. `decide` is pure. No leases: etcd dies with its meshd, so Raft's own election (about a second) is the failure
detector, and the manager beside the new Raft leader takes the key at once. A leader that lives but is stuck stops renewing; then any
other manager takes the key. Two managers never both write: the loser's guard names a ModRevision that is gone.

Key `leader/leader` changes only when leadership does: its ModRevision is the term. Renewals go to `leader/renewal`, guarded by the
term, or else each of them would make the loops' commits in flight fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol

from orchestrator.errors import Conflict, StoreError, StoreUnavailable
from orchestrator.model import Leadership, Version
from orchestrator.store.base import Delete, Guard, Put, Store
from orchestrator.store.snapshot import Snapshot

log = logging.getLogger(__name__)

RENEWAL = "renewal"


class RaftStatus(Protocol):
    @property
    def is_leader(self) -> bool: ...


class AlwaysLeader:
    """The Raft status of a store that has no Raft: MemoryStore, one process."""

    is_leader = True


async def always_leader() -> RaftStatus:
    return AlwaysLeader()


class Step(enum.Enum):
    NONE = "none"
    TAKE = "take"
    RENEW = "renew"
    YIELD = "yield"


def decide(
    *, held_by: str | None, is_me: bool, my_term: int, term: int, beside_raft_leader: bool, quiet_s: float, renewed_s: float,
    renew_interval_s: float, stale_after_s: float,
) -> Step:  # fmt: skip
    """What to do now.

    held_by: node id in the leader key, None = no key. my_term: ModRevision this process took the key at, 0 = not leading. term: the
    key's. quiet_s: since the key or the renewal was last seen to change. renewed_s: since this leader's last successful renewal.
    """
    if my_term:
        if my_term != term or renewed_s >= stale_after_s:
            return Step.YIELD
        return Step.RENEW if renewed_s >= renew_interval_s else Step.NONE
    if beside_raft_leader:
        return Step.TAKE
    if held_by is None or is_me:
        # nobody yet, or my own former life: the manager beside the Raft leader comes first, but not for ever
        return Step.TAKE if quiet_s >= renew_interval_s else Step.NONE
    return Step.TAKE if quiet_s >= stale_after_s else Step.NONE


class LeadershipLoop:
    """`run()` it in a task; `fence()` for every commit of a control loop; `on_change(leading)` is called on both edges.

    etcd_status: the local member's status (`EtcdClient.status`, or `always_leader`). now: wall clock, only for the record.
    """

    def __init__(
        self,
        store: Store,
        etcd_status: Callable[[], Awaitable[RaftStatus]],
        node_id: str,
        addr: str,
        now: Callable[[], datetime],
        *,
        on_change: Callable[[bool], None] | None = None,
        poll_interval_s: float = 0.25,
        renew_interval_s: float = 2.0,
        stale_after_s: float = 8.0,
    ) -> None:
        self._store, self._etcd_status, self._now = store, etcd_status, now
        self._node_id, self._addr = node_id, addr
        self._on_change = on_change
        self._poll_interval_s, self._renew_interval_s, self._stale_after_s = poll_interval_s, renew_interval_s, stale_after_s
        self._term = 0
        self._leading, self._lost = asyncio.Event(), asyncio.Event()
        self._lost.set()
        self._refencing = False
        self._seen: tuple[int, int] = (-1, -1)
        self._seen_at = self._renewed_at = 0.0

    @property
    def leading(self) -> bool:
        return self._term != 0

    @property
    def confirmed_s(self) -> float:
        """Since the beginning of the last write that only the leader could make: a later leader took over after that."""
        return asyncio.get_running_loop().time() - self._renewed_at

    def fence(self) -> Guard | None:
        """The guard for every write of the leader; None = not the leader."""
        return Guard(kind="leader", id="leader", index=self._term) if self._term else None

    async def refence(self) -> None:
        """A new term for the same leader, after a commit of unknown outcome: what that commit has done, the store's copy shows when this
        returns; what it has not done by then it never will, its guard is gone. StoreUnavailable, Conflict: try again.
        """
        if not self._term or self._refencing:
            return
        self._refencing = True
        try:
            asked_at = asyncio.get_running_loop().time()
            held = self._store.snapshot().leader
            version = Version(index=self._term)
            renewed = Leadership(version=version, node_id=self._node_id, addr=held.addr if held else self._addr, renewed_at=self._now())
            term = await self._store.commit([Put(renewed)])
            if self._term:
                self._term, self._renewed_at = term, asked_at
        finally:
            self._refencing = False

    async def wait_leading(self) -> Guard:
        while True:
            await self._leading.wait()
            fence = self.fence()
            if fence is not None:
                return fence

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def run(self) -> None:
        """Until cancelled; then a leader gives the key back, so that the next one need not wait."""
        watcher = asyncio.create_task(self._watch(), name="leadership-watch")
        try:
            while True:
                try:
                    await self._step()
                except StoreUnavailable as error:
                    log.debug("node=%s leadership=undecided error=%s", self._node_id, error)
                await asyncio.sleep(self._poll_interval_s)
        finally:
            watcher.cancel()
            await self._resign()

    async def _step(self) -> None:
        if self._refencing:
            return
        clock = asyncio.get_running_loop().time
        try:
            beside = (await self._etcd_status()).is_leader
        except StoreError:
            beside = False
        snapshot = self._store.snapshot()
        held = snapshot.leader
        self._observe(snapshot)
        step = decide(
            held_by=held.node_id if held else None,
            is_me=held is not None and held.node_id == self._node_id,
            my_term=self._term,
            term=held.version.index if held else 0,
            beside_raft_leader=beside,
            quiet_s=clock() - self._seen_at,
            renewed_s=clock() - self._renewed_at,
            renew_interval_s=self._renew_interval_s,
            stale_after_s=self._stale_after_s,
        )
        try:
            match step:
                case Step.TAKE:
                    await self._take(held)
                case Step.RENEW:
                    await self._renew()
                case Step.YIELD:
                    self._lose("replaced" if not held or held.version.index != self._term else "could not renew it")
                case Step.NONE:
                    pass
        except Conflict as error:
            # someone was faster; the store's copy shows who by now. A renewal whose outcome was unknown may conflict with itself only
            held = self._store.snapshot().leader
            if not self._refencing and (not held or held.version.index != self._term):
                self._lose(str(error))

    def _observe(self, snapshot: Snapshot) -> None:
        """Age is counted from when *this* process saw a change: clocks of different machines are never compared."""
        held, renewal = snapshot.leader, snapshot.get(Leadership, RENEWAL)
        seen = (held.version.index if held else 0, renewal.version.index if renewal else 0)
        if seen != self._seen:
            self._seen, self._seen_at = seen, asyncio.get_running_loop().time()

    async def _take(self, held: Leadership | None) -> None:
        asked_at = asyncio.get_running_loop().time()
        self._term = await self._store.commit([self._touched("leader"), self._touched(RENEWAL)])
        self._renewed_at = asked_at
        log.info("node=%s leadership=taken term=%d from=%s", self._node_id, self._term, held.node_id if held else "nobody")
        self._lost.clear()
        self._leading.set()
        if self._on_change:
            self._on_change(True)

    async def _renew(self) -> None:
        fence = self.fence()
        if fence is None:
            return
        asked_at = asyncio.get_running_loop().time()
        await self._store.commit([fence, self._touched(RENEWAL)])
        self._renewed_at = asked_at

    def _touched(self, id: str) -> Put:
        old = self._store.snapshot().get(Leadership, id)
        version = old.version if old else Version()
        return Put(Leadership(id=id, version=version, node_id=self._node_id, addr=self._addr, renewed_at=self._now()))

    def _lose(self, why: str) -> None:
        if not self._term:
            return
        log.warning("node=%s leadership=lost term=%d why=%s", self._node_id, self._term, why)
        self._term = 0
        self._leading.clear()
        self._lost.set()
        if self._on_change:
            self._on_change(False)

    async def _watch(self) -> None:
        """Being replaced is noticed with the change itself, not at the next poll."""
        while True:
            with contextlib.suppress(StoreError):
                async for snapshot, _ in self._store.watch():
                    held = snapshot.leader
                    if self._refencing:
                        continue
                    if self._term and snapshot.revision >= self._term and (held is None or held.version.index != self._term):
                        self._lose("replaced")
                return

    async def _resign(self) -> None:
        term = self._term
        self._lose("resigned")
        if term:
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._store.commit([Delete("leader", "leader", term)])
