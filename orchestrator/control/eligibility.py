"""What a node's state and availability mean to the tasks on it and to those that could come.

Pure: no I/O. Source: SwarmKit orchestrator.InvalidNode (down or drained nodes lose their tasks), scheduler ReadyFilter.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.control.constraints import node_matches, parse
from orchestrator.control.defaults import duration, stop_grace
from orchestrator.control.expressions import expressions_of, node_values
from orchestrator.errors import ConfigError
from orchestrator.model import STATE_ORDER, Node, Task, TaskSpec, TaskState, terminal
from orchestrator.store.snapshot import Snapshot

# for the Engine's own delays when an agent stops a task, and for clocks of managers that differ
FENCE_MARGIN = timedelta(seconds=15)


def takes_tasks(node: Node) -> bool:
    """New tasks may be placed here: not on a node that is suspect, nor where the Engine doesn't answer."""
    active = node.status.state == "ready" and node.spec.availability == "active"
    return active and not suspect(node) and not node.description.mesh_engine_error


def can_encrypt(node: Node) -> bool:
    return node.description.mesh_encryption is not None and not node.description.mesh_encryption.unable


def suspect(node: Node) -> bool:
    """It has not been heard of for a moment, and may be down or not: it keeps its tasks, they keep their traffic, none is added."""
    return node.status.state == "ready" and node.mesh_disconnected_since is not None


def keeps_tasks(node: Node | None) -> bool:
    """Tasks that are here may stay: paused and disconnected nodes keep theirs until they count as down."""
    return node is not None and node.status.state != "down" and node.spec.availability != "drain"


def unreachable(node: Node | None) -> bool:
    """Nobody is there to stop a task or to report on it."""
    return node is None or node.status.state == "down"


def placed(task: Task) -> bool:
    """An agent may know it. (A task may name its node before.)"""
    return bool(task.node_id) and STATE_ORDER[task.status.state] >= STATE_ORDER[TaskState.ASSIGNED]


def gone(snapshot: Snapshot, task: Task, now: datetime) -> bool:
    """Nothing of this task runs any more as far as anybody can know: ended, never placed, or on a node that is lost; a fenced one there
    only once its agent has surely stopped it."""
    if terminal(task.status.state) or not placed(task):
        return True
    since = fenced_at(snapshot, task)
    return unreachable(snapshot.node(task.node_id)) and (since is None or since <= now)


def fenced_at(snapshot: Snapshot, task: Task) -> datetime | None:
    """When the agent of a node that is lost has surely stopped this task. None: it is not fenced, or its node is there, or removed
    (whoever removes a node says that it doesn't run any more).

    The agent counts `mesh_fence` from the last moment at which it can prove that the leader still heard it, which is before the leader
    noticed its absence; then it stops the task within its grace period. Both count durations, so clocks need not agree.
    """
    node = snapshot.node(task.node_id)
    if task.mesh_fence is None or node is None or node.mesh_disconnected_since is None:
        return None
    return node.mesh_disconnected_since + duration(task.mesh_fence) + stop_grace(task.spec) + FENCE_MARGIN


def stays(snapshot: Snapshot, task: Task) -> bool:
    """Not placed yet, or placed where it may stay."""
    return not placed(task) or keeps_tasks(snapshot.node(task.node_id))


class Placement:
    """The constraints of a spec, classic ones included, read once and asked of many nodes. Those that can't be read match no node."""

    def __init__(self, spec: TaskSpec) -> None:
        placement = spec.placement
        self._readable = True
        try:
            self._constraints = parse((placement.constraints if placement else None) or [])
            expressions = expressions_of(spec.container_spec)
        except ConfigError:
            self._readable, expressions = False, ()
        self._classic = [one for one in expressions if one.kind == "constraint" and not one.soft]

    def matches(self, node: Node) -> bool:
        return (
            self._readable and node_matches(self._constraints, node) and all(one.holds(node_values(node, one.key)) for one in self._classic)
        )
