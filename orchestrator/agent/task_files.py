"""What a task needs of this node's file system: the gate of its held start, and its secrets and configs on tmpfs.

Edge: makes and removes files. Everything lies below <state>/tasks/<task id> and <files>/<task id>, so it can be found after a crash.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from orchestrator.agent import hold
from orchestrator.agent.container_spec import TaskFile
from orchestrator.errors import TaskError


class TaskFiles:
    """state_dir: on a disk, programs may run from it. files_dir: must be on tmpfs (contents of secrets never reach a disk)."""

    def __init__(self, state_dir: Path, files_dir: Path, busybox: Path | None = None) -> None:
        self._tasks_dir = state_dir / "tasks"
        self._files_dir = files_dir
        self._busybox = hold.install(state_dir, busybox or hold.find_busybox())

    @property
    def tasks_dir(self) -> Path:
        return self._tasks_dir

    def gate(self, task_id: str) -> Path:
        return gate(self._tasks_dir, task_id)

    def make_gate(self, task_id: str, environment: Sequence[str]) -> Path:
        """environment: the container's, image's first."""
        gate = self.gate(task_id)
        hold.make_gate(gate, self._busybox, hold.script(environment))
        return gate

    def write(self, task_id: str, files: Sequence[TaskFile], contents: Mapping[str, bytes]) -> dict[TaskFile, str]:
        """Write the task's files; where each lies. TaskError if one is unknown here or there is no tmpfs."""
        if not files:
            return {}
        self._files_dir.mkdir(parents=True, exist_ok=True)
        if _filesystem_type(self._files_dir) not in ("tmpfs", "ramfs"):
            raise TaskError(f"secrets and configs are kept in memory only, but {self._files_dir} is not on a tmpfs", rejected=True)
        self._files_dir.chmod(0o700)
        directory = self._files_dir / task_id
        directory.mkdir(exist_ok=True)
        paths = {}
        for number, file in enumerate(files):
            content = contents.get(file.source_id)
            if content is None:
                raise TaskError(f"{file.kind} {file.name} is not known to this node", rejected=True)
            path = directory / str(number)
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                os.fchown(descriptor, file.uid, file.gid)
                os.fchmod(descriptor, file.mode)
            paths[file] = str(path)
        return paths

    def remove(self, task_id: str) -> None:
        shutil.rmtree(self._tasks_dir / task_id, ignore_errors=True)
        shutil.rmtree(self._files_dir / task_id, ignore_errors=True)

    def sweep(self, keep: Collection[str]) -> None:
        """Remove what a crash left of tasks that have no container any more."""
        for directory in (self._tasks_dir, self._files_dir):
            if directory.is_dir():
                for entry in sorted(directory.iterdir()):
                    if entry.name not in keep:
                        self.remove(entry.name)


def gate(tasks_dir: Path, task_id: str) -> Path:
    return tasks_dir / task_id / "gate"


def _filesystem_type(path: Path) -> str:
    """Source: proc(5), mountinfo. The deepest mount above `path`; of several on one point, the last."""
    target = path.resolve()
    best, kind = -1, ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        point = Path(fields.split()[4].replace("\\040", " "))
        if (point == target or point in target.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), rest.split()[0]
    return kind
