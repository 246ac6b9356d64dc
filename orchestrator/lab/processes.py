"""Processes a lab started: recognised by pid and start time, or by the marker in their environment; never by name.

Edge: reads /proc, sends signals, removes cgroups. Source: proc(5), cgroups(7).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of the process; None if there is none. With the pid it names a process for ever."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_alive(pid: int, started: int) -> bool:
    return pid > 0 and start_time(pid) == started


def pids() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def marked(marker: str) -> list[int]:
    """Processes that carry `marker` ("KEY=value") in the environment they were started with."""
    wanted = marker.encode()
    return [pid for pid in pids() if wanted in environment(pid)]


def environment(pid: int) -> list[bytes]:
    """What a process was started with, "KEY=value" each; empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


def in_cgroup(name: str) -> list[int]:
    """Processes of the top-level cgroup `name` and below it, in every hierarchy (v1 and v2)."""
    found: set[int] = set()
    for directory in cgroup_directories(name):
        for procs in directory.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found.update(int(line) for line in procs.read_text().split())
    return sorted(found)


def cgroup_directories(name: str) -> list[Path]:
    roots = [CGROUP_ROOT, *(entry for entry in CGROUP_ROOT.iterdir() if entry.is_dir())] if CGROUP_ROOT.is_dir() else []
    return [root / name for root in roots if (root / name).is_dir()]


def remove_cgroup(name: str) -> None:
    for top in cgroup_directories(name):
        for directory in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                directory.rmdir()
        with contextlib.suppress(OSError):
            top.rmdir()


def end(find: Callable[[], list[int]], *, grace_s: float, deadline_s: float = 10.0) -> list[int]:
    """End what `find` names: SIGTERM, after `grace_s` SIGKILL, until none is left. Returns what survived the deadline."""
    started = time.monotonic()
    asked: set[int] = set()
    while True:
        left = [pid for pid in find() if pid != os.getpid() and start_time(pid) is not None]
        passed = time.monotonic() - started
        if not left or passed > deadline_s:
            return left
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                if passed >= grace_s:
                    os.kill(pid, signal.SIGKILL)
                elif pid not in asked:
                    asked.add(pid)
                    os.kill(pid, signal.SIGTERM)
        time.sleep(0.02)


def resident_bytes(pid: int) -> int:
    """Resident memory of one process; 0 if it is gone."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024
    return 0


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command_line(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    return []
