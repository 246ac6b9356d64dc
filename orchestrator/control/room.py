"""How many more tasks of a kind each node can take, while tasks are being placed.

Pure: no I/O. Starts from the ledger's arrays and copies what it changes. What a task needs and nodes can run out of: CPUs, memory, generic
resources, host ports, the service's own limit of replicas a node, and the company it wants or shuns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.control.affinities import Company
from orchestrator.control.columns import Ints, Mask
from orchestrator.control.demand import Demand, HostPort
from orchestrator.control.expressions import Expression
from orchestrator.control.filters import Filter, Refusal, lacking
from orchestrator.control.ledger import Ledger
from orchestrator.control.resources import Available, Reservation, cpu_words, memory_words
from orchestrator.model import GenericResource, Task, terminal
from orchestrator.store.snapshot import Snapshot

_FULLNESS = 10_000


class Room:
    def __init__(self, snapshot: Snapshot, ledger: Ledger) -> None:
        self._snapshot = snapshot
        self._ledger = ledger
        self._count = len(ledger.nodes)
        self._company = Company(snapshot, ledger.index)
        self.free = ledger.free.copy()
        self.active = ledger.active.copy()
        self._replicas: dict[str, Ints] = {}
        self._ports: dict[HostPort, Mask] = {}
        self._members: dict[str, Mask] = {}
        self._available: dict[int, Available] = {}

    # ---- what there is ---------------------------------------------------------------------------------------------------------

    def replicas(self, service_id: str) -> Ints:
        """Wanted tasks of the service on each node."""
        replicas = self._replicas.get(service_id)
        if replicas is None:
            replicas = self._replicas[service_id] = np.zeros(self._count, dtype=np.int64)
            for index, count in self._ledger.replicas.get(service_id, {}).items():
                replicas[index] = count
        return replicas

    def members(self, network_id: str) -> Mask:
        """The nodes that have an address on the network."""
        members = self._members.get(network_id)
        if members is None:
            known = self._ledger.members.get(network_id)
            members = self._members[network_id] = known.copy() if known is not None else np.zeros(self._count, dtype=bool)
        return members

    def uses_port(self, index: int, port: HostPort) -> bool:
        return bool(self._taken(port)[index])

    def of(self, wanted: Demand, service_id: str, task: Task, most: int) -> Ints:
        """How many more such tasks fit on each node, `most` where nothing limits them. `task`: one of them."""
        room = np.full(self._count, most, dtype=np.int64)
        for amount, free in self._needs(wanted.reserved):
            if amount:
                # most nodes have plenty: dividing is what costs
                short = np.flatnonzero(free < most * amount)
                room[short] = np.minimum(room[short], np.maximum(free[short], 0) // amount)
        if wanted.max_replicas:
            np.minimum(room, np.maximum(wanted.max_replicas - self.replicas(service_id), 0), out=room)
        for port in wanted.host_ports:
            np.minimum(room, 1, out=room)
            room[self._taken(port)] = 0
        for one in self._hard(wanted, task):
            room[~self._company.passes(one)] = 0
            if not one.equal and self._company.matches(one, task):
                np.minimum(room, 1, out=room)
        return room

    def filters(self, wanted: Demand, service_id: str, task: Task) -> list[Filter]:
        """Why a node has no room for one more, in the order of the charges."""
        filters = [
            Filter(Refusal.AFFINITY, self._company.passes(one), f"does not match {one}", f"do not match {one}")
            for one in self._hard(wanted, task)
        ]
        for protocol, number in sorted(wanted.host_ports):
            filters.append(
                Filter(Refusal.HOST_PORT, ~self._taken((protocol, number)), f"uses {number}/{protocol}", f"use {number}/{protocol}")
            )
        if wanted.max_replicas:
            passes = self.replicas(service_id) < wanted.max_replicas
            filters.append(Filter(Refusal.MAX_REPLICAS, passes, f"has {wanted.max_replicas}", f"have {wanted.max_replicas}"))
        reserved = wanted.reserved
        if reserved.nano_cpus:
            filters.append(lacking(Refusal.RESOURCES, self.free.nano_cpus >= reserved.nano_cpus, cpu_words(reserved.nano_cpus)))
        if reserved.memory_bytes:
            filters.append(lacking(Refusal.RESOURCES, self.free.memory_bytes >= reserved.memory_bytes, memory_words(reserved.memory_bytes)))
        for kind, count in reserved.generic:
            filters.append(lacking(Refusal.RESOURCES, self.free.of_kind(kind) >= count, f"{count} {kind}"))
        return filters

    def fullness(self, reserved: Reservation, nodes: Ints) -> Ints:
        """How full each node would be with one more, summed over what the task reserves. Source: classicswarm weighted_node.go."""
        full = np.zeros(len(nodes), dtype=np.int64)
        for (amount, free), total in zip(self._needs(reserved), self._totals(reserved), strict=True):
            if amount:
                full += (total[nodes] - free[nodes] + amount) * _FULLNESS // np.maximum(total[nodes], 1)
        return full

    def soft_affinities(self, wanted: Demand) -> list[Mask]:
        return [self._company.passes(one) for one in wanted.expressions if one.kind == "affinity" and one.soft]

    def follows_itself(self, wanted: Demand, task: Task) -> bool:
        """Where one task goes changes where the next one of the group wants to go."""
        return any(one.kind == "affinity" and (one.soft or one.equal) and self._company.matches(one, task) for one in wanted.expressions)

    # ---- taking it -------------------------------------------------------------------------------------------------------------

    def hold(self, wanted: Demand, service_id: str, seats: Ints, placed: Sequence[Task]) -> None:
        """Tasks of one demand take these seats."""
        for amount, free in self._needs(wanted.reserved):
            if amount:
                np.subtract.at(free, seats, amount)
        np.add.at(self.active, seats, 1)
        np.add.at(self.replicas(service_id), seats, 1)
        for port in wanted.host_ports:
            self._taken(port)[seats] = True
        self._company.add(placed)

    def give(self, index: int, wanted: Reservation) -> list[GenericResource]:
        """The generic resources of one more task, named ones by name; there is room."""
        available = self._available.get(index)
        if available is None:
            node = self._ledger.nodes[index]
            available = self._available[index] = Available(node.description)
            for task in self._snapshot.tasks_of_node(node.id):
                if not terminal(task.status.state):
                    available.hold(task.generic_resources or ())
        return available.take(wanted)

    def join(self, network_id: str, index: int) -> None:
        self.members(network_id)[index] = True

    # ---- details ---------------------------------------------------------------------------------------------------------------

    def _needs(self, reserved: Reservation) -> list[tuple[int, Ints]]:
        """(amount a task reserves, what each node has left of it)."""
        needs = [(reserved.nano_cpus, self.free.nano_cpus), (reserved.memory_bytes, self.free.memory_bytes)]
        return needs + [(count, self.free.of_kind(kind)) for kind, count in reserved.generic]

    def _totals(self, reserved: Reservation) -> list[Ints]:
        total = self._ledger.total
        return [total.nano_cpus, total.memory_bytes, *(total.of_kind(kind) for kind, _ in reserved.generic)]

    def _taken(self, port: HostPort) -> Mask:
        taken = self._ports.get(port)
        if taken is None:
            taken = self._ports[port] = np.zeros(self._count, dtype=bool)
            taken[list(self._ledger.ports.get(port, ()))] = True
        return taken

    def _hard(self, wanted: Demand, task: Task) -> list[Expression]:
        """The affinities that must hold now. One that only the task itself could satisfy doesn't count for the first of its kind."""
        return [
            one
            for one in wanted.expressions
            if one.kind == "affinity"
            and not one.soft
            and not (one.equal and self._company.matches(one, task) and not self._company.nodes(one).any())
        ]
