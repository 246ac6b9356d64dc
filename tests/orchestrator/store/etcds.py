"""Real etcds for the tests: on loopback, with certificates of their own, in a temporary directory.

Edge: processes. Independent of event loops, so that one etcd can serve a whole module of tests.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import StoreError
from orchestrator.store.etcd import EtcdStore
from orchestrator.store.etcd_client import EtcdClient
from orchestrator.store.etcd_process import EtcdConfig, command_line, peer_url
from orchestrator.store.etcd_tls import TLSFiles, create_ca, issue, write_files


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def certificates(directory: Path) -> TLSFiles:
    now = datetime.now(UTC)
    ca = create_ca("test etcd CA", now)
    return write_files(directory / "tls", ca.cert, issue(ca, "member", ["127.0.0.1"], now))


class Etcds:
    """`count` members, started together."""

    def __init__(self, directory: Path, count: int = 1) -> None:
        self.tls = certificates(directory)
        ports = free_ports(2 * count)
        cluster = tuple((f"m{i}", peer_url("127.0.0.1", ports[2 * i + 1])) for i in range(count))
        self.configs = [
            EtcdConfig(
                name=f"m{i}", directory=directory / f"m{i}", tls=self.tls, client_port=ports[2 * i], peer_addr="127.0.0.1",
                peer_port=ports[2 * i + 1], initial_cluster=cluster, heartbeat_ms=50,
                election_ms=400,
            )
            for i in range(count)
        ]  # fmt: skip
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * count
        for i in range(count):
            self.start(i)

    @property
    def endpoints(self) -> list[str]:
        return [config.endpoint for config in self.configs]

    def start(self, index: int) -> None:
        config = self.configs[index]
        config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(config.directory / "etcd.log", "ab") as log:
            self.processes[index] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command_line(config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def kill(self, index: int, number: signal.Signals = signal.SIGKILL) -> None:
        process = self.processes[index]
        assert process is not None
        process.send_signal(number)
        if number is signal.SIGKILL:
            process.wait()
            self.processes[index] = None

    def stop(self) -> None:
        for index, process in enumerate(self.processes):
            if process is not None:
                self.kill(index)

    def rss_bytes(self, index: int = 0) -> int:
        process = self.processes[index]
        assert process is not None
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def open(self, *indexes: int, **options: object) -> EtcdStore:
        endpoints = [self.configs[index].endpoint for index in indexes or range(len(self.configs))]
        return await EtcdStore.open(endpoints, self.tls, **options)  # type: ignore[arg-type]

    def client(self, index: int = 0) -> EtcdClient:
        return EtcdClient(self.configs[index].endpoint, self.tls)

    async def leader(self) -> int:
        """The index of the Raft leader, once there is one."""
        found = -1

        async def known() -> bool:
            nonlocal found
            for index, process in enumerate(self.processes):
                if process is None:
                    continue
                client = self.client(index)
                try:
                    if (await client.status()).is_leader:
                        found = index
                        return True
                except StoreError:
                    pass
                finally:
                    await client.close()
            return False

        await eventually(known, timeout_s=15)
        return found


async def eventually(condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = 10.0, what: str = "") -> None:
    """Poll until it holds; fail at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        held = condition()
        if not isinstance(held, bool):
            held = await held
        if held:
            return
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        await asyncio.sleep(0.02)
