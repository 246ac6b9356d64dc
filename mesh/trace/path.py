"""The path of each probe, put together from what was sighted on every node, and why it came no further.

Pure. Clocks of different nodes are never compared: within a node sightings are in the order of its own clock, and from node to node the
packet itself leads: what leaves a node's underlay for an address goes on where that address is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mesh.trace.expect import Expectation, Node
from mesh.trace.model import HOST, NETWORK, Sighting, Way, task_place

Outcome = Literal["answered", "refused", "delivered", "lost"]


@dataclass(frozen=True, slots=True)
class Hop:
    node: str
    sighting: Sighting


@dataclass(frozen=True, slots=True)
class Path:
    """outcome: answered | refused (by whom is in `verdict`) | delivered (a datagram that nobody answered) | lost. backend: the place
    ("task:<id>") the probe reached on `backend_node`, "" if none. verdict: a sentence; advice: what to do about it, "" if nothing."""

    number: int
    there: tuple[Hop, ...]
    back: tuple[Hop, ...]
    outcome: Outcome
    backend: str
    backend_node: str
    verdict: str
    advice: str = ""
    surprises: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return self.outcome in ("answered", "delivered") and not self.surprises


@dataclass(frozen=True, slots=True)
class Trip:
    """What is traced: from a place on a node, entering the data plane at `entry`. `datagrams`: no answer is no fault.
    names: of tasks by id, for sentences. vxlan_port: for the advice. unwatched: nodes that nothing is known of."""

    client_node: str
    client_place: str
    entry: str
    datagrams: bool
    vxlan_port: int
    names: Mapping[str, str]
    unwatched: frozenset[str] = frozenset()


def paths(
    nodes: Mapping[str, Node], sightings: Mapping[str, Sequence[Sighting]], trip: Trip, expected: Expectation, count: int
) -> list[Path]:
    """One for each probe, by number."""
    return [_path(number, nodes, sightings, trip, expected) for number in range(count)]


def _path(
    number: int, nodes: Mapping[str, Node], sightings: Mapping[str, Sequence[Sighting]], trip: Trip, expected: Expectation
) -> Path:  # fmt: skip
    there = _ordered(_of(sightings, number, "there"), trip.client_node, lambda hop: _goes_to(hop, nodes))
    back_by_node = _of(sightings, number, "back")
    start = there[-1].node if there and back_by_node.get(there[-1].node) else _earliest(back_by_node)
    back = _ordered(back_by_node, start, lambda hop: _goes_to(hop, nodes)) if start else ()
    reached = there[-1] if there and _is_backend(there[-1], trip) else None
    outcome, verdict, advice = _judged(there, back, reached, nodes, trip)
    surprises = _surprises(there, reached, nodes, trip, expected)
    backend = reached.sighting.place if reached else ""
    return Path(number, there, back, outcome, backend, reached.node if reached else "", verdict, advice, surprises)


def _of(sightings: Mapping[str, Sequence[Sighting]], number: int, way: Way) -> dict[str, list[Sighting]]:
    chosen = {node: [s for s in seen if s.packet.number == number and s.packet.way == way] for node, seen in sightings.items()}
    return {node: sorted(seen, key=_in_order) for node, seen in chosen.items() if seen}


_INWARD = {HOST: 0, NETWORK: 1}


def _in_order(sighting: Sighting) -> tuple[int, int]:
    """A frame keeps the time of its arrival while the kernel hands it inwards, from the underlay to the network's bridge."""
    return sighting.time_ns, _INWARD.get(sighting.place, 2) if not sighting.outgoing else 0


def _earliest(seen: Mapping[str, Sequence[Sighting]]) -> str:
    return min(seen, key=lambda node: seen[node][0].time_ns, default="")


def _ordered(seen: Mapping[str, Sequence[Sighting]], start: str, goes_to: Callable[[Hop], str]) -> tuple[Hop, ...]:
    """Follow it: all that happened on a node until it left for another, and so on. What doesn't fit anywhere comes last."""
    queues = {node: deque(sightings) for node, sightings in seen.items()}
    hops: list[Hop] = []
    here = start
    while queues.get(here):
        hop = Hop(here, queues[here].popleft())
        hops.append(hop)
        there = goes_to(hop)
        if there and there != here:
            here = there
    if hops and goes_to(hops[-1]) not in ("", hops[-1].node):
        # it left for a node that never saw it: whatever else was sighted is not its continuation
        return tuple(hops)
    for node in sorted(queues):
        hops += [Hop(node, sighting) for sighting in queues[node]]
    return tuple(hops)


def _goes_to(hop: Hop, nodes: Mapping[str, Node]) -> str:
    """Id of the node that a frame leaving by the underlay is meant for; "" when it doesn't leave, or for somewhere else."""
    sighting = hop.sighting
    if sighting.place != HOST or not sighting.outgoing:
        return ""
    if sighting.packet.capsule is not None:
        return next((id for id, node in nodes.items() if node.vtep == sighting.packet.capsule.destination), "")
    return next((id for id, node in nodes.items() if sighting.packet.destination in node.addresses), "")


def _is_backend(hop: Hop, trip: Trip) -> bool:
    """It came in to a task. (The client's own task too, if that is who was chosen.)"""
    return hop.sighting.place.startswith("task:") and not hop.sighting.outgoing


def _came_home(hop: Hop, trip: Trip) -> bool:
    sighting = hop.sighting
    home = hop.node == trip.client_node and sighting.place == trip.client_place
    return home and not sighting.outgoing and sighting.packet.capsule is None


# ---- verdicts ------------------------------------------------------------------------------------------------------------------


def _judged(
    there: Sequence[Hop], back: Sequence[Hop], reached: Hop | None, nodes: Mapping[str, Node], trip: Trip
) -> tuple[Outcome, str, str]:
    client = describe(trip.client_node, trip.client_place, nodes, trip.names)
    if not there:
        return (
            "lost",
            f"the probe never left {client}",
            "look at its routes, and whether its network namespace answers ARP for the destination",
        )
    if back and _came_home(back[-1], trip):
        return _answered(back, reached, nodes, trip)
    if back:
        sentence, advice = _stopped(back, nodes, trip)
        return "lost", f"the answer {sentence}", advice
    if reached is not None:
        name = describe(reached.node, reached.sighting.place, nodes, trip.names)
        if trip.datagrams:
            return "delivered", f"{name} got it and sent no answer, as a UDP server may", ""
        return "lost", f"{name} got it and answered nothing", "its application is stuck, or a firewall inside the container drops it"
    sentence, advice = _stopped(there, nodes, trip)
    return "lost", f"it {sentence}", advice


def _answered(back: Sequence[Hop], reached: Hop | None, nodes: Mapping[str, Node], trip: Trip) -> tuple[Outcome, str, str]:
    kind = back[-1].sighting.packet.kind
    first = back[0]
    who = describe(first.node, first.sighting.place, nodes, trip.names)
    if kind in ("rst", "unreachable"):
        if reached is not None:
            name = describe(reached.node, reached.sighting.place, nodes, trip.names)
            return "refused", f"{name} refused it: nothing listens on that port there", "check the port (--port), or the application"
        return "refused", f"{who} refused it: it has no backend for it", "has the service a running, ready task? (docker service ps)"
    if reached is not None:
        name = describe(reached.node, reached.sighting.place, nodes, trip.names)
        return "answered", f"answered by {name}", ""
    return "answered", f"answered by {who} itself", ""


def _stopped(hops: Sequence[Hop], nodes: Mapping[str, Node], trip: Trip) -> tuple[str, str]:
    """Where it was seen last, and what the next link would have been."""
    last = hops[-1]
    sighting = last.sighting
    node = nodes[last.node].name
    capsule = sighting.packet.capsule
    if sighting.place == HOST and sighting.outgoing:
        to = _goes_to(last, nodes)
        if to in trip.unwatched:
            return f"left {node}'s {sighting.link} for {nodes[to].name}, which couldn't be watched", f"look into {nodes[to].name} first"
        if capsule is not None:
            other = nodes[to].name if to else capsule.destination
            return (
                f"left {node}'s {sighting.link} in a VXLAN capsule (VNI {capsule.vni}) for {other} ({capsule.destination}) and never "
                f"arrived on {other}'s underlay",
                f"is UDP {trip.vxlan_port} open between {node} and {other}, and does the underlay carry frames of that size?",
            )
        other = nodes[to].name if to else sighting.packet.destination
        return (
            f"left {node}'s {sighting.link} for {other} and never arrived there",
            f"is there a route from {node} to {sighting.packet.destination}, and no firewall between?",
        )
    if sighting.place == HOST and capsule is not None:
        return (
            f"arrived on {node}'s {sighting.link} in its VXLAN capsule and never came out of the tunnel",
            f"does a firewall of {node} drop incoming UDP {trip.vxlan_port}, and has {node} a tunnel with VNI {capsule.vni}?",
        )
    if sighting.place == HOST:
        return (
            f"arrived on {node}'s {sighting.link} and was not handed on",
            f"does {node} publish the port, and does its FORWARD policy let it through? (meshd doctor)",
        )
    if sighting.place == NETWORK and sighting.outgoing and sighting.link == "vx0":
        return (
            f"went into {node}'s tunnel (vx0) and never came to {node}'s underlay",
            f"has {node} a route to the other node, and a firewall that drops outgoing UDP {trip.vxlan_port}?",
        )
    if sighting.place == NETWORK and sighting.outgoing:
        return f"went to {node}'s link {sighting.link} and was not seen behind it", "the container behind that link has just gone"
    if sighting.place == NETWORK:
        return (
            f"came to the network's namespace on {node} ({sighting.link}) and was neither passed on nor refused",
            f"its tables there are not what they should be: look at the log of meshd on {node}",
        )
    where = describe(last.node, sighting.place, nodes, trip.names)
    if sighting.outgoing:
        return f"left {where} by {sighting.link} and was not seen behind it", f"{where}'s link to the network is broken"
    return f"came to {where} and went no further", ""


def describe(node: str, place: str, nodes: Mapping[str, Node], names: Mapping[str, str]) -> str:
    """ "web.2 on node-2", "node-2's network namespace", "node-2"."""
    name = nodes[node].name
    if place == HOST:
        return name
    if place == NETWORK:
        return f"{name}'s network namespace"
    return f"{names.get(place.removeprefix('task:'), place)} on {name}"


# ---- expected and seen ---------------------------------------------------------------------------------------------------------


def _surprises(
    there: Sequence[Hop], reached: Hop | None, nodes: Mapping[str, Node], trip: Trip, expected: Expectation
) -> tuple[str, ...]:  # fmt: skip
    """Where the packet went otherwise than the tables say. A table that says nothing can't be contradicted."""
    found: list[str] = []
    routes = expected.routes
    if reached is not None and routes:
        wanted = {(route.node, task_place(_task_of(route.endpoint))) for route in routes if route.endpoint}
        if wanted and (reached.node, reached.sighting.place) not in wanted:
            name = describe(reached.node, reached.sighting.place, nodes, trip.names)
            found.append(f"it came to {name}, which is none of the backends that {nodes[trip.entry].name} was told")
    for hop in there:
        capsule = hop.sighting.packet.capsule
        if capsule is None or not hop.sighting.outgoing or hop.node != trip.entry or not routes:
            continue
        if capsule.destination not in {route.vtep for route in routes}:
            found.append(f"{nodes[hop.node].name} tunnelled it to {capsule.destination}, where no backend is")
    return tuple(found)


def _task_of(endpoint: str) -> str:
    """Endpoints are named after their task; a second address of one has a suffix."""
    return endpoint.partition("-")[0]


def sources_seen(paths: Iterable[Path]) -> dict[str, str]:
    """Backend place -> the address it takes for its client."""
    return {path.backend: path.there[-1].sighting.packet.source for path in paths if path.backend}
