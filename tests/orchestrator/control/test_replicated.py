"""Replicated services: scaling, slots, history, restarts; scenarios in the simulated cluster."""

from __future__ import annotations

from datetime import timedelta

import pytest

from orchestrator.model import RestartPolicy, Task, TaskState
from tests.orchestrator.control.sim import World, image_of, scaled, seconds, spec


def slots(tasks: list[Task]) -> list[int]:
    return sorted(task.slot for task in tasks)


def running(world: World, service: str, count: int) -> float:
    return world.until(lambda: len(world.serving(service)) == count and len(world.live(service)) == count)


@pytest.mark.parametrize("replicas", [0, 1, 2, 7])
def test_create_reaches_the_number_and_spreads(replicas: int) -> None:
    world = World.of(3)
    service = world.create(spec(replicas=replicas))
    running(world, service, replicas)
    world.run(1)
    assert slots(world.live(service)) == list(range(1, replicas + 1))
    counts = [sum(task.node_id == f"n{i}" for task in world.live(service)) for i in (1, 2, 3)]
    assert max(counts) - min(counts) <= 1
    writes = world.writes
    world.run(60)
    assert world.writes == writes, "a cluster at rest is written to"


def test_scale_in_drains_the_highest_slots_then_forgets_them() -> None:
    world = World.of(3)
    service = world.create(spec(replicas=6))
    running(world, service, 6)
    kept = {task.id for task in world.tasks(service) if task.slot <= 2}
    for task in world.tasks(service):
        world.open[task.id] = 1
    world.update(service, scaled(world.service(service).spec, 2))
    world.run(5)
    going = [task for task in world.tasks(service) if task.id not in kept]
    assert slots(going) == [3, 4, 5, 6]
    assert all(task.status.state is TaskState.RUNNING and not task.mesh_released and task.mesh_draining_since for task in going)
    world.open.clear()
    world.run(1)
    assert {task.id for task in world.tasks(service)} == kept


def test_a_slot_that_returns_while_its_last_task_still_stops_waits_for_it() -> None:
    world = World.of(2)
    service = world.create(spec(replicas=2))
    running(world, service, 2)
    old = next(task for task in world.tasks(service) if task.slot == 2)
    world.open[old.id] = 1
    world.update(service, scaled(world.service(service).spec, 1))
    world.run(1)
    world.update(service, scaled(world.service(service).spec, 2))
    world.run(1)
    new = next(task for task in world.live(service) if task.slot == 2)
    assert new.desired_state is TaskState.READY and new.status.state is TaskState.READY
    del world.open[old.id]
    running(world, service, 2)
    assert world.snapshot.task(old.id) is None or world.snapshot.task(old.id).status.state is TaskState.SHUTDOWN  # type: ignore[union-attr]


def test_what_does_not_run_goes_first() -> None:
    world = World.of(1, fate=lambda task, age: TaskState.FAILED if task.slot == 1 and task.status.state is TaskState.STARTING else None)
    service = world.create(spec(replicas=3))
    world.until(lambda: slots(world.serving(service)) == [2, 3])
    world.update(service, scaled(world.service(service).spec, 2))
    world.run(1)
    assert slots(world.live(service)) == [2, 3]


def test_removed_service_leaves_nothing_and_does_not_drain() -> None:
    world = World.of(3)
    service = world.create(spec(replicas=5))
    running(world, service, 5)
    world.open.update({task.id: 3 for task in world.tasks(service)})
    world.remove(service)
    assert world.until(lambda: not world.tasks(service)) < 1


def test_unplaceable_tasks_of_a_removed_service_go_too() -> None:
    world = World.of(2)
    service = world.create(spec(replicas=3, constraints=["node.labels.disk==ssd"]))
    world.run(5)
    assert {task.status.state for task in world.tasks(service)} == {TaskState.PENDING}
    world.remove(service)
    world.run(0.1)
    assert world.tasks(service) == []


# ---- restart --------------------------------------------------------------------------------------------------------------------


def once(task_ids: set[str], end: TaskState, after_s: float = 0.0):  # type: ignore[no-untyped-def]
    def fate(task: Task, age: timedelta) -> TaskState | None:
        due = task.id in task_ids and task.status.state is TaskState.RUNNING and age >= timedelta(seconds=after_s)
        return end if due else None

    return fate


@pytest.mark.parametrize("end", [TaskState.FAILED, TaskState.COMPLETE])
@pytest.mark.parametrize("delay", [None, 0, 1, 20])
def test_restart_after_the_delay_in_the_same_slot(end: TaskState, delay: int | None) -> None:
    world = World.of(3)
    policy = RestartPolicy(delay=None if delay is None else seconds(delay))
    service = world.create(spec(replicas=3, restart=policy))
    running(world, service, 3)
    victim = next(task for task in world.tasks(service) if task.slot == 2)
    world.fate = once({victim.id}, end)
    world.run(0.3)
    heir = next(task for task in world.live(service) if task.slot == 2)
    assert heir.id != victim.id
    took = world.until(lambda: len(world.serving(service)) == 3)
    expected = 5 if delay is None else delay
    assert expected - 0.5 <= took <= expected + 1, took
    old = world.snapshot.task(victim.id)
    assert old is not None and old.desired_state is TaskState.SHUTDOWN and old.status.state is end


@pytest.mark.parametrize(
    ("condition", "end"), [("none", TaskState.FAILED), ("none", TaskState.COMPLETE), ("on-failure", TaskState.COMPLETE)]
)
def test_what_is_not_to_be_restarted_stays_ended_and_its_slot_counts(condition: str, end: TaskState) -> None:
    world = World.of(2)
    service = world.create(spec(replicas=2, restart=RestartPolicy(condition=condition)))
    running(world, service, 2)
    world.fate = once({task.id for task in world.tasks(service)}, end)
    world.run(60)
    assert [task.status.state for task in world.tasks(service)] == [end, end]
    # one more is one more, not three
    world.update(service, scaled(world.service(service).spec, 3))
    running(world, service, 1)
    assert slots(world.live(service)) == [3]
    world.update(service, scaled(world.service(service).spec, 1))
    world.run(1)
    assert len(world.tasks(service)) == 1


@pytest.mark.parametrize("attempts", [1, 2, 8])
@pytest.mark.parametrize("history", [0, 1, 5])
def test_max_attempts_hold_whatever_the_history_limit(attempts: int, history: int) -> None:
    world = World.of(2, history=history, fate=lambda task, age: TaskState.FAILED if task.status.state is TaskState.STARTING else None)
    service = world.create(spec(restart=RestartPolicy(max_attempts=attempts, delay=seconds(1))))
    world.run(60)
    assert world.live(service) == []
    assert len(world.tasks(service)) == attempts + 1
    writes = world.writes
    world.run(600)
    assert world.writes == writes


@pytest.mark.parametrize(("limit", "kept"), [(None, 5), (0, 2), (1, 2), (3, 3), (-1, 12)])
def test_history_of_a_task_that_keeps_failing(limit: int | None, kept: int) -> None:
    world = World.of(1, history=limit, fate=lambda task, age: TaskState.FAILED if task.status.state is TaskState.RUNNING else None)
    service = world.create(spec(restart=RestartPolicy(delay=seconds(1))))
    world.until(lambda: world._ids == 12)
    assert len(world.tasks(service)) == kept
    world.fate = None
    running(world, service, 1)
    world.run(1)
    assert len(world.tasks(service)) == {None: 5, 0: 1, 1: 1, 3: 3, -1: 12}[limit]


def test_a_new_leader_counts_attempts_like_the_old_one() -> None:
    """Nothing but the snapshot goes over to the new leader."""
    fate = lambda task, age: TaskState.FAILED if task.status.state is TaskState.STARTING else None  # noqa: E731
    world = World.of(1, fate=fate)
    service = world.create(spec(restart=RestartPolicy(max_attempts=3, delay=seconds(2))))
    world.run(4)
    successor = World(snapshot=world.snapshot, now=world.now, fate=fate)
    successor._ids = world._ids
    successor.run(60)
    assert len(successor.tasks(service)) == 4


def test_tasks_carry_what_their_service_says() -> None:
    world = World.of(1)
    service = world.create(spec(image="app:7"))
    running(world, service, 1)
    (task,) = world.tasks(service)
    assert image_of(task) == "app:7" and task.mesh_service_name == "web" and task.networks_attachments


def test_a_task_that_can_not_even_get_ready_is_tried_at_the_delays_pace() -> None:
    """A missing image: the successor is prepared at once and fails at once, long before its restart delay is over."""
    world = World.of(1, history=-1, fate=lambda task, age: TaskState.REJECTED if task.status.state is TaskState.PREPARING else None)
    service = world.create(spec())
    world.run(60)
    assert 11 <= len(world.tasks(service)) <= 13
    world.update(service, spec(image="app:2"))
    world.fate = None
    assert world.until(lambda: len(world.serving(service)) == 1) < 1, "an update doesn't wait for a restart"
