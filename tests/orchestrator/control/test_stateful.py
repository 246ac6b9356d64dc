"""Stateful services: stable slots, homes, order, and never two writers of one slot, whatever happens to nodes and leaders."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.control.labels import check, stateful_rule
from orchestrator.control.slots import STABLE_HOSTNAME
from orchestrator.errors import ConfigError
from orchestrator.model import Driver, Mount, Task, TaskState, UpdateConfig, VolumeOptions
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.sim import World, image_of, job, scaled, spec, stateful, with_image

# from the loss of a node until its fenced tasks may run elsewhere: fence 30 s, grace 10 s, margin 15 s
MOVES_AFTER_S = 55


def started(world: World, replicas: int, **fields: object) -> str:
    service = world.create(stateful(replicas, **fields))  # type: ignore[arg-type]
    world.until(lambda: len(world.serving(service)) == replicas)
    world.run(1)
    return service


def places(world: World, service: str) -> dict[int, str]:
    return {task.slot: task.node_id for task in world.serving(service)}


# ---- labels ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({".order": "ordered"}, "com.meshd.stateful=true is missing beside com.meshd.stateful.order"),
        ({"": "perhaps"}, "'perhaps' should be one of true, false"),
        ({"": "true", ".order": "up"}, "'up' should be one of parallel, ordered"),
        ({"": "true", ".fence": "5s"}, "at least 20s"),
        ({"": "true", ".fence": "soon"}, "'soon' is no duration"),
        ({"": "true", ".sticy": "true"}, "unknown label com.meshd.stateful.sticy"),
    ],
)
def test_labels_that_can_not_be_read_are_refused(labels: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(spec(labels={f"com.meshd.stateful{name}": value for name, value in labels.items()}))


def test_what_can_not_be_stateful_is_refused() -> None:
    labels = {"com.meshd.stateful": "true"}
    for bad, says in (
        (spec(replicas=None, labels=labels), "only services of mode replicated"),
        (job(1, labels=labels), "only services of mode replicated"),
        (spec(labels=labels, update=UpdateConfig(order="start-first")), "order is stop-first"),
        (spec("n" * 58, labels=labels), "57 characters"),
    ):
        with pytest.raises(ConfigError, match=says):
            check(bad)
    check(spec(labels={"com.meshd.stateful": "false"}))


# ---- identity and homes ---------------------------------------------------------------------------------------------------------


def test_a_slot_has_a_name_of_its_own_unless_the_user_gave_one() -> None:
    world = World.of(1)
    service = started(world, 2)
    assert {task.spec.container_spec.hostname for task in world.tasks(service)} == {STABLE_HOSTNAME}  # type: ignore[union-attr]
    given = stateful(1)
    container = msgspec.structs.replace(given.task_template.container_spec, hostname="mine")  # type: ignore[type-var]
    template = msgspec.structs.replace(given.task_template, container_spec=container)
    world.update(service, msgspec.structs.replace(given, task_template=template))
    world.run(20)
    assert {task.spec.container_spec.hostname for task in world.live(service)} == {"mine"}  # type: ignore[union-attr]


def test_a_slot_with_a_volume_comes_back_to_its_node_after_anything() -> None:
    world = World.of(3)
    service = started(world, 3, volume=True)
    before = places(world, service)
    assert sorted(before.values()) == ["n1", "n2", "n3"]
    assert world.service(service).mesh_homes == {str(slot): node for slot, node in before.items()}
    failing = {world.serving(service)[1].id}
    world.fate = lambda task, age: TaskState.FAILED if task.id in failing else None
    world.run(5)
    assert places(world, service) == before
    world.update(service, with_image(world.service(service).spec, "app:2"))
    world.until(lambda: world.state(service) == "completed")
    assert places(world, service) == before
    world.update(service, scaled(world.service(service).spec, 1))
    world.run(20)
    world.availability(before[1], "pause")
    world.update(service, scaled(world.service(service).spec, 3))
    world.run(10)
    assert places(world, service) == before, "homes outlive the tasks"


@pytest.mark.parametrize("how", ["drain", "lose"])
def test_a_slot_waits_for_the_node_that_has_its_volume_and_says_so(how: str) -> None:
    world = World.of(3)
    service = started(world, 3, volume=True)
    before = places(world, service)
    world.availability("n2", "drain") if how == "drain" else world.lose("n2")
    world.run(300)
    if how == "drain":
        (waiting,) = [task for task in world.live(service) if task.status.state is TaskState.PENDING]
        assert waiting.node_id == "n2" and "not available for new tasks" in waiting.status.err
        world.availability("n2", "active")
    else:
        world.find("n2")
    world.run(20)
    assert places(world, service) == before
    writes = world.writes
    world.run(200)
    assert world.writes == writes


def test_after_a_day_a_lost_slot_still_waits_for_its_volume_and_removing_the_node_frees_it() -> None:
    world = World.of(2)
    service = started(world, 2, volume=True)
    world.lose("n2")
    world.run(24 * 3600 + 60)
    assert [task.node_id for task in world.live(service) if task.status.state is TaskState.PENDING] == ["n2"]
    world.remove_node("n2")
    world.run(20)
    assert set(places(world, service).values()) == {"n1"} and len(world.serving(service)) == 2
    assert set((world.service(service).mesh_homes or {}).values()) == {"n1"}


def test_a_task_that_never_ran_has_no_home() -> None:
    bad = {"n1"}
    world = World.of(2, fate=lambda task, age: TaskState.REJECTED if task.node_id in bad else None)
    service = world.create(stateful(1, volume=True))
    world.until(lambda: places(world, service) == {1: "n2"})
    assert world.tasks(service)[0].node_id == "n1"
    assert world.service(service).mesh_homes == {"1": "n2"}


@pytest.mark.parametrize(
    ("mounts", "given", "sticky"),
    [
        ([], {}, False),
        ([Mount(source="data", target="/d")], {}, True),
        ([Mount(source="data", target="/d")], {"sticky": "false"}, False),
        ([Mount(source="data", target="/d", volume_options=VolumeOptions(driver_config=Driver(name="local")))], {}, True),
        ([Mount(source="data", target="/d", volume_options=VolumeOptions(driver_config=Driver(name="nfs")))], {}, False),
        ([Mount(type="bind", source="/srv", target="/d")], {}, False),
        ([Mount(type="bind", source="/srv", target="/d")], {"sticky": "true"}, True),
    ],
)
def test_what_a_slot_sticks_to(mounts: list[Mount], given: dict[str, str], sticky: bool) -> None:
    base = stateful(1, **given)
    container = msgspec.structs.replace(base.task_template.container_spec, mounts=mounts)  # type: ignore[type-var]
    template = msgspec.structs.replace(base.task_template, container_spec=container)
    rule = stateful_rule(msgspec.structs.replace(base, task_template=template))
    assert rule is not None and rule.sticky is sticky


# ---- fencing --------------------------------------------------------------------------------------------------------------------


def test_a_slot_moves_when_the_agent_of_its_lost_node_has_surely_stopped_it_and_not_before() -> None:
    world = World.of(3)
    service = started(world, 3)
    slot = next(slot for slot, node in places(world, service).items() if node == "n3")
    world.lose("n3")
    world.run(MOVES_AFTER_S - 1)
    assert places(world, service)[slot] == "n3"
    assert world.until(lambda: places(world, service).get(slot) not in (None, "n3")) < 3
    world.find("n3")
    world.run(20)
    assert len(world.serving(service)) == 3 and len(world.live(service)) == 3


def test_a_node_that_comes_back_in_time_keeps_its_slot() -> None:
    world = World.of(2)
    service = started(world, 2)
    tasks = {task.id for task in world.serving(service)}
    world.lose("n2")
    world.run(25)
    world.find("n2")
    world.run(60)
    assert {task.id for task in world.serving(service)} == tasks


def test_an_update_waits_for_a_slot_that_can_not_be_seen_to_stop() -> None:
    world = World.of(2)
    service = started(world, 2)
    world.lose("n2")
    world.run(16)
    world.update(service, with_image(world.service(service).spec, "app:2"))
    world.run(MOVES_AFTER_S - 18)
    assert [image_of(task) for task in world.serving(service) if task.node_id == "n1"] == ["app:2"]
    world.until(lambda: [image_of(task) for task in world.serving(service)] == ["app:2", "app:2"])


def test_a_slot_whose_task_can_not_be_stopped_waits_however_long() -> None:
    world = World.of(2)
    service = started(world, 1)
    world.stuck = {world.serving(service)[0].id}
    world.update(service, with_image(world.service(service).spec, "app:2"))
    world.run(600)
    assert [task.status.state for task in world.live(service)] == [TaskState.READY]
    world.stuck.clear()
    world.until(lambda: [image_of(task) for task in world.serving(service)] == ["app:2"])


def test_a_service_that_becomes_stateful_gets_fenced_tasks() -> None:
    world = World.of(2)
    service = world.create(spec(replicas=2))
    world.until(lambda: len(world.serving(service)) == 2)
    world.update(service, msgspec.structs.replace(spec(replicas=2), labels={"com.meshd.stateful": "true"}))
    world.until(lambda: world.state(service) == "completed")
    assert all(task.mesh_fence == 30_000_000_000 for task in world.serving(service))


# ---- order ----------------------------------------------------------------------------------------------------------------------


def log_of(world: World, service: str) -> list[tuple[str, int]]:
    """(what, slot) as it happens: "runs", "stops"."""
    log: list[tuple[str, int]] = []

    def watch(before: Snapshot, after: Snapshot) -> None:
        for task in sorted(after.tasks_of_service(service), key=lambda task: task.slot):
            old = before.task(task.id)
            if task.status.state is TaskState.RUNNING and (old is None or old.status.state is not TaskState.RUNNING):
                log.append(("runs", task.slot))
            if task.status.state is TaskState.SHUTDOWN and old is not None and old.status.state is not TaskState.SHUTDOWN:
                log.append(("stops", task.slot))

    world.watchers.append(watch)
    return log


def test_ordered_slots_start_from_the_lowest_and_stop_from_the_highest() -> None:
    world = World.of(3)
    service = world.create(stateful(3, order="ordered"))
    log = log_of(world, service)
    world.run(10)
    assert log == [("runs", 1), ("runs", 2), ("runs", 3)]
    log.clear()
    world.update(service, with_image(world.service(service).spec, "app:2"))
    world.run(60)
    assert log == [(what, slot) for slot in (3, 2, 1) for what in ("stops", "runs")]
    log.clear()
    world.update(service, scaled(world.service(service).spec, 0))
    world.run(60)
    assert log == [("stops", 3), ("stops", 2), ("stops", 1)]


def test_an_ordered_slot_waits_for_a_lower_one_that_does_not_run() -> None:
    fate = lambda task, age: TaskState.FAILED if task.slot == 2 and task.status.state is TaskState.STARTING else None  # noqa: E731
    world = World.of(3, fate=fate)
    service = world.create(stateful(3, order="ordered"))
    world.run(30)
    assert {task.slot for task in world.tasks(service)} == {1, 2}
    world.fate = None
    world.until(lambda: len(world.serving(service)) == 3)


def test_slots_that_are_not_ordered_still_go_by_number() -> None:
    fate = lambda task, age: TaskState.FAILED if task.slot == 1 and task.status.state is TaskState.STARTING else None  # noqa: E731
    world = World.of(3, fate=fate)
    service = world.create(stateful(3))
    world.run(5)
    world.update(service, scaled(world.service(service).spec, 2))
    world.run(20)
    assert {task.slot for task in world.live(service)} == {1, 2}


# ---- properties -----------------------------------------------------------------------------------------------------------------

NODES = ("n1", "n2", "n3")
deeds = st.one_of(
    st.tuples(st.sampled_from(["lose", "find", "drain", "active"]), st.sampled_from(NODES)),
    st.tuples(st.sampled_from(["fail", "scale", "image", "leader"]), st.integers(0, 4)),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    volume=st.booleans(),
    order=st.sampled_from(["parallel", "ordered"]),
    script=st.lists(st.tuples(deeds, st.sampled_from([0.0, 0.15, 1.0, 17.0, 39.0, 41.0, 56.0])), max_size=14),
)
def test_never_two_writers_of_one_slot(volume: bool, order: str, script: list[tuple[tuple[str, str | int], float]]) -> None:
    """`World.write` checks it at every write, also for what runs on nodes that nobody sees."""
    doomed: set[str] = set()

    def fate(task: Task, age: timedelta) -> TaskState | None:
        return TaskState.FAILED if task.id in doomed and age > timedelta() else None

    world = World.of(len(NODES), fate=fate, ask_every=timedelta(seconds=1))
    service = world.create(stateful(3, volume=volume, order=order))
    for (deed, argument), pause_s in script:
        current = world.service(service).spec
        match deed:
            case "lose" if argument not in world.lost:
                world.lose(str(argument))
            case "find" if argument in world.lost:
                world.find(str(argument))
            case "drain" | "active":
                world.availability(str(argument), deed)
            case "fail" if world.live(service):
                doomed.add(world.live(service)[int(argument) % len(world.live(service))].id)
            case "scale":
                world.update(service, scaled(current, int(argument)))
            case "image":
                world.update(service, with_image(current, f"app:{argument}"))
            case "leader":
                world = world.successor()
        world.run(pause_s)
    world.fate = None
    for node in sorted(world.lost):
        world.find(node)
    for node in NODES:
        world.availability(node, "active")
    world.update(service, with_image(scaled(world.service(service).spec, 3), "app:9"))
    world.run(240)
    assert sorted(places(world, service)) == [1, 2, 3] and len(world.live(service)) == 3, world.picture()
    assert {image_of(task) for task in world.live(service)} == {"app:9"}
    if volume:
        assert {str(slot): node for slot, node in places(world, service).items()} == {
            slot: node for slot, node in (world.service(service).mesh_homes or {}).items() if int(slot) <= 3
        }
    writes = world.writes
    world.run(300)
    assert world.writes == writes, f"no rest\n{world.picture()}"
