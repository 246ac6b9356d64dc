"""The only ways in which the leader makes, stops and removes tasks.

Pure: no I/O. Every function returns the changed task; states only move forward.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from orchestrator.control.context import Context
from orchestrator.control.slots import mode_of, wanted, wanted_fence, wanted_ports, wanted_spec
from orchestrator.model import STATE_ORDER, Service, Task, TaskSpec, TaskState, TaskStatus, Version, terminal

_TICK = timedelta(microseconds=1)


def created(
    service: Service,
    ctx: Context,
    *,
    slot: int = 0,
    node_id: str = "",
    desired: TaskState = TaskState.RUNNING,
    run_at: datetime | None = None,
    after: Task | None = None,
    spec: TaskSpec | None = None,
    iteration: Version | None = None,
) -> Task:
    """A new task of the service. `after`: its predecessor in the slot; a task is always younger than its predecessor.

    A slot that has a home (`stateful.homes`) names its node from the start.
    """
    born = ctx.now if after is None else max(ctx.now, after.created_at + _TICK)
    return Task(
        id=ctx.new_id(),
        created_at=born,
        updated_at=ctx.now,
        spec=spec if spec is not None else wanted_spec(service),
        service_id=service.id,
        slot=slot,
        node_id=node_id or (service.mesh_homes or {}).get(str(slot), ""),
        status=TaskStatus(timestamp=ctx.now, state=TaskState.NEW, message="created"),
        desired_state=desired,
        job_iteration=iteration,
        mesh_service_name=service.spec.name,
        mesh_endpoint_ports=wanted_ports(service),
        mesh_run_at=run_at,
        mesh_fence=wanted_fence(service),
    )


def successor(service: Service, ctx: Context, old: Task, *, desired: TaskState, run_at: datetime | None = None) -> Task:
    """The task that takes `old`'s place: same slot, or same node for a global service.

    While an update is paused, its new spec is under suspicion: whoever has to be replaced meanwhile comes back with the old one.
    """
    status = service.update_status
    paused = status is not None and status.state in ("paused", "rollback_paused")
    is_global = mode_of(service) == "global"
    return created(
        service,
        ctx,
        slot=0 if is_global else old.slot,
        node_id=old.node_id if is_global else "",
        desired=desired,
        run_at=run_at,
        after=old,
        spec=old.spec if paused else None,
    )


def stopped(task: Task, now: datetime, *, lost: bool = False) -> Task:
    """Wanted no longer. One that serves drains first; one that no agent knows yet has thereby ended.

    lost: its node is down, so it can't drain now: it becomes `slots.surplus`, unless it is fenced: then it isn't to go on.
    """
    if not wanted(task):
        return task
    task = msgspec.structs.replace(task, desired_state=TaskState.SHUTDOWN, updated_at=now)
    if task.status.state is TaskState.RUNNING:
        return msgspec.structs.replace(task, mesh_lost_since=now) if lost and task.mesh_fence is None else drained(task, now)
    return _ended_if_unknown(msgspec.structs.replace(task, mesh_released=True), now)


def drained(task: Task, now: datetime) -> Task:
    """No new connection goes to it from here on."""
    return msgspec.structs.replace(task, mesh_draining_since=now, updated_at=now)


def removed(task: Task, now: datetime) -> Task:
    """To be stopped without draining and forgotten."""
    if task.desired_state is TaskState.REMOVE:
        return task
    task = msgspec.structs.replace(task, desired_state=TaskState.REMOVE, mesh_released=True, updated_at=now)
    return _ended_if_unknown(task, now)


def promoted(task: Task, now: datetime) -> Task:
    return msgspec.structs.replace(task, desired_state=TaskState.RUNNING, updated_at=now)


def released(task: Task, now: datetime) -> Task:
    return msgspec.structs.replace(task, mesh_released=True, updated_at=now)


def orphaned(task: Task, now: datetime, message: str) -> Task:
    """Its node is lost for good: nobody will ever report on it."""
    if terminal(task.status.state):
        return task
    status = msgspec.structs.replace(task.status, state=TaskState.ORPHANED, timestamp=now, message=message)
    return msgspec.structs.replace(task, status=status, mesh_released=True, updated_at=now)


def _ended_if_unknown(task: Task, now: datetime) -> Task:
    if STATE_ORDER[task.status.state] >= STATE_ORDER[TaskState.ASSIGNED]:
        return task
    status = msgspec.structs.replace(task.status, state=TaskState.SHUTDOWN, timestamp=now, message="stopped before it had a node", err="")
    return msgspec.structs.replace(task, status=status)
