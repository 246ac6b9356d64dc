"""Every pair of a small universe of states: plans converge, from any interruption too, and never darken what is live on both sides."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from mesh.facts import Facts
from mesh.model import Backend, HostPort, LocalEndpoint, Network, NodeState, PublishedPort, RemoteEndpoint, Sandbox, VirtualService
from mesh.plan import plan
from mesh.render import Names, render
from mesh.table import HOST, NamespaceTable, Tables
from tests.mesh.fake_kernel import CONTAINERS, FakeKernel, settled

NAMES = Names("mesh")
VIP, X, Y = "10.0.0.100", "10.0.0.10", "10.0.0.11"
FACTS = Facts(underlay_mtu=1500, host_id=1, netns=CONTAINERS, has_bridge_netfilter=True)


def tables(state: NodeState, facts: Facts = FACTS) -> Tables:
    rendered = render(state, facts, NAMES)
    assert not rendered.errors
    return rendered.tables


def universe(balancer: str = "nftables") -> list[Tables]:
    """x local (in either of two containers), remote or absent; y on one of two nodes or absent; the VIP absent or with any of their
    subsets; the network absent; the whole published or not; another LB address, another VNI."""
    found: list[Tables] = [{HOST: NamespaceTable()}]
    places = (("absent", "/c/x", "remote"), ("absent", "192.0.2.2", "192.0.2.3"))
    if balancer == "ipvs":
        places = (("/c/x", "remote"), ("absent", "192.0.2.2"))
    for x, y in (*product(*places), ("/c/x2", "absent")):
        here = tuple(a for a, where in ((X, x), (Y, y)) if where != "absent")
        local = (LocalEndpoint("x", X, x),) if x.startswith("/c") else ()
        remote = tuple(RemoteEndpoint(a, v) for a, v in ((X, "192.0.2.2" if x == "remote" else ""), (Y, y)) if v.startswith("192"))
        vips: list[tuple[VirtualService, ...]] = [()]
        for mask in range(1 << len(here)):
            vips.append((VirtualService(VIP, tuple(Backend(a, 1 if mask >> i & 1 else 0) for i, a in enumerate(here))),))
        for services in vips:
            network = Network("n", 5, ("10.0.0.0/24",), "10.0.0.2", local=local, remote=remote, services=services)
            found.append(tables(NodeState("192.0.2.1", (network,), balancer=balancer)))  # type: ignore[arg-type]
    network = Network(
        "n",
        5,
        ("10.0.0.0/24",),
        "10.0.0.2",
        ingress=True,
        local=(LocalEndpoint("x", X, "/c/x"),),
        services=(VirtualService(VIP, (Backend(X),)),),
    )
    ports = (PublishedPort("tcp", 80, 8080, (Backend(X),)),)
    published = NodeState("192.0.2.1", (network,), (Sandbox("s", "/c/x"),), ports, (HostPort("udp", 53, 53, "s"),), balancer)  # type: ignore[arg-type]
    found.append(tables(published))
    found.append(tables(replace(published, published=(), host_ports=())))
    found.append(tables(replace(published, networks=(replace(network, lb_address="10.0.0.3"),))))
    found.append(tables(replace(published, networks=(replace(network, vni=6),))))
    return found


@pytest.mark.parametrize("balancer", ["nftables", "ipvs"])
def test_every_pair_converges_from_every_prefix_and_stays_live(balancer: str) -> None:
    states = universe(balancer)
    pairs = 0
    for actual in states:
        for desired in states:
            ops = plan(desired, actual)
            assert bool(ops) == (actual != desired)
            kernel = FakeKernel(actual)
            live_through = FakeKernel(actual).live("mesh-n", VIP) and FakeKernel(desired).live("mesh-n", VIP)
            same_tunnel = "mesh-n" in actual and "mesh-n" in desired and actual["mesh-n"].tunnel == desired["mesh-n"].tunnel
            published = FakeKernel(actual).published("6 . 80") and FakeKernel(desired).published("6 . 80")
            for op in [*ops, None]:
                # interrupted here: a fresh plan from what is there ends in the same place
                resumed = FakeKernel(kernel.tables)
                for again in plan(desired, resumed.tables):
                    resumed.run(again)
                assert settled(resumed.tables) == settled(desired)
                assert plan(desired, resumed.tables) == []
                # a VXLAN device whose identity changes has to go first; nothing else may interrupt
                if live_through and same_tunnel:
                    assert kernel.live("mesh-n", VIP), (op, ops)
                if published:
                    assert kernel.published("6 . 80"), (op, ops)
                if op is not None:
                    kernel.run(op)
            pairs += 1
    assert pairs == len(states) ** 2 > (900 if balancer == "nftables" else 300)


def test_a_plan_of_thousands_of_rows_is_batched() -> None:
    remote = tuple(RemoteEndpoint(f"10.0.{i >> 8}.{i & 255}", "192.0.2.2") for i in range(3, 1003))
    state = NodeState("192.0.2.1", (Network("n", 5, ("10.0.0.0/16",), "10.0.0.2", remote=remote),))
    ops = plan(tables(state), {HOST: NamespaceTable()})
    assert len(ops) < 25
    kernel = FakeKernel({})
    for op in ops:
        kernel.run(op)
    assert len(kernel.tables["mesh-n"].tunnels) == len(kernel.tables["mesh-n"].neighbours) == 1000


def test_flows_of_gone_backends_are_forgotten_and_of_draining_ones_kept() -> None:
    def with_backends(*backends: Backend) -> Tables:
        network = Network(
            "n", 5, ("10.0.0.0/24",), "10.0.0.2", remote=(RemoteEndpoint(X, "192.0.2.2"),), services=(VirtualService(VIP, backends),)
        )
        return tables(NodeState("192.0.2.1", (network,)))

    serving, draining, gone = with_backends(Backend(X)), with_backends(Backend(X, 0)), with_backends()
    forgotten = [op for op in plan(draining, serving) if type(op).__name__ == "ForgetFlows"]
    assert forgotten == []
    (op,) = [op for op in plan(gone, serving) if type(op).__name__ == "ForgetFlows"]
    assert {(f.destination, f.backend) for f in op.flows} == {(VIP, X)}  # type: ignore[union-attr]
    # a client refused so far must not stay with the refusal
    (op,) = [op for op in plan(serving, gone) if type(op).__name__ == "ForgetFlows"]
    assert {(f.destination, f.backend) for f in op.flows} == {(VIP, "")}  # type: ignore[union-attr]


def test_a_foreign_route_or_address_on_our_links_is_drift() -> None:
    state = tables(NodeState("192.0.2.1", (Network("n", 5, ("10.0.0.0/24",), "10.0.0.2"),)))
    spoiled = dict(state)
    spoiled["mesh-n"] = replace(
        state["mesh-n"],
        addresses=state["mesh-n"].addresses | {"10.0.0.77/32"},
        tunnels={"00:00:00:00:00:00": "192.0.2.9"},
    )
    kernel = FakeKernel(spoiled)
    ops = plan(state, spoiled)
    for op in ops:
        kernel.run(op)
    assert len(ops) == 2
    assert kernel.tables == state


def test_a_replaced_uplink_gets_its_route_and_settings_again() -> None:
    network = Network("n", 5, ("10.0.0.0/24",), "10.0.0.2", ingress=True)
    state = tables(NodeState("192.0.2.1", (network,)))
    host = state[HOST]
    lost = {name: replace(a, netns_id=-1) for name, a in host.attachments.items()}
    kernel = FakeKernel({**state, HOST: replace(host, attachments=lost)})
    for op in plan(state, kernel.tables):
        kernel.run(op)
    assert kernel.tables == state


def test_a_container_takes_every_port_that_the_balancer_sends_it() -> None:
    """Before the balancer sends the first packet, and until it has sent the last."""
    network = Network("n", 5, ("10.0.0.0/24",), "10.0.0.2", ingress=True, local=(LocalEndpoint("x", X, "/c/x"),))

    def publishing(*numbers: int) -> Tables:
        ports = tuple(PublishedPort("udp", number, 53, (Backend(X),)) for number in numbers)
        return tables(NodeState("192.0.2.1", (network,), published=ports, balancer="ipvs"))

    universe = [publishing(), publishing(1), publishing(2), publishing(1, 2), publishing(2, 3)]
    for actual, desired in product(universe, universe):
        kernel = FakeKernel(actual)
        for op in [None, *plan(desired, actual)]:
            if op is not None:
                kernel.run(op)
            sending, container = kernel.tables["mesh-n"].nft, kernel.tables["/c/x"]
            assert sending is not None and container.nft is not None
            assert sending.maps["port_marks"].elements.keys() <= container.nft.maps["ports"].elements.keys(), op
            assert not sending.maps["port_marks"].elements or any(p.udp_port == 53 for p in container.policies), op
