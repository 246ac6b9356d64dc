"""Replicated services: as many filled slots as replicas.

Pure: no I/O. Source: SwarmKit orchestrator/replicated (which slots go on scale-in). Differs: a task that goes on scale-in drains
first, so it is shut down and only then removed.
"""

from __future__ import annotations

from orchestrator.control.attention import attention
from orchestrator.control.context import Context
from orchestrator.control.defaults import replicas
from orchestrator.control.labels import stateful_rule
from orchestrator.control.slots import Slot, SlotKey, live, mode_of, running, slots_of, wanted
from orchestrator.control.steps import Decision, Step
from orchestrator.control.transitions import created, removed, stopped
from orchestrator.model import Service, Task, TaskState, terminal
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot


def replicated(snapshot: Snapshot, ctx: Context) -> Decision:
    decision = Decision()
    for service in attention(snapshot).unsettled():
        if mode_of(service) != "replicated":
            continue
        tasks = snapshot.tasks_of_service(service.id)
        if not _as_it_should_be(service, tasks):
            decision.steps.extend(_steps(ctx, service, slots_of(tasks)))
    return decision


def _as_it_should_be(service: Service, tasks: list[Task]) -> bool:
    """The frequent case, told fast: one live task in each slot and nothing besides."""
    count = replicas(service)
    return len(tasks) == count and all(live(task) for task in tasks) and len({task.slot for task in tasks}) == count


def _steps(ctx: Context, service: Service, slots: dict[SlotKey, Slot]) -> list[Step]:
    filled = [slot for slot in slots.values() if slot.filled()]
    missing = replicas(service) - len(filled)
    steps: list[Step] = []
    taken = {slot.key for slot in filled}
    rule = stateful_rule(service.spec)
    if rule is not None and rule.ordered:
        missing = _one_by_one(missing, filled, slots)
    if missing > 0:
        for number in _free_numbers(taken, missing):
            steps.append((Put(_first_task(ctx, service, number, slots.get(number))),))
            taken.add(number)
    elif missing < 0:
        # slots with an identity go by number, whatever runs in them
        for slot in (kept_first(filled) if rule is None else filled)[missing:]:
            steps.append(tuple(Put(_leaving(task, ctx)) for task in slot.tasks if wanted(task) or terminal(task.status.state)))
    # what is left of slots that went earlier, as soon as it has stopped
    for slot in slots.values():
        if slot.key not in taken:
            steps.extend((Put(removed(task, ctx.now)),) for task in slot.tasks if terminal(task.status.state))
    return steps


def _one_by_one(missing: int, filled: list[Slot], slots: dict[SlotKey, Slot]) -> int:
    """The part of `missing` that is this moment's turn: nothing is started beside a slot that doesn't run, nor stopped beside one
    that still stops."""
    if missing > 0:
        return 1 if all(_runs(slot) or slot.finished() for slot in filled) else 0
    busy = any(slot.stopping for slot in slots.values())
    return 0 if busy else max(missing, -1)


def kept_first(slots: list[Slot]) -> list[Slot]:
    """The order in which slots are worth keeping: those that run, those of nodes with few tasks of the service, low numbers."""
    on_node: dict[str, int] = {}
    ranked: list[tuple[tuple[bool, int, SlotKey], Slot]] = []
    for slot in sorted(slots, key=lambda slot: (not _runs(slot), slot.key)):
        rank = 0
        if _runs(slot):
            node_id = next(task.node_id for task in slot.tasks if running(task))
            rank = on_node[node_id] = on_node.get(node_id, 0) + 1
        ranked.append(((not _runs(slot), rank, slot.key), slot))
    return [slot for _, slot in sorted(ranked, key=lambda pair: pair[0])]


def _runs(slot: Slot) -> bool:
    return any(running(task) for task in slot.tasks)


def _free_numbers(taken: set[SlotKey], count: int) -> list[int]:
    numbers: list[int] = []
    number = 0
    while len(numbers) < count:
        number += 1
        if number not in taken:
            numbers.append(number)
    return numbers


def _first_task(ctx: Context, service: Service, number: int, before: Slot | None) -> Task:
    # the slot's identity is not lent twice: a task that still stops there is waited for
    waits = before is not None and bool(before.stopping)
    return created(
        service,
        ctx,
        slot=number,
        desired=TaskState.READY if waits else TaskState.RUNNING,
        after=before.newest if before is not None else None,
    )


def _leaving(task: Task, ctx: Context) -> Task:
    return removed(task, ctx.now) if terminal(task.status.state) else stopped(task, ctx.now)
