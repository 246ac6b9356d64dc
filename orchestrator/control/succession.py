"""Handing a slot over: a waiting task is let run when its time has come, a task is stopped when its successor serves.

Pure: no I/O. Restart, update and node loss only make successors; when those run and when their predecessors stop is decided here
alone, from what is stored and acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TypeAlias

from orchestrator.control.attention import attention
from orchestrator.control.context import Context
from orchestrator.control.defaults import stop_grace
from orchestrator.control.drain import everyone_shows
from orchestrator.control.eligibility import fenced_at, gone, stays, unreachable
from orchestrator.control.slots import SlotKey, age_key, dirty, mode_of, running, slot_key, surplus, wanted
from orchestrator.control.steps import Decision, Step, earliest
from orchestrator.control.transitions import promoted, stopped
from orchestrator.model import Service, Task, TaskState, terminal
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot

# how long a serving successor may wait for the nodes to show it before its predecessor goes anyway
ACK_LIMIT = timedelta(seconds=5)
# SwarmKit's restart supervisor waits a minute for an old task; ours counts from when draining and grace are over
STUCK_LIMIT = timedelta(minutes=1)

_Place: TypeAlias = tuple[str, SlotKey]


def succession(snapshot: Snapshot, ctx: Context) -> Decision:
    alive: dict[_Place, list[Task]] = {}
    stopping: dict[_Place, list[Task]] = {}
    looked_at = attention(snapshot)
    for service_id in (*(service.id for service in looked_at.unsettled()), *looked_at.ownerless):
        for task in snapshot.tasks_of_service(service_id):
            if not terminal(task.status.state):
                group = alive if wanted(task) else stopping
                group.setdefault((service_id, slot_key(task)), []).append(task)
    steps: list[Step] = []
    wakeup: datetime | None = None
    # nearly every slot has one task, and that is let run already
    changing = [place for place, tasks in alive.items() if len(tasks) > 1 or tasks[0].desired_state is not TaskState.RUNNING]
    for place in sorted(changing, key=str):
        for task in sorted(alive[place], key=age_key):
            if task.desired_state is TaskState.RUNNING:
                continue
            due = _due(snapshot, ctx, task, stopping.get(place, []))
            if due is not None and due <= ctx.now:
                steps.append((Put(promoted(task, ctx.now)),))
            else:
                wakeup = earliest(wakeup, due)
        service = snapshot.service(place[0])
        if len(alive[place]) < 2 or service is None or mode_of(service) == "job":
            continue
        heir = _heir(snapshot, service, alive[place])
        surplus = _surplus(snapshot, alive[place], heir)
        steps.extend((Put(stopped(task, ctx.now)),) for task in surplus)
        if heir is None or not running(heir):
            continue
        when = _takes_over_at(snapshot, ctx, heir)
        if when <= ctx.now:
            steps.extend(
                (Put(stopped(task, ctx.now)),) for task in sorted(alive[place], key=age_key) if task is not heir and task not in surplus
            )
        else:
            wakeup = earliest(wakeup, when)
    return Decision(steps, wakeup)


def _due(snapshot: Snapshot, ctx: Context, task: Task, stopping: list[Task]) -> datetime | None:
    """When the waiting task may run, as far as that is known now: an earlier end of what still stops changes it. None: only that end
    lets it run."""
    run_at = task.mesh_run_at or ctx.now
    blocking = [other for other in stopping if not gone(snapshot, other, ctx.now) and not surplus(other)]
    if not blocking:
        return run_at
    if any(other.mesh_fence is not None for other in blocking):
        lost = [fenced_at(snapshot, other) if unreachable(snapshot.node(other.node_id)) else None for other in blocking]
        return None if None in lost else max(run_at, *(when for when in lost if when is not None))
    # an engine that can't kill a container must not keep the slot empty for ever
    patience = max(stop_grace(other.spec) for other in blocking) + ctx.drain_deadline + STUCK_LIMIT
    return max(run_at, task.created_at + patience)


def _heir(snapshot: Snapshot, service: Service, tasks: Iterable[Task]) -> Task | None:
    """Of several live tasks of one slot the one that is to stay: the youngest that is what the service asks for, where it may be."""
    fit = [task for task in tasks if stays(snapshot, task) and not dirty(task, service)]
    return max(fit, key=age_key, default=None)


def _surplus(snapshot: Snapshot, tasks: list[Task], heir: Task | None) -> list[Task]:
    """A slot holds one task that serves and one to come. Updates, rollbacks and node losses that overtake each other may leave more."""
    if len(tasks) <= 2:
        return []
    kept = heir if heir is not None else max(tasks, key=age_key)
    others = [task for task in tasks if task is not kept]
    incumbent = max(others, key=lambda task: (running(task), stays(snapshot, task), age_key(task)))
    return sorted((task for task in others if task is not incumbent), key=age_key)


def _takes_over_at(snapshot: Snapshot, ctx: Context, heir: Task) -> datetime:
    if everyone_shows(snapshot, ctx.acks, heir):
        return ctx.now
    return (heir.mesh_running_since or heir.status.timestamp) + ACK_LIMIT
