"""Nodes that are lost, drained, paused, removed; global services; the draining handshake."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from orchestrator.control.context import Context, NetworkAcks
from orchestrator.control.drain import drain
from orchestrator.control.transitions import successor
from orchestrator.dispatcher.assignment import endpoint_row
from orchestrator.dispatcher.messages import EndpointRow
from orchestrator.model import (
    NetworkAttachment,
    NetworkReference,
    Node,
    NodeAttachment,
    NodeStatus,
    PortConfig,
    RestartPolicy,
    Service,
    Task,
    TaskState,
    TaskStatus,
    UpdateConfig,
    Version,
)
from orchestrator.store.base import Guard, Put
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.sim import START, World, node, spec


def on(world: World, service: str) -> list[str]:
    return sorted(task.node_id for task in world.serving(service))


def started(service_spec=None, nodes: int = 3, **fields: object) -> tuple[World, str]:  # type: ignore[no-untyped-def]
    world = World.of(nodes, **fields)
    service = world.create(service_spec or spec(replicas=nodes))
    world.until(lambda: len(world.serving(service)) == nodes)
    return world, service


# ---- lost -----------------------------------------------------------------------------------------------------------------------


def test_a_lost_node_is_down_after_the_grace_and_its_tasks_move_at_once() -> None:
    world, service = started()
    world.lose("n1")
    world.run(14)
    assert world.node("n1").status.state == "ready" and on(world, service) == ["n1", "n2", "n3"]
    world.run(2)
    assert world.node("n1").status.state == "down"
    assert world.until(lambda: len([n for n in on(world, service) if n != "n1"]) == 3) < 1


def test_a_node_that_comes_back_in_time_loses_nothing() -> None:
    world, service = started()
    before = {task.id for task in world.tasks(service)}
    world.lose("n1")
    world.run(10)
    world.find("n1")
    world.run(60)
    assert {task.id for task in world.tasks(service)} == before


def test_a_node_that_comes_back_late_stops_what_was_replaced() -> None:
    world, service = started()
    world.lose("n1")
    world.run(20)
    world.find("n1")
    world.run(2)
    assert len(world.serving(service)) == 3
    old = [task for task in world.tasks(service) if task.node_id == "n1" and task.created_at < START + timedelta(seconds=1)]
    assert [task.status.state for task in old] == [TaskState.SHUTDOWN]


def test_a_node_that_comes_back_serves_until_what_replaced_it_does() -> None:
    """The replacement's image takes long to pull: nobody is without a task meanwhile, and nothing is stopped before it drained."""
    world, service = started(spec(replicas=1), nodes=1)
    (old,) = world.tasks(service)
    world.lose("n1")
    world.run(20)
    world.pace = timedelta(seconds=5)
    world.write(Put(node("n2")))
    world.run(1)
    world.find("n1")
    world.run(3)
    network = world.snapshot.network("net")
    assert network is not None

    def endpoint() -> EndpointRow | None:
        task = world.snapshot.task(old.id)
        return endpoint_row(world.snapshot, task, network) if task is not None else None

    assert on(world, service) == [] and (row := endpoint()) is not None and row.serving
    world.until(lambda: on(world, service) == ["n2"], step_s=0.001)
    world.until(lambda: (row := endpoint()) is None or row.draining)
    world.until(lambda: not [task for task in world.tasks(service) if task.id == old.id and task.status.state is TaskState.RUNNING])


def test_a_node_that_comes_back_makes_room_for_a_task_that_fits_nowhere_else() -> None:
    port = PortConfig(published_port=8080, target_port=80, publish_mode="host")
    world, service = started(spec(replicas=1, ports=[port]), nodes=1)
    world.lose("n1")
    world.run(20)
    world.find("n1")
    world.until(lambda: on(world, service) == ["n1"])
    assert len(world.serving(service)) == 1


def test_a_suspect_node_gets_no_tasks_and_keeps_its_own() -> None:
    world, service = started(nodes=2)
    world.lose("n1")
    world.update(service, spec(replicas=6))
    world.run(5)
    assert on(world, service) == ["n1"] + ["n2"] * 5


def test_a_node_whose_engine_does_not_answer_gets_no_tasks_and_is_not_down() -> None:
    world, service = started(nodes=2)
    description = msgspec.structs.replace(world.node("n1").description, mesh_engine_error="it does not answer")
    world.write(Put(msgspec.structs.replace(world.node("n1"), description=description)))
    world.update(service, spec(replicas=6))
    world.run(60)
    assert on(world, service) == ["n1"] + ["n2"] * 5


@pytest.mark.parametrize("ahead_s", [1, 3600])
def test_a_loss_noted_by_a_clock_that_ran_ahead_still_makes_a_node_down(ahead_s: int) -> None:
    world, _ = started(nodes=2)
    since = world.now + timedelta(seconds=ahead_s)
    world.write(Put(msgspec.structs.replace(world.node("n1"), mesh_disconnected_since=since)))
    world.run(14)
    assert world.node("n1").status.state == "ready"
    world.run(2)
    assert world.node("n1").status.state == "down"


def test_after_a_day_the_tasks_of_a_lost_node_are_orphaned_and_a_removed_service_is_gone() -> None:
    world, service = started()
    world.lose("n1")
    world.run(20)
    world.remove(service)
    world.run(60)
    assert len(world.tasks(service)) == 1
    world.run(24 * 3600)
    assert world.tasks(service) == []


def test_tasks_of_a_removed_node_are_replaced_and_forgotten() -> None:
    world, service = started()
    world.remove_node("n1")
    world.run(0.05)
    assert world.until(lambda: len(world.serving(service)) == 3) < 1
    assert {task.node_id for task in world.tasks(service)} == {"n2", "n3"}


def test_when_every_node_is_lost_tasks_wait_and_the_first_node_gets_them() -> None:
    world, service = started()
    for name in ("n1", "n2", "n3"):
        world.lose(name)
    world.run(30)
    assert {task.status.state for task in world.live(service)} == {TaskState.PENDING}
    world.find("n2")
    assert world.until(lambda: on(world, service) == ["n2", "n2", "n2"]) < 2


# ---- drained, paused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_a_drained_node_hands_its_tasks_over_in_the_services_order(order: str) -> None:
    world, service = started(spec(replicas=3, update=UpdateConfig(parallelism=1, order=order)))
    lowest = 3

    def watch(before: Snapshot, after: Snapshot) -> None:
        nonlocal lowest
        lowest = min(lowest, len(world.serving(service)))

    world.watchers.append(watch)
    world.availability("n1", "drain")
    world.until(lambda: len(on(world, service)) == 3 and "n1" not in on(world, service))
    assert lowest == (3 if order == "start-first" else 2)
    world.run(60)
    assert len(world.live(service)) == 3
    world.availability("n1", "active")
    world.run(10)
    assert "n1" not in on(world, service), "tasks never move by themselves"


def test_a_start_first_successor_that_keeps_failing_keeps_its_delay() -> None:
    world, service = started(spec(replicas=1, update=UpdateConfig(parallelism=1, order="start-first")), nodes=1)
    world.write(Put(node("n2")))
    world.fate = lambda task, age: TaskState.FAILED if task.node_id == "n2" and task.status.state is TaskState.STARTING else None
    world.availability("n1", "drain")
    world.run(30)
    assert on(world, service) == ["n1"], "the old task serves until the new one does"
    assert len([task for task in world.tasks(service) if task.node_id == "n2"]) <= 7
    world.fate = None
    world.until(lambda: on(world, service) == ["n2"])


def test_a_paused_node_keeps_its_tasks_and_gets_no_more() -> None:
    world, service = started(nodes=2)
    world.availability("n1", "pause")
    world.run(5)
    assert on(world, service) == ["n1", "n2"]
    other = world.create(spec("other", replicas=4))
    world.until(lambda: on(world, other) == ["n2"] * 4)


# ---- global ---------------------------------------------------------------------------------------------------------------------


def test_global_one_task_a_node_also_on_new_ones() -> None:
    world, service = started(spec(replicas=None))
    assert on(world, service) == ["n1", "n2", "n3"]
    assert {task.slot for task in world.tasks(service)} == {0}
    world.write(Put(node("n4")))
    assert world.until(lambda: on(world, service) == ["n1", "n2", "n3", "n4"]) < 1


@pytest.mark.parametrize("how", ["drain", "lose", "remove", "pause"])
def test_global_follows_the_nodes(how: str) -> None:
    world, service = started(spec(replicas=None))
    match how:
        case "drain" | "pause":
            world.availability("n2", how)
        case "lose":
            world.lose("n2")
        case "remove":
            world.remove_node("n2")
    world.run(30)
    assert on(world, service) == (["n1", "n2", "n3"] if how == "pause" else ["n1", "n3"])
    assert len(world.live(service)) == (3 if how == "pause" else 2)
    match how:
        case "drain" | "pause":
            world.availability("n2", "active")
        case "lose":
            world.find("n2")
        case "remove":
            world.write(Put(node("n2")))
    world.until(lambda: on(world, service) == ["n1", "n2", "n3"])


def test_global_obeys_constraints_as_they_are_now() -> None:
    world = World.of(3)
    service = world.create(spec(replicas=None, constraints=["node.labels.disk==ssd"]))
    world.run(2)
    assert world.tasks(service) == []
    n2 = world.node("n2")
    world.write(Put(msgspec.structs.replace(n2, spec=msgspec.structs.replace(n2.spec, labels={"disk": "ssd"}))))
    world.until(lambda: on(world, service) == ["n2"])
    world.write(Put(msgspec.structs.replace(world.node("n2"), spec=n2.spec)))
    world.until(lambda: world.live(service) == [])


def test_a_global_task_that_fails_comes_back_on_its_node_after_the_delay() -> None:
    world, service = started(spec(replicas=None))
    victim = next(task for task in world.tasks(service) if task.node_id == "n2")
    world.fate = lambda task, age: TaskState.FAILED if task.id == victim.id else None
    world.run(1)
    assert on(world, service) == ["n1", "n3"]
    assert 3 < world.until(lambda: on(world, service) == ["n1", "n2", "n3"]) < 6


# ---- draining handshake -----------------------------------------------------------------------------------------------------------

# what each of two nodes has shown: None = not connected
SHOWN = [None, 9, 10, 11]


@pytest.mark.parametrize("own", SHOWN)
@pytest.mark.parametrize("other", SHOWN)
@pytest.mark.parametrize("open_connections", [None, 0, 2])
@pytest.mark.parametrize("other_has_network", [False, True])
@pytest.mark.parametrize("known_lost", [False, True])
@pytest.mark.parametrize("behind", [(), ("net",), ("another",)])
def test_release_rule(
    own: int | None, other: int | None, open_connections: int | None, other_has_network: bool, known_lost: bool, behind: tuple[str, ...]
) -> None:
    """Exhaustive: released early only if every node that counts shows version 10, on this network, and no connection is open."""
    attachment = [NodeAttachment(network_id="net", addr="10.0.0.2/20")]
    lost_since = START if known_lost else None
    task = Task(
        id="t",
        version=Version(index=10),
        service_id="s",
        node_id="own",
        status=TaskStatus(state=TaskState.RUNNING),
        desired_state=TaskState.SHUTDOWN,
        mesh_draining_since=START,
        networks_attachments=[NetworkAttachment(network=NetworkReference(id="net"))],
    )
    snapshot = Snapshot().with_object(task).with_object(Service(id="s"))
    nodes = (("own", own, True), ("other", other, other_has_network))
    for id, shown, has in nodes:
        snapshot = snapshot.with_object(
            node(
                id,
                version=Version(index=3),
                mesh_attachments=attachment if has else None,
                mesh_disconnected_since=lost_since if shown is None else None,
            )
        )
    acks = NetworkAcks(
        applied=lambda id: own if id == "own" else other,
        open=lambda id: open_connections,
        behind=lambda id: frozenset(behind if id == "other" else ()),
    )

    def released(after_s: float) -> bool:
        context = Context(now=START + timedelta(seconds=after_s), new_id=lambda: "x", acks=acks)
        decision = drain(snapshot, context)
        assert decision.steps or decision.wakeup == START + timedelta(seconds=10)
        # a lost node was not asked: if it is back by the time this is written, it sends to the task again
        lost = {Guard("node", id, 3) for id, shown, counts in nodes if counts and shown is None and known_lost}
        assert all({change for change in step if isinstance(change, Guard)} == lost for step in decision.steps)
        return bool(decision.steps)

    up_to_date = [(id, shown is not None and shown >= 10 and not (id == "other" and "net" in behind)) for id, shown, _ in nodes]
    shows = [(shown is None and known_lost) or shows for (_, shown, counts), (_, shows) in zip(nodes, up_to_date, strict=True) if counts]
    assert released(1) is (all(shows) and open_connections == 0)
    assert released(10), "the deadline ends every wait"
    assert not released(0), "what was decided in this pass has no version yet"


@pytest.mark.parametrize("reason", ["service gone", "node down", "node gone", "never served"])
def test_released_at_once_when_waiting_is_pointless(reason: str) -> None:
    task = Task(
        id="t",
        version=Version(index=10),
        service_id="s",
        node_id="n",
        status=TaskStatus(state=TaskState.RUNNING),
        desired_state=TaskState.SHUTDOWN,
        mesh_draining_since=None if reason == "never served" else START,
    )
    snapshot = Snapshot().with_object(task)
    if reason != "service gone":
        snapshot = snapshot.with_object(Service(id="s"))
    if reason != "node gone":
        host: Node = node("n", status=NodeStatus(state="down")) if reason == "node down" else node("n")
        snapshot = snapshot.with_object(host)
    decision = drain(snapshot, Context(now=START + timedelta(seconds=1), new_id=lambda: "x"))
    (step,) = decision.steps
    change, *guards = step
    assert isinstance(change, Put) and isinstance(change.obj, Task) and change.obj.mesh_released
    assert guards == ([Guard("node", "n", 0)] if reason == "node down" else [])


def test_a_mute_node_delays_scale_in_until_the_deadline_only() -> None:
    world, service = started(nodes=2)
    world.mute.add("n1")
    victim = max(world.tasks(service), key=lambda task: task.slot)
    world.update(service, spec(replicas=1))
    assert 9 < world.until(lambda: world.snapshot.task(victim.id) is None) < 12


def test_a_global_task_waits_for_its_predecessor_on_the_node() -> None:
    world, service = started(spec(replicas=None))
    old = next(task for task in world.tasks(service) if task.node_id == "n2")
    world.open[old.id] = 1
    world.availability("n2", "drain")
    world.run(1)
    world.availability("n2", "active")
    world.run(1)
    (new,) = [task for task in world.live(service) if task.node_id == "n2"]
    assert new.desired_state is TaskState.READY and new.status.state is TaskState.READY
    world.open.clear()
    assert world.until(lambda: on(world, service) == ["n1", "n2", "n3"]) < 1


def test_a_task_that_waits_for_its_restart_keeps_waiting_on_its_next_node() -> None:
    world, service = started(spec(replicas=1, restart=RestartPolicy(delay=20_000_000_000)), nodes=1)
    world.write(Put(node("n2")))
    (victim,) = world.tasks(service)
    world.fate = lambda task, age: TaskState.FAILED if task.id == victim.id else None
    world.run(1)
    (waiting,) = world.live(service)
    world.availability(waiting.node_id, "drain")
    world.run(1)
    (moved,) = world.live(service)
    assert moved.node_id != waiting.node_id and moved.mesh_run_at == waiting.mesh_run_at
    assert 16 < world.until(lambda: len(world.serving(service)) == 1) < 20


def test_a_successor_is_younger_even_if_the_clock_stands_still() -> None:
    old = Task(id="t", slot=3, created_at=START + timedelta(seconds=1))
    new = successor(Service(id="s"), Context(now=START, new_id=lambda: "u"), old, desired=TaskState.RUNNING)
    assert new.created_at > old.created_at and new.slot == 3


def test_the_next_node_dies_while_a_drained_one_hands_over() -> None:
    """Both tasks of the slot are then where they may not stay: together they get one successor."""
    world, service = started(spec(replicas=1, update=UpdateConfig(parallelism=1, order="start-first")), nodes=1)
    world.write(Put(node("n2")))
    world.availability("n1", "drain")
    world.until(lambda: any(task.node_id == "n2" for task in world.live(service)), step_s=0.001)
    world.lose("n2")
    world.run(1)
    assert sorted(task.node_id for task in world.live(service)) == ["n1", "n2"]
    world.run(20)
    assert sorted(task.node_id for task in world.live(service)) == ["", "n1"]
    world.write(Put(node("n3")))
    world.until(lambda: on(world, service) == ["n3"])
