"""Stateful services: which node has a slot's volumes.

Pure: no I/O. The rest of what slots with an identity mean is where it is decided: order in `replicated` and `update`, fencing in
`eligibility.gone`, `succession` and `nodes`. A home outlives the slot's tasks, so a service that is scaled in and out finds its volumes.
"""

from __future__ import annotations

import msgspec

from orchestrator.control.attention import attention
from orchestrator.control.context import Context
from orchestrator.control.labels import STATEFUL, stateful_rule
from orchestrator.control.slots import age_key
from orchestrator.control.steps import Decision
from orchestrator.model import Service, Task, TaskState
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot

_BEGUN = frozenset({TaskState.STARTING, TaskState.RUNNING, TaskState.COMPLETE, TaskState.FAILED})


def homes(snapshot: Snapshot, ctx: Context) -> Decision:
    """A slot's home is the node where it first ran; a node that is removed takes its volumes along."""
    decision = Decision()
    for service in attention(snapshot).unsettled():
        if STATEFUL not in (service.spec.labels or ()) and service.mesh_homes is None:
            continue
        rule = stateful_rule(service.spec)
        found = _homes(snapshot, service) if rule is not None and rule.sticky else None
        if found != service.mesh_homes:
            decision.steps.append((Put(msgspec.structs.replace(service, mesh_homes=found, updated_at=ctx.now)),))
    return decision


def _homes(snapshot: Snapshot, service: Service) -> dict[str, str] | None:
    found = {slot: node_id for slot, node_id in (service.mesh_homes or {}).items() if snapshot.node(node_id) is not None}
    for task in sorted(snapshot.tasks_of_service(service.id), key=age_key):
        if _has_run(task) and snapshot.node(task.node_id) is not None:
            found.setdefault(str(task.slot), task.node_id)
    return found or None


def _has_run(task: Task) -> bool:
    """Its program may have written to its volumes."""
    return task.mesh_running_since is not None or task.status.state in _BEGUN
