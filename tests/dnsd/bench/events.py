"""What may not be felt: a large scope exchanged under load, and a killed dnsd that comes back to two hundred sandboxes."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dnsd import ScopeSpec, Server, loop
from dnsd.encoded import EncodedZone, encode
from tests.dnsd.ask import query
from tests.dnsd.bench.client import Client, Result, cpu_s, finished
from tests.dnsd.bench.mine import NAME, PLAIN, address_of, dnsd, scopes, zone
from tests.dnsd.bench.servers import free_port, wait_for

SWAPS = 10
SANDBOXES = 200
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Swaps:
    """quiet: the same client before them, to know what the machine alone does to the slowest query. longest_step_ms: of the event loop,
    on the processor: nobody waits longer than that for a swap."""

    quiet: Result
    during: Result
    took_ms: list[float]
    longest_step_ms: float


def swap_under_load(client: Client, directory: Path) -> Swaps:
    """A scope of 10,000 names, exchanged again and again while ten queries are always under way."""
    port = free_port()
    with dnsd(directory / "swaps") as one:
        one.apply((zone(476),), scopes(1, port))
        address = (address_of(0), port)
        quiet = client.run(address, PLAIN, 10, 3.0, pid=one.pid)
        versions = [zone(476, vip) for vip in range(2, 2 + SWAPS)]
        process = client.start(address, 10, 6.0)
        assert process.stdin is not None
        process.stdin.write("".join(question.line() for question in PLAIN))
        process.stdin.close()
        process.stdin = None
        took_ms = []
        for version in versions:
            since = time.perf_counter()
            one.apply((version,), scopes(1, port))
            took_ms.append((time.perf_counter() - since) * 1e3)
        assert process.poll() is None, "the swaps took longer than the client asked"
        during = finished(process, ())
    return Swaps(quiet, during, took_ms, loop.run(_longest_step_ms()))


async def _longest_step_ms() -> float:
    """The same swaps in our own process, beside a task that is always due."""
    server, steps = Server(), [0.0]
    versions = [EncodedZone(encode(zone(476, vip))) for vip in range(2, 2 + SWAPS)]
    # As the process does once it is settled.
    gc.collect()
    gc.freeze()

    async def tick() -> None:
        while True:
            since = time.thread_time()
            await asyncio.sleep(0)
            steps.append(time.thread_time() - since)

    ticking = asyncio.create_task(tick())
    try:
        for version in versions:
            await server.serve((version,), scopes(1, 0))
    finally:
        ticking.cancel()
        await server.close()
    return max(steps) * 1e3


@dataclass(frozen=True)
class Restart:
    """Milliseconds from the start of the new process until the last sandbox is answered, and of them on the processor: others may have
    it in between. reopened: what the process says about its sockets."""

    last_ms: float
    cpu_ms: float
    reopened: str


def restart_with_sandboxes(directory: Path) -> Restart:
    with sandboxes(SANDBOXES) as paths, dnsd(directory / "restart") as one:
        wanted = tuple(ScopeSpec(id=path.name, netns=str(path), networks=("n",)) for path in paths)
        one.apply((zone(100),), wanted)
        sockets = [inside(path) for path in paths]
        try:
            for sock in sockets:
                wait_for(("127.0.0.11", 53), sock.dup)
            one.process.kill()
            one.process.wait()
            since = time.perf_counter()
            one.restart()
            last_at = max(first_answers(sockets))
            used_s = cpu_s(one.pid)
        finally:
            for sock in sockets:
                sock.close()
        (line,) = [line for line in (one.directory / "log").read_text().splitlines() if "event=reopened" in line]
        return Restart((last_at - since) * 1e3, used_s * 1e3, line.partition("event=")[2])


def first_answers(sockets: list[socket.socket]) -> list[float]:
    """When each of them got its first answer. All ask again and again, as resolvers would, only faster."""
    waiting = {sock.fileno(): sock for sock in sockets}
    answered: dict[int, float] = {}
    poller = select.epoll()
    for sock in sockets:
        sock.setblocking(False)
        sock.connect(("127.0.0.11", 53))
        poller.register(sock.fileno(), select.EPOLLIN)
    end = time.perf_counter() + 20
    asked_at = 0.0
    while waiting:
        now = time.perf_counter()
        assert now < end, f"{len(waiting)} sandboxes are not answered"
        if now > asked_at + 0.005:
            asked_at = now
            for sock in waiting.values():
                try:
                    sock.send(query(NAME))
                except OSError:
                    continue
        for fd, _ in poller.poll(0.002):
            try:
                waiting.get(fd, sockets[0]).recv(4096)
            except OSError:
                # Nobody listens yet.
                continue
            if waiting.pop(fd, None) is not None:
                answered[fd] = time.perf_counter()
                poller.unregister(fd)
    return list(answered.values())


@contextmanager
def sandboxes(count: int) -> Iterator[list[Path]]:
    """Network namespaces with a name and a loopback."""
    names = [f"dnsbench{os.getpid()}-{number}" for number in range(count)]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield [Path("/run/netns") / name for name in names]
    finally:
        for name in names:
            if (Path("/run/netns") / name).exists():
                subprocess.run(["ip", "netns", "del", name], check=False)


def inside(netns: Path) -> socket.socket:
    """A UDP socket of that namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own, open(netns) as other:
        assert libc.setns(other.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        finally:
            assert libc.setns(own.fileno(), _CLONE_NEWNET) == 0
