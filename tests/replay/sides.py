"""Real Engines and nodes of a mesh, each in a namespace of its own; none of them in a cluster yet.

Edge: starts and ends labs.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from orchestrator.lab import processes
from orchestrator.lab.lab import Lab, Node


@contextmanager
def engine_and_mesh(directory: Path) -> Iterator[tuple[Node, Node]]:
    """One node a side."""
    with engines_and_mesh(directory, 1) as (engines, mesh):
        yield engines.nodes[0], mesh.nodes[0]


@contextmanager
def engines_and_mesh(directory: Path, nodes: int) -> Iterator[tuple[Lab, Lab]]:
    engines = Lab(directory / "engine", "198.18.10.0/24", live_restore=False)
    mesh = Lab(directory / "mesh", "198.18.11.0/24")
    try:
        with ThreadPoolExecutor() as pool:
            for booting in [pool.submit(engines.up, nodes, meshd=False), pool.submit(mesh.up, nodes, cluster=False)]:
                booting.result()
        yield engines, mesh
    finally:
        for lab in (engines, mesh):
            lab.down()
            assert processes.marked(lab.layout.marker) == []
