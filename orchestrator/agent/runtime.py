"""What an agent needs of a container engine: list, act, listen. Implemented by `engine` (Docker) and, strictly, by a fake in tests.

Pure: types only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from orchestrator.model import NodeDescription, Task


@dataclass(frozen=True, slots=True)
class Container:
    """A container of ours, as the engine shows it now.

    state: created | held (started, the application waits for its network) | running | exited. pid 0 unless held or running.
    health: "" (no check) | starting | healthy | unhealthy. listening ports are asked for separately.
    """

    id: str
    task_id: str
    name: str
    state: str
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    health: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeEvent:
    """Something happened to a container of ours: look again (never data to act upon)."""

    task_id: str
    action: str


class Runtime(Protocol):
    """Every call is idempotent. Errors: TaskError (this task can't run, sentence inside), EngineUnavailable (try again later)."""

    async def describe(self) -> NodeDescription: ...

    async def containers(self) -> list[Container]: ...

    async def prepare(self, task: Task, files: dict[str, bytes]) -> Container:
        """Pull the image if it is missing, create the container (not started). files: secret or config id -> content."""
        ...

    async def start_held(self, task_id: str) -> Container:
        """Start it with its application held: its namespaces exist (pid), no line of the application has run."""
        ...

    async def release(self, task_id: str) -> None:
        """Let the application go on: it becomes PID 1 by exec."""
        ...

    async def stop(self, task_id: str, grace_s: float, signal: str) -> None: ...

    async def remove(self, task_id: str) -> None: ...

    def events(self) -> AsyncIterator[RuntimeEvent]: ...
