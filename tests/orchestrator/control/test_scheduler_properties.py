"""The scheduler over generated clusters: the same outcome as task by task, strategies' promises, and a ledger that never forgets."""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control import ledger
from orchestrator.control.allocator import allocate
from orchestrator.control.columns import Branches
from orchestrator.control.filling import Candidates, fill
from orchestrator.control.ledger import Amounts, Ledger
from orchestrator.control.placement_labels import PRIORITY, STRATEGY, Strategy
from orchestrator.control.scheduler import schedule
from orchestrator.control.steps import applied
from orchestrator.model import (
    DiscreteGenericResource,
    GenericResource,
    NamedGenericResource,
    Node,
    Placement,
    PlacementPreference,
    ResourceObject,
    ResourceRequirements,
    SpreadOver,
    Task,
    TaskState,
    TaskStatus,
)
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control import one_by_one
from tests.orchestrator.control.clusters import GIB, cluster, context, node, port, service, snapshot, task, tasks

LABELS = st.fixed_dictionaries({}, optional={"zone": st.sampled_from("ab"), "rack": st.sampled_from("123"), "disk": st.just("ssd")})
NODES = st.lists(
    st.tuples(LABELS, st.integers(0, 5), st.integers(0, 5), st.integers(0, 3), st.sampled_from(["active"] * 4 + ["pause", "drain"])),
    max_size=7,
)
SERVICES = st.lists(
    st.fixed_dictionaries(
        {
            "count": st.integers(0, 9),
            "cpus": st.integers(0, 2),
            "memory": st.integers(0, 2),
            "gpus": st.sampled_from([0, 0, 0, 1, 2]),
            "port": st.sampled_from([0, 0, 0, 8080]),
            "max": st.sampled_from([0, 0, 0, 1, 3]),
            "constraints": st.sampled_from([None, None, ["node.labels.disk==ssd"], ["node.labels.zone!=a"]]),
            "preferences": st.sampled_from([[], [], ["zone"], ["zone", "rack"], ["rack"]]),
            "strategy": st.sampled_from(["spread", "spread", "binpack"]),
            "priority": st.sampled_from(["0", "0", "7"]),
            "running": st.lists(st.integers(0, 6), max_size=4),
        }
    ),
    min_size=1,
    max_size=4,
)


def made(nodes: list[tuple[dict[str, str], int, int, int, str]], services: list[dict[str, object]]) -> Snapshot:
    picture = snapshot(cluster())
    for number, (labels, cpus, memory, gpus, availability) in enumerate(nodes):
        cards = [GenericResource(named_resource_spec=NamedGenericResource(kind="gpu", value=f"g{card}")) for card in range(gpus)]
        one = node(f"n{number}", labels=labels, cpus=cpus, memory_gib=memory, availability=availability)
        resources = msgspec.structs.replace(one.description.resources, generic_resources=cards)
        picture = picture.with_object(
            msgspec.structs.replace(one, description=msgspec.structs.replace(one.description, resources=resources))
        )
    # where something runs, priorities would displace it: that is another test's business
    plain = any(wish["running"] for wish in services)
    for number, wish in enumerate(services):
        ports = [port(80, wish["port"], mode="host")] if wish["port"] else []  # type: ignore[arg-type]
        of = service(f"s{number}", ports=ports, labels={STRATEGY: str(wish["strategy"]), PRIORITY: "0" if plain else str(wish["priority"])})
        gpus = [GenericResource(discrete_resource_spec=DiscreteGenericResource(kind="gpu", value=wish["gpus"]))]  # type: ignore[arg-type]
        reserved = ResourceObject(
            nano_cpus=int(wish["cpus"]) * 10**9,
            memory_bytes=int(wish["memory"]) * GIB,
            generic_resources=gpus if wish["gpus"] else None,  # type: ignore[call-overload]
        )
        placement = Placement(
            constraints=wish["constraints"],  # type: ignore[arg-type]
            max_replicas=wish["max"],  # type: ignore[arg-type]
            preferences=[PlacementPreference(spread=SpreadOver(spread_descriptor=f"node.labels.{label}")) for label in wish["preferences"]],  # type: ignore[attr-defined]
        )
        template = msgspec.structs.replace(
            of.spec.task_template, resources=ResourceRequirements(reservations=reserved), placement=placement
        )
        of = msgspec.structs.replace(of, spec=msgspec.structs.replace(of.spec, task_template=template))
        picture = picture.with_object(of)
        # what is there already need not fit: nodes shrink, labels change
        for slot, place in enumerate(wish["running"], start=100):  # type: ignore[arg-type, var-annotated]
            if not wish["gpus"]:
                picture = picture.with_object(task(of, slot, node_id=f"n{place}", state=TaskState.RUNNING))
        for one_task in tasks(of, int(wish["count"]), state=TaskState.PENDING):  # type: ignore[call-overload]
            picture = picture.with_object(one_task)
    return picture


@settings(max_examples=400, deadline=None)
@given(NODES, SERVICES)
def test_the_outcome_is_that_of_placing_one_by_one(nodes, services) -> None:  # type: ignore[no-untyped-def]
    picture = made(nodes, services)
    expected = one_by_one.placements(picture)
    steps = schedule(picture, context()).steps
    done = applied(picture, steps)
    found = {one.id: one.node_id for one in done.all(Task) if one.status.state is TaskState.ASSIGNED}
    assert found == expected
    # no card is given twice
    for member in done.all(Node):
        cards = [card for one in done.tasks_of_node(member.id) for card in one.generic_resources or ()]
        assert all(card.named_resource_spec for card in cards)
        assert len(cards) == len({card.named_resource_spec.value for card in cards if card.named_resource_spec})


@settings(max_examples=150, deadline=None)
@given(NODES, SERVICES, st.data())
def test_a_ledger_that_followed_equals_one_made_anew(nodes, services, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    """Whatever happens, also on pictures that are thrown away again."""
    picture = made(nodes, services)
    following = Ledger(picture)
    for _ in range(data.draw(st.integers(1, 4))):
        branch = applied(picture, schedule(picture, context()).steps)
        if data.draw(st.booleans()):
            following.follow(branch)
        if data.draw(st.booleans()):
            picture = branch
        for one in sorted(picture.all(Task), key=lambda one: one.id):
            fate = data.draw(st.sampled_from(["", "", "failed", "stop", "gone"]))
            if fate == "failed":
                picture = picture.with_object(msgspec.structs.replace(one, status=TaskStatus(state=TaskState.FAILED)))
            elif fate == "stop":
                picture = picture.with_object(msgspec.structs.replace(one, desired_state=TaskState.SHUTDOWN))
            elif fate == "gone":
                picture = picture.without_object("task", one.id)
        for member in sorted(picture.all(Node), key=lambda member: member.id):
            fate = data.draw(st.sampled_from(["", "", "down", "smaller", "gone", "labelled"]))
            if fate == "down":
                picture = picture.with_object(msgspec.structs.replace(member, status=msgspec.structs.replace(member.status, state="down")))
            elif fate == "smaller":
                description = msgspec.structs.replace(member.description, resources=ResourceObject(nano_cpus=10**9))
                picture = picture.with_object(msgspec.structs.replace(member, description=description))
            elif fate == "labelled":
                picture = picture.with_object(
                    msgspec.structs.replace(member, spec=msgspec.structs.replace(member.spec, labels={"zone": "b"}))
                )
            elif fate == "gone":
                picture = picture.without_object("node", member.id)
        following.follow(picture)
        assert shown(following) == shown(Ledger(picture))


def shown(of: Ledger) -> object:
    def amounts(of: Amounts) -> object:
        return of.nano_cpus.tolist(), of.memory_bytes.tolist(), {kind: left.tolist() for kind, left in of.generic.items() if left.any()}

    return (
        of.ids,
        of.nodes,
        of.takes.tolist(),
        amounts(of.free),
        amounts(of.total),
        of.active.tolist(),
        of.replicas,
        {used: counts for used, counts in of.ports.items() if counts},
        {network: mask.tolist() for network, mask in of.members.items() if mask.any()},
        {service_id: failed for service_id, failed in of.failed.items() if failed},
    )


def test_a_ledger_follows_addresses_too() -> None:
    """Networks that nodes join and leave."""
    from tests.orchestrator.control.clusters import network

    of = service("s", networks=["a"])
    picture = snapshot(cluster(), network("a", "10.1.0.0/24"), node("n1"), node("n2"), of, *tasks(of, 3))
    following = Ledger(picture)
    for _ in range(3):
        for loop in (allocate, schedule):
            picture = applied(picture, loop(picture, context()).steps)
            following.follow(picture)
            assert shown(following) == shown(Ledger(picture))
    assert following.members["a"].all()


# ---- filling: small scopes, all of them ----------------------------------------------------------------------------------------


def dealt(count: int, room: list[int], replicas: list[int], active: list[int], branch: list[int], binpack: bool) -> list[int]:
    """One by one, into the branch and then the node with the fewest (or the fullest node)."""
    room, replicas, active, seats = list(room), list(replicas), list(active), []
    for _ in range(count):
        open_nodes = [index for index in range(len(room)) if room[index] > 0]
        if not open_nodes:
            break
        counts = Counter[int]()
        for index, have in enumerate(replicas):
            counts[branch[index]] += have
        chosen = min({branch[index] for index in open_nodes}, key=lambda one: (counts[one], one))
        inside = [index for index in open_nodes if branch[index] == chosen]
        key = (lambda index: (-active[index], index)) if binpack else (lambda index: (replicas[index], active[index], index))
        node_index = min(inside, key=key)
        seats.append(node_index)
        room[node_index] -= 1
        replicas[node_index] += 1
        active[node_index] += 1
    return seats


@pytest.mark.parametrize("strategy", ["spread", "binpack"])
@pytest.mark.parametrize("branch", [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 0, 1]])
def test_filling_three_nodes_in_every_way(strategy: Strategy, branch: list[int]) -> None:
    for room, replicas, extra in itertools.product(
        itertools.product(range(3), repeat=3), itertools.product(range(3), repeat=3), [(0, 0, 0), (2, 1, 0), (0, 3, 0)]
    ):
        active = [have + more for have, more in zip(replicas, extra, strict=True)]
        nodes = np.flatnonzero(np.array(room) > 0)
        arrays = [np.array(values, dtype=np.int64) for values in (room, replicas, active)]
        candidates = Candidates(
            nodes=nodes, room=arrays[0][nodes], replicas=arrays[1][nodes], active=arrays[2][nodes], fullness=np.zeros(len(nodes), np.int64),
            all_replicas=arrays[1],
        )  # fmt: skip
        tree = [Branches(np.array(branch), np.zeros(max(branch) + 1, dtype=np.int64))]
        expected = dealt(5, list(room), list(replicas), active, branch, strategy == "binpack")
        assert fill(5, candidates, strategy, tree).tolist() == expected, (room, replicas, active)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(0, 40), st.integers(0, 2**32), st.integers(1, 3))
def test_random_uses_only_room_and_all_of_it_and_balances_branches(room: list[int], count: int, seed: int, zones: int) -> None:
    rooms = np.array(room, dtype=np.int64)
    nodes = np.flatnonzero(rooms > 0)
    nothing = np.zeros(len(room), dtype=np.int64)
    branch = np.arange(len(room), dtype=np.int64) % zones
    tree = [Branches(branch, np.zeros(zones, dtype=np.int64))]
    candidates = Candidates(nodes, rooms[nodes], nothing[nodes], nothing[nodes], nothing[nodes], nothing)
    seats = fill(count, candidates, "random", tree, seed)
    assert seats.tolist() == fill(count, candidates, "random", tree, seed).tolist()
    assert len(seats) == min(count, sum(room))
    got = np.bincount(seats, minlength=len(room))
    assert (got <= rooms).all()
    per_zone, most = np.bincount(branch, weights=got, minlength=zones), np.bincount(branch, weights=rooms, minlength=zones)
    open_zones = per_zone[per_zone < most]
    assert not len(open_zones) or per_zone.max() - open_zones.min() <= 1


def test_random_reaches_every_node() -> None:
    nothing = np.zeros(4, dtype=np.int64)
    candidates = Candidates(np.arange(4), np.full(4, 1000), nothing, nothing, nothing, nothing)
    # the chance to miss a node 400 times is below 1e-49
    assert set(fill(400, candidates, "random", (), 7).tolist()) == {0, 1, 2, 3}


def test_a_fresh_process_decides_the_same() -> None:
    of = service("s", cpus=1)
    picture = snapshot(cluster(), *(node(f"n{number}") for number in range(5)), of, *tasks(of, 7, state=TaskState.PENDING))
    first = schedule(picture, context()).steps
    ledger.RESIDENT.forget()
    assert schedule(picture, context()).steps == first
