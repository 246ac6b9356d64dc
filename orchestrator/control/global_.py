"""Global services: one task on every node that may have it.

Pure: no I/O. Source: SwarmKit orchestrator/global. A paused node keeps its task and gets no new one; a node that is down, drained or
no longer meets the constraints loses it.
"""

from __future__ import annotations

from orchestrator.control.attention import attention
from orchestrator.control.context import Context
from orchestrator.control.eligibility import Placement, keeps_tasks, takes_tasks, unreachable
from orchestrator.control.slots import Slot, mode_of, slots_of
from orchestrator.control.steps import Decision, Step
from orchestrator.control.transitions import created, stopped
from orchestrator.model import Node, Service, Task, TaskState
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot


def global_(snapshot: Snapshot, ctx: Context) -> Decision:
    decision = Decision()
    nodes = sorted(snapshot.all(Node), key=lambda node: node.id)
    for service in attention(snapshot).unsettled():
        if mode_of(service) == "global":
            decision.steps.extend(_steps(snapshot, ctx, service, nodes))
    return decision


def _steps(snapshot: Snapshot, ctx: Context, service: Service, nodes: list[Node]) -> list[Step]:
    placement = Placement(service.spec.task_template)
    slots = slots_of(snapshot.tasks_of_service(service.id))
    steps: list[Step] = []
    for slot in slots.values():
        node = snapshot.node(str(slot.key))
        if node is None or not keeps_tasks(node) or not placement.matches(node):
            steps.extend((Put(stopped(task, ctx.now, lost=unreachable(node))),) for task in slot.live)
    for node in nodes:
        if takes_tasks(node) and placement.matches(node):
            before = slots.get(node.id)
            if before is None or not before.filled():
                steps.append((Put(_first_task(ctx, service, node, before)),))
    return steps


def _first_task(ctx: Context, service: Service, node: Node, before: Slot | None) -> Task:
    waits = before is not None and bool(before.stopping)
    return created(
        service,
        ctx,
        node_id=node.id,
        desired=TaskState.READY if waits else TaskState.RUNNING,
        after=before.newest if before is not None else None,
    )
