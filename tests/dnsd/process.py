"""dnsd as a process, in tests: started, asked, ended."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.dnsd.ask import over_udp, query, values

PROJECT = Path(__file__).parents[2]


class Process:
    """`python -m dnsd` started as meshd does, in a session of its own."""

    def __init__(self, directory: Path) -> None:
        self.control = directory / "dnsd.sock"
        self.state = directory / "dnsd.state"
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, by: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """by: a command that becomes the process."""
        given = arguments or ("--control", str(self.control), "--state-file", str(self.state))
        process = subprocess.Popen(
            [*by, sys.executable, "-m", "dnsd", *given],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def asked(port: int, name: str = "web") -> list[str] | None:
    """None: nobody answers."""
    try:
        return values(over_udp(("127.0.0.1", port), query(name)))
    except OSError:
        return None
