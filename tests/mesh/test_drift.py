"""What differs, object by object: nothing between equal tables, something between any others, and by its name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.drift import Difference, differences
from mesh.model import Backend, Balancer, Network, NodeState, RemoteEndpoint, VirtualService
from mesh.nft import rules, script
from mesh.table import NamespaceTable, NftMap, NftTable, Tables
from tests.mesh.test_interruption import settled, states
from tests.mesh.test_plan import tables

NETWORK = Network(
    "n",
    5,
    ("10.0.0.0/24",),
    "10.0.0.2",
    remote=(RemoteEndpoint("10.0.0.10", "192.0.2.2"),),
    services=(VirtualService("10.0.0.100", (Backend("10.0.0.10"),)),),
)
TABLES = tables(NodeState("192.0.2.1", (NETWORK,)))


@pytest.mark.parametrize("balancer", ["nftables", "ipvs"])
def test_equal_tables_have_none_and_others_some(balancer: Balancer) -> None:
    universe = [found for found, _ in states(balancer)]
    for expected in universe:
        for actual in universe:
            assert bool(differences(settled(expected), settled(actual))) is (settled(expected) != settled(actual))


def changed(**fields: object) -> Tables:
    return {**TABLES, "mesh-n": replace(TABLES["mesh-n"], **fields)}  # type: ignore[arg-type]


def nft(**fields: object) -> Tables:
    table = TABLES["mesh-n"].nft
    assert table is not None
    return changed(nft=replace(table, **fields))  # type: ignore[arg-type]


def elements(name: str, rows: dict[str, str]) -> Tables:
    table = TABLES["mesh-n"].nft
    assert isinstance(table, NftTable)
    old = table.maps[name]
    return nft(maps={**table.maps, name: NftMap(old.key_type, old.value_type, rows)})


@pytest.mark.parametrize(
    ("actual", "found"),
    [
        ({k: v for k, v in TABLES.items() if k != "mesh-n"}, ["mesh-n: namespace is missing"]),
        ({**TABLES, "mesh-x": NamespaceTable()}, ["mesh-x: namespace is not ours"]),
        (changed(bridge=None), ["mesh-n: bridge br0 is missing"]),
        (changed(tunnel=replace(TABLES["mesh-n"].tunnel, up=False)), ["mesh-n: tunnel device is altered"]),  # type: ignore[type-var]
        (changed(addresses=frozenset({"10.0.0.2/24"})), ["mesh-n: address 10.0.0.100/32 is missing"]),
        (changed(tunnels={"02:42:0a:00:00:0a": "192.0.2.9"}), ["mesh-n: forwarding row 02:42:0a:00:00:0a is altered"]),
        (changed(neighbours={}), ["mesh-n: neighbour 10.0.0.10 is missing"]),
        (changed(sysctls={**TABLES["mesh-n"].sysctls, "net.ipv4.ip_forward": "0"}), ["mesh-n: sysctl net.ipv4.ip_forward is altered"]),
        (changed(sysctls={**TABLES["mesh-n"].sysctls, "another": "0"}), []),
        (changed(nft=None), ["mesh-n: nft table meshd is missing"]),
        (nft(dormant=True), ["mesh-n: nft table meshd is altered"]),
        (elements("vips4", {}), ["mesh-n: element of vips4: 10.0.0.100 is missing"]),
        (elements("backends4", {"10.0.0.100 . 0": "10.0.0.66"}), ["mesh-n: element of backends4: 10.0.0.100 . 0 is altered"]),
        (elements("vips4", {"10.0.0.100": "goto vip4-1", "10.0.0.9": "goto vip4-1"}), ["mesh-n: element of vips4: 10.0.0.9 is not ours"]),
    ],
)
def test_each_is_named(actual: Tables, found: list[str]) -> None:
    assert [str(one) for one in differences(TABLES, actual)] == found


def test_a_changed_rule_is_its_chains_and_a_switched_off_table_is_made_anew() -> None:
    table = TABLES["mesh-n"].nft
    assert table is not None
    chains = {**table.chains, "prerouting": replace(table.chains["prerouting"], rules=rules("accept"))}
    assert differences(TABLES, nft(chains=chains)) == [Difference("mesh-n", "nft chain", "prerouting", "altered")]
    assert "delete table inet meshd" in script(table, replace(table, dormant=True))
