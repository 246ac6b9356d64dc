"""What an agent needs of a container engine: list, act, listen. Implemented by `engine` (Docker) and, strictly, by a fake in tests.

Pure: types only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

from orchestrator.model import NodeDescription, Task


@dataclass(frozen=True, slots=True)
class Container:
    """A container of ours, as the engine shows it now.

    state: created | held (started, the application waits for its network) | running | exited. pid 0 unless held or running.
    running with pid 0: its process has just died and the engine hasn't said how; exited follows.
    fence_s: stopped when no leader has been heard of for so long (`Task.mesh_fence`); None = never.
    attachment: somebody started it by hand; task_id is that of its attachment (`agent.attachments`).
    own_network: its Engine has given it a network, so a way out and a resolv.conf of its own.
    health: "" (no check) | starting | healthy | unhealthy. tcp_ports: those its image exposes. Listening ports are asked for separately.
    """

    id: str
    task_id: str
    name: str
    state: str
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    health: str = ""
    tcp_ports: tuple[int, ...] = ()
    started_at: datetime | None = None
    fence_s: float | None = None
    attachment: bool = False
    own_network: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeEvent:
    """Something happened to a container of ours: look again (never data to act upon)."""

    task_id: str
    action: str


class Runtime(Protocol):
    """Every call is idempotent. Errors: TaskError (this task can't run, sentence inside), EngineUnavailable (try again later)."""

    async def describe(self) -> NodeDescription: ...

    async def containers(self, joined: Mapping[str, str] = MappingProxyType({})) -> list[Container]:
        """All containers of ours. joined: container id -> id of the attachment, of containers that don't say themselves that they are."""
        ...

    async def prepare(self, task: Task, files: dict[str, bytes], registry_auth: str = "") -> Container:
        """Pull the image if it is missing, create the container (not started). files: secret or config id -> content. registry_auth: as
        in X-Registry-Auth."""
        ...

    async def prepare_attachment(self, task: Task) -> None:
        """Make the gate by which a container that is about to be made is held when it starts."""
        ...

    async def forget_attachment(self, task_id: str) -> None:
        """Remove the gate; the container, if there still is one, asks its own Engine for names again."""
        ...

    async def start_held(self, task_id: str) -> Container:
        """Start it with its application held: its namespaces exist (pid), no line of the application has run."""
        ...

    async def release(self, task_id: str) -> None:
        """Let the application go on: it becomes PID 1 by exec. One that was not held (an attachment may be so) is told who answers for
        names."""
        ...

    async def stop(self, task_id: str, grace_s: float, signal: str) -> None:
        """Signal ("" = the image's, else SIGTERM), wait `grace_s`, kill; a held one is killed at once. Returns when it has exited."""
        ...

    async def remove(self, task_id: str) -> None:
        """Remove the container, its anonymous volumes and files. One that runs is killed."""
        ...

    def events(self) -> AsyncIterator[RuntimeEvent]:
        """Never ends by itself. task_id "": events may have been missed (connected or connected again): look at everything."""
        ...
