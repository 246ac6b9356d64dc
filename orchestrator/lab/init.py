"""The first process of a lab node, what systemd is to a machine: it starts the Engine and meshd and starts them again when they die.

Edge. Run inside the node's own network, mount and UTS namespaces as
`python -m orchestrator.lab.init NODE_DIR` with its orders in NODE_DIR/init.json.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.lab import processes

RESTART_DELAY_S = 1.0
LOG_LIMIT_BYTES = 20_000_000
# prctl(2)
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(slots=True)
class Unit:
    """One supervised program. `after`: a path that must exist before it is started. environment: its own, beside the node's."""

    name: str
    command: list[str]
    after: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    not_before: float = 0.0


def _mount(source: str, target: Path, filesystem: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    target.mkdir(parents=True, exist_ok=True)
    if libc.mount(source.encode(), str(target).encode(), filesystem.encode(), 0, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {filesystem} on {target}: {os.strerror(number)}")


def _prepare(name: str) -> None:
    """What makes the node a machine of its own: hostname, its own list of network namespaces and runtime directories, its orphans."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl PR_SET_CHILD_SUBREAPER")
    socket.sethostname(name)
    for directory in ("/run/netns", "/run/docker", "/run/meshd"):
        _mount("tmpfs", Path(directory), "tmpfs")


class Init:
    """Supervises the node's units; records their pids so that the lab can find, show and end them."""

    def __init__(self, directory: Path, units: list[Unit]) -> None:
        self._directory = directory
        self._units = units
        self._stopping = False
        (directory / "log").mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._record()
        while not self._stopping:
            self._reap_orphans()
            changed = [self._supervise(unit) for unit in self._units]
            if any(changed):
                self._record()
            time.sleep(0.05)
        for unit in reversed(self._units):
            if unit.process is not None and unit.process.poll() is None:
                unit.process.terminate()
                try:
                    unit.process.wait(8)
                except subprocess.TimeoutExpired:
                    unit.process.kill()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _supervise(self, unit: Unit) -> bool:
        """Start the unit if it should run and does not. True if anything changed."""
        now = time.monotonic()
        if unit.process is not None:
            if unit.process.poll() is None:
                return False
            unit.process, unit.restarts, unit.not_before = None, unit.restarts + 1, now + RESTART_DELAY_S
            return True
        if now < unit.not_before or (unit.after is not None and not unit.after.exists()):
            return False
        log_path = self._directory / "log" / f"{unit.name}.log"
        if log_path.exists() and log_path.stat().st_size > LOG_LIMIT_BYTES:
            log_path.replace(log_path.with_suffix(".log.1"))
        with log_path.open("ab") as log:
            unit.process = subprocess.Popen(
                unit.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **unit.environment},
            )
        return True

    def _reap_orphans(self) -> None:
        """As a machine's init does. dockerd takes a zombie containerd for a living one and waits 15 s for it to answer."""
        own = {unit.process.pid for unit in self._units if unit.process is not None}
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in own:
                return
            os.waitpid(ended.si_pid, 0)

    def _record(self) -> None:
        record = {
            "pid": os.getpid(),
            "started": processes.start_time(os.getpid()),
            "units": {
                unit.name: {
                    "pid": unit.process.pid if unit.process else 0,
                    "started": processes.start_time(unit.process.pid) if unit.process else None,
                    "restarts": unit.restarts,
                }
                for unit in self._units
            },
        }
        path = self._directory / "node.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(record))
        temporary.replace(path)


def main() -> None:
    directory = Path(sys.argv[1])
    orders = json.loads((directory / "init.json").read_text())
    _prepare(orders["name"])
    units = [
        Unit(
            name=unit["name"],
            command=unit["command"],
            after=Path(unit["after"]) if "after" in unit else None,
            environment=unit.get("environment", {}),
        )
        for unit in orders["units"]
    ]
    Init(directory, units).run()


if __name__ == "__main__":
    main()
