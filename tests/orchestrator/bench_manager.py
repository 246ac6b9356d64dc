"""A manager for the benchmarks, a process of its own: real etcd, real leader, the API on a unix socket; and agents that report nothing.

Edge: processes, sockets. `Bench` is the handle: it speaks the Docker API with the manager and reads its CPU and memory from /proc.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from orchestrator.api.app import serve_unix
from orchestrator.api.backend import NodeFacts
from orchestrator.dispatcher.connection import RELAY, over_tls
from orchestrator.dispatcher.messages import Row
from orchestrator.dispatcher.session import AgentSession
from orchestrator.dispatcher.tls_app import NodeServer
from orchestrator.managers.genesis import FirstNode, Keys, first_objects
from orchestrator.managers.manager import Manager, ManagerConfig, write_etcd_certificate
from orchestrator.model import (
    ClusterSpec,
    ContainerSpec,
    Node,
    NodeDescription,
    NodeSpec,
    NodeStatus,
    Platform,
    ReplicatedService,
    ResourceObject,
    Service,
    ServiceMode,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)
from orchestrator.security import ca, secretbox, tokens
from orchestrator.security.identity import Credentials, Identity
from orchestrator.store import etcd_tls, sealing
from orchestrator.store.base import Put, Store
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.subscription import wait_for
from tests.orchestrator.api.fakes import FakeBackend

_SPAWN = get_context("spawn")
_CLUSTER_ID, _MANAGER = "bench", "m1"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Bench:
    """Of one running manager."""

    def __init__(self, pid: int, session: aiohttp.ClientSession, pipe: Any) -> None:
        self._pid = pid
        self._pipe = pipe
        self.session = session

    async def create(self, name: str, **spec: Any) -> int:
        """The answer's status."""
        body = {"Name": name, "TaskTemplate": {"ContainerSpec": {"Image": "app:1"}}, **spec}
        async with self.session.post("http://m/services/create", json=body) as answer:
            await answer.read()
            return answer.status

    async def refused_at(self, tasks: int) -> float:
        """When (time.monotonic) so many tasks were stored as PENDING with their reason, as the manager's copy of the store shows."""
        self._pipe.send(tasks)
        return float(await asyncio.to_thread(self._pipe.recv))

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def manager(directory: Path, *, services: int = 0, replicas: int = 0, agents: int = 0) -> AsyncIterator[Bench]:
    """Serving and leading. It starts with so many services of so many running tasks, spread over nodes whose agents are connected."""
    parent, child = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_manager, args=(str(directory), services, replicas, agents, child))
    process.start()
    fleet = None
    try:
        addr = await asyncio.to_thread(_receive, parent, process.is_alive)
        if agents:
            inner, outer = _SPAWN.Pipe()
            fleet = _SPAWN.Process(target=_agents, args=(str(directory / "agents"), addr, outer))
            fleet.start()
            await asyncio.to_thread(_receive, inner, fleet.is_alive)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(directory / "api.sock"), limit=0)) as session:
            yield Bench(process.pid or 0, session, parent)
    finally:
        for one in (fleet, process):
            if one is not None:
                one.terminate()
                one.join(20)


def _receive(pipe: Any, alive: Any) -> str:
    while not pipe.poll(0.5):
        if not alive():
            raise RuntimeError("the benchmark's process has ended")
    return str(pipe.recv())


# ---- in the manager's process --------------------------------------------------------------------------------------------------


def _manager(directory: str, services: int, replicas: int, agents: int, pipe: Connection) -> None:
    uvloop.run(_serve(Path(directory), services, replicas, agents, pipe))


async def _serve(directory: Path, services: int, replicas: int, agents: int, pipe: Connection) -> None:
    port = _free_port()
    config = ManagerConfig(
        node_id=_MANAGER,
        addr=f"127.0.0.1:{port}",
        directory=directory / "etcd",
        client_port=_free_port(),
        peer_port=_free_port(),
        store_key=sealing.new_key(),
    )
    now = datetime.now(UTC)
    root, etcd_ca = ca.new_root(_CLUSTER_ID, now), etcd_tls.create_ca("bench", now)
    write_etcd_certificate(config, etcd_ca, now)
    both = tokens.make_both(root.certificate)
    keys = Keys(root.certificate, root.key, etcd_ca.cert, etcd_ca.key, secretbox.new_key(), both, ca.tls_info(root.certificate))
    founding = first_objects(_CLUSTER_ID, "ingress", ClusterSpec(), keys, FirstNode(_MANAGER, "bench", config.addr, "127.0.0.1"), now)
    names = [f"w{number:04}" for number in range(agents)]
    (directory / "agents").mkdir()
    for name in names:
        Credentials.create(directory / "agents" / name, _identity(root, name, "worker"))
    credentials = Credentials.create(directory / "manager", _identity(root, _MANAGER, "manager"))
    daemon = Manager(config, over_tls(credentials, RELAY))
    objects = [*(_node(name, now) for name in names), *_running(services, replicas, names, now)]
    await daemon.start(lambda snapshot: [*founding, *(Put(one) for one in objects)])
    server = NodeServer(
        credentials,
        engine_socket="/nowhere.sock", manager=lambda: daemon.side, host="127.0.0.1", port=port,
    )  # fmt: skip
    await server.start()
    backend = FakeBackend("/nowhere.sock", state="manager", node_id=_MANAGER, store=daemon.store, known=NodeFacts())  # type: ignore[arg-type]
    runner = await serve_unix(backend, str(directory / "api.sock"))
    while daemon.store.snapshot().leader is None:
        await asyncio.sleep(0.02)
    pipe.send(config.addr)
    ended = asyncio.Event()
    for number in (15, 2):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    answering = asyncio.create_task(_answer(daemon.store, pipe))
    await ended.wait()
    answering.cancel()
    await runner.cleanup()
    await server.stop()
    await daemon.stop()


async def _answer(store: Store, pipe: Connection) -> None:
    asked = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), asked.set)
    while True:
        await asked.wait()
        asked.clear()
        count = pipe.recv()

        def all_refused(snapshot: Snapshot, count: int = count) -> bool:
            waiting = snapshot.tasks_waiting()
            return len(waiting) == count and all(task.status.state is TaskState.PENDING and task.status.err for task in waiting)

        await wait_for(store, all_refused, 60)
        pipe.send(time.monotonic())


def _running(services: int, replicas: int, nodes: list[str], now: datetime) -> list[Service | Task]:
    """Services whose tasks have run for a while."""
    objects: list[Service | Task] = []
    then = now - timedelta(hours=1)
    for number in range(services):
        template = TaskSpec(container_spec=ContainerSpec(image="app:1", isolation="default"), runtime="container")
        mode = ServiceMode(replicated=ReplicatedService(replicas=replicas))
        spec = ServiceSpec(name=f"s{number}", task_template=template, mode=mode)
        objects.append(Service(id=f"s{number}", created_at=then, updated_at=then, spec=spec))
        for slot in range(1, replicas + 1):
            place = nodes[(number * replicas + slot) % len(nodes)]
            status = TaskStatus(timestamp=then, state=TaskState.RUNNING, message="started")
            objects.append(
                Task(
                    id=f"t{number}-{slot}",
                    created_at=then,
                    updated_at=then,
                    spec=template,
                    service_id=f"s{number}",
                    slot=slot,
                    node_id=place,
                    status=status,
                    mesh_service_name=f"s{number}",
                    mesh_running_since=then,
                )
            )
    return objects


def _node(name: str, now: datetime) -> Node:
    return Node(
        id=name,
        created_at=now,
        updated_at=now,
        spec=NodeSpec(role="worker"),
        description=_description(name),
        status=NodeStatus(state="ready", addr="127.0.0.1"),
    )


def _description(name: str) -> NodeDescription:
    resources = ResourceObject(nano_cpus=8 * 10**9, memory_bytes=1 << 34)
    return NodeDescription(hostname=name, platform=Platform(architecture="x86_64", os="linux"), resources=resources)


def _identity(root: ca.RootCA, name: str, role: ca.Role) -> Identity:
    key, request = ca.new_key_and_csr()
    certificate = ca.issue(
        root,
        request,
        node_id=name,
        role=role,
        cluster_id=_CLUSTER_ID,
        now=datetime.now(UTC),
        life=timedelta(hours=1),
        addresses=["127.0.0.1"],
    )
    return Identity.of(certificate, key, root.certificate)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- in the agents' process ----------------------------------------------------------------------------------------------------


def _agents(directory: str, addr: str, pipe: Connection) -> None:
    uvloop.run(_connect(Path(directory), addr, pipe))


async def _connect(directory: Path, addr: str, pipe: Connection) -> None:
    """Sessions that acknowledge what they are told and have nothing to report."""
    synced: set[str] = set()
    running = []
    for path in sorted(directory.iterdir()):
        credentials = Credentials.load(path)
        assert credentials is not None
        running.append(asyncio.create_task(_session(credentials, path.name, addr, synced)))
    while len(synced) < len(running):
        await asyncio.sleep(0.05)
    pipe.send("connected")
    await asyncio.gather(*running)


async def _session(credentials: Credentials, name: str, addr: str, synced: set[str]) -> None:
    async def on_rows(revision: int, put: list[Row], removed: list[str], complete: bool) -> None:
        session.applied(revision, {})
        synced.add(name)

    session = AgentSession(over_tls(credentials), [addr], _description(name), on_rows)
    await session.run()
