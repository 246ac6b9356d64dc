"""Clients that ask again and again from inside a network namespace, and write down every answer with its time.

Edge: sockets and threads; a thread belongs to one namespace for its life (setns(2) moves a thread, not the process).
`Log` below is the pure part: what can be said of the answers.
"""

from __future__ import annotations

import ctypes
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Answer:
    """One request. times: time.monotonic(). `by`: who answered (hostname and version, or the set of addresses for DNS); empty = failed."""

    node: str
    kind: str
    started: float
    ended: float
    by: tuple[str, ...] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


@dataclass(slots=True)
class Log:
    """All answers of all probes, in the order they came."""

    answers: list[Answer] = field(default_factory=list)

    def since(self, start: float, kinds: Iterable[str] = ()) -> list[Answer]:
        wanted = set(kinds)
        return [a for a in self.answers if a.started >= start and (not wanted or a.kind in wanted)]

    def failed(self, start: float) -> list[Answer]:
        return [a for a in self.since(start, ("port", "vip")) if not a.ok]

    def count(self, start: float) -> int:
        return len(self.since(start, ("port", "vip")))

    def all_seen(self, node: str, kind: str, start: float, wanted: set[str]) -> float | None:
        """Seconds from `start` until the node's balancer has answered through every one of `wanted` hostnames; None: not yet."""
        missing = set(wanted)
        for answer in self.since(start, (kind,)):
            if answer.node == node and answer.ok:
                missing.discard(answer.by[0])
                if not missing:
                    return answer.ended - start
        return None

    def last_failure(self, node: str, kind: str, start: float) -> float:
        """Seconds from `start` until the last request of this kind that failed was begun; 0 if none failed."""
        return max((a.started - start for a in self.since(start, (kind,)) if a.node == node and not a.ok), default=0.0)

    def last_answer_by(self, node: str, hosts: set[str], start: float) -> float:
        """Seconds from `start` until the last request that one of `hosts` answered was begun; 0 if there is none."""
        answers = self.since(start, ("port", "vip"))
        return max((a.started - start for a in answers if a.node == node and a.ok and a.by[0] in hosts), default=0.0)

    def dns_is(self, node: str, kind: str, start: float, wanted: set[str]) -> float | None:
        """Seconds from `start` until the node's DNS began to answer exactly `wanted` (and stayed so); None: not yet."""
        since: float | None = None
        for answer in self.since(start, (kind,)):
            if answer.node == node:
                if set(answer.by) != wanted:
                    since = None
                elif since is None:
                    since = answer.ended - start
        return since


def http_get(address: str, port: int, timeout_s: float = 3.0, path: str = "/") -> tuple[str, ...]:
    """The words of the answer's body. OSError / ValueError if there is no whole, good answer."""
    with socket.create_connection((address, port), timeout=timeout_s) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        chunks = []
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    head, separator, body = b"".join(chunks).partition(b"\r\n\r\n")
    if not separator or b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise ValueError(f"bad answer {head[:60]!r}")
    words = tuple(body.decode().split())
    if not words:
        raise ValueError("empty answer")
    return words


def dns_addresses(name: str, server: str = "127.0.0.11", timeout_s: float = 1.0) -> tuple[str, ...]:
    """The A records of `name`, in the order of the answer; empty for NXDOMAIN and NODATA. Source: RFC 1035, 4.1."""
    query_id = random.randrange(65536)
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0" + struct.pack(">HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        client.connect((server, 53))
        client.send(struct.pack(">HHHHHH", query_id, 0x0100, 1, 0, 0, 0) + question)
        packet = client.recv(4096)
    answer_id, flags, _, count, _, _ = struct.unpack_from(">HHHHHH", packet)
    if answer_id != query_id:
        raise ValueError("answer to another question")
    if flags & 0xF not in (0, 3):
        raise ValueError(f"DNS error {flags & 0xF}")
    offset, found = 12 + len(question), []
    for _ in range(count):
        while packet[offset] and packet[offset] < 0xC0:
            offset += packet[offset] + 1
        offset += 2 if packet[offset] >= 0xC0 else 1
        record_type, _, _, length = struct.unpack_from(">HHIH", packet, offset)
        offset += 10
        if record_type == 1:
            found.append(socket.inet_ntoa(packet[offset : offset + 4]))
        offset += length
    return tuple(found)


def enter_network(path: str) -> None:
    """Move the calling thread into the network namespace at `path`."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {path}")
    finally:
        os.close(handle)


class Probe:
    """Asks `ask()` from inside the namespace, `rate` times a second, until stopped; every answer goes into `log`."""

    def __init__(self, log: Log, node: str, kind: str, netns: str, rate: float, ask: Callable[[], tuple[str, ...]]) -> None:
        self._log, self._node, self._kind, self._netns = log, node, kind, netns
        self._interval_s, self._ask = 1 / rate, ask
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"probe-{node}-{kind}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            enter_network(self._netns)
        except FileNotFoundError:
            # the container has ended meanwhile: there is nobody to ask for
            return
        due = time.monotonic()
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                by, error = self._ask(), ""
            except (OSError, ValueError) as failure:
                by, error = (), str(failure) or type(failure).__name__
            self._log.answers.append(Answer(self._node, self._kind, started, time.monotonic(), by, error))
            due = max(due + self._interval_s, time.monotonic())
            self._stop.wait(max(0.0, due - time.monotonic()))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)


def in_network(path: str, ask: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """One question from inside a namespace."""
    result: list[tuple[str, ...]] = []
    failure: list[Exception] = []

    def work() -> None:
        try:
            enter_network(path)
            result.append(ask())
        except (OSError, ValueError) as error:
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
