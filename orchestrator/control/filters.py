"""Whether a node can take a task, and if not, why: the filters of the scheduler.

Pure: no I/O. Source: SwarmKit manager/scheduler/filter.go (filters and the words of their explanations). A filter's refusal counts for
one node only: each node is charged to the first filter that refuses it, so the counts of an explanation add up to all nodes.
Constraint enforcement asks the same questions of tasks that already run.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.control.constraints import Constraint, canonical_architecture, node_matches, parse
from orchestrator.control.eligibility import takes_tasks
from orchestrator.control.resources import NOTHING, Available, Reservation, reservation
from orchestrator.errors import ConfigError
from orchestrator.model import Node, Platform, Task, TaskSpec

HostPort = tuple[str, int]
_BUILT_IN_VOLUME_DRIVERS = frozenset({"", "local"})
_BUILT_IN_LOG_DRIVERS = frozenset({"", "none"})


class Refusal(enum.Enum):
    """Why a node can't take a task; the value is the explanation for the given number of nodes."""

    NOT_READY = "{nodes} not available for new tasks"
    CONSTRAINTS = "scheduling constraints not satisfied on {nodes}"
    PLATFORM = "unsupported platform on {nodes}"
    PLUGIN = "missing plugin on {nodes}"
    HOST_PORT = "host-mode port already in use on {nodes}"
    MAX_REPLICAS = "max replicas per node limit exceed on {nodes}"
    RESOURCES = "insufficient resources on {nodes}"
    ADDRESSES = "no address left for {nodes} on its networks"


_ORDER = list(Refusal)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task asks of its node. `constraints` None: they can't be read, so no node matches."""

    constraints: tuple[Constraint, ...] | None = ()
    platforms: tuple[Platform, ...] = ()
    volume_drivers: frozenset[str] = frozenset()
    log_driver: str = ""
    host_ports: frozenset[HostPort] = frozenset()
    max_replicas: int = 0
    reserved: Reservation = NOTHING
    networks: tuple[str, ...] = ()

    @property
    def lasting(self) -> object:
        """Equal for demands that `lasting_refusal` answers alike."""
        return (self.constraints, self.platforms, self.volume_drivers, self.log_driver)


def demand(task: Task) -> Demand:
    spec = task.spec
    placement = spec.placement
    constraints: tuple[Constraint, ...] | None
    try:
        constraints = tuple(parse((placement.constraints if placement else None) or ()))
    except ConfigError:
        constraints = None
    return Demand(
        constraints=constraints,
        platforms=tuple((placement.platforms if placement else None) or ()),
        volume_drivers=_volume_drivers(spec),
        log_driver=spec.log_driver.name if spec.log_driver and spec.log_driver.name not in _BUILT_IN_LOG_DRIVERS else "",
        host_ports=host_ports(task),
        max_replicas=placement.max_replicas if placement else 0,
        reserved=reservation(spec),
        networks=tuple(attachment.network.id for attachment in task.networks_attachments or ()),
    )


def host_ports(task: Task) -> frozenset[HostPort]:
    ports = task.mesh_endpoint_ports
    if not ports:
        return frozenset()
    return frozenset((port.protocol, port.published_port) for port in ports if port.publish_mode == "host" and port.published_port)


class NodeLoad:
    """One node with what is on it, changed by `hold` as tasks are found or placed there.

    `replicas`: tasks by service that are wanted to run here (a service without is absent). `active`: all such tasks.
    """

    __slots__ = ("active", "available", "id", "node", "ports", "replicas")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.id = node.id
        self.available = Available(node.description)
        self.replicas: dict[str, int] = {}
        self.active = 0
        self.ports: set[HostPort] = set()

    def hold(self, service_id: str, *, wanted: bool, ports: Iterable[HostPort]) -> None:
        self.ports.update(ports)
        if wanted:
            self.replicas[service_id] = self.replicas.get(service_id, 0) + 1
            self.active += 1


def lasting_refusal(node: Node, wanted: Demand) -> Refusal | None:
    """By what placing tasks doesn't change."""
    if not takes_tasks(node):
        return Refusal.NOT_READY
    if wanted.constraints is None or not node_matches(wanted.constraints, node):
        return Refusal.CONSTRAINTS
    if not _platform_fits(node, wanted.platforms):
        return Refusal.PLATFORM
    if not _plugins_fit(node, wanted):
        return Refusal.PLUGIN
    return None


def passing_refusal(load: NodeLoad, service_id: str, wanted: Demand) -> Refusal | None:
    """By what is on the node now."""
    if wanted.host_ports and not wanted.host_ports.isdisjoint(load.ports):
        return Refusal.HOST_PORT
    if wanted.max_replicas and load.replicas.get(service_id, 0) >= wanted.max_replicas:
        return Refusal.MAX_REPLICAS
    if not load.available.fits(wanted.reserved):
        return Refusal.RESOURCES
    return None


@dataclass(slots=True)
class Explanation:
    """Refusals of one task, counted; the sentence that Docker's users know."""

    counts: Counter[Refusal] = field(default_factory=Counter)

    def add(self, refusal: Refusal) -> None:
        self.counts[refusal] += 1

    def sentence(self) -> str:
        """Most frequent reason first."""
        reasons = sorted(self.counts.items(), key=lambda item: (-item[1], _ORDER.index(item[0])))
        if not reasons:
            return "no suitable node"
        return f"no suitable node ({'; '.join(refusal.value.format(nodes=_nodes(count)) for refusal, count in reasons)})"


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _volume_drivers(spec: TaskSpec) -> frozenset[str]:
    drivers = set()
    for mount in (spec.container_spec.mounts if spec.container_spec else None) or ():
        if mount.type == "volume" and mount.volume_options and mount.volume_options.driver_config:
            drivers.add(mount.volume_options.driver_config.name)
    return frozenset(drivers) - _BUILT_IN_VOLUME_DRIVERS


def _platform_fits(node: Node, platforms: tuple[Platform, ...]) -> bool:
    """An empty field matches everything; without any platform given, every node will do."""
    own = node.description.platform
    return not platforms or any(
        (not wanted.os or wanted.os.lower() == own.os.lower())
        and (not wanted.architecture or canonical_architecture(wanted.architecture) == canonical_architecture(own.architecture))
        for wanted in platforms
    )


def _plugins_fit(node: Node, wanted: Demand) -> bool:
    """A node that lists no plugin of a type has not said which it has: it is not refused."""
    if not wanted.volume_drivers and not wanted.log_driver:
        return True
    has: dict[str, set[str]] = {}
    for plugin in node.description.engine.plugins or ():
        # "rexray:latest" is asked for as "rexray" too
        has.setdefault(plugin.type, set()).update((plugin.name, plugin.name.removesuffix(":latest")))
    volumes, logs = has.get("Volume"), has.get("Log")
    return (volumes is None or wanted.volume_drivers <= volumes) and (logs is None or not wanted.log_driver or wanted.log_driver in logs)
