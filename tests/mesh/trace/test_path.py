"""The path from what was sighted: put in order without comparing clocks, and cut off at every place."""

from __future__ import annotations

import itertools

import pytest

from mesh.trace.expect import Expectation, Node, Route
from mesh.trace.model import HOST, NETWORK, Capsule, Packet, Sighting, Way
from mesh.trace.path import Path, Trip, paths, sources_seen

CLIENT, VIP, LB, BACKEND, OTHER = "10.0.1.5", "10.0.1.100", "10.0.1.2", "10.0.1.21", "10.0.1.22"
VTEP = {"a": "192.0.2.1", "b": "192.0.2.2"}
NODES = {id: Node(f"node-{id}", VTEP[id], frozenset({VTEP[id]})) for id in "ab"}
NAMES = {"client": "client.1", "web": "web.1", "else": "web.2"}
TRIP = Trip("a", "task:client", "a", False, 4789, NAMES)
REMOTE = Expectation("VIP", (Route(BACKEND, 80, "b", "web", VTEP["b"]),))

Step = tuple[str, str, str, bool, Packet]


def packet(way: Way, source: str, destination: str, capsule: tuple[str, str] | None = None, kind: str = "") -> Packet:
    kind = kind or ("syn" if way == "there" else "syn-ack")
    return Packet(
        0, way, kind, source, destination, 61008, 80, capsule=Capsule(VTEP[capsule[0]], VTEP[capsule[1]], 77) if capsule else None
    )


def there(source: str, destination: str) -> tuple[list[Step], list[Step]]:
    """(until the balancer, from the balancer on), to a backend on the other node."""
    asked, chosen = packet("there", source, VIP), packet("there", LB, destination)
    inside = packet("there", LB, destination, ("a", "b"))
    first: list[Step] = [
        ("a", "task:client", "eth0", True, asked),
        ("a", NETWORK, "mv-c", False, asked),
        ("a", NETWORK, "br0", False, asked),
    ]
    rest: list[Step] = [
        ("a", NETWORK, "br0", True, chosen),
        ("a", NETWORK, "vx0", True, chosen),
        ("a", HOST, "eth0", True, inside),
        ("b", HOST, "eth0", False, inside),
        ("b", NETWORK, "vx0", False, chosen),
        ("b", NETWORK, "mv-w", True, chosen),
        ("b", "task:web", "eth0", False, chosen),
    ]
    return first, rest


def back(kind: str = "syn-ack") -> list[Step]:
    answer, translated = packet("back", BACKEND, LB, kind=kind), packet("back", VIP, CLIENT, kind=kind)
    inside = packet("back", BACKEND, LB, ("b", "a"), kind)
    return [
        ("b", "task:web", "eth0", True, answer),
        ("b", NETWORK, "mv-w", False, answer),
        ("b", NETWORK, "vx0", True, answer),
        ("b", HOST, "eth0", True, inside),
        ("a", HOST, "eth0", False, inside),
        ("a", NETWORK, "vx0", False, answer),
        ("a", NETWORK, "br0", False, answer),
        ("a", NETWORK, "mv-c", True, translated),
        ("a", "task:client", "eth0", False, translated),
    ]


WHOLE = [*itertools.chain(*there(CLIENT, BACKEND)), *back()]


def traced(steps: list[Step], trip: Trip = TRIP, expected: Expectation = REMOTE, skew_ns: int = 0, shuffled: bool = False) -> Path:
    """`skew_ns`: how much later it is on node b."""
    seen: dict[str, list[Sighting]] = {"a": [], "b": []}
    for at, (node, place, link, outgoing, what) in enumerate(steps):
        seen[node].append(Sighting(1000 * at + (skew_ns if node == "b" else 0), place, link, outgoing, what))
    if shuffled:
        # captures are read namespace by namespace
        seen = {node: sorted(sightings, key=lambda s: s.place) for node, sightings in seen.items()}
    (path,) = paths(NODES, seen, trip, expected, 1)
    return path


def steps_of(path: Path) -> list[tuple[str, str, str]]:
    return [(hop.node, hop.sighting.place, hop.sighting.link) for hop in (*path.there, *path.back)]


@pytest.mark.parametrize("skew_ns", [0, 10**12, -(10**12)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_whole_path_is_told_in_its_order_whatever_the_clocks_say(skew_ns: int, shuffled: bool) -> None:
    path = traced(WHOLE, skew_ns=skew_ns, shuffled=shuffled)
    assert steps_of(path) == [(node, place, link) for node, place, link, _, _ in WHOLE]
    assert (path.outcome, path.backend, path.backend_node, path.good) == ("answered", "task:web", "b", True)
    assert path.verdict == "answered by web.1 on node-b"
    assert sources_seen([path]) == {"task:web": LB}


CUTS = [
    "never left client.1 on node-a",
    "left client.1 on node-a by eth0",
    "came to the network's namespace on node-a (mv-c)",
    "came to the network's namespace on node-a (br0)",
    "went to node-a's link br0",
    "went into node-a's tunnel (vx0) and never came to node-a's underlay",
    "left node-a's eth0 in a VXLAN capsule (VNI 77) for node-b (192.0.2.2) and never arrived on node-b's underlay",
    "arrived on node-b's eth0 in its VXLAN capsule and never came out of the tunnel",
    "came to the network's namespace on node-b (vx0)",
    "went to node-b's link mv-w",
    "web.1 on node-b got it and answered nothing",
    "the answer left web.1 on node-b by eth0",
    "the answer came to the network's namespace on node-b (mv-w)",
    "the answer went into node-b's tunnel (vx0) and never came to node-b's underlay",
    "the answer left node-b's eth0 in a VXLAN capsule (VNI 77) for node-a (192.0.2.1) and never arrived on node-a's underlay",
    "the answer arrived on node-a's eth0 in its VXLAN capsule and never came out of the tunnel",
    "the answer came to the network's namespace on node-a (vx0)",
    "the answer came to the network's namespace on node-a (br0)",
    "the answer went to node-a's link mv-c",
]


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_a_path_cut_off_anywhere_is_lost_there(cut: int) -> None:
    path = traced(WHOLE[:cut])
    assert path.outcome == "lost" and not path.good
    assert CUTS[cut] in path.verdict
    assert path.advice


def test_advice_names_the_port_and_the_nodes() -> None:
    cut = next(i for i, step in enumerate(WHOLE) if step[0] == "b")
    assert "is UDP 4789 open between node-a and node-b" in traced(WHOLE[:cut]).advice


def test_a_node_that_nobody_watched_is_not_accused() -> None:
    cut = next(i for i, step in enumerate(WHOLE) if step[0] == "b")
    path = traced(WHOLE[:cut], Trip("a", "task:client", "a", False, 4789, NAMES, frozenset("b")))
    assert path.verdict == "it left node-a's eth0 for node-b, which couldn't be watched"


def test_a_datagram_needs_no_answer() -> None:
    path = traced(WHOLE[:10], Trip("a", "task:client", "a", True, 4789, NAMES))
    assert (path.outcome, path.good) == ("delivered", True)
    assert traced(WHOLE[:9], Trip("a", "task:client", "a", True, 4789, NAMES)).outcome == "lost"


@pytest.mark.parametrize("kind", ["rst", "unreachable"])
def test_refusal_by_the_backend_and_by_the_network_are_told_apart(kind: str) -> None:
    by_backend = traced([*itertools.chain(*there(CLIENT, BACKEND)), *back(kind)])
    assert by_backend.outcome == "refused"
    assert by_backend.verdict == "web.1 on node-b refused it: nothing listens on that port there"
    first, _ = there(CLIENT, BACKEND)
    refusal = packet("back", VIP, CLIENT, kind=kind)
    own = traced([*first, ("a", NETWORK, "mv-c", True, refusal), ("a", "task:client", "eth0", False, refusal)])
    assert own.outcome == "refused"
    assert own.verdict == "node-a's network namespace refused it: it has no backend for it"


def test_direct_routing_answers_past_the_balancer() -> None:
    """The packet keeps its addresses, the answer goes straight to the client's link."""
    asked, answer = packet("there", CLIENT, VIP), packet("back", VIP, CLIENT)
    inside, returned = packet("there", CLIENT, VIP, ("a", "b")), packet("back", VIP, CLIENT, ("b", "a"))
    steps: list[Step] = [
        ("a", "task:client", "eth0", True, asked),
        ("a", NETWORK, "br0", False, asked),
        ("a", NETWORK, "vx0", True, asked),
        ("a", HOST, "eth0", True, inside),
        ("b", HOST, "eth0", False, inside),
        ("b", "task:web", "eth0", False, asked),
        ("b", "task:web", "eth0", True, answer),
        ("b", HOST, "eth0", True, returned),
        ("a", HOST, "eth0", False, returned),
        ("a", NETWORK, "mv-c", True, answer),
        ("a", "task:client", "eth0", False, answer),
    ]
    path = traced(steps, skew_ns=-(10**9))
    assert steps_of(path) == [(node, place, link) for node, place, link, _, _ in steps]
    assert path.good and sources_seen([path]) == {"task:web": CLIENT}


def test_what_contradicts_the_tables_is_a_surprise() -> None:
    assert traced(WHOLE).surprises == ()
    stranger = traced(WHOLE, expected=Expectation("VIP", (Route(OTHER, 80, "b", "else", VTEP["b"]),)))
    assert stranger.surprises == ("it came to web.1 on node-b, which is none of the backends that node-a was told",)
    detour = traced(WHOLE, expected=Expectation("VIP", (Route(BACKEND, 80, "b", "web", "192.0.2.9"),)))
    assert detour.surprises == ("node-a tunnelled it to 192.0.2.2, where no backend is",)
    assert not stranger.good and not detour.good


def test_a_published_port_through_a_third_node() -> None:
    """From node a's own namespace to node b's address; the backend is back on a: the path visits a twice."""
    call, entered = packet("there", VTEP["a"], VTEP["b"]), packet("there", VTEP["a"], "10.0.0.3")
    inside, chosen = packet("there", "10.0.0.3", BACKEND, ("b", "a")), packet("there", "10.0.0.3", BACKEND)
    answer, returned = packet("back", BACKEND, "10.0.0.3"), packet("back", BACKEND, "10.0.0.3", ("a", "b"))
    home = packet("back", VTEP["b"], VTEP["a"])
    steps: list[Step] = [
        ("a", HOST, "eth0", True, call),
        ("b", HOST, "eth0", False, call),
        ("b", HOST, "mesh-in", True, entered),
        ("b", NETWORK, "uplink", False, entered),
        ("b", NETWORK, "vx0", True, chosen),
        ("b", HOST, "eth0", True, inside),
        ("a", HOST, "eth0", False, inside),
        ("a", "task:web", "eth0", False, chosen),
        ("a", "task:web", "eth0", True, answer),
        ("a", HOST, "eth0", True, returned),
        ("b", HOST, "eth0", False, returned),
        ("b", NETWORK, "vx0", False, answer),
        ("b", HOST, "eth0", True, home),
        ("a", HOST, "eth0", False, home),
    ]
    trip = Trip("a", HOST, "b", False, 4789, NAMES)
    expected = Expectation("published port", (Route(BACKEND, 80, "a", "web", VTEP["a"]),))
    path = traced(steps, trip, expected, skew_ns=10**9)
    assert steps_of(path) == [(node, place, link) for node, place, link, _, _ in steps]
    assert path.verdict == "answered by web.1 on node-a" and path.good
    # its answer, still in the capsule, is not yet home
    assert traced(steps[:10], trip, expected).outcome == "lost"
    assert "was not handed on" in traced(steps[:2], trip, expected).verdict
    assert "left node-a's eth0 for node-b and never arrived there" in traced(steps[:1], trip, expected).verdict
