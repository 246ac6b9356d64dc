"""Managers and agents on loopback, over real TLS, around one store in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from aiohttp import web

from orchestrator.dispatcher.assignment import assignment
from orchestrator.dispatcher.connection import RELAY, over_tls
from orchestrator.dispatcher.gateway import PATIENCE_S, Gateway
from orchestrator.dispatcher.messages import Row
from orchestrator.dispatcher.server import Dispatcher
from orchestrator.dispatcher.session import AgentSession
from orchestrator.dispatcher.tls_app import ManagerSide, NodeServer
from orchestrator.errors import Conflict
from orchestrator.model import (
    ContainerSpec,
    Leadership,
    ManagerStatus,
    Network,
    NetworkAttachment,
    NetworkReference,
    Node,
    NodeAttachment,
    NodeDescription,
    Secret,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)
from orchestrator.security.admission import Trust
from orchestrator.security.identity import Credentials
from orchestrator.store.base import Guard, Put
from orchestrator.store.memory import MemoryStore
from tests.orchestrator.security.clusters import TestCluster

DEADLINE_S = 10.0


def decrypt(secret: Secret) -> bytes:
    return secret.mesh_ciphertext


async def until(condition: Callable[[], object], what: str = "", deadline_s: float = DEADLINE_S) -> None:
    """Polls; a condition that never comes true fails with its name."""
    try:
        async with asyncio.timeout(deadline_s):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never became true within {deadline_s} s: {what or condition}") from None


@dataclass
class Manager:
    credentials: Credentials
    server: NodeServer
    dispatcher: Dispatcher
    gateway: Gateway
    serving: asyncio.Task[None]
    pokes: list[int]
    addr: str = ""
    leading: asyncio.Task[None] | None = None
    fence: Guard | None = None
    confirmed_s: float = 0.0


@dataclass
class Agent:
    """Keeps the rows it was given, as a real one would; acknowledges at once unless told not to."""

    session: AgentSession
    node_id: str
    acknowledge: bool = True
    rows: dict[str, Row] = field(default_factory=dict)
    revision: int = 0
    completes: int = 0
    deltas: int = 0
    put: list[str] = field(default_factory=list)
    open_connections: dict[str, int] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    on_revision: Callable[[int], None] = lambda revision: None
    task: asyncio.Task[None] | None = None
    roles: list[str] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)

    async def on_rows(self, revision: int, put: list[Row], removed: list[str], complete: bool) -> None:
        await self.gate.wait()
        if complete:
            self.rows = {}
            self.completes += 1
        else:
            self.deltas += 1
        for key in removed:
            del self.rows[key]
        self.rows.update((row.key, row) for row in put)
        self.put += [row.key for row in put]
        self.revision = revision
        self.on_revision(revision)
        if self.acknowledge:
            self.session.applied(revision, self.open_connections)

    async def stop(self) -> None:
        if self.task:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None


async def no_bundle(node_id: str, addr: str) -> dict[str, str]:
    return {"etcd": f"{node_id} at {addr}"}


class Lab:
    def __init__(self, directory: Path, store: MemoryStore | None = None) -> None:
        self.cluster = TestCluster(directory, store=store or MemoryStore())
        self.store = self.cluster.store
        self.managers: list[Manager] = []
        self.agents: list[Agent] = []
        self.patience_s = PATIENCE_S
        self.absent_after_s = 0.3

    async def start(self) -> None:
        await self.cluster.start()

    async def manager(
        self, node_id: str = "m1", *, lead: bool = True, heartbeat_s: float = 1.0, engine_socket: str = "/nowhere.sock"
    ) -> Manager:
        """In the store with its address, serving; leads unless told not to."""
        credentials = await self.cluster.node(node_id, "manager")
        pokes: list[int] = []
        dispatcher = Dispatcher(
            self.store, decrypt=decrypt, fence=lambda: made.fence, poke=lambda: pokes.append(1),
            heartbeat_s=heartbeat_s, absent_after_s=self.absent_after_s, confirmed_s=lambda: made.confirmed_s,
        )  # fmt: skip
        gateway = Gateway(self.store, dispatcher, node_id=node_id, connect=over_tls(credentials, RELAY), patience_s=self.patience_s)
        side = ManagerSide(self.store, gateway, no_bundle, self._recorded)
        server = NodeServer(credentials, engine_socket=engine_socket, manager=lambda: side, host="127.0.0.1", port=0)
        serving = asyncio.create_task(gateway.run())
        made = Manager(credentials, server, dispatcher, gateway, serving, pokes)
        await server.start()
        made.addr = f"127.0.0.1:{server.address[1]}"
        node = self.node(node_id)
        assert node.manager_status is not None
        await self.put(msgspec.structs.replace(node, manager_status=msgspec.structs.replace(node.manager_status, addr=made.addr)))
        self.managers.append(made)
        if lead:
            await self.lead(made)
        return made

    async def _recorded(self, node_id: str, addr: str) -> None:
        await self.put(msgspec.structs.replace(self.node(node_id), manager_status=ManagerStatus(addr=addr)))

    async def lead(self, manager: Manager) -> None:
        known = self.store.snapshot().leader
        version = known.version if known else Leadership().version
        await self.put(Leadership(version=version, node_id=manager.credentials.identity.node_id, addr=manager.addr))
        leader = self.store.snapshot().leader
        assert leader is not None
        manager.fence = Guard("leader", "leader", leader.version.index)
        manager.leading = asyncio.create_task(manager.dispatcher.lead())

    async def depose(self, manager: Manager) -> None:
        assert manager.leading is not None
        manager.leading.cancel()
        await asyncio.gather(manager.leading, return_exceptions=True)
        manager.leading, manager.fence = None, None

    async def end(self, manager: Manager) -> None:
        """As when its meshd ends."""
        self.managers.remove(manager)
        if manager.leading:
            await self.depose(manager)
        manager.serving.cancel()
        await asyncio.gather(manager.serving, return_exceptions=True)
        await manager.server.stop()

    async def agent(
        self,
        node_id: str,
        managers: list[Manager] | None = None,
        *,
        join: bool = True,
        held: bool = False,
        credentials: Credentials | None = None,
        on_trust: Callable[[Trust], None] = lambda trust: None,
    ) -> Agent:
        """A node of the store with its session running. held: its rows wait for `gate`. credentials: it is in the store already."""
        if credentials is None:
            credentials = await self.cluster.node(node_id) if join else self.cluster.credentials(node_id)
        addresses = [manager.addr for manager in (managers or self.managers)]
        made: Agent

        async def on_rows(revision: int, put: list[Row], removed: list[str], complete: bool) -> None:
            await made.on_rows(revision, put, removed, complete)

        description = NodeDescription(hostname=node_id, mesh_data_addr="127.0.0.1", tls_info=credentials.identity.tls_info)
        roles: list[str] = []
        heard: list[float] = []
        session = AgentSession(
            over_tls(credentials), addresses, description, on_rows, on_role=roles.append, on_heard=heard.append, on_trust=on_trust
        )  # fmt: skip
        made = Agent(session, node_id, roles=roles, heard=heard)
        if not held:
            made.gate.set()
        made.task = asyncio.create_task(made.session.run())
        self.agents.append(made)
        return made

    async def stop(self) -> None:
        for agent in self.agents:
            await agent.stop()
        for manager in list(self.managers):
            await self.end(manager)
        await self.store.close()

    # ---- the store --------------------------------------------------------------------------------------------------------

    def node(self, node_id: str) -> Node:
        node = self.store.snapshot().node(node_id)
        assert node is not None
        return node

    def task(self, task_id: str) -> Task:
        task = self.store.snapshot().task(task_id)
        assert task is not None
        return task

    async def put(self, *objects: object) -> int:
        return await self.store.commit([Put(obj) for obj in objects])  # type: ignore[arg-type]

    async def network(self, id: str = "net1", vni: int = 4097) -> Network:
        await self.put(Network(id=id, name=id, mesh_vni=vni))
        network = self.store.snapshot().network(id)
        assert network is not None
        return network

    async def attach(self, node_id: str, network_id: str = "net1", addr: str = "10.0.1.250/24") -> None:
        node = self.node(node_id)
        attachments = [*(node.mesh_attachments or []), NodeAttachment(network_id=network_id, addr=addr)]
        await self.retried(lambda: self.put(msgspec.structs.replace(self.node(node_id), mesh_attachments=attachments)))

    async def assign(self, task_id: str, node_id: str, networks: tuple[str, ...] = ("net1",), addr: str = "10.0.1.5/24") -> Task:
        await self.put(new_task(task_id, node_id, networks, addr))
        return self.task(task_id)

    async def change(self, task_id: str, **fields: object) -> Task:
        await self.retried(lambda: self.put(msgspec.structs.replace(self.task(task_id), **fields)))
        return self.task(task_id)

    @staticmethod
    async def retried(write: Callable[[], Awaitable[int]]) -> None:
        for _ in range(20):
            with contextlib.suppress(Conflict):
                await write()
                return
        raise AssertionError("twenty conflicts in a row")

    def expected(self, node_id: str) -> dict[str, Row]:
        return assignment(self.store.snapshot(), node_id, decrypt)

    def in_sync(self, agent: Agent) -> bool:
        return agent.rows == self.expected(agent.node_id)


def new_task(task_id: str, node_id: str, networks: tuple[str, ...] = ("net1",), addr: str = "10.0.1.5/24") -> Task:
    return Task(
        id=task_id,
        node_id=node_id,
        service_id="svc1",
        slot=1,
        mesh_service_name="web",
        spec=TaskSpec(container_spec=ContainerSpec(image="busybox")),
        status=TaskStatus(state=TaskState.ASSIGNED),
        networks_attachments=[NetworkAttachment(network=NetworkReference(id=id), addresses=[addr]) for id in networks],
    )


async def fake_engine(path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.AppRunner:
    """An Engine's unix socket that answers with `handler`."""
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    await web.UnixSite(runner, path).start()
    return runner
