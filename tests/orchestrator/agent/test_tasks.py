"""The planner: every combination of desired state, status and container, then the single rules, then whole lives."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from orchestrator.agent.runtime import Container
from orchestrator.agent.tasks import (
    ATTACH_BOUND,
    NOTHING,
    UNHEALTHY,
    VANISHED,
    Decision,
    Facts,
    Said,
    Step,
    plan_orphan,
    plan_task,
    task_status,
)
from orchestrator.model import STATE_ORDER, ContainerSpec, PortConfig, Task, TaskSpec, TaskState, TaskStatus, terminal

NOW = datetime(2026, 1, 1, tzinfo=UTC)
S = TaskState
DESIRED = (S.READY, S.RUNNING, S.COMPLETE, S.SHUTDOWN, S.REMOVE)
CONTAINERS: dict[str, Container | None] = {
    "none": None,
    "created": Container("c", "t", "n", "created"),
    "held": Container("c", "t", "n", "held", pid=7, started_at=NOW),
    "running": Container("c", "t", "n", "running", pid=7, started_at=NOW),
    "ending": Container("c", "t", "n", "running", started_at=NOW),
    "exited": Container("c", "t", "n", "exited", exit_code=3),
    "finished": Container("c", "t", "n", "exited"),
}


def make(desired: TaskState, status: TaskState, **more: object) -> Task:
    task = Task(id="t", desired_state=desired, status=TaskStatus(state=status), spec=TaskSpec(container_spec=ContainerSpec(image="i")))
    return msgspec.structs.replace(task, **more)


def decide(desired: TaskState, status: TaskState, container: str, facts: Facts | None = None, **more: object) -> Decision:
    return plan_task(make(desired, status, **more), CONTAINERS[container], facts or Facts(status), NOW)


ALL = list(itertools.product(DESIRED, TaskState, CONTAINERS, (False, True), (False, True), (False, True), ("", "broken")))


def test_every_combination_keeps_the_rules() -> None:
    """5 desired x 14 states x 7 containers x released x attached x listening x failure: 7,840 decisions."""
    for desired, status, name, released, attached, listening, failure in ALL:
        container = CONTAINERS[name]
        facts = Facts(status, attached=attached, listening=listening, failure=failure)
        decision = decide(desired, status, name, facts, mesh_released=released)
        where = (desired, status, name, released, attached, listening, failure)
        alive = container is not None and container.pid != 0
        if decision.said is not None:
            assert STATE_ORDER[decision.said.state] > STATE_ORDER[status], where
            # over means over: no process can be running any more
            assert not (terminal(decision.said.state) and alive), where
        match decision.step:
            case Step.PREPARE:
                assert container is None and not terminal(status) and desired in (S.READY, S.RUNNING, S.COMPLETE), where
            case Step.START_HELD:
                assert name == "created" and desired in (S.RUNNING, S.COMPLETE) and not terminal(status), where
            case Step.RELEASE:
                assert name == "held" and attached and not terminal(status) and not failure, where
            case Step.STOP:
                assert alive, where
                wanted = desired in (S.READY, S.RUNNING, S.COMPLETE)
                assert terminal(status) or failure or not wanted, where
                if desired is S.SHUTDOWN and status is S.RUNNING and not failure:
                    assert released, where
            case Step.REMOVE:
                assert container is not None and not alive and terminal(status), where
                # what has run keeps its logs until its task is removed
                assert name == "created" or desired is S.REMOVE, where
        if status in (S.NEW, S.PENDING) and desired in (S.READY, S.RUNNING, S.COMPLETE):
            assert decision == NOTHING, where


@pytest.mark.parametrize(("desired", "status", "name"), list(itertools.product(DESIRED, TaskState, CONTAINERS)))
def test_what_is_cut_off_begins_nothing_and_what_was_fenced_did_not_end_by_itself(desired: TaskState, status: TaskState, name: str) -> None:
    cut_off = decide(desired, status, name, Facts(status, attached=True, listening=True, cut_off=True))
    assert cut_off.step not in (Step.START_HELD, Step.RELEASE)
    fenced = decide(desired, status, name, Facts(status, cut_off=True, fenced=True))
    if name in ("exited", "finished") and fenced.said is not None:
        assert fenced.said.state not in (S.FAILED, S.COMPLETE)


@pytest.mark.parametrize(
    ("desired", "ends"), [(S.READY, S.READY), (S.RUNNING, S.RUNNING), (S.SHUTDOWN, S.SHUTDOWN), (S.REMOVE, S.SHUTDOWN)]
)
@pytest.mark.parametrize("status", [S.ASSIGNED, S.ACCEPTED, S.PREPARING, S.READY, S.STARTING, S.RUNNING])
@pytest.mark.parametrize("name", list(CONTAINERS))
def test_following_the_plan_comes_to_rest(desired: TaskState, ends: TaskState, status: TaskState, name: str) -> None:
    """From anywhere, doing what the plan says and nothing else ends where it should, or in FAILED / COMPLETE by the container's doing."""
    container, state, failure = CONTAINERS[name], status, ""
    for _ in range(20):
        task = make(desired, status, mesh_released=True)
        decision = plan_task(task, container, Facts(state, attached=True, listening=True, failure=failure), NOW)
        failure = decision.failure or failure
        if decision.said:
            state = decision.said.state
        match decision.step:
            case Step.PREPARE:
                container = CONTAINERS["created"]
            case Step.START_HELD:
                container = CONTAINERS["held"]
            case Step.RELEASE:
                container = CONTAINERS["running"]
            case Step.STOP:
                container = replace(CONTAINERS["exited"] or pytest.fail(), exit_code=143)
            case Step.REMOVE:
                container = None
            case None if decision.said is None:
                break
    else:
        pytest.fail("never comes to rest")
    own_end = name in ("exited", "finished") or (name == "none" and STATE_ORDER[status] >= STATE_ORDER[S.STARTING])
    if name == "ending":
        # waits for the engine's word
        assert container == CONTAINERS["ending"]
    elif own_end and desired in (S.READY, S.RUNNING):
        assert state in (S.FAILED, S.COMPLETE)
    elif desired is S.READY:
        assert STATE_ORDER[state] >= STATE_ORDER[S.READY]
    else:
        assert state is ends
    if desired is S.REMOVE and name != "ending":
        assert container is None


@pytest.mark.parametrize(
    ("desired", "status", "container", "facts", "expected"),
    [
        (S.RUNNING, S.ASSIGNED, "none", {}, Decision(said=Said(S.ACCEPTED, "accepted"))),
        (S.RUNNING, S.ACCEPTED, "none", {}, Decision(step=Step.PREPARE, said=Said(S.PREPARING, "preparing"))),
        (S.RUNNING, S.PREPARING, "none", {}, Decision(step=Step.PREPARE)),
        (S.READY, S.PREPARING, "created", {}, Decision(said=Said(S.READY, "prepared"))),
        (S.READY, S.READY, "created", {}, NOTHING),
        (S.READY, S.READY, "none", {}, Decision(step=Step.PREPARE)),
        (S.RUNNING, S.READY, "created", {}, Decision(step=Step.START_HELD, said=Said(S.STARTING, "starting"))),
        (S.RUNNING, S.STARTING, "created", {}, Decision(step=Step.START_HELD)),
        (S.RUNNING, S.STARTING, "held", {}, NOTHING),
        (S.RUNNING, S.STARTING, "held", {"attached": True}, Decision(step=Step.RELEASE)),
        (S.RUNNING, S.STARTING, "running", {}, NOTHING),
        (S.RUNNING, S.STARTING, "running", {"listening": True}, Decision(said=Said(S.RUNNING, "started"))),
        (S.RUNNING, S.RUNNING, "running", {}, NOTHING),
        (S.RUNNING, S.RUNNING, "ending", {}, NOTHING),
        (S.RUNNING, S.RUNNING, "exited", {}, Decision(said=Said(S.FAILED, "started", "task: non-zero exit (3)"))),
        (S.RUNNING, S.RUNNING, "finished", {}, Decision(said=Said(S.COMPLETE, "finished"))),
        (S.RUNNING, S.RUNNING, "none", {}, Decision(said=Said(S.FAILED, "started", VANISHED))),
        (S.RUNNING, S.RUNNING, "exited", {"failure": UNHEALTHY}, Decision(said=Said(S.FAILED, "started", UNHEALTHY))),
        (S.SHUTDOWN, S.RUNNING, "running", {}, NOTHING),
        (S.SHUTDOWN, S.STARTING, "running", {}, Decision(step=Step.STOP)),
        (S.SHUTDOWN, S.READY, "created", {}, Decision(said=Said(S.SHUTDOWN, "shutdown"))),
        (S.SHUTDOWN, S.SHUTDOWN, "created", {}, Decision(step=Step.REMOVE)),
        (S.SHUTDOWN, S.RUNNING, "exited", {}, Decision(said=Said(S.SHUTDOWN, "shutdown"))),
        (S.SHUTDOWN, S.SHUTDOWN, "exited", {}, NOTHING),
        (S.REMOVE, S.RUNNING, "running", {}, Decision(step=Step.STOP)),
        (S.REMOVE, S.SHUTDOWN, "exited", {}, Decision(step=Step.REMOVE)),
        (S.RUNNING, S.ORPHANED, "running", {}, Decision(step=Step.STOP)),
        (S.RUNNING, S.REJECTED, "none", {}, NOTHING),
    ],
)  # fmt: skip
def test_single_rules(desired: TaskState, status: TaskState, container: str, facts: dict[str, bool], expected: Decision) -> None:
    assert decide(desired, status, container, Facts(status, **facts)) == expected  # type: ignore[arg-type]


def test_released_is_stopped() -> None:
    assert decide(S.SHUTDOWN, S.RUNNING, "running", mesh_released=True) == Decision(step=Step.STOP)


def test_what_this_agent_has_said_counts_before_the_managers_have_stored_it() -> None:
    """Its row still says STARTING, but it was offered traffic: it drains like any other."""
    assert decide(S.SHUTDOWN, S.STARTING, "running", Facts(S.RUNNING)) == NOTHING


def test_restart_delay() -> None:
    due = NOW + timedelta(seconds=5)
    assert decide(S.RUNNING, S.READY, "created", mesh_run_at=due) == Decision(wake_at=due)
    assert decide(S.RUNNING, S.READY, "created", mesh_run_at=NOW).step is Step.START_HELD


@pytest.mark.parametrize(("health", "said"), [("starting", None), ("healthy", S.RUNNING)])
def test_a_health_check_wins_over_ports(health: str, said: TaskState | None) -> None:
    container = replace(CONTAINERS["running"] or pytest.fail(), health=health)
    decision = plan_task(make(S.RUNNING, S.STARTING), container, Facts(S.STARTING, listening=True), NOW)
    assert (decision.said and decision.said.state) == said


@pytest.mark.parametrize("status", [S.STARTING, S.RUNNING])
def test_unhealthy(status: TaskState) -> None:
    container = replace(CONTAINERS["running"] or pytest.fail(), health="unhealthy")
    assert plan_task(make(S.RUNNING, status), container, Facts(status, listening=True), NOW) == Decision(step=Step.STOP, failure=UNHEALTHY)


def test_the_engines_sentence_wins_over_the_exit_code() -> None:
    container = Container("c", "t", "n", "exited", exit_code=127, error='exec: "x": executable file not found in $PATH')
    decision = plan_task(make(S.RUNNING, S.STARTING), container, Facts(S.STARTING), NOW)
    assert decision.said == Said(S.FAILED, "started", 'exec: "x": executable file not found in $PATH')


def test_a_network_that_never_comes() -> None:
    held, facts = CONTAINERS["held"], Facts(S.STARTING, attach_error="no VXLAN")
    assert plan_task(make(S.RUNNING, S.STARTING), held, facts, NOW) == Decision(wake_at=NOW + ATTACH_BOUND)
    late = plan_task(make(S.RUNNING, S.STARTING), held, facts, NOW + ATTACH_BOUND + timedelta(seconds=1))
    assert late == Decision(step=Step.STOP, failure="its network could not be set up: no VXLAN")


@pytest.mark.parametrize(
    ("name", "step"), [("created", Step.REMOVE), ("held", Step.STOP), ("running", Step.STOP), ("ending", None), ("exited", Step.REMOVE)]
)
def test_orphans(name: str, step: Step | None) -> None:
    assert plan_orphan(CONTAINERS[name] or pytest.fail()).step is step


def test_status() -> None:
    port, ingress = PortConfig(target_port=80, published_port=8080, publish_mode="host"), PortConfig(target_port=80, published_port=81)
    task = make(S.RUNNING, S.STARTING, mesh_endpoint_ports=[port, ingress])
    status = task_status(task, CONTAINERS["running"], Said(S.RUNNING, "started"), NOW)
    assert status.container_status is not None
    assert status.port_status is not None
    assert (status.state, status.container_status.pid, status.port_status.ports) == (S.RUNNING, 7, [port])
    assert task_status(task, None, Said(S.ACCEPTED, "accepted"), NOW) == TaskStatus(timestamp=NOW, state=S.ACCEPTED, message="accepted")
