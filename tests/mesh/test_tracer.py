"""Packets walked through the tables of three nodes, whichever balancer each has: who answers, what it sees, whether the client hears it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from mesh.facts import Facts
from mesh.model import Backend, Balancer, LocalEndpoint, Network, NodeState, PublishedPort, RemoteEndpoint, Sandbox, VirtualService
from mesh.nft import rule
from mesh.render import Names, render
from mesh.table import NftChain, NftTable
from tests.mesh.tracer import Node, Outcome, Packet, Tracer, UnknownRule, hook

HOSTS = {"a": ("192.0.2.1", 2), "b": ("192.0.2.2", 3), "c": ("192.0.2.3", 4)}
CONTAINERS = {"a1": 11, "a2": 12, "b1": 21, "c1": 31}
VIP, EMPTY_VIP, DRAINED_VIP = "10.0.1.100", "10.0.1.101", "10.0.1.102"
OUTSIDE = "198.51.100.7"
MIXTURES = [*product(("nftables", "ipvs"), repeat=3)]


def tracer(*balancers: Balancer, published: tuple[PublishedPort, ...] = ()) -> Tracer:
    facts = Facts(underlay_mtu=1500, host_id=1, netns={f"/c/{name}": 100 + last for name, last in CONTAINERS.items()})
    nodes = {}
    for (host, (vtep, lb)), balancer in zip(HOSTS.items(), balancers, strict=True):

        def network(number: int, *services: VirtualService, host: str = host, lb: int = lb) -> Network:
            subnet = f"10.0.{number}"
            away = [(f"{subnet}.{other}", where, True) for h, (where, other) in HOSTS.items() if h != host]
            away += [(f"{subnet}.{last}", HOSTS[name[0]][0], False) for name, last in CONTAINERS.items() if name[0] != host]
            return Network(
                "i" if number == 0 else "n",
                5 + number,
                (f"{subnet}.0/24",),
                f"{subnet}.{lb}",
                ingress=number == 0,
                local=tuple(LocalEndpoint(n, f"{subnet}.{last}", f"/c/{n}") for n, last in CONTAINERS.items() if n[0] == host),
                remote=tuple(RemoteEndpoint(*one) for one in away),
                services=services,
            )

        services = (
            VirtualService(VIP, (Backend("10.0.1.11"), Backend("10.0.1.21"), Backend("10.0.1.31", 0))),
            VirtualService(EMPTY_VIP),
            VirtualService(DRAINED_VIP, (Backend("10.0.1.21", 0),)),
        )
        sandboxes = tuple(Sandbox(n, f"/c/{n}") for n in CONTAINERS if n[0] == host)
        state = NodeState(vtep, (network(0), network(1, *services)), sandboxes, published, balancer=balancer)
        rendered = render(state, facts, Names("mesh"))
        assert not rendered.errors
        nodes[host] = Node(host, vtep, rendered.tables)
    return Tracer(nodes)


def tcp(source: str, destination: str, port: int = 80) -> Packet:
    return Packet(source, destination, "tcp", port)


@pytest.mark.parametrize("mixture", MIXTURES, ids="-".join)
def test_a_vip(mixture: tuple[Balancer, ...]) -> None:
    world = tracer(*mixture)
    for client, last in CONTAINERS.items():
        host, lb = client[0], f"10.0.1.{HOSTS[client[0]][1]}"
        direct = mixture["abc".index(host)] == "ipvs"
        own = f"10.0.1.{last}"
        # a server that calls itself can only be answered by way of its node's LB address; one that drains may still have such calls open
        seen = own if direct and client == "a2" else lb
        wanted = {Outcome(f"/c/{server}", seen, 80, True) for server in ("a1", "b1")}
        for protocol in ("tcp", "udp", "sctp"):
            assert world.from_container(host, "n", Packet(own, VIP, protocol, 80)) == wanted
        assert world.from_container(host, "n", tcp(own, EMPTY_VIP)) == {Outcome("refused")}
        assert world.from_container(host, "n", tcp(own, DRAINED_VIP)) == {Outcome("refused")}
        # not by the VIP: by its own address
        assert world.from_container(host, "n", tcp(own, "10.0.1.21")) == {Outcome("/c/b1", own, 80, True)}
        assert world.from_container(host, "n", tcp(own, "10.0.1.99")) == {Outcome("dropped")}


@pytest.mark.parametrize("mixture", MIXTURES, ids="-".join)
def test_a_published_port(mixture: tuple[Balancer, ...]) -> None:
    backends = (Backend("10.0.0.12"), Backend("10.0.0.31"), Backend("10.0.0.21", 0))
    ports = (
        PublishedPort("tcp", 8080, 80, backends),
        PublishedPort("udp", 5353, 53, backends),
        PublishedPort("tcp", 8081, 81, backends, source_nat=True),
        PublishedPort("tcp", 8082, 82),
    )
    world = tracer(*mixture, published=ports)
    for (host, (address, last)), balancer in zip(HOSTS.items(), mixture, strict=True):
        lb = f"10.0.0.{last}"
        seen = OUTSIDE if balancer == "ipvs" else lb
        for protocol, port, target, source in (("tcp", 8080, 80, seen), ("udp", 5353, 53, seen), ("tcp", 8081, 81, lb)):
            wanted = {Outcome(f"/c/{server}", source, target, True) for server in ("a2", "c1")}
            assert world.from_outside(host, "i", Packet(OUTSIDE, address, protocol, port)) == wanted
        for port in (8082, 8083):
            assert world.from_outside(host, "i", tcp(OUTSIDE, address, port)) == {Outcome("refused")}
        # from the node itself, and from a container by its gateway address
        by_lb = {Outcome(f"/c/{server}", lb, 80, True) for server in ("a2", "c1")}
        by_own = {replace(o, source=address) for o in by_lb} if balancer == "ipvs" else by_lb
        assert world.from_node(host, "i", tcp("127.0.0.1", "127.0.0.1", 8080)) == by_lb
        assert world.from_node(host, "i", tcp(address, address, 8080)) == by_own
        assert world.from_outside(host, "i", tcp("172.30.7.7", "172.30.0.1", 8080)) == by_lb


def test_an_unknown_rule_fails() -> None:
    table = NftTable("meshd", {}, {"c": NftChain("type filter hook forward priority 0; policy accept;", (rule("queue num 1"),))})
    with pytest.raises(UnknownRule):
        list(hook(tcp("10.0.0.1", "10.0.0.2"), table, "forward"))
