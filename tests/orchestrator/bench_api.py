"""The API beside a real Engine's in swarm mode, same machine, same run, turn by turn: `make bench-api`. Prints; proves nothing.

Edge: labs, sockets, clock. No task is placed, so nothing is started. Ratios above 1: the Engine is faster.
"""

from __future__ import annotations

import argparse
import http.client
import json
import selectors
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.lab import processes
from orchestrator.lab.lab import Node
from tests.replay.sides import engine_and_mesh

_SIZES = (1, 100, 1_000)
_ROUNDS = {1: 200, 100: 100, 1_000: 30}
_CREATES = 50
_TARGET_RATIO = 2.0
_WAITING = "waiting"
_WAITING_TASKS = 20
_TASKS_S = 30.0
_VERSION = "/v1.41"
_STREAMS = 1_000
_DELIVERY_S = 60.0


class Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("d", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class Peer:
    """One daemon in a cluster of its own."""

    name: str
    socket: Path
    pid: Callable[[], int]
    connection: Connection = field(init=False)
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.connection = Connection(self.socket)

    def ask(self, method: str, path: str, body: object = None) -> bytes:
        headers = {"Content-Type": "application/json"}
        self.connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status < 300, f"{self.name}: {method} {path}: {answer.status} {content!r}"
        return content

    def time_of(self, method: str, path: str, body: object = None) -> float:
        start = time.perf_counter()
        self.ask(method, path, body)
        return time.perf_counter() - start

    def create(self, kind: str, body: object, query: str = "") -> float:
        return self.time_of("POST", f"{_VERSION}/{kind}/create{query}", body)

    def learn_ids(self) -> None:
        """Its tasks are there within a moment."""
        deadline = time.monotonic() + _TASKS_S
        while len(tasks := json.loads(self.ask("GET", f"{_VERSION}/tasks"))) < _WAITING_TASKS:
            assert time.monotonic() < deadline, f"{self.name}: {len(tasks)} tasks"
            time.sleep(0.05)
        self.ids = {"{task}": tasks[0]["ID"], "{node}": json.loads(self.ask("GET", f"{_VERSION}/nodes"))[0]["ID"]}

    def read(self, path: str) -> float:
        for placeholder, id in self.ids.items():
            path = path.replace(placeholder, id)
        return self.time_of("GET", f"{_VERSION}{path}")

    def rss_bytes(self) -> int:
        return processes.resident_bytes(self.pid())


def a_service(name: str) -> dict[str, object]:
    return {
        "Name": name,
        "Labels": {"team": "shop", "tier": "web"},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "meshd/demo:v1", "Env": ["A=B", "C=D"], "Args": ["serve"]},
            "Resources": {"Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 64 << 20}, "Reservations": {}},
            "Placement": {"Constraints": ["node.role==manager"]},
        },
        "Mode": {"Replicated": {"Replicas": 0}},
        "EndpointSpec": {"Mode": "vip"},
    }


def a_waiting_service() -> dict[str, object]:
    """Its tasks find no node, so there are some to be shown, and none that run."""
    service = a_service(_WAITING)
    template = {"ContainerSpec": {"Image": "meshd/demo:v1"}, "Placement": {"Constraints": ["node.labels.there==nowhere"]}}
    return {**service, "TaskTemplate": template, "Mode": {"Replicated": {"Replicas": _WAITING_TASKS}}}


def a_network(name: str) -> dict[str, object]:
    return {"Name": name, "Driver": "overlay", "CheckDuplicate": True, "Labels": {"team": "shop"}}


def a_secret(name: str) -> dict[str, object]:
    """A config's body is the same."""
    return {"Name": name, "Labels": {"team": "shop"}, "Data": "eA=="}


CREATED: dict[str, Callable[[str], dict[str, object]]] = {"networks": a_network, "secrets": a_secret, "configs": a_secret}


def requests(size: int) -> dict[str, str]:
    """What is read. {...}: what each peer calls something by its own id."""
    found: dict[str, str] = {
        "services, list": "/services",
        "services, list with status": "/services?status=true",
        "services, list by name": '/services?filters={"name":["service-0"]}',
        "services, inspect": f"/services/service-{size - 1}?insertDefaults=true",
    }
    for kind in CREATED:
        found[f"{kind}, list"] = f"/{kind}"
        found[f"{kind}, list by name"] = f'/{kind}?filters={{"name":["first"]}}'
        found[f"{kind}, inspect"] = f"/{kind}/first"
    return {
        **found,
        "tasks, list": "/tasks",
        "tasks, list of a service": f'/tasks?filters={{"service":["{_WAITING}"]}}',
        "tasks, inspect": "/tasks/{task}",
        "nodes, list": "/nodes",
        "nodes, inspect": "/nodes/{node}",
        "swarm, inspect": "/swarm",
        "info": "/info",
    }


def in_turns(peers: tuple[Peer, Peer], rounds: int, action: Callable[[Peer, int], float]) -> tuple[list[float], list[float]]:
    """The engine's times and the mesh's; whatever else the machine does falls upon both."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for peer, own in zip(peers, times, strict=True):
            own.append(action(peer, number))
    return times


def table_of(what_grows: str) -> Table:
    return Table(what_grows, "request", "engine p50 / p99 ms", "mesh p50 / p99 ms", "p50 ratio", "p99 ratio", f"<= {_TARGET_RATIO:g}")


def creations(
    peers: tuple[Peer, Peer], kind: str, body: Callable[[str], dict[str, object]], first: int, end: int
) -> tuple[list[float], list[float]]:
    return in_turns(peers, end - first, lambda peer, number: peer.create(kind, body(f"{kind.removesuffix('s')}-{first + number}")))


def row(table: Table, size: int, name: str, times: tuple[list[float], list[float]]) -> None:
    figures = [(statistics.median(own) * 1000, statistics.quantiles(own, n=100)[98] * 1000) for own in times]
    (engine, engine_99), (mesh, mesh_99) = figures
    ratio = mesh / engine
    table.add_row(
        f"{size:,}",
        name,
        f"{engine:.2f} / {engine_99:.2f}",
        f"{mesh:.2f} / {mesh_99:.2f}",
        f"{ratio:.2f}",
        f"{mesh_99 / engine_99:.2f}",
        "yes" if ratio <= _TARGET_RATIO else "no",
    )


def latencies(peers: tuple[Peer, Peer], sizes: tuple[int, ...], console: Console) -> None:
    table = table_of("services")
    for peer in peers:
        for kind, body in CREATED.items():
            peer.create(kind, body("first"))
        peer.create("services", a_waiting_service())
        peer.learn_ids()
    made = 0
    for size in sizes:
        console.print(f"[dim]· {size} services[/]")
        timed = min(_CREATES, max(size - made - 1, 0))
        for number in range(made, size - timed):
            for peer in peers:
                peer.create("services", a_service(f"service-{number}"))
        made = size
        if timed:
            row(table, size, "services, create", creations(peers, "services", a_service, size - timed, size))
        for kind, body in CREATED.items():
            row(table, size, f"{kind}, create", creations(peers, kind, body, size, size + _CREATES))
        for name, path in requests(size).items():
            for peer in peers:
                peer.read(path)
            row(table, size, name, in_turns(peers, _ROUNDS.get(size, 30), lambda peer, _, path=path: peer.read(path)))
    console.print(table)


def streams(peers: tuple[Peer, Peer], count: int, console: Console) -> None:
    """Open streams of events: what they cost in memory, and how long until all of them have been told of one change."""
    table = Table("peer", "open streams", "memory, MB", "kB a stream", "told of a change within, ms (last stream)")
    for peer in peers:
        before = peer.rss_bytes()
        connections = []
        for _ in range(count):
            connection = Connection(peer.socket)
            connection.request("GET", '/v1.41/events?filters={"type":["secret"]}')
            assert connection.getresponse().status == 200
            connections.append(connection.sock)
        after = peer.rss_bytes()
        start = time.perf_counter()
        peer.ask("POST", "/v1.41/secrets/create", {"Name": "told", "Data": "eA=="})
        with selectors.DefaultSelector() as selector:
            for stream in connections:
                selector.register(stream, selectors.EVENT_READ)
            waiting = count
            while waiting and time.perf_counter() - start < _DELIVERY_S:
                for key, _ in selector.select(1.0):
                    assert b'"create"' in key.fileobj.recv(65536)  # type: ignore[union-attr]
                    selector.unregister(key.fileobj)
                    waiting -= 1
        taken = (time.perf_counter() - start) * 1000
        told = f"{taken:.0f}" if not waiting else f"{waiting} streams were told nothing"
        table.add_row(peer.name, f"{count:,}", f"{(after - before) / 1e6:.0f}", f"{(after - before) / 1e3 / count:.0f}", told)
        for stream in connections:
            stream.close()
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(_SIZES))
    parser.add_argument("--streams", type=int, default=_STREAMS)
    arguments = parser.parse_args()
    console = Console(width=140)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, engine_and_mesh(Path(directory)) as (engine, mesh):
        peers = (_peer("engine", engine, engine.layout.engine_socket, "engine"), _peer("mesh", mesh, mesh.layout.meshd_socket, "meshd"))
        latencies(peers, tuple(arguments.sizes), console)
        if arguments.streams:
            streams(peers, arguments.streams, console)


def _peer(name: str, node: Node, socket: Path, unit: str) -> Peer:
    peer = Peer(name, socket, lambda: node.pid_of(unit))
    peer.ask("POST", "/v1.41/swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": node.address})
    return peer


if __name__ == "__main__":
    main()
