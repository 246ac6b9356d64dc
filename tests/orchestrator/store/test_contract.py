"""What every store promises: the same tests on the one in memory and on a real etcd."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import UTC, datetime

import msgspec
import pytest

from orchestrator.errors import Compacted, Conflict, StoreUnavailable
from orchestrator.model import (
    KIND_OF,
    KINDS,
    Claim,
    Cluster,
    Config,
    Leadership,
    Network,
    NetworkAttachment,
    NetworkReference,
    Node,
    NodeSpec,
    Object,
    Secret,
    SecretSpec,
    Service,
    ServiceSpec,
    Stack,
    StackParts,
    StackRevision,
    Task,
    TaskState,
    TaskStatus,
    Version,
)  # fmt: skip
from orchestrator.store import Change, Delete, Event, Guard, Put, Snapshot, Store, wait_for
from orchestrator.store.memory import MemoryStore
from orchestrator.store.subscription import Subscription, at_changes
from tests.orchestrator.store.conftest import Opener
from tests.orchestrator.store.etcds import Etcds

WHEN = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)


def at(obj: Object, index: int) -> Object:
    return msgspec.structs.replace(obj, version=Version(index=index))


def task(id: str, *, service: str = "", node: str = "", networks: tuple[str, ...] = (), index: int = 0) -> Task:
    attachments = [NetworkAttachment(network=NetworkReference(id=n), addresses=["10.0.1.5/24"]) for n in networks]
    return Task(id=id, version=Version(index=index), service_id=service, node_id=node, networks_attachments=attachments or None)


def contents(snapshot: Snapshot) -> dict[tuple[str, str], Object]:
    return {(kind, id): obj for kind, table in snapshot.tables.items() for id, obj in table.items()}


def check_indexes(snapshot: Snapshot) -> None:
    """The indexes are what a look at every task gives."""
    expected: dict[str, dict[str, set[str]]] = {"service": {}, "node": {}, "network": {}}
    for t in snapshot.all(Task):
        for index, key in [("service", t.service_id), ("node", t.node_id)]:
            if key:
                expected[index].setdefault(key, set()).add(t.id)
        for attachment in t.networks_attachments or ():
            expected["network"].setdefault(attachment.network.id, set()).add(t.id)
    actual = {
        "service": {key: set(ids) for key, ids in snapshot.tasks_by_service.items()},
        "node": {key: set(ids) for key, ids in snapshot.tasks_by_node.items()},
        "network": {key: set(ids) for key, ids in snapshot.tasks_by_network.items()},
    }
    assert actual == expected


async def read(watch: object, until: int) -> list[Event]:
    """All events up to a revision; each batch's snapshot must be what the events say."""
    assert isinstance(watch, Subscription)
    events: list[Event] = []
    async with asyncio.timeout(10):
        while not events or events[-1].revision < until:
            snapshot, batch = await anext(watch)
            events += batch
            assert snapshot.revision >= batch[-1].revision
            last = {(e.kind, e.id): e.new for e in batch}
            for (kind, id), new in last.items():
                assert snapshot.raw(kind, id) == new
    return events


# ---- one writer -----------------------------------------------------------------------------------------------------------


async def test_a_created_object_has_the_revision_as_its_version(store: Store) -> None:
    before = store.snapshot()
    revision = await store.commit([Put(Node(id="a", created_at=WHEN)), Put(Service(id="s"))])
    assert revision == store.snapshot().revision == before.revision + 1
    assert store.snapshot().node("a") == Node(id="a", created_at=WHEN, version=Version(index=revision))
    assert store.snapshot().service("s") == Service(id="s", version=Version(index=revision))
    assert before.node("a") is None


async def test_a_replaced_object_moves_to_the_new_revision_and_old_snapshots_stay(store: Store) -> None:
    first = await store.commit([Put(Node(id="a")), Put(Node(id="b"))])
    old = store.snapshot()
    second = await store.commit([Put(Node(id="a", version=Version(index=first), spec=NodeSpec(role="manager")))])
    now = store.snapshot()
    assert second == first + 1
    assert now.node("a") == Node(id="a", version=Version(index=second), spec=NodeSpec(role="manager"))
    assert now.node("b") == Node(id="b", version=Version(index=first))
    assert old.node("a") == Node(id="a", version=Version(index=first)) and old.revision == first


@pytest.mark.parametrize("index", ["exact", "any"])
async def test_delete(store: Store, index: str) -> None:
    first = await store.commit([Put(Claim(id="service/web", owner="s"))])
    revision = await store.commit([Delete("claim", "service/web", first if index == "exact" else 0)])
    assert revision == first + 1 == store.snapshot().revision
    assert store.snapshot().claim("service/web") is None


async def test_deleting_what_is_not_there_writes_nothing(store: Store) -> None:
    first = await store.commit([Put(Node(id="a"))])
    assert await store.commit([Delete("node", "nobody")]) == first
    assert store.snapshot().revision == first


async def test_an_id_is_free_again_after_its_deletion(store: Store) -> None:
    await store.commit([Put(Claim(id="x", owner="one"))])
    await store.commit([Delete("claim", "x")])
    revision = await store.commit([Put(Claim(id="x", owner="two"))])
    assert store.snapshot().claim("x") == Claim(id="x", owner="two", version=Version(index=revision))


async def test_guards_alone_check_and_tell_the_revision(store: Store) -> None:
    revision = await store.commit([Put(Node(id="a"))])
    assert await store.commit([Guard("node", "a", revision), Guard("node", "a"), Guard("node", "b", -1)]) == revision
    assert await store.commit([]) == revision
    assert store.snapshot().revision == revision


# Every single change against every state of its key: does it conflict?
STATES = ["absent", "present", "deleted"]
INDEXES = ["zero", "current", "older", "newer", "minus one"]
CASES = [
    (change, state, index)
    for change, state, index in itertools.product(["put", "delete", "guard"], STATES, INDEXES)
    if not (index == "minus one" and change != "guard") and not (index == "current" and state != "present")
]


def allowed(change: str, state: str, index: str) -> bool:
    present = state == "present"
    if index == "current":
        return True
    if index in ("older", "newer"):
        return False
    if change == "put":
        return not present
    if change == "delete":
        return True
    return present if index == "zero" else not present


@pytest.mark.parametrize(("change", "state", "index"), CASES)
async def test_conditions_exhaustively(store: Store, change: str, state: str, index: str) -> None:
    older = await store.commit([Put(Claim(id="k", owner="first"))])
    current = await store.commit([Put(Claim(id="k", owner="second", version=Version(index=older)))])
    if state != "present":
        await store.commit([Delete("claim", "k")])
    key = "k" if state != "absent" else "never"
    number = {"zero": 0, "current": current, "older": older, "newer": current + 1000, "minus one": -1}[index]
    tried: Change
    match change:
        case "put":
            tried = Put(Claim(id=key, owner="third", version=Version(index=number)))
        case "delete":
            tried = Delete("claim", key, number)
        case _:
            tried = Guard("claim", key, number)
    before = store.snapshot()
    companion = Put(Node(id="companion"))
    if allowed(change, state, index):
        revision = await store.commit([companion, tried])
        after = store.snapshot()
        assert after.revision == revision == before.revision + 1
        assert after.node("companion") is not None
        if change == "put":
            assert after.claim(key) == Claim(id=key, owner="third", version=Version(index=revision))
        if change == "delete":
            assert after.claim(key) is None
    else:
        with pytest.raises(Conflict, match=key):
            await store.commit([companion, tried])
        # all or nothing
        assert contents(store.snapshot()) == contents(before)
        assert store.snapshot().revision == before.revision


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([Put(Node(id="a")), Put(Node(id="a"))], "node a is written twice"),
        ([Put(Node(id="a")), Delete("node", "a")], "node a is written twice"),
        ([Put(Node(id=""))], "needs an id"),
        ([Delete("node", "")], "needs an id"),
        ([Guard("node", "a", -1)] * 2001, "at most 2000 changes, this one has 2001"),
    ],
)
async def test_what_can_never_be_committed_is_refused(store: Store, changes: list[Change], sentence: str) -> None:
    before = store.snapshot()
    with pytest.raises(ValueError, match=sentence):
        await store.commit(changes)
    assert store.snapshot() is before


async def test_a_guard_may_name_a_key_that_is_written_too(store: Store) -> None:
    first = await store.commit([Put(Node(id="a"))])
    await store.commit([Guard("node", "a", first), Put(Node(id="a", version=Version(index=first)))])
    with pytest.raises(Conflict):
        await store.commit([Guard("node", "a", -1), Delete("node", "a")])
    assert store.snapshot().node("a") is not None


async def test_every_kind_comes_back_as_it_went_in(open_store: Opener) -> None:
    store, other = await open_store(), await open_store()
    objects: list[Object] = [
        Cluster(id="c", mesh_secret_key=b"\0\xff", created_at=WHEN, default_addr_pool=["10.0.0.0/8"]),
        Leadership(node_id="n", addr="10.0.0.1:2377", renewed_at=WHEN),
        Node(id="n", spec=NodeSpec(labels={"zone": "ä/1"})),
        Service(id="s", spec=ServiceSpec(name="web")),
        task("t", service="s", node="n", networks=("net1", "net2")),
        Network(id="net1", created_at=WHEN, options={"a": ""}),
        Secret(id="x", spec=SecretSpec(name="pw"), mesh_ciphertext=bytes(range(256))),
        Config(id="y", spec=SecretSpec(data="aGk=")),
        Claim(id="port/tcp/8080", owner="s"),
        Stack(id="shop", current=StackRevision(number=2, compose="a: 1", parts=StackParts(services=[ServiceSpec(name="web")]))),
    ]
    assert {KIND_OF[type(obj)] for obj in objects} == set(KINDS)
    revision = await store.commit([Put(obj) for obj in objects])
    expected = {(KIND_OF[type(obj)], obj.id): at(obj, revision) for obj in objects}
    assert contents(store.snapshot()) == expected
    seen = await wait_for(other, lambda s: s.revision >= revision, 5)
    assert contents(seen) == expected
    # one that opens later lists instead of watching
    assert contents((await open_store()).snapshot()) == expected


async def test_a_whole_transaction_is_one_revision(open_store: Opener) -> None:
    store, other = await open_store(), await open_store()
    watch = other.watch()
    changes: list[Change] = [Put(task(f"t{i}", service=f"s{i % 7}", node=f"n{i % 11}")) for i in range(store.max_changes)]
    revision = await store.commit(changes)
    events = await read(watch, revision)
    assert {e.revision for e in events} == {revision} and len(events) == store.max_changes
    check_indexes(other.snapshot())
    await store.commit([Delete("task", f"t{i}", revision) for i in range(store.max_changes)])
    assert store.snapshot().count(Task) == 0
    check_indexes(store.snapshot())


async def test_more_objects_than_a_page_are_listed_at_one_revision(open_store: Opener) -> None:
    store = await open_store()
    for part in range(3):
        await store.commit([Put(Claim(id=f"c{part}/{i}")) for i in range(1500)])
    assert contents((await open_store()).snapshot()) == contents(store.snapshot())
    assert store.snapshot().count(Claim) == 4500


# ---- watching -------------------------------------------------------------------------------------------------------------


async def test_a_watch_begins_at_the_call(store: Store) -> None:
    await store.commit([Put(Claim(id="before"))])
    watch = store.watch()
    revision = await store.commit([Put(Claim(id="after"))])
    events = await read(watch, revision)
    assert [(e.kind, e.id, e.revision, e.old, e.new) for e in events] == [
        ("claim", "after", revision, None, Claim(id="after", version=Version(index=revision)))
    ]


async def test_events_tell_old_and_new(store: Store) -> None:
    watch = store.watch()
    first = await store.commit([Put(Claim(id="k", owner="a"))])
    second = await store.commit([Put(Claim(id="k", owner="b", version=Version(index=first)))])
    third = await store.commit([Delete("claim", "k", second)])
    a, b = Claim(id="k", owner="a", version=Version(index=first)), Claim(id="k", owner="b", version=Version(index=second))
    assert await read(watch, third) == [
        Event("claim", "k", first, None, a),
        Event("claim", "k", second, a, b),
        Event("claim", "k", third, b, None),
    ]


async def test_a_cancelled_reader_loses_nothing(store: Store) -> None:
    watch = store.watch()
    assert isinstance(watch, Subscription)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(watch), 0.05)
    revision = await store.commit([Put(Claim(id="k"))])
    assert [e.id for e in await read(watch, revision)] == ["k"]


async def test_a_watch_ends_when_the_store_is_closed_and_commits_are_refused(store: Store) -> None:
    watch = store.watch()
    await store.commit([Put(Claim(id="last"))])
    await store.close()
    assert [[e.id for e in events] async for _, events in watch] == [["last"]]
    with pytest.raises(StoreUnavailable):
        await store.commit([Put(Claim(id="too late"))])
    with pytest.raises(StoreUnavailable):
        await store.sync()
    assert not store.available
    assert [events async for _, events in store.watch()] == []


async def test_a_synced_store_shows_what_was_acknowledged_at_another(open_store: Opener) -> None:
    one, other = await open_store(), await open_store()
    for i in range(20):
        await one.commit([Put(Claim(id=f"c{i}"))])
        await other.sync()
        assert other.snapshot().claim(f"c{i}") is not None
    assert one.available and other.available


@pytest.mark.parametrize("backend", ["memory", "etcd"])
async def test_a_reader_that_falls_behind_is_told_to_list_again(backend: str, request: pytest.FixtureRequest) -> None:
    etcds: Etcds = request.getfixturevalue("etcd")
    store: Store = MemoryStore(max_backlog=10) if backend == "memory" else await etcds.open(max_backlog=10)
    slow, fast = store.watch(), store.watch()
    assert isinstance(slow, Subscription) and isinstance(fast, Subscription)
    for i in range(11):
        await store.commit([Put(Claim(id=f"backlog{i}")), Delete("claim", f"backlog{i - 1}")] if i == 5 else [Put(Claim(id=f"backlog{i}"))])
        _, batch = await anext(fast)
        assert f"backlog{i}" in {e.id for e in batch}
    with pytest.raises(Compacted):
        await anext(slow)
    with pytest.raises(Compacted):
        await anext(slow)
    await store.commit([Delete("claim", f"backlog{i}") for i in range(11)])
    await store.close()


async def test_wait_for(store: Store) -> None:
    async def later() -> None:
        await asyncio.sleep(0.01)
        await store.commit([Put(Claim(id="k"))])

    writer = asyncio.create_task(later())
    assert (await wait_for(store, lambda s: s.claim("k") is not None, 5)).claim("k")
    await writer
    assert await wait_for(store, lambda s: s.claim("k") is not None, 0) is store.snapshot()
    with pytest.raises(TimeoutError):
        await wait_for(store, lambda s: s.claim("never") is not None, 0.05)


async def test_at_changes_looks_again_after_what_it_asked_for_and_after_what_it_missed() -> None:
    store = MemoryStore(max_backlog=2)
    seen: list[int] = []

    async def step() -> None:
        seen.append(len(store.snapshot().tables.get("claim", {})))
        if len(seen) == 1:
            # more than it may be behind, and nothing that it asked for
            for number in range(3):
                await store.commit([Put(Claim(id=str(number)))])

    following = asyncio.create_task(at_changes(store, {"node"}, step))
    async with asyncio.timeout(5):
        while len(seen) < 2:
            await asyncio.sleep(0)
        await store.commit([Delete("claim", "0")])
        await store.commit([Put(Node(id="n"))])
        while len(seen) < 3:
            await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreUnavailable):
            await following
    assert seen == [0, 3, 2]


# ---- many writers -----------------------------------------------------------------------------------------------------------


async def test_concurrent_increments_are_all_counted(open_store: Opener) -> None:
    """The optimistic loop `read, commit, on Conflict again` from two managers: no increment is lost, a retry sees what beat it."""
    stores = [await open_store(), await open_store()]
    await stores[0].commit([Put(Claim(id="counter", owner="0"))])
    await wait_for(stores[1], lambda s: s.claim("counter") is not None, 5)

    async def increment(store: Store, times: int) -> int:
        retries = 0
        while times:
            seen = store.snapshot().claim("counter")
            assert seen is not None
            try:
                await store.commit([Put(msgspec.structs.replace(seen, owner=str(int(seen.owner) + 1)))])
                times -= 1
            except Conflict:
                now = store.snapshot().claim("counter")
                assert now is not None and now.version.index > seen.version.index
                retries += 1
        return retries

    retries = await asyncio.gather(*(increment(stores[i % 2], 10) for i in range(8)))
    final = stores[0].snapshot().claim("counter")
    assert final is not None and final.owner == "80"
    assert sum(retries) > 0


async def test_exactly_one_of_many_takes_a_name(open_store: Opener) -> None:
    stores = [await open_store(), await open_store()]
    results = await asyncio.gather(
        *(stores[i % 2].commit([Put(Claim(id="name", owner=str(i)))]) for i in range(20)), return_exceptions=True
    )
    won = [i for i, result in enumerate(results) if isinstance(result, int)]
    assert len(won) == 1 and sum(isinstance(result, Conflict) for result in results) == 19
    claim = stores[won[0] % 2].snapshot().claim("name")
    assert claim is not None and claim.owner == str(won[0])


@pytest.mark.parametrize("seed", range(4))
async def test_watchers_see_every_write_in_order_under_concurrent_writers(open_store: Opener, seed: int) -> None:
    """Random writers on two managers; a watcher on each rebuilds the state from events alone: equal to the snapshot at every batch."""
    stores = [await open_store(), await open_store()]
    rng = random.Random(seed)
    watches = [store.watch() for store in stores]
    starts = [contents(store.snapshot()) for store in stores]
    committed: list[int] = []

    async def writer(store: Store) -> None:
        for _ in range(25):
            changes: list[Change] = []
            for id in rng.sample("abcdef", rng.randint(1, 4)):
                existing = store.snapshot().task(id)
                index = existing.version.index if existing else 0
                if existing and rng.random() < 0.3:
                    changes.append(Delete("task", id, index))
                else:
                    new = task(
                        id, service=rng.choice(["", "s1", "s2"]), node=rng.choice(["", "n1"]), networks=("x", "y")[: rng.randint(0, 2)]
                    )
                    changes.append(Put(at(new, index)))
            try:
                revision = await store.commit(changes)
            except Conflict:
                continue
            committed.append(revision)
            # read your writes: this write shows, or one of another writer that came after it
            snapshot = store.snapshot()
            assert snapshot.revision >= revision
            for change in changes:
                mine = snapshot.task(change.obj.id if isinstance(change, Put) else change.id)
                if mine is not None:
                    assert mine.version.index >= revision
                else:
                    assert isinstance(change, Delete) or snapshot.revision > revision

    await asyncio.gather(*(writer(stores[i % 2]) for i in range(6)))
    last = max(committed)
    for store, watch, state in zip(stores, watches, starts, strict=True):
        assert isinstance(watch, Subscription)
        await wait_for(store, lambda s: s.revision >= last, 5)
        revisions: list[int] = []
        while not revisions or revisions[-1] < last:
            snapshot, batch = await anext(watch)
            for event in batch:
                assert state.get((event.kind, event.id)) == event.old
                if event.new is None:
                    del state[event.kind, event.id]
                else:
                    assert event.new.version.index == event.revision
                    state[event.kind, event.id] = event.new
                revisions.append(event.revision)
            assert state == contents(snapshot)
            check_indexes(snapshot)
        assert revisions == sorted(revisions)
        assert set(revisions) == set(committed)
        assert state == contents(store.snapshot())


async def test_status_enums_and_times_survive(open_store: Opener) -> None:
    store, other = await open_store(), await open_store()
    sent = Task(id="t", status=TaskStatus(timestamp=WHEN, state=TaskState.FAILED, err="exit 1"), mesh_run_at=WHEN)
    revision = await store.commit([Put(sent)])
    received = (await wait_for(other, lambda s: s.task("t") is not None, 5)).task("t")
    assert received == at(sent, revision) and received is not None and isinstance(received.status.state, TaskState)
