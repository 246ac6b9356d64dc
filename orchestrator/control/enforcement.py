"""Tasks that no longer belong where they run: labels changed under their constraints, or their node shrank under their reservations.

Pure: no I/O. A control loop. Source: SwarmKit orchestrator/constraintenforcer. Differs: a task answers for the constraints it was placed
by, not for newer ones of its service (those come with the update); its successor runs before it stops, where two of a slot may and somebody
can take it; of the tasks on a node that shrank, those of the lowest priority go, the youngest first. Global services see
to themselves; jobs may finish; a slot whose volumes are on the node stays with them.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.control.context import Context
from orchestrator.control.defaults import replicas
from orchestrator.control.eligibility import Placement, keeps_tasks, placed
from orchestrator.control.ledger import Ledger, ledger_of
from orchestrator.control.placement_labels import priority_of
from orchestrator.control.resources import Reservation, reservation_of
from orchestrator.control.slots import age_key, live, mode_of, running, slot_key, wanted, wanted_fence
from orchestrator.control.steps import Decision, Step
from orchestrator.control.transitions import stopped, successor
from orchestrator.model import Service, Task, TaskState, terminal
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot

# another kernel keeps a few MiB more for itself: that is no reason to move tasks
_TOLERATED = 0.02


def enforcement(snapshot: Snapshot, ctx: Context) -> Decision:
    decision = Decision()
    for task in [*_unsuited(snapshot), *_too_many(snapshot, ledger_of(snapshot))]:
        service = snapshot.service(task.service_id)
        if service is not None and mode_of(service) == "replicated" and str(task.slot) not in (service.mesh_homes or {}):
            step = _replaced(snapshot, ctx, service, task)
            if step:
                decision.steps.append(step)
    return decision


def moves_by_overlap(service: Service) -> bool:
    """Two tasks of a slot may run for a moment: the service says so, or says nothing and has several tasks at once anyway. Never where
    slots have an identity."""
    if wanted_fence(service) is not None:
        return False
    order = service.spec.update_config.order if service.spec.update_config is not None else ""
    return order == "start-first" or (not order and replicas(service) > 1)


def _unsuited(snapshot: Snapshot) -> Iterator[Task]:
    """Live tasks on nodes that their own constraints would not let them go to any more."""
    placements: dict[int, Placement] = {}
    answers: dict[tuple[int, str], bool] = {}
    for service_id in sorted(snapshot.tasks_by_service):
        concerned = [task for task in snapshot.tasks_of_service(service_id) if _is_constrained(task) and placed(task) and live(task)]
        for task in sorted(concerned, key=age_key):
            key = (id(task.spec), task.node_id)
            if key not in answers:
                node = snapshot.node(task.node_id)
                placement = placements.get(key[0])
                if placement is None:
                    placement = placements[key[0]] = Placement(task.spec)
                answers[key] = not keeps_tasks(node) or (node is not None and placement.matches(node))
            if not answers[key]:
                yield task


def _is_constrained(task: Task) -> bool:
    placement, container = task.spec.placement, task.spec.container_spec
    if placement is not None and placement.constraints:
        return True
    return container is not None and any(entry.startswith("constraint:") for entry in container.env or ())


def _too_many(snapshot: Snapshot, ledger: Ledger) -> Iterator[Task]:
    """Tasks that have to leave nodes where more is reserved than there is."""
    total, free = ledger.total, ledger.free
    over = (free.nano_cpus < 0) | (free.memory_bytes < -_TOLERATED * total.memory_bytes)
    for kind in free.generic.values():
        over |= kind < 0
    for index in over.nonzero()[0].tolist():
        node = ledger.nodes[index]
        if not keeps_tasks(node):
            continue
        tasks = [task for task in snapshot.tasks_of_node(node.id) if placed(task) and not terminal(task.status.state)]
        held = {task.id: reservation_of(task.spec, task.generic_resources) for task in tasks}
        lacking = _Deficit(free.nano_cpus[index], free.memory_bytes[index], {kind: int(left[index]) for kind, left in free.generic.items()})
        for task in tasks:
            if not wanted(task):
                lacking.give_back(held[task.id])
        cheapest_first = sorted(tasks, key=age_key, reverse=True)
        cheapest_first.sort(key=lambda task: priority_of(snapshot.service(task.service_id)))
        for task in cheapest_first:
            if live(task) and lacking.is_eased_by(held[task.id]):
                lacking.give_back(held[task.id])
                yield task


class _Deficit:
    """What a node has left, below zero where it lacks."""

    def __init__(self, nano_cpus: int, memory_bytes: int, generic: dict[str, int]) -> None:
        self._left = {"cpu": int(nano_cpus), "memory": int(memory_bytes), **{f"generic {kind}": count for kind, count in generic.items()}}

    def is_eased_by(self, held: Reservation) -> bool:
        return any(self._left.get(kind, 0) < 0 and amount > 0 for kind, amount in _by_kind(held).items())

    def give_back(self, held: Reservation) -> None:
        for kind, amount in _by_kind(held).items():
            self._left[kind] = self._left.get(kind, 0) + amount


def _by_kind(held: Reservation) -> dict[str, int]:
    return {"cpu": held.nano_cpus, "memory": held.memory_bytes, **{f"generic {kind}": count for kind, count in held.generic}}


def _replaced(snapshot: Snapshot, ctx: Context, service: Service, task: Task) -> Step:
    """A successor elsewhere, or the old task's end once it has one that nobody can take."""
    younger = [
        other
        for other in snapshot.tasks_of_service(service.id)
        if slot_key(other) == slot_key(task) and live(other) and age_key(other) > age_key(task)
    ]
    if younger:
        heir = max(younger, key=age_key)
        refused = heir.status.state is TaskState.PENDING and bool(heir.status.err)
        return (Put(stopped(task, ctx.now)),) if refused else ()
    if running(task) and moves_by_overlap(service):
        return (Put(successor(service, ctx, task, desired=TaskState.RUNNING)),)
    heir = successor(service, ctx, task, desired=TaskState.READY, run_at=task.mesh_run_at)
    return (Put(stopped(task, ctx.now)), Put(heir))
