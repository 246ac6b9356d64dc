"""A task that ended is replaced in its slot, as its restart policy says.

Pure: no I/O. The history that max attempts ask for is read from the stored tasks, so a new leader counts like the old one did.
Source: SwarmKit orchestrator/restart. Differs: a task that did not end by itself (its node is lost) is replaced whatever the
policy says, and without delay: the policy speaks of the task's own end.
"""

from __future__ import annotations

from datetime import datetime

from orchestrator.control.attention import attention
from orchestrator.control.context import Context
from orchestrator.control.defaults import restart_rule
from orchestrator.control.eligibility import Placement, keeps_tasks, stays
from orchestrator.control.slots import Slot, dirty, ended_by_itself, may_restart, mode_of, slots_of, wanted
from orchestrator.control.steps import Decision, Step, earliest
from orchestrator.control.transitions import stopped, successor
from orchestrator.model import Service, Task, TaskState, terminal
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot


def restart(snapshot: Snapshot, ctx: Context) -> Decision:
    steps: list[Step] = []
    wakeup: datetime | None = None
    for service in attention(snapshot).unsettled():
        if mode_of(service) == "job":
            continue
        of_service = snapshot.tasks_of_service(service.id)
        if not any(_has_ended(task) for task in of_service):
            continue
        for slot in slots_of(of_service).values():
            tasks = [task for task in slot.tasks if _has_ended(task)]
            if not tasks:
                continue
            due = max((task.mesh_run_at for task in tasks if task.mesh_run_at is not None), default=ctx.now)
            # it failed to get ready, before its restart delay was over: that delay still counts, or bad images would spin
            if due > ctx.now:
                wakeup = earliest(wakeup, due)
            else:
                steps.append(_step(snapshot, ctx, service, slot, tasks))
    return Decision(steps, wakeup)


def _has_ended(task: Task) -> bool:
    """And nobody has dealt with that yet."""
    return wanted(task) and terminal(task.status.state)


def _step(snapshot: Snapshot, ctx: Context, service: Service, slot: Slot, ended: list[Task]) -> Step:
    changes = [Put(stopped(task, ctx.now)) for task in ended]
    last = ended[-1]
    if _needs_replacement(snapshot, service, slot, last):
        changes.append(Put(_replacement(ctx, service, last)))
    return tuple(changes)


def _needs_replacement(snapshot: Snapshot, service: Service, slot: Slot, ended: Task) -> bool:
    # a task that is about to be handed over (an older spec, a node being drained) doesn't stand in for the one that failed
    if any(stays(snapshot, other) and not dirty(other, service) for other in slot.live):
        return False
    if mode_of(service) == "global":
        node = snapshot.node(ended.node_id)
        if node is None or not keeps_tasks(node) or not Placement(service.spec.task_template).matches(node):
            return False
    return may_restart(ended, slot.tasks)


def _replacement(ctx: Context, service: Service, ended: Task) -> Task:
    # READY even without delay: succession lets it run once nothing of its slot is still stopping
    delay = restart_rule(ended.spec).delay if ended_by_itself(ended) else None
    return successor(service, ctx, ended, desired=TaskState.READY, run_at=ctx.now + delay if delay else None)
