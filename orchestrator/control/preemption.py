"""Whom a task of higher priority may displace, and from which node.

Pure: no I/O. Neither Swarm has it; after Kubernetes (pkg/scheduler/framework/preemption): on a node, all tasks of lower priority are
thought away and then taken back one by one, dearest and smallest first, as long as there is room; who can't be taken back is a victim.
So no victim could be spared. Of all nodes the one is chosen whose dearest victim is cheapest, then the one with the fewest victims.

A displaced task drains and stops like any other. Until it has ended its place is promised, not free: the promise is worked out anew in
every pass, before tasks of lower priority are placed, so nobody else gets it and nobody is displaced twice for it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from orchestrator.control.attention import attention
from orchestrator.control.columns import Ints, Mask
from orchestrator.control.demand import Demand, HostPort, host_ports
from orchestrator.control.ledger import Amounts, Ledger
from orchestrator.control.placement_labels import priority_of
from orchestrator.control.resources import Reservation, reservation_of
from orchestrator.control.room import Room
from orchestrator.control.slots import age_key, wanted
from orchestrator.model import STATE_ORDER, Service, Task, TaskState, terminal
from orchestrator.store.snapshot import Snapshot

# so many nodes are looked at closely for one task, those with most room first
_CLOSE_LOOKS = 256
_ASSIGNED = STATE_ORDER[TaskState.ASSIGNED]


def lowest_priority(snapshot: Snapshot) -> int:
    """Of all services; tasks of none of them can be displaced by a task that has no higher one."""
    priorities = attention(snapshot).priorities
    others = [0] if snapshot.count(Service) > len(priorities) else []
    return min([*priorities.values(), *others], default=0)


@dataclass(frozen=True, slots=True)
class Promise:
    """The node a task will have once `victims`, and those stopping there already, are gone."""

    index: int
    victims: tuple[Task, ...]


class Preemption:
    """The tasks on the nodes by priority; built when the first task of a pass finds no node although its priority is not the lowest."""

    def __init__(self, snapshot: Snapshot, ledger: Ledger, room: Room) -> None:
        self._room = room
        self._priorities = {service.id: priority_of(service) for service in snapshot.all(Service)}
        self._tasks: list[list[tuple[Task, Reservation]]] = [[] for _ in ledger.nodes]
        # what tasks that are stopping still hold
        self._ending = Amounts.zeros(len(ledger.nodes))
        self._port_holders: dict[tuple[int, HostPort], list[Task]] = defaultdict(list)
        self._promised_ports: set[tuple[int, HostPort]] = set()
        self._below: dict[int, Amounts] = {}
        for node_id, index in ledger.index.items():
            for task in snapshot.tasks_of_node(node_id):
                if STATE_ORDER[task.status.state] < _ASSIGNED or terminal(task.status.state):
                    continue
                held = reservation_of(task.spec, task.generic_resources)
                for port in host_ports(task):
                    self._port_holders[index, port].append(task)
                if wanted(task):
                    self._tasks[index].append((task, held))
                else:
                    self._ending.add(index, held, 1)

    def promise(self, asked: Demand, service_id: str, suitable: Mask) -> Promise | None:
        """A place on one of the `suitable` nodes, kept from now on from all that come later in the pass."""
        priority = self._priorities.get(service_id, 0)
        best: tuple[tuple[int, int, int], Promise] | None = None
        for index in self._closest(asked, priority, suitable):
            victims = self._victims(asked, priority, index)
            if victims is None:
                continue
            cost = (max((self._priority(task) for task in victims), default=-(2**31)), len(victims), index)
            if best is None or cost < best[0]:
                best = (cost, Promise(index, tuple(victims)))
        if best is None:
            return None
        self._keep(asked, service_id, best[1])
        return best[1]

    def _priority(self, task: Task) -> int:
        return self._priorities.get(task.service_id, 0)

    def _closest(self, asked: Demand, priority: int, suitable: Mask) -> list[int]:
        """The nodes that would have room if all tasks of lower priority went, those with most room now first."""
        below = self._held_below(priority)
        enough = suitable.copy()
        for amount, now, ending, lower in zip(_amounts(asked.reserved), *self._arrays(asked.reserved, below), strict=True):
            if amount:
                enough &= now + ending + lower >= amount
        nodes = np.flatnonzero(enough)
        if len(nodes) > _CLOSE_LOOKS:
            free = self._room.free
            order = np.lexsort((nodes, -free.memory_bytes[nodes], -free.nano_cpus[nodes]))
            nodes = nodes[order[:_CLOSE_LOOKS]]
        found: list[int] = nodes.tolist()
        return found

    def _held_below(self, priority: int) -> Amounts:
        """What tasks of lower priority hold on each node."""
        below = self._below.get(priority)
        if below is None:
            below = self._below[priority] = Amounts.zeros(len(self._tasks))
            for index, tasks in enumerate(self._tasks):
                for task, held in tasks:
                    if self._priority(task) < priority:
                        below.add(index, held, 1)
        return below

    def _victims(self, asked: Demand, priority: int, index: int) -> list[Task] | None:
        """Those who must go from the node; None: it would not help."""
        lower = [(task, held) for task, held in self._tasks[index] if self._priority(task) < priority]
        in_the_way: set[str] = set()
        for port in asked.host_ports:
            holders = self._in_the_way(index, port, {task.id for task, _ in lower})
            if holders is None:
                return None
            in_the_way |= holders
        amounts = _amounts(asked.reserved)
        kinds = [kind for kind, amount in enumerate(amounts) if amount]
        free, ending, below = self._arrays(asked.reserved, self._held_below(priority))
        left = {kind: int(free[kind][index] + ending[kind][index] + below[kind][index]) - amounts[kind] for kind in kinds}
        if any(amount < 0 for amount in left.values()):
            return None
        generic = [kind for kind, _ in asked.reserved.generic]

        def dearest_first(pair: tuple[Task, Reservation]) -> tuple[object, ...]:
            task, held = pair
            return (-self._priority(task), *(_amounts(held, generic)[kind] for kind in kinds), age_key(task))

        victims = []
        for task, held in sorted(lower, key=dearest_first):
            rest = {kind: left[kind] - _amounts(held, generic)[kind] for kind in kinds}
            if task.id in in_the_way or any(amount < 0 for amount in rest.values()):
                victims.append(task)
            else:
                left = rest
        return victims

    def _in_the_way(self, index: int, port: HostPort, lower: set[str]) -> set[str] | None:
        """The tasks that have to leave the port; None: it can't be had."""
        if (index, port) in self._promised_ports:
            return None
        if not self._room.uses_port(index, port):
            return set()
        holders = self._port_holders[index, port]
        held = {task.id for task in holders if wanted(task)}
        # without holder it was given away in this very pass
        return held if holders and held <= lower else None

    def _keep(self, asked: Demand, service_id: str, promise: Promise) -> None:
        index = promise.index
        gone = {task.id for task in promise.victims}
        for task, held in self._tasks[index]:
            if task.id in gone:
                self._ending.add(index, held, 1)
                for priority, below in self._below.items():
                    if self._priority(task) < priority:
                        below.add(index, held, -1)
        self._tasks[index] = [pair for pair in self._tasks[index] if pair[0].id not in gone]
        self._promised_ports |= {(index, port) for port in asked.host_ports}
        self._room.hold(asked, service_id, np.array([index]), ())

    def _arrays(self, reserved: Reservation, below: Amounts) -> tuple[list[Ints], list[Ints], list[Ints]]:
        """(free, held by those stopping, held by those of lower priority), each by what is reserved, in the order of `_amounts`."""
        free, ending, lower = (
            [of.nano_cpus, of.memory_bytes, *(of.of_kind(kind) for kind, _ in reserved.generic)]
            for of in (self._room.free, self._ending, below)
        )
        return free, ending, lower


def _amounts(reserved: Reservation, generic: list[str] | None = None) -> list[int]:
    """CPUs, memory, then generic resources: its own, or those of the given kinds."""
    if generic is None:
        return [reserved.nano_cpus, reserved.memory_bytes, *(count for _, count in reserved.generic)]
    counts = dict(reserved.generic)
    return [reserved.nano_cpus, reserved.memory_bytes, *(counts.get(kind, 0) for kind in generic)]
