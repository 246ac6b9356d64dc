"""Where a packet should go, said by the tables the nodes were given: the static half of a trace.

Pure. `expectation` walks a packet through the desired states of the nodes it may pass: the entry node's balancer, its tunnels, and
the node behind each. What contradicts itself on the way is a sentence in `problems`, whether or not a packet has met it yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mesh.model import Backend, Network, NodeState
from mesh.trace.model import Probe, Protocol


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the trace knows it: `addresses` are its own on the underlay, `state` what its data plane was told, None if it didn't
    say."""

    name: str
    vtep: str
    addresses: frozenset[str]
    state: NodeState | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One way a packet may take. node: id of the backend's node, "" unknown. endpoint: id of the backend there, "" unknown.
    vtep: the tunnel's other end, "" when the backend is on the entry node itself."""

    address: str
    port: int
    node: str
    endpoint: str
    vtep: str = ""
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Expectation:
    """`kind`: what the destination is to the entry node. No routes: the packet should be refused there, or has nowhere to go."""

    kind: str
    routes: tuple[Route, ...]
    problems: tuple[str, ...] = ()


def expectation(nodes: Mapping[str, Node], entry: str, network_id: str, probe: Probe) -> Expectation:
    """`entry`: id of the node whose tables see the packet first: the client's for a VIP, the one that was called for a published port."""
    node = nodes[entry]
    if node.state is None:
        return Expectation("unknown", (), (f"{node.name} didn't say what its data plane was told",))
    network = network_of(node.state, network_id)
    if probe.destination in node.addresses:
        return _to_port(nodes, entry, node, node.state, network, probe)
    if network is None:
        return Expectation("unknown", (), (f"{node.name} doesn't take part in the network {network_id}",))
    service = next((s for s in network.services if s.vip == probe.destination), None)
    if service is not None:
        return _balanced("VIP", nodes, entry, network, service.backends, probe.port, f"the VIP {service.vip}")
    known = {e.address for e in network.local} | {r.address for r in network.remote} | {network.lb_address}
    if probe.destination in known:
        return _balanced("address", nodes, entry, network, (Backend(probe.destination),), probe.port, probe.destination)
    return Expectation("unknown", (), (f"{node.name} knows no VIP and no endpoint {probe.destination} on this network",))


def network_of(state: NodeState, network_id: str) -> Network | None:
    return next((n for n in state.networks if n.id == network_id), None)


def _to_port(
    nodes: Mapping[str, Node], entry: str, node: Node, state: NodeState, ingress: Network | None, probe: Probe
) -> Expectation:  # fmt: skip
    host = next((h for h in state.host_ports if _is(h.protocol, h.published, probe)), None)
    if host is not None:
        return Expectation("host port", (Route("", host.target, entry, host.sandbox),))
    port = next((p for p in state.published if _is(p.protocol, p.published, probe)), None)
    if port is None or ingress is None:
        return Expectation("unknown", (), (f"{node.name} was not told of a published port {probe.port}/{probe.protocol}",))
    return _balanced("published port", nodes, entry, ingress, port.backends, port.target, f"port {port.published}/{port.protocol}")


def _is(protocol: str, published: int, probe: Probe) -> bool:
    wanted: Protocol = probe.protocol
    return protocol == wanted and published == probe.port


def _balanced(
    kind: str, nodes: Mapping[str, Node], entry: str, network: Network, backends: Iterable[Backend], port: int, what: str
) -> Expectation:
    routes: list[Route] = []
    problems: list[str] = []
    own = nodes[entry]
    for backend in backends:
        if backend.weight == 0:
            continue
        here = next((e for e in network.local if e.address == backend.address), None)
        if here is not None or backend.address == network.lb_address:
            routes.append(Route(backend.address, port, entry, here.id if here else "", "", backend.weight))
            continue
        behind = next((r for r in network.remote if r.address == backend.address), None)
        if behind is None:
            problems.append(f"{own.name} sends to {backend.address} but has no tunnel to it: packets to it are lost")
            continue
        there = next((id for id, node in nodes.items() if node.vtep == behind.vtep), "")
        endpoint, found = _at_the_other_end(nodes, entry, there, network, backend.address, behind.vtep)
        problems += found
        routes.append(Route(backend.address, port, there, endpoint, behind.vtep, backend.weight))
    if not routes and not problems:
        problems.append(f"{own.name} has no backend that takes new connections for {what}: it refuses them")
    return Expectation(kind, tuple(routes), tuple(problems))


def _at_the_other_end(
    nodes: Mapping[str, Node], entry: str, there: str, network: Network, address: str, vtep: str
) -> tuple[str, list[str]]:  # fmt: skip
    """(id of the endpoint with that address on the node behind the tunnel, what doesn't fit)."""
    own = nodes[entry]
    if not there:
        return "", [f"{own.name} tunnels to {address} through {vtep}, which is no node that was asked"]
    node = nodes[there]
    if node.state is None:
        return "", []
    other = network_of(node.state, network.id)
    if other is None:
        return "", [f"{own.name} tunnels to {address} on {node.name}, which doesn't take part in the network"]
    problems = []
    if other.vni != network.vni:
        problems.append(f"the network has VNI {network.vni} on {own.name} and {other.vni} on {node.name}")
    if own.state is not None and own.state.vxlan_port != node.state.vxlan_port:
        problems.append(f"{own.name} sends VXLAN to UDP port {own.state.vxlan_port}, {node.name} listens on {node.state.vxlan_port}")
    endpoint = next((e for e in other.local if e.address == address), None)
    if endpoint is None and address != other.lb_address:
        problems.append(f"{own.name} tunnels to {address} on {node.name}, which has no such endpoint (any more)")
    back = {r.address: r.vtep for r in other.remote}
    if back.get(network.lb_address, own.vtep) != own.vtep or network.lb_address not in back:
        problems.append(f"{node.name} has no tunnel back to {own.name} ({network.lb_address} at {own.vtep})")
    return endpoint.id if endpoint else "", problems
