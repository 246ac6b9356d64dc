"""What no fault may break, beyond the laws of single writes (`control.sim.check_laws`), and what must be true at rest.

Pure: looks at the truth and at what the machines show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.control.eligibility import unreachable
from orchestrator.dispatcher.assignment import assignment
from orchestrator.model import Node, Task, TaskState, terminal
from orchestrator.store.base import Event
from orchestrator.store.snapshot import Snapshot

if TYPE_CHECKING:
    from .cluster import SimCluster
    from .machine import Machine

_DRAIN_DEADLINE_S = 10.0


def check_stop(truth: Snapshot, task_id: str) -> None:
    """No task that serves is stopped before it is released. (Its row may be gone: then its service is.)"""
    task = truth.task(task_id)
    if task is None or task.status.state is not TaskState.RUNNING:
        return
    assert task.mesh_released, f"{task_id} is stopped on {task.node_id}, but was not released (desired {task.desired_state})"


def check_release(cluster: SimCluster, after: Snapshot, events: list[Event]) -> None:
    """A task that serves is released only when no node that is there sends to it any more, or when its time is up."""
    for event in events:
        task, old = event.new, event.old
        if not isinstance(task, Task) or not isinstance(old, Task) or old.mesh_released or not task.mesh_released:
            continue
        since = old.mesh_draining_since
        if old.status.state is not TaskState.RUNNING or since is None or after.service(task.service_id) is None:
            continue
        if unreachable(after.node(task.node_id)) or (task.updated_at - since).total_seconds() >= _DRAIN_DEADLINE_S:
            continue
        networks = {attachment.network.id for attachment in task.networks_attachments or ()}
        for node in after.all(Node):
            # a node that has left the network has no task there that could ask for anything
            if not any(attachment.network_id in networks for attachment in node.mesh_attachments or ()):
                continue
            if node.status.state == "ready" and node.mesh_disconnected_since is None:
                offered = _offered(cluster.machines[node.id], task)
                assert not offered, f"{task.id} was released while {node.id} still offers {offered}"


def _offered(machine: Machine, task: Task) -> list[str]:
    own = {address.partition("/")[0] for attachment in task.networks_attachments or () for address in attachment.addresses or ()}
    state = machine.kernel.state
    backends = [b for network in state.networks for service in network.services for b in service.backends] if state else []
    return sorted({backend.address for backend in backends if backend.weight and backend.address in own})


def differences(cluster: SimCluster) -> str:
    """What the machines show that the truth doesn't say, or the other way round; "" = nothing."""
    truth = cluster.truth
    for name, machine in sorted(cluster.machines.items()):
        node = truth.node(name)
        if node is None or node.status.state != "ready" or node.mesh_disconnected_since is not None:
            return f"{name} is not connected"
        wanted = {task.id for task in truth.tasks_of_node(name) if task.status.state is TaskState.RUNNING}
        if machine.serving() != wanted:
            return f"{name} runs {sorted(machine.serving())}, not {sorted(wanted)}"
        if node.spec.availability == "drain" and wanted:
            return f"{name} is drained and runs {sorted(wanted)}"
        left = [id for id, box in machine.engine.boxes.items() if truth.task(id) is None or box.container.state == "created"]
        if left:
            return f"{name} has containers of no task: {left}"
        assert machine.session is not None and machine.agent is not None
        if machine.session.unstored:
            return f"{name} has reports that are not stored"
        rows = assignment(truth, name, lambda secret: secret.mesh_ciphertext)
        if machine.rows != rows:
            other = sorted(key for key in machine.rows.keys() | rows.keys() if machine.rows.get(key) != rows.get(key))
            return f"{name} has other rows: {other}"
        member = any(attachment.network_id == "net" for attachment in node.mesh_attachments or ())
        if member and _balanced(machine) != _serving(truth):
            return f"{name} balances over {sorted(_balanced(machine))}, not {sorted(_serving(truth))}"
    ended = [task.id for task in truth.all(Task) if not terminal(task.status.state) and truth.service(task.service_id) is None]
    return f"tasks of no service: {ended}" if ended else ""


def _serving(truth: Snapshot) -> set[str]:
    """Addresses on the network "net" that clients are to be sent to."""
    return {
        address.partition("/")[0]
        for task in truth.all(Task)
        if task.status.state is TaskState.RUNNING and task.desired_state is TaskState.RUNNING
        for attachment in task.networks_attachments or ()
        if attachment.network.id == "net"
        for address in attachment.addresses or ()
    }


def _balanced(machine: Machine) -> set[str]:
    """Those that the machine's virtual services there send to."""
    networks = [network for network in machine.kernel.state.networks if network.id == "net"] if machine.kernel.state else []
    return {backend.address for network in networks for service in network.services for backend in service.backends}
