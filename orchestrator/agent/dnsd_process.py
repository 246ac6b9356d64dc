"""Keeps one dnsd running beside the agent: adopts a living one, starts a missing one, replaces one of another version.

Edge: starts a process in a session of its own, so that it outlives this one; waits on pidfds. Source: pidfd_open(2), setsid(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dnsd.client import Client
from dnsd.errors import DnsError
from dnsd.version import VERSION

log = logging.getLogger(__name__)

START_DEADLINE_S = 10.0
END_DEADLINE_S = 3.0
_BACKOFF_FIRST_S = 0.1
_BACKOFF_LAST_S = 5.0
# one that lived longer than this did not die of what it was started with
_STABLE_S = 30.0
_LOG_LIMIT_BYTES = 10_000_000


class DnsdProcess:
    """`run()` until cancelled; the process stays. on_start: it was started (not adopted), give it the state again."""

    def __init__(
        self,
        *,
        control: Path,
        state_file: Path,
        log_file: Path,
        on_start: Callable[[], None] = lambda: None,
        version: str = VERSION,
        command: tuple[str, ...] = (sys.executable, "-m", "dnsd"),
    ) -> None:
        self._control = control
        self._state_file = state_file
        self._log_file = log_file
        self._on_start = on_start
        self._version = version
        self._command = command
        self.pid = 0
        self.starts = 0
        self.up = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = _BACKOFF_FIRST_S
        seen_dead = False
        while True:
            began = loop.time()
            process: subprocess.Popen[bytes] | None = None
            # looking for one takes until the deadline where there is none; we know of none whose end we have just seen
            self.pid = 0 if seen_dead else await self._adopt()
            seen_dead = False
            if not self.pid:
                process = await asyncio.to_thread(self._start)
                self.starts += 1
                self.pid = await self._answering(process)
                if self.pid:
                    self._on_start()
            if self.pid:
                self.up.set()
                await ended(self.pid)
                self.up.clear()
                seen_dead = True
                log.warning("dnsd ended pid=%d", self.pid)
            if process is not None:
                await asyncio.to_thread(process.wait)
            if loop.time() - began > _STABLE_S:
                # no name is resolved until it is back: no pause for one that had been running well
                backoff_s = _BACKOFF_FIRST_S
                continue
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _BACKOFF_LAST_S)

    async def stop(self) -> None:
        """End it for good (the node leaves its cluster). Call after `run` was cancelled."""
        pid, _ = await self._ask(0.5)
        if pid:
            await _end(pid)
        self._state_file.unlink(missing_ok=True)

    async def _adopt(self) -> int:
        """Pid of a living dnsd of our version; 0 if there is none (any more)."""
        pid, version = await self._ask(0.5)
        if pid and version != self._version:
            log.info("dnsd replaced pid=%d version=%s wanted=%s", pid, version, self._version)
            await _end(pid)
            return 0
        if pid:
            log.info("dnsd adopted pid=%d", pid)
        return pid

    async def _ask(self, timeout_s: float) -> tuple[int, str]:
        client = Client(self._control, timeout_s=timeout_s)
        try:
            status = await client.status()
        except DnsError:
            return 0, ""
        finally:
            await client.close()
        return status.pid, status.version

    def _start(self) -> subprocess.Popen[bytes]:
        for directory in (self._control.parent, self._state_file.parent, self._log_file.parent):
            directory.mkdir(parents=True, exist_ok=True)
        if self._log_file.exists() and self._log_file.stat().st_size > _LOG_LIMIT_BYTES:
            self._log_file.replace(self._log_file.with_name(self._log_file.name + ".1"))
        with self._log_file.open("ab") as output:
            return subprocess.Popen(
                [*self._command, "--control", str(self._control), "--state-file", str(self._state_file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    async def _answering(self, process: subprocess.Popen[bytes]) -> int:
        """Its pid once it answers; 0 if it ended, or was ended because it doesn't."""
        deadline = asyncio.get_running_loop().time() + START_DEADLINE_S
        while process.poll() is None:
            pid, _ = await self._ask(0.5)
            if pid:
                log.info("dnsd started pid=%d", pid)
                return pid
            if asyncio.get_running_loop().time() > deadline:
                log.error("dnsd pid=%d does not answer on %s: ended; see %s", process.pid, self._control, self._log_file)
                process.kill()
                break
        else:
            log.error("dnsd ended at once with code %s; see %s", process.returncode, self._log_file)
        return 0


async def ended(pid: int) -> None:
    """Returns when the process has ended, whoever its parent is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    happened = asyncio.Event()
    loop.add_reader(descriptor, happened.set)
    try:
        await happened.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _end(pid: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_DEADLINE_S):
                await ended(pid)
                return
