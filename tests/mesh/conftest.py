"""The bed of hosts and their containers: two, one bed a module of tests; in the virtual machine three, one bed for all, as it is slow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mesh.bed import Bed, sh
from tests.mesh.pair import ADDRESSES
from tests.vm.guest import is_guest


def _scope(fixture_name: str, config: pytest.Config) -> str:
    return "session" if is_guest() else "module"


@pytest.fixture(scope=_scope)
def bed() -> Iterator[Bed]:
    if is_guest():
        # as where a Docker Engine runs: bridged frames then pass the ip hooks, unless that is switched off
        sh("modprobe br_netfilter")
    bed = Bed("abc" if is_guest() else "ab")
    try:
        for name in ADDRESSES:
            if name[0] in bed.hosts:
                bed.container(name)
        yield bed
    finally:
        bed.close()
