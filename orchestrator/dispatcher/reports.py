"""What agents say, made into writes: task statuses and the presence of nodes.

Pure: snapshot in, changed objects out. An agent may speak only of its own tasks and only of what an agent decides; everything
else is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from orchestrator.control.status import advance
from orchestrator.dispatcher.messages import TaskReport
from orchestrator.model import STATE_ORDER, Node, NodeDescription, NodeStatus, Task, TaskState, TaskStatus
from orchestrator.store.snapshot import Snapshot

# Before them the leader speaks (NEW, PENDING, ASSIGNED), after them too (REMOVE, ORPHANED).
_AGENTS_STATES = frozenset(TaskState) - {TaskState.NEW, TaskState.PENDING, TaskState.ASSIGNED, TaskState.REMOVE, TaskState.ORPHANED}
_MAX_TEXT, _MAX_ID, _MAX_PORTS = 2048, 128, 256


@dataclass(frozen=True, slots=True)
class Presence:
    """What is to be written about a node. description None: it is lost, since `at`; left: on purpose, so it is down."""

    at: datetime
    description: NodeDescription | None = None
    address: str = ""
    left: bool = False


def objection(snapshot: Snapshot, node_id: str, report: TaskReport) -> str | None:
    """Why this report is not to be believed; None = it may be. A task that is gone is no offence: the news crossed on the way."""
    task = snapshot.task(report.task_id)
    if task is None:
        return None
    if task.node_id != node_id:
        return "the task belongs to another node"
    if report.status.state not in _AGENTS_STATES:
        return f'an agent does not decide the state "{report.status.state}"'
    return None


def trimmed(status: TaskStatus) -> TaskStatus:
    """Of bounded size: it is stored once a task, whatever an agent sends."""
    container, ports = status.container_status, status.port_status
    return msgspec.structs.replace(
        status,
        message=status.message[:_MAX_TEXT],
        err=status.err[:_MAX_TEXT],
        container_status=msgspec.structs.replace(container, container_id=container.container_id[:_MAX_ID]) if container else None,
        port_status=msgspec.structs.replace(ports, ports=(ports.ports or [])[:_MAX_PORTS]) if ports else None,
    )


def later(old: TaskStatus | None, new: TaskStatus) -> TaskStatus:
    """Of two statuses waiting to be stored, the one that counts: the further one, else the newer."""
    return old if old is not None and STATE_ORDER[old.state] > STATE_ORDER[new.state] else new


def tasks_changed(snapshot: Snapshot, statuses: Mapping[str, TaskStatus], now: datetime) -> list[Task]:
    """Tasks as they are to be stored, by id; those that would not change are left out."""
    changed = []
    for task_id in sorted(statuses):
        task = snapshot.task(task_id)
        advanced = advance(task, statuses[task_id], now) if task is not None else None
        if advanced is not None and advanced != task:
            changed.append(advanced)
    return changed


def nodes_changed(snapshot: Snapshot, presences: Mapping[str, Presence]) -> list[Node]:
    """Nodes as they are to be stored, by id. Removed nodes and those that would not change are left out."""
    changed = []
    for node_id in sorted(presences):
        node = snapshot.node(node_id)
        if node is None:
            continue
        after = _after(node, presences[node_id])
        if after != node:
            changed.append(msgspec.structs.replace(after, updated_at=presences[node_id].at))
    return changed


def absent(nodes: Iterable[Node], connected: frozenset[str], now: datetime) -> dict[str, Presence]:
    """Nodes that count as connected in the store although no session exists: a former leader's knowledge, out of date."""
    return {
        node.id: Presence(at=now)
        for node in nodes
        if node.id not in connected and node.status.state == "ready" and node.mesh_disconnected_since is None
    }


def _after(node: Node, presence: Presence) -> Node:
    if presence.left:
        status = msgspec.structs.replace(node.status, state="down", message="the node left the cluster")
        return msgspec.structs.replace(node, status=status, mesh_disconnected_since=presence.at)
    if presence.description is None:
        return node if node.mesh_disconnected_since else msgspec.structs.replace(node, mesh_disconnected_since=presence.at)
    description = presence.description
    if description.mesh_engine_error and node.description.hostname:
        # without its Engine a node can't say what it has: what it said last still holds
        description = msgspec.structs.replace(
            node.description,
            tls_info=description.tls_info,
            mesh_engine_error=description.mesh_engine_error,
            mesh_api_addr=description.mesh_api_addr,
            mesh_data_addr=description.mesh_data_addr,
            mesh_encryption=description.mesh_encryption,
        )
    return msgspec.structs.replace(
        node,
        description=description,
        status=NodeStatus(state="ready", addr=presence.address),
        mesh_disconnected_since=None,
    )
