"""One simulated machine: an Engine and a kernel that outlive meshd, and meshd, the real one: agent, session and, on managers, `Leading`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Protocol

from dnsd.model import Applied, DnsState
from mesh.errors import KernelError
from mesh.model import NodeState
from orchestrator.agent.agent import Agent
from orchestrator.agent.errors import EngineUnavailable
from orchestrator.agent.runtime import Container
from orchestrator.dispatcher.connection import Connection
from orchestrator.dispatcher.gateway import Gateway
from orchestrator.dispatcher.messages import Row
from orchestrator.dispatcher.session import AgentSession
from orchestrator.managers.leading import Leading
from orchestrator.model import NodeDescription, Platform, ResourceObject, Task
from orchestrator.security.peer import Peer
from tests.orchestrator.agent.fake_runtime import FakeEngine, FakeRuntime
from tests.orchestrator.control.sim import START

from .etcd import Etcd, Member
from .network import End, Network

# what there is in the registry: an image that serves, its next version, one that fails soon after its start, one that has work to do
IMAGES: dict[str, tuple[int, ...]] = {"app:1": (), "app:2": (), "crash:1": (), "job:1": ()}
# image -> (the longest it runs, how it ends)
_ENDS = {"crash:1": (0.4, 1), "job:1": (4.0, 0)}
_NEVER_EXPIRES_S = 4e9


class World(Protocol):
    """What a machine needs of everything around it."""

    etcd: Etcd
    network: Network
    machines: Mapping[str, Machine]

    def new_id(self) -> str: ...

    def about_to_stop(self, machine: Machine, task_id: str) -> None:
        """A law is checked here: the Engine is asked to stop the task's container."""
        ...


@dataclass(slots=True)
class Faults:
    """What is wrong with a machine just now."""

    engine_down: bool = False
    engine_hangs: bool = False
    engine_answers_lost: float = 0.0
    kernel_fails: bool = False
    slow_pull_s: float = 0.0
    clock_off: timedelta = field(default_factory=timedelta)


class SimRuntime(FakeRuntime):
    """The strict fake Engine, with time, pulls, hangs and lost answers."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.engine)
        self._machine, self._random = machine, machine.random

    async def _reach(self) -> None:
        await asyncio.sleep(self._random.uniform(0.001, 0.05))
        while self._machine.faults.engine_hangs:
            await asyncio.sleep(0.5)
        if self._machine.faults.engine_down:
            raise EngineUnavailable("the engine is down")

    def _answer(self) -> None:
        if self._random.random() < self._machine.faults.engine_answers_lost:
            raise EngineUnavailable("the engine's answer was lost")

    async def describe(self) -> NodeDescription:
        await self._reach()
        return self._machine.description

    async def prepare(self, task: Task, files: dict[str, bytes], registry_auth: str = "") -> Container:
        assert task.spec.container_spec is not None
        image = task.spec.container_spec.image
        if image not in self._machine.pulled and image in self.engine.images:
            await asyncio.sleep(self._random.uniform(0.1, 1.0) + self._random.random() * self._machine.faults.slow_pull_s)
            self._machine.pulled.add(image)
        if image in _ENDS:
            self._machine.ends[task.id] = _ENDS[image]
        container = await super().prepare(task, files, registry_auth)
        self._answer()
        return container

    async def start_held(self, task_id: str) -> Container:
        container = await super().start_held(task_id)
        self._answer()
        return container

    async def release(self, task_id: str) -> None:
        waiting = (box := self.engine.boxes.get(task_id)) is not None and box.waiting
        await super().release(task_id)
        if waiting and (end := self._machine.ends.get(task_id)) is not None:
            asyncio.get_running_loop().call_later(end[0] * self._random.random(), self._machine.end_container, task_id, end[1])
        self._answer()

    async def stop(self, task_id: str, grace_s: float, signal: str) -> None:
        await self._reach()
        self._machine.world.about_to_stop(self._machine, task_id)
        await asyncio.sleep(self._random.uniform(0.0, min(grace_s, 3.0)))
        await super().stop(task_id, grace_s, signal)
        self._answer()

    async def remove(self, task_id: str) -> None:
        await super().remove(task_id)
        self._answer()


@dataclass(slots=True)
class _Report:
    errors: Mapping[str, object]


class SimKernel:
    """A data plane that shows the last state it took, and forgets it with the machine's power."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.state: NodeState | None = None

    async def apply(self, state: NodeState, *, resync: bool = False) -> _Report:
        random = self._machine.random
        await asyncio.sleep(random.uniform(0.001, 0.03))
        if self._machine.faults.kernel_fails and random.random() < 0.7:
            raise KernelError("nft", 12)
        living = {f"/proc/{pid}/ns/net" for pid in self._machine.engine.living()}
        self.state = state
        return _Report({f"sandbox:{s.id}": "namespace gone" for s in state.sandboxes if s.netns not in living})

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Nobody else changes this kernel."""

    async def open_connections(self, addresses: Mapping[str, set[str]]) -> dict[tuple[str, str], int]:
        """Some are open at first, none a little later."""
        return {
            (network, address): int(self._machine.random.random() < 0.3) for network in sorted(addresses) for address in addresses[network]
        }


class SimNames:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.state: DnsState | None = None

    async def apply(self, state: DnsState) -> Applied:
        await asyncio.sleep(self._machine.random.uniform(0.0005, 0.005))
        self.state = state
        return Applied(failed={})


class Machine:
    """`power_on`, `start` and `kill` as often as you like."""

    def __init__(self, name: str, world: World, *, manager: bool, seed: str) -> None:
        self.name, self.world, self.is_manager = name, world, manager
        self.random = Random(f"{seed}/{name}")
        self.faults = Faults()
        self.pulled: set[str] = set()
        self.ends: dict[str, tuple[float, int]] = {}
        self.rows: dict[str, Row] = {}
        self.engine = FakeEngine(images=dict(IMAGES), now=self.now)
        self.kernel, self.names = SimKernel(self), SimNames(self)
        self.description = NodeDescription(
            hostname=name,
            platform=Platform(architecture="x86_64", os="linux"),
            resources=ResourceObject(nano_cpus=64_000_000_000, memory_bytes=1 << 36),
            mesh_data_addr=f"192.0.2.{int(name[1:])}",
        )
        self.agent: Agent | None = None
        self.session: AgentSession | None = None
        self.leading: Leading | None = None
        self._store: Member | None = None
        self._parts: list[asyncio.Task[None]] = []
        self._conversations: dict[asyncio.Task[None], End] = {}

    @property
    def addr(self) -> str:
        return f"{self.name}:2377"

    @property
    def up(self) -> bool:
        return bool(self._parts)

    def now(self) -> datetime:
        return START + timedelta(seconds=asyncio.get_running_loop().time()) + self.faults.clock_off

    def serving(self) -> set[str]:
        """Tasks whose application runs here."""
        return {task_id for task_id, box in self.engine.boxes.items() if box.container.state == "running" and not box.waiting}

    def end_container(self, task_id: str, code: int) -> None:
        box = self.engine.boxes.get(task_id)
        if box is not None and box.container.state == "running":
            self.engine.exit(task_id, code)

    # ---- meshd ---------------------------------------------------------------------------------------------------------------

    def start(self, managers: list[str]) -> None:
        assert not self.up
        session = self.session = AgentSession(
            self._connect, managers, self.description, self._on_rows, random_=Random(self.random.random())
        )  # fmt: skip
        agent = self.agent = Agent(
            node_id=self.name,
            data_addr=self.description.mesh_data_addr,
            runtime=SimRuntime(self),
            mesh=self.kernel,
            names=self.names,
            session=session,
            listening=lambda pid: frozenset(range(1, 100)),
            alive=lambda pid: pid in self.engine.living(),
            now=self.now,
        )
        works = [session.run(), agent.run()]
        if self.is_manager:
            self._store = self.world.etcd.join(self.name)
            self.leading = Leading(
                self._store,
                self._store.raft_status,
                node_id=self.name,
                addr=self.addr,
                decrypt=lambda secret: secret.mesh_ciphertext,
                connect=self._connect_manager,
                now=self.now,
                new_id=self.world.new_id,
            )
            works.append(self.leading.run())
        self._parts = [asyncio.create_task(work, name=f"{self.name} {number}") for number, work in enumerate(works)]

    async def kill(self) -> None:
        """SIGKILL of meshd: nothing is said, nothing tidied; the kernel closes its connections."""
        for end in self._conversations.values():
            await end.close()
        parts, self._parts = [*self._parts, *self._conversations], []
        if self._store is not None:
            await self._store.close()
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        self.agent = self.session = self.leading = self._store = None

    def raise_if_crashed(self) -> None:
        for part in self._parts:
            if part.done():
                part.result()
                raise AssertionError(f"{part.get_name()} ended by itself")

    async def power_off(self) -> None:
        self.world.network.power_lost(self.name)
        await self.kill()
        for task_id in list(self.engine.boxes):
            self.end_container(task_id, 137)
        self.kernel.state = self.names.state = None

    # ---- its connections -----------------------------------------------------------------------------------------------------

    async def _on_rows(self, revision: int, put: list[Row], removed: list[str], complete: bool) -> None:
        assert self.agent is not None
        if complete:
            self.rows.clear()
        for key in removed:
            del self.rows[key]
        self.rows.update((row.key, row) for row in put)
        await self.agent.on_rows(revision, put, removed, complete)

    def _connect(self, manager: str) -> AbstractAsyncContextManager[Connection]:
        server = self.world.machines[manager.partition(":")[0]]
        return self.world.network.dial(self.name, server.name, lambda end: server.accept(self.name, end, Gateway.converse))

    def _connect_manager(self, manager: str) -> AbstractAsyncContextManager[Connection]:
        server = self.world.machines[manager.partition(":")[0]]
        return self.world.network.dial(self.name, server.name, lambda end: server.accept(self.name, end, Gateway.relay))

    def accept(self, client: str, end: End, serve: Callable[[Gateway, Connection, Peer], Awaitable[None]]) -> bool:
        if not self.up or self.leading is None or self._store is None or self._store.snapshot().node(client) is None:
            return False
        peer = Peer(client, "worker", "cluster", client, _NEVER_EXPIRES_S)
        task = asyncio.create_task(self._serve(serve(self.leading.gateway, end, peer), end), name=f"{self.name} serves {client}")
        self._conversations[task] = end
        task.add_done_callback(lambda done: self._conversations.pop(done, None))
        return True

    @staticmethod
    async def _serve(serving: Awaitable[None], end: End) -> None:
        try:
            await serving
        finally:
            with contextlib.suppress(ConnectionError):
                await end.close()


def clock_jump(random: Random) -> timedelta:
    return timedelta(seconds=random.choice((-1, 1)) * random.choice((0.5, 5, 30, 120)))
