"""Whom to ask about what: an asker's own word, its networks', and domains with servers of their own."""

from __future__ import annotations

from itertools import permutations, product

import pytest

from dnsd import RouteSpec, ScopeSpec, ZoneSpec
from dnsd.names import labels_of, name_of
from dnsd.policy import Policy, policy_of

ONE, TWO, THREE = ("192.0.2.1", 53), ("192.0.2.2", 53), ("192.0.2.3", 5353)


def wire(text: str) -> bytes:
    name = name_of(text)
    assert name is not None
    return name


def zone(name: str, *upstreams: str, forward: bool = True, **routes: tuple[str, ...]) -> ZoneSpec:
    specs = tuple(RouteSpec(domain=domain.replace("_", "."), upstreams=servers) for domain, servers in routes.items())
    return ZoneSpec(network=name, name=name, forward=forward, upstreams=upstreams, routes=specs)


def scope(*upstreams: str, forward: bool = True) -> ScopeSpec:
    return ScopeSpec(id="s", netns="", upstreams=upstreams, forward=forward)


@pytest.mark.parametrize(
    ("asker", "zones", "upstreams"),
    [
        (scope(), (), None),
        (scope(), (zone("a"),), None),
        (scope(), (zone("a"), zone("b", "192.0.2.2"), zone("c", "192.0.2.1")), (TWO,)),
        (scope("192.0.2.1"), (zone("a", "192.0.2.2"),), (ONE,)),
        (scope("192.0.2.1", "192.0.2.3:5353", "192.0.2.1"), (), (ONE, THREE)),
        # Who was to be asked can't be: then nobody is, rather than somebody else.
        (scope("nonsense"), (zone("a", "192.0.2.2"),), ()),
        (scope(), (zone("a", "nonsense"), zone("b", "192.0.2.2")), ()),
        (scope(forward=False), (zone("a", "192.0.2.2"),), ()),
        (scope("192.0.2.1"), (zone("a"), zone("b", forward=False)), ()),
    ],
)
def test_upstreams(asker: ScopeSpec, zones: tuple[ZoneSpec, ...], upstreams: object) -> None:
    policy, problems = policy_of(asker, zones)
    assert policy.upstreams_of(wire("example.com")) == upstreams
    assert bool(problems) == ("nonsense" in repr((asker, zones)))


def test_the_longest_domain_wins_then_the_first_network() -> None:
    zones = (zone("a", corp=("192.0.2.1",), open=()), zone("b", "192.0.2.9", corp=("192.0.2.2",), eu_corp=("192.0.2.3:5353",)))
    policy, problems = policy_of(scope(), zones)
    assert problems == []
    for name, upstreams in {
        "corp": (ONE,),
        "x.corp": (ONE,),
        "eu.corp": (THREE,),
        "x.eu.corp": (THREE,),
        "xeu.corp": (ONE,),
        "corp.x": (("192.0.2.9", 53),),
        "open": None,
        "x.open": None,
    }.items():
        assert policy.upstreams_of(wire(name)) == upstreams, name
    # Without forwarding the routes remain, and nothing else.
    policy, _ = policy_of(scope(forward=False), zones)
    assert [policy.upstreams_of(wire(name)) for name in ("x.corp", "x.open", "corp.x")] == [(ONE,), None, ()]


def test_what_makes_no_sense_is_said_and_left_out() -> None:
    routes = (RouteSpec(domain="a..b", upstreams=("192.0.2.1",)), RouteSpec(domain="corp", upstreams=("x", "192.0.2.1")))
    policy, problems = policy_of(scope(), [ZoneSpec(network="n", name="net", routes=routes)])
    assert policy.routes == ((wire("corp"), (ONE,)),)
    assert problems[0] == "network 'net': route left out: 'a..b' can't be a domain"
    assert problems[1].startswith("network 'net': upstream left out: 'x' is no address")


def test_below_means_by_labels() -> None:
    """Every name of up to three labels of a small alphabet against every domain; also labels that hold the bytes of a name."""
    labels = ["a", "b", "\1a", "\1b"]
    names = [".".join(parts) for size in (1, 2, 3) for parts in product(labels, repeat=size)]
    for name, domain in product(names, names[:20]):
        policy = Policy(routes=((wire(domain), (ONE,)),))
        own, of = labels_of(wire(name)), labels_of(wire(domain))
        assert (policy.route_of(wire(name)) is not None) == (own[-len(of) :] == of), (name, domain)


def test_the_order_of_networks_decides_only_between_equals() -> None:
    zones = [zone("a", corp=("192.0.2.1",)), zone("b", lan=("192.0.2.2",)), zone("c", forward=False)]
    assert len({policy_of(scope(), order)[0] for order in permutations(zones)}) == 1
