"""Jobs in the simulated cluster: scenarios, and properties over faults and changes of the leader."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.control.jobs import iteration_of, size
from orchestrator.control.slots import is_job_task, live, slot_key
from orchestrator.model import NodeSpec, RestartPolicy, Service, ServiceSpec, Task, TaskState
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.sim import Fate, World, image_of, job, node, seconds, with_image

QUICK = RestartPolicy(condition="on-failure", delay=seconds(1))


def completes(after_s: float = 1.0, *, unless: Callable[[Task], bool] = lambda task: False) -> Fate:
    """Tasks complete after that time of running; `unless`: these fail instead."""

    def fate(task: Task, age: timedelta) -> TaskState | None:
        if task.status.state is not TaskState.RUNNING or age < timedelta(seconds=after_s):
            return None
        return TaskState.FAILED if unless(task) else TaskState.COMPLETE

    return fate


def done(world: World, service: str) -> set[int | str]:
    """Slots of the current iteration with a completed task."""
    status = world.service(service).job_status
    assert status is not None
    return {slot_key(task) for task in completed(world.tasks(service)) if iteration_of(task) == status.job_iteration.index}


def completed(tasks: list[Task]) -> list[Task]:
    return [task for task in tasks if task.status.state is TaskState.COMPLETE]


def forced(spec: ServiceSpec) -> ServiceSpec:
    template = spec.task_template
    return msgspec.structs.replace(spec, task_template=msgspec.structs.replace(template, force_update=template.force_update + 1))


# ---- replicated jobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "concurrent"), [(0, 1), (1, 1), (3, 1), (3, 3), (5, 2), (4, 9)])
def test_every_slot_completes_once_and_never_more_run_than_may(total: int, concurrent: int) -> None:
    world = World.of(3, fate=completes())
    service = world.create(job(total, concurrent))
    most = 0

    def watch(before: Snapshot, after: Snapshot) -> None:
        nonlocal most
        most = max(most, len(world.live(service)))

    world.watchers.append(watch)
    world.run(total * 2 + 1)
    assert done(world, service) == set(range(1, total + 1))
    assert len(world.tasks(service)) == total and most == min(total, concurrent)
    # a node gives its address on the network back 30 s after its last task
    world.run(60)
    writes = world.writes
    world.run(600)
    assert world.writes == writes, "a job that is done rests"


@pytest.mark.parametrize("condition", ["any", "on-failure", ""])
def test_a_failed_task_is_tried_again_after_the_delay(condition: str) -> None:
    first: list[str] = []
    fate = completes(unless=lambda task: task.id == (first or [task.id])[0] and not first.append(task.id))  # type: ignore[func-returns-value]
    world = World.of(2, fate=fate)
    service = world.create(job(1, restart=RestartPolicy(condition=condition, delay=seconds(7))))
    assert 9 < world.until(lambda: done(world, service) == {1}) < 11
    assert [task.status.state for task in world.tasks(service)] == [TaskState.FAILED, TaskState.COMPLETE]


@pytest.mark.parametrize(("policy", "tries"), [(RestartPolicy(condition="none"), 1), (RestartPolicy(max_attempts=2, delay=0), 3)])
def test_a_slot_that_may_not_be_tried_again_fails_and_the_others_go_on(policy: RestartPolicy, tries: int) -> None:
    world = World.of(2, history=0, fate=completes(unless=lambda task: task.slot == 2))
    service = world.create(job(3, 1, restart=policy))
    world.run(60)
    assert done(world, service) == {1, 3}
    assert [task.slot for task in world.tasks(service)].count(2) == tries
    assert world.live(service) == []


def test_an_image_that_is_missing_is_tried_at_the_delays_pace() -> None:
    world = World.of(1, history=-1, fate=lambda task, age: TaskState.REJECTED if task.status.state is TaskState.PREPARING else None)
    service = world.create(job(1))
    world.run(60)
    assert 11 <= len(world.tasks(service)) <= 13


@pytest.mark.parametrize("how", ["lose", "drain"])
def test_a_task_whose_node_is_lost_or_drained_is_run_elsewhere(how: str) -> None:
    world = World.of(2, fate=completes(40))
    service = world.create(job(1, restart=RestartPolicy(condition="none")))
    world.until(lambda: bool(world.serving(service)))
    (task,) = world.serving(service)
    world.lose(task.node_id) if how == "lose" else world.availability(task.node_id, "drain")
    world.until(lambda: any(other.id != task.id for other in world.serving(service)))
    world.until(lambda: done(world, service) == {1})
    assert len(completed(world.tasks(service))) == 1


def test_a_lost_node_that_comes_back_with_the_completion_ends_the_second_try() -> None:
    world = World.of(2, fate=completes(60, unless=lambda task: False))
    service = world.create(job(1))
    world.until(lambda: bool(world.serving(service)))
    (task,) = world.serving(service)
    world.lose(task.node_id)
    world.until(lambda: any(other.id != task.id for other in world.serving(service)))
    quick = completes(0)
    world.fate = lambda one, age: quick(one, age) if one.id == task.id else None
    world.find(task.node_id)
    world.run(2)
    assert done(world, service) == {1} and world.live(service) == completed(world.live(service))


def test_an_update_runs_the_job_again_and_stops_what_still_runs() -> None:
    world = World.of(2, fate=lambda task, age: completes(1)(task, age) if image_of(task) == "app:2" else None)
    service = world.create(job(2, 2))
    world.until(lambda: len(world.serving(service)) == 2)
    world.update(service, with_image(world.service(service).spec, "app:2"))
    world.until(lambda: done(world, service) == {1, 2})
    status = world.service(service).job_status
    assert status is not None and status.job_iteration.index == 1 and status.last_execution is not None
    assert {task.status.state for task in world.tasks(service) if image_of(task) == "app:1"} == {TaskState.SHUTDOWN}
    world.rollback(service)
    world.until(lambda: {image_of(task) for task in world.live(service)} == {"app:1"})
    assert world.service(service).update_status is None


@pytest.mark.parametrize(("change", "again"), [("labels", False), ("nothing", False), ("force", True), ("total", True)])
def test_what_lets_a_job_run_again(change: str, again: bool) -> None:
    world = World.of(1, fate=completes())
    service = world.create(job(1))
    world.until(lambda: done(world, service) == {1})
    spec = world.service(service).spec
    world.update(
        service,
        {
            "labels": msgspec.structs.replace(spec, labels={"a": "b"}),
            "nothing": spec,
            "force": forced(spec),
            "total": msgspec.structs.replace(spec, mode=job(2).mode),
        }[change],
    )
    world.run(5)
    assert (world.service(service).job_status.job_iteration.index == 1) is again  # type: ignore[union-attr]
    assert len(world.tasks(service)) == {"labels": 1, "nothing": 1, "force": 2, "total": 3}[change]


@pytest.mark.parametrize(("limit", "kept"), [(0, 1), (2, 2), (-1, 6)])
def test_history_of_a_job_that_runs_again_and_again(limit: int, kept: int) -> None:
    world = World.of(1, history=limit, fate=completes())
    service = world.create(job(1))
    for _ in range(5):
        world.run(3)
        world.update(service, forced(world.service(service).spec))
    world.run(5)
    assert len(world.tasks(service)) == kept and done(world, service) == {1}


def test_a_removed_job_leaves_nothing() -> None:
    world = World.of(2)
    service = world.create(job(3, 2))
    world.run(2)
    world.remove(service)
    world.run(1)
    assert world.tasks(service) == []


# ---- global jobs ----------------------------------------------------------------------------------------------------------------


def test_a_global_job_runs_once_on_every_node_also_on_those_that_join_later() -> None:
    world = World.of(2, fate=completes())
    world.availability("n2", "pause")
    service = world.create(job(None))
    world.run(5)
    assert done(world, service) == {"n1"}
    world.availability("n2", "active")
    world.write(Put(node("n3")))
    world.run(5)
    assert done(world, service) == {"n1", "n2", "n3"} and len(world.tasks(service)) == 3


def test_a_global_job_keeps_to_its_constraints_and_leaves_drained_nodes() -> None:
    world = World.of(3, fate=completes(20))
    for id in ("n1", "n2"):
        world.write(Put(msgspec.structs.replace(world.node(id), spec=NodeSpec(role="worker", labels={"disk": "ssd"}))))
    service = world.create(job(None, constraints=["node.labels.disk==ssd"]))
    world.until(lambda: len(world.serving(service)) == 2)
    world.availability("n2", "drain")
    world.run(60)
    assert done(world, service) == {"n1"} and world.live(service) == completed(world.live(service))


def test_a_global_job_on_a_node_that_was_lost_never_runs_twice_at_a_time() -> None:
    world = World.of(2, fate=completes(60))
    service = world.create(job(None))
    world.until(lambda: len(world.serving(service)) == 2)
    most = 0

    def watch(before: Snapshot, after: Snapshot) -> None:
        nonlocal most
        running = [task for task in after.tasks_of_service(service) if task.node_id == "n2" and task.status.state is TaskState.RUNNING]
        most = max(most, len(running))

    world.watchers.append(watch)
    world.lose("n2")
    world.run(20)
    world.find("n2")
    world.run(120)
    assert done(world, service) == {"n1", "n2"} and most == 1


# ---- properties -----------------------------------------------------------------------------------------------------------------

NODES = ("n1", "n2", "n3")
deeds = st.one_of(
    st.tuples(st.sampled_from(["lose", "find", "drain", "active", "pause"]), st.sampled_from(NODES)),
    st.tuples(st.sampled_from(["fail", "again", "leader"]), st.integers(0, 9)),
)


def check_jobs(before: Snapshot, after: Snapshot) -> None:
    """For every write: nothing is tried that has completed, no completion is forgotten while its run is current, and no more tasks
    run at once than may."""
    for task in after.all(Task):
        if before.task(task.id) is None and is_job_task(task):
            mates = [other for other in before.tasks_of_service(task.service_id) if slot_key(other) == slot_key(task)]
            assert not [other for other in completed(mates) if iteration_of(other) == iteration_of(task)], "a completion is doubled"
    for service in after.all(Service):
        assert service.job_status is not None
        current = service.job_status.job_iteration.index
        had = {task.id for task in completed(before.tasks_of_service(service.id)) if iteration_of(task) == current}
        assert had <= {task.id for task in after.tasks_of_service(service.id)}, "a completion is lost"
        if service.spec.mode.replicated_job is not None:
            running = [task for task in after.tasks_of_service(service.id) if live(task) and iteration_of(task) == current]
            assert len(running) <= size(service)[1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    total=st.one_of(st.none(), st.integers(0, 5)),
    concurrent=st.integers(1, 3),
    script=st.lists(st.tuples(deeds, st.sampled_from([0.0, 0.15, 1.0, 17.0])), max_size=12),
)
def test_no_completion_is_lost_or_doubled(total: int | None, concurrent: int, script: list[tuple[tuple[str, str | int], float]]) -> None:
    doomed: set[str] = set()
    fate = completes(unless=lambda task: task.id in doomed)
    world = World.of(len(NODES), fate=fate, watchers=[check_jobs])
    service = world.create(job(total, concurrent, restart=QUICK))
    for (deed, argument), pause_s in script:
        match deed:
            case "lose" if argument not in world.lost:
                world.lose(str(argument))
            case "find" if argument in world.lost:
                world.find(str(argument))
            case "drain" | "active" | "pause":
                world.availability(str(argument), deed)
            case "fail" if world.live(service):
                doomed.add(world.live(service)[int(argument) % len(world.live(service))].id)
            case "again":
                world.update(service, forced(world.service(service).spec))
            case "leader":
                world = world.successor()
        world.run(pause_s)
    for id in sorted(world.lost):
        world.find(id)
    for id in NODES:
        world.availability(id, "active")
    world.run(60)
    assert done(world, service) == (set(NODES) if total is None else set(range(1, total + 1))), world.picture()
    writes = world.writes
    world.run(300)
    assert world.writes == writes, f"no rest\n{world.picture()}"
