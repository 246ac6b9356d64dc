"""Listening ports as /proc shows them, and the rule made of them."""

from __future__ import annotations

import socket

import pytest

from orchestrator.agent.agent import listening
from orchestrator.agent.readiness import PortRule, listening_ports, port_rule
from orchestrator.model import PortConfig

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(local: str, state: str = "0A") -> str:
    return f"   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n"


@pytest.mark.parametrize(
    ("line", "ports"),
    [
        (row("00000000:0050"), {80}),
        (row("0100000A:1F90"), {8080}),
        (row("0100007F:0050"), set()),
        (row("0B00007F:9C41"), set()),
        (row("00000000:0050", "01"), set()),
        (row("00000000000000000000000000000000:0050"), {80}),
        (row("00000000000000000000000001000000:0050"), set()),
        (row("0000000000000000FFFF00000100007F:0050"), set()),
        (row("0000000000000000FFFF00000100000A:0050"), {80}),
        ("", set()),
        ("garbage\n", set()),
    ],
)
def test_one_line(line: str, ports: set[int]) -> None:
    assert listening_ports(HEAD + line) == ports


def test_against_the_kernel() -> None:
    import os

    with socket.socket() as open_, socket.socket(socket.AF_INET6) as open6, socket.socket() as local:
        for one, address in ((open_, "0.0.0.0"), (open6, "::"), (local, "127.0.0.1")):
            one.bind((address, 0))
            one.listen()
        found = listening(os.getpid())
        assert {open_.getsockname()[1], open6.getsockname()[1]} <= found
        assert local.getsockname()[1] not in found
    assert listening(2**22 + 1) == frozenset()


@pytest.mark.parametrize(
    ("published", "exposed", "now", "met"),
    [
        ([], [], set(), True),
        ([], [80, 443], set(), False),
        ([], [80, 443], {443}, True),
        ([], [80], {81}, False),
        ([80, 81], [], {80}, False),
        ([80, 81], [], {80, 81, 9}, True),
        ([80], [443], {443}, False),
        ([80], [443], {80}, True),
    ],
)
def test_rule(published: list[int], exposed: list[int], now: set[int], met: bool) -> None:
    rule = port_rule([PortConfig(target_port=port) for port in published], exposed)
    assert rule.met_by(frozenset(now)) is met


def test_udp_has_no_listen() -> None:
    assert port_rule([PortConfig(protocol="udp", target_port=53)], []) == PortRule()


def test_exposed_ports_are_only_a_hint_if_another_command_runs() -> None:
    published = [PortConfig(target_port=80)]
    assert port_rule([], [80]).bound_s == port_rule(published, [80], own_command=False).bound_s == 30
    assert port_rule([], [80], own_command=False).bound_s == 2
