"""A real Engine alone and a mesh's node with its own Engine, each in a namespace of its own; neither in a cluster yet.

Edge: starts and ends labs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.lab import processes
from orchestrator.lab.lab import Lab, Node


@contextmanager
def engine_and_mesh(directory: Path) -> Iterator[tuple[Node, Node]]:
    engine = Lab(directory / "engine", "198.18.10.0/24", live_restore=False)
    mesh = Lab(directory / "mesh", "198.18.11.0/24")
    try:
        engine.up(1, meshd=False)
        mesh.up(1, cluster=False)
        yield engine.nodes[0], mesh.nodes[0]
    finally:
        for lab in (engine, mesh):
            lab.down()
            assert processes.marked(lab.layout.marker) == []
