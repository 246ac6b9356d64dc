"""Forgets tasks: those to be removed once nothing of them runs, and the history that exceeds the cluster's limit.

Pure: no I/O. Source: SwarmKit orchestrator/taskreaper (the limit counts all tasks of a slot, the running one included).
"""

from __future__ import annotations

from orchestrator.control.attention import attention
from orchestrator.control.context import Context
from orchestrator.control.defaults import history_limit, restart_rule
from orchestrator.control.jobs import is_scheduled, iteration_of
from orchestrator.control.slots import Slot, is_updating, running, slots_of, wanted
from orchestrator.control.steps import Decision
from orchestrator.model import Service, Task, TaskState, terminal
from orchestrator.store.base import Delete
from orchestrator.store.snapshot import Snapshot

_UPDATING_KEEPS = 5


def reaper(snapshot: Snapshot, ctx: Context) -> Decision:
    limit = history_limit(snapshot.cluster)
    decision = Decision()
    for service_id in sorted(attention(snapshot).historic):
        tasks = snapshot.tasks_of_service(service_id)
        doomed = [task for task in tasks if _dead(task) and (task.desired_state is TaskState.REMOVE or _orphan(snapshot, task))]
        service = snapshot.service(service_id)
        if service is not None:
            doomed += _of_forgotten_runs(service, tasks)
            gone = {task.id for task in doomed}
            if limit is not None:
                for slot in _histories(service, [task for task in tasks if task.id not in gone]):
                    doomed.extend(_surplus(service, slot, limit))
        decision.steps.extend((Delete("task", task.id, task.version.index),) for task in sorted(doomed, key=lambda task: task.id))
    return decision


def _of_forgotten_runs(service: Service, tasks: list[Task]) -> list[Task]:
    """A cron job remembers its runs by records; tasks go with them."""
    if not is_scheduled(service.spec):
        return []
    kept = {run.iteration for run in (service.job_status.mesh_runs if service.job_status else None) or ()}
    return [task for task in tasks if _dead(task) and iteration_of(task) not in kept]


def _histories(service: Service, tasks: list[Task]) -> list[Slot]:
    """What the limit is for, each: a slot, or of a cron job a slot in one run."""
    runs: dict[int, list[Task]] = {}
    for task in tasks:
        runs.setdefault(iteration_of(task) if is_scheduled(service.spec) else 0, []).append(task)
    return [slot for iteration in sorted(runs) for slot in slots_of(runs[iteration]).values()]


def _dead(task: Task) -> bool:
    return terminal(task.status.state) and not wanted(task)


def _orphan(snapshot: Snapshot, task: Task) -> bool:
    return task.status.state is TaskState.ORPHANED and snapshot.node(task.node_id) is None


def _surplus(service: Service, slot: Slot, limit: int) -> list[Task]:
    surplus = len(slot.tasks) - max(limit, _needed(service, slot))
    return [task for task in slot.tasks if _dead(task)][:surplus] if surplus > 0 else []


def _needed(service: Service, slot: Slot) -> int:
    """How many tasks of the slot the other loops still read from, whatever the limit says."""
    attempts = restart_rule(slot.newest.spec).max_attempts
    needed = attempts + 1 if attempts else 0
    if is_updating(service):
        needed = max(needed, _UPDATING_KEEPS)
    # until the newest runs, its predecessor tells why it is there; a slot without a live task is explained by its last one
    if not running(slot.newest):
        needed = max(needed, 2 if slot.live else 1)
    return needed
