"""What a trace of SERVICE, VIP or :PORT is in this cluster: from where, to where, and which nodes have to watch.

Pure: snapshot in, `Itinerary` out. ApiError names what can't be traced, and what can.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Annotated

import msgspec

from mesh.trace.model import HOST, MAX_PROBES, Protocol, task_place
from orchestrator.api.references import find, name_of
from orchestrator.errors import ApiError
from orchestrator.model import Network, Node, PortConfig, Service, Task, TaskState
from orchestrator.store.snapshot import Snapshot

_PORT = re.compile(r"(?P<node>[^:/]*):(?P<port>[0-9]+)(?:/(?P<protocol>tcp|udp))?")
_DEFAULT_PORT = 80


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """target: a service, an address of a network, or [NODE]:PORT[/PROTOCOL]. start, start_task, entry, network: names or ids, "" = chosen.
    port 0 and protocol "": what the target suggests."""

    target: str
    start: str = ""
    start_task: str = ""
    entry: str = ""
    network: str = ""
    port: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 0, "maximum": 65535})] = 0
    protocol: str = ""
    count: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MAX_PROBES})] = 3


@dataclass(frozen=True, slots=True)
class Itinerary:
    """client_place: "host" or "task:<id>". entry: id of the node whose tables see the packet first. watch: node id -> ids of its tasks
    to look into. names: task id -> "web.1". service: its name, "" for a bare address."""

    service: str
    network_id: str
    network_name: str
    destination: str
    port: int
    protocol: Protocol
    client_node: str
    client_place: str
    entry: str
    watch: dict[str, tuple[str, ...]]
    names: dict[str, str] = field(default_factory=dict)


def itinerary(snapshot: Snapshot, request: TraceRequest, here: str) -> Itinerary:
    """here: id of the node that was asked, where a trace starts if nothing else is said. ApiError(404 or 400)."""
    if not 1 <= request.count <= MAX_PROBES:
        raise ApiError(400, f"between 1 and {MAX_PROBES} probes, not {request.count}")
    if request.protocol not in ("", "tcp", "udp", "icmp"):
        raise ApiError(400, f"unknown protocol {request.protocol!r}: tcp, udp or icmp")
    if request.start and request.start_task:
        raise ApiError(400, "start either on a node or in a task, not both")
    if match := _PORT.fullmatch(request.target):
        return _to_port(snapshot, request, here, match["node"], int(match["port"]), match["protocol"] or request.protocol or "tcp")
    try:
        address = str(ip_address(request.target))
    except ValueError:
        service = find(snapshot, Service, request.target)
    else:
        return _to_address(snapshot, request, here, address)
    return _to_service(snapshot, request, here, service)


# ---- targets -------------------------------------------------------------------------------------------------------------------


def _to_service(snapshot: Snapshot, request: TraceRequest, here: str, service: Service) -> Itinerary:
    """Its VIP on a network of its own; without one its published port; without either (dnsrr) its first task."""
    ports = service.endpoint.ports or []
    joined = _networks(snapshot, service)
    if request.network:
        wanted = find(snapshot, Network, request.network)
        joined = [network for network in joined if network.id == wanted.id]
        if not joined:
            raise ApiError(400, f"service {service.spec.name} is not on the network {wanted.name}")
    if not joined:
        published = next((p for p in ports if p.published_port and request.protocol in ("", p.protocol)), None)
        if published is None:
            raise ApiError(400, f"service {service.spec.name} is on no network and publishes no port: there is no way to it to trace")
        return _to_port(snapshot, request, here, "", published.published_port, published.protocol)
    network = joined[0]
    vip = next((bare(v.addr) for v in service.endpoint.virtual_ips or () if v.network_id == network.id and v.addr), "")
    if not vip:
        vip = next((a for task in _running(snapshot.tasks_of_service(service.id)) for a in _addresses(task, network.id)), "")
    if not vip:
        raise ApiError(400, f"service {service.spec.name} has no VIP and no running task on {network.name}: there is nothing to trace to")
    protocol, port = _target_port(ports, request)
    return _within(snapshot, request, here, network, vip, port, protocol, service)


def _to_address(snapshot: Snapshot, request: TraceRequest, here: str, address: str) -> Itinerary:
    """A VIP, or the address of a task."""
    only = find(snapshot, Network, request.network).id if request.network else ""
    for service in _sorted(snapshot.all(Service)):
        for vip in service.endpoint.virtual_ips or ():
            if bare(vip.addr) == address and (network := snapshot.network(vip.network_id)) and only in ("", network.id):
                protocol, port = _target_port(service.endpoint.ports or [], request)
                return _within(snapshot, request, here, network, address, port, protocol, service)
    for task in sorted(_running(snapshot.all(Task)), key=lambda task: task.id):
        for attachment in task.networks_attachments or ():
            network = snapshot.network(attachment.network.id)
            if network and only in ("", network.id) and address in _addresses(task, network.id):
                owner = snapshot.service(task.service_id)
                protocol, port = _target_port(owner.endpoint.ports or [] if owner else [], request)
                return _within(snapshot, request, here, network, address, port, protocol, owner)
    raise ApiError(404, f"{address} is neither a VIP nor the address of a running task" + (" on that network" if only else ""))


def _to_port(snapshot: Snapshot, request: TraceRequest, here: str, at: str, port: int, protocol: str) -> Itinerary:
    """A published port, as a client outside the cluster would call it: from a node's own namespace (or a task) to a node's address."""
    found = [
        (service, config)
        for service in _sorted(snapshot.all(Service))
        for config in service.endpoint.ports or ()
        if config.published_port == port and config.protocol == protocol
    ]
    if not found:
        known = sorted(
            {f":{p.published_port}/{p.protocol}" for s in snapshot.all(Service) for p in s.endpoint.ports or () if p.published_port}
        )
        raise ApiError(404, f"no service publishes port {port}/{protocol}; published: {', '.join(known) or 'none'}")
    service, config = found[0]
    ingress = next((network for network in snapshot.all(Network) if network.ingress), None)
    if ingress is None:
        raise ApiError(400, "this cluster has no ingress network")
    client_node, client_place = _client_of_port(snapshot, request, here)
    entry = _node(snapshot, request.entry or at) if request.entry or at else snapshot.node(client_node)
    if config.publish_mode == "host" and not (request.entry or at):
        # only the nodes that run a task of it have the port
        task = next(iter(_running(snapshot.tasks_of_service(service.id))), None)
        entry = snapshot.node(task.node_id) if task else entry
    if entry is None or not entry.status.addr:
        raise ApiError(400, "the node to call has no address")
    watch = _watch(snapshot, ingress.id, service, client_node, client_place, entry.id)
    return Itinerary(
        service=service.spec.name,
        network_id=ingress.id,
        network_name=ingress.name,
        destination=entry.status.addr,
        port=port,
        protocol="udp" if protocol == "udp" else "tcp",
        client_node=client_node,
        client_place=client_place,
        entry=entry.id,
        watch=watch,
        names=_names(snapshot, watch),
    )


def _within(
    snapshot: Snapshot,
    request: TraceRequest,
    here: str,
    network: Network,
    destination: str,
    port: int,
    protocol: Protocol,
    service: Service | None,
) -> Itinerary:
    """From a task of the network: nobody else reaches its addresses."""
    if network.mesh_encrypted:
        raise ApiError(400, f"the network {network.name} is encrypted: what a trace looks for can't be seen between its nodes")
    client = _client_task(snapshot, request, here, network, service)
    place = task_place(client.id)
    watch = _watch(snapshot, network.id, service, client.node_id, place, client.node_id)
    return Itinerary(
        service=service.spec.name if service else "",
        network_id=network.id,
        network_name=network.name,
        destination=destination,
        port=port,
        protocol=protocol,
        client_node=client.node_id,
        client_place=place,
        entry=client.node_id,
        watch=watch,
        names=_names(snapshot, watch),
    )


def _target_port(ports: Sequence[PortConfig], request: TraceRequest) -> tuple[Protocol, int]:
    if request.protocol == "icmp":
        return "icmp", 0
    fitting = [p for p in ports if request.protocol in ("", p.protocol) and p.protocol in ("tcp", "udp")]
    protocol: Protocol = "udp" if (request.protocol or (fitting[0].protocol if fitting else "tcp")) == "udp" else "tcp"
    return protocol, request.port or (fitting[0].target_port if fitting else _DEFAULT_PORT)


# ---- clients -------------------------------------------------------------------------------------------------------------------


def _client_task(snapshot: Snapshot, request: TraceRequest, here: str, network: Network, service: Service | None) -> Task:
    running = [t for t in _running(snapshot.tasks_of_network(network.id)) if _addresses(t, network.id)]
    if request.start_task:
        found = [t for t in running if _is_called(snapshot, t, request.start_task)]
        if not found:
            names = sorted({_short_name(snapshot, t) for t in running})
            raise ApiError(404, f"no running task {request.start_task} on the network {network.name}; there: {', '.join(names) or 'none'}")
        return min(found, key=lambda t: t.id)
    if request.start:
        node = _node(snapshot, request.start)
        running = [t for t in running if t.node_id == node.id]
        if not running:
            raise ApiError(
                400,
                f"no task on {name_of(node)} is on the network {network.name}: only its tasks reach it; choose another node or --from-task",
            )
    if not running:
        raise ApiError(400, f"no running task is on the network {network.name}: only its tasks reach its addresses")
    target = service.id if service else ""
    return min(running, key=lambda t: (t.service_id == target, t.node_id != here, name_of(t), t.id))


def _client_of_port(snapshot: Snapshot, request: TraceRequest, here: str) -> tuple[str, str]:
    if not request.start_task:
        return (_node(snapshot, request.start).id if request.start else here), HOST
    running = sorted(_running(snapshot.all(Task)), key=lambda t: t.id)
    found = next((t for t in running if _is_called(snapshot, t, request.start_task)), None)
    if found is None:
        raise ApiError(404, f"no running task {request.start_task}")
    return found.node_id, task_place(found.id)


# ---- who watches ---------------------------------------------------------------------------------------------------------------


def _watch(
    snapshot: Snapshot, network_id: str, service: Service | None, client_node: str, client_place: str, entry: str
) -> dict[str, tuple[str, ...]]:
    watched: dict[str, set[str]] = {client_node: set(), entry: set()}
    if client_place != HOST:
        watched[client_node].add(client_place.removeprefix("task:"))
    tasks = snapshot.tasks_of_service(service.id) if service else snapshot.tasks_of_network(network_id)
    for task in _running(tasks):
        watched.setdefault(task.node_id, set()).add(task.id)
    return {node: tuple(sorted(ids)) for node, ids in sorted(watched.items())}


def _names(snapshot: Snapshot, watch: dict[str, tuple[str, ...]]) -> dict[str, str]:
    tasks = [task for ids in watch.values() for id in ids if (task := snapshot.task(id)) is not None]
    return {task.id: _short_name(snapshot, task) for task in tasks}


def _is_called(snapshot: Snapshot, task: Task, reference: str) -> bool:
    return reference in (name_of(task), _short_name(snapshot, task)) or task.id.startswith(reference)


def _short_name(snapshot: Snapshot, task: Task) -> str:
    """Tasks of a global service are told apart by their node."""
    node = snapshot.node(task.node_id)
    return f"{task.mesh_service_name}.{task.slot or (name_of(node) if node else task.node_id)}"


def _running(tasks: Iterable[Task]) -> list[Task]:
    return [t for t in tasks if t.status.state is TaskState.RUNNING and t.desired_state is TaskState.RUNNING and t.node_id]


def _networks(snapshot: Snapshot, service: Service) -> list[Network]:
    """Those of its own, not the ingress network, in the order of its spec where there are tasks, else of its VIPs."""
    ids = [v.network_id for v in service.endpoint.virtual_ips or ()]
    ids += [a.network.id for task in snapshot.tasks_of_service(service.id) for a in task.networks_attachments or ()]
    found = {id: network for id in ids if (network := snapshot.network(id)) is not None and not network.ingress and network.mesh_vni}
    return list(found.values())


def _addresses(task: Task, network_id: str) -> list[str]:
    return [
        bare(a) for attachment in task.networks_attachments or () if attachment.network.id == network_id for a in attachment.addresses or ()
    ]


def _node(snapshot: Snapshot, reference: str) -> Node:
    return find(snapshot, Node, reference)


def _sorted(services: Iterable[Service]) -> list[Service]:
    return sorted(services, key=lambda service: (service.spec.name, service.id))


def bare(address: str) -> str:
    """Without prefix length."""
    return address.partition("/")[0]
