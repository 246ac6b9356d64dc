"""The stock docker CLI, docker-py and bare requests find the same behind a mesh's socket as behind a real Engine's in swarm mode."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.replay import scenarios
from tests.replay.clis import clis
from tests.replay.differences import ACCEPTED
from tests.replay.play import complaints
from tests.replay.players import Side
from tests.replay.sides import engines_and_mesh, side

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("REPLAY") != "1", reason="run by `make replay`: wants a machine that has time for it"),
]

_NODES = 3
_STACK = """
version: "3.8"
services:
  web:
    image: "meshd/demo:v1"
    ports: ["8095:80"]
    secrets: [s1]
    configs: [c1]
    deploy: {replicas: 0, labels: {a: b}, update_config: {monitor: 1s}}
  there:
    image: "meshd/demo:v1"
    deploy: {placement: {constraints: [node.hostname==node-2]}, update_config: {monitor: 1s}}
secrets: {s1: {file: ./payload}}
configs: {c1: {file: ./payload}}
"""


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[Side, Side]]:
    with tempfile.TemporaryDirectory(prefix="replay-") as name:
        directory = Path(name)
        (directory / "payload").write_text("data")
        (directory / "stack.yml").write_text(_STACK)
        values = {
            "image": "meshd/demo:v1",
            "image2": "meshd/demo:v2",
            "nowhere": "node.labels.no==where",
            "stack": str(directory / "stack.yml"),
        }
        with engines_and_mesh(directory, _NODES) as (engines, mesh):
            yield (
                side("engine", {node: node.layout.engine_socket for node in engines.nodes}, values, directory),
                side("mesh", {node: node.layout.meshd_socket for node in mesh.nodes}, values, directory),
            )


def test_a_mesh_answers_as_engines_in_swarm_mode_do(sides: tuple[Side, Side]) -> None:
    told = complaints(*sides, clis(), scenarios.ORDER, ACCEPTED)
    assert not told, "\n".join(told)
