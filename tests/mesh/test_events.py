"""Which of the kernel's events are about us."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from mesh.linux.events import Events
from mesh.linux.namespace import inside
from tests.mesh.bed import sh

pytestmark = pytest.mark.root

OURS_THERE = {
    "link": "ip -n {n} link add name br0 type bridge",
    "address": "ip -n {n} addr add 10.0.0.9/32 dev lo",
    "static row": "ip -n {n} neigh add 10.0.0.7 lladdr 02:00:00:00:00:01 dev br0 nud permanent",
    "nft": "ip netns exec {n} nft add table inet meshd",
    "element": "ip netns exec {n} nft 'add map inet meshd m {{ type mark : mark; }}; add element inet meshd m {{ 1 : 2 }}'",
    "in the host's namespace": "ip -n {h} link add name mesh-gw type bridge",
    "namespace": "ip netns del {n}",
}
OTHERS = (
    "ip -n {h} link add name theirs type bridge && ip -n {h} addr add 10.0.0.1/32 dev theirs && ip -n {h} link del theirs",
    "ip netns exec {h} nft add table inet theirs && ip netns exec {h} nft delete table inet theirs",
    "ip -n {u} link add name br0 type bridge && ip netns exec {u} nft add table inet theirs",
    "ip -n {n} neigh add 10.0.0.8 lladdr 02:00:00:00:00:02 dev br0 nud reachable",
)


@pytest.fixture
def spaces() -> Iterator[dict[str, str]]:
    names = {key: f"e{os.getpid()}{key}" for key in "hnu"}
    for name in names.values():
        sh(f"ip netns add {name} && ip -n {name} link set lo up")
    try:
        yield names
    finally:
        for name in names.values():
            sh(f"ip netns del {name}", check=False)


def test_only_what_is_ours_is_heard(spaces: dict[str, str]) -> None:
    with inside(f"/run/netns/{spaces['h']}"):
        events = Events("meshd_x", "meshd", ("mesh-gw", "mg-"))
        events.follow([f"/run/netns/{spaces['n']}", "/run/netns/gone"])
    try:
        assert not events.drain()
        for what, command in OURS_THERE.items():
            if what == "nft":
                for foreign in OTHERS:
                    sh(foreign.format(**spaces))
                    assert not events.drain(), foreign
            sh(command.format(**spaces))
            # a namespace is taken apart in the background
            deadline = time.monotonic() + 10
            while not events.drain():
                assert time.monotonic() < deadline, what
                time.sleep(0.02)
    finally:
        events.close()
