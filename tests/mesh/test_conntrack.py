"""Connections that the running kernel tracks: kinds of them, and forgetting some."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mesh.linux import conntrack
from mesh.linux.namespace import inside
from tests.mesh.bed import sh

pytestmark = pytest.mark.root


@pytest.fixture
def space() -> Iterator[str]:
    name = f"ct{os.getpid()}"
    sh(f"ip netns add {name} && ip -n {name} link set lo up && ip -n {name} addr add 10.0.0.9/32 dev lo")
    sh(f"ip netns exec {name} nft 'add table inet t; add chain inet t c {{ type filter hook output priority 0; }}'")
    sh(f"ip netns exec {name} nft add rule inet t c ct state new counter")
    try:
        with inside(f"/run/netns/{name}"):
            yield name
    finally:
        sh(f"ip netns del {name}")


def ask(address: str, port: int, times: int) -> None:
    """As many connections: each from a port of its own."""
    for number in range(times):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind(("", 20000 + number))
            s.sendto(b"?", (address, port))


def kind(c: conntrack.Connection) -> tuple[object, ...]:
    return c.protocol, c.destination, c.port, c.answerer, c.translated


def test_thousands_of_connections_are_a_few_kinds(space: str) -> None:
    for address, port in (("127.0.0.1", 53), ("127.0.0.1", 54), ("10.0.0.9", 53), ("::1", 53)):
        ask(address, port, 40)
    every, kinds = conntrack.connections(), conntrack.kinds()
    assert len({(c.destination, c.key) for c in every}) == len(every) >= 160
    assert {kind(c) for c in kinds} == {kind(c) for c in every}
    # IPv4 at most twice each, answered (by a refusal) or not
    assert len([c for c in kinds if c.destination != "::1"]) <= 6


def test_only_what_matches_is_forgotten(space: str) -> None:
    for address in ("127.0.0.1", "10.0.0.9", "::1"):
        ask(address, 53, 5)
    assert len(conntrack._dump(False, "10.0.0.9")) == 5
    assert conntrack.forget(lambda c: c.destination == "10.0.0.9", answerers={"10.0.0.9"}) == 5
    assert conntrack.forget(lambda c: c.destination == "::1", answerers={"::1", "10.0.0.9"}) == 5
    assert {c.destination for c in conntrack.connections()} == {"127.0.0.1"}
    # the word of the caller counts, the answerers are only a hint
    assert conntrack.forget(lambda c: False, answerers={"127.0.0.1"}) == 0
    assert conntrack.forget(lambda c: c.port == 53) == 5


def test_nothing_of_this_process_stays_in_a_namespace_that_was_looked_into() -> None:
    """A thread that began there would keep it alive after its name is gone."""
    program = """
import os, sys
from mesh.linux import conntrack, netlink
from mesh.linux.namespace import inside
with inside(sys.argv[1]):
    conntrack.kinds()
netlink._CLOSING.submit(int).result()
threads = os.listdir("/proc/self/task")
there = os.stat(sys.argv[1]).st_ino
print(len(threads), [t for t in threads if os.stat(f"/proc/self/task/{t}/ns/net").st_ino == there])
"""
    name = f"ct{os.getpid()}t"
    sh(f"ip netns add {name}")
    try:
        done = subprocess.run([sys.executable, "-c", program, f"/run/netns/{name}"], capture_output=True, text=True, check=True)
    finally:
        sh(f"ip netns del {name}")
    assert done.stdout == "2 []\n"
