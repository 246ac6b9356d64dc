"""The leader's half of the draining handshake: when may the agent stop a task that is no longer wanted?

Pure: no I/O. A task that served keeps running with weight 0 until every connected node that routes to it shows that and no
connection to it is open, or until the drain deadline. One that was replaced while its node was lost, and is back with it, begins
to drain only when its successor serves. Source: ARCHITECTURE, draining handshake.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.control.context import Context, NetworkAcks
from orchestrator.control.eligibility import unreachable
from orchestrator.control.slots import age_key, live, running, slot_key, surplus, wanted
from orchestrator.control.steps import Decision, earliest
from orchestrator.control.transitions import drained, released
from orchestrator.model import Node, Task, TaskState, terminal
from orchestrator.store.base import Guard, Put
from orchestrator.store.snapshot import Snapshot


def drain(snapshot: Snapshot, ctx: Context) -> Decision:
    decision = Decision()
    wakeup = None
    draining = [task for task in snapshot.all(Task) if not wanted(task) and not task.mesh_released and not terminal(task.status.state)]
    for task in sorted(draining, key=age_key):
        if surplus(task):
            if _relieved(snapshot, ctx, task):
                decision.steps.append((Put(drained(task, ctx.now)),))
        elif _finished(snapshot, ctx, task):
            # one of them that comes back before this is written sends to the task again, and has to be asked first
            lost = [Guard("node", node.id, node.version.index) for node in _sending_to(snapshot, task) if _is_lost(node, ctx.acks)]
            decision.steps.append((Put(released(task, ctx.now)), *lost))
        elif task.mesh_draining_since is not None:
            wakeup = earliest(wakeup, task.mesh_draining_since + ctx.drain_deadline)
    return Decision(decision.steps, wakeup)


def everyone_shows(snapshot: Snapshot, acks: NetworkAcks, task: Task) -> bool:
    """Every connected node that has one of the task's networks, and the task's own, shows the task as stored at its version.

    A node that has not come yet after a change of the leader counts as connected until the dispatcher says that it is not.
    """
    networks = _networks(task)
    for node in _sending_to(snapshot, task):
        if _is_lost(node, acks):
            continue
        shown = acks.applied(node.id)
        if shown is None or shown < task.version.index or acks.behind(node.id) & networks:
            return False
    return True


def _sending_to(snapshot: Snapshot, task: Task) -> Iterator[Node]:
    """The task's own node and those with one of its networks."""
    networks = _networks(task)
    for node in snapshot.all(Node):
        if node.id == task.node_id or any(attachment.network_id in networks for attachment in node.mesh_attachments or ()):
            yield node


def _is_lost(node: Node, acks: NetworkAcks) -> bool:
    return acks.applied(node.id) is None and (unreachable(node) or node.mesh_disconnected_since is not None)


def _networks(task: Task) -> set[str]:
    return {attachment.network.id for attachment in task.networks_attachments or ()}


def _relieved(snapshot: Snapshot, ctx: Context, task: Task) -> bool:
    """Its node is back, and its successor serves; or there is none, or none that finds a node while this task holds what it needs."""
    if unreachable(snapshot.node(task.node_id)):
        return False
    heirs = [
        other
        for other in snapshot.tasks_of_service(task.service_id)
        if slot_key(other) == slot_key(task) and live(other) and not (other.status.state is TaskState.PENDING and other.status.err)
    ]
    return not heirs or any(running(heir) and everyone_shows(snapshot, ctx.acks, heir) for heir in heirs)


def _finished(snapshot: Snapshot, ctx: Context, task: Task) -> bool:
    since = task.mesh_draining_since
    if since is None or snapshot.service(task.service_id) is None or unreachable(snapshot.node(task.node_id)):
        return True
    if ctx.now >= since + ctx.drain_deadline:
        return True
    # decided in this very pass: the version that the nodes have to show doesn't exist yet
    if since >= ctx.now:
        return False
    return everyone_shows(snapshot, ctx.acks, task) and ctx.acks.open(task.id) == 0
