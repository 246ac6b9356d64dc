"""What to do next for each task: a table over what is desired, how far the task is, and what its container does.

Pure: `plan_task` looks at one task and returns one step and/or one status; the caller runs it and asks again. Nothing is remembered
here, so a fresh agent decides the same from the rows and the containers alone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from orchestrator.agent.runtime import Container
from orchestrator.model import (
    STATE_ORDER,
    ContainerStatus,
    PortStatus,
    Task,
    TaskState,
    TaskStatus,
    terminal,
)

UNHEALTHY = "unhealthy container"
FENCED = "stopped by its node, which no manager could be reached from: another node may run it"
VANISHED = "the container is gone: something else than meshd removed it"
ATTACH_BOUND = timedelta(seconds=30)


class Step(enum.Enum):
    PREPARE = "prepare"
    START_HELD = "start held"
    RELEASE = "release"
    STOP = "stop"
    REMOVE = "remove"
    FORGET = "forget"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the agent knows of a task besides its row and its container.

    state: the furthest of the row's state and what this agent has said since. attached: network and DNS of its namespaces are in
    place. attach_error: why not. listening: its ports rule is met (or the bound passed). failure: why the agent stops it.
    cut_off: no leader has been heard of for so long that it may not run. fenced: it was stopped for that (which is not decided here:
    it must happen without rows, too).

    Of attachments only: prepared: the gate was made. looked_for: the Engine was asked for the very container that the row names.
    released_pid, said_pid: the process that was last let go on, and told of; 0 = none.
    """

    state: TaskState
    attached: bool = False
    attach_error: str = ""
    listening: bool = False
    failure: str = ""
    cut_off: bool = False
    fenced: bool = False
    prepared: bool = False
    looked_for: bool = False
    released_pid: int = 0
    said_pid: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """A status to report."""

    state: TaskState
    message: str
    err: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """step: to run now. said: to report now. failure: to be remembered as `Facts.failure`. wake_at: look again then."""

    step: Step | None = None
    said: Said | None = None
    failure: str = ""
    wake_at: datetime | None = None


NOTHING = Decision()


def plan_task(task: Task, container: Container | None, facts: Facts, now: datetime) -> Decision:
    if terminal(facts.state):
        return _after_the_end(task, container)
    if STATE_ORDER[task.desired_state] > STATE_ORDER[TaskState.COMPLETE]:
        return _towards_the_end(task, container, facts)
    if STATE_ORDER[facts.state] < STATE_ORDER[TaskState.ASSIGNED]:
        return NOTHING
    if facts.state is TaskState.ASSIGNED:
        return Decision(said=Said(TaskState.ACCEPTED, "accepted"))
    return _towards_running(task, container, facts, now)


def plan_orphan(container: Container) -> Decision:
    """A container of ours that no row names: its task is gone from the cluster."""
    if is_ending(container):
        return NOTHING
    return Decision(step=Step.STOP if container.state in ("held", "running") else Step.REMOVE)


def is_ending(container: Container) -> bool:
    """Its process has ended and the engine hasn't said how."""
    return container.state == "running" and not container.pid


def _after_the_end(task: Task, container: Container | None) -> Decision:
    """The task is over for the cluster. An exited container is kept for its logs until the row goes."""
    if container is None or is_ending(container):
        return NOTHING
    if container.state in ("held", "running"):
        return Decision(step=Step.STOP)
    if container.state == "created" or task.desired_state is TaskState.REMOVE:
        return Decision(step=Step.REMOVE)
    return NOTHING


def _towards_the_end(task: Task, container: Container | None, facts: Facts) -> Decision:
    """Desired SHUTDOWN or REMOVE (or ORPHANED)."""
    if container is None or container.state in ("created", "exited"):
        return Decision(said=Said(TaskState.SHUTDOWN, "shutdown"))
    if is_ending(container):
        return NOTHING
    served = STATE_ORDER[facts.state] >= STATE_ORDER[TaskState.RUNNING]
    if task.desired_state is TaskState.SHUTDOWN and served and not task.mesh_released:
        return NOTHING
    return Decision(step=Step.STOP)


def _towards_running(task: Task, container: Container | None, facts: Facts, now: datetime) -> Decision:
    started = STATE_ORDER[facts.state] >= STATE_ORDER[TaskState.STARTING]
    if container is None:
        if started:
            return Decision(said=Said(TaskState.FAILED, "started", facts.failure or VANISHED))
        preparing = Said(TaskState.PREPARING, "preparing") if facts.state is TaskState.ACCEPTED else None
        return Decision(step=Step.PREPARE, said=preparing)
    if container.state == "exited":
        return Decision(said=_ended(container, facts))
    if container.state == "created":
        return _prepared(task, facts, now)
    if not started:
        return Decision(said=Said(TaskState.STARTING, "starting"))
    if container.state == "held":
        return _held(container, facts, now)
    return _running(container, facts)


def _prepared(task: Task, facts: Facts, now: datetime) -> Decision:
    if STATE_ORDER[facts.state] < STATE_ORDER[TaskState.READY]:
        return Decision(said=Said(TaskState.READY, "prepared"))
    if task.desired_state is TaskState.READY:
        return NOTHING
    if task.mesh_run_at is not None and now < task.mesh_run_at:
        return Decision(wake_at=task.mesh_run_at)
    if facts.cut_off:
        return NOTHING
    starting = Said(TaskState.STARTING, "starting") if facts.state is TaskState.READY else None
    return Decision(step=Step.START_HELD, said=starting)


def _held(container: Container, facts: Facts, now: datetime) -> Decision:
    if facts.failure:
        return Decision(step=Step.STOP)
    if facts.cut_off:
        return NOTHING
    if facts.attached:
        return Decision(step=Step.RELEASE)
    if facts.attach_error and container.started_at is not None:
        if now - container.started_at > ATTACH_BOUND:
            return Decision(step=Step.STOP, failure=f"its network could not be set up: {facts.attach_error}")
        return Decision(wake_at=container.started_at + ATTACH_BOUND)
    return NOTHING


def _running(container: Container, facts: Facts) -> Decision:
    if is_ending(container):
        return NOTHING
    if facts.failure:
        return Decision(step=Step.STOP)
    if container.health == "unhealthy":
        return Decision(step=Step.STOP, failure=UNHEALTHY)
    if facts.state is TaskState.STARTING and (container.health == "healthy" if container.health else facts.listening):
        return Decision(said=Said(TaskState.RUNNING, "started"))
    return NOTHING


def _ended(container: Container, facts: Facts) -> Said:
    if facts.fenced:
        # not its own end: its restart policy has no say
        return Said(TaskState.SHUTDOWN, "shutdown", FENCED)
    if facts.failure:
        return Said(TaskState.FAILED, "started", facts.failure)
    if container.exit_code == 0 and not container.error:
        return Said(TaskState.COMPLETE, "finished")
    return Said(TaskState.FAILED, "started", container.error or f"task: non-zero exit ({container.exit_code})")


def further(one: TaskState, other: TaskState) -> TaskState:
    return one if STATE_ORDER[one] >= STATE_ORDER[other] else other


def task_status(task: Task, container: Container | None, said: Said, now: datetime) -> TaskStatus:
    status = TaskStatus(timestamp=now, state=said.state, message=said.message, err=said.err)
    if container is not None:
        details = ContainerStatus(container_id=container.id, pid=container.pid, exit_code=container.exit_code)
        status = msgspec.structs.replace(status, container_status=details)
    if said.state is TaskState.RUNNING:
        ports = [port for port in task.mesh_endpoint_ports or () if port.publish_mode == "host"]
        status = msgspec.structs.replace(status, port_status=PortStatus(ports=ports) if ports else None)
    return status
