"""Transactions that travel together: which may, what each is told, and what becomes of them when the sender fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aetcd import rpc
from msgspec.structs import replace

from orchestrator.errors import Conflict, StoreUnavailable
from orchestrator.model import Claim, Node, NodeSpec
from orchestrator.store.base import Change, Delete, Guard, Put
from orchestrator.store.etcd_codec import transaction
from orchestrator.store.group_commit import GroupCommit, Outcome
from orchestrator.store.transaction import key_of
from tests.orchestrator.store.etcds import Etcds


class Wire:
    """Keeps what is sent until it is let through; every second transaction of a group fails."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, request: Any) -> tuple[Any, bool]:
        self.sent.append(request)
        await self.open.wait()
        if self.error is not None:
            raise self.error
        header = rpc.ResponseHeader(revision=len(self.sent))
        responses = [rpc.ResponseOp(response_txn=rpc.TxnResponse(succeeded=number % 2 == 0)) for number, _ in enumerate(request.success)]
        return rpc.TxnResponse(header=header, succeeded=True, responses=responses), True


def started(group: GroupCommit, *changes: Change) -> asyncio.Task[Outcome]:
    touched = frozenset(key_of(change) for change in changes)
    written = frozenset(key_of(change) for change in changes if not isinstance(change, Guard))
    return asyncio.create_task(group.commit(transaction(changes), touched, written))


A, B, C = (Put(Claim(id=id)) for id in "abc")


async def test_what_waits_while_one_is_under_way_goes_together_and_is_told_apart() -> None:
    wire = Wire()
    group = GroupCommit(wire)
    first = started(group, A)
    await asyncio.sleep(0)
    rest = [started(group, Put(Claim(id=f"x{number}"))) for number in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(wire.sent) == 1
    wire.open.set()
    assert (await first).succeeded
    assert [outcome.succeeded for outcome in await asyncio.gather(*rest)] == [True, False, True, False, True]
    assert len(wire.sent) == 2 and len(wire.sent[1].success) == 5
    await group.close()


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ([A], [B], True),
        ([A], [A], False),
        ([A], [Delete("claim", "a")], False),
        ([A, Guard("leader", "leader")], [B, Guard("leader", "leader")], True),
        ([A, Guard("claim", "b")], [B], False),
        ([B], [A, Guard("claim", "b")], False),
    ],
)
async def test_only_those_travel_together_that_do_not_touch_what_another_writes(
    one: list[Change], other: list[Change], together: bool
) -> None:
    wire = Wire()
    group = GroupCommit(wire)
    waiting = [started(group, C)]
    await asyncio.sleep(0)
    waiting += [started(group, *one), started(group, *other)]
    await asyncio.sleep(0)
    wire.open.set()
    await asyncio.gather(*waiting)
    assert len(wire.sent) == (2 if together else 3)
    await group.close()


async def test_nobody_overtakes_whom_he_meets() -> None:
    """b waits for a; what meets b waits behind it, although it would fit beside a."""
    wire = Wire()
    group = GroupCommit(wire)
    waiting = [started(group, C)]
    await asyncio.sleep(0)
    waiting += [started(group, A), started(group, A, B), started(group, B)]
    await asyncio.sleep(0)
    wire.open.set()
    await asyncio.gather(*waiting)
    assert len(wire.sent) == 4
    await group.close()


async def test_an_error_and_the_end_reach_everybody_and_a_caller_who_left_is_not_sent() -> None:
    wire = Wire()
    group = GroupCommit(wire)
    first = started(group, A)
    await asyncio.sleep(0)
    gone, second = started(group, B), started(group, C)
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    wire.error = StoreUnavailable("no leader")
    wire.open.set()
    for task in (first, second):
        with pytest.raises(StoreUnavailable):
            await task
    assert len(wire.sent) == 2 and not wire.sent[1].success[0].HasField("request_txn")
    wire.open.clear()
    third = started(group, A)
    await asyncio.sleep(0)
    fourth = started(group, B)
    await asyncio.sleep(0)
    await group.close()
    for task in (third, fourth):
        with pytest.raises(StoreUnavailable):
            await task


async def test_many_writers_of_one_counter_lose_no_step(tmp_path: Any) -> None:
    """On a real etcd: of all that are based on one version exactly one succeeds, whoever travels with whom."""
    etcds = Etcds(tmp_path)
    try:
        store = await etcds.open()
        await store.commit([Put(Node(id="n"))])

        async def step(number: int) -> None:
            while True:
                node = store.snapshot().node("n")
                assert node is not None
                count = int((node.spec.labels or {}).get("count", "0"))
                spec = NodeSpec(labels={"count": str(count + 1)})
                try:
                    await store.commit([Put(replace(node, spec=spec)), Put(Claim(id=f"done{number}"))])
                except Conflict:
                    continue
                return

        await asyncio.gather(*(step(number) for number in range(20)), *(store.commit([Put(Claim(id=f"other{i}"))]) for i in range(20)))
        node = store.snapshot().node("n")
        assert node is not None and (node.spec.labels or {})["count"] == "20"
        assert store.snapshot().count(Claim) == 40
        await store.close()
    finally:
        etcds.stop()
