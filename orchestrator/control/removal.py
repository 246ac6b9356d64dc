"""Tasks of a service that is gone follow it: stopped without draining, then forgotten.

Pure: no I/O.
"""

from __future__ import annotations

from orchestrator.control.attention import attention
from orchestrator.control.context import Context
from orchestrator.control.steps import Decision
from orchestrator.control.transitions import removed
from orchestrator.model import TaskState
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot


def removal(snapshot: Snapshot, ctx: Context) -> Decision:
    decision = Decision()
    for service_id in sorted(attention(snapshot).ownerless):
        tasks = sorted(snapshot.tasks_of_service(service_id), key=lambda task: task.id)
        decision.steps.extend((Put(removed(task, ctx.now)),) for task in tasks if task.desired_state is not TaskState.REMOVE)
    return decision
