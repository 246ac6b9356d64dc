"""A cluster's containers, images and volumes are worked with as those of one Engine are: by the stock docker CLI, docker-py and requests.

By `make replay`: all scenarios with every CLI; with QUICK=1 some of them with Debian's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.replay.clis import DEBIANS_CLI, clis
from tests.replay.container_differences import ACCEPTED
from tests.replay.play import complaints
from tests.replay.players import Side
from tests.replay.scenarios import CONTAINERS
from tests.replay.sides import engine_and_cluster, side

_ALL = os.environ.get("REPLAY") == "1"
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("REPLAY" not in os.environ, reason="run by `make replay`: wants a machine that has time for it"),
]

_NODES = 3
_VALUES = {"image": "meshd/demo:v1", "image2": "meshd/demo:v2"}


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[Side, Side]]:
    with tempfile.TemporaryDirectory(prefix="replay-") as name:
        directory = Path(name)
        with engine_and_cluster(directory, _NODES) as (engine, cluster):
            yield (
                side("engine", {engine: engine.layout.engine_socket}, _VALUES, directory),
                side("mesh", {node: node.layout.meshd_socket for node in cluster.nodes}, _VALUES, directory),
            )


def test_a_cluster_answers_as_one_engine_does(sides: tuple[Side, Side]) -> None:
    order = [scenario for scenario in CONTAINERS if _ALL or scenario.quick]
    told = complaints(*sides, clis() if _ALL else [DEBIANS_CLI], order, ACCEPTED, whole=_ALL)
    assert not told, "\n".join(told)
