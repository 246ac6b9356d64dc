"""Where a packet should go by the tables of all nodes, and what contradicts itself there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mesh.model import Backend, HostPort, LocalEndpoint, Network, NodeState, PublishedPort, RemoteEndpoint, VirtualService
from mesh.trace.expect import Expectation, Node, Route, expectation
from mesh.trace.model import Mark, Probe

VIP = "10.0.1.100"
VTEP = {"a": "192.0.2.1", "b": "192.0.2.2"}
LB = {"a": "10.0.1.2", "b": "10.0.1.3"}
TASKS = {"a": ("w1", "10.0.1.11"), "b": ("w2", "10.0.1.21")}
ALL = (Backend("10.0.1.11"), Backend("10.0.1.21"))


def state(me: str) -> NodeState:
    other = "b" if me == "a" else "a"
    network = Network(
        id="n",
        vni=77,
        subnets=("10.0.1.0/24",),
        lb_address=LB[me],
        ingress=True,
        local=(LocalEndpoint(*TASKS[me], netns="/x"),),
        remote=(RemoteEndpoint(LB[other], VTEP[other]), RemoteEndpoint(TASKS[other][1], VTEP[other])),
        services=(VirtualService(VIP, ALL),),
    )
    return NodeState(VTEP[me], (network,), published=(PublishedPort("tcp", 8080, 80, ALL),), host_ports=(HostPort("udp", 53, 5353, "w1"),))


def walked(a: NodeState | None, b: NodeState | None, destination: str = VIP, port: int = 80, protocol: str = "tcp") -> Expectation:
    nodes = {id: Node(f"node-{id}", VTEP[id], frozenset({VTEP[id]}), s) for id, s in (("a", a), ("b", b))}
    probe = Probe("udp" if protocol == "udp" else "tcp", destination, port, Mark(1))
    return expectation(nodes, "a", "n", probe)


def network(s: NodeState, change: Callable[[Network], Network]) -> NodeState:
    return replace(s, networks=tuple(change(n) for n in s.networks))


A, B = state("a"), state("b")
HERE, THERE = Route("10.0.1.11", 80, "a", "w1"), Route("10.0.1.21", 80, "b", "w2", VTEP["b"])


def test_vip_port_and_address() -> None:
    assert walked(A, B) == Expectation("VIP", (HERE, THERE))
    assert walked(A, B, VTEP["a"], 8080) == Expectation("published port", (HERE, THERE))
    assert walked(A, B, VTEP["a"], 53, "udp") == Expectation("host port", (Route("", 5353, "a", "w1"),))
    assert walked(A, B, "10.0.1.21") == Expectation("address", (THERE,))
    assert walked(A, B, LB["b"]).problems == ()
    assert walked(A, None) == Expectation("VIP", (HERE, replace(THERE, endpoint="")))


def test_a_draining_backend_gets_nothing_new() -> None:
    draining = network(A, lambda n: replace(n, services=(VirtualService(VIP, (replace(ALL[0], weight=0), ALL[1])),)))
    assert walked(draining, B) == Expectation("VIP", (THERE,))


@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        (None, B, "node-a didn't say what its data plane was told"),
        (replace(A, networks=()), B, "node-a doesn't take part in the network"),
        (network(A, lambda n: replace(n, services=())), B, "node-a knows no VIP and no endpoint 10.0.1.100"),
        (
            network(A, lambda n: replace(n, services=(VirtualService(VIP),))),
            B,
            "no backend that takes new connections for the VIP 10.0.1.100",
        ),
        (network(A, lambda n: replace(n, remote=n.remote[:1])), B, "node-a sends to 10.0.1.21 but has no tunnel to it"),
        (
            network(A, lambda n: replace(n, remote=(n.remote[0], RemoteEndpoint("10.0.1.21", "192.0.2.9")))),
            B,
            "through 192.0.2.9, which is no node",
        ),
        (A, replace(B, networks=()), "on node-b, which doesn't take part in the network"),
        (A, network(B, lambda n: replace(n, local=())), "on node-b, which has no such endpoint (any more)"),
        (A, network(B, lambda n: replace(n, vni=78)), "VNI 77 on node-a and 78 on node-b"),
        (A, replace(B, vxlan_port=4790), "sends VXLAN to UDP port 4789, node-b listens on 4790"),
        (A, network(B, lambda n: replace(n, remote=n.remote[1:])), "node-b has no tunnel back to node-a"),
        (
            A,
            network(B, lambda n: replace(n, remote=(RemoteEndpoint(LB["a"], "192.0.2.9"), n.remote[1]))),
            "node-b has no tunnel back to node-a",
        ),
    ],
)
def test_each_contradiction_is_one_sentence(a: NodeState | None, b: NodeState, problem: str) -> None:
    found = walked(a, b)
    assert len(found.problems) == 1
    assert problem in found.problems[0]


def test_a_port_nobody_published() -> None:
    assert walked(A, B, VTEP["a"], 8081) == Expectation("unknown", (), ("node-a was not told of a published port 8081/tcp",))
    assert walked(A, B, VTEP["a"], 8080, "udp").routes == ()
