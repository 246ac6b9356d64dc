"""A manager is let go while its operator changes his mind: at every moment, once and twice; whoever is to be a manager has a voter."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import cast

import pytest
from msgspec.structs import replace

from orchestrator.managers.membership import role_of
from orchestrator.managers.quorum import Quorum
from orchestrator.model import ManagerStatus, Node, NodeSpec, Version
from orchestrator.store.base import Change, Put
from orchestrator.store.etcd_client import EtcdClient, EtcdMember
from orchestrator.store.etcd_process import peer_url
from orchestrator.store.memory import MemoryStore

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LEADER, OTHER, THIRD = "a", "b", "c"
ADDR = {name: f"10.0.0.{number}" for number, name in enumerate((LEADER, OTHER, THIRD), start=1)}
# more calls than a demotion takes
MOMENTS = range(1, 7)


class Clock:
    """Counts what the quorum does to the world and lets the operator act before each of them."""

    def __init__(self) -> None:
        self.moment = 0
        self.due: dict[int, Callable[[], object]] = {}

    async def tick(self) -> None:
        self.moment += 1
        act = self.due.pop(self.moment, None)
        if act is not None:
            result = act()
            if asyncio.iscoroutine(result):
                await result


class Etcd:
    """Members alone, as etcd keeps them: removed is removed, an id never comes back."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ids = itertools.count(100)
        self.present = {name: EtcdMember(next(self._ids), name, (peer_url(addr, 2380),), False) for name, addr in ADDR.items()}

    async def members(self) -> list[EtcdMember]:
        answer = list(self.present.values())
        await self._clock.tick()
        return answer

    async def remove(self, member_id: int) -> None:
        await self._clock.tick()
        self.present = {name: member for name, member in self.present.items() if member.id != member_id}

    async def add_learner(self, url: str) -> tuple[EtcdMember, list[EtcdMember]]:
        name = next(name for name, addr in ADDR.items() if peer_url(addr, 2380) == url)
        assert name not in self.present, "a member is removed before its place is given again"
        self.present[name] = EtcdMember(next(self._ids), "", (url,), True)
        return self.present[name], list(self.present.values())

    async def promote(self, member_id: int, *, timeout_s: float) -> None:
        for name, member in self.present.items():
            if member.id == member_id:
                # it has started, and has a name from then on
                self.present[name] = EtcdMember(member_id, name, member.peer_urls, False)


class Watched(MemoryStore):
    """Ticks before each write of the quorum, which are those that change manager_status."""

    clock: Clock | None = None

    async def commit(self, changes: list[Change]) -> int:  # type: ignore[override]
        if self.clock is not None and any(isinstance(c, Put) and isinstance(c.obj, Node) and c.obj.manager_status is None for c in changes):
            await self.clock.tick()
        return await super().commit(changes)


async def set_role(store: MemoryStore, role: str) -> None:
    node = store.snapshot().node(OTHER)
    assert node is not None
    await store.commit([Put(replace(node, spec=NodeSpec(role=role)))])


class Follower:
    """The node itself: without a member and told to be a manager it asks for a place, one question at a time, as `meshd` does."""

    def __init__(self, store: MemoryStore, etcd: Etcd, quorum: Quorum) -> None:
        self._store, self._etcd, self._quorum = store, etcd, quorum
        self._asking = False

    async def step(self) -> None:
        node = self._store.snapshot().node(OTHER)
        assert node is not None
        if self._asking or OTHER in self._etcd.present or role_of(node) != "manager" or node.spec.role != "manager":
            return
        self._asking = True
        try:
            await self._quorum.welcome(OTHER, f"{ADDR[OTHER]}:2377")
            await self._quorum.record(OTHER, f"{ADDR[OTHER]}:2377")
        finally:
            self._asking = False


def consistent(store: MemoryStore, etcd: Etcd) -> bool:
    node = store.snapshot().node(OTHER)
    assert node is not None
    wanted = node.spec.role == "manager"
    voter = OTHER in etcd.present and not etcd.present[OTHER].is_learner
    return (node.manager_status is not None) == wanted == voter and (wanted or OTHER not in etcd.present)


@pytest.mark.parametrize("promoted_at", MOMENTS)
@pytest.mark.parametrize("demoted_after", [0, 1, 2, 3])
@pytest.mark.parametrize("asks_at_once", [True, False])
async def test_a_mind_that_is_changed_leaves_no_manager_without_a_member(promoted_at: int, demoted_after: int, asks_at_once: bool) -> None:
    """demoted_after: so many moments after the promotion it is demoted again, 0: it is not."""
    clock = Clock()
    store = Watched()
    etcd = Etcd(clock)
    for name, addr in ADDR.items():
        status = ManagerStatus(addr=f"{addr}:2377", reachability="reachable")
        await store.commit([Put(Node(id=name, spec=NodeSpec(role="manager"), manager_status=status, version=Version(index=0)))])
    quorum = Quorum(cast(EtcdClient, etcd), store, node_id=LEADER, peer_port=2380, fence=lambda: None, now=lambda: NOW)
    follower = Follower(store, etcd, quorum)
    leading = asyncio.create_task(quorum.lead())

    async def promote() -> None:
        await set_role(store, "manager")
        if asks_at_once:
            await follower.step()

    clock.due[promoted_at] = promote
    if demoted_after:
        clock.due[promoted_at + demoted_after] = lambda: set_role(store, "worker")
    store.clock = clock
    await set_role(store, "worker")
    try:
        async with asyncio.timeout(10):
            while not (consistent(store, etcd) and quiet(quorum)):
                await follower.step()
                await asyncio.sleep(0)
    except TimeoutError:
        pytest.fail(f"{leading} {store.snapshot().node(OTHER)} {etcd.present}")
    finally:
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        await quorum.stop()


def quiet(quorum: Quorum) -> bool:
    return not quorum._background
