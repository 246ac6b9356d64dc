"""Agents that lose a manager: `python -m tests.orchestrator.dispatcher.bench_attach [agents]`.

Three managers and the agents are processes of their own around one etcd; each agent has a network of as many tasks as there are agents.

A manager that doesn't lead is killed, then the one that does, once with the resume token and once without. Prints how long it takes until
every agent that was attached to it, or was served by it, is in step again, what that costs the managers, and what comes down the wire.
Raft's election is left out: the managers are told who leads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from orchestrator.dispatcher.connection import RELAY, Connection, over_tls
from orchestrator.dispatcher.gateway import Gateway
from orchestrator.dispatcher.messages import Row
from orchestrator.dispatcher.server import Dispatcher
from orchestrator.dispatcher.session import AgentSession
from orchestrator.dispatcher.tls_app import ManagerSide, NodeServer
from orchestrator.model import ManagerStatus, Network, Node, NodeAttachment, NodeDescription, NodeSpec, Version
from orchestrator.security.identity import Credentials
from orchestrator.store.base import Put
from orchestrator.store.etcd import EtcdStore
from orchestrator.store.etcd_tls import TLSFiles
from orchestrator.store.leadership import LeadershipLoop
from tests.orchestrator.security.clusters import TestCluster
from tests.orchestrator.store.etcds import Etcds, free_ports

from .lab import decrypt, new_task, no_bundle, until

MANAGERS = 3
ATTACHED_WITHIN_S = 240.0
_SPAWN = get_context("spawn")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


# ---- a manager's process -------------------------------------------------------------------------------------------------------


class _Raft:
    def __init__(self, is_leader: bool) -> None:
        self.is_leader = is_leader


def _manager(directory: str, node_id: str, addr: str, endpoint: str, tls: TLSFiles, raft_leader: Any, pipe: Any) -> None:
    uvloop.run(_manage(Path(directory), node_id, addr, endpoint, tls, raft_leader, pipe))


async def _manage(directory: Path, node_id: str, addr: str, endpoint: str, tls: TLSFiles, raft_leader: Any, pipe: Any) -> None:
    credentials = Credentials.load(directory)
    assert credentials is not None
    store = await EtcdStore.open([endpoint], tls)
    leading: set[asyncio.Task[None]] = set()

    async def status() -> _Raft:
        return _Raft(f"m{raft_leader.value}" == node_id)

    def changed(leads: bool) -> None:
        if leads:
            leading.add(asyncio.create_task(dispatcher.lead()))

    leadership = LeadershipLoop(store, status, node_id, addr, lambda: datetime.now(UTC), on_change=changed)
    dispatcher = Dispatcher(store, decrypt=decrypt, fence=leadership.fence, confirmed_s=lambda: leadership.confirmed_s)
    gateway = Gateway(store, dispatcher, node_id=node_id, connect=over_tls(credentials, RELAY))

    async def recorded(node_id: str, addr: str) -> None:
        raise AssertionError("nobody is promoted here")

    side = ManagerSide(store, gateway, no_bundle, recorded)
    host, _, port = addr.partition(":")
    server = NodeServer(credentials, engine_socket="/nowhere.sock", manager=lambda: side, host=host, port=int(port))
    await server.start()
    pipe.send("serving")
    await asyncio.gather(leadership.run(), gateway.run())


# ---- the agents' process -------------------------------------------------------------------------------------------------------


class _Counted:
    """A connection whose messages are counted."""

    def __init__(self, connection: Connection, fleet: _Fleet) -> None:
        self._connection, self._fleet = connection, fleet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def receive(self, timeout_s: float | None) -> bytes | None:
        message = await self._connection.receive(timeout_s)
        self._fleet.received_bytes += len(message or b"")
        return message

    async def send(self, message: bytes) -> None:
        self._fleet.sent_bytes += len(message)
        await self._connection.send(message)


class _Fleet:
    def __init__(self, managers: list[str], *, resumes: bool) -> None:
        self._managers, self._resumes = managers, resumes
        self.sessions: dict[str, AgentSession] = {}
        self.in_step: dict[str, int] = {}
        self.at_s: dict[str, float] = {}
        self.received_bytes = self.sent_bytes = 0

    def add(self, name: str, credentials: Credentials) -> AgentSession:
        dial = over_tls(credentials)

        @contextlib.asynccontextmanager
        async def counted(manager: str) -> AsyncIterator[Connection]:
            async with dial(manager) as connection:
                yield _Counted(connection, self)  # type: ignore[misc]

        connect: Any = counted
        began = False

        def begun(role: str) -> None:
            nonlocal began
            began = True

        async def on_rows(revision: int, put: list[Row], removed: list[str], complete: bool) -> None:
            nonlocal began
            session.applied(revision, {})
            if began:
                self.in_step[name] = self.in_step.get(name, 0) + 1
                self.at_s[name] = time.monotonic()
            began = False

        session = AgentSession(connect, self._managers, NodeDescription(hostname=name), on_rows, on_role=begun)
        if not self._resumes:
            session._held.token = lambda: b""  # type: ignore[method-assign]
        self.sessions[name] = session
        return session


def _agents(directory: str, managers: list[str], resumes: bool, pipe: Any) -> None:
    uvloop.run(_attach(Path(directory), managers, resumes, pipe))


async def _attach(directory: Path, managers: list[str], resumes: bool, pipe: Any) -> None:
    """Asked for those attached to a manager ("": for all), it tells when they were all in step again, how many they are, and bytes."""
    # uvloop tells of every TLS connection whose other end was killed
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    fleet = _Fleet(managers, resumes=resumes)
    began_s = time.monotonic()
    running = []
    for path in sorted(directory.iterdir()):
        credentials = Credentials.load(path)
        assert credentials is not None
        running.append(asyncio.create_task(fleet.add(path.name, credentials).run()))
    await until(lambda: len(fleet.in_step) == len(running), "all attached", ATTACHED_WITHIN_S)
    pipe.send((time.monotonic() - began_s, fleet.received_bytes))
    while True:
        lost = await asyncio.to_thread(pipe.recv)
        concerned = {name: fleet.in_step[name] for name, session in fleet.sessions.items() if session.connected_to == lost or not lost}
        fleet.received_bytes = fleet.sent_bytes = 0
        pipe.send("ready")
        await until(lambda concerned=concerned: all(fleet.in_step[n] > c for n, c in concerned.items()), "back", ATTACHED_WITHIN_S)  # type: ignore[misc]
        pipe.send((sorted(fleet.at_s[name] for name in concerned), fleet.received_bytes, fleet.sent_bytes))


# ---- the benchmark -------------------------------------------------------------------------------------------------------------


def cpu_s(process: Any) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def rss_mb(process: Any) -> float:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def slashed(numbers: Iterable[float], digits: int = 2) -> str:
    return "/".join(f"{number:.{digits}f}" for number in numbers)


async def founded(cluster: TestCluster, etcds: Etcds, names: list[str], managers: dict[str, str]) -> None:
    store = await EtcdStore.open(etcds.endpoints, etcds.tls)
    await cluster.start()
    # its version is another store's
    found = msgspec.structs.replace(cluster.cluster, version=Version())
    objects: list[Any] = [found, Network(id="net1", name="net1", mesh_vni=4097)]
    for node_id, addr in managers.items():
        objects.append(Node(id=node_id, spec=NodeSpec(role="manager"), manager_status=ManagerStatus(addr=addr)))
    for number, name in enumerate(names):
        place = f"{number // 250}.{number % 250 + 1}/8"
        objects.append(Node(id=name, mesh_attachments=[NodeAttachment(network_id="net1", addr=f"10.2.{place}")]))
        objects.append(new_task(f"t{number}", name, addr=f"10.3.{place}"))
    for start in range(0, len(objects), 100):
        await store.commit([Put(one) for one in objects[start : start + 100]])
    await store.close()


async def measure(count: int, directory: Path, *, resumes: bool) -> None:
    for name in ("agents", "certificates"):
        (directory / name).mkdir()
    cluster = TestCluster(directory / "certificates")
    names = [f"w{number:04}" for number in range(count)]
    managers = {f"m{number}": f"127.0.0.1:{port}" for number, port in enumerate(free_ports(MANAGERS))}
    etcds = Etcds(directory / "etcd")
    processes: list[Any] = []
    try:
        await founded(cluster, etcds, names, managers)
        for name in names:
            Credentials.create(directory / "agents" / name, cluster.identity(name))
        raft_leader = _SPAWN.Value("i", 0)
        for node_id, addr in managers.items():
            Credentials.create(directory / node_id, cluster.identity(node_id, "manager"))
            parent, child = _SPAWN.Pipe()
            arguments = (str(directory / node_id), node_id, addr, etcds.endpoints[0], etcds.tls, raft_leader, child)
            processes.append(_SPAWN.Process(target=_manager, args=arguments))
            processes[-1].start()
            await asyncio.to_thread(parent.recv)
        empty_mb = [rss_mb(one) for one in processes]
        agents, child = _SPAWN.Pipe()
        processes.append(_SPAWN.Process(target=_agents, args=(str(directory / "agents"), list(managers.values()), resumes, child)))
        processes[-1].start()
        took_s, received = await asyncio.to_thread(agents.recv)
        cpu = [cpu_s(one) for one in processes[:MANAGERS]]
        grown = [rss_mb(one) - before for one, before in zip(processes[:MANAGERS], empty_mb, strict=True)]
        print(f"\n{count} agents, {'with' if resumes else 'without'} the resume token")
        print(
            f"  attached for the first time: {took_s:.1f} s, {received / 1e6:.1f} MB; "
            f"CPU: managers {slashed(cpu)} s (leader first), agents {cpu_s(processes[-1]):.1f} s; memory +{slashed(grown, 0)} MB"
        )
        await asyncio.sleep(3)
        for what, victim, lost in (("a manager that doesn't lead", 1, managers["m1"]), ("the leader", 0, "")):
            agents.send(lost)
            await asyncio.to_thread(agents.recv)
            left = [one for number, one in enumerate(processes[:MANAGERS]) if number != victim and one.is_alive()]
            before = [cpu_s(one) for one in [*left, processes[-1]]]
            killed_s = time.monotonic()
            processes[victim].kill()
            if not lost:
                raft_leader.value = 2
            times_s, received, sent = await asyncio.to_thread(agents.recv)
            spent = [cpu_s(one) - was for one, was in zip([*left, processes[-1]], before, strict=True)]
            print(
                f"  {what} killed: {len(times_s)} agents in step again after {times_s[-1] - killed_s:.2f} s "
                f"(half of them {times_s[len(times_s) // 2] - killed_s:.2f} s); "
                f"to them {received / 1e6:.2f} MB, from them {sent / 1e6:.2f} MB\n"
                f"    CPU: managers {slashed(spent[:-1])} s, agents {spent[-1]:.2f} s; memory {slashed(map(rss_mb, left), 0)} MB"
            )
            await asyncio.sleep(3)
    finally:
        for one in processes:
            one.kill()
            one.join()
        etcds.stop()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    for resumes in (True, False):
        with tempfile.TemporaryDirectory(prefix="attach-bench-") as name:
            uvloop.run(measure(count, Path(name), resumes=resumes))


if __name__ == "__main__":
    main()
