"""What a node's state and availability mean to the tasks on it and to those that could come.

Pure: no I/O. Source: SwarmKit orchestrator.InvalidNode (down or drained nodes lose their tasks), scheduler ReadyFilter.
"""

from __future__ import annotations

from orchestrator.control.constraints import node_matches, parse
from orchestrator.control.expressions import expressions_of, node_values
from orchestrator.errors import ConfigError
from orchestrator.model import Node, Task, TaskSpec, terminal
from orchestrator.store.snapshot import Snapshot


def takes_tasks(node: Node) -> bool:
    """New tasks may be placed here: not on a node that is suspect, nor where the Engine doesn't answer."""
    active = node.status.state == "ready" and node.spec.availability == "active"
    return active and not suspect(node) and not node.description.mesh_engine_error


def suspect(node: Node) -> bool:
    """It has not been heard of for a moment, and may be down or not: it keeps its tasks, they keep their traffic, none is added."""
    return node.status.state == "ready" and node.mesh_disconnected_since is not None


def keeps_tasks(node: Node | None) -> bool:
    """Tasks that are here may stay: paused and disconnected nodes keep theirs until they count as down."""
    return node is not None and node.status.state != "down" and node.spec.availability != "drain"


def unreachable(node: Node | None) -> bool:
    """Nobody is there to stop a task or to report on it."""
    return node is None or node.status.state == "down"


def gone(snapshot: Snapshot, task: Task) -> bool:
    """Nothing of this task serves any more as far as anybody can know: ended, never placed, or on a node that is lost."""
    return terminal(task.status.state) or not task.node_id or unreachable(snapshot.node(task.node_id))


def stays(snapshot: Snapshot, task: Task) -> bool:
    """Not placed yet, or placed where it may stay."""
    return not task.node_id or keeps_tasks(snapshot.node(task.node_id))


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
