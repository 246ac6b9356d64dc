"""dnsd as it is measured: a small node, and one with a thousand sandboxes and a hundred thousand names."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dnsd import Client, DnsState, ScopeSpec, ServiceName, TaskName, ZoneSpec
from tests.dnsd.bench.client import SERVER_CPU, Question, ask, pinned
from tests.dnsd.bench.servers import ADDRESSES, NAME, Peer, free_port

PROJECT = Path(__file__).parents[3]


def services(count: int, vip: int = 1) -> tuple[ServiceName, ...]:
    """Of ten tasks each, so 21 names each. vip: part of the VIPs, to tell one version from the next."""
    return tuple(
        ServiceName(
            id=f"s{s}",
            name=f"s{s}",
            vips=(f"10.{vip}.{s >> 8}.{s & 255}",),
            tasks=tuple(
                TaskName(
                    id=f"s{s}t{t}",
                    name=f"s{s}.{t}.k{s:05}x{t:03}",
                    slot=t,
                    addresses=(f"10.{100 + (s >> 11)}.{s >> 3 & 255}.{(s & 7) << 5 | t}",),
                )
                for t in range(1, 11)
            ),
        )
        for s in range(count)
    )


def zone(count: int, vip: int = 1, network: str = "n") -> ZoneSpec:
    """web30 as all servers have it, and `count` services more."""
    tasks = tuple(TaskName(id=f"w{n}", name=f"{NAME}.{n}.x", slot=n, addresses=(address,)) for n, address in enumerate(ADDRESSES, 1))
    return ZoneSpec(network=network, name=f"net-{network}", services=(ServiceName(id="w", name=NAME, tasks=tasks), *services(count, vip)))


PLAIN = [ask(NAME, *ADDRESSES)]


def mixed(hot: int) -> list[Question]:
    """What a node is asked in truth: VIPs, tasks, slots of `hot` services, in any case, with EDNS or without, other types, denials."""
    questions = []
    for s in range(hot):
        name, vip = f"s{s}", f"10.1.{s >> 8}.{s & 255}"
        tasks = [f"10.{100 + (s >> 11)}.{s >> 3 & 255}.{(s & 7) << 5 | t}" for t in range(1, 11)]
        questions += [
            ask(name, vip),
            ask(name.upper(), vip),
            ask(f"{name}.net-n", vip, edns=1232),
            ask(f"Tasks.{name}", *tasks),
            ask(f"tasks.{name}", *tasks, edns=1232),
            ask(f"{name}.{s % 10 + 1}", tasks[s % 10]),
            ask(name, kind="AAAA"),
            ask(name, kind="AAAA", edns=1232),
            ask(f"nosuch{s}", rcode=3),
            ask(NAME, *ADDRESSES),
        ]
    return questions


@dataclass
class Dnsd:
    """A process of dnsd with its control socket."""

    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def apply(self, zones: tuple[ZoneSpec, ...], scopes: tuple[ScopeSpec, ...]) -> None:
        async def run() -> None:
            client = Client(self.directory / "sock", timeout_s=60)
            try:
                applied = await client.apply(DnsState(zones=zones, scopes=scopes))
                assert not applied.failed, applied
            finally:
                await client.close()

        asyncio.run(run())

    def restart(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = _start(self.directory)


def _start(directory: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dnsd", "--control", str(directory / "sock"), "--state-file", str(directory / "state")]
    # Compiled modules are kept, as where it is installed: without them a start takes half as long again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(directory / "compiled")
    with pinned(SERVER_CPU), (directory / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=PROJECT, stderr=log, env=environment)


@contextmanager
def dnsd(directory: Path) -> Iterator[Dnsd]:
    directory.mkdir()
    one = Dnsd(directory, _start(directory))
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()


def scopes(count: int, port: int) -> tuple[ScopeSpec, ...]:
    """Each with an address of its own on loopback, see `address_of`. Every second one sees another network first."""
    return tuple(
        ScopeSpec(id=f"scope{n}", netns="", networks=("n",) if n % 2 == 0 else ("m", "n"), listen=f"{address_of(n)}:{port}")
        for n in range(count)
    )


def address_of(scope: int) -> str:
    """Out of the way of everybody else's 127.0.0.x."""
    return f"127.53.{scope // 250}.{scope % 250 + 1}"


@contextmanager
def small(directory: Path) -> Iterator[Peer]:
    port = free_port()
    with dnsd(directory / "small") as one:
        one.apply((zone(100),), scopes(1, port))
        yield Peer("dnsd", one.pid, (address_of(0), port))


@contextmanager
def large(directory: Path) -> Iterator[Peer]:
    port = free_port()
    with dnsd(directory / "large") as one:
        one.apply((zone(4_660), zone(100, network="m")), scopes(1_000, port))
        yield Peer("dnsd, 1,000 sockets, 100,000 names", one.pid, (address_of(0), port))
