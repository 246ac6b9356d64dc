"""Which node a container goes to that a user makes by hand.

Pure: no I/O. Source: classicswarm scheduler/filter (constraint, affinity, dependency, port) for what is demanded and how it is written.
Nodes that do not pass are told apart by reason. Among those that pass, in this order: most soft expressions; this node if a directory of
"the" machine is mounted, or a port published on its loopback; the node that already holds the container's named volumes; then spread:
fewest containers that have not ended, this node, name. Nodes that have the image are the only ones, as long as there are any: it starts
at once, and everywhere as the same image.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orchestrator import permissions
from orchestrator.api.validate import PREDEFINED_NETWORKS
from orchestrator.control import constraints
from orchestrator.control.affinities import image_names
from orchestrator.control.expressions import Expression, expressions_of, node_values, without_expressions
from orchestrator.control.resources import memory_words
from orchestrator.errors import ApiError, ConfigError
from orchestrator.model import ContainerSpec, Node

# What we write on a container, so that its reservation is seen in lists of containers.
RESERVED_MEMORY = "com.meshd.reserved.memory"
_CONSTRAINTS = "com.docker.swarm.constraints"
_AFFINITIES = "com.docker.swarm.affinities"
_ENDED = frozenset({"exited", "dead", "removing"})
_WILDCARDS = frozenset({"", "0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class Present:
    """A container that is on a node, as its Engine lists it."""

    id: str
    names: tuple[str, ...]
    image: str
    image_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    state: str = "running"
    ports: frozenset[tuple[str, str, int]] = frozenset()
    volumes: frozenset[str] = frozenset()

    @classmethod
    def listed(cls, entry: Mapping[str, Any]) -> Present:
        return cls(
            id=entry["Id"],
            names=tuple(name.lstrip("/") for name in entry.get("Names") or () if name.count("/") == 1),
            image=entry.get("Image") or "",
            image_id=entry.get("ImageID") or "",
            labels=entry.get("Labels") or {},
            state=entry.get("State") or "",
            ports=frozenset(
                (port.get("Type") or "tcp", port.get("IP") or "", port["PublicPort"])
                for port in entry.get("Ports") or ()
                if port.get("PublicPort")
            ),
            volumes=frozenset(mount["Name"] for mount in entry.get("Mounts") or () if mount.get("Name")),
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node whose Engine answered. volumes, networks: those of the wanted ones that it has. pending: containers that are on their way;
    task_memory_bytes: what the tasks on the node have reserved; task_ports: what services publish there, (protocol, port): its Engine knows
    nothing of them."""

    node: Node
    name: str
    local: bool
    containers: Sequence[Present] = ()
    has_image: bool = False
    volumes: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    pending: int = 0
    task_memory_bytes: int = 0
    task_ports: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `docker create` asks of a node. depends_on: containers that must be on it. volumes: named ones. networks: of an Engine.
    addresses: where its ports are published, if not everywhere. means_this_machine: it mounts directories, or publishes on loopback.
    on_overlay: the mesh brings it its ports, no Engine."""

    image: str = ""
    os: str = ""
    architecture: str = ""
    expressions: tuple[Expression, ...] = ()
    ports: frozenset[tuple[str, str, int]] = frozenset()
    memory_bytes: int = 0
    depends_on: tuple[str, ...] = ()
    volumes: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()
    means_this_machine: bool = False
    on_overlay: bool = False
    permissions: frozenset[str] = frozenset()


class _Option(msgspec.Struct, rename="pascal", frozen=True):
    type: str = "volume"
    source: str = ""


class _Binding(msgspec.Struct, rename="pascal", frozen=True):
    host_ip: str = msgspec.field(default="", name="HostIp")
    host_port: str = ""


class _HostConfig(msgspec.Struct, rename="pascal", frozen=True):
    binds: list[str] = []
    mounts: list[_Option] = []
    port_bindings: dict[str, list[_Binding]] = {}
    network_mode: str = ""
    pid_mode: str = ""
    ipc_mode: str = ""
    links: list[str] = []
    volumes_from: list[str] = []
    memory_reservation: int = 0


class _Networking(msgspec.Struct, rename="pascal", frozen=True):
    endpoints_config: dict[str, Any] = {}


class Creation(msgspec.Struct, rename="pascal", frozen=True):
    """The part of the request's body that placement reads."""

    image: str = ""
    env: list[str] = []
    labels: dict[str, str] = {}
    host_config: _HostConfig = _HostConfig()
    networking_config: _Networking = _Networking()


def wanted_of(creation: Creation, platform: str, options: Mapping[str, Any], cluster_networks: Callable[[str], bool]) -> Wanted:
    """options: the whole HostConfig, for permissions. cluster_networks: is this name a network of the cluster, which is everywhere?
    ApiError(400): an expression that can't be read."""
    host = creation.host_config
    try:
        expressions = expressions_of(ContainerSpec(env=creation.env, labels=creation.labels))
    except ConfigError as error:
        raise ApiError(400, str(error)) from None
    os, _, architecture = platform.partition("/")
    modes = (host.network_mode, host.pid_mode, host.ipc_mode)
    depends_on = [mode.partition(":")[2] for mode in modes if mode.startswith("container:")]
    depends_on += [reference.partition(":")[0] for reference in (*host.links, *host.volumes_from)]
    sources = [bind.partition(":")[0] for bind in host.binds if ":" in bind]
    sources += [mount.source for mount in host.mounts if mount.type in ("bind", "volume")]
    networks = {host.network_mode, *creation.networking_config.endpoints_config} - {"", *PREDEFINED_NETWORKS}
    addresses = {binding.host_ip for choices in host.port_bindings.values() for binding in choices} - _WILDCARDS
    return Wanted(
        image=creation.image,
        os=os,
        architecture=architecture.partition("/")[0],
        expressions=expressions,
        ports=frozenset(_host_ports(host.port_bindings)),
        memory_bytes=host.memory_reservation,
        depends_on=tuple(depends_on),
        volumes=frozenset(source for source in sources if source and not source.startswith(("/", "."))),
        networks=frozenset(name for name in networks if not name.startswith("container:") and not cluster_networks(name)),
        addresses=frozenset(addresses),
        on_overlay=any(cluster_networks(name) for name in networks),
        means_this_machine=any(source.startswith("/") for source in sources) or any(map(_is_loopback, addresses)),
        permissions=permissions.needed_by_options(options),
    )


def rewritten(body: Mapping[str, Any], creation: Creation) -> dict[str, Any] | None:
    """The body for the Engine: expressions move from the environment, which the container sees, to labels, which say why it is where
    it is. None: nothing is to be changed."""
    labels = dict(creation.labels)
    for prefix, label in (("constraint:", _CONSTRAINTS), ("affinity:", _AFFINITIES)):
        if texts := [entry.removeprefix(prefix) for entry in creation.env if entry.startswith(prefix)]:
            listed = msgspec.json.decode(labels.get(label, "[]"), type=list[str])
            labels[label] = msgspec.json.encode([*listed, *texts]).decode()
    if creation.host_config.memory_reservation:
        labels[RESERVED_MEMORY] = str(creation.host_config.memory_reservation)
    environment = without_expressions(creation.env)
    if labels == creation.labels and environment == creation.env:
        return None
    kept = {key: value for key, value in body.items() if key.lower() not in ("env", "labels")}
    return {**kept, "Env": environment, "Labels": labels}


def choose(wanted: Wanted, candidates: Sequence[Candidate]) -> Candidate:
    """ApiError(409): no node does; ApiError(400): it depends on a container that is nowhere. Where no node that does has the image, the
    Engine that is chosen will say so, and the client pull it."""
    for reference in wanted.depends_on:
        if candidates and not any(_has(candidate, reference) for candidate in candidates):
            # 400 as an Engine has it: of a 404 the CLI thinks that the image is missing
            raise ApiError(400, f"No such container: {reference}")
    fitting, reasons = list(candidates), []
    for passes, reason in _filters(wanted, candidates):
        refused = [candidate for candidate in fitting if not passes(candidate)]
        if refused:
            fitting = [candidate for candidate in fitting if passes(candidate)]
            reasons.append(f"{reason} on {len(refused)} node{'' if len(refused) == 1 else 's'}")
    if not fitting:
        raise ApiError(409, f"no suitable node ({'; '.join(reasons) or 'the cluster has none that answers'})")
    # Where none is free it is made all the same, as Docker does, and can be started once the port is: so containers are replaced
    fitting = [candidate for candidate in fitting if not _collides(wanted, candidate)] or fitting
    with_image = [candidate for candidate in fitting if candidate.has_image]
    return min(with_image or fitting, key=lambda candidate: _rank(wanted, candidate))


def name_holder(candidates: Iterable[Candidate], name: str) -> Present | None:
    """The container that has the name, on whichever node."""
    return next((present for candidate in candidates for present in candidate.containers if name in present.names), None)


def _filters(wanted: Wanted, candidates: Sequence[Candidate]) -> Iterator[tuple[Callable[[Candidate], bool], str]]:
    """Each with the words for those that do not pass it."""
    yield lambda candidate: candidate.node.spec.availability == "active", "not available for new containers"
    if wanted.os:
        yield lambda candidate: _platform_fits(wanted, candidate.node), "unsupported platform"
    if wanted.permissions:
        # who asks at this node's own socket is its root already
        yield (
            lambda candidate: candidate.local or _permitted(wanted, candidate.node),
            "the node's owner does not permit " + ", ".join(sorted(wanted.permissions)),
        )
    for one in wanted.expressions:
        if not one.soft:
            yield lambda candidate, one=one: _holds(one, candidate), f"{one} not satisfied"  # type: ignore[misc]
    for reference in wanted.depends_on:
        yield lambda candidate, reference=reference: _has(candidate, reference), f"container {reference} not there"  # type: ignore[misc]
    # the Engine's own words for a network that is nowhere
    if networks := frozenset(name for candidate in candidates for name in candidate.networks):
        yield lambda candidate: wanted.networks & networks <= candidate.networks, "network not there"
    # one that is no node's for all we know may be a second one of its machine
    if addresses := frozenset(candidate.node.status.addr for candidate in candidates) & wanted.addresses:
        yield lambda candidate: addresses == {candidate.node.status.addr}, "address not there"
    if wanted.ports:
        # an Engine would not notice
        yield lambda candidate: not _held_by_tasks(wanted, candidate), "port already in use"
    if wanted.ports and wanted.on_overlay:
        yield lambda candidate: not _collides(wanted, candidate), "port already in use"
    if wanted.memory_bytes:
        yield lambda candidate: wanted.memory_bytes <= _free_memory_bytes(candidate), f"less than {memory_words(wanted.memory_bytes)} free"


def _rank(wanted: Wanted, candidate: Candidate) -> tuple[Any, ...]:
    """Lower is better."""
    soft = sum(one.soft and _holds(one, candidate) for one in wanted.expressions)
    remote = not candidate.local
    running = candidate.pending + sum(present.state not in _ENDED for present in candidate.containers)
    if not wanted.volumes:
        return -soft, wanted.means_this_machine and remote, running, remote, candidate.name
    # A container that comes back must find its data: where a volume is in use, else where it exists, else always the same node.
    used = sum(any(volume in present.volumes for present in candidate.containers) for volume in wanted.volumes)
    order = hashlib.sha256("\0".join((*sorted(wanted.volumes), candidate.node.id)).encode()).digest()
    return -soft, wanted.means_this_machine and remote, -used, -len(candidate.volumes), order


def _holds(one: Expression, candidate: Candidate) -> bool:
    if one.kind == "constraint":
        return one.holds(_node_values(candidate, one.key))
    matched = any(one.accepts(value) for present in candidate.containers for value in _values(present, one.key))
    return matched is one.equal


def _node_values(candidate: Candidate, key: str) -> tuple[str, ...]:
    """Classic Swarm's keys, and those of services' constraints."""
    if key == "node":
        return (*node_values(candidate.node, key), candidate.name)
    if key.startswith(("node.", "engine.labels.")):
        try:
            [constraint] = constraints.parse([f"{key}==x"])
        except ConfigError:
            return ("",)
        return (constraints.actual(constraint.key, candidate.node),)
    return node_values(candidate.node, key)


def _values(present: Present, key: str) -> Iterator[str]:
    match key:
        case "container":
            yield present.id
            yield from present.names
        case "image":
            yield present.image_id
            yield from image_names(present.image)
        case _:
            if key in present.labels:
                yield present.labels[key]


def _has(candidate: Candidate, reference: str) -> bool:
    name = reference.lstrip("/")
    return any(name in present.names or (name and present.id.startswith(name)) for present in candidate.containers)


def _permitted(wanted: Wanted, node: Node) -> bool:
    """A node that has not said what it permits permits everything."""
    permits = node.description.mesh_permits
    return permits is None or wanted.permissions <= set(permits)


def _platform_fits(wanted: Wanted, node: Node) -> bool:
    own = node.description.platform
    canonical = constraints.canonical_architecture
    # `--platform arm64` names no system, `--platform linux` no architecture
    if wanted.os != own.os and not wanted.architecture:
        return canonical(wanted.os) == canonical(own.architecture)
    return wanted.os == own.os and (not wanted.architecture or canonical(wanted.architecture) == canonical(own.architecture))


def _host_ports(bindings: Mapping[str, Sequence[_Binding]]) -> Iterator[tuple[str, str, int]]:
    """A range, or none, leaves the choice to the Engine."""
    for exposed, choices in bindings.items():
        for binding in choices:
            if binding.host_port.isdigit() and int(binding.host_port):
                yield exposed.partition("/")[2] or "tcp", binding.host_ip, int(binding.host_port)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _held_by_tasks(wanted: Wanted, candidate: Candidate) -> bool:
    return any((protocol, port) in candidate.task_ports for protocol, _, port in wanted.ports)


def _collides(wanted: Wanted, candidate: Candidate) -> bool:
    """With a container that runs."""
    return any(
        protocol == other_protocol and port == other_port and (ip == other_ip or bool({ip, other_ip} & _WILDCARDS))
        for protocol, ip, port in wanted.ports
        for present in candidate.containers
        for other_protocol, other_ip, other_port in present.ports
    )


def _free_memory_bytes(candidate: Candidate) -> int:
    reserved = sum(
        int(present.labels[RESERVED_MEMORY])
        for present in candidate.containers
        if present.state not in _ENDED and present.labels.get(RESERVED_MEMORY, "").isdigit()
    )
    return candidate.node.description.resources.memory_bytes - candidate.task_memory_bytes - reserved
