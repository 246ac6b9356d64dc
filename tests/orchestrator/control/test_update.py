"""Rolling updates and rollbacks in the simulated cluster."""

from __future__ import annotations

import itertools
from datetime import timedelta

import msgspec
import pytest

from orchestrator.control.update import rollback, updated
from orchestrator.errors import ConfigError
from orchestrator.model import Placement, PortConfig, RestartPolicy, Service, ServiceSpec, Task, TaskState, UpdateConfig, UpdateStatus
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.sim import START, Fate, World, image_of, scaled, seconds, spec, with_image


def started(service_spec: ServiceSpec, nodes: int = 3, **fields: object) -> tuple[World, str]:
    world = World.of(nodes, **fields)
    service = world.create(service_spec)
    wanted = service_spec.mode.replicated.replicas if service_spec.mode.replicated else nodes
    world.until(lambda: len(world.serving(service)) == wanted)
    return world, service


def to_image(world: World, service: str, image: str = "app:2") -> None:
    world.update(service, with_image(world.service(service).spec, image))


def images(world: World, service: str) -> set[str]:
    return {image_of(task) for task in world.live(service)}


def broken(image: str, state: TaskState = TaskState.STARTING) -> Fate:
    def fate(task: Task, age: timedelta) -> TaskState | None:
        return TaskState.FAILED if image_of(task) == image and task.status.state is state else None

    return fate


@pytest.mark.parametrize("replicas", [1, 3, 6, None])
@pytest.mark.parametrize("parallelism", [0, 1, 2, 5])
@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_update_replaces_everything_and_never_more_than_allowed_at_once(replicas: int | None, parallelism: int, order: str) -> None:
    world, service = started(spec(replicas=replicas, update=UpdateConfig(parallelism=parallelism, order=order)), nodes=3)
    total = len(world.serving(service))
    lowest, most = total, 0

    def watch(before: Snapshot, after: Snapshot) -> None:
        nonlocal lowest, most
        lowest = min(lowest, len(world.serving(service)))
        most = max(most, len([task for task in world.live(service) if task.desired_state is TaskState.RUNNING]))

    world.watchers.append(watch)
    to_image(world, service)
    world.run(0.01)
    assert world.state(service) == "updating"
    world.until(lambda: world.state(service) == "completed")
    assert images(world, service) == {"app:2"} and len(world.serving(service)) == total
    at_once = min(parallelism or total, total)
    if order == "stop-first":
        assert lowest == total - at_once
        assert most <= total
    else:
        assert lowest == total, "start-first must not lose capacity"
        assert most == total + at_once
    status = world.service(service).update_status
    assert status is not None and status.completed_at is not None and status.message == "update completed"


def test_stop_first_prepares_the_successor_while_the_old_one_drains() -> None:
    world, service = started(spec())
    (old,) = world.tasks(service)
    world.open[old.id] = 1
    to_image(world, service)
    world.run(3)
    new = world.live(service)[0]
    assert new.status.state is TaskState.READY and new.desired_state is TaskState.READY
    assert world.snapshot.task(old.id).status.state is TaskState.RUNNING  # type: ignore[union-attr]
    # released at the drain deadline, connection or not
    world.until(lambda: world.snapshot.task(new.id).status.state is TaskState.RUNNING)  # type: ignore[union-attr]
    assert timedelta(seconds=10) < world.now - START < timedelta(seconds=12)


def test_start_first_waits_for_the_nodes_to_show_the_new_task_but_not_for_ever() -> None:
    world, service = started(spec(update=UpdateConfig(parallelism=1, order="start-first")))
    (old,) = world.tasks(service)
    world.mute.add(next(node for node in ("n1", "n2", "n3") if node != old.node_id))
    # a node that has none of the service's networks isn't waited for
    to_image(world, service)
    world.until(lambda: len(world.serving(service)) == 2 or not world.serving(service))
    new = next(task for task in world.tasks(service) if task.id != old.id)
    world.mute = {new.node_id}
    begin = world.now
    world.until(lambda: world.snapshot.task(old.id).desired_state is TaskState.SHUTDOWN, step_s=0.2)  # type: ignore[union-attr]
    assert timedelta(seconds=4) < world.now - begin < timedelta(seconds=6)


def test_delay_lies_between_batches() -> None:
    world, service = started(spec(replicas=4, update=UpdateConfig(parallelism=2, delay=seconds(20))))
    to_image(world, service)
    assert (
        20
        < world.until(lambda: all(image_of(task) == "app:2" for task in world.serving(service)) and len(world.serving(service)) == 4)
        < 24
    )


def test_only_the_replicas_changed_is_no_update() -> None:
    world, service = started(spec(replicas=2))
    world.update(service, scaled(world.service(service).spec, 4))
    world.until(lambda: len(world.serving(service)) == 4)
    assert world.state(service) == "" and len(world.tasks(service)) == 4


@pytest.mark.parametrize("replicas", [2, 8])
def test_scaling_in_the_middle_goes_on_with_the_update(replicas: int) -> None:
    world, service = started(spec(replicas=5, update=UpdateConfig(parallelism=1)))
    to_image(world, service)
    world.until(lambda: any(image_of(task) == "app:2" for task in world.serving(service)))
    began = world.service(service).update_status
    world.update(service, scaled(world.service(service).spec, replicas))
    world.run(0.5)
    status = world.service(service).update_status
    assert status is not None and began is not None and status.started_at == began.started_at
    world.until(lambda: world.state(service) == "completed")
    assert len(world.serving(service)) == replicas and images(world, service) == {"app:2"}
    previous = world.service(service).previous_spec
    assert previous is not None and previous.task_template.container_spec.image == "app:1"  # type: ignore[union-attr]


def test_a_second_update_overtakes_the_first() -> None:
    world, service = started(spec(replicas=4, update=UpdateConfig(parallelism=1)))
    to_image(world, service, "app:2")
    world.run(1)
    to_image(world, service, "app:3")
    world.until(lambda: world.state(service) == "completed")
    assert images(world, service) == {"app:3"}


@pytest.mark.parametrize("cut_ms", range(0, 3000, 250))
def test_the_update_goes_on_under_a_new_leader(cut_ms: int) -> None:
    world, service = started(spec(replicas=3, update=UpdateConfig(parallelism=1, delay=seconds(1))))
    to_image(world, service)
    world.run(cut_ms / 1000)
    leader = World(snapshot=world.snapshot, now=world.now)
    leader._ids = world._ids
    assert leader.until(lambda: leader.state(service) == "completed") < 15
    assert images(leader, service) == {"app:2"}
    assert len(leader.tasks(service)) == 6, "a task was replaced twice"


# ---- failure --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [TaskState.PREPARING, TaskState.STARTING, TaskState.RUNNING])
def test_failure_pauses_by_default_and_names_the_task(state: TaskState) -> None:
    world, service = started(spec(replicas=3, update=UpdateConfig(parallelism=1)), fate=broken("app:2", state))
    to_image(world, service)
    world.until(lambda: world.state(service) == "paused")
    status = world.service(service).update_status
    failed = next(task for task in world.tasks(service) if task.status.state is TaskState.FAILED)
    assert status is not None and status.message == f"update paused due to failure or early termination of task {failed.id}"
    world.run(60)
    # one that runs for a moment lets the next one begin
    assert len(world.serving(service)) == (1 if state is TaskState.RUNNING else 2)
    assert world.state(service) == "paused"


def test_an_old_task_that_fails_while_paused_comes_back_as_it_was() -> None:
    world, service = started(spec(replicas=3, update=UpdateConfig(parallelism=1)), fate=broken("app:2"))
    to_image(world, service)
    world.until(lambda: world.state(service) == "paused")
    victim = world.serving(service)[0]
    bad = broken("app:2")
    world.fate = lambda task, age: TaskState.FAILED if task.id == victim.id else bad(task, age)
    world.run(8)
    assert [image_of(task) for task in world.serving(service)] == ["app:1", "app:1"]


def test_the_same_spec_again_resumes() -> None:
    world, service = started(spec(replicas=2, update=UpdateConfig(parallelism=1)), fate=broken("app:2"))
    to_image(world, service)
    world.until(lambda: world.state(service) == "paused")
    world.fate = None
    world.update(service, world.service(service).spec)
    world.until(lambda: world.state(service) == "completed")
    assert images(world, service) == {"app:2"}
    previous = world.service(service).previous_spec
    assert previous is not None and previous.task_template.container_spec.image == "app:1"  # type: ignore[union-attr]


def test_scaling_a_paused_update_leaves_it_paused() -> None:
    world, service = started(spec(replicas=2, update=UpdateConfig(parallelism=1)), fate=broken("app:2"))
    to_image(world, service)
    world.until(lambda: world.state(service) == "paused")
    world.update(service, scaled(world.service(service).spec, 1))
    world.run(20)
    assert world.state(service) == "paused"
    assert [image_of(task) for task in world.serving(service)] == ["app:1"]


def test_continue_goes_on() -> None:
    world, service = started(
        spec(replicas=3, update=UpdateConfig(parallelism=1, failure_action="continue"), restart=RestartPolicy(delay=seconds(60))),
        fate=broken("app:2"),
    )
    to_image(world, service)
    world.until(lambda: world.state(service) == "completed")
    assert images(world, service) == {"app:2"} and world.serving(service) == []


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
@pytest.mark.parametrize("state", [TaskState.STARTING, TaskState.RUNNING])
def test_rollback_on_failure_returns_to_the_old_spec(order: str, state: TaskState) -> None:
    config = UpdateConfig(parallelism=1, failure_action="rollback", order=order)
    world, service = started(spec(replicas=3, update=config, rollback_config=UpdateConfig(parallelism=1)), fate=broken("app:2", state))
    to_image(world, service)
    seen: list[str] = []
    world.watchers.append(lambda before, after: seen.append(after.service(service).update_status.message))  # type: ignore[union-attr]
    world.until(lambda: world.state(service) == "rollback_completed")
    assert any(text.startswith("update rolled back due to failure or early termination of task t") for text in seen)
    assert images(world, service) == {"app:1"} and len(world.serving(service)) == 3
    assert world.service(service).previous_spec is None


def test_a_rollback_that_fails_too_is_paused() -> None:
    bad = [broken("app:2")]
    config = UpdateConfig(parallelism=1, failure_action="rollback")
    world, service = started(
        spec(replicas=2, update=config), fate=lambda task, age: next((f for one in bad if (f := one(task, age))), None)
    )
    bad.append(lambda task, age: TaskState.FAILED if task.created_at > START + timedelta(seconds=2) and age >= timedelta() else None)
    world.run(2)
    to_image(world, service)
    world.until(lambda: world.state(service) == "rollback_paused")
    assert world.service(service).update_status.message.startswith("rollback paused due to failure or early termination of task t")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("ratio", "bad", "expected"), [(0.0, 1, "paused"), (0.25, 1, "completed"), (0.25, 2, "paused"), (0.5, 2, "completed")]
)
def test_max_failure_ratio(ratio: float, bad: int, expected: str) -> None:
    config = UpdateConfig(parallelism=1, max_failure_ratio=ratio)
    world, service = started(spec(replicas=4, update=config))
    failing: set[str] = set()

    def fate(task: Task, age: timedelta) -> TaskState | None:
        if image_of(task) != "app:2" or task.status.state is not TaskState.STARTING or task.slot > bad:
            return None
        failing.add(task.id)
        return TaskState.FAILED

    world.fate = lambda task, age: fate(task, age) if task.id in failing or len(failing) < bad else None
    to_image(world, service)
    world.until(lambda: world.state(service) in ("paused", "completed"))
    assert world.state(service) == expected


def test_a_task_that_ends_after_the_monitor_is_not_the_updates_failure() -> None:
    config = UpdateConfig(parallelism=1, monitor=seconds(2), delay=seconds(10))

    def fate(task: Task, age: timedelta) -> TaskState | None:
        late = task.status.state is TaskState.RUNNING and age > timedelta(seconds=3) and image_of(task) == "app:2" and task.slot == 1
        return TaskState.FAILED if late else None

    world, service = started(spec(replicas=2, update=config), fate=fate)
    to_image(world, service)
    world.until(lambda: world.state(service) not in ("", "updating"))
    assert world.state(service) == "completed"


def test_the_monitor_watches_the_last_task_too() -> None:
    world, service = started(spec(update=UpdateConfig(parallelism=1, monitor=seconds(4))))
    world.fate = lambda task, age: TaskState.FAILED if image_of(task) == "app:2" and age > timedelta(seconds=3) else None
    to_image(world, service)
    world.until(lambda: world.state(service) not in ("", "updating"))
    assert world.state(service) == "paused"


def test_finished_tasks_are_updated_too() -> None:
    fate: Fate = lambda task, age: TaskState.COMPLETE if task.status.state is TaskState.RUNNING and image_of(task) == "app:1" else None  # noqa: E731
    world = World.of(2, fate=fate)
    service = world.create(spec(replicas=2, restart=RestartPolicy(condition="none")))
    world.run(5)
    assert world.live(service) == []
    to_image(world, service)
    world.until(lambda: world.state(service) == "completed")
    assert [image_of(task) for task in world.serving(service)] == ["app:2", "app:2"]


# ---- the API's two functions ------------------------------------------------------------------------------------------------------


def test_manual_rollback_swaps_the_specs() -> None:
    world, service = started(spec(replicas=2))
    to_image(world, service)
    world.until(lambda: world.state(service) == "completed")
    world.rollback(service)
    assert world.service(service).update_status == UpdateStatus(
        state="rollback_started", started_at=world.now, message="manually requested rollback"
    )
    world.until(lambda: world.state(service) == "rollback_completed")
    assert images(world, service) == {"app:1"}
    world.rollback(service)
    world.until(lambda: world.state(service) == "rollback_completed")
    assert images(world, service) == {"app:2"}


def test_rollback_needs_a_previous_spec() -> None:
    with pytest.raises(ConfigError, match="service s does not have a previous spec"):
        rollback(Service(id="s", spec=spec()), START)


@pytest.mark.parametrize("state", ["", "updating", "paused", "completed", "rollback_started", "rollback_paused", "rollback_completed"])
@pytest.mark.parametrize("change", ["image", "replicas", "both", "nothing"])
def test_updated(state: str, change: str) -> None:
    old, oldest = spec(replicas=2), with_image(spec(replicas=2), "app:0")
    status = UpdateStatus(state=state, started_at=START) if state else None
    service = Service(id="s", spec=old, previous_spec=oldest, update_status=status)
    new = {
        "image": with_image(old, "app:2"),
        "replicas": scaled(old, 4),
        "both": scaled(with_image(old, "app:2"), 4),
        "nothing": msgspec.structs.replace(old),
    }[change]
    after = updated(service, new, START)
    assert after.spec == new
    unfinished = state in ("updating", "paused", "rollback_started", "rollback_paused")
    if change == "replicas" and unfinished:
        assert after.update_status == status and after.previous_spec == scaled(oldest, 4)
    else:
        assert after.update_status is None
        assert after.previous_spec == (oldest if change == "nothing" else old)


@pytest.mark.parametrize(("order", "replicas"), list(itertools.product(["stop-first", "start-first"], [1, 2])))
def test_update_of_a_service_whose_node_dies_meanwhile(order: str, replicas: int) -> None:
    world, service = started(spec(replicas=replicas, update=UpdateConfig(parallelism=1, order=order)), nodes=3)
    to_image(world, service)
    world.run(0.3)
    world.lose("n1")
    world.until(lambda: world.state(service) == "completed", limit_s=60)
    world.until(lambda: len(world.serving(service)) == replicas and {task.node_id for task in world.serving(service)} <= {"n2", "n3"})
    assert images(world, service) == {"app:2"}


def test_a_pause_survives_an_unrelated_write() -> None:
    world, service = started(spec(replicas=2, update=UpdateConfig(parallelism=1)), fate=broken("app:2"))
    to_image(world, service)
    world.until(lambda: world.state(service) == "paused")
    world.write(Put(msgspec.structs.replace(world.node("n1"), updated_at=world.now)))
    world.run(20)
    assert world.state(service) == "paused"


# ---- corners that only start-first has ----------------------------------------------------------------------------------------------


def test_start_first_successors_that_fail_are_tried_at_the_restart_delays_pace() -> None:
    config = UpdateConfig(parallelism=1, order="start-first", failure_action="continue")
    world, service = started(spec(update=config), fate=broken("app:2"))
    to_image(world, service)
    world.run(60)
    assert [image_of(task) for task in world.serving(service)] == ["app:1"], "the old task stays until a new one serves"
    tries = int(max(task.id for task in world.tasks(service))[1:]) - 1
    assert 10 <= tries <= 13


def test_start_first_hands_one_slot_over_before_it_takes_the_next() -> None:
    world, service = started(spec(replicas=3, update=UpdateConfig(parallelism=1, order="start-first")))
    world.mute = {"n1", "n2", "n3"}
    most = 0

    def watch(before: Snapshot, after: Snapshot) -> None:
        nonlocal most
        most = max(most, len(world.live(service)))

    world.watchers.append(watch)
    to_image(world, service)
    world.until(lambda: world.state(service) == "completed")
    assert most == 4


def test_a_rollback_in_the_middle_of_a_drained_nodes_handover_converges() -> None:
    """The slot then holds an old task where it may not stay and a new one with the spec that nobody wants any more."""
    world, service = started(spec(update=UpdateConfig(parallelism=1, order="start-first")))
    (old,) = world.tasks(service)
    to_image(world, service)
    world.run(0.2)
    world.availability(old.node_id, "drain")
    world.rollback(service)
    world.until(lambda: world.state(service) == "rollback_completed" and len(world.live(service)) == 1)
    (task,) = world.live(service)
    assert image_of(task) == "app:1" and task.node_id != old.node_id and task.status.state is TaskState.RUNNING


def test_a_rollback_counts_its_failures_from_its_own_start() -> None:
    world, service = started(spec(replicas=2, update=UpdateConfig(parallelism=1, failure_action="rollback")), fate=broken("app:2"))
    world.run(30)
    to_image(world, service)
    begins: list[object] = []

    def watch(before: Snapshot, after: Snapshot) -> None:
        status = world.service(service).update_status
        if status is not None and status.state == "rollback_started" and not begins:
            begins.append(status.started_at)
            begins.append(world.service(service).updated_at)

    began = world.now
    world.watchers.append(watch)
    world.until(lambda: world.state(service) == "rollback_completed")
    assert begins[0] == begins[1] and begins[0] > began  # type: ignore[operator]


def test_scale_out_while_one_slot_holds_two_tasks() -> None:
    world, service = started(spec(update=UpdateConfig(parallelism=1, order="start-first")))
    world.mute = {"n1", "n2", "n3"}
    to_image(world, service)
    world.run(1)
    assert [task.slot for task in world.live(service)] == [1, 1]
    world.update(service, scaled(world.service(service).spec, 2))
    world.run(0.1)
    assert sorted(task.slot for task in world.live(service)) == [1, 1, 2]


def test_a_paused_start_first_update_on_a_drained_node_keeps_the_old_task_and_one_successor() -> None:
    config = UpdateConfig(parallelism=1, order="start-first")
    world, service = started(spec(update=config, restart=RestartPolicy(delay=0)), fate=broken("app:2"))
    to_image(world, service)
    world.until(lambda: world.state(service) == "paused")
    world.availability(world.serving(service)[0].node_id, "drain")
    world.run(5)
    assert sorted(image_of(task) for task in world.live(service)) == ["app:1", "app:2"]
    assert [image_of(task) for task in world.serving(service)] == ["app:1"]
    world.rollback(service)
    world.until(lambda: [image_of(task) for task in world.live(service)] == ["app:1"])


def test_updates_that_overtake_each_other_leave_at_most_two_tasks_in_a_slot() -> None:
    config = UpdateConfig(order="start-first")
    world, service = started(spec(replicas=2, update=config, rollback_config=config))
    to_image(world, service)
    world.run(1)
    world.rollback(service)
    world.run(1)
    world.rollback(service)
    world.availability("n1", "drain")
    world.availability("n1", "active")
    to_image(world, service, "app:4")
    world.until(lambda: world.state(service) == "completed")
    assert images(world, service) == {"app:4"} and len(world.serving(service)) == 2


# ---- beyond Swarm -----------------------------------------------------------------------------------------------------------------


HOST_PORT = PortConfig(target_port=80, published_port=80, publish_mode="host")


@pytest.mark.parametrize(("nodes", "lost"), [(2, True), (3, False)])
def test_start_first_with_a_host_port_gives_way_only_where_no_node_has_the_port_free(nodes: int, lost: bool) -> None:
    """Swarm's successor waits for ever for the port that its predecessor holds until the successor runs."""
    config = UpdateConfig(parallelism=1, order="start-first")
    world, service = started(spec(replicas=2, update=config, ports=[HOST_PORT]), nodes=nodes)
    lowest = 2

    def watch(before: Snapshot, after: Snapshot) -> None:
        nonlocal lowest
        lowest = min(lowest, len(world.serving(service)))

    world.watchers.append(watch)
    to_image(world, service)
    world.until(lambda: world.state(service) == "completed")
    assert images(world, service) == {"app:2"} and len(world.serving(service)) == 2
    assert lowest == (1 if lost else 2)


def unplaceable(service_spec: ServiceSpec) -> ServiceSpec:
    """app:2, for a node that doesn't exist."""
    changed = with_image(service_spec, "app:2")
    template = msgspec.structs.replace(changed.task_template, placement=Placement(constraints=["node.labels.disk==tape"]))
    return msgspec.structs.replace(changed, task_template=template)


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
@pytest.mark.parametrize(("deadline", "after_s"), [(None, 600), ("30s", 30)])
def test_an_update_that_makes_no_progress_is_paused_with_the_reason(order: str, deadline: str | None, after_s: int) -> None:
    labels = {"com.meshd.update.progress-deadline": deadline} if deadline else None
    base = spec(replicas=3, update=UpdateConfig(parallelism=1, order=order), labels=labels)
    world, service = started(base)
    world.update(service, unplaceable(base))
    took = world.until(lambda: world.state(service) == "paused", limit_s=700)
    assert after_s - 1 < took < after_s + 3
    message = world.service(service).update_status.message  # type: ignore[union-attr]
    assert message.startswith("update paused because task t") and f"did not run within {after_s} s: it is pending (no suitable" in message
    assert len(world.serving(service)) == (3 if order == "start-first" else 2)
    world.run(1000)
    assert world.state(service) == "paused"


def test_an_update_that_makes_no_progress_is_rolled_back_if_it_says_so() -> None:
    labels = {"com.meshd.update.progress-deadline": "20s"}
    base = spec(replicas=2, update=UpdateConfig(parallelism=1, failure_action="rollback"), labels=labels)
    world, service = started(base)
    world.update(service, unplaceable(base))
    world.until(lambda: world.state(service) == "rollback_completed")
    assert images(world, service) == {"app:1"} and len(world.serving(service)) == 2


def test_no_deadline_at_all_and_a_slow_but_steady_update() -> None:
    base = spec(replicas=2, update=UpdateConfig(parallelism=1), labels={"com.meshd.update.progress-deadline": "0s"})
    world, service = started(base)
    world.update(service, unplaceable(base))
    world.run(2000)
    assert world.state(service) == "updating"
    slow, other = started(spec(replicas=4, update=UpdateConfig(parallelism=1), labels={"com.meshd.update.progress-deadline": "20s"}))
    slow.pace = timedelta(seconds=3)
    to_image(slow, other)
    slow.until(lambda: slow.state(other) == "completed", limit_s=200)


def test_a_resumed_update_gets_its_deadline_anew() -> None:
    base = spec(replicas=2, update=UpdateConfig(parallelism=1), labels={"com.meshd.update.progress-deadline": "20s"})
    world, service = started(base)
    world.update(service, unplaceable(base))
    world.until(lambda: world.state(service) == "paused")
    world.update(service, world.service(service).spec)
    world.run(10)
    assert world.state(service) == "updating"
    world.until(lambda: world.state(service) == "paused")
