"""Preemption: who is displaced, who never is, and that the place goes to whom it was promised."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control.allocator import allocate
from orchestrator.control.drain import drain
from orchestrator.control.placement_labels import PRIORITY
from orchestrator.control.replicated import replicated
from orchestrator.control.scheduler import schedule
from orchestrator.control.slots import wanted
from orchestrator.control.steps import applied
from orchestrator.model import ReplicatedService, Service, ServiceMode, Task, TaskState, TaskStatus, terminal
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.clusters import cluster, context, node, port, run, service, snapshot, task, tasks

RUNNING, PENDING = TaskState.RUNNING, TaskState.PENDING


def rated(id: str, priority: int, cpus: float = 0, **fields: object) -> Service:
    return service(id, cpus=cpus, labels={PRIORITY: str(priority)}, **fields)  # type: ignore[arg-type]


def displaced(picture: Snapshot) -> set[str]:
    return {one.id for one in picture.all(Task) if not wanted(one)}


def test_a_task_of_higher_priority_displaces_the_fewest_and_says_where() -> None:
    low, high = rated("low", 0, cpus=2), rated("high", 5, cpus=3)
    here = [task(low, slot, node_id=id, state=RUNNING) for slot, id in enumerate(["n1", "n1", "n2", "n2"], start=1)]
    picture = run(snapshot(node("n1", cpus=4), node("n2", cpus=5), low, high, *here, task(high, 1, state=PENDING)), schedule)
    # on n2 one CPU is free: one victim is enough there, the younger of two alike
    assert len(displaced(picture)) == 1 and displaced(picture) <= {"low-3-n2", "low-4-n2"}
    waiting = picture.task("high-1")
    assert waiting is not None and waiting.status.state is PENDING
    assert waiting.status.err == (
        "no suitable node (insufficient resources on 2 nodes: 2 lack 3 CPUs); tasks of lower priority make way on node host-n2"
    )
    victim = picture.task(next(iter(displaced(picture))))
    assert victim is not None and victim.mesh_draining_since is not None and not victim.mesh_released


@pytest.mark.parametrize(("priority", "expected"), [(0, 0), (1, 0), (2, 1)])
def test_equal_or_higher_priority_is_never_displaced(priority: int, expected: int) -> None:
    other, mine = rated("other", 1, cpus=4), rated("mine", priority, cpus=4)
    # a service of the lowest priority of all, so that it is not the absence of anything lower that decides
    picture = snapshot(node("n"), rated("idle", -9), other, mine, task(other, 1, node_id="n", state=RUNNING), task(mine, 1, state=PENDING))
    assert len(displaced(run(picture, schedule))) == expected


def test_the_dearest_victim_decides_before_the_number() -> None:
    cheap, dear, high = rated("cheap", 0, cpus=1), rated("dear", 1, cpus=2), rated("high", 5, cpus=2)
    here = [
        task(cheap, 1, node_id="n1", state=RUNNING),
        task(cheap, 2, node_id="n1", state=RUNNING),
        task(dear, 1, node_id="n2", state=RUNNING),
    ]
    picture = run(snapshot(node("n1", cpus=2), node("n2", cpus=2), cheap, dear, high, *here, task(high, 1, state=PENDING)), schedule)
    assert displaced(picture) == {"cheap-1-n1", "cheap-2-n1"}


def test_a_host_port_is_freed_by_its_holder_alone() -> None:
    low, high = rated("low", 0, ports=[port(80, 8080, mode="host")]), rated("high", 1, ports=[port(80, 8080, mode="host")])
    bystander = rated("bystander", 0, cpus=1)
    here = [task(low, 1, node_id="n", state=RUNNING), task(bystander, 1, node_id="n", state=RUNNING)]
    picture = run(snapshot(node("n"), low, high, bystander, *here, *tasks(high, 2, state=PENDING)), schedule)
    assert displaced(picture) == {"low-1-n"}


def test_what_nobody_could_give_back_displaces_nobody() -> None:
    low, high = rated("low", 0, cpus=4), rated("high", 9, cpus=4, constraints=["node.labels.disk==ssd"])
    limited = rated("limited", 9, cpus=1, max_replicas=1)
    here = [task(low, 1, node_id="n", state=RUNNING)]
    assert not displaced(run(snapshot(node("n"), low, high, *here, task(high, 1, state=PENDING)), schedule))
    full = [task(limited, 1, node_id="n", state=RUNNING), task(low, 1, node_id="n", state=RUNNING)]
    assert not displaced(run(snapshot(node("n"), low, limited, *full, task(limited, 2, state=PENDING)), schedule))
    assert not displaced(run(snapshot(node("n", availability="pause"), low, high, *here, task(high, 1, state=PENDING)), schedule))


def test_a_global_task_displaces_on_its_own_node_only() -> None:
    low, high = rated("low", 0, cpus=4), rated("high", 1, cpus=1)
    here = [task(low, 1, node_id="n1", state=RUNNING), task(low, 2, node_id="n2", state=RUNNING)]
    picture = run(snapshot(node("n1"), node("n2"), low, high, *here, task(high, 0, node_id="n2", state=PENDING)), schedule)
    assert displaced(picture) == {"low-2-n2"}


def ended(picture: Snapshot, victims: set[str]) -> Snapshot:
    for id in victims:
        one = picture.task(id)
        assert one is not None
        picture = picture.with_object(msgspec.structs.replace(one, status=TaskStatus(state=TaskState.SHUTDOWN)))
    return picture


def test_the_place_goes_to_whom_it_was_promised_although_the_victims_end_one_by_one() -> None:
    """The displaced service's own replacements wait beside it and would fit as soon as the first victim has ended."""
    low, high = rated("low", 0, cpus=1), rated("high", 1, cpus=3)
    low = msgspec.structs.replace(low, spec=msgspec.structs.replace(low.spec, mode=ServiceMode(replicated=ReplicatedService(replicas=4))))
    here = [task(low, slot, node_id="n", state=RUNNING) for slot in range(1, 5)]
    picture = snapshot(cluster(), node("n", cpus=4), low, high, *here, task(high, 1, state=PENDING))
    loops = (drain, replicated, allocate, schedule)
    ctx = context()
    for loop in loops:
        picture = applied(picture, loop(picture, ctx).steps)
    victims = displaced(picture)
    assert len(victims) == 3
    for count in range(1, 4):
        picture = ended(picture, set(sorted(victims)[:count]))
        for _ in range(2):
            for loop in loops:
                picture = applied(picture, loop(picture, ctx).steps)
        assert displaced(picture) == victims, "nobody else is displaced for it"
        placed = {one.id for one in picture.all(Task) if one.node_id and wanted(one) and one.id not in {old.id for old in here}}
        assert placed == ({"high-1"} if count == 3 else set())


SIZES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 2)), max_size=5)


@settings(max_examples=400, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(0, 3))
def test_no_victim_could_be_spared(there: list[tuple[int, int, int]], cpus: int, priority: int) -> None:
    """Against every set of victims on every node. `there`: (node, CPUs, priority) of what runs."""
    nodes = [node("n0", cpus=3), node("n1", cpus=4)]
    picture = snapshot(cluster(), *nodes)
    for number, (place, size, rank) in enumerate(there):
        of = rated(f"s{number}", rank, cpus=size)
        picture = picture.with_object(of).with_object(task(of, 1, node_id=f"n{place}", state=RUNNING))
    mine = rated("mine", priority, cpus=cpus)
    picture = run(picture.with_object(mine).with_object(task(mine, 1, state=PENDING)), schedule)
    victims = displaced(picture)

    def fits(place: int, gone: tuple[int, ...]) -> bool:
        held = sum(size for number, (where, size, _) in enumerate(there) if where == place and number not in gone)
        return held + cpus <= (3, 4)[place]

    possible: dict[tuple[int, ...], int] = {}
    for place in range(2):
        lower = [number for number, (where, _, rank) in enumerate(there) if where == place and rank < priority]
        for count in range(len(lower) + 1):
            for gone in itertools.combinations(lower, count):
                if fits(place, gone):
                    possible.setdefault(gone, place)
    one = picture.task("mine-1")
    assert one is not None
    if () in possible:
        assert one.node_id and not victims
    elif not possible:
        assert not victims and "make way" not in one.status.err
    else:
        chosen = tuple(sorted(int(id[1:].partition("-")[0]) for id in victims))
        assert chosen in possible
        assert not any(set(other) < set(chosen) for other in possible), "one of them could have stayed"
        cheapest = min(max(there[number][2] for number in gone) for gone in possible)
        assert max(there[number][2] for number in chosen) == cheapest
        if len({there[number][2] for gone in possible for number in gone}) == 1:
            assert len(chosen) == min(map(len, possible))


def test_victims_end_as_any_task_does() -> None:
    """Not yet running: stopped at once; no node yet: it is no victim at all."""
    low, high = rated("low", 0, cpus=4), rated("high", 1, cpus=4)
    picture = snapshot(node("n"), low, high, task(low, 1, node_id="n", state=TaskState.PREPARING), task(high, 1, state=PENDING))
    victim = run(picture, schedule).task("low-1-n")
    assert victim is not None and victim.mesh_released and not terminal(victim.status.state)
