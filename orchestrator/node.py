"""What every node of a cluster runs, worker or manager: the TLS server, the agent with its Engine, data plane and DNS process.

Edge: builds, starts and ends them in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec

from dnsd.client import Client
from dnsd.model import Status
from mesh import MeshError, NodeMesh, unable_to_encrypt
from mesh.model import Balancer, NodeState
from mesh.node import Totals
from orchestrator import permissions
from orchestrator.agent.agent import Agent
from orchestrator.agent.dnsd_process import DnsdProcess
from orchestrator.agent.engine import DockerRuntime
from orchestrator.agent.errors import EngineUnavailable
from orchestrator.agent.keyring import Keyring
from orchestrator.agent.lease import Lease
from orchestrator.agent.leaving import remove_all
from orchestrator.diagnose.finding import Finding
from orchestrator.diagnose.node_side import NodeTracing
from orchestrator.diagnose.peers import NodeView
from orchestrator.dispatcher.connection import over_tls
from orchestrator.dispatcher.session import AgentSession
from orchestrator.dispatcher.tls_app import ManagerSide, NodeServer
from orchestrator.errors import MeshdError
from orchestrator.formation.door import Door
from orchestrator.model import NodeDescription, NodeEncryption
from orchestrator.node_sessions import NodeSessions
from orchestrator.security.admission import Trust, split_endpoint
from orchestrator.security.identity import Credentials
from orchestrator.security.registrar import Registrar
from orchestrator.security.renewal import Renewal
from orchestrator.store.snapshot import Snapshot

log = logging.getLogger(__name__)

_ENGINE_RETRY_S = 1.0
_DNS_STATUS_S = 1.0
# an Engine that is started again answers after a second or two; one that is silent for longer gets no new tasks
_ENGINE_PATIENCE_S = 5.0
_ENGINE_SILENT = "its Docker Engine does not answer"
# what a node is (CPUs, memory, Engine version, labels) changes seldom
_DESCRIBE_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """runtime_dir: on tmpfs; secrets of tasks live there. listen, api_addr: "ip:port"; data_addr: this node's VXLAN address."""

    state_dir: Path
    runtime_dir: Path
    engine: str
    hostname: str
    listen: str
    api_addr: str
    data_addr: str
    netns_prefix: str
    balancer: Balancer
    permits: frozenset[str] = permissions.DEFAULT

    @property
    def engine_socket(self) -> str:
        return self.engine.removeprefix("unix://")

    @property
    def dns_control(self) -> Path:
        """In the state directory, not /run: dnsd is found and adopted there by the next meshd, whatever became of this one."""
        return self.state_dir / "dnsd.sock"


class NodeRuntime:
    """`start()`, then `stop()` (everything on the node goes on) or `leave()` (everything of the cluster is removed)."""

    def __init__(
        self,
        settings: NodeSettings,
        credentials: Credentials,
        *,
        mesh: NodeMesh,
        managers: Sequence[str],
        manager_side: Callable[[], ManagerSide | None],
        on_managers: Callable[[tuple[str, ...]], None],
        on_role: Callable[[str], None],
        formation: Door | None = None,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._mesh = mesh
        self._managers = tuple(managers)
        self._on_managers = on_managers
        self._on_role = on_role
        self._runtime = _runtime(settings, credentials.identity.cluster_id)
        self._dnsd = _dnsd(settings, self._dnsd_started)
        self._names = Client(settings.dns_control)
        # Another connection: who asks for figures waits for no apply, and no apply for them.
        self._names_status = Client(settings.dns_control, timeout_s=_DNS_STATUS_S)
        host, port = split_endpoint(settings.listen)
        tracing = NodeTracing(
            netns_prefix=settings.netns_prefix, state=self._told, pid_of=self._pid_of, differences=self._differences
        )  # fmt: skip
        self._server = NodeServer(
            credentials,
            engine_socket=settings.engine_socket,
            manager=manager_side,
            host=host,
            port=port,
            tracing=tracing,
            formation=formation.serve if formation is not None else None,
        )
        self._keyring = Keyring(settings.state_dir / "wireguard.json")
        self._unable_to_encrypt = unable_to_encrypt()
        self._lease = Lease(settings.runtime_dir / "lease.json")
        self._session: AgentSession | None = None
        self._agent: Agent | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._sessions = NodeSessions(credentials)
        self._manager_side = manager_side
        self._renewal = Renewal(
            credentials,
            lambda: self._managers,
            registrar=self._registrar,
            connected=lambda: self._session is not None and self._session.connected_to != "",
            on_change=self._certificate_changed,
        )
        self._root = credentials.identity.root_certificate
        self._describe_now = asyncio.Event()

    async def start(self) -> None:
        """ConfigError: the port is taken; nothing is left running then. The agent waits for its Engine in the background."""
        await self._server.start()
        self._tasks.append(asyncio.create_task(self._run_agent(), name="agent"))
        self._tasks.append(asyncio.create_task(self._renewal.run(), name="renew"))
        self._tasks.append(asyncio.create_task(self._follow_removals(), name="removals"))

    def mesh_totals(self) -> Totals:
        return self._mesh.totals

    async def dns_status(self) -> Status:
        """DnsUnavailable: it doesn't answer."""
        return await self._names_status.status()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for done in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(done, Exception):
                log.error("stopping part=%r error=%r", "agent", done)
        self._tasks.clear()
        await self._server.stop()
        await self._sessions.close()
        await self._names_status.close()
        await self._mesh.close()
        await self._runtime.close()

    async def leave(self) -> None:
        """Tell the leader, then stop and remove this node's tasks, its data plane and its DNS process."""
        if self._session is not None:
            await self._session.leave()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await _sweep(self._runtime, self._dnsd, self._mesh)
        self._keyring.erase()
        await self.stop()

    def node_session(self, snapshot: Snapshot, node_id: str) -> tuple[aiohttp.ClientSession, str]:
        """HTTP to a node's own API, as a manager. ApiError(500) for a node that has no address."""
        return self._sessions.to(snapshot, node_id)

    async def _follow_removals(self) -> None:
        while True:
            if (side := self._manager_side()) is not None:
                await self._sessions.follow(side.store)
            await asyncio.sleep(_ENGINE_RETRY_S)

    # ---- certificates --------------------------------------------------------------------------------------------------------

    def _registrar(self) -> Registrar | None:
        side = self._manager_side()
        return Registrar(side.store, self._credentials) if side is not None else None

    def _heard_trust(self, trust: Trust) -> None:
        self._server.managers_only.told(trust.managers)
        self._renewal.told(trust)

    def _certificate_changed(self) -> None:
        root = self._credentials.identity.root_certificate
        if root != self._root:
            self._root = root
            self._server.end_old_root()
        self._describe_now.set()

    def _told(self) -> NodeState | None:
        return self._agent.wanted if self._agent is not None else None

    def view(self, nodes: Sequence[tuple[str, str, str]], etcd: Callable[[], Coroutine[None, None, list[Finding]]] | None) -> NodeView:
        """What a doctor looks at. nodes: see there."""
        agent = self._agent
        return NodeView(
            node_id=self._credentials.identity.node_id,
            data_addr=self._settings.data_addr,
            netns_prefix=self._settings.netns_prefix,
            credentials=self._credentials,
            rows=agent.rows if agent is not None else None,
            state=self._told(),
            nodes=nodes,
            network_errors=agent.network_errors if agent is not None else {},
            differences=self._differences,
            etcd=etcd,
        )

    async def _differences(self) -> list[str]:
        """Between the kernel and what it was told; what can't be compared is said too."""
        told = self._told()
        if told is None:
            return []
        try:
            return [str(difference) for difference in (await self._mesh.compare(told)).differences]
        except (MeshError, OSError) as error:
            return [f"host: could not be read ({error})"]

    def _pid_of(self, task_id: str) -> int:
        container = self._agent.containers.get(task_id) if self._agent is not None else None
        return container.pid if container is not None else 0

    # ---- the agent -----------------------------------------------------------------------------------------------------------

    async def _run_agent(self) -> None:
        while True:
            try:
                await self._agent_once()
            except asyncio.CancelledError:
                raise
            except BaseExceptionGroup as group:
                log.exception("agent crashed, starting it again", exc_info=group)
            except Exception:
                log.exception("agent crashed, starting it again")
            await asyncio.sleep(_ENGINE_RETRY_S)

    async def _agent_once(self) -> None:
        description = await self._described()
        session = AgentSession(
            over_tls(self._credentials),
            self._managers,
            description,
            self._on_rows,
            on_heard=self._lease.heard,
            on_managers=self._heard_managers,
            on_role=self._on_role,
            on_trust=self._heard_trust,
        )
        agent = Agent(
            node_id=self._credentials.identity.node_id,
            data_addr=self._settings.data_addr,
            runtime=self._runtime,
            mesh=self._mesh,
            names=self._names,
            session=session,
            lease=self._lease,
            balancer=self._settings.balancer,
            permits=self._settings.permits,
            cluster_id=self._credentials.identity.cluster_id,
            keyring=self._keyring,
            unable_to_encrypt=self._unable_to_encrypt,
        )
        self._session, self._agent = session, agent
        async with asyncio.TaskGroup() as group:
            group.create_task(self._dnsd.run())
            group.create_task(agent.run())
            group.create_task(session.run())
            group.create_task(self._describe_forever(agent, session, description))

    def _dnsd_started(self) -> None:
        if self._agent is not None:
            self._agent.resync()

    async def _on_rows(self, *arguments: object) -> None:
        assert self._agent is not None
        await self._agent.on_rows(*arguments)  # type: ignore[arg-type]

    def _heard_managers(self, managers: tuple[str, ...]) -> None:
        self._managers = managers
        self._on_managers(managers)

    async def _described(self) -> NodeDescription:
        """What this node is. An Engine that doesn't answer keeps it from taking tasks, not from being in the cluster."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENGINE_PATIENCE_S):
                while True:
                    with contextlib.suppress(EngineUnavailable):
                        return await self._describe()
                    await asyncio.sleep(_ENGINE_RETRY_S)
        log.warning("engine=%s does not answer; the node gets tasks when it does", self._settings.engine)
        return self._own(NodeDescription(mesh_engine_error=_ENGINE_SILENT))

    async def _describe(self) -> NodeDescription:
        return self._own(await self._runtime.describe())

    def _own(self, description: NodeDescription) -> NodeDescription:
        return msgspec.structs.replace(
            description,
            hostname=self._settings.hostname,
            tls_info=self._credentials.identity.tls_info,
            mesh_balancer=self._settings.balancer,
            mesh_api_addr=self._settings.api_addr,
            mesh_data_addr=self._settings.data_addr,
            mesh_permits=sorted(self._settings.permits),
            mesh_encryption=self._encryption(),
        )

    def _encryption(self) -> NodeEncryption:
        """Keys that are on disk; the step that the kernel shows, -1: none yet."""
        if self._unable_to_encrypt:
            return NodeEncryption(unable=self._unable_to_encrypt)
        step = self._agent.keys_step if self._agent is not None else None
        return NodeEncryption(keys=self._keyring.public, step=-1 if step is None else step)

    async def _describe_forever(self, agent: Agent, session: AgentSession, last: NodeDescription) -> None:
        loop = asyncio.get_running_loop()
        due_at_s = loop.time() + _DESCRIBE_EVERY_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ENGINE_RETRY_S):
                    await self._describe_now.wait()
            if self._describe_now.is_set():
                self._describe_now.clear()
                last = msgspec.structs.replace(last, tls_info=self._credentials.identity.tls_info)
                session.describe(last)
            silent = agent.engine_silent_s > _ENGINE_PATIENCE_S
            encryption = self._encryption()
            if encryption != last.mesh_encryption:
                last = msgspec.structs.replace(last, mesh_encryption=encryption)
                session.describe(last)
            if silent is bool(last.mesh_engine_error) and (silent or loop.time() < due_at_s):
                continue
            if silent:
                fresh = msgspec.structs.replace(last, mesh_engine_error=_ENGINE_SILENT)
                log.warning("engine=%s does not answer; no new tasks until it does", self._settings.engine)
            else:
                try:
                    async with asyncio.timeout(_ENGINE_PATIENCE_S):
                        fresh = await self._describe()
                except (EngineUnavailable, TimeoutError):
                    continue
            due_at_s = loop.time() + _DESCRIBE_EVERY_S
            if fresh != last:
                session.describe(fresh)
                last = fresh


async def leave_without_running(settings: NodeSettings, cluster_id: str, mesh: NodeMesh) -> None:
    """Remove what is on a node that leaves its cluster without its keys: it can't tell the leader."""
    runtime = _runtime(settings, cluster_id)
    try:
        await _sweep(runtime, _dnsd(settings, lambda: None), mesh)
    finally:
        await mesh.close()
        await runtime.close()


async def _sweep(runtime: DockerRuntime, dnsd: DnsdProcess, mesh: NodeMesh) -> None:
    try:
        await remove_all(runtime)
    except (MeshdError, ExceptionGroup) as error:
        log.warning("leave containers=kept error=%r", error)
    await dnsd.stop()
    await mesh.flush()


def _runtime(settings: NodeSettings, cluster_id: str) -> DockerRuntime:
    return DockerRuntime(
        engine_url=settings.engine,
        cluster_id=cluster_id,
        state_dir=settings.state_dir / "tasks",
        files_dir=settings.runtime_dir,
        hostname=settings.hostname,
    )


def _dnsd(settings: NodeSettings, on_start: Callable[[], None]) -> DnsdProcess:
    directory = settings.state_dir
    return DnsdProcess(control=settings.dns_control, state_file=directory / "dnsd.json", log_file=directory / "dnsd.log", on_start=on_start)
