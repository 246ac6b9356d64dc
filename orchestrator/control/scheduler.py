"""Finds a node for each task that waits for one, and says why when there is none.

Pure: no I/O. A control loop. Source: SwarmKit manager/scheduler for the outcome: filters, spread over preferences, then the fewest tasks
of the service, the fewest tasks at all, the node id; nodes where the service failed 5 times within 5 minutes come last. Tasks of a
service that ask for the same are placed together: nodes are filtered once a group and taken from a heap, so a task costs O(log nodes).

The task, and the address its node may need on the task's networks, are one step.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import timedelta

import msgspec

from orchestrator.control.addresses import Pools
from orchestrator.control.context import Context
from orchestrator.control.filters import Demand, Explanation, NodeLoad, Refusal, demand, host_ports, lasting_refusal, passing_refusal
from orchestrator.control.resources import reservation
from orchestrator.control.steps import Decision, Step
from orchestrator.errors import TaskError
from orchestrator.model import (
    STATE_ORDER,
    GenericResource,
    Node,
    NodeAttachment,
    PlacementPreference,
    Task,
    TaskState,
    TaskStatus,
    terminal,
)
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot
from orchestrator.templates import is_template, render

# SwarmKit manager/scheduler/nodeinfo.go: monitorFailures, maxFailures
_FAILURES_WITHIN = timedelta(minutes=5)
_FAILURES_TOO_MANY = 5
_ASSIGNED = STATE_ORDER[TaskState.ASSIGNED]
_RUNNING = STATE_ORDER[TaskState.RUNNING]
_ASSIGNED_MESSAGE = "scheduler assigned task to node"
_NODE_GONE = "no suitable node (the task's node is not part of the cluster)"


def schedule(snapshot: Snapshot, ctx: Context) -> Decision:
    waiting = [
        task for task in snapshot.all(Task) if task.status.state is TaskState.PENDING and STATE_ORDER[task.desired_state] <= _RUNNING
    ]
    if not waiting:
        return Decision()
    return _Pass(snapshot, ctx).run(sorted(waiting, key=lambda task: (task.created_at, task.slot, task.id)))


# failing here lately, tasks of the service, tasks at all, node id: the order in which nodes are used
_Entry = tuple[bool, int, int, str, NodeLoad]


@dataclass(frozen=True, slots=True)
class _Seat:
    """What was reserved for one task: the node, and generic resources there."""

    node_id: str
    given: list[GenericResource]


class _Group:
    """Tasks of one service that ask for the same, oldest first."""

    __slots__ = ("demand", "preferences", "service_id", "tasks")

    def __init__(self, first: Task) -> None:
        self.tasks = [first]
        self.service_id = first.service_id
        self.demand: Demand = demand(first)
        placement = first.spec.placement
        self.preferences: list[PlacementPreference] = list((placement.preferences if placement else None) or ())

    def takes(self, task: Task) -> bool:
        first = self.tasks[0]
        return (
            task.spec == first.spec
            and task.mesh_endpoint_ports == first.mesh_endpoint_ports
            and tuple(attachment.network.id for attachment in task.networks_attachments or ()) == self.demand.networks
        )


class _Branch:
    """Nodes that share a value of a preference's label; without preferences, all of them.

    A heap of branches, or at the last level of nodes, the one to be used next on top. An exhausted one is dropped: what refuses
    one task of a group refuses all that follow.
    """

    __slots__ = ("_branches", "_nodes", "count")

    def __init__(self) -> None:
        self.count = 0
        self._branches: dict[str, _Branch] = {}
        self._nodes: list[_Entry] = []

    def add(self, path: list[str], seats: int, entry: _Entry) -> None:
        """`seats`: tasks of the service that the node has already."""
        self.count += seats
        if path:
            self._branches.setdefault(path[0], _Branch()).add(path[1:], seats, entry)
        else:
            self._nodes.append(entry)

    def fill(self, entries: list[_Entry]) -> None:
        """All nodes at once, where nothing is to be spread over."""
        self._nodes = entries

    def heapify(self) -> None:
        heapq.heapify(self._nodes)
        for branch in self._branches.values():
            branch.heapify()

    def take(self, group: _Group, placing: _Pass) -> _Seat | None:
        """A seat on the best node that can hold one more task; None if no node of this branch can, now and for the rest of the group."""
        while self._branches:
            value = min(self._branches, key=lambda value: (self._branches[value].count, value))
            if seat := self._branches[value].take(group, placing):
                self.count += 1
                return seat
            del self._branches[value]
        while self._nodes:
            failing, _, _, id, load = self._nodes[0]
            seat = placing.reserve(load, group.service_id, group.demand)
            if seat is None:
                heapq.heappop(self._nodes)
                continue
            heapq.heapreplace(self._nodes, (failing, load.replicas.get(group.service_id, 0), load.active, id, load))
            self.count += 1
            return seat
        return None


class _Pass:
    """One pass: the load of every node, growing as tasks are placed."""

    def __init__(self, snapshot: Snapshot, ctx: Context) -> None:
        self._snapshot = snapshot
        self._now = ctx.now
        self._pools = Pools(snapshot)
        self._loads = {node.id: NodeLoad(node) for node in sorted(snapshot.all(Node), key=lambda node: node.id)}
        self._eligible_for: dict[object, tuple[list[NodeLoad], Counter[Refusal]]] = {}
        self._failures: dict[str, Counter[str]] = defaultdict(Counter)
        self._member_of = {node.id: {attachment.network_id for attachment in node.mesh_attachments or ()} for node in snapshot.all(Node)}
        self._new_attachments: dict[str, list[NodeAttachment]] = {}
        self._placed: list[Task] = []
        self._updated: list[Task] = []
        for task in snapshot.all(Task):
            if task.node_id:
                self._count(task)

    def run(self, waiting: list[Task]) -> Decision:
        groups: dict[str, list[_Group]] = {}
        ordered: list[_Group] = []
        for task in waiting:
            if task.node_id:
                self._place_on_its_node(task)
                continue
            group = next((group for group in groups.get(task.service_id, ()) if group.takes(task)), None)
            # a task without service is a group of its own
            if group is None or not task.service_id:
                group = _Group(task)
                groups.setdefault(task.service_id, []).append(group)
                ordered.append(group)
            else:
                group.tasks.append(task)
        for group in ordered:
            self._place_group(group)
        return Decision(self._steps())

    # ---- what is there ---------------------------------------------------------------------------------------------------------

    def _count(self, task: Task) -> None:
        load = self._loads.get(task.node_id)
        state = task.status.state
        if load is None or STATE_ORDER[state] < _ASSIGNED:
            return
        if not terminal(state):
            if task.spec.resources is not None:
                load.available.hold(reservation(task.spec), task.generic_resources or ())
            wanted = STATE_ORDER[task.desired_state] <= _RUNNING
            load.hold(task.service_id, wanted=wanted, ports=host_ports(task) if task.mesh_endpoint_ports else ())
        elif state in (TaskState.FAILED, TaskState.REJECTED) and task.status.timestamp > self._now - _FAILURES_WITHIN:
            self._failures[task.service_id][task.node_id] += 1

    # ---- placing ---------------------------------------------------------------------------------------------------------------

    def _place_group(self, group: _Group) -> None:
        eligible, refusals = self._eligible(group.demand)
        explanation = Explanation(refusals.copy())
        failures = self._failures.get(group.service_id) or Counter()
        failing = {node_id for node_id, count in failures.items() if count >= _FAILURES_TOO_MANY}
        id = group.service_id
        entries = [(load.id in failing, load.replicas.get(id, 0), load.active, load.id, load) for load in eligible]
        root = _Branch()
        if group.preferences:
            for entry in entries:
                root.add([_label(entry[4].node, preference) for preference in group.preferences], entry[1], entry)
        else:
            root.fill(entries)
        root.heapify()
        template_error = self._template_error(group.tasks[0])
        for index, task in enumerate(group.tasks):
            if template_error:
                self._reject(task, template_error)
                continue
            seat = root.take(group, self)
            if seat is None:
                for load in eligible:
                    refusal = self._refusal(load, group.service_id, group.demand)
                    assert refusal is not None, f"node {load.node.id} was passed over without reason"
                    explanation.add(refusal)
                sentence = explanation.sentence()
                for refused in group.tasks[index:]:
                    self._refuse(refused, sentence)
                return
            self._assign(task, seat)

    def _eligible(self, wanted: Demand) -> tuple[list[NodeLoad], Counter[Refusal]]:
        """The nodes that no lasting reason excludes, and the count of the others by reason; worked out once for equal demands."""
        known = self._eligible_for.get(wanted.lasting)
        if known is None:
            nodes: list[NodeLoad] = []
            refusals: Counter[Refusal] = Counter()
            for load in self._loads.values():
                if refusal := lasting_refusal(load.node, wanted):
                    refusals[refusal] += 1
                else:
                    nodes.append(load)
            known = self._eligible_for[wanted.lasting] = (nodes, refusals)
        return known

    def _place_on_its_node(self, task: Task) -> None:
        """A task of a global service: its node is given, the filters still have to agree."""
        load = self._loads.get(task.node_id)
        if load is None:
            self._refuse(task, _NODE_GONE)
            return
        wanted = demand(task)
        refusal = lasting_refusal(load.node, wanted) or self._refusal(load, task.service_id, wanted)
        if refusal is not None:
            explanation = Explanation()
            explanation.add(refusal)
            self._refuse(task, explanation.sentence())
        elif error := self._template_error(task):
            self._reject(task, error)
        elif seat := self.reserve(load, task.service_id, wanted):
            self._assign(task, seat)

    def reserve(self, load: NodeLoad, service_id: str, wanted: Demand) -> _Seat | None:
        """Take everything one more task needs on the node; None and nothing taken if something is missing."""
        if self._refusal(load, service_id, wanted) is not None:
            return None
        for network_id in wanted.networks:
            self._join(load.node, network_id)
        given = load.available.take(wanted.reserved)
        load.hold(service_id, wanted=True, ports=wanted.host_ports)
        return _Seat(load.node.id, given)

    def _refusal(self, load: NodeLoad, service_id: str, wanted: Demand) -> Refusal | None:
        if refusal := passing_refusal(load, service_id, wanted):
            return refusal
        missing = [network_id for network_id in wanted.networks if network_id not in self._member_of[load.node.id]]
        return Refusal.ADDRESSES if any(not self._has_address_for_node(network_id) for network_id in missing) else None

    def _has_address_for_node(self, network_id: str) -> bool:
        network = self._snapshot.network(network_id)
        return network is not None and self._pools.of(network).has_room_for_node()

    def _join(self, node: Node, network_id: str) -> None:
        if network_id in self._member_of[node.id]:
            return
        network = self._snapshot.network(network_id)
        address = self._pools.of(network).take_for_node() if network else None
        assert address is not None, "the node was asked for room before"
        self._member_of[node.id].add(network_id)
        self._new_attachments.setdefault(node.id, []).append(NodeAttachment(network_id=network_id, addr=address))

    # ---- outcome ---------------------------------------------------------------------------------------------------------------

    def _assign(self, task: Task, seat: _Seat) -> None:
        status = TaskStatus(timestamp=self._now, state=TaskState.ASSIGNED, message=_ASSIGNED_MESSAGE)
        assigned = msgspec.structs.replace(
            task, node_id=seat.node_id, status=status, generic_resources=seat.given or None, updated_at=self._now
        )
        self._placed.append(assigned)

    def _refuse(self, task: Task, sentence: str) -> None:
        if task.status.err != sentence:
            status = msgspec.structs.replace(task.status, err=sentence, timestamp=self._now)
            self._updated.append(msgspec.structs.replace(task, status=status, updated_at=self._now))

    def _reject(self, task: Task, sentence: str) -> None:
        status = msgspec.structs.replace(
            task.status, state=TaskState.REJECTED, message="template can't be expanded", err=sentence, timestamp=self._now
        )
        self._updated.append(msgspec.structs.replace(task, status=status, updated_at=self._now))

    def _template_error(self, task: Task) -> str:
        """Errors of a template depend on its text alone, so any node tells; found here, no agent ever meets one."""
        if not is_template(task.spec):
            return ""
        try:
            render(task.spec, task, self._snapshot.service(task.service_id), Node(id=""))
        except TaskError as error:
            return str(error)
        return ""

    def _steps(self) -> list[Step]:
        steps: list[Step] = []
        joining = dict(self._new_attachments)
        for task in self._placed:
            # the node is written with the first task placed there: no later step of this pass touches it again
            attachments = joining.pop(task.node_id, None)
            if attachments is None:
                steps.append((Put(task),))
                continue
            node = self._loads[task.node_id].node
            joined = [*(node.mesh_attachments or ()), *attachments]
            steps.append((Put(task), Put(msgspec.structs.replace(node, mesh_attachments=joined, updated_at=self._now))))
        return steps + [(Put(task),) for task in self._updated]


def _label(node: Node, preference: PlacementPreference) -> str:
    """The node's value of what the preference spreads over; nodes without it form a group of their own, ""."""
    descriptor = preference.spread.spread_descriptor if preference.spread else ""
    kind, _, name = descriptor.partition(".labels.")
    if kind.lower() == "node":
        return (node.spec.labels or {}).get(name, "")
    if kind.lower() == "engine":
        return (node.description.engine.labels or {}).get(name, "")
    return ""
