"""A command on a terminal of its own, typed at and watched.

Edge: a pty, a process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence

DEADLINE_S = 60


class Terminal:
    def __init__(self, command: Sequence[str], rows: int = 33, columns: int = 101, environment: Mapping[str, str] | None = None) -> None:
        self.master, slave = pty.openpty()
        self._set_size(rows, columns)
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=self._own, env=environment
        )
        os.close(slave)
        self.shown = ""
        self._resized = False

    @staticmethod
    def _own() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        self._set_size(rows, columns)
        self._resized = True
        self._tell_size()

    def _tell_size(self) -> None:
        """Again and again: the CLI sets the first size before it listens for changes, and one that comes in between is lost on it."""
        if self._resized and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGWINCH)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str) -> str:
        """Wait for it; what is shown up to there is forgotten."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < deadline, f"{pattern!r} did not come: {self.shown!r}"
            self._tell_size()
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    # it has ended
                    assert re.search(pattern, self.shown), f"{pattern!r} did not come: {self.shown!r}"
        self.shown = self.shown[found.end() :]
        return found[0]

    def ends(self) -> int:
        """Its exit code."""
        drain = threading.Thread(target=self._drain, daemon=True)
        drain.start()
        deadline = time.monotonic() + DEADLINE_S
        try:
            while True:
                try:
                    return self.process.wait(0.2)
                except subprocess.TimeoutExpired:
                    if time.monotonic() > deadline:
                        raise
                    self._tell_size()
        finally:
            self.process.kill()
            drain.join(DEADLINE_S)
            os.close(self.master)

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while read := os.read(self.master, 65536):
                self.shown += read.decode(errors="replace")
