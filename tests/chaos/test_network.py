"""What the switch does while faults last."""

from __future__ import annotations

from .network import Network, rules
from .schedule import Fault

ADDRESSES = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}


def test_a_partition_cuts_both_ways_and_a_one_way_cut_one() -> None:
    both = Network.of({Fault(1, 0, 1, "partition", ("a",)): ("a",)}, ADDRESSES)
    assert both.cut == {("a", "10.0.0.2"), ("a", "10.0.0.3"), ("b", "10.0.0.1"), ("c", "10.0.0.1")}
    one = Network.of({Fault(1, 0, 1, "one_way", ("leader", "b")): ("a", "b")}, ADDRESSES)
    assert one.cut == {("a", "10.0.0.2")}


def test_of_several_the_worst_counts() -> None:
    faults = [
        Fault(1, at, 1, kind, ("a",), amount=amount)
        for at, kind, amount in ((0, "loss", 0.1), (1, "loss", 0.3), (2, "slow_link", 9.0), (3, "slow_link", 4.0))
    ]  # type: ignore[arg-type]
    network = Network.of(dict.fromkeys(faults, ("a",)), ADDRESSES)
    assert (network.cut, network.loss, network.bits_a_second) == (set(), {"a": 0.3}, {"a": 4.0})


def test_rules_replace_the_whole_table_and_name_only_ports_that_are_there() -> None:
    network = Network({("a", "10.0.0.2"), ("c", "10.0.0.1")}, {"a": 0.3})
    assert rules(network, {"a": "n1", "b": "n2"}) == (
        "table netdev chaos {}\n"
        "delete table netdev chaos\n"
        "table netdev chaos {\n"
        '  chain n1 { type filter hook ingress device "n1" priority 0;\n'
        "    ip daddr 10.0.0.2 drop\n"
        "    numgen random mod 100 < 30 drop\n"
        "  }\n"
        "}\n"
    )
