"""nft scripts: what they say, and that the kernel then holds what was meant."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from mesh.errors import KernelError
from mesh.host import frame_rules, host_rules
from mesh.linux import elements, nftables
from mesh.linux.namespace import inside
from mesh.linux.netlink import NETLINK_NETFILTER, Netlink
from mesh.nft import element_changes, hook, parse, rules, script
from mesh.table import NftChain, NftMap, NftTable
from tests.mesh.bed import sh
from tests.mesh.test_plan import universe


def small_tables() -> list[NftTable | None]:
    """Absent, and every combination of: two contents of a map, two kinds of it, absent; a chain led to or not; two rules; another hook."""
    found: list[NftTable | None] = [None]
    maps: list[dict[str, NftMap]] = [
        {},
        {"m": NftMap("ipv4_addr", "verdict", {"10.0.0.1": "goto a"})},
        {"m": NftMap("ipv4_addr", "verdict", {"10.0.0.1": "goto b", "10.0.0.2": "goto a"})},
        {"m": NftMap("ipv4_addr . mark", "ipv4_addr", {"10.0.0.1 . 7": "10.0.0.3"})},
    ]
    for m in maps:
        for hooked in (hook("nat", "prerouting", -100), hook("nat", "output", -100)):
            for body in (rules(), rules("accept"), rules("meta mark set 1", "accept")):
                chains = {"a": NftChain(), "b": NftChain(rules=body), "base": NftChain(hooked, body)}
                if not m:
                    del chains["a"]
                found.append(NftTable("meshd", m, chains))
    return found


def test_equal_tables_need_no_script() -> None:
    for table in small_tables():
        assert script(table, table) == ""


def test_adding_a_backend_is_one_statement_besides_the_table() -> None:
    before = NftTable(
        "t", {"m": NftMap("ipv4_addr . mark", "ipv4_addr", {f"10.0.{i >> 8}.{i & 255} . 0": "10.1.0.1" for i in range(3000)})}
    )
    after = NftTable("t", {"m": NftMap("ipv4_addr . mark", "ipv4_addr", {**before.maps["m"].elements, "10.9.0.1 . 0": "10.1.0.9"})})
    assert script(after, before) == "add table inet t\nadd element inet t m { 10.9.0.1 . 0 : 10.1.0.9 }\n"


def test_listings_that_are_none() -> None:
    for text in ("", "[]", '{"nftables": 3}', '{"nftables": [{"map": {}}]}'):
        with pytest.raises(KernelError, match="unexpected"):
            parse(text, "t")


@pytest.fixture
def space() -> Iterator[str]:
    name = f"nft{os.getpid()}"
    sh(f"ip netns add {name}")
    try:
        yield f"/run/netns/{name}"
    finally:
        sh(f"ip netns del {name}")


def actual(name: str, family: str = "inet") -> NftTable | None:
    with Netlink(NETLINK_NETFILTER) as netlink:
        return nftables.read_table(netlink, name, family)


@pytest.mark.root
def test_the_kernel_holds_what_was_meant(space: str) -> None:
    """A walk over pairs of small tables and over everything the renderer makes."""
    pairs = [(a, b) for a in small_tables() for b in small_tables()]
    walk = random.Random(1).sample(pairs, 60)
    host = host_rules("meshd", "mesh-gw", "mesh-in", "172.30.0.1", "172.30.0.0/16", {"6 . 80": "10.0.0.2"}, {"17 . 53": "172.30.0.9 . 53"})
    rendered = [t.nft for balancer in ("nftables", "ipvs") for state in universe(balancer)[-8:] for t in state.values()]
    with inside(space):
        held: NftTable | None = None
        for table in [t for pair in walk for t in pair] + [host, *rendered, None]:
            if table is not None and held is not None and table.name != held.name:
                continue
            if table is not held and (changes := element_changes(table, held)):
                assert table is not None
                elements.change("inet", "meshd", changes)
            elif text := script(table, held):
                nftables.load(text)
            held = actual("meshd")
            assert held == table
        frames = frame_rules("meshd")
        nftables.load(script(frames, None))
        assert actual("meshd", "bridge") == frames


@pytest.mark.root
def test_a_refused_script_says_why_and_changes_nothing(space: str) -> None:
    with inside(space):
        with pytest.raises(KernelError, match="load nft rules"):
            nftables.load("add table inet meshd\nadd chain inet meshd a\nadd rule inet meshd a nonsense\n")
        assert actual("meshd") is None
