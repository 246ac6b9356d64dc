"""Which addresses of the overlay networks are free: pools that are worked out anew from each snapshot.

Pure: no I/O. A pool knows what tasks, VIPs and nodes hold, hands out the next free address after the one most recently given to a
task, and prefers addresses that not even an ended task of the history still shows, so that a client that remembers an address
rarely meets a stranger there. Nothing is kept between two passes.

Every node that runs a task of a network needs one address of its own there. So that a task can never hold the last address its
node would need, tasks and VIPs leave as many addresses free as the tasks still to be placed could ask for nodes.
"""

from __future__ import annotations

import ipaddress
import itertools
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from orchestrator.errors import ConfigError
from orchestrator.model import STATE_ORDER, ZERO_TIME, IPAMConfig, Network, Node, Service, Task, TaskState, terminal
from orchestrator.store.snapshot import Snapshot

_ASSIGNED = STATE_ORDER[TaskState.ASSIGNED]


def bare(cidr: str) -> str:
    """The address of a CIDR text without its prefix length."""
    return cidr.partition("/")[0]


def number(address: str) -> int:
    """An address (with or without prefix length) as a number; ValueError if it is none. ~5x faster than `ipaddress`."""
    text = bare(address)
    try:
        return int.from_bytes(socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text), "big")
    except OSError as error:
        raise ValueError(f"'{address}' is not an IP address") from error


class SubnetPool:
    """The addresses of one subnet. `size` counts what may be given away at all, the gateway included (it is in use)."""

    __slots__ = ("_first", "_last", "_position", "_prefix_length", "_recent", "_subnet", "_used", "version")

    def __init__(self, config: IPAMConfig) -> None:
        self._subnet = ipaddress.ip_network(config.subnet, strict=False)
        self.version = self._subnet.version
        self._prefix_length = self._subnet.prefixlen
        part = ipaddress.ip_network(config.ip_range, strict=False) if config.ip_range else self._subnet
        network, broadcast = int(self._subnet.network_address), int(self._subnet.broadcast_address)
        # the network's own address is never given away, nor is IPv4's broadcast; in a /31 or /32 that leaves nothing
        self._first = max(int(part.network_address), network + 1)
        self._last = min(int(part.broadcast_address), broadcast - 1 if self.version == 4 else broadcast)
        self._position = self._first - 1
        self._used: set[int] = set()
        self._recent: set[int] = set()
        for address in (config.gateway, *(config.auxiliary_addresses or {}).values()):
            if address:
                self.hold(number(address))

    @property
    def size(self) -> int:
        return max(0, self._last - self._first + 1)

    @property
    def used(self) -> int:
        return len(self._used)

    @property
    def free(self) -> int:
        return self.size - len(self._used)

    def contains(self, address: int) -> bool:
        return self._first <= address <= self._last

    def hold(self, address: int) -> None:
        if self.contains(address):
            self._used.add(address)

    def remember(self, address: int) -> None:
        """An ended task had it: given again only when nothing else is left."""
        if self.contains(address):
            self._recent.add(address)

    def start_after(self, address: int) -> None:
        if self.contains(address):
            self._position = address

    def is_free(self, address: int) -> bool:
        return self.contains(address) and address not in self._used

    def give(self, address: int) -> str:
        """This free address in CIDR form."""
        self._used.add(address)
        return f"{_text(address, self.version)}/{self._prefix_length}"

    def take(self) -> str | None:
        """The next free address in CIDR form; None if all are in use."""
        if self.free <= 0:
            return None
        address = self._next()
        if address is None:
            # all that is free was given to somebody before: from here on that no longer counts
            self._recent.clear()
            address = self._next()
        assert address is not None, "used addresses are counted wrongly"
        self._position = address
        return self.give(address)

    def _next(self) -> int | None:
        around = itertools.chain(range(self._position + 1, self._last + 1), range(self._first, self._position + 1))
        return next((address for address in around if address not in self._used and address not in self._recent), None)


class NetworkPool:
    """The addresses of one network: those of its first family for everybody, and of IPv6 too where it has both."""

    def __init__(self, network: Network) -> None:
        subnets = [SubnetPool(config) for config in network.ipam.config or () if config.subnet]
        self.network = network
        self._families = [family for v in (4, 6) if (family := [subnet for subnet in subnets if subnet.version == v])]
        self._nodes_without = 0
        self._unplaced = 0

    def start(self, nodes_without: int, unplaced: int) -> None:
        """How many nodes have no address here, and how many tasks that have one are without a node."""
        self._nodes_without, self._unplaced = nodes_without, unplaced

    def hold(self, address: str) -> None:
        for subnet in self._subnets(address):
            subnet.hold(number(address))

    def remember(self, address: str) -> None:
        for subnet in self._subnets(address):
            subnet.remember(number(address))

    def start_after(self, address: str) -> None:
        for subnet in self._subnets(address):
            subnet.start_after(number(address))

    def has_room_for_task(self) -> bool:
        return self._has_room(leave=min(self._nodes_without, self._unplaced + 1))

    def take_for_task(self, chosen: Sequence[str] = ()) -> list[str]:
        """One address of each family, that which was `chosen` or the next; there must be room, and `check` has passed."""
        self._unplaced += 1
        return self._take(chosen)

    def check(self, chosen: Sequence[str]) -> None:
        """ConfigError, in Docker's words, unless every one of these addresses can be had."""
        for address in chosen:
            subnets = self._around(address)
            if not subnets:
                raise ConfigError(f"Invalid address {address}: It does not belong to any of this network's subnets")
            if not subnets[0].is_free(number(address)):
                raise ConfigError(f"Address already in use: {address}")

    def has_room_for_service(self) -> bool:
        return self._has_room(leave=min(self._nodes_without, self._unplaced))

    def take_for_service(self) -> list[str]:
        """The VIPs of a service, one of each family; there must be room."""
        return self._take()

    def has_room_for_node(self) -> bool:
        return bool(self._families) and any(subnet.free > 0 for subnet in self._families[0])

    def take_for_node(self) -> str | None:
        """A node's own address: one only, of the network's first family."""
        address = self._families and _take_first(self._families[0])
        if not address:
            return None
        self._nodes_without -= 1
        return address

    def exhausted(self) -> str:
        subnets = self._families[0] if self._families else []
        used, size = sum(subnet.used for subnet in subnets), sum(subnet.size for subnet in subnets)
        return f"pool exhausted {used}/{size} of network {self.network.name}"

    def _has_room(self, leave: int) -> bool:
        """All families have an address, the first one more than `leave`."""
        free = [sum(subnet.free for subnet in family) for family in self._families]
        return bool(free) and free[0] > leave and min(free) > 0

    def _take(self, chosen: Sequence[str] = ()) -> list[str]:
        given = {subnet.version: subnet.give(number(address)) for address in chosen for subnet in self._around(address)}
        return [address for family in self._families if (address := given.get(family[0].version) or _take_first(family))]

    def _around(self, address: str) -> list[SubnetPool]:
        return [subnet for subnet in self._subnets(address) if subnet.contains(number(address))]

    def _subnets(self, address: str) -> list[SubnetPool]:
        version = 6 if ":" in address else 4
        return [subnet for family in self._families for subnet in family if subnet.version == version]


class Pools:
    """The pools of all networks of a snapshot, each built when it is first asked for."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._pools: dict[str, NetworkPool] = {}
        self._held: dict[str, list[str]] | None = None
        self._nodes_on: dict[str, int] = {}

    def of(self, network: Network) -> NetworkPool:
        pool = self._pools.get(network.id)
        if pool is None:
            pool = self._pools[network.id] = self._build(network)
        return pool

    def _build(self, network: Network) -> NetworkPool:
        pool = NetworkPool(network)
        for address in self._held_by_services_and_nodes().get(network.id, ()):
            pool.hold(address)
        unplaced = 0
        newest: tuple[datetime, int, str] = (ZERO_TIME, -1, "")
        for task, address in _task_addresses(self._snapshot.tasks_of_network(network.id), network.id):
            if terminal(task.status.state):
                pool.remember(address)
            else:
                pool.hold(address)
                unplaced += STATE_ORDER[task.status.state] < _ASSIGNED
            if ":" not in address and task.created_at >= newest[0]:
                newest = max(newest, (task.created_at, number(address), address))
        if newest[2]:
            pool.start_after(newest[2])
        pool.start(self._snapshot.count(Node) - self._nodes_on.get(network.id, 0), unplaced)
        return pool

    def _held_by_services_and_nodes(self) -> dict[str, list[str]]:
        if self._held is None:
            held: dict[str, list[str]] = defaultdict(list)
            nodes_on: dict[str, int] = defaultdict(int)
            for service in self._snapshot.all(Service):
                for vip in service.endpoint.virtual_ips or ():
                    held[vip.network_id].append(vip.addr)
            for node in self._snapshot.all(Node):
                for attachment in node.mesh_attachments or ():
                    held[attachment.network_id].append(attachment.addr)
                    nodes_on[attachment.network_id] += 1
            self._held, self._nodes_on = held, nodes_on
        return self._held


def _task_addresses(tasks: Iterable[Task], network_id: str) -> Iterator[tuple[Task, str]]:
    for task in tasks:
        for attachment in task.networks_attachments or ():
            if attachment.network.id == network_id:
                for address in attachment.addresses or ():
                    yield task, address


def _take_first(family: list[SubnetPool]) -> str | None:
    return next((address for subnet in family if (address := subnet.take())), None)


def _text(address: int, version: int) -> str:
    if version == 4:
        return socket.inet_ntop(socket.AF_INET, address.to_bytes(4, "big"))
    return socket.inet_ntop(socket.AF_INET6, address.to_bytes(16, "big"))
