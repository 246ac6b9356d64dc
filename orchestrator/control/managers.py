"""Which managers are reachable, as `docker node ls` shows it: those whose agent the leader hears.

Pure: no I/O.
"""

from __future__ import annotations

import msgspec

from orchestrator.control.context import Context
from orchestrator.control.steps import Decision
from orchestrator.model import Node
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot


def managers(snapshot: Snapshot, context: Context) -> Decision:
    leader = snapshot.leader.node_id if snapshot.leader else ""
    steps = []
    for node in sorted(snapshot.all(Node), key=lambda node: node.id):
        status = node.manager_status
        if status is None:
            continue
        heard = node.status.state == "ready" and node.mesh_disconnected_since is None
        reachability = "reachable" if node.id == leader or heard else "unreachable"
        wanted = msgspec.structs.replace(status, reachability=reachability, leader=node.id == leader)
        if wanted != status:
            steps.append((Put(msgspec.structs.replace(node, manager_status=wanted, updated_at=context.now)),))
    return Decision(steps=list(steps))
