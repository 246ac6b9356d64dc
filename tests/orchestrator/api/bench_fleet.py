"""What it costs that three nodes are one machine: lists, inspections and creations of containers, beside the same at one node's Engine.
`make bench-api`, or this module by itself (root).

Edge: a lab, sockets, clock. Ratios above 1: the Engine is faster, which asks nobody else.
"""

from __future__ import annotations

import json
import time

from rich.console import Console

from orchestrator.lab.lab import Lab
from tests.lab.cli import IMAGE
from tests.lab.temporary import temporary_lab
from tests.orchestrator.bench_api import Peer, in_turns, row, table_of

CONTAINERS = 20
ROUNDS = 60
CREATIONS = 20
RESTS = 5
# longer than a person's pause between two commands
REST_S = 6.0


def a_container(node: str = "") -> dict[str, object]:
    return {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}, "Env": [f"constraint:node=={node}"] if node else []}


def measure(lab: Lab, console: Console) -> None:
    manager, other, _ = lab.nodes
    engine = Peer("engine", other.layout.engine_socket, lambda: other.pid_of("engine"))
    mesh = Peer("mesh", manager.layout.meshd_socket, lambda: manager.pid_of("meshd"))
    peers = (engine, mesh)
    for number in range(CONTAINERS):
        mesh.create("containers", a_container(), f"?name=c{number}")
    mine = json.loads(mesh.ask("POST", "/v1.41/containers/create?name=mine", a_container("node-2")))["Id"]
    reads = {
        "containers, list all": "/containers/json?all=1",
        "another node's container, inspect by id": f"/containers/{mine}/json",
        "another node's container, inspect by name": "/containers/mine/json",
        "images, list": "/images/json",
        "volumes, list": "/volumes",
        "networks, list": "/networks",
    }
    table = table_of("containers")
    for name, path in reads.items():
        for peer in peers:
            peer.read(path)
        row(table, CONTAINERS, name, in_turns(peers, ROUNDS, lambda peer, _, path=path: peer.read(path)))

    def after_rest(peer: Peer, _: int) -> float:
        time.sleep(REST_S)
        return peer.read("/containers/json?all=1")

    row(table, CONTAINERS, f"containers, list all, after {REST_S:g} s of rest", in_turns(peers, RESTS, after_rest))
    row(table, CONTAINERS, "create", in_turns(peers, CREATIONS, lambda peer, _: peer.create("containers", a_container())))
    named = in_turns(peers, CREATIONS, lambda peer, number: peer.create("containers", a_container(), f"?name={peer.name}{number}"))
    row(table, CONTAINERS, "create with a name", named)
    console.print(table)


def main() -> None:
    with temporary_lab("f") as lab:
        lab.up(3)
        measure(lab, Console(width=150))


if __name__ == "__main__":
    main()
