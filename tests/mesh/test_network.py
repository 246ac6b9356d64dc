"""What was rendered before only saves work: from any state to any other, the tables are those of a fresh process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError, MeshError
from mesh.facts import Facts
from mesh.model import Backend, Balancer, IpvsScheduler, LocalEndpoint, Network, NodeState, PublishedPort, RemoteEndpoint, VirtualService
from mesh.network import RenderedNetwork, render_network
from mesh.nft import script
from mesh.plan import plan
from mesh.table import NamespaceTable

FACTS = Facts(underlay_mtu=1500, host_id=1, netns={"/c/x": 10, "/c/y": 11, "/c/gone": None})
X, Y = "10.0.0.10", "10.0.0.11"


def variants(balancer: Balancer) -> list[tuple[Network, NodeState]]:
    """x here, away, both or neither; a VIP with any kind of backends; a published port or none; things the frame depends on."""
    plain = Network("n", 5, ("10.0.0.0/24", "fd00::/64"), "10.0.0.2", ingress=True)
    here: list[tuple[LocalEndpoint, ...]] = [(), (LocalEndpoint("x", X, "/c/x"),), (LocalEndpoint("x", X, "/c/gone"),)]
    away: list[tuple[RemoteEndpoint, ...]] = [(), (RemoteEndpoint(X, "192.0.2.2"), RemoteEndpoint(Y, "192.0.2.3"))]
    services: list[tuple[VirtualService, ...]] = [
        (),
        (VirtualService("10.0.0.100", (Backend(X),)),),
        (VirtualService("10.0.0.100", (Backend(X, 0), Backend(Y)), "sh"), VirtualService("10.0.0.101", (Backend(Y),), "sh")),
        (VirtualService("fd00::100", tuple(Backend(f"fd00::{i}") for i in range(10, 30))),),
    ]
    ports: list[tuple[PublishedPort, ...]] = [(), (PublishedPort("udp", 53, 53, (Backend(X),)),)]
    found = [
        (replace(plain, local=local, remote=remote, services=vips), NodeState("192.0.2.1", published=published, balancer=balancer))
        for local, remote, vips, published in product(here, away, services, ports)
    ]
    for change in ({"vni": 6}, {"lb_address": "10.0.0.3"}, {"mtu": 1300}, {"services": (VirtualService(X),)}):
        found.append((replace(found[3][0], **change), found[3][1]))  # type: ignore[arg-type]
    return found


def rendered(network: Network, state: NodeState, before: RenderedNetwork | None = None) -> tuple[RenderedNetwork | str, dict[str, str]]:
    errors: dict[str, MeshError] = {}
    try:
        return render_network(network, state, FACTS, errors, before), {}
    except ConfigError as error:
        return str(error), {}


def differing(a: NamespaceTable, b: NamespaceTable) -> Iterable[str]:
    return (name for name in NamespaceTable.__dataclass_fields__ if getattr(a, name) != getattr(b, name))


@pytest.mark.parametrize("balancer", ["nftables", "ipvs"])
def test_every_step_between_two_states_ends_in_the_same_tables(balancer: Balancer) -> None:
    states = variants(balancer)
    assert len(states) == 52
    for first, second in product(states, states):
        before, _ = rendered(*first)
        assert isinstance(before, RenderedNetwork)
        kept = before.table
        after, fresh = rendered(*second, before)[0], rendered(*second)[0]
        assert isinstance(after, RenderedNetwork) and isinstance(fresh, RenderedNetwork)
        assert after.assembly == fresh.assembly, list(differing(after.table, fresh.table))
        # and so are the operations, whether the tables know each other or not
        assert plan({"n": after.table}, {"n": kept}) == plan({"n": fresh.table}, {"n": kept})
        assert script(after.table.nft, kept.nft) == script(fresh.table.nft, kept.nft)
        # the former version is what it was
        assert kept == rendered(*first)[0].table  # type: ignore[union-attr]


def service(vip: int, weights: dict[int, int], scheduler: IpvsScheduler) -> VirtualService:
    return VirtualService(f"10.0.1.{vip}", tuple(Backend(f"10.0.0.{a}", w) for a, w in weights.items()), scheduler)


SCHEDULERS: tuple[IpvsScheduler, ...] = ("rr", "sh")
WEIGHTS = st.dictionaries(st.integers(10, 40), st.integers(0, 3), max_size=20)
MEMBER = st.builds(service, st.integers(1, 6), WEIGHTS, st.sampled_from(SCHEDULERS))


@given(st.lists(st.lists(MEMBER, max_size=6, unique_by=lambda s: s.vip), min_size=2, max_size=5), st.sampled_from(["nftables", "ipvs"]))
def test_any_walk(walk: list[list[VirtualService]], balancer: Balancer) -> None:
    before: RenderedNetwork | None = None
    state = NodeState("192.0.2.1", balancer=balancer)
    for services in walk:
        network = Network("n", 5, ("10.0.0.0/16",), "10.0.2.2", services=tuple(services))
        before = render_network(network, state, FACTS, {}, before)
        assert before.assembly == render_network(network, state, FACTS, {}).assembly


def test_an_unchanged_network_keeps_its_very_tables() -> None:
    network, state = variants("nftables")[11]
    before = render_network(network, state, FACTS, {})
    again = render_network(replace(network), state, FACTS, {}, before)
    assert again.table is before.table


def test_a_member_that_is_wrong_leaves_no_trace() -> None:
    network, state = variants("nftables")[11]
    before = render_network(network, state, FACTS, {})
    wrong = replace(network, services=(*network.services, VirtualService("10.0.0.77", (Backend("10.9.0.1"),))))
    with pytest.raises(ConfigError, match=r"backend of 10\.0\.0\.77: 10\.9\.0\.1 is in none of the subnets"):
        render_network(wrong, state, FACTS, {}, before)
    assert before.assembly == render_network(network, state, FACTS, {}).assembly
