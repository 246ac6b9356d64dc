"""The bed of two hosts and their containers, one a module of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mesh.bed import Bed
from tests.mesh.pair import ADDRESSES


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    bed = Bed()
    try:
        for name in ADDRESSES:
            if name[0] in bed.hosts:
                bed.container(name)
        yield bed
    finally:
        bed.close()
