"""The API's surroundings, small and strict: a daemon, an Engine behind a unix socket, control loops that run every task at once."""

from __future__ import annotations

import asyncio
import json
import select
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from msgspec.structs import replace
from yarl import URL

from orchestrator.api.app import serve_unix
from orchestrator.api.backend import InitRequest, JoinRequest, JoinRole, NodeFacts, NodeState
from orchestrator.control.slots import wanted_ports
from orchestrator.diagnose.finding import Finding
from orchestrator.dispatcher.engine_proxy import EngineProxy
from orchestrator.errors import ApiError, Conflict
from orchestrator.ids import new_id
from orchestrator.managers.backup import Backup
from orchestrator.model import (
    IPAM,
    Cluster,
    ClusterSpec,
    ContainerStatus,
    EngineDescription,
    IPAMConfig,
    JoinTokens,
    Leadership,
    ManagerStatus,
    Network,
    NetworkAttachment,
    NetworkReference,
    Node,
    NodeDescription,
    NodeSpec,
    NodeStatus,
    Platform,
    Service,
    Task,
    TaskState,
    TaskStatus,
    UpdateStatus,
    VirtualIP,
    is_attachment,
    terminal,
)
from orchestrator.security import ca, rotation
from orchestrator.store.base import Change, Delete, Put
from orchestrator.store.memory import MemoryStore
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.api.fake_events import FakeEvents
from tests.orchestrator.api.fake_logs import FakeLogs


def now() -> datetime:
    return datetime.now(UTC)


def a_node(id: str, hostname: str, role: str = "worker", state: str = "ready") -> Node:
    return Node(
        id=id,
        created_at=now(),
        updated_at=now(),
        spec=NodeSpec(role=role),
        description=NodeDescription(
            hostname=hostname,
            platform=Platform(architecture="x86_64", os="linux"),
            engine=EngineDescription(engine_version="20.10.24"),
            mesh_api_addr="10.0.0.1:2377",
            mesh_tasks_dir="/state/tasks",
        ),
        status=NodeStatus(state=state, addr="10.0.0.1"),
        manager_status=ManagerStatus(leader=True, reachability="reachable", addr="10.0.0.1:2377") if role == "manager" else None,
    )


@dataclass
class FakeBackend:
    engine_socket: str
    state: NodeState = "inactive"
    node_id: str = ""
    store: MemoryStore | None = None
    known: NodeFacts = field(default_factory=NodeFacts)
    calls: list[Any] = field(default_factory=list)
    engines: dict[str, tuple[aiohttp.ClientSession, str]] = field(default_factory=dict)
    # of the cluster that `init` makes
    new_store: Callable[[], MemoryStore] = MemoryStore

    def facts(self) -> NodeFacts:
        return self.known

    async def init(self, request: InitRequest) -> str:
        self.calls.append(request)
        self.node_id, self.store = new_id(), self.new_store()
        root = ca.new_root("c", now())
        cluster = Cluster(
            id=new_id(),
            created_at=now(),
            updated_at=now(),
            spec=request.spec,
            join_tokens=JoinTokens(worker="SWMTKN-1-x-worker0", manager="SWMTKN-1-x-manager0"),
            mesh_ca_cert=root.certificate,
            mesh_ca_key=root.key,
            tls_info=ca.tls_info(root.certificate),
            mesh_secret_key=b"very secret",
            default_addr_pool=list(request.default_addr_pool) or ["10.0.0.0/8"],
            subnet_size=request.subnet_size or 24,
        )
        await self.store.commit(
            [Put(cluster), Put(a_node(self.node_id, "node-a", "manager")), Put(Leadership(node_id=self.node_id, addr="10.0.0.1:2377"))]
        )
        self.state = "manager"
        self.known = NodeFacts(node_addr="10.0.0.1", balancer="nftables", managers=((self.node_id, "10.0.0.1:2377"),))
        return self.node_id

    async def recover(self) -> str:
        self.calls.append("recover")
        return self.node_id

    async def restore(self, backup: Backup, advertise_addr: str) -> str:
        self.calls.append(("restore", backup.header.cluster, advertise_addr))
        self.state, self.node_id = "manager", new_id()
        return self.node_id

    async def join(self, request: JoinRequest) -> None:
        self.calls.append(request)
        if not request.token.startswith("SWMTKN-1-x-"):
            raise ApiError(500, "invalid join token")
        self.state, self.node_id = "worker", new_id()

    async def leave(self, force: bool) -> None:
        self.calls.append(("leave", force))
        self.state, self.node_id, self.store = "inactive", "", None

    async def unlock(self, key: str) -> None:
        self.calls.append(("unlock", key))
        self.state = "manager"

    async def follow_unlock_key(self) -> None:
        self.calls.append("follow unlock key")

    async def engine_session(self, node_id: str) -> tuple[aiohttp.ClientSession, str]:
        if node_id not in self.engines:
            raise ApiError(500, f"node {node_id} can't be reached")
        return self.engines[node_id]

    async def examine(self) -> list[Finding]:
        return []

    def rotate_token(self, cluster: Cluster, role: JoinRole) -> JoinTokens:
        assert cluster.join_tokens is not None
        return replace(cluster.join_tokens, **{role: getattr(cluster.join_tokens, role) + "1"})

    async def order_ca(self, cluster: Cluster, spec: ClusterSpec) -> Cluster:
        """All but asking external CAs."""
        config = rotation.normalized(cluster, spec.ca_config)
        return rotation.ordered(replace(cluster, spec=spec), config, rotation.wanted(cluster, config, now()), now())

    def encrypt_secret(self, plain: bytes) -> bytes:
        return bytes(byte ^ 0x55 for byte in plain)

    def decrypt_secret(self, ciphertext: bytes) -> bytes:
        return bytes(byte ^ 0x55 for byte in ciphertext)


class FakeEngine:
    """Speaks API 1.41, hijacks as dockerd does, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.waiting = asyncio.Event()
        self.logs = FakeLogs()
        self.stdin = b""
        # of the newest connection that left HTTP behind: (name, value), as they came
        self.attached_with: list[tuple[str, str]] = []
        self.client_gone = asyncio.Event()
        self.flooded = 0
        # those that are not like all others, by the reference that finds them
        self.containers: dict[str, dict[str, Any]] = {}
        self.events = FakeEvents()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._remember])
        prefix = "/v{version}"
        app.router.add_get("/_ping", self._ping)
        for path in ("", prefix):
            app.router.add_get(f"{path}/version", self._version)
            app.router.add_get(f"{path}/info", self._info)
            app.router.add_get(f"{path}/networks", self._networks)
            app.router.add_get(f"{path}/containers/{{id}}/logs", self.logs.serve)
        app.router.add_get(prefix + "/containers/json", self._containers)
        app.router.add_get(prefix + "/containers/{id}/json", self._container)
        app.router.add_get(prefix + "/images/{name:.+}/json", self._image)
        app.router.add_get(prefix + "/events", self.events.serve)
        app.router.add_post(prefix + "/networks/create", self._network_create)
        app.router.add_post(prefix + "/networks/prune", self._prune)
        app.router.add_post(prefix + "/containers/create", self._container_create)
        app.router.add_post(prefix + "/containers/{id}/wait", self._wait)
        app.router.add_post(prefix + "/containers/{id}/attach", self._attach)
        app.router.add_delete(prefix + "/containers/{id}", self._removed)
        app.router.add_route("HEAD", prefix + "/containers/{id}/archive", self._archive)
        app.router.add_put(prefix + "/containers/{id}/archive", self._upload)
        app.router.add_get(prefix + "/distribution/{name:.+}/json", self._hang)
        app.router.add_route("*", "/{path:.*}", self._unknown)
        return app

    @web.middleware
    async def _remember(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append((request.method, request.raw_path))
        return await handler(request)

    async def _ping(self, request: web.Request) -> web.Response:
        return web.Response(text="OK", headers={"Api-Version": "1.41"})

    async def _version(self, request: web.Request) -> web.Response:
        details = {"ApiVersion": "1.41", "MinAPIVersion": "1.12"}
        return web.json_response({"Version": "20.10.24", "ApiVersion": "1.41", "Os": "linux", "Arch": "amd64",
                                  "Components": [{"Name": "Engine", "Version": "20.10.24", "Details": details}]})  # fmt: skip

    async def _info(self, request: web.Request) -> web.Response:
        about = {"ID": "x", "Name": "node-a", "Swarm": {"LocalNodeState": "inactive"}, "Labels": [], "OSType": "linux"}
        return web.json_response({**about, **self.events.info()})

    async def _networks(self, request: web.Request) -> web.Response:
        # a real Engine filters; this one has one network, without labels
        if "label" in request.query.get("filters", ""):
            return web.json_response([])
        return web.json_response(
            [{"Name": "bridge", "Id": "b" * 64, "Driver": "bridge", "Scope": "local", "Created": "2026-01-01T00:00:00Z"}]
        )

    async def _containers(self, request: web.Request) -> web.Response:
        return web.json_response([])

    async def _container(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        if id == "nosuch":
            return web.json_response({"message": f"No such container: {id}"}, status=404)
        if id in self.containers:
            return web.json_response(self.containers[id])
        return web.json_response({"Id": id, "Name": f"/name-of-{id}", "Created": "2026-01-01T00:00:00.5Z", "Config": {"Labels": {}}})

    async def _image(self, request: web.Request) -> web.Response:
        if request.match_info["name"] == "nosuch":
            return web.json_response({"message": "No such image: nosuch"}, status=404)
        return web.json_response({"Id": "sha256:1", "Config": {"Entrypoint": ["/entry"], "Cmd": ["serve"], "Env": ["PATH=/bin", "a.b=1"]}})

    async def _network_create(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        return web.json_response({"Id": "local", "Warning": ""}, status=201)

    async def _container_create(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        if request.query.get("name") in self.containers:
            return web.json_response({"message": "Conflict. The container name is already in use"}, status=409)
        return web.json_response({"Id": "c1" * 32, "Warnings": []}, status=201)

    async def _removed(self, request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def _prune(self, request: web.Request) -> web.Response:
        return web.json_response({"NetworksDeleted": ["oldbridge"]})

    async def _wait(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        await self.waiting.wait()
        await answer.write(b'{"StatusCode":7}\n')
        return answer

    async def _archive(self, request: web.Request) -> web.Response:
        return web.Response(headers={"X-Docker-Container-Path-Stat": "e30="})

    async def _upload(self, request: web.Request) -> web.Response:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
        self.bodies.append(str(size).encode())
        return web.Response()

    async def _hang(self, request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def _unknown(self, request: web.Request) -> web.Response:
        return web.json_response({"message": "page not found"}, status=404)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        """Answers what it was sent in capitals, and only after the end of input says goodbye."""
        if request.match_info["id"] == "nosuch":
            return web.json_response({"message": "No such container: nosuch"}, status=404)
        self.attached_with = list(request.headers.items())
        await request.read()
        transport = request.transport
        assert transport is not None
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        http = request.protocol
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
        writer.write(
            b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
            b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello\n"
        )
        if request.match_info["id"] == "flood":
            with suppress(ConnectionError):
                while True:
                    writer.write(b"z" * 65536)
                    await writer.drain()
                    self.flooded += 65536
            self.client_gone.set()
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                self.stdin += data
                writer.write(data.upper())
                await writer.drain()
            if request.match_info["id"] == "silent":
                poll = select.poll()
                poll.register(transport.get_extra_info("socket").fileno(), 0)
                while not poll.poll(0):
                    await asyncio.sleep(0.02)
        self.client_gone.set()
        writer.write(b"bye\n")
        with suppress(ConnectionError):
            await writer.drain()
        transport.set_protocol(http)
        transport.close()
        raise asyncio.CancelledError


class FakeControl:
    """Allocates networks and runs every service's tasks the moment it is written: what the leader and agents do, without them."""

    def __init__(self, store: MemoryStore, engine_node: str) -> None:
        self.store = store
        self.node = engine_node

    async def run(self) -> None:
        watch = self.store.watch()
        while True:
            while changes := self._changes(self.store.snapshot()):
                with suppress(Conflict):
                    await self.store.commit(changes)
            await anext(watch)

    def _changes(self, snapshot: Snapshot) -> Sequence[Change]:
        changes: list[Change] = []
        for number, network in enumerate(sorted(snapshot.all(Network), key=lambda network: network.created_at)):
            if not network.mesh_vni:
                ipam = network.ipam
                if not ipam.config:
                    ipam = IPAM(driver="default", config=[IPAMConfig(subnet=f"10.0.{number + 1}.0/24", gateway=f"10.0.{number + 1}.1")])
                changes.append(Put(replace(network, mesh_vni=4097 + number, ipam=ipam)))
        for service in snapshot.all(Service):
            changes += self._service(snapshot, service)
        for task in snapshot.all(Task):
            if is_attachment(task):
                changes += self._attachment(snapshot, task)
            elif snapshot.service(task.service_id) is None:
                changes.append(Delete("task", task.id, task.version.index))
        return changes

    def _attachment(self, snapshot: Snapshot, task: Task) -> list[Change]:
        """Addresses end with 100 + the number of the network's containers; the gate is there at once; a network called "full" is."""
        if task.desired_state is TaskState.REMOVE:
            return [Delete("task", task.id, task.version.index)]
        had = {attachment.network.id: attachment for attachment in task.networks_attachments or ()}
        attachments = []
        for config in task.spec.networks or ():
            network = snapshot.network(config.target)
            assert network is not None
            if network.name == "full":
                err = "pool exhausted 4/4 of network full"
                return [Put(replace(task, status=replace(task.status, err=err)))] if task.status.err != err else []
            address = f"10.0.1.{100 + len(snapshot.tasks_of_network(network.id))}/24"
            attachments.append(had.get(network.id) or NetworkAttachment(network=NetworkReference(id=network.id), addresses=[address]))
        status = replace(task.status, state=TaskState.READY) if task.status.state is TaskState.NEW else task.status
        if (attachments, status) == (task.networks_attachments or [], task.status):
            return []
        return [Put(replace(task, networks_attachments=attachments or None, status=status))]

    def _service(self, snapshot: Snapshot, service: Service) -> list[Change]:
        """The tasks of jobs are left to the test."""
        if service.job_status is not None:
            return []
        changes: list[Change] = []
        mode = service.spec.mode.replicated
        count = mode.replicas if mode is not None and mode.replicas is not None else 1
        tasks = {task.slot: task for task in snapshot.tasks_of_service(service.id) if not terminal(task.desired_state)}
        for slot in range(1, count + 1):
            old = tasks.pop(slot, None)
            if old is not None and old.spec == service.spec.task_template:
                continue
            if old is not None:
                tasks[slot] = old
            changes.append(Put(self._task(service, slot)))
        for task in tasks.values():
            status = replace(task.status, state=TaskState.SHUTDOWN)
            changes.append(Put(replace(task, desired_state=TaskState.SHUTDOWN, status=status)))
        spec = service.spec.endpoint_spec
        wanted = [VirtualIP(network_id=network.target, addr="10.0.1.2/24") for network in service.spec.task_template.networks or ()]
        endpoint = replace(service.endpoint, virtual_ips=wanted or None, ports=spec.ports if spec else None)
        status = service.update_status
        if status is not None and status.state in ("updating", "rollback_started"):
            state = "completed" if status.state == "updating" else "rollback_completed"
            status = UpdateStatus(state=state, started_at=status.started_at, completed_at=now(), message="done")
        if changes or endpoint != service.endpoint or status != service.update_status:
            changes.append(Put(replace(service, endpoint=endpoint, update_status=status)))
        return changes

    def _task(self, service: Service, slot: int) -> Task:
        id = new_id()
        return Task(
            id=id,
            created_at=now(),
            updated_at=now(),
            spec=service.spec.task_template,
            service_id=service.id,
            slot=slot,
            node_id=self.node,
            mesh_service_name=service.spec.name,
            mesh_endpoint_ports=wanted_ports(service),
            status=TaskStatus(
                timestamp=now(), state=TaskState.RUNNING, message="started", container_status=ContainerStatus(container_id=f"c-{id}", pid=1)
            ),
            networks_attachments=[
                NetworkAttachment(network=NetworkReference(id=network.target), addresses=[f"10.0.1.{10 + slot}/24"])
                for network in service.spec.task_template.networks or ()
            ]
            or None,
        )


@dataclass
class Setup:
    """A node: the API served on `socket`, an Engine behind it. `call` is one request."""

    backend: FakeBackend
    engine: FakeEngine
    socket: str
    session: aiohttp.ClientSession
    app: web.Application

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def store(self) -> MemoryStore:
        assert self.backend.store is not None
        return self.backend.store

    async def call(self, method: str, path: str, body: Any = None, raw: bytes | None = None) -> tuple[int, Any]:
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        async with self.session.request(method, URL(f"http://d{path}", encoded="%" in path), data=data) as response:
            content = await response.read()
            return response.status, json.loads(content) if content else None

    async def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        status, answer = await self.call(method, path, body)
        assert status >= 400, answer
        return status, answer["message"]

    async def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.call(method, path, body)
        assert status < 300, answer
        return answer

    async def init(self) -> str:
        return str(await self.ok("POST", "/swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.0.0.1"}))


@asynccontextmanager
async def serving(directory: Path, engine: Any = None) -> AsyncIterator[Setup]:
    engine = engine or FakeEngine()
    engine_socket = str(directory / "engine.sock")
    runner = web.AppRunner(engine.app(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, engine_socket).start()
    backend = FakeBackend(engine_socket)
    socket = str(directory / "meshd.sock")
    api = await serve_unix(backend, socket)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket, limit=0)) as session:
        yield Setup(backend, engine, socket, session, api.app)
    await api.cleanup()
    await runner.cleanup()


@asynccontextmanager
async def other_node(setup: Setup, directory: Path, node: Node, engine: web.Application) -> AsyncIterator[None]:
    """Another node of the cluster: its Engine behind a socket, and behind what its TLS server forwards with (without TLS)."""
    runners = [web.AppRunner(engine, handler_cancellation=True, shutdown_timeout=0.1)]
    socket = str(directory / f"{node.id}.sock")
    proxy = EngineProxy(socket)

    async def forward(request: web.Request) -> web.StreamResponse:
        try:
            return await proxy.forward(request, request.rel_url.raw_path.removeprefix("/v1/engine"))
        except web.HTTPException as error:
            return web.json_response({"message": error.text}, status=error.status)

    door = web.Application(client_max_size=64 * 1024)
    door.router.add_route("*", "/v1/engine/{path:.*}", forward)
    runners.append(web.AppRunner(door, handler_cancellation=True, shutdown_timeout=0.1))
    for runner, path in zip(runners, (socket, socket + ".door"), strict=True):
        await runner.setup()
        await web.UnixSite(runner, path).start()
    await setup.store.commit([Put(node)])
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket + ".door", limit=0)) as session:
        setup.backend.engines[node.id] = (session, "http://node/v1/engine")
        yield
    for runner in reversed(runners):
        await runner.cleanup()
    await proxy.close()


@asynccontextmanager
async def controlled(setup: Setup) -> AsyncIterator[None]:
    control = asyncio.create_task(FakeControl(setup.store, setup.backend.node_id).run())
    try:
        yield
    finally:
        control.cancel()
        with suppress(asyncio.CancelledError):
            await control
