"""Desired state to tables, and the sentences for states that make no sense."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import address as addr
from mesh.balance import MAX_WEIGHTED_SLOTS, slots
from mesh.errors import ConfigError, NamespaceGone
from mesh.facts import Facts
from mesh.ipvs import MASQUERADED, port_mark, vip_mark
from mesh.model import Backend, HostPort, LocalEndpoint, Network, NodeState, PublishedPort, RemoteEndpoint, Sandbox, VirtualService
from mesh.network import render_network
from mesh.render import Names, render
from mesh.table import HOST, IpvsDestination, Policy

NAMES = Names("mesh")
FACTS = Facts(underlay_mtu=1500, host_id=1, netns={"/c/x": 10, "/c/y": 11, "/c/gone": None, "/c/host": 1})
NETWORK = Network("n", 5, ("10.0.0.0/24",), "10.0.0.2")
STATE = NodeState("192.0.2.1", (NETWORK,))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"underlay": "nonsense"}, "underlay: not an address"),
        ({"underlay": "::ffff:0:1"}, "an IPv4 address in IPv6 form"),
        ({"underlay": "192.0.2.01"}, "underlay: not an address"),
        ({"gateway_subnet": "10.0.0.0/30"}, "must be an IPv4 subnet of at least 8 addresses"),
        ({"gateway_subnet": "fd00::/64"}, "must be an IPv4 subnet"),
        ({"gateway_subnet": "10.0.0.1/24"}, "gateway_subnet: not a subnet"),
        ({"vxlan_port": 0}, "vxlan_port: 0 is not a port"),
        ({"balancer": "iptables"}, "'iptables' is neither ipvs nor nftables"),
        ({"networks": (NETWORK, replace(NETWORK, vni=6))}, "network id n is there twice"),
        ({"networks": (NETWORK, replace(NETWORK, id="m"))}, "VNI 5 is there twice"),
        (
            {"networks": (replace(NETWORK, ingress=True), replace(NETWORK, id="m", vni=6, ingress=True))},
            "only one network can be the ingress",
        ),
        ({"published": (PublishedPort("tcp", 80, 80),)}, "published ports need an ingress network"),
        ({"host_ports": (HostPort("tcp", 80, 0, "s"),)}, "a port is between 1 and 65535"),
        ({"host_ports": (HostPort("tcp", 80, 80, "s"), HostPort("tcp", 80, 81, "s"))}, "port 80/tcp: published twice"),
        ({"sandboxes": (Sandbox("s", "/c/x"), Sandbox("s", "/c/y"))}, "sandbox id s is there twice"),
    ],
)
def test_a_senseless_state_raises(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        render(replace(STATE, **change), FACTS, NAMES)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": "../etc"}, "an id has letters"),
        ({"vni": 1 << 24}, "is not between 1 and 16777215"),
        ({"subnets": ()}, "needs at least one subnet"),
        ({"subnets": ("10.0.0.1/24",)}, "not a subnet"),
        ({"lb_address": "10.1.0.2"}, "10.1.0.2 is in none of the subnets 10.0.0.0/24"),
        ({"mtu": 100}, "mtu: 100 is too small"),
        ({"services": (VirtualService("10.0.0.2"),)}, "10.0.0.2 is already the LB address"),
        ({"services": (VirtualService("10.0.0.9"), VirtualService("10.0.0.9"))}, "services: VIP 10.0.0.9 is there twice"),
        ({"services": (VirtualService("10.0.0.9", (Backend("10.9.0.1"),)),)}, "backend of 10.0.0.9: 10.9.0.1 is in none"),
        ({"services": (VirtualService("10.0.0.9", (Backend("10.0.0.1", -1),)),)}, "weight -1 is negative"),
        ({"remote": (RemoteEndpoint("10.0.0.5", "x"),)}, "remote 10.0.0.5: vtep"),
        ({"local": (LocalEndpoint("a", "10.0.0.5", "/c/x"), LocalEndpoint("a", "10.0.0.6", "/c/y"))}, "endpoint id a is there twice"),
    ],
)
def test_a_wrong_network_is_reported_and_frozen_and_its_sibling_rendered(change: dict[str, Any], sentence: str) -> None:
    sibling = replace(NETWORK, id="m", vni=6)
    wrong = replace(NETWORK, **change)
    rendered = render(replace(STATE, networks=(wrong, sibling)), FACTS, NAMES)
    assert sentence in str(rendered.errors[f"network:{wrong.id}"])
    # and with it the containers in it
    assert rendered.frozen == {f"mesh-{wrong.id}", *(e.netns for e in wrong.local)}
    assert rendered.tables.keys() == {"mesh-m", HOST}


def test_containers_that_are_gone_or_are_the_host_are_reported_alone() -> None:
    network = replace(NETWORK, local=tuple(LocalEndpoint(n, f"10.0.0.{i}", f"/c/{n}") for i, n in enumerate(("x", "gone", "host"), 10)))
    state = replace(STATE, networks=(network,), sandboxes=(Sandbox("x", "/c/x"), Sandbox("gone", "/c/gone"), Sandbox("host", "/c/host")))
    rendered = render(state, FACTS, NAMES)
    assert rendered.errors.keys() == {"endpoint:n/gone", "endpoint:n/host", "sandbox:gone", "sandbox:host"}
    assert isinstance(rendered.errors["sandbox:gone"], NamespaceGone)
    assert "the node's own network namespace" in str(rendered.errors["endpoint:n/host"])
    assert len(rendered.tables["mesh-n"].attachments) == len(rendered.tables[HOST].attachments) == 1


def test_mtu_leaves_room_for_the_tunnel() -> None:
    assert render(STATE, FACTS, NAMES).tables["mesh-n"].tunnel.mtu == 1450  # type: ignore[union-attr]
    six = replace(STATE, underlay="fd00::1")
    assert render(six, FACTS, NAMES).tables["mesh-n"].tunnel.mtu == 1430  # type: ignore[union-attr]


def test_an_endpoint_that_is_here_is_not_behind_a_tunnel() -> None:
    network = replace(NETWORK, local=(LocalEndpoint("x", "10.0.0.5", "/c/x"),), remote=(RemoteEndpoint("10.0.0.5", "192.0.2.2"),))
    table = render(replace(STATE, networks=(network,)), FACTS, NAMES).tables["mesh-n"]
    assert table.tunnels == {} and table.neighbours == {}


def test_order_of_the_state_never_matters() -> None:
    services = tuple(VirtualService(f"10.0.0.{100 + i}", tuple(Backend(f"10.0.0.{k}") for k in range(10, 10 + i))) for i in range(5))
    remote = tuple(RemoteEndpoint(f"10.0.0.{k}", "192.0.2.2") for k in range(10, 15))
    forward = replace(STATE, networks=(replace(NETWORK, services=services, remote=remote),))
    backward = tuple(replace(s, backends=s.backends[::-1]) for s in services[::-1])
    reverse = replace(STATE, networks=(replace(NETWORK, services=backward, remote=remote[::-1]),))
    assert render(forward, FACTS, NAMES).tables == render(reverse, FACTS, NAMES).tables


def test_prefix_is_checked() -> None:
    for bad in ("", "Mesh", "mesh-a", "averylongprefix", "1a"):
        with pytest.raises(ConfigError):
            Names(bad)


@given(st.dictionaries(st.sampled_from([f"10.0.0.{i}" for i in range(1, 100)]), st.integers(0, 1000), max_size=99))
def test_slots_give_every_weighted_backend_its_share(weights: dict[str, int]) -> None:
    drawn = slots(Backend(a, w) for a, w in weights.items())
    positive = {a for a, w in weights.items() if w}
    assert set(drawn) == positive
    assert len(drawn) <= max(MAX_WEIGHTED_SLOTS, len(positive)) + len(positive)
    for a in positive:
        for b in positive:
            if weights[a] >= weights[b]:
                assert drawn.count(a) >= drawn.count(b)


def test_slots_of_equal_weights_are_one_each() -> None:
    assert slots([Backend("10.0.0.2", 7), Backend("10.0.0.1", 7), Backend("10.0.0.3", 0)]) == ("10.0.0.1", "10.0.0.2")
    assert slots([Backend("10.0.0.1", 2), Backend("10.0.0.2", 4)]) == ("10.0.0.1", "10.0.0.2", "10.0.0.2")


@given(
    st.sets(st.text("abc", min_size=1, max_size=4), max_size=12),
    st.dictionaries(st.text("abc", min_size=1), st.sampled_from([f"10.0.0.{i}" for i in range(16)])),
)
def test_gateways_are_unique_and_stay(names: set[str], present: dict[str, str]) -> None:
    chosen = addr.assign_gateways("10.0.0.0/28", names, present)
    assert chosen.keys() == names and len(set(chosen.values())) == len(names)
    assert not set(chosen.values()) & {"10.0.0.0", "10.0.0.1", "10.0.0.15"}
    assert addr.assign_gateways("10.0.0.0/28", names, chosen) == chosen
    smaller = set(list(names)[::2])
    assert addr.assign_gateways("10.0.0.0/28", smaller, chosen) == {n: chosen[n] for n in smaller}


def test_a_full_gateway_subnet_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="has no free address for 14 containers"):
        addr.assign_gateways("10.0.0.0/28", [str(i) for i in range(14)], {})


@given(st.ip_addresses(v=4))
def test_the_end_here_tells_the_address_there(address: object) -> None:
    assert addr.address_of_gateway_port(addr.gateway_port_mac(str(address))) == str(address)
    assert addr.address_of_gateway_port(addr.mac(str(address))) is None
    assert addr.mac(str(address)).startswith("02:42:")


def test_ipvs_render() -> None:
    """The direct service of each VIP and port and, where masquerading may be needed, its twin."""
    network = Network(
        "n",
        5,
        ("10.0.0.0/24",),
        "10.0.0.2",
        ingress=True,
        local=(LocalEndpoint("x", "10.0.0.9", "/c/x"),),
        services=(
            VirtualService("10.0.0.100", (Backend("10.0.0.9"), Backend("10.0.0.8", 0)), affinity_s=60),
            VirtualService("10.0.0.101"),
            VirtualService("10.0.0.102", (Backend("10.0.0.8"),), "mh"),
        ),
    )
    published = (
        PublishedPort("udp", 53, 5353, (Backend("10.0.0.9"),)),
        PublishedPort("tcp", 81, 81),
        PublishedPort("tcp", 82, 82, (Backend("10.0.0.9"),), source_nat=True),
    )
    rendered = render_network(network, NodeState("192.0.2.1", published=published, balancer="ipvs"), FACTS, {}).table
    vip, empty, remote = (vip_mark(f"10.0.0.{n}") for n in (100, 101, 102))
    udp, unserved, translated = port_mark(17, 53), port_mark(6, 81), port_mark(6, 82)
    twins = {mark | MASQUERADED for mark in (vip, udp, unserved, translated)}
    assert rendered.ipvs.keys() == {vip, empty, remote, udp, unserved, *twins}
    assert rendered.ipvs[vip].destinations == {IpvsDestination("10.0.0.9", 0, 1), IpvsDestination("10.0.0.8", 0, 0)}
    assert rendered.ipvs[vip].timeout_s == 60 and rendered.ipvs[remote].scheduler == "mh"
    assert rendered.ipvs[udp].destinations == {IpvsDestination("10.0.0.9", 0, 1)}
    assert rendered.ipvs[udp | MASQUERADED].destinations == {IpvsDestination("10.0.0.9", 5353, 1, masqueraded=True)}
    table = rendered.nft
    assert table is not None
    # nobody serves it: no mark, the namespace refuses by itself
    assert table.maps["vip_marks4"].elements == {"10.0.0.100": str(vip), "10.0.0.102": str(remote)}
    assert table.maps["self_marks4"].elements == {"10.0.0.9 . 10.0.0.100": str(vip | MASQUERADED)}
    assert table.maps["port_marks"].elements == {"17 . 53": str(udp), "6 . 82": str(translated | MASQUERADED)}


def test_a_backend_that_comes_here_may_call_itself() -> None:
    service = VirtualService("10.0.0.100", (Backend("10.0.0.9"),))
    there = replace(NETWORK, remote=(RemoteEndpoint("10.0.0.9", "192.0.2.2"),), services=(service,))
    here = replace(there, remote=(), local=(LocalEndpoint("x", "10.0.0.9", "/c/x"),))
    state = replace(STATE, balancer="ipvs")
    before = render_network(there, state, FACTS, {})
    moved = render_network(here, state, FACTS, {}, before)
    assert len(before.table.ipvs) == 1 and len(moved.table.ipvs) == 2
    assert moved.table == render_network(here, state, FACTS, {}).table
    assert render_network(there, state, FACTS, {}, moved).table == before.table


def test_a_container_takes_what_is_sent_to_it_by_its_frame() -> None:
    ingress = Network(
        "i",
        6,
        ("10.1.0.0/16",),
        "10.1.0.2",
        ingress=True,
        local=(LocalEndpoint("x", "10.1.0.9", "/c/x"),),
        remote=(RemoteEndpoint("10.1.0.3", "192.0.2.2", balancer=True), RemoteEndpoint("10.1.0.8", "192.0.2.2")),
    )
    own = replace(
        NETWORK,
        subnets=("10.0.0.0/24", "fd00::/64"),
        local=(LocalEndpoint("x", "10.0.0.9", "/c/x"), LocalEndpoint("x-1", "fd00::9", "/c/x")),
    )
    published = (PublishedPort("udp", 53, 5353, (Backend("10.1.0.9"),)), PublishedPort("tcp", 81, 80, (Backend("10.1.0.8"),)))
    rendered = render(replace(STATE, networks=(own, ingress), published=published), FACTS, NAMES)
    table = rendered.tables["/c/x"]
    assert table.netns_id == 10 and table.nft is not None
    services = "meta l4proto { 6, 17, 132 }"
    ports = "meta l4proto . th dport map @ports"
    first, second, third = (f"ether daddr {addr.mac(a)}" for a in ("10.0.0.9", "10.1.0.9", "fd00::9"))
    assert [r.text for r in table.nft.chains["prerouting"].rules] == [
        f"{first} ip daddr {{ 10.0.0.0/24 }} ip daddr != 10.0.0.9 {services} dnat ip to 10.0.0.9",
        f"{second} ip daddr {{ 10.1.0.0/16 }} ip daddr != 10.1.0.9 dnat ip addr . port to {ports}",
        f"{second} ip daddr {{ 10.1.0.0/16 }} ip daddr != 10.1.0.9 {services} dnat ip to 10.1.0.9",
        f"{third} ip6 daddr {{ fd00::/64 }} ip6 daddr != fd00::9 {services} dnat ip6 to fd00::9",
    ]
    assert table.nft.maps["ports"].elements == {"17 . 53": "10.1.0.9 . 5353"}
    assert table.policies == {Policy(89, source="10.1.0.9"), Policy(90), Policy(95, udp_port=5353)}
    frames = rendered.tables["mesh-i"].frames
    assert frames is not None and frames.maps["nodes"].elements == {"10.1.0.3": "02:42:0a:01:00:03"}
    (link,) = rendered.tables["mesh-i"].attachments.values()
    assert link.reply_via == "10.1.0.2"


def test_ipvs_marks_that_collide_are_a_sentence() -> None:
    network = Network("n", 5, ("fd00::/64",), "fd00::2", services=(VirtualService("fd00::4691"), VirtualService("fd00::2cc7")))
    with pytest.raises(ConfigError, match="firewall mark"):
        render_network(network, NodeState("192.0.2.1", balancer="ipvs"), FACTS, {})
