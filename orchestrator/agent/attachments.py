"""What to do next for a container that somebody started by hand on networks of the cluster.

Pure, as `tasks` is for the containers of services: the caller runs the step, or reports the status, and asks again. Such a container is
never made, started or removed here. What is done: its gate is made before the Engine makes the container, and each time its process
starts, the process is let go on once its network is there. A container that was connected later has no gate and doesn't wait.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.agent.runtime import Container
from orchestrator.agent.tasks import ATTACH_BOUND, NOTHING, Decision, Facts, Said, Step, is_ending
from orchestrator.model import STATE_ORDER, Task, TaskState, terminal

# how long an attachment whose container was never made keeps its addresses: a manager that died in between can't give them back
UNUSED_BOUND = timedelta(minutes=2)
GONE = "its container is gone"
UNUSED = "no container was made for it"


def plan_attachment(task: Task, container: Container | None, facts: Facts, now: datetime) -> Decision:
    if terminal(facts.state):
        return NOTHING
    if STATE_ORDER[task.desired_state] > STATE_ORDER[TaskState.COMPLETE]:
        return Decision(said=Said(TaskState.SHUTDOWN, "detached"))
    if facts.state in (TaskState.ASSIGNED, TaskState.ACCEPTED):
        return Decision(said=Said(TaskState.PREPARING, "preparing"))
    if facts.state is TaskState.PREPARING:
        return Decision(said=Said(TaskState.READY, "prepared")) if facts.prepared else Decision(step=Step.PREPARE)
    if container is None:
        return _without_container(task, facts, now)
    if container.state == "created":
        return NOTHING
    if container.state == "exited" or is_ending(container):
        stopped = Said(TaskState.RUNNING, "its container is stopped")
        return Decision(said=stopped) if facts.state is TaskState.RUNNING and facts.said_pid else NOTHING
    return _alive(container, facts, now)


def plan_foreign(container: Container) -> Decision:
    """A container whose attachment is gone. One that still waits for its network would wait for ever."""
    return Decision(step=Step.STOP) if container.state == "held" else NOTHING


def _without_container(task: Task, facts: Facts, now: datetime) -> Decision:
    attachment, status = task.spec.network_attachment_spec, task.status.container_status
    if attachment is not None and attachment.container_id and not facts.looked_for:
        return NOTHING
    if facts.state is TaskState.RUNNING or (attachment and attachment.container_id) or (status and status.container_id):
        return Decision(said=Said(TaskState.SHUTDOWN, GONE))
    if now - task.status.timestamp < UNUSED_BOUND:
        return Decision(wake_at=task.status.timestamp + UNUSED_BOUND)
    return Decision(said=Said(TaskState.SHUTDOWN, UNUSED))


def _alive(container: Container, facts: Facts, now: datetime) -> Decision:
    if facts.attached:
        if container.state == "held" or facts.released_pid != container.pid:
            return Decision(step=Step.RELEASE)
        if facts.said_pid != container.pid or facts.state is not TaskState.RUNNING:
            return Decision(said=Said(TaskState.RUNNING, "attached"))
        return NOTHING
    if container.state == "held" and facts.attach_error and container.started_at is not None:
        if now - container.started_at > ATTACH_BOUND:
            return Decision(step=Step.STOP)
        return Decision(wake_at=container.started_at + ATTACH_BOUND)
    return NOTHING
