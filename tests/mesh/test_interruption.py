"""Killed at any instant: between any two operations of the way from any state to any other, a fresh process takes over; what serves before
and after serves all the while, and what drains keeps its connections.

The states differ in one or more of everything a plan can change; every kind of operation occurs.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from itertools import product
from typing import Literal, get_args

import pytest

from mesh.facts import Facts
from mesh.ipvs import vip_mark
from mesh.model import (
    Backend,
    Balancer,
    Encryption,
    EncryptionPeer,
    HostPort,
    LocalEndpoint,
    Network,
    NodeState,
    PublishedPort,
    RemoteEndpoint,
    Sandbox,
    VirtualService,
)
from mesh.operations import ChangeElements, DeleteIpvs, ForgetFlows, Op, PutIpvs, PutIpvsTimeout
from mesh.plan import plan
from mesh.render import Names, render
from mesh.table import Tables
from tests.mesh.fake_kernel import CONTAINERS, FakeKernel, settled

NAMES = Names("mesh")
FACTS = Facts(underlay_mtu=1500, host_id=1, netns=CONTAINERS, has_bridge_netfilter=True)
VIP, X, Y, Z = "10.0.0.100", "10.0.0.10", "10.0.0.11", "10.0.0.12"
MANY = tuple(f"10.0.0.{i}" for i in range(200, 220))
Served = dict[str, dict[str, int]]


def states(balancer: Balancer) -> list[tuple[Tables, Served]]:
    """Tables, and which backends serve each VIP of network n ("port": the published one), with their weights."""
    x_here = (LocalEndpoint("x", X, "/c/x"),)
    away = (RemoteEndpoint(Y, "192.0.2.2"), RemoteEndpoint(Z, "192.0.2.3"))
    n = Network("n", 5, ("10.0.0.0/24",), "10.0.0.2", local=x_here, remote=away)
    many = replace(n, remote=(*away, *(RemoteEndpoint(a, "192.0.2.2") for a in MANY)))
    ingress = replace(n, ingress=True)
    sandbox = (Sandbox("x", "/c/x"),)
    six = Network("six", 7, ("fd00::/64",), "fd00::2", services=(VirtualService("fd00::100", (Backend("fd00::3"),)),))

    def serving(network: Network, weights: dict[str, int], **service: object) -> Network:
        vip = VirtualService(VIP, tuple(Backend(a, w) for a, w in weights.items()), **service)  # type: ignore[arg-type]
        return replace(network, services=(vip,))

    def published(weights: dict[str, int], network: Network = ingress, **other: object) -> NodeState:
        ports = (PublishedPort("udp", 80, 8080, tuple(Backend(a, w) for a, w in weights.items())),)
        return NodeState("192.0.2.1", (network,), sandbox, ports, **other)  # type: ignore[arg-type]

    def encrypted(first: int, active: Literal[0, 1]) -> NodeState:
        """Two peers; their keys, and ours, are numbers from `first` on."""
        keys = [base64.b64encode(bytes([number]) * 32).decode() for number in range(first, first + 8)]
        peers = tuple(EncryptionPeer(f"fd00::{i}", f"192.0.2.{i}", (keys[i], keys[i + 2])) for i in (2, 3))
        return NodeState(
            "192.0.2.1", (replace(n, id="e", encrypted=True),), encryption=Encryption("fd00::1", (keys[0], keys[1]), active, peers)
        )

    wanted: list[tuple[NodeState, Facts, Served]] = [
        (NodeState("192.0.2.1"), FACTS, {}),
        (NodeState("192.0.2.1", (n,)), FACTS, {}),
        *(
            (NodeState("192.0.2.1", (serving(n, w, scheduler=s, affinity_s=a),)), FACTS, {VIP: w})
            for w, s, a in (
                ({X: 1}, "rr", 0),
                ({X: 0, Y: 1}, "rr", 0),
                ({Y: 1, Z: 3}, "wlc", 0),
                ({X: 1, Y: 1}, "sh", 60),
                ({X: 0, Y: 0}, "rr", 0),
            )
        ),
        (NodeState("192.0.2.1", (serving(many, dict.fromkeys(MANY, 1)),)), FACTS, {VIP: dict.fromkeys(MANY, 1)}),
        (NodeState("192.0.2.1", (serving(replace(n, remote=(RemoteEndpoint(Y, "192.0.2.9"),)), {Y: 1}),)), FACTS, {VIP: {Y: 1}}),
        (NodeState("192.0.2.1", (serving(replace(n, mtu=1300, vni=6), {X: 1}),)), FACTS, {VIP: {X: 1}}),
        (NodeState("192.0.2.1", (serving(replace(n, local=(LocalEndpoint("x", X, "/c/x2"),)), {X: 1}), six)), FACTS, {VIP: {X: 1}}),
        *((encrypted(first, active), replace(FACTS, has_wireguard=True), {}) for first, active in ((10, 0), (12, 1))),
        (published({X: 1}, serving(ingress, {X: 1})), FACTS, {VIP: {X: 1}, "port": {X: 1}}),
        (published({X: 0, Y: 1}), replace(FACTS, has_docker_user=True), {"port": {X: 0, Y: 1}}),
        (published({X: 1}, replace(ingress, lb_address="10.0.0.3"), host_ports=(HostPort("udp", 53, 53, "x"),)), FACTS, {"port": {X: 1}}),
    ]
    found = []
    for state, facts, served in wanted:
        rendered = render(replace(state, balancer=balancer), facts, NAMES)
        assert not rendered.errors
        found.append((rendered.tables, served))
    return found


def steps(op: Op) -> list[Op]:
    """Operations of many rows are no transaction: they may end after any row."""
    for name in ("rows", "addresses", "macs", "changes", "services", "policies", "keys"):
        members = getattr(op, name, ())
        if len(members) > 1 and not isinstance(op, ChangeElements):
            return [replace(op, **{name: (member,)}) for member in members]  # type: ignore[arg-type]
    return [op]


@pytest.mark.parametrize("balancer", ["nftables", "ipvs"])
def test_any_two_states_interrupted_anywhere(balancer: Balancer) -> None:
    universe = states(balancer)
    seen: set[type[Op]] = set()
    for (actual, was), (desired, shall) in product(universe, universe):
        ops = [step for op in plan(desired, actual) for step in steps(op)]
        seen |= {type(op) for op in ops}
        kernel = FakeKernel(actual)
        before, after = FakeKernel(actual), FakeKernel(desired)
        same_tunnel = "mesh-n" in actual and "mesh-n" in desired and actual["mesh-n"].tunnel == desired["mesh-n"].tunnel
        live = same_tunnel and before.live("mesh-n", VIP) and after.live("mesh-n", VIP)
        open_port = before.published("17 . 80") and after.published("17 . 80")
        # a published port's connections are to the LB address
        same_lb = same_tunnel and actual["mesh-n"].bridge == desired["mesh-n"].bridge
        kept = {(name, a) for name, weights in was.items() for a in weights if a in shall.get(name, {}) and (name == VIP or same_lb)}
        kept = {(name, a) for name, a in kept if before.reaches("mesh-n", a) and after.reaches("mesh-n", a)} if same_tunnel else set()
        for op in [*ops, None]:
            resumed = FakeKernel(kernel.tables)
            for again in plan(desired, resumed.tables):
                resumed.run(again)
            assert settled(resumed.tables) == settled(desired)
            assert plan(desired, resumed.tables) == []
            assert not live or kernel.live("mesh-n", VIP), (op, ops)
            assert not open_port or kernel.published("17 . 80"), (op, ops)
            for name, address in kept:
                # its connections go on: the frames arrive, and nobody forgets them
                assert kernel.reaches("mesh-n", address) or op is None or _replaced_container(actual, desired), (op, ops)
                if isinstance(op, ForgetFlows) and op.namespace == "mesh-n":
                    assert not any(f.backend == address and (name == "port") == (f.port is not None) for f in op.flows), (op, ops)
            if op is not None:
                kernel.run(op)
    assert seen == set(get_args(Op)) - ({PutIpvs, DeleteIpvs, PutIpvsTimeout} if balancer == "nftables" else set())


def _replaced_container(actual: Tables, desired: Tables) -> bool:
    """The backend itself is another one: nothing of its connections is left to keep."""
    return {a.netns_id for a in actual["mesh-n"].attachments.values()} != {a.netns_id for a in desired["mesh-n"].attachments.values()}


def test_draining_backends_of_ipvs_keep_their_destination() -> None:
    """Weight 0 at once; gone only when the state no longer names it."""
    universe = [(tables, served) for tables, served in states("ipvs") if VIP in served]
    for (actual, was), (desired, shall) in product(universe, universe):
        kernel = FakeKernel(actual)
        kept = was[VIP].keys() & shall[VIP].keys()
        same_tunnel = actual["mesh-n"].tunnel == desired["mesh-n"].tunnel
        for op in (step for whole in plan(desired, actual) for step in steps(whole)):
            kernel.run(op)
            if same_tunnel:
                assert kept <= {d.address for d in kernel.tables["mesh-n"].ipvs[vip_mark(VIP)].destinations}, op
