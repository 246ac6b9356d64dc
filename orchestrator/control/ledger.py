"""What every node has left and what it holds, as arrays over all nodes; kept from one snapshot to the next (`residents`).

Pure: a function of the snapshot. Users copy what they change. A task holds its reservation, its host ports and its place from ASSIGNED
until it has ended; it is a replica of its service only as long as it is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.control.columns import Columns, Ints, Mask
from orchestrator.control.demand import HostPort, host_ports
from orchestrator.control.eligibility import takes_tasks
from orchestrator.control.placement_labels import labels_of, overcommit_of
from orchestrator.control.residents import Resident, to_follow
from orchestrator.control.resources import Reservation, capacity, reservation_of
from orchestrator.control.slots import wanted
from orchestrator.model import STATE_ORDER, Cluster, Node, Task, TaskState, terminal
from orchestrator.store.snapshot import Snapshot

_FAILED = frozenset({TaskState.FAILED, TaskState.REJECTED})
_ASSIGNED = STATE_ORDER[TaskState.ASSIGNED]


@dataclass(slots=True)
class Amounts:
    """Of each node: nano CPUs, bytes of memory, pieces of each generic resource."""

    nano_cpus: Ints
    memory_bytes: Ints
    generic: dict[str, Ints]

    @classmethod
    def zeros(cls, nodes: int) -> Amounts:
        return cls(np.zeros(nodes, dtype=np.int64), np.zeros(nodes, dtype=np.int64), {})

    def copy(self) -> Amounts:
        return Amounts(self.nano_cpus.copy(), self.memory_bytes.copy(), {kind: left.copy() for kind, left in self.generic.items()})

    def of_kind(self, kind: str) -> Ints:
        return self.generic.setdefault(kind, np.zeros(len(self.nano_cpus), dtype=np.int64))

    def add(self, index: int, amount: Reservation, times: int) -> None:
        if amount.nano_cpus:
            self.nano_cpus[index] += times * amount.nano_cpus
        if amount.memory_bytes:
            self.memory_bytes[index] += times * amount.memory_bytes
        for kind, count in amount.generic:
            self.of_kind(kind)[index] += times * count


class Ledger:
    """`free` may be below zero: where a node shrank under its tasks."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._build(snapshot)

    # ---- building --------------------------------------------------------------------------------------------------------------

    def _build(self, snapshot: Snapshot) -> None:
        self._shown: Snapshot = snapshot
        self.nodes = sorted(snapshot.all(Node), key=lambda node: node.id)
        self.ids = [node.id for node in self.nodes]
        self.index: dict[str, int] = {node.id: index for index, node in enumerate(self.nodes)}
        count = len(self.nodes)
        self.columns = Columns(self.nodes)
        self.takes: Mask = np.fromiter((takes_tasks(node) for node in self.nodes), dtype=bool, count=count)
        self.total = Amounts.zeros(count)
        self.free = Amounts.zeros(count)
        self.active = np.zeros(count, dtype=np.int64)
        self.replicas: dict[str, dict[int, int]] = {}
        self.ports: dict[HostPort, dict[int, int]] = {}
        self.members: dict[str, Mask] = {}
        self.failed: dict[str, dict[str, Task]] = {}
        cluster = snapshot.cluster
        for index, node in enumerate(self.nodes):
            self._capacity(index, node, cluster, 1)
            self._attachments(index, node, True)
        for task in snapshot.all(Task):
            if task.node_id:
                self._account(task, 1)

    def _capacity(self, index: int, node: Node, cluster: Cluster | None, times: int) -> None:
        amount = capacity(node.description.resources, overcommit_of(node, cluster))
        self.total.add(index, amount, times)
        self.free.add(index, amount, times)

    def _attachments(self, index: int, node: Node, there: bool) -> None:
        for attachment in node.mesh_attachments or ():
            members = self.members.get(attachment.network_id)
            if members is None:
                members = self.members[attachment.network_id] = np.zeros(len(self.nodes), dtype=bool)
            members[index] = there

    # ---- following -------------------------------------------------------------------------------------------------------------

    def follow(self, snapshot: Snapshot) -> None:
        changed = to_follow(self._shown, snapshot)
        if changed is None:
            self._build(snapshot)
            return
        before, self._shown = self._shown, snapshot
        for kind, id in changed:
            if kind == "task":
                old, new = before.task(id), snapshot.task(id)
                if old is not new:
                    self._account(old, -1)
                    self._account(new, 1)
            elif kind == "node":
                was, now = before.node(id), snapshot.node(id)
                if was is None or now is None:
                    if was is not now:
                        self._build(snapshot)
                        return
                elif was is not now:
                    self._node_changed(self.index[id], was, now)
            elif kind == "cluster" and labels_of(before.cluster) != labels_of(snapshot.cluster):
                self._build(snapshot)
                return

    def _node_changed(self, index: int, old: Node, new: Node) -> None:
        self.nodes[index] = new
        self.takes[index] = takes_tasks(new)
        if old.mesh_attachments != new.mesh_attachments:
            self._attachments(index, old, False)
            self._attachments(index, new, True)
        if old.spec != new.spec or old.description != new.description or old.status.addr != new.status.addr:
            cluster = self._shown.cluster
            self._capacity(index, old, cluster, -1)
            self._capacity(index, new, cluster, 1)
            self.columns = Columns(self.nodes)

    def _account(self, task: Task | None, times: int) -> None:
        if task is None or not task.node_id:
            return
        state = task.status.state
        if state in _FAILED:
            failed = self.failed.setdefault(task.service_id, {})
            if times > 0:
                failed[task.id] = task
            else:
                failed.pop(task.id, None)
        if STATE_ORDER[state] < _ASSIGNED or terminal(state):
            return
        index = self.index.get(task.node_id)
        if index is None:
            return
        if task.spec.resources is not None:
            self.free.add(index, reservation_of(task.spec, task.generic_resources), -times)
        if task.mesh_endpoint_ports:
            for used in host_ports(task):
                _count(self.ports.setdefault(used, {}), index, times)
        if wanted(task):
            self.active[index] += times
            service = self.replicas.get(task.service_id)
            if service is None:
                service = self.replicas[task.service_id] = {}
            _count(service, index, times)
            if not service:
                del self.replicas[task.service_id]


def _count(counts: dict[int, int], index: int, times: int) -> None:
    count = counts.get(index, 0) + times
    if count:
        counts[index] = count
    else:
        counts.pop(index, None)


RESIDENT = Resident(Ledger)


def ledger_of(snapshot: Snapshot) -> Ledger:
    """Valid until the next call."""
    return RESIDENT.showing(snapshot)
