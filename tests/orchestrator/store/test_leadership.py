"""Leadership: one at a time, fenced, taken over when the leader dies or is stuck."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from orchestrator.errors import Conflict, StoreUnavailable
from orchestrator.model import Claim, Leadership, Version
from orchestrator.store import Change, Guard, Put, Snapshot, Store, wait_for
from orchestrator.store.leadership import RENEWAL, LeadershipLoop, Step, always_leader, decide
from orchestrator.store.memory import MemoryStore
from orchestrator.store.subscription import Subscription
from tests.orchestrator.store.etcds import Etcds, eventually

RENEW_S, STALE_S = 0.05, 0.4


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Raft:
    """Which manager's etcd leads."""

    leader: str = ""

    def status_of(self, node: str) -> Callable[[], object]:
        async def status() -> RaftView:
            return RaftView(self.leader == node)

        return status


@dataclass
class RaftView:
    is_leader: bool


@dataclass
class Manager:
    node: str
    store: Store
    raft: Raft
    edges: list[bool] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.loop = LeadershipLoop(
            self.store,
            self.raft.status_of(self.node),  # type: ignore[arg-type]
            self.node,
            f"{self.node}:2377",
            now,
            on_change=self.edges.append,
            poll_interval_s=0.01,
            renew_interval_s=RENEW_S,
            stale_after_s=STALE_S,
        )
        self.task = asyncio.create_task(self.loop.run())

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class FaultyStore:
    """A manager's own way to the shared store: `hold` keeps its writes from getting through until it is cleared (a stuck process or
    disk), `cut` lets them fail."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.max_changes = inner.max_changes
        self.hold = asyncio.Event()
        self.hold.set()
        self.cut = False

    def snapshot(self) -> Snapshot:
        return self.inner.snapshot()

    async def commit(self, changes: list[Change]) -> int:
        await self.hold.wait()
        if self.cut:
            raise StoreUnavailable("cut")
        return await self.inner.commit(changes)

    def watch(self) -> Subscription:
        watch = self.inner.watch()
        assert isinstance(watch, Subscription)
        return watch

    async def close(self) -> None:
        pass


@asynccontextmanager
async def managers(raft: Raft, *nodes: str) -> AsyncIterator[tuple[MemoryStore, list[Manager], list[FaultyStore]]]:
    memory = MemoryStore()
    stores = [FaultyStore(memory) for _ in nodes]
    made = [Manager(node, store, raft) for node, store in zip(nodes, stores, strict=True)]  # type: ignore[arg-type]
    try:
        yield memory, made, stores
    finally:
        for store in stores:
            store.hold.set()
        for manager in made:
            await manager.stop()


# ---- decisions ------------------------------------------------------------------------------------------------------------


def step(**changes: object) -> Step:
    usual: dict[str, object] = {
        "held_by": "other", "is_me": False, "my_term": 0, "term": 7, "beside_raft_leader": False, "quiet_s": 0.0, "renewed_s": 0.0,
        "renew_interval_s": 2.0, "stale_after_s": 8.0,
    }  # fmt: skip
    return decide(**{**usual, **changes})  # type: ignore[arg-type]


def test_decisions() -> None:
    assert step() is Step.NONE
    assert step(beside_raft_leader=True) is Step.TAKE
    assert step(quiet_s=7.9) is Step.NONE
    assert step(quiet_s=8.0) is Step.TAKE
    assert step(held_by=None, term=0, quiet_s=1.9) is Step.NONE
    assert step(held_by=None, term=0, quiet_s=2.0) is Step.TAKE
    assert step(held_by=None, term=0, beside_raft_leader=True) is Step.TAKE
    # my own former life
    assert step(held_by="me", is_me=True, quiet_s=2.0) is Step.TAKE
    # leading: until the key is another one's or can't be renewed; wherever Raft's leader is
    assert step(held_by="me", is_me=True, my_term=7) is Step.NONE
    assert step(held_by="me", is_me=True, my_term=7, renewed_s=2.0) is Step.RENEW
    assert step(held_by="me", is_me=True, my_term=7, renewed_s=8.0) is Step.YIELD
    assert step(my_term=6, beside_raft_leader=True) is Step.YIELD
    assert step(held_by=None, term=0, my_term=7) is Step.YIELD


def test_a_leader_never_takes_and_a_follower_never_renews() -> None:
    for held_by, my_term, term, beside, quiet_s, renewed_s in itertools.product(
        [None, "me", "other"], [0, 6, 7], [0, 7], [False, True], [0.0, 2.0, 8.0], [0.0, 2.0, 8.0]
    ):
        age = {"quiet_s": quiet_s, "renewed_s": renewed_s}
        decided = step(held_by=held_by, is_me=held_by == "me", my_term=my_term, term=term, beside_raft_leader=beside, **age)
        assert decided in ({Step.NONE, Step.TAKE} if my_term == 0 else {Step.NONE, Step.RENEW, Step.YIELD})
        if my_term and my_term != term:
            assert decided is Step.YIELD


# ---- in memory, with faults ---------------------------------------------------------------------------------------------------


async def test_alone_in_memory_it_leads_at_once() -> None:
    store = MemoryStore()
    loop = LeadershipLoop(store, always_leader, "n1", "n1:2377", now)
    assert loop.fence() is None and not loop.leading
    running = asyncio.create_task(loop.run())
    fence = await asyncio.wait_for(loop.wait_leading(), 2)
    leader = store.snapshot().leader
    assert leader is not None and (leader.node_id, leader.addr) == ("n1", "n1:2377")
    assert fence == Guard("leader", "leader", leader.version.index) == loop.fence()
    await store.commit([fence, Put(Claim(id="a leader's write"))])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    # given back
    assert store.snapshot().leader is None and loop.fence() is None


async def test_renewals_leave_the_fence_as_it_is() -> None:
    raft = Raft("a")
    async with managers(raft, "a") as (store, [a], _):
        fence = await a.loop.wait_leading()
        first = store.snapshot().get(Leadership, RENEWAL)
        assert first is not None
        await wait_for(store, lambda s: s.get(Leadership, RENEWAL).version.index > first.version.index + 1, 5)  # type: ignore[union-attr]
        assert a.loop.fence() == fence
        await store.commit([fence, Put(Claim(id="x"))])


async def test_a_new_fence_of_the_same_leader_stops_what_was_under_way_with_the_old_one() -> None:
    """A commit of unknown outcome: it has happened and is seen, or it never happens."""
    raft = Raft("a")
    async with managers(raft, "a", "b") as (store, [a, b], [store_a, _]):
        old = await a.loop.wait_leading()
        store_a.hold.clear()
        late = asyncio.create_task(store_a.commit([old, Put(Claim(id="late"))]))
        await asyncio.sleep(0)
        renewing = asyncio.create_task(a.loop.refence())
        store_a.hold.set()
        await renewing
        new = a.loop.fence()
        assert new is not None and new.index > old.index and a.loop.leading and (a.edges, b.edges) == ([True], [])
        with contextlib.suppress(Conflict):
            await late
        seen = store.snapshot().claim("late")
        assert (seen is None) == (late.exception() is not None)
        with pytest.raises(Conflict):
            await store.commit([old, Put(Claim(id="later still"))])
        await store.commit([new, Put(Claim(id="from the same one"))])
        # it goes on leading: its own new term is no other's
        renewal = store.snapshot().get(Leadership, RENEWAL)
        assert renewal is not None
        await wait_for(store, lambda s: s.get(Leadership, RENEWAL).version.index > renewal.version.index, 5)  # type: ignore[union-attr]
        assert (a.edges, b.edges) == ([True], [])


async def test_who_does_not_lead_gets_no_new_fence() -> None:
    raft = Raft("a")
    async with managers(raft, "a", "b") as (_, [a, b], _):
        await a.loop.wait_leading()
        await b.loop.refence()
        assert b.loop.fence() is None


async def test_leadership_follows_raft_at_once() -> None:
    raft = Raft("a")
    async with managers(raft, "a", "b", "c") as (store, [a, b, c], _):
        await a.loop.wait_leading()
        raft.leader = "b"
        fence = await asyncio.wait_for(b.loop.wait_leading(), STALE_S)
        await asyncio.wait_for(a.loop.wait_lost(), 1)
        assert (a.edges, b.edges, c.edges) == ([True, False], [True], [])
        leader = store.snapshot().leader
        assert leader is not None and leader.node_id == "b" and leader.version.index == fence.index


async def test_a_paused_leaders_late_write_is_refused() -> None:
    """The fence: a loop of the former leader plans, sleeps through its replacement, and commits. Nothing is written."""
    raft = Raft("a")
    async with managers(raft, "a", "b") as (store, [a, b], [store_a, _]):
        old = await a.loop.wait_leading()
        store_a.hold.clear()
        late = asyncio.create_task(store_a.commit([old, Put(Claim(id="late"))]))
        # stuck, and yet its etcd leads Raft: the other one has to run out of patience
        fence = await asyncio.wait_for(b.loop.wait_leading(), 10 * STALE_S)
        await store.commit([fence, Put(Claim(id="from the new one"))])
        raft.leader = "b"
        store_a.hold.set()
        with pytest.raises(Conflict, match="leader leader was changed by someone else"):
            await late
        assert store.snapshot().claim("late") is None
        with pytest.raises(Conflict):
            await store.commit([old, Put(Claim(id="later still"))])
        await eventually(lambda: not a.loop.leading)
        assert b.loop.leading


async def test_a_leader_that_cannot_renew_stops_leading_by_itself() -> None:
    raft = Raft("a")
    async with managers(raft, "a") as (store, [a], [store_a]):
        fence = await a.loop.wait_leading()
        store_a.cut = True
        await asyncio.wait_for(a.loop.wait_lost(), 10 * STALE_S)
        assert a.edges == [True, False]
        store_a.cut = False
        again = await asyncio.wait_for(a.loop.wait_leading(), 5)
        assert again.index > fence.index
        with pytest.raises(Conflict):
            await store.commit([fence])


async def test_a_new_life_of_the_same_node_fences_the_old_one() -> None:
    raft = Raft("a")
    memory = MemoryStore()
    first = Manager("a", memory, raft)
    old = await first.loop.wait_leading()
    assert first.task is not None
    # killed, not stopped: the key stays
    first.loop._resign = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
    await first.stop()
    assert memory.snapshot().leader is not None
    second = Manager("a", memory, raft)
    fresh = await asyncio.wait_for(second.loop.wait_leading(), 1)
    assert fresh.index > old.index
    with pytest.raises(Conflict):
        await memory.commit([old])
    await second.stop()


@pytest.mark.parametrize("seed", range(3))
async def test_under_faults_the_fence_keeps_writers_apart_and_afterwards_one_leads(seed: int) -> None:
    """Every leader counts up in its own term; whatever is cut, held or elected meanwhile, terms never interleave."""
    rng = random.Random(seed)
    raft = Raft("a")
    async with managers(raft, "a", "b", "c") as (memory, made, stores):
        watch = memory.watch()
        stop = asyncio.Event()

        async def work(manager: Manager, store: FaultyStore) -> None:
            while not stop.is_set():
                fence = manager.loop.fence()
                if fence is None:
                    await asyncio.sleep(0.002)
                    continue
                existing = memory.snapshot().claim("counter")
                version = existing.version if existing else Version()
                await asyncio.sleep(rng.random() * 0.01)
                try:
                    await store.commit([fence, Put(Claim(id="counter", owner=str(fence.index), version=version))])
                except (Conflict, StoreUnavailable):
                    await asyncio.sleep(0.002)

        workers = [asyncio.create_task(work(m, s)) for m, s in zip(made, stores, strict=True)]
        for _ in range(12):
            raft.leader = rng.choice(["a", "b", "c", ""])
            faulty = rng.choice(stores)
            fault = rng.choice(["none", "cut", "hold"])
            faulty.cut = fault == "cut"
            if fault == "hold":
                faulty.hold.clear()
            await asyncio.sleep(rng.random() * 0.15)
            faulty.cut = False
            faulty.hold.set()
        # heal, then converge; twice, so that at least two terms wrote whatever the faults let happen before
        for healthy in ("c", "b"):
            raft.leader = healthy
            await eventually(lambda: [m.node for m in made if m.loop.leading] == [healthy], what=f"only {healthy} leads")  # noqa: B023
            fence = next(m.loop.fence() for m in made if m.node == healthy)
            assert fence is not None
            await wait_for(memory, lambda s: s.claim("counter") is not None and s.claim("counter").owner == str(fence.index), 5)  # type: ignore[union-attr] # noqa: B023
        stop.set()
        await asyncio.gather(*workers)
        await memory.commit([Put(Claim(id="end"))])
        terms: list[int] = []
        current = 0
        done = False
        while not done:
            _, events = await anext(watch)
            for event in events:
                if event.kind == "leader" and event.id == "leader":
                    current = event.new.version.index if event.new else 0
                elif event.id == "counter":
                    assert isinstance(event.new, Claim) and int(event.new.owner) == current
                    terms.append(current)
                done = done or event.id == "end"
        assert terms == sorted(terms) and len(set(terms)) > 1


# ---- beside real etcds -----------------------------------------------------------------------------------------------------------


async def test_beside_three_etcds_the_leaders_death_moves_leadership(etcds_of: Callable[[int], Etcds]) -> None:
    etcds = etcds_of(3)
    first = await etcds.leader()
    clients = [etcds.client(i) for i in range(3)]
    stores = [await etcds.open(i, timeout_s=2.0) for i in range(3)]
    loops = [LeadershipLoop(stores[i], clients[i].status, f"m{i}", f"10.0.0.{i}:2377", now, poll_interval_s=0.05) for i in range(3)]
    tasks = [asyncio.create_task(loop.run()) for loop in loops]
    async with asyncio.timeout(10):
        old = await loops[first].wait_leading()
    await stores[first].commit([old, Put(Claim(id="fenced"))])
    others = [i for i in range(3) if i != first]
    # meshd and its etcd die together
    tasks[first].cancel()
    loops[first]._term = 0
    etcds.kill(first)
    await eventually(lambda: any(loops[i].leading for i in others), timeout_s=15)
    second = next(i for i in others if loops[i].leading)
    with pytest.raises(Conflict):
        await stores[second].commit([old, Put(Claim(id="late"))])
    fence = loops[second].fence()
    assert fence is not None
    await stores[second].commit([fence, Put(Claim(id="goes on"))])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for thing in (*stores, *clients):
        await thing.close()
