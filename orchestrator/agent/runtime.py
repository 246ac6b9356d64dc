"""What an agent needs of a container engine: list, act, listen. Implemented by `engine` (Docker) and, strictly, by a fake in tests.

Pure: types only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from orchestrator.model import NodeDescription, Task


@dataclass(frozen=True, slots=True)
class Container:
    """A container of ours, as the engine shows it now.

    state: created | held (started, the application waits for its network) | running | exited. pid 0 unless held or running.
    running with pid 0: its process has just died and the engine hasn't said how; exited follows.
    fence_s: stopped when no leader has been heard of for so long (`Task.mesh_fence`); None = never.
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


@dataclass(frozen=True, slots=True)
class RuntimeEvent:
    """Something happened to a container of ours: look again (never data to act upon)."""

    task_id: str
    action: str


class Runtime(Protocol):
    """Every call is idempotent. Errors: TaskError (this task can't run, sentence inside), EngineUnavailable (try again later)."""

    async def describe(self) -> NodeDescription: ...

    async def containers(self) -> list[Container]: ...

    async def prepare(self, task: Task, files: dict[str, bytes], registry_auth: str = "") -> Container:
        """Pull the image if it is missing, create the container (not started). files: secret or config id -> content. registry_auth: as
        in X-Registry-Auth."""
        ...

    async def start_held(self, task_id: str) -> Container:
        """Start it with its application held: its namespaces exist (pid), no line of the application has run."""
        ...

    async def release(self, task_id: str) -> None:
        """Let the application go on: it becomes PID 1 by exec."""
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
