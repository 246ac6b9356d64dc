"""The stock docker CLI, docker-py and bare requests find the same behind a mesh's socket as behind a real Engine's in swarm mode."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.replay import commands, differences, normalise
from tests.replay.differences import ACCEPTED
from tests.replay.players import Side
from tests.replay.sides import engine_and_mesh

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    # a busy machine may let the Engine's own swarm init time out, and then all that follows differs
    pytest.mark.skipif(os.environ.get("REPLAY") != "1", reason="run by `make replay`: wants a machine that has time for it"),
]

_STACK = """
version: "3.8"
services:
  web:
    image: "meshd/demo:v1"
    ports: ["8095:80"]
    secrets: [s1]
    configs: [c1]
    deploy: {replicas: 0, labels: {a: b}}
secrets: {s1: {file: ./payload}}
configs: {c1: {file: ./payload}}
"""


@pytest.fixture(scope="module")
def sides() -> Iterator[list[Side]]:
    program = shutil.which("docker")
    assert program is not None
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
        with engine_and_mesh(directory) as (engine, mesh):
            yield [
                Side(side, socket, program, {**values, "address": node.address, "node": node.name})
                for side, node, socket in (
                    ("engine", engine, engine.layout.engine_socket),
                    ("mesh", mesh, mesh.layout.meshd_socket),
                )
            ]


def test_a_mesh_answers_as_an_engine_in_swarm_mode_does(sides: list[Side]) -> None:
    scenarios = commands.SCENARIOS.values()
    with ThreadPoolExecutor() as pool:
        engine, mesh = pool.map(lambda side: [played for scenario in scenarios for played in side.play(scenario)], sides)
    found = [
        (one.line, line)
        for one, other in zip(engine, mesh, strict=True)
        if one.outcome is not None and other.outcome is not None
        for line in differences.between(normalise.lines(one.outcome, sides[0].names), normalise.lines(other.outcome, sides[1].names))
    ]
    left, stale = differences.unexplained(found, ACCEPTED)
    told = [f"not accepted: {line}\n    $ {command}" for command, line in left]
    told += [f"accepted, but not met: {entry.commands} | {entry.line}" for entry in stale]
    assert not told, "\n".join(told)
