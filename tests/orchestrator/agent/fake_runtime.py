"""A strict container engine in memory: what the real one refuses, this one refuses; what is asked twice is answered twice the same.

`FakeEngine` is the machine (it survives agents), `FakeRuntime` one agent's view of it. Programs are their argument vectors:
`sleep N` runs until a signal, `sh -c "exit N"` ends by itself, `stubborn` ignores SIGTERM, an unknown one is not found.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType

from orchestrator.agent.container_spec import container_name, spec_of, task_files
from orchestrator.agent.errors import EngineUnavailable
from orchestrator.agent.runtime import Container, RuntimeEvent
from orchestrator.errors import TaskError
from orchestrator.model import SECOND, NodeDescription, ResourceObject, Task

_KNOWN = ("sleep", "stubborn")


@dataclass(slots=True)
class _Box:
    container: Container
    argv: list[str]
    waiting: bool = True


@dataclass(slots=True)
class FakeEngine:
    """up False: nothing is answered, containers go on. calls: every call that changed something, in order."""

    images: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"bb:1": ()})
    up: bool = True
    boxes: dict[str, _Box] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    gates: set[str] = field(default_factory=set)
    # containers that are nobody's of ours, by their ids
    others: dict[str, Container] = field(default_factory=dict)
    listeners: set[asyncio.Queue[RuntimeEvent]] = field(default_factory=set)
    prepare_gate: Callable[[Task], asyncio.Event | None] = lambda task: None
    # a list, or the answer to a release, that stays long on its way
    list_gate: asyncio.Event | None = None
    release_gate: asyncio.Event | None = None
    lists: int = 0
    answered_lists: int = 0
    pids: itertools.count[int] = field(default_factory=lambda: itertools.count(100_001))
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def living(self) -> set[int]:
        return {container.pid for container in (*(box.container for box in self.boxes.values()), *self.others.values()) if container.pid}

    def tell(self, task_id: str, action: str) -> None:
        for queue in self.listeners:
            queue.put_nowait(RuntimeEvent(task_id, action))

    def exit(self, task_id: str, code: int, error: str = "") -> None:
        box = self.boxes[task_id]
        box.container = replace(box.container, state="exited", pid=0, exit_code=code, error=error)
        self.tell(task_id, "die")

    def kill(self, pid: int) -> None:
        """SIGKILL from outside."""
        self.exit(next(b.container.task_id for b in self.boxes.values() if b.container.pid == pid), 137)

    def set_health(self, task_id: str, health: str) -> None:
        box = self.boxes[task_id]
        box.container = replace(box.container, health=health)
        self.tell(task_id, "health_status")

    def make_by_hand(self, attachment_id: str, container_id: str = "byhand") -> None:
        """`docker create` of what the API makes of it: held when it starts, if its gate was made."""
        assert attachment_id in self.gates, "its gate is mounted: no gate, no container"
        container = Container(container_id, attachment_id, "db", "created", attachment=True)
        self.boxes[attachment_id] = _Box(container, ["sleep", "1000"])
        self.tell(attachment_id, "create")

    def start_by_hand(self, attachment_id: str) -> int:
        """`docker start`, for the first time or once more; the process."""
        box = self.boxes[attachment_id]
        box.container = replace(box.container, state="running", pid=next(self.pids), started_at=self.now(), exit_code=0)
        box.waiting = attachment_id in self.gates
        self.tell(attachment_id, "start")
        return box.container.pid

    def destroy(self, task_id: str) -> None:
        """Somebody removed it by force."""
        del self.boxes[task_id]
        self.tell(task_id, "destroy")


class FakeRuntime:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if not self.engine.up:
            raise EngineUnavailable("the fake engine is down")

    async def describe(self) -> NodeDescription:
        await self._reach()
        return NodeDescription(hostname="fake", resources=ResourceObject(nano_cpus=2_000_000_000, memory_bytes=1 << 30))

    async def containers(self, joined: Mapping[str, str] = MappingProxyType({})) -> list[Container]:
        await self._reach()
        found = [self._shown(box) for box in self.engine.boxes.values()]
        found += [replace(self.engine.others[id], task_id=joined[id]) for id in joined if id in self.engine.others]
        self.engine.lists += 1
        if self.engine.list_gate is not None:
            await self.engine.list_gate.wait()
        self.engine.answered_lists += 1
        return found

    def _shown(self, box: _Box) -> Container:
        if box.container.state == "running" and box.waiting:
            return replace(box.container, state="held")
        return box.container

    async def prepare(self, task: Task, files: dict[str, bytes], registry_auth: str = "") -> Container:
        await self._reach()
        if (there := self.engine.boxes.get(task.id)) is not None:
            return self._shown(there)
        spec = spec_of(task)
        if (gate := self.engine.prepare_gate(task)) is not None:
            await gate.wait()
        if spec.image not in self.engine.images:
            raise TaskError(f"No such image: {spec.image}{'' if ':' in spec.image else ':latest'}", rejected=True)
        for file in task_files(spec):
            if file.source_id not in files:
                raise TaskError(f"{file.kind} {file.name} is not known to this node", rejected=True)
        argv = [*(spec.command or ()), *(spec.args or ())] or ["sleep", "1000"]
        health = "starting" if spec.healthcheck is not None else ""
        ports = self.engine.images[spec.image]
        fence_s = task.mesh_fence / SECOND if task.mesh_fence is not None else None
        container = Container(f"c-{task.id}", task.id, container_name(task), "created", health=health, tcp_ports=ports, fence_s=fence_s)
        self.engine.boxes[task.id] = _Box(container, argv)
        self.engine.calls.append(("prepare", task.id))
        self.engine.tell(task.id, "create")
        return container

    async def prepare_attachment(self, task: Task) -> None:
        await self._reach()
        if (gate := self.engine.prepare_gate(task)) is not None:
            await gate.wait()
        self.engine.gates.add(task.id)

    async def forget_attachment(self, task_id: str) -> None:
        await self._reach()
        self.engine.gates.discard(task_id)

    async def start_held(self, task_id: str) -> Container:
        await self._reach()
        box = self.engine.boxes.get(task_id)
        if box is None:
            raise TaskError("the container is gone")
        if box.container.state == "exited":
            raise TaskError("starting container failed: a container that has exited is not started again")
        if box.container.state == "created":
            pid = next(self.engine.pids)
            box.container = replace(box.container, state="running", pid=pid, started_at=self.engine.now())
            self.engine.calls.append(("start_held", task_id))
            self.engine.tell(task_id, "start")
        return self._shown(box)

    async def release(self, task_id: str) -> None:
        await self._reach()
        box = self.engine.boxes.get(task_id)
        if box is None or box.container.state != "running" or not box.waiting:
            return
        box.waiting = False
        self.engine.calls.append(("release", task_id))
        if box.argv[:2] == ["sh", "-c"] and box.argv[2].startswith("exit "):
            self.engine.exit(task_id, int(box.argv[2].removeprefix("exit ")))
        elif box.argv[0] not in _KNOWN:
            self.engine.exit(task_id, 127, f'exec: "{box.argv[0]}": executable file not found in $PATH')
        if self.engine.release_gate is not None:
            await self.engine.release_gate.wait()

    async def stop(self, task_id: str, grace_s: float, signal: str) -> None:
        await self._reach()
        box = self.engine.boxes.get(task_id)
        if box is None or box.container.state != "running":
            return
        self.engine.calls.append(("stop", task_id))
        stubborn = box.waiting or box.argv[0] == "stubborn"
        if stubborn and not box.waiting:
            await asyncio.sleep(grace_s)
        if box.container.state == "running":
            self.engine.exit(task_id, 137 if stubborn else 143)

    async def remove(self, task_id: str) -> None:
        await self._reach()
        if self.engine.boxes.pop(task_id, None) is not None:
            self.engine.calls.append(("remove", task_id))
            self.engine.tell(task_id, "destroy")

    async def events(self) -> AsyncIterator[RuntimeEvent]:
        queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue()
        queue.put_nowait(RuntimeEvent("", "connected"))
        self.engine.listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.engine.listeners.discard(queue)
