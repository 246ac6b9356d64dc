"""Containers started by hand on overlay networks: their tasks go to the node that was chosen for them, and are forgotten when they end.

Pure: no I/O. A control loop. Everything else about them is said by others: their networks by the API, their addresses by the allocator,
whether the container is there by its node's agent. Nobody replaces, moves or drains them. Source: SwarmKit's network attachment tasks.
Differs: an attachment is its container's for as long as that exists, so a container that is stopped and started keeps its address.
"""

from __future__ import annotations

import msgspec

from orchestrator.control.context import Context
from orchestrator.control.slots import age_key, wanted
from orchestrator.control.steps import Decision
from orchestrator.model import TaskState, terminal
from orchestrator.store.base import Delete, Put
from orchestrator.store.snapshot import Snapshot


def attachments(snapshot: Snapshot, ctx: Context) -> Decision:
    decision = Decision()
    for task in sorted(snapshot.tasks_attaching(), key=age_key):
        if terminal(task.status.state):
            decision.steps.append((Delete("task", task.id, task.version.index),))
        elif task.status.state is TaskState.PENDING and wanted(task) and snapshot.node(task.node_id) is not None:
            status = msgspec.structs.replace(
                task.status, state=TaskState.ASSIGNED, message="assigned to its container's node", timestamp=ctx.now
            )
            decision.steps.append((Put(msgspec.structs.replace(task, status=status, updated_at=ctx.now)),))
    return decision
