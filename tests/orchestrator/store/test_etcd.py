"""The store on etcd when etcd is killed, compacts, loses members, or holds what this version can't read."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aetcd.rpc import kv_pb2
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as stubs

from orchestrator.errors import Conflict, StoreUnavailable
from orchestrator.model import Claim, Node, Version
from orchestrator.store import Delete, Event, Guard, Put, Store, wait_for
from orchestrator.store import etcd as etcd_module
from orchestrator.store.etcd import EtcdStore
from orchestrator.store.etcd_client import call, open_channel
from orchestrator.store.etcd_codec import MAX_BYTES
from orchestrator.store.etcd_tls import create_ca, issue, write_files
from orchestrator.store.subscription import Subscription
from tests.orchestrator.store.etcds import Etcds, eventually
from tests.orchestrator.store.test_contract import WHEN, contents

Make = Callable[[int], Etcds]


def drain(watch: Subscription) -> list[Event]:
    """What the watch has by now."""
    events, watch._backlog = watch._backlog, []
    return events


async def test_a_store_survives_the_kill_of_its_etcd(etcds_of: Make) -> None:
    """Every acknowledged write is there afterwards, the watch goes on without a gap and without a repetition."""
    etcds = etcds_of(1)
    store = await etcds.open()
    watch = store.watch()
    acknowledged: list[str] = []
    stop = asyncio.Event()

    async def writer() -> None:
        for i in itertools.count():
            if stop.is_set():
                return
            with contextlib.suppress(StoreUnavailable):
                await store.commit([Put(Claim(id=f"c{i}"))])
                acknowledged.append(f"c{i}")

    writing = asyncio.create_task(writer())
    for round in range(1, 3):
        reached = len(acknowledged) + 30
        await eventually(lambda reached=reached: len(acknowledged) >= reached, what="writes")  # type: ignore[misc]
        etcds.kill(0)
        await eventually(lambda: not store.available, what=f"round {round}: the break is noticed")
        etcds.start(0)
    reached = len(acknowledged) + 30
    await eventually(lambda: len(acknowledged) >= reached, what="writes after the restarts")
    stop.set()
    await writing
    last = await store.commit([Put(Claim(id="last"))])
    fresh = await etcds.open()
    assert contents(fresh.snapshot()) == contents(store.snapshot())
    stored = {claim.id for claim in fresh.snapshot().all(Claim)}
    assert set(acknowledged) <= stored
    events = drain(watch)
    assert sorted(e.id for e in events) == sorted(stored) and all(e.old is None for e in events)
    assert [e.revision for e in events] == sorted(e.revision for e in events) and events[-1].revision == last
    await store.close()
    await fresh.close()


async def test_commits_wait_out_a_restart_within_their_timeout(etcds_of: Make) -> None:
    etcds = etcds_of(1)
    store = await etcds.open(timeout_s=8.0)
    etcds.kill(0)
    await eventually(lambda: not store.available)
    waiting = asyncio.create_task(store.commit([Put(Claim(id="k"))]))
    await asyncio.sleep(0)
    etcds.start(0)
    revision = await waiting
    assert store.snapshot().claim("k") == Claim(id="k", version=Version(index=revision))
    await store.close()


async def test_without_etcd_commits_fail_in_time_and_reads_go_on(etcds_of: Make) -> None:
    etcds = etcds_of(1)
    store = await etcds.open(timeout_s=0.3)
    await store.commit([Put(Claim(id="k"))])
    etcds.kill(0)
    async with asyncio.timeout(3):
        with pytest.raises(StoreUnavailable, match="writing to etcd"):
            await store.commit([Put(Claim(id="l"))])
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.3 s"):
            await etcds.open(open_timeout_s=0.3)
    assert store.snapshot().claim("k") is not None
    await store.close()


async def test_closing_fails_what_is_under_way_and_cancels_nobody(etcds_of: Make) -> None:
    etcds = etcds_of(1)
    store = await etcds.open()
    etcds.kill(0, signal.SIGSTOP)
    pending = asyncio.create_task(store.commit([Put(Claim(id="k"))]))
    await asyncio.sleep(0.1)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await pending
    etcds.kill(0, signal.SIGCONT)


async def test_what_was_compacted_during_a_break_is_made_up_for_by_a_comparison(etcds_of: Make) -> None:
    """Created, changed, deleted, deleted and created again, created and deleted, untouched: exactly the net difference is told."""
    etcds = etcds_of(1)
    store = await etcds.open()
    first = await store.commit([Put(Claim(id=id, owner="old")) for id in ("changed", "deleted", "replaced", "untouched")])
    watch = store.watch()
    # the break: this store's follower is held while another manager writes and etcd compacts
    follower = store._follower
    assert follower is not None
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    other = await etcds.open()
    old = Version(index=first)
    await other.commit([Put(Claim(id="changed", owner="new", version=old)), Put(Claim(id="created")), Put(Claim(id="flash"))])
    await other.commit([Delete("claim", "deleted"), Delete("claim", "replaced"), Delete("claim", "flash")])
    last = await other.commit([Put(Claim(id="replaced", owner="new"))])
    for i in range(5):
        last = await other.commit([Put(Claim(id="created", version=other.snapshot().claim("created").version, owner=str(i)))])  # type: ignore[union-attr]
    await compact(etcds, last)
    store._follower = asyncio.create_task(store._follow())
    await wait_for(store, lambda s: s.revision >= last, 5)
    assert contents(store.snapshot()) == contents(other.snapshot())
    told = {e.id: (e.old and e.old.owner, e.new and e.new.owner) for e in drain(watch)}  # type: ignore[union-attr]
    assert told == {"changed": ("old", "new"), "created": (None, "4"), "deleted": ("old", None), "replaced": ("old", "new")}
    # and then it follows
    revision = await other.commit([Put(Claim(id="more"))])
    await wait_for(store, lambda s: s.revision >= revision, 5)
    assert [e.id for e in drain(watch)] == ["more"]
    await store.close()
    await other.close()


async def compact(etcds: Etcds, revision: int) -> None:
    channel = open_channel(etcds.endpoints[0], etcds.tls)
    await stubs.KVStub(channel).Compact(pb.CompactionRequest(revision=revision, physical=True), timeout=5)
    await channel.close()


async def test_a_restored_backup_is_noticed_although_revisions_go_back(etcds_of: Make) -> None:
    old, restored = etcds_of(1), etcds_of(1)
    store = await old.open()
    for i in range(5):
        await store.commit([Put(Claim(id=f"lost{i}"))])
    kept = await store.commit([Put(Claim(id="kept", owner="later"))])
    other = await restored.open()
    await other.commit([Put(Claim(id="kept", owner="earlier"))])
    assert other.snapshot().revision < kept
    watch = store.watch()
    # the same store finds the other cluster behind its endpoint
    store._channels = [open_channel(restored.endpoints[0], restored.tls)]
    store._stubs = [stubs.KVStub(store._channels[0])]
    old.kill(0)
    await eventually(lambda: contents(store.snapshot()) == contents(other.snapshot()))
    assert {e.id for e in drain(watch)} == {"kept", *(f"lost{i}" for i in range(5))}
    await store.commit([Put(Claim(id="goes on"))])
    await store.close()
    await other.close()


async def test_what_cannot_be_read_is_left_out_and_harms_nothing_else(etcds_of: Make) -> None:
    etcds = etcds_of(1)
    store = await etcds.open()
    await store.commit([Put(Claim(id="good", owner="a"))])
    channel = open_channel(etcds.endpoints[0], etcds.tls)
    kv = stubs.KVStub(channel)
    strange = [
        (b"/meshd/claim/broken", b"{"),
        (b"/meshd/volume/v", b"{}"),
        (b"/meshd/claim/", b"{}"),
        (b"/meshd/claim/good", b"[]"),
        (b"claim/unprefixed", b"{}"),
    ]
    # a key of somebody else comes last: it moves the revision without an event for us
    for key, value in strange:
        answer = await kv.Put(pb.PutRequest(key=key, value=value), timeout=5)
    assert await store.commit([Guard("claim", "good")]) == answer.header.revision
    revision = await store.commit([Put(Node(id="n", created_at=WHEN))])
    assert revision == answer.header.revision + 1
    # the watching store keeps the last readable state
    assert {claim.id: claim.owner for claim in store.snapshot().all(Claim)} == {"good": "a"}
    fresh = await etcds.open()
    assert fresh.snapshot().count(Claim) == 0 and fresh.snapshot().node("n") is not None
    with pytest.raises(Conflict):
        await fresh.commit([Put(Claim(id="broken"))])
    await channel.close()
    await store.close()
    await fresh.close()


async def test_the_largest_transaction_fits_and_a_larger_one_is_refused(etcds_of: Make) -> None:
    etcds = etcds_of(1)
    store, other = await etcds.open(timeout_s=20.0), await etcds.open()
    count = store.max_changes
    size = MAX_BYTES // count - 120
    revision = await store.commit([Put(Claim(id=f"{i:04}", owner="x" * size)) for i in range(count)])
    await wait_for(other, lambda s: s.revision >= revision, 10)
    assert other.snapshot().count(Claim) == count
    with pytest.raises(ValueError, match=f"at most {MAX_BYTES} bytes"):
        await store.commit([Put(Claim(id="one", owner="x" * MAX_BYTES))])
    await store.close()
    await other.close()


async def test_only_the_own_ca_opens_etcd(etcds_of: Make) -> None:
    etcds = etcds_of(1)
    store = await etcds.open()
    directory = etcds.configs[0].directory
    foreign = create_ca("another CA", WHEN)
    stranger = write_files(directory / "stranger", etcds.tls.ca.read_text(), issue(foreign, "stranger", [], WHEN))
    with pytest.raises(StoreUnavailable):
        await EtcdStore.open(etcds.endpoints, stranger, open_timeout_s=0.5)
    await store.close()


# ---- three members -----------------------------------------------------------------------------------------------------------


async def write_on(store: Store, id: str, timeout_s: float = 15.0) -> int:
    """Commit, again while the outcome is unknown."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            return await store.commit([Put(Claim(id=id))])
        except StoreUnavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
        except Conflict:
            # an earlier try got through
            seen = store.snapshot().claim(id)
            assert seen is not None
            return seen.version.index
        await asyncio.sleep(0.05)


async def test_three_members_write_on_without_the_leader_and_stop_without_quorum(etcds_of: Make) -> None:
    etcds = etcds_of(3)
    leader = await etcds.leader()
    followers = [i for i in range(3) if i != leader]
    everywhere = await etcds.open(leader, *followers, timeout_s=2.0)
    beside = [await etcds.open(i, timeout_s=2.0) for i in followers]
    watches = [store.watch() for store in (everywhere, *beside)]
    ids = [f"a{i}" for i in range(20)]
    for id in ids:
        await everywhere.commit([Put(Claim(id=id))])
    etcds.kill(leader)
    for i in range(20):
        ids.append(f"b{i}")
        await write_on(beside[i % 2], f"b{i}")
    # the one that was connected to the dead member fails over
    ids.append("c")
    last = await write_on(everywhere, "c")
    for store, watch in zip((everywhere, *beside), watches, strict=True):
        await wait_for(store, lambda s: s.revision >= last, 10)
        assert [e.id for e in drain(watch)] == ids
    # one of three is no quorum: no write, and the watch knows
    etcds.kill(followers[0])
    with pytest.raises(StoreUnavailable):
        await beside[1].commit([Put(Claim(id="no quorum"))])
    # a lagging or lonely member must not answer guards from its own past
    with pytest.raises(StoreUnavailable):
        await beside[1].commit([Guard("claim", "c", last)])
    with pytest.raises(StoreUnavailable):
        await beside[1].sync()
    await eventually(lambda: not beside[1].available, timeout_s=15, what="hasleader ends the watch")
    etcds.start(leader)
    etcds.start(followers[0])
    after = await write_on(beside[1], "healed")
    await wait_for(beside[0], lambda s: s.revision >= after, 15)
    await eventually(lambda: contents(beside[0].snapshot()) == contents(beside[1].snapshot()) == contents(everywhere.snapshot()))
    for store in (everywhere, *beside):
        await store.close()


async def test_a_write_lost_with_raft_s_leader_is_sent_again(etcds_of: Make) -> None:
    etcds = etcds_of(3)
    leader = await etcds.leader()
    beside = await etcds.open((leader + 1) % 3, timeout_s=10.0)
    etcds.kill(leader)
    revisions = await asyncio.gather(*(beside.commit([Put(Claim(id=f"k{i}"))]) for i in range(20)))
    assert {f"k{i}": revision for i, revision in enumerate(revisions)} == {
        claim.id: claim.version.index for claim in beside.snapshot().all(Claim)
    }
    assert {claim.id for claim in beside.snapshot().all(Claim)} == {f"k{i}" for i in range(20)}
    await beside.close()


async def test_a_write_whose_answer_was_lost_is_known_for_what_it_was(etcds_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored, but the answer never came: the second try finds the first, unless somebody else wrote over it: then nobody can say."""
    etcds = etcds_of(1)
    store = await etcds.open()
    other = await etcds.open()
    lost: list[int] = []

    async def call_and_lose(request: Awaitable[Any], what: str) -> Any:
        answer = await call(request, what)
        if what == "writing to etcd" and not lost:
            lost.append(int(answer.header.revision))
            raise StoreUnavailable("the answer was lost")
        return answer

    monkeypatch.setattr(etcd_module, "call", call_and_lose)
    assert await store.commit([Put(Claim(id="a", owner="me")), Put(Claim(id="b", owner="me"))]) == lost[0]
    lost.clear()
    assert await store.commit([Delete("claim", "b")]) >= lost[0]
    assert store.snapshot().claim("b") is None
    version = store.snapshot().claim("a").version  # type: ignore[union-attr]
    await other.commit([Put(Claim(id="a", owner="them", version=version))])
    lost.clear()
    with pytest.raises(StoreUnavailable, match="nobody can say whether it was stored"):
        await store.commit([Put(Claim(id="a", owner="me again", version=version))])
    # where what it would have replaced is still there it was not stored: no doubt, a conflict
    newest = store.snapshot().claim("a").version  # type: ignore[union-attr]
    lost.clear()
    with pytest.raises(Conflict, match="claim b"):
        await store.commit([Put(Claim(id="a", owner="me", version=newest)), Guard("claim", "b")])
    await store.close()
    await other.close()


async def test_a_member_that_tells_the_past_again_is_not_believed(etcds_of: Make) -> None:
    etcds = etcds_of(1)
    store = await etcds.open()
    await store.commit([Put(Claim(id="k", owner="1"))])
    revision = await store.commit([Put(Claim(id="k", owner="2", version=store.snapshot().claim("k").version))])  # type: ignore[union-attr]
    watch, before = store.watch(), store.snapshot()

    def told(owner: str, at: int) -> kv_pb2.Event:
        return kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"/meshd/claim/k", value=b'{"ID":"k","Owner":"%s"}' % owner.encode(), mod_revision=at))

    store._apply([told("1", revision - 1), told("2", revision)])
    assert store.snapshot() is before and drain(watch) == []
    store._apply([told("2", revision), told("3", revision + 1)])
    assert [(e.revision, e.new.owner) for e in drain(watch)] == [(revision + 1, "3")]  # type: ignore[union-attr]
    await store.close()


_FORKS = """
import asyncio
import orchestrator.store.etcd
import grpc.aio
import uvloop
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as stubs

async def main():
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    calls = [stubs.KVStub(channel).Range(pb.RangeRequest(key=b"x"), wait_for_ready=True, timeout=20) for _ in range(3)]
    await asyncio.sleep(0.2)
    for _ in range(5):
        await (await asyncio.create_subprocess_exec("true")).wait()
    for call in calls:
        call.cancel()
    await channel.close()

uvloop.run(main())
"""


def test_grpc_keeps_out_of_forks() -> None:
    """It would say that it skips its handlers, or now and then abort the child."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run([sys.executable, "-c", _FORKS], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
