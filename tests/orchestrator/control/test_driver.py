"""The driver over a MemoryStore: it commits, retries, isolates failing loops, stops when it doesn't lead."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta

import msgspec
import pytest

from orchestrator.control import driver
from orchestrator.control.context import Context, NetworkAcks
from orchestrator.control.driver import ControlDriver
from orchestrator.control.loops import LOOPS
from orchestrator.control.steps import Decision, Loop
from orchestrator.errors import StoreUnavailable
from orchestrator.model import IPAM, Claim, Cluster, Leadership, Network, Service, Task, TaskState
from orchestrator.store.base import Change, Guard, Put
from orchestrator.store.memory import MemoryStore
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.subscription import wait_for
from tests.orchestrator.control.sim import node, spec


class Bench:
    """A store, a leader's key and a driver."""

    def __init__(self, store: MemoryStore, loops: Sequence[Loop], refence: Callable[[], Awaitable[None]] | None) -> None:
        self.store = store
        self.leads = True
        self.driver = ControlDriver(store, loops, self.fence, NetworkAcks(), refence=refence)
        self.running = asyncio.create_task(self.driver.run())

    def fence(self) -> Guard | None:
        leader = self.store.snapshot().leader
        return Guard("leader", "leader", leader.version.index) if self.leads and leader is not None else None

    async def until(self, true: Callable[[Snapshot], bool], timeout_s: float = 5) -> Snapshot:
        return await wait_for(self.store, true, timeout_s)


@contextlib.asynccontextmanager
async def bench(
    loops: Sequence[Loop] = LOOPS, store: MemoryStore | None = None, refence: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[Bench]:
    store = store or MemoryStore()
    await store.commit([Put(Leadership(node_id="n1"))])
    made = Bench(store, loops, refence)
    try:
        yield made
    finally:
        made.running.cancel()
        await asyncio.gather(made.running, return_exceptions=True)
        await store.close()


def world(nodes: int = 3) -> list[Change]:
    cluster = Cluster(id="cluster", default_addr_pool=["10.0.0.0/8"])
    return [Put(cluster), Put(Network(id="net", name="net", ipam=IPAM())), *(Put(node(f"n{i}")) for i in range(1, nodes + 1))]


def assigned(snapshot: Snapshot) -> int:
    return sum(task.status.state is TaskState.ASSIGNED for task in snapshot.all(Task))


async def test_a_service_becomes_assigned_tasks_in_one_write() -> None:
    async with bench() as b:
        await b.store.commit(world())
        before = await b.until(lambda s: all(n.mesh_vni for n in s.all(Network)))
        await b.store.commit([Put(Service(id="s", spec=spec(replicas=20)))])
        after = await b.until(lambda s: assigned(s) == 20)
        assert after.revision - before.revision <= 3


async def test_a_new_network_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes it is answered once it has its addresses."""
    monkeypatch.setattr(driver, "DEBOUNCE_S", 3600.0)
    async with bench() as b:
        # the first pass follows no event, and the rest after it is an hour
        await b.store.commit([change for change in world() if not isinstance(change, Put) or not isinstance(change.obj, Network)])
        await b.store.commit([Put(Network(id="net", name="net", ipam=IPAM()))])
        await b.until(lambda s: all(network.mesh_vni for network in s.all(Network)))


async def test_more_than_a_transaction_holds() -> None:
    async with bench(store=MemoryStore(max_changes=8)) as b:
        for change in world():
            await b.store.commit([change])
        await b.store.commit([Put(Service(id="s", spec=spec(replicas=40)))])
        await b.until(lambda s: assigned(s) == 40)


async def test_conflicts_with_other_writers_are_planned_again() -> None:
    """A writer that changes the loop's object as fast as it can: the loop's counter gets through without losing one of its writes."""
    target = 30

    def count(snapshot: Snapshot, ctx: Context) -> Decision:
        claim = snapshot.claim("c")
        assert claim is not None
        loops, others = map(int, claim.owner.split())
        if loops >= target:
            return Decision()
        return Decision([(Put(msgspec.structs.replace(claim, owner=f"{loops + 1} {others}")),)])

    store = MemoryStore()
    await store.commit([Put(Claim(id="c", owner="0 0"))])
    written = 0

    async def meddle() -> None:
        nonlocal written
        while True:
            claim = store.snapshot().claim("c")
            assert claim is not None
            loops, others = claim.owner.split()
            await store.commit([Put(msgspec.structs.replace(claim, owner=f"{loops} {int(others) + 1}"))])
            written += 1
            await asyncio.sleep(0.003)

    async with bench([count], store) as b:

        async def keep_meddling() -> None:
            from orchestrator.errors import Conflict

            while True:
                with contextlib.suppress(Conflict):
                    await meddle()

        meddler = asyncio.create_task(keep_meddling())
        try:
            end = await b.until(lambda s: (c := s.claim("c")) is not None and c.owner.startswith(f"{target} "))
        finally:
            meddler.cancel()
            await asyncio.gather(meddler, return_exceptions=True)
        claim = end.claim("c")
        assert claim is not None and int(claim.owner.split()[1]) in (written, written + 1)


async def test_a_deposed_leader_writes_nothing() -> None:
    """Its fence still names the old key: every commit is refused, until it learns the truth and returns."""
    async with bench() as b:
        await b.store.commit(world())
        await b.until(lambda s: all(n.mesh_vni for n in s.all(Network)))
        leader = b.store.snapshot().leader
        assert leader is not None
        stale = Guard("leader", "leader", leader.version.index)
        await b.store.commit([Put(msgspec.structs.replace(leader, node_id="n2"))])
        b.fence = lambda: stale  # type: ignore[method-assign]
        b.driver._fence = lambda: stale if b.leads else None
        await b.store.commit([Put(Service(id="s", spec=spec(replicas=2)))])
        await asyncio.sleep(0.3)
        assert b.store.snapshot().count(Task) == 0
        b.leads = False
        async with asyncio.timeout(3):
            await b.running


async def test_a_loop_with_a_bug_is_told_once_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(snapshot: Snapshot, ctx: Context) -> Decision:
        raise KeyError("oops")

    with caplog.at_level(logging.INFO, "orchestrator.control.driver"):
        async with bench([LOOPS[0], broken, *LOOPS[1:]]) as b:
            await b.store.commit([*world(), Put(Service(id="s", spec=spec(replicas=3)))])
            await b.until(lambda s: assigned(s) == 3)
    complaints = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in complaints] == ["control loop=broken failed"]
    told = [record.getMessage() for record in caplog.records if " task=" in record.getMessage()]
    assert len(told) >= 3 and all("slot=web." in line and "desired=" in line for line in told)


async def test_an_unavailable_store_is_waited_for() -> None:
    class Flaky(MemoryStore):
        down = False
        refused = 0

        async def commit(self, changes: Sequence[Change]) -> int:
            if self.down:
                self.refused += 1
                raise StoreUnavailable("no quorum")
            return await super().commit(changes)

    store = Flaky()
    async with bench(store=store) as b:
        await b.store.commit(world())
        await b.until(lambda s: all(n.mesh_vni for n in s.all(Network)))
        await b.store.commit([Put(Service(id="s", spec=spec(replicas=2)))])
        store.down = True
        await asyncio.sleep(0.5)
        assert 0 < store.refused < 20, "it spins"
        store.down = False
        await b.until(lambda s: assigned(s) == 2)


async def test_a_lost_answer_makes_no_task_twice() -> None:
    """The commit happened, its answer didn't come, and the copy is behind: what is planned next must not be planned on that copy."""

    class Lagging(MemoryStore):
        """Its copy stays as it was until something is committed and answered."""

        lose = False
        old: Snapshot | None = None

        def snapshot(self) -> Snapshot:
            return self.old or super().snapshot()

        async def commit(self, changes: Sequence[Change]) -> int:
            if self.lose and any(isinstance(change, Put) and isinstance(change.obj, Task) for change in changes):
                self.lose, self.old = False, super().snapshot()
                await super().commit(changes)
                raise StoreUnavailable("the answer was lost")
            revision = await super().commit(changes)
            self.old = None
            return revision

    store = Lagging()
    renewed = 0

    async def refence() -> None:
        nonlocal renewed
        renewed += 1
        leader = store.snapshot().leader
        assert leader is not None
        await store.commit([Put(leader)])

    async with bench(store=store, refence=refence) as b:
        await b.store.commit(world())
        await b.until(lambda s: all(n.mesh_vni for n in s.all(Network)))
        store.lose = True
        await b.store.commit([Put(Service(id="s", spec=spec(replicas=3)))])
        await b.until(lambda s: assigned(s) >= 3)
        async with asyncio.timeout(5):
            while not renewed:
                await asyncio.sleep(0.005)
        # whatever it plans now, it has planned when this service has its task
        await b.store.commit([Put(Service(id="s2", spec=spec("other", replicas=1)))])
        after = await b.until(lambda s: assigned(s) >= 4)
        assert renewed == 1 and sorted(task.service_id for task in after.all(Task)) == ["s", "s", "s", "s2"]


async def test_wakeups_and_pokes() -> None:
    passes: list[str] = []

    def sleeper(snapshot: Snapshot, ctx: Context) -> Decision:
        passes.append("x")
        return Decision(wakeup=ctx.now + timedelta(milliseconds=50)) if len(passes) < 5 else Decision()

    async with bench([sleeper]) as b:
        async with asyncio.timeout(3):
            while len(passes) < 5:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        rested = len(passes)
        assert rested <= 7, "woken without a reason"
        b.driver.poke()
        async with asyncio.timeout(3):
            while len(passes) == rested:
                await asyncio.sleep(0.005)
