"""The stock docker CLI, docker-py and bare requests find the same behind a mesh's socket as behind a real Engine's in swarm mode."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from orchestrator.lab.lab import LabError, Node
from tests import debian
from tests.replay import differences, scenarios
from tests.replay.differences import ACCEPTED
from tests.replay.play import play
from tests.replay.players import Side
from tests.replay.sides import engines_and_mesh

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("REPLAY") != "1", reason="run by `make replay`: wants a machine that has time for it"),
]

_NODES = 3
# Debian's package docker.io, whatever else is called docker here
_DEBIANS_CLI = Path("/usr/bin/docker")
_STACK = """
version: "3.8"
services:
  web:
    image: "meshd/demo:v1"
    ports: ["8095:80"]
    secrets: [s1]
    configs: [c1]
    deploy: {replicas: 0, labels: {a: b}, update_config: {monitor: 1s}}
secrets: {s1: {file: ./payload}}
configs: {c1: {file: ./payload}}
"""


@pytest.fixture(scope="module")
def clis() -> list[Path]:
    try:
        debian.fetch(["docker-cli"])
        return [_DEBIANS_CLI, debian.program("docker-cli", "usr/bin/docker")]
    except debian.Missing as error:
        warnings.warn(str(error), stacklevel=1)
        return [_DEBIANS_CLI]


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
                _side("engine", {node: node.layout.engine_socket for node in engines.nodes}, values),
                _side("mesh", {node: node.layout.meshd_socket for node in mesh.nodes}, values),
            )


def _side(name: str, sockets: Mapping[Node, Path], values: Mapping[str, str]) -> Side:
    (first, socket), *others = sockets.items()
    places = {"node": first.name, "address": first.address}
    for node, _ in others:
        places |= {f"node-{node.layout.index}": node.name, f"address-{node.layout.index}": node.address}
    return Side(name, socket, str(_DEBIANS_CLI), {**values, **places}, {node.name: there for node, there in others})


def test_a_mesh_answers_as_engines_in_swarm_mode_do(sides: tuple[Side, Side], clis: list[Path]) -> None:
    steps, told = [], []
    try:
        for step in play(*sides, clis, scenarios.ORDER):
            steps.append(step)
            told += [f"not accepted: {line}\n    $ {command}" for command, line in step.unexplained]
    except LabError as error:
        told.append(str(error))
    if not told:
        _, stale = differences.unexplained([found for step in steps for found in step.differences], ACCEPTED)
        told += [f"accepted, but not met: {entry.commands} | {entry.line}" for entry in stale]
    assert not told, "\n".join(told)
