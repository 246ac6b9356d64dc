"""Finds a node for each task that waits for one, and says why when there is none.

Pure: no I/O. A control loop. Source: SwarmKit manager/scheduler for the outcome of `spread`: filters, preferences, then the fewest tasks
of the service, the fewest tasks at all, the node id; nodes where the service failed 5 times within 5 minutes come last. Tasks of a
service that ask for the same are placed together: filters answer for all nodes at once, and `filling` deals the seats out.

Services of higher priority come first, then older tasks. The task, and the address its node may need on the task's networks, are one step.
"""

from __future__ import annotations

import operator
import zlib
from collections import Counter
from datetime import timedelta

import msgspec
import numpy as np

from orchestrator.control.addresses import Pools
from orchestrator.control.columns import Ints, Mask
from orchestrator.control.context import Context
from orchestrator.control.demand import Demand, demand, networks
from orchestrator.control.filling import Candidates, fill
from orchestrator.control.filters import Filter, Refusal, explained, lasting_filters, lasting_mask, soft_constraints
from orchestrator.control.ledger import ledger_of
from orchestrator.control.placement_labels import Strategy, priority_of, strategy_of
from orchestrator.control.preemption import Preemption, lowest_priority
from orchestrator.control.room import Room
from orchestrator.control.slots import running, wanted
from orchestrator.control.steps import Decision, Step
from orchestrator.control.transitions import stopped
from orchestrator.errors import TaskError
from orchestrator.model import (
    GenericResource,
    Node,
    NodeAttachment,
    Task,
    TaskState,
    TaskStatus,
)
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot
from orchestrator.templates import is_template, render

# SwarmKit manager/scheduler/nodeinfo.go: monitorFailures, maxFailures
_FAILURES_WITHIN = timedelta(minutes=5)
_FAILURES_TOO_MANY = 5
# so many tasks of a group are promised a place in one pass; the changes that this makes bring the next pass
_MAX_DISPLACING = 100
_ASSIGNED_MESSAGE = "scheduler assigned task to node"
_NODE_GONE = "no suitable node (the task's node is not part of the cluster)"


def schedule(snapshot: Snapshot, ctx: Context) -> Decision:
    groups = _groups(snapshot)
    return _Pass(snapshot, ctx).run(groups) if groups else Decision()


def node_for(snapshot: Snapshot, ctx: Context, task: Task) -> int | None:
    """The ledger's index of the node that the task would be given now, were it the only one that waits."""
    placing = _Pass(snapshot, ctx)
    placing.run([Group(snapshot, [task])])
    return placing.node_of(task)


class Group:
    """Tasks of one service that ask for the same, oldest first; `pinned`: each has its node already (global services)."""

    __slots__ = ("demand", "pinned", "priority", "service_id", "strategy", "tasks")

    def __init__(self, snapshot: Snapshot, tasks: list[Task]) -> None:
        first = tasks[0]
        service = snapshot.service(first.service_id)
        self.tasks = tasks
        self.service_id = first.service_id
        self.pinned = bool(first.node_id)
        self.demand: Demand = demand(first)
        self.priority = priority_of(service)
        self.strategy: Strategy = strategy_of(service, snapshot.cluster)


def _groups(snapshot: Snapshot) -> list[Group]:
    """The wanted PENDING tasks, in the order in which they are served."""
    of_service: dict[str, list[list[Task]]] = {}
    for task in snapshot.tasks_waiting():
        if task.status.state is not TaskState.PENDING or not wanted(task):
            continue
        # a task without service is a group of its own
        alike = of_service.setdefault(task.service_id or task.id, [])
        for tasks in alike:
            if _ask_for_the_same(tasks[0], task):
                tasks.append(task)
                break
        else:
            alike.append([task])
    groups = []
    for alike in of_service.values():
        for tasks in alike:
            # key by key, the last one first: sorting is stable, and much of it is sorted already
            if len({task.slot for task in tasks}) < len(tasks):
                tasks.sort(key=operator.attrgetter("id"))
            tasks.sort(key=operator.attrgetter("slot"))
            tasks.sort(key=operator.attrgetter("created_at"))
            groups.append(Group(snapshot, tasks))
    return sorted(groups, key=lambda group: (-group.priority, group.tasks[0].created_at, group.tasks[0].slot, group.tasks[0].id))


def _ask_for_the_same(one: Task, other: Task) -> bool:
    """Equal demands; that they belong to one service is known. Told fast where tasks share their objects."""
    return (
        (one.spec is other.spec or one.spec == other.spec)
        and (one.mesh_endpoint_ports is other.mesh_endpoint_ports or one.mesh_endpoint_ports == other.mesh_endpoint_ports)
        and (one.networks_attachments is other.networks_attachments or networks(one) == networks(other))
        and (not one.node_id) is (not other.node_id)
    )


class _Pass:
    """One pass: what is left on every node, shrinking as tasks are placed."""

    def __init__(self, snapshot: Snapshot, ctx: Context) -> None:
        self._snapshot = snapshot
        self._now = ctx.now
        self._ledger = ledger_of(snapshot)
        self._room = Room(snapshot, self._ledger)
        self._pools = Pools(snapshot)
        self._assigned = TaskStatus(timestamp=ctx.now, state=TaskState.ASSIGNED, message=_ASSIGNED_MESSAGE)
        self._joined: dict[int, list[NodeAttachment]] = {}
        self._placed: list[Task] = []
        self._updated: list[Task] = []
        self._displaced: list[Step] = []
        self._preemption: Preemption | None = None
        self._lowest_priority: int | None = None

    def run(self, groups: list[Group]) -> Decision:
        for group in groups:
            error = self._template_error(group.tasks[0])
            if error:
                for task in group.tasks:
                    self._reject(task, error)
            elif group.pinned:
                self._place_on_their_nodes(group)
            else:
                self._place(group)
        return Decision(self._steps())

    def node_of(self, task: Task) -> int | None:
        """Where it was placed."""
        return next((self._ledger.index[placed.node_id] for placed in self._placed if placed.id == task.id), None)

    # ---- placing ---------------------------------------------------------------------------------------------------------------

    def _place(self, group: Group) -> None:
        left = group.tasks
        while left:
            # a soft affinity to the group's own tasks has a new answer after each of them
            batch = left[:1] if self._room.follows_itself(group.demand, group.tasks[0]) else left
            placed = self._place_batch(group, batch)
            left = left[placed:]
            if placed < len(batch):
                break
        if left:
            self._refuse_or_displace(group, left, explained(len(self._ledger.nodes), self._filters(group)))

    # ---- displacing ------------------------------------------------------------------------------------------------------------

    def _displace(self, group: Group, tasks: list[Task], sentence: str, only: int | None) -> list[Task]:
        """Tells each task that can have the place of others what it waits for; returns the tasks that can't."""
        if self._lowest_priority is None:
            self._lowest_priority = lowest_priority(self._snapshot)
        if group.priority <= self._lowest_priority:
            return tasks
        if self._preemption is None:
            self._preemption = Preemption(self._snapshot, self._ledger, self._room)
        for number, task in enumerate(tasks[:_MAX_DISPLACING]):
            promise = self._preemption.promise(group.demand, group.service_id, self._suitable_but_full(group, only))
            if promise is None:
                return tasks[number:]
            node = self._ledger.nodes[promise.index]
            where = node.description.hostname or node.id
            self._refuse(task, f"{sentence}; tasks of lower priority make way on node {where}")
            if promise.victims:
                self._displaced.append(tuple(Put(stopped(victim, self._now)) for victim in promise.victims))
        return tasks[_MAX_DISPLACING:]

    def _suitable_but_full(self, group: Group, only: int | None) -> Mask:
        """The nodes that lack nothing that others could give back."""
        suitable = self._ledger.takes & lasting_mask(self._ledger.columns, group.demand) & self._joinable(group.demand)
        for one in self._room.filters(group.demand, group.service_id, group.tasks[0]):
            if one.refusal not in (Refusal.RESOURCES, Refusal.HOST_PORT):
                suitable &= one.passes
        if only is not None:
            suitable[np.arange(len(suitable)) != only] = False
        return suitable

    # ---- seats -----------------------------------------------------------------------------------------------------------------

    def _place_batch(self, group: Group, tasks: list[Task]) -> int:
        """How many of the tasks, from the first on, have found a node."""
        room = self._room.of(group.demand, group.service_id, group.tasks[0], len(tasks))
        room[~(self._ledger.takes & lasting_mask(self._ledger.columns, group.demand))] = 0
        placed = 0
        for tier in self._tiers(group, np.flatnonzero(room)):
            while placed < len(tasks):
                seats = self._seats(group, tasks[placed:], tier[room[tier] > 0], room)
                if not len(seats):
                    break
                taken = self._take(group, tasks[placed:], seats)
                placed += taken
                if taken == len(seats):
                    break
                # a network has no address left for one more node: only nodes that have one already go on
                np.subtract.at(room, seats[:taken], 1)
                room[~self._joinable(group.demand)] = 0
        return placed

    def _seats(self, group: Group, tasks: list[Task], nodes: Ints, room: Ints) -> Ints:
        asked = group.demand
        replicas = self._remaining_replicas(group.service_id, tasks)
        candidates = Candidates(
            nodes=nodes,
            room=room[nodes],
            replicas=replicas[nodes],
            active=self._room.active[nodes],
            fullness=self._room.fullness(asked.reserved, nodes) if group.strategy == "binpack" else nodes,
            all_replicas=replicas,
        )
        tree = self._ledger.columns.branches(asked.preferences, preferred) if asked.preferences else ()
        seed = zlib.crc32(tasks[0].id.encode()) if group.strategy == "random" else 0
        return fill(len(tasks), candidates, group.strategy, tree, seed)

    def _remaining_replicas(self, service_id: str, tasks: list[Task]) -> Ints:
        """The service's tasks on each node, without those that the given tasks take over from: they go as soon as these run."""
        replicas = self._room.replicas(service_id)
        if service_id in self._ledger.replicas:
            slots = {task.slot for task in tasks if task.slot}
            left = [
                self._ledger.index[old.node_id]
                for old in self._snapshot.tasks_of_service(service_id)
                if old.slot in slots and running(old) and old.node_id in self._ledger.index
            ]
            if left:
                replicas = replicas.copy()
                np.subtract.at(replicas, left, 1)
        return replicas

    def _tiers(self, group: Group, nodes: Ints) -> list[Ints]:
        """The nodes by how welcome they are: where the service doesn't keep failing, where most soft expressions hold."""
        score = np.zeros(len(self._ledger.nodes), dtype=np.int64)
        for passes in (*soft_constraints(self._ledger.columns, group.demand), *self._room.soft_affinities(group.demand)):
            score += passes
        failing = self._failing(group.service_id)
        score[failing] -= 1 << 20
        if not failing and not score.any():
            return [nodes]
        scores = score[nodes]
        return [nodes[scores == one] for one in np.unique(scores)[::-1]]

    def _failing(self, service_id: str) -> list[int]:
        failures: Counter[str] = Counter()
        for task in self._ledger.failed.get(service_id, {}).values():
            failures[task.node_id] += task.status.timestamp > self._now - _FAILURES_WITHIN
        index = self._ledger.index
        return [index[node_id] for node_id, count in failures.items() if count >= _FAILURES_TOO_MANY and node_id in index]

    def _take(self, group: Group, tasks: list[Task], seats: Ints) -> int:
        """Gives the seats to the tasks, up to the first whose node lacks an address on a network and can't get one."""
        asked = group.demand
        nodes: list[int] = seats.tolist()
        if asked.networks:
            for number, index in enumerate(nodes):
                if not self._join(index, asked.networks):
                    nodes = nodes[:number]
                    seats = seats[:number]
                    break
        if asked.reserved.generic:
            for task, index in zip(tasks, nodes, strict=False):
                self._assign(task, index, self._room.give(index, asked.reserved))
        else:
            ids, replace, status, now = self._ledger.ids, msgspec.structs.replace, self._assigned, self._now
            self._placed += [
                replace(task, node_id=ids[index], status=status, updated_at=now) for task, index in zip(tasks, nodes, strict=False)
            ]
        self._room.hold(asked, group.service_id, seats, self._placed[len(self._placed) - len(nodes) :])
        return len(nodes)

    def _place_on_their_nodes(self, group: Group) -> None:
        """Tasks of a global service: their nodes are given, the filters still have to agree."""
        asked = group.demand
        suitable = self._ledger.takes & lasting_mask(self._ledger.columns, asked)
        room = self._room.of(asked, group.service_id, group.tasks[0], len(group.tasks))
        refused: list[tuple[Task, int]] = []
        for task in group.tasks:
            index = self._ledger.index.get(task.node_id)
            if index is None:
                self._refuse(task, _NODE_GONE)
            elif suitable[index] and room[index] > 0 and self._take(group, [task], np.array([index])):
                room[index] -= 1
            else:
                refused.append((task, index))
        filters = self._filters(group) if refused else []
        for task, index in refused:
            its_own = [Filter(one.refusal, one.passes[index : index + 1], one.one, one.many) for one in filters]
            self._refuse_or_displace(group, [task], explained(1, its_own), index)

    # ---- addresses -------------------------------------------------------------------------------------------------------------

    def _join(self, index: int, network_ids: tuple[str, ...]) -> bool:
        """The node has an address on all of the networks; False and none given if one of them has none left."""
        missing = [id for id in network_ids if not self._room.members(id)[index]]
        if not all(self._has_address_for_node(id) for id in missing):
            return False
        for id in missing:
            network = self._snapshot.network(id)
            address = self._pools.of(network).take_for_node() if network else None
            assert address is not None, "the network was asked for room before"
            self._room.join(id, index)
            self._joined.setdefault(index, []).append(NodeAttachment(network_id=id, addr=address))
        return True

    def _has_address_for_node(self, network_id: str) -> bool:
        network = self._snapshot.network(network_id)
        return network is not None and self._pools.of(network).has_room_for_node()

    def _joinable(self, asked: Demand) -> Mask:
        """The nodes that have, or can get, an address on every network."""
        passes = np.ones(len(self._ledger.nodes), dtype=bool)
        for id in asked.networks:
            if not self._has_address_for_node(id):
                passes &= self._room.members(id)
        return passes

    # ---- outcome ---------------------------------------------------------------------------------------------------------------

    def _assign(self, task: Task, index: int, given: list[GenericResource]) -> None:
        id = self._ledger.nodes[index].id
        self._placed.append(msgspec.structs.replace(task, node_id=id, status=self._assigned, generic_resources=given, updated_at=self._now))

    def _filters(self, group: Group) -> list[Filter]:
        """All that a node has to pass now, in the order in which it is charged."""
        return [
            Filter(Refusal.NOT_READY, self._ledger.takes),
            *lasting_filters(self._ledger.columns, group.demand),
            *self._room.filters(group.demand, group.service_id, group.tasks[0]),
            Filter(Refusal.ADDRESSES, self._joinable(group.demand)),
        ]

    def _refuse_or_displace(self, group: Group, tasks: list[Task], sentence: str, only: int | None = None) -> None:
        """`only`: the one node that is in question."""
        for task in self._displace(group, tasks, sentence, only):
            self._refuse(task, sentence)

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
        if not self._joined:
            return [*((Put(task),) for task in (*self._placed, *self._updated)), *self._displaced]
        steps: list[Step] = []
        for task in self._placed:
            # the node is written with the first task placed there: no later step of this pass touches it again
            index = self._ledger.index[task.node_id]
            attachments = self._joined.pop(index, None)
            if attachments is None:
                steps.append((Put(task),))
                continue
            node = self._ledger.nodes[index]
            joined = [*(node.mesh_attachments or ()), *attachments]
            steps.append((Put(task), Put(msgspec.structs.replace(node, mesh_attachments=joined, updated_at=self._now))))
        return steps + [(Put(task),) for task in self._updated] + self._displaced


def preferred(node: Node, descriptor: str) -> str:
    """The node's value of what a preference spreads over; nodes without it form a group of their own, ""."""
    kind, _, name = descriptor.partition(".labels.")
    if kind.lower() == "node":
        return (node.spec.labels or {}).get(name, "")
    if kind.lower() == "engine":
        return (node.description.engine.labels or {}).get(name, "")
    return ""
