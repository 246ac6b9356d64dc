"""What becomes of a node that is lost, drained or removed, and of its tasks.

Pure: no I/O. The dispatcher says since when a node is disconnected and makes it ready again; that it is down is decided here.
Source: SwarmKit manager/dispatcher (grace, orphaned after 24 h), orchestrator/restart (tasks of down and drained nodes).
Differs: a drained node's tasks are handed over in the order of the service's update config, and the restart condition has no say:
the task did not end by itself.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from orchestrator.control.context import Context
from orchestrator.control.defaults import update_rule
from orchestrator.control.eligibility import fenced_at, keeps_tasks, placed, stays, unreachable
from orchestrator.control.slots import age_key, dirty, live, mode_of, slot_key, wanted
from orchestrator.control.steps import Decision, Step, applied, earliest
from orchestrator.control.transitions import orphaned, stopped, successor
from orchestrator.model import Node, Service, Task, TaskState, is_attachment, terminal
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot

NEVER = datetime.max.replace(tzinfo=UTC)
DOWN_GRACE = timedelta(seconds=15)
ORPHAN_AFTER = timedelta(hours=24)


def node_states(snapshot: Snapshot, ctx: Context) -> Decision:
    """A node that is disconnected is suspect (`eligibility.suspect`), one that stays so becomes DOWN."""
    decision = Decision()
    wakeup: datetime | None = None
    for node in sorted(snapshot.all(Node), key=lambda node: node.id):
        since = node.mesh_disconnected_since
        if since is None or node.status.state == "down":
            continue
        if since > ctx.now:
            # noted by a clock that ran ahead of this one: its grace begins now, or it would last as long as the clocks differ
            decision.steps.append((Put(msgspec.structs.replace(node, mesh_disconnected_since=ctx.now, updated_at=ctx.now)),))
            wakeup = earliest(wakeup, ctx.now + DOWN_GRACE)
            continue
        if ctx.now < since + DOWN_GRACE:
            wakeup = earliest(wakeup, since + DOWN_GRACE)
            continue
        status = msgspec.structs.replace(node.status, state="down", message="heartbeat failure")
        decision.steps.append((Put(msgspec.structs.replace(node, status=status, updated_at=ctx.now)),))
    return Decision(decision.steps, wakeup)


def lost_tasks(snapshot: Snapshot, ctx: Context) -> Decision:
    """Tasks of removed nodes, and of nodes down for a day, are ORPHANED: nobody will report on them any more. Attachments have no
    successors: they keep their addresses as long as their node is of the cluster."""
    steps: list[Step] = []
    wakeup: datetime | None = None
    for node_id in sorted(snapshot.tasks_by_node):
        node = snapshot.node(node_id)
        if node is not None:
            since = node.mesh_disconnected_since
            if node.status.state != "down" or since is None:
                continue
            if ctx.now < since + ORPHAN_AFTER:
                wakeup = earliest(wakeup, since + ORPHAN_AFTER)
                continue
        message = "the node is gone" if node is None else "the node has been down for a day"
        lost = [task for task in snapshot.tasks_of_node(node_id) if not terminal(task.status.state)]
        # one that is only meant for this node is still waiting for it
        lost = [task for task in lost if node is None or (placed(task) and not is_attachment(task))]
        steps.extend((Put(orphaned(task, ctx.now, message)),) for task in sorted(lost, key=age_key))
    return Decision(steps, wakeup)


def evacuation(snapshot: Snapshot, ctx: Context) -> Decision:
    """Tasks of replicated services leave nodes that are down or drained. (Global tasks are stopped by their own loop.)"""
    decision = Decision()
    picture = snapshot
    wakeup: datetime | None = None
    for node_id in sorted(snapshot.tasks_by_node):
        node = snapshot.node(node_id)
        if keeps_tasks(node):
            continue
        for task in sorted(snapshot.tasks_of_node(node_id), key=age_key):
            task = picture.task(task.id) or task
            service = snapshot.service(task.service_id) if task.service_id else None
            if service is None or mode_of(service) != "replicated" or not live(task):
                continue
            waits = _waits(snapshot, service, task)
            if waits is not None and waits > ctx.now:
                wakeup = earliest(wakeup, None if waits == NEVER else waits)
                continue
            # the picture moves along: two tasks of one slot may have to leave their nodes at once
            step = _leave(picture, ctx, service, task)
            if step:
                decision.steps.append(step)
                picture = applied(picture, [step])
    return Decision(decision.steps, wakeup)


def _waits(snapshot: Snapshot, service: Service, task: Task) -> datetime | None:
    """Until when a stateful service's slot is left where it is, although its node is lost or drained."""
    if task.mesh_fence is None:
        return None
    if not placed(task):
        return NEVER
    if not unreachable(snapshot.node(task.node_id)):
        return None
    # its volumes are there and nowhere else; else it could not run elsewhere before that time
    return NEVER if str(task.slot) in (service.mesh_homes or {}) else fenced_at(snapshot, task)


def _leave(snapshot: Snapshot, ctx: Context, service: Service, task: Task) -> Step:
    lost = unreachable(snapshot.node(task.node_id))
    mates = [
        other
        for other in snapshot.tasks_of_service(service.id)
        if other.id != task.id and slot_key(other) == slot_key(task) and live(other) and stays(snapshot, other)
    ]
    # a successor is there already: wait for it, unless waiting can't help
    if any(not dirty(other, service) for other in mates):
        return (Put(stopped(task, ctx.now, lost=lost)),) if lost else ()
    # what an update that was overtaken has left in the slot: this task serves meanwhile, or its successor will
    overtaken = [Put(stopped(other, ctx.now)) for other in mates]
    start_first = update_rule(service.spec.update_config).order == "start-first"
    if not lost and start_first and task.status.state is TaskState.RUNNING and wanted(task):
        return (*overtaken, Put(successor(service, ctx, task, desired=TaskState.RUNNING)))
    # a task that was still waiting for its restart keeps waiting elsewhere
    heir = successor(service, ctx, task, desired=TaskState.READY, run_at=task.mesh_run_at)
    return (*overtaken, Put(stopped(task, ctx.now, lost=lost)), Put(heir))
