"""100 MB through attach, logs and cp of a container on another node, beside the same at that node's Engine; what a client that reads
nothing costs; 1,000 unfiltered streams of events, beside as many at the Engine. A lab of two nodes; the ways take turns, medians are
compared. `make bench-api`, or this module by itself (root).
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from orchestrator.lab.lab import Lab, Node
from tests.lab.cli import IMAGE
from tests.lab.temporary import temporary_lab

SIZE_BYTES = 100 * 2**20
ROUNDS = 3
TARGET = 0.5
STALL_S = 10.0
STREAMS = 1000
DELIVERY_S = 30.0
_LINE = "x" * 1023
_WRITE = f"yes {_LINE} | head -c {SIZE_BYTES}"


def request(path: Path, method: str, target: str, body: object = None, *, upgrade: bool = False) -> tuple[socket.socket, bytes]:
    """One request on a connection of its own: (connection, what has come after the head)."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    content = json.dumps(body).encode() if body is not None else b""
    lines = [f"{method} /v1.41{target} HTTP/1.1", "Host: d", "Content-Type: application/json", f"Content-Length: {len(content)}"]
    lines += ["Connection: Upgrade", "Upgrade: tcp"] if upgrade else ["Connection: close"]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        assert chunk, f"{method} {target}: no answer"
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.split(b" ")[1][:1] in b"123", data
    return connection, rest


def read_all(connection: socket.socket, already: bytes) -> int:
    """Bytes until the end of the connection; it is closed."""
    size, buffer = len(already), bytearray(1024 * 1024)
    while count := connection.recv_into(buffer):
        size += count
    connection.close()
    return size


def call(path: Path, method: str, target: str, body: object = None) -> bytes:
    connection, data = request(path, method, target, body)
    while chunk := connection.recv(65536):
        data += chunk
    connection.close()
    return data


def created(path: Path, name: str, command: str) -> str:
    """A container on node-2, made through the manager."""
    body = {"Image": IMAGE, "Cmd": ["sh", "-c", command], "Env": ["constraint:node==node-2"]}
    found = re.search(rb'"Id": ?"([0-9a-f]{64})"', call(path, "POST", f"/containers/create?name={name}", body))
    assert found is not None
    return found[1].decode()


class Bench:
    def __init__(self, lab: Lab) -> None:
        self.manager, self.owner = lab.nodes
        self.ways = {"direct": self.owner.layout.engine_socket, "meshd": self.manager.layout.meshd_socket}
        self.rows: list[tuple[str, str, str, str, str]] = []
        self.event_rows: list[tuple[str, str, str, str]] = []

    def compare(self, what: str, once: Callable[[Path], float]) -> None:
        times: dict[str, list[float]] = {way: [] for way in self.ways}
        for _ in range(ROUNDS):
            for way, path in self.ways.items():
                times[way].append(once(path))
        direct, ours = (SIZE_BYTES / 2**20 / statistics.median(times[way]) for way in ("direct", "meshd"))
        ratio = ours / direct
        verdict = f"{ratio:.2f} (>= {TARGET}: {'met' if ratio >= TARGET else 'missed'})"
        self.rows.append((what, f"{direct:.0f} MB/s", f"{ours:.0f} MB/s", verdict, ""))

    def attach(self, path: Path) -> float:
        id = created(self.manager.layout.meshd_socket, "attached", _WRITE)
        connection, rest = request(path, "POST", f"/containers/{id}/attach?stream=1&stdout=1", upgrade=True)
        started = time.monotonic()
        call(path, "POST", f"/containers/{id}/start")
        size = read_all(connection, rest)
        took = time.monotonic() - started
        assert size >= SIZE_BYTES, size
        call(path, "DELETE", f"/containers/{id}?force=1")
        return took

    def upload(self, id: str) -> Callable[[Path], float]:
        """Standard input of an exec instance: the other direction."""

        def once(path: Path) -> float:
            made = call(path, "POST", f"/containers/{id}/exec", {"AttachStdin": True, "AttachStdout": True, "Cmd": ["wc", "-c"]})
            found = re.search(rb'"Id": ?"([0-9a-f]{64})"', made)
            assert found is not None
            connection, _ = request(path, "POST", f"/exec/{found[1].decode()}/start", {}, upgrade=True)
            chunk = b"y" * 2**20
            started = time.monotonic()
            for _ in range(SIZE_BYTES // len(chunk)):
                connection.sendall(chunk)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while data := connection.recv(65536):
                answer += data
            connection.close()
            assert str(SIZE_BYTES).encode() in answer, answer
            return time.monotonic() - started

        return once

    def logs(self, id: str) -> Callable[[Path], float]:
        def once(path: Path) -> float:
            started = time.monotonic()
            size = read_all(*request(path, "GET", f"/containers/{id}/logs?stdout=1"))
            assert size >= SIZE_BYTES, size
            return time.monotonic() - started

        return once

    def archive(self, id: str) -> Callable[[Path], float]:
        def once(path: Path) -> float:
            started = time.monotonic()
            size = read_all(*request(path, "GET", f"/containers/{id}/archive?path={quote('/tmp/big', safe='')}"))
            assert size >= SIZE_BYTES, size
            return time.monotonic() - started

        return once

    def stalled(self, what: str, target: Callable[[str], tuple[str, str, bool]]) -> None:
        """Resident memory of both meshd while a client reads nothing of 100 MB."""
        path = self.manager.layout.meshd_socket
        id = created(path, "stalled", _WRITE)
        before = [_rss_bytes(node) for node in (self.manager, self.owner)]
        method, query, upgrade = target(id)
        connection, _ = request(path, method, query, upgrade=upgrade)
        call(path, "POST", f"/containers/{id}/start")
        time.sleep(STALL_S)
        grown = [(_rss_bytes(node) - was) / 2**20 for node, was in zip((self.manager, self.owner), before, strict=True)]
        connection.close()
        call(path, "DELETE", f"/containers/{id}?force=1")
        self.rows.append((what, "", "", "", f"{grown[0]:+.1f} MB, {grown[1]:+.1f} MB"))

    def events(self, way: str, node: Node, process: str) -> None:
        """As many streams at once: memory, connections that reach the owner's Engine, and how long until all know of a volume there."""
        path = self.ways[way]
        before = node.report().rss_bytes[process]
        streams = [request(path, "GET", "/events")[0] for _ in range(STREAMS)]
        times = []
        for number in range(ROUNDS):
            started = time.monotonic()
            call(self.owner.layout.engine_socket, "POST", "/volumes/create", {"Name": f"told-{way}-{number}"})
            with selectors.DefaultSelector() as selector:
                for stream in streams:
                    selector.register(stream, selectors.EVENT_READ)
                waiting = len(streams)
                while waiting:
                    assert time.monotonic() - started < DELIVERY_S, f"{waiting} of {STREAMS} streams were not told"
                    for key, _ in selector.select(1.0):
                        if f"told-{way}-{number}".encode() in key.fileobj.recv(65536):  # type: ignore[union-attr]
                            selector.unregister(key.fileobj)
                            waiting -= 1
            times.append(time.monotonic() - started)
        memory = (node.report().rss_bytes[process] - before) / STREAMS / 1e3
        # those of the node's programs and this one's
        connections = sum(_connections(pid, self.owner.layout.engine_socket) for pid in (self.owner.pid_of("engine"), os.getpid()))
        for stream in streams:
            stream.close()
        self.event_rows.append((way, f"{memory:.0f} kB", f"{statistics.median(times) * 1e3:.0f} ms", str(connections)))

    def run(self) -> None:
        path = self.manager.layout.meshd_socket
        self.compare("attach, output", self.attach)
        logged = created(path, "logged", f"{_WRITE}; head -c {SIZE_BYTES} /dev/zero > /tmp/big; exec sleep 1000")
        call(path, "POST", f"/containers/{logged}/start")
        call(path, "POST", f"/containers/{logged}/exec", {"Cmd": ["true"]})
        deadline = time.monotonic() + 120
        while str(SIZE_BYTES).encode() not in _inside(path, logged) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.compare("logs", self.logs(logged))
        self.compare("cp out of the container", self.archive(logged))
        self.compare("exec, input", self.upload(logged))
        call(path, "DELETE", f"/containers/{logged}?force=1")
        self.stalled("attach, nothing read", lambda id: ("POST", f"/containers/{id}/attach?stream=1&stdout=1", True))
        self.stalled("logs -f, nothing read", lambda id: ("GET", f"/containers/{id}/logs?follow=1&stdout=1", False))
        self.events("direct", self.owner, "engine")
        self.events("meshd", self.manager, "meshd")


def _inside(path: Path, id: str) -> bytes:
    found = re.search(
        rb'"Id": ?"([0-9a-f]{64})"',
        call(path, "POST", f"/containers/{id}/exec", {"AttachStdout": True, "Cmd": ["stat", "-c", "%s", "/tmp/big"]}),
    )
    assert found is not None
    connection, data = request(path, "POST", f"/exec/{found[1].decode()}/start", {}, upgrade=True)
    while chunk := connection.recv(65536):
        data += chunk
    connection.close()
    return data


def _connections(pid: int, path: Path) -> int:
    """To that socket, made in the process's network namespace."""
    sockets = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    connected = "03"
    return sum(1 for fields in sockets if fields[5] == connected and fields[7:] == [str(path)])


def _rss_bytes(node: Node) -> int:
    return node.report().rss_bytes["meshd"]


def main() -> None:
    console = Console()
    with temporary_lab("s") as lab:
        lab.up(2)
        bench = Bench(lab)
        bench.run()
    table = Table("100 MB through", "the node's Engine", "meshd, manager -> node", "ratio", "memory: manager, node", title="streams")
    for row in bench.rows:
        table.add_row(*row)
    console.print(table)
    table = Table(f"{STREAMS:,} streams of events", "memory a stream", "all told of a change", "connections to the node's Engine")
    for event_row in bench.event_rows:
        table.add_row(*event_row)
    console.print(table)


if __name__ == "__main__":
    main()
