"""Whatever users and faults do: the laws of `sim.check_laws` hold after every write, and the cluster converges once they stop."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from orchestrator.control.slots import dirty
from orchestrator.model import Node, RestartPolicy, Service, Task, TaskState, UpdateConfig
from tests.orchestrator.control.sim import World, image_of, scaled, seconds, spec, with_image

NODES = ("n1", "n2", "n3")

orders = st.sampled_from(["stop-first", "start-first"])
configs = st.builds(
    UpdateConfig,
    parallelism=st.integers(0, 2),
    delay=st.sampled_from([0, seconds(2)]),
    monitor=st.sampled_from([seconds(1), seconds(3)]),
    failure_action=st.sampled_from(["pause", "continue", "rollback"]),
    max_failure_ratio=st.sampled_from([0.0, 0.5]),
    order=orders,
)
policies = st.builds(RestartPolicy, delay=st.sampled_from([0, seconds(1), seconds(5)]))
deeds = st.one_of(
    st.tuples(st.just("scale"), st.integers(0, 5)),
    st.tuples(st.just("image"), st.sampled_from(["app:1", "app:2", "app:3"])),
    st.tuples(st.just("rollback"), st.just(0)),
    st.tuples(st.just("lose"), st.sampled_from(NODES)),
    st.tuples(st.just("find"), st.sampled_from(NODES)),
    st.tuples(st.sampled_from(["drain", "active", "pause"]), st.sampled_from(NODES)),
    st.tuples(st.just("mute"), st.sampled_from(NODES)),
    st.tuples(st.just("fail"), st.integers(0, 99)),
    st.tuples(st.just("connections"), st.integers(0, 3)),
    st.tuples(st.just("new leader"), st.just(0)),
)
scripts = st.lists(st.tuples(deeds, st.sampled_from([0.0, 0.05, 0.25, 1.0, 6.0, 20.0])), max_size=12)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    replicas=st.one_of(st.none(), st.integers(0, 4)), update=configs, rollback=configs, restart=policies, script=scripts, bad=st.booleans()
)
def test_laws_hold_and_the_cluster_converges(
    replicas: int | None,
    update: UpdateConfig,
    rollback: UpdateConfig,
    restart: RestartPolicy,
    script: list[tuple[tuple[str, str | int], float]],
    bad: bool,
) -> None:
    world = World.of(len(NODES))
    doomed: set[str] = set()

    def fate(task: Task, age: timedelta) -> TaskState | None:
        if bad and image_of(task) == "app:2" and task.status.state is TaskState.STARTING:
            return TaskState.FAILED
        return TaskState.FAILED if task.id in doomed else None

    world.fate = fate
    service = world.create(spec(replicas=replicas, update=update, rollback_config=rollback, restart=restart))
    for (deed, argument), pause_s in script:
        world = perform(world, service, deed, argument, doomed)
        world.run(pause_s)
    heal(world, service)
    world.run(120)
    check_converged(world, service)
    writes = world.writes
    world.run(300)
    assert world.writes == writes, f"no rest\n{world.picture()}"


def perform(world: World, service: str, deed: str, argument: str | int, doomed: set[str]) -> World:
    current = world.service(service)
    match deed, argument:
        case "scale", int(count) if current.spec.mode.replicated is not None:
            world.update(service, scaled(current.spec, count))
        case "image", str(image):
            world.update(service, with_image(current.spec, image))
        case "rollback", _ if current.previous_spec is not None:
            world.rollback(service)
        case "lose", str(node) if node not in world.lost:
            world.lose(node)
        case "find", str(node) if node in world.lost:
            world.find(node)
        case "drain" | "active" | "pause", str(node):
            world.availability(node, deed)
        case "mute", str(node):
            world.mute ^= {node}
        case "fail", int(number) if world.live(service):
            doomed.add(world.live(service)[number % len(world.live(service))].id)
        case "connections", int(count):
            world.open.update({task.id: count for task in world.tasks(service)})
        case "new leader", _:
            return world.successor()
    event(deed)
    return world


def heal(world: World, service: str) -> None:
    """Everything works again, and a good image is asked for."""
    world.fate = None
    world.mute.clear()
    world.open.clear()
    for node in sorted(world.lost):
        world.find(node)
    for node in NODES:
        world.availability(node, "active")
    world.update(service, with_image(world.service(service).spec, "app:4"))


def check_converged(world: World, service_id: str) -> None:
    service: Service = world.service(service_id)
    mode = service.spec.mode.replicated
    expected = world.snapshot.count(Node) if mode is None else mode.replicas
    picture = world.picture()
    serving = world.serving(service_id)
    assert len(serving) == expected == len(world.live(service_id)), picture
    assert not any(dirty(task, service) for task in serving), picture
    assert world.state(service_id) in ("", "completed"), picture
    if mode is None:
        assert sorted(task.node_id for task in serving) == list(NODES), picture
    else:
        assert len({task.slot for task in serving}) == expected, picture
    assert all(task.status.state is not TaskState.RUNNING for task in world.tasks(service_id) if task not in serving), picture
