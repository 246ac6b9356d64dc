"""Backups a manager keeps by itself: one every so often, checked, the last so many.

Edge: files below one directory. Every manager does it, so that whichever machine survives has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import MeshdError
from orchestrator.local_state import replace_private, write_private
from orchestrator.managers import backup
from orchestrator.store.snapshot import Snapshot
from orchestrator.version import VERSION

log = logging.getLogger(__name__)

_NAME = "meshd-%Y%m%dT%H%M%SZ.backup"
_RETRY_S = 60.0


def kept(directory: Path) -> list[Path]:
    """Oldest first; what has another name is somebody else's."""
    return sorted(path for path in directory.glob("meshd-*.backup") if _made_at(path) is not None)


def surplus(files: Sequence[Path], keep: int) -> list[Path]:
    return list(files[: max(0, len(files) - keep)])


def due_in_s(files: Sequence[Path], every_s: float, now: datetime) -> float:
    """Until the next one; what a crash left undone is made up for at once."""
    if not files:
        return 0.0
    last = _made_at(files[-1])
    return min(every_s, max(0.0, every_s - (now - last).total_seconds())) if last else 0.0


def _made_at(path: Path) -> datetime | None:
    try:
        return datetime.strptime(path.name, _NAME).replace(tzinfo=UTC)
    except ValueError:
        return None


async def keep_backups(
    directory: Path,
    snapshot: Callable[[], Snapshot],
    *,
    every_s: float,
    keep: int,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Until cancelled. A failure is told and tried again; the old ones stay."""
    while True:
        await asyncio.sleep(due_in_s(kept(directory), every_s, now()))
        taken = snapshot()
        try:
            path = await asyncio.to_thread(write_one, directory, taken, now())
        except (OSError, MeshdError) as error:
            log.error("backup=failed directory=%s error=%s retry_in_s=%g", directory, error, _RETRY_S)
            await asyncio.sleep(_RETRY_S)
            continue
        if _unlock_key(snapshot()) != _unlock_key(taken):
            # written while the unlock key changed, past `reseal_all`
            path.unlink(missing_ok=True)
            continue
        log.info("backup=%s size_bytes=%d", path, path.stat().st_size)
        for old in surplus(kept(directory), keep):
            with contextlib.suppress(OSError):
                old.unlink()


def write_one(directory: Path, snapshot: Snapshot, moment: datetime) -> Path:
    """Written, read back and checked. OSError, ConfigError."""
    packed = backup.dump(snapshot, moment, VERSION)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / moment.strftime(_NAME)
    write_private(path, packed)
    backup.load(path.read_bytes(), _unlock_key(snapshot))
    return path


def reseal_all(directory: Path, old: bytes, new: bytes) -> None:
    """Every backup under the unlock key `new` (b"": open), each whole at any moment. One that `old` doesn't open stays as it is."""
    for unfinished in directory.glob(".meshd-*.tmp"):
        unfinished.unlink(missing_ok=True)
    for path in kept(directory):
        try:
            packed = backup.resealed(path.read_bytes(), old, new)
        except MeshdError as error:
            log.warning("backup=%s state=not-resealed error=%s", path, error)
            continue
        if packed is not None:
            replace_private(path, packed)


def _unlock_key(snapshot: Snapshot) -> bytes:
    return snapshot.cluster.mesh_unlock_key if snapshot.cluster is not None else b""
