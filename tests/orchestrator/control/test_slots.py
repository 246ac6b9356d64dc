"""Dirty tasks, restart attempts, defaults, the order of slots worth keeping."""

from __future__ import annotations

import itertools
from datetime import timedelta

import msgspec
import pytest

from orchestrator.control.defaults import history_limit, replicas, restart_rule, stop_grace, update_rule
from orchestrator.control.replicated import kept_first
from orchestrator.control.slots import dirty, may_restart, mode_of, slots_of
from orchestrator.model import (
    Cluster,
    ClusterSpec,
    ContainerSpec,
    NetworkAttachmentConfig,
    OrchestrationConfig,
    Placement,
    PortConfig,
    ReplicatedJob,
    ReplicatedService,
    ResourceRequirements,
    RestartPolicy,
    Service,
    ServiceMode,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
    UpdateConfig,
)
from tests.orchestrator.control.sim import START, scaled, seconds, spec, with_image


def made_from(service: Service) -> Task:
    endpoint = service.spec.endpoint_spec
    return Task(id="t", spec=service.spec.task_template, mesh_endpoint_ports=endpoint.ports if endpoint else None, service_id=service.id)


def service_of(service_spec: ServiceSpec) -> Service:
    return Service(id="s", spec=service_spec)


INGRESS = PortConfig(target_port=80, published_port=8080)
OTHER_INGRESS = PortConfig(target_port=80, published_port=8081)
HOST = PortConfig(target_port=80, published_port=8080, publish_mode="host")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (spec(), spec(), False),
        (spec(), with_image(spec(), "app:2"), True),
        (spec(), scaled(spec(), 7), False),
        (spec(), spec(update=UpdateConfig(parallelism=3)), False),
        (spec(), spec(constraints=["node.role==worker"]), True),
        (spec(), spec(networks=["net", "net2"]), True),
        (spec(), spec(ports=[INGRESS]), True),
        (spec(ports=[INGRESS]), spec(ports=[OTHER_INGRESS]), False),
        (spec(ports=[INGRESS]), spec(ports=[INGRESS, OTHER_INGRESS]), False),
        (spec(ports=[INGRESS]), spec(), False),
        (spec(ports=[INGRESS]), spec(ports=[HOST]), True),
        (spec(ports=[HOST]), spec(), True),
        (spec(ports=[HOST, INGRESS]), spec(ports=[INGRESS, HOST]), False),
    ],
)
def test_dirty(before: ServiceSpec, after: ServiceSpec, expected: bool) -> None:
    assert dirty(made_from(service_of(before)), service_of(after)) is expected


@pytest.mark.parametrize(
    "template",
    [
        TaskSpec(container_spec=ContainerSpec(image="a"), placement=Placement()),
        TaskSpec(container_spec=ContainerSpec(image="a", env=[], labels={}), runtime="container"),
        TaskSpec(container_spec=ContainerSpec(image="a"), resources=ResourceRequirements(), networks=[]),
    ],
)
def test_other_words_for_the_same_spec_are_not_dirty(template: TaskSpec) -> None:
    task = Task(id="t", spec=TaskSpec(container_spec=ContainerSpec(image="a")))
    assert not dirty(task, service_of(ServiceSpec(task_template=template)))


def test_networks_given_at_the_service_count_as_the_tasks() -> None:
    old_place = ServiceSpec(networks=[NetworkAttachmentConfig(target="net")])
    new_place = ServiceSpec(task_template=TaskSpec(networks=[NetworkAttachmentConfig(target="net")]))
    assert not dirty(made_from(service_of(new_place)), service_of(old_place))


# ---- restart attempts -----------------------------------------------------------------------------------------------------------


def ended(number: int, state: TaskState = TaskState.FAILED, policy: RestartPolicy | None = None, at_s: float | None = None) -> Task:
    born = START + timedelta(seconds=number * 10)
    end = START + timedelta(seconds=at_s) if at_s is not None else born + timedelta(seconds=1)
    return Task(
        id=f"t{number}", slot=1, created_at=born, spec=TaskSpec(restart_policy=policy), status=TaskStatus(state=state, timestamp=end)
    )


@pytest.mark.parametrize(
    ("condition", "state", "expected"),
    [
        ("", TaskState.COMPLETE, True),
        ("any", TaskState.COMPLETE, True),
        ("any", TaskState.FAILED, True),
        ("any", TaskState.REJECTED, True),
        ("on-failure", TaskState.COMPLETE, False),
        ("on-failure", TaskState.FAILED, True),
        ("on-failure", TaskState.REJECTED, True),
        ("none", TaskState.COMPLETE, False),
        ("none", TaskState.FAILED, False),
        # it did not end by itself: the policy has no say
        ("none", TaskState.ORPHANED, True),
        ("none", TaskState.SHUTDOWN, True),
    ],
)
def test_restart_condition(condition: str, state: TaskState, expected: bool) -> None:
    task = ended(1, state, RestartPolicy(condition=condition))
    assert may_restart(task, [task]) is expected


@pytest.mark.parametrize(("attempts", "earlier"), list(itertools.product(range(4), range(5))))
def test_max_attempts_count_earlier_ends_of_the_same_spec(attempts: int, earlier: int) -> None:
    policy = RestartPolicy(max_attempts=attempts)
    other_spec = ended(0, policy=RestartPolicy(max_attempts=attempts, delay=1))
    tasks = [other_spec, *(ended(number, policy=policy) for number in range(1, earlier + 2))]
    assert may_restart(tasks[-1], tasks) is (attempts == 0 or earlier < attempts)


def test_attempts_outside_the_window_are_forgiven() -> None:
    policy = RestartPolicy(max_attempts=1, window=seconds(30))
    old, recent, last = (ended(number, policy=policy, at_s=at_s) for number, at_s in ((1, 10), (2, 35), (3, 60)))
    assert may_restart(last, [old, last])
    assert not may_restart(last, [old, recent, last])


def test_a_slot_is_finished_only_while_its_last_task_ended_for_good() -> None:
    policy = RestartPolicy(condition="none")
    undecided = ended(1, TaskState.COMPLETE, policy)
    assert not slots_of([undecided])[1].finished() and slots_of([undecided])[1].filled()
    done = msgspec.structs.replace(undecided, desired_state=TaskState.SHUTDOWN)
    assert slots_of([done])[1].finished() and slots_of([done])[1].filled()
    to_restart = msgspec.structs.replace(ended(1, TaskState.COMPLETE), desired_state=TaskState.SHUTDOWN)
    assert not slots_of([to_restart])[1].filled()
    # asked to stop while it ran: what it said afterwards is not its own end
    asked = msgspec.structs.replace(done, mesh_draining_since=START)
    assert not slots_of([asked])[1].finished()


# ---- order and defaults ---------------------------------------------------------------------------------------------------------


def placed(slot: int, node_id: str, state: TaskState = TaskState.RUNNING) -> Task:
    return Task(id=f"t{slot}", slot=slot, node_id=node_id, status=TaskStatus(state=state))


@pytest.mark.parametrize(
    ("tasks", "order"),
    [
        # highest numbers go first
        ([placed(1, "a"), placed(2, "b"), placed(3, "c")], [1, 2, 3]),
        # what doesn't run goes before what runs
        ([placed(1, "a", TaskState.PENDING), placed(2, "b"), placed(3, "c")], [2, 3, 1]),
        # crowded nodes give theirs first
        ([placed(1, "a"), placed(2, "a"), placed(3, "b"), placed(4, "a")], [1, 3, 2, 4]),
    ],
)
def test_slots_worth_keeping(tasks: list[Task], order: list[int]) -> None:
    assert [slot.key for slot in kept_first(list(slots_of(tasks).values()))] == order


def test_defaults_are_dockers() -> None:
    rule = restart_rule(TaskSpec())
    assert (rule.condition, rule.delay, rule.max_attempts) == ("any", timedelta(seconds=5), 0)
    assert restart_rule(TaskSpec(restart_policy=RestartPolicy())).delay == timedelta(seconds=5)
    assert restart_rule(TaskSpec(restart_policy=RestartPolicy(delay=0))).delay == timedelta()
    absent, empty = update_rule(None), update_rule(UpdateConfig())
    assert (absent.parallelism, absent.monitor, absent.failure_action, absent.order) == (1, timedelta(seconds=5), "pause", "stop-first")
    assert (empty.parallelism, empty.monitor, empty.failure_action, empty.order) == (0, timedelta(seconds=5), "pause", "stop-first")
    assert replicas(Service(id="s")) == 1
    assert replicas(service_of(spec(replicas=0))) == 0
    assert replicas(service_of(ServiceSpec(mode=ServiceMode(replicated=ReplicatedService())))) == 1
    assert stop_grace(TaskSpec()) == timedelta(seconds=10)
    assert stop_grace(TaskSpec(container_spec=ContainerSpec(stop_grace_period=seconds(2)))) == timedelta(seconds=2)


@pytest.mark.parametrize(("stored", "limit"), [(None, 5), (0, 0), (3, 3), (-1, None)])
def test_history_limit(stored: int | None, limit: int | None) -> None:
    cluster = Cluster(id="c", spec=ClusterSpec(orchestration=OrchestrationConfig(task_history_retention_limit=stored)))
    assert history_limit(cluster) == limit
    assert history_limit(None) == 5


def test_modes() -> None:
    assert mode_of(Service(id="s")) == "replicated"
    assert mode_of(service_of(spec(replicas=None))) == "global"
    assert mode_of(service_of(ServiceSpec(mode=ServiceMode(replicated_job=ReplicatedJob())))) == "job"
