"""An agent among fakes: a data plane and a DNS server that record, and managers that store what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from dnsd.model import Applied, DnsState
from mesh.errors import KernelError
from mesh.model import NodeState
from orchestrator.agent.agent import Agent
from orchestrator.agent.keyring import Keyring
from orchestrator.agent.lease import Lease
from orchestrator.agent.network_loop import Timing
from orchestrator.control.status import advance
from orchestrator.dispatcher.assignment import runs
from orchestrator.dispatcher.messages import EndpointRow, NetworkRow, NodeRow, Row, ServiceRow, TaskReport, TaskRow
from orchestrator.model import (
    SECOND,
    STATE_ORDER,
    ContainerSpec,
    NetworkAttachment,
    NetworkAttachmentConfig,
    NetworkAttachmentSpec,
    NetworkReference,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
    terminal,
)

from .fake_runtime import FakeEngine, FakeRuntime

S = TaskState
TIMING = Timing(resync_s=30.0, drain_poll_s=0.01, retry_first_s=0.01, retry_last_s=0.05)


@dataclass(slots=True)
class _Report:
    errors: Mapping[str, object]


@dataclass(slots=True)
class FakeMesh:
    """Refuses a namespace that isn't there. log: shared with FakeNames and the engine, to see what came before what."""

    engine: FakeEngine
    states: list[NodeState] = field(default_factory=list)
    resyncs: int = 0
    open: dict[str, int] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    broken: bool = False
    errors: dict[str, object] = field(default_factory=dict)
    applying: int = 0
    on_change: Callable[[], None] | None = None

    async def apply(self, state: NodeState, *, resync: bool = False) -> _Report:
        assert not self.applying, "one apply at a time"
        self.applying += 1
        try:
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
            if self.broken:
                raise KernelError("nft", 12)
            errors = dict(self.errors)
            living = {f"/proc/{pid}/ns/net" for pid in self.engine.living()}
            errors |= {f"sandbox:{s.id}": "namespace gone" for s in state.sandboxes if s.netns not in living}
            self.states.append(state)
            self.resyncs += resync
            self.engine.calls.append(("mesh", ",".join(s.id for s in state.sandboxes)))
            return _Report(errors)
        finally:
            self.applying -= 1

    async def watch(self, on_change: Callable[[], None]) -> None:
        self.on_change = on_change

    async def open_connections(self, addresses: Mapping[str, set[str]]) -> dict[tuple[str, str], int]:
        return {(network, address): self.open.get(address, 0) for network, wanted in addresses.items() for address in wanted}


@dataclass(slots=True)
class FakeNames:
    engine: FakeEngine
    states: list[DnsState] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    async def apply(self, state: DnsState) -> Applied:
        await asyncio.sleep(0)
        self.states.append(state)
        self.engine.calls.append(("names", ",".join(s.id for s in state.scopes)))
        return Applied(failed=self.failed)


class Managers:
    """The other side: tasks as stored, rows as sent. `connected` False: reports are lost, nothing is sent."""

    def __init__(self, node_id: str = "n1") -> None:
        self.node_id = node_id
        self.tasks: dict[str, Task] = {}
        self.history: dict[str, list[TaskState]] = {}
        self.applied_: list[tuple[int, dict[str, int]]] = []
        self.behind: frozenset[str] = frozenset()
        self.revision = 0
        self.connected = True
        self.agent: Agent | None = None

    # ---- what the agent calls

    def report(self, statuses: Iterable[TaskReport]) -> None:
        for report in statuses:
            task = self.tasks.get(report.task_id)
            if not self.connected or task is None:
                continue
            self.history.setdefault(task.id, []).append(report.status.state)
            advanced = advance(task, report.status)
            if advanced is not None:
                self.tasks[task.id] = advanced
                self.send(task.id)

    def applied(self, revision: int, open_connections: Mapping[str, int], behind: frozenset[str] = frozenset()) -> None:
        self.applied_.append((revision, dict(open_connections)))
        self.behind = behind

    # ---- what a test does

    def rows(self, task_id: str) -> list[Row]:
        task = self.tasks[task_id]
        rows: list[Row] = [TaskRow(task=task)]
        state = task.status.state
        running = runs(task)
        if not terminal(state) and task.networks_attachments:
            rows.append(
                EndpointRow(
                    task_id=task.id, network_id="app", service_id=task.service_id, node_id=self.node_id,
                    name=task.name or f"web.{task.id}",
                    slot=task.slot,
                    addresses=((task.networks_attachments[0].addresses or [""])[0].partition("/")[0],),
                    serving=running and task.desired_state is S.RUNNING,
                    draining=running and STATE_ORDER[task.desired_state] > STATE_ORDER[S.RUNNING],
                )
            )  # fmt: skip
        return rows

    def send(self, task_id: str) -> None:
        self.revision += 1
        task, agent = self.tasks.get(task_id), self.agent
        if agent is None or not self.connected:
            return
        put = self.rows(task_id) if task else []
        kept = {row.key for row in put}
        removed = [key for key in (f"task/{task_id}", f"endpoint/app/{task_id}") if key not in kept]
        asyncio.get_running_loop().create_task(agent.on_rows(self.revision, put, removed, False))

    def complete(self) -> Any:
        assert self.agent is not None
        self.revision += 1
        put: list[Row] = [
            NodeRow(id="n1", hostname="one", data_addr="192.0.2.1"),
            NetworkRow(id="app", name="shop", vni=4097, subnets=("10.0.1.0/24",), lb_addresses={"n1": "10.0.1.2"}),
            ServiceRow(id="web", network_id="app", name="web", vips=("10.0.1.10",)),
            *(row for id in self.tasks for row in self.rows(id)),
        ]
        return self.agent.on_rows(self.revision, put, [], True)

    def add(self, id: str, *argv: str, desired: TaskState = S.RUNNING, fence_s: int | None = None, **spec: Any) -> None:
        address = f"10.0.1.{20 + len(self.tasks)}/24"
        self.tasks[id] = Task(
            id=id, service_id="web", mesh_service_name="web", slot=len(self.tasks) + 1, node_id=self.node_id, desired_state=desired,
            status=TaskStatus(state=S.ASSIGNED), mesh_fence=fence_s * SECOND if fence_s is not None else None,
            spec=TaskSpec(container_spec=ContainerSpec(**{"image": "bb:1", "args": list(argv), **spec})),
            networks_attachments=[NetworkAttachment(network=NetworkReference(id="app"), addresses=[address])],
        )  # fmt: skip
        self.send(id)

    def attach(self, id: str, name: str = "db", container_id: str = "") -> None:
        """What a manager commits before it asks the Engine for a container on the network, or when one that is there joins it."""
        attachment, now = NetworkAttachmentSpec(container_id=container_id), datetime.now(UTC)
        spec = TaskSpec(networks=[NetworkAttachmentConfig(target="app")], network_attachment_spec=attachment)
        self.tasks[id] = Task(
            id=id, created_at=now, name=name, node_id=self.node_id, status=TaskStatus(state=S.ASSIGNED, timestamp=now), spec=spec,
            networks_attachments=[NetworkAttachment(network=NetworkReference(id="app"), addresses=["10.0.1.99/24"])],
        )  # fmt: skip
        self.send(id)

    def change(self, id: str, **changes: Any) -> None:
        self.tasks[id] = msgspec.structs.replace(self.tasks[id], **changes)
        self.send(id)

    def delete(self, id: str) -> None:
        del self.tasks[id]
        self.send(id)

    def state(self, id: str) -> TaskState:
        return self.tasks[id].status.state


class AgentBed:
    """`start()` and `kill()` an agent as often as you like; engine, kernel, dnsd and managers go on."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.mesh = FakeMesh(self.engine)
        self.names = FakeNames(self.engine)
        self.managers = Managers()
        self.listening: dict[int, frozenset[int]] = {}
        self.now_s = 1000.0
        self.lease_file: Path | None = None
        self.keyring: Keyring | None = None
        self.unable_to_encrypt = ""
        self.agent: Agent | None = None
        self._run: asyncio.Task[None] | None = None

    async def start(self, *, complete: bool = True) -> Agent:
        self.lease = Lease(self.lease_file, lambda: self.now_s)
        self.agent = Agent(
            node_id="n1", data_addr="192.0.2.1", runtime=FakeRuntime(self.engine), mesh=self.mesh, names=self.names,
            session=self.managers, timing=TIMING, listening=lambda pid: self.listening.get(pid, frozenset()),
            alive=lambda pid: pid in self.engine.living(), lease=self.lease,
            cluster_id="c", keyring=self.keyring, unable_to_encrypt=self.unable_to_encrypt,
        )  # fmt: skip
        self.managers.agent = self.agent
        self._run = asyncio.create_task(self.agent.run())
        if complete:
            await self.managers.complete()
        return self.agent

    async def kill(self) -> None:
        if self._run is not None:
            assert not self._run.done(), self._run
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
        self._run = self.managers.agent = None

    def backends(self) -> dict[str, int]:
        """As the kernel has them."""
        if not self.mesh.states:
            return {}
        return {b.address: b.weight for n in self.mesh.states[-1].networks for v in n.services for b in v.backends}
