"""Real Engines and nodes of a mesh, each in a namespace of its own; none of them in a cluster yet.

Edge: starts and ends labs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from orchestrator.lab import processes
from orchestrator.lab.lab import Lab, Node
from tests.replay.clis import DEBIANS_CLI
from tests.replay.players import Side


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
        _end(engines, mesh)


@contextmanager
def engine_and_cluster(directory: Path, nodes: int) -> Iterator[tuple[Node, Lab]]:
    """An Engine alone beside a mesh whose nodes are a cluster already."""
    engine = Lab(directory / "alone", "198.18.12.0/24")
    cluster = Lab(directory / "cluster", "198.18.13.0/24")
    try:
        with ThreadPoolExecutor() as pool:
            for booting in [pool.submit(engine.up, 1, meshd=False), pool.submit(cluster.up, nodes)]:
                booting.result()
        yield engine.nodes[0], cluster
    finally:
        _end(engine, cluster)


def side(name: str, sockets: Mapping[Node, Path], values: Mapping[str, str], directory: Path) -> Side:
    """sockets: those of its nodes, the first of which is asked. directory: for files of each side's own."""
    (first, socket), *others = sockets.items()
    places = {"node": first.name, "address": first.address}
    for node, _ in others:
        places |= {f"node-{node.layout.index}": node.name, f"address-{node.layout.index}": node.address}
    files = directory / f"{name}-files"
    files.mkdir()
    return Side(name, socket, str(DEBIANS_CLI), {**values, **places}, {node.name: there for node, there in others}, files)


def _end(*labs: Lab) -> None:
    for lab in labs:
        lab.down()
        assert processes.marked(lab.layout.marker) == []
