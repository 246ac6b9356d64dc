"""The closed-loop client: builds client.c, runs it, and says what the server spent meanwhile."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.dnsd.ask import query

HERE = Path(__file__).parent
# One core for the server, one for the client: what they do to each other's cache and scheduling is the same for all.
_cores = sorted(os.sched_getaffinity(0))
SERVER_CPU, CLIENT_CPU = _cores[-2:][0], _cores[-1]


@dataclass(frozen=True)
class Question:
    """What is asked, and what must come back: the response code and all A records."""

    packet: bytes
    addresses: tuple[str, ...] = ()
    rcode: int = 0

    def line(self) -> str:
        records = "".join(f"{int(part):02x}" for address in self.addresses for part in address.split("."))
        return f"{self.packet.hex()} {self.rcode} {records or '-'}\n"


def ask(name: str, *addresses: str, kind: str = "A", rcode: int = 0, edns: int = 0) -> Question:
    packet = query(name, kind, size_bytes=edns)
    # dnslib writes names as they are given; the case is part of the question.
    return Question(packet, addresses, rcode)


@dataclass(frozen=True)
class Result:
    answered: int
    lost: int
    wrong: int
    seconds: float
    p50_us: float
    p99_us: float
    max_us: float
    cpu_us: float = 0.0

    @property
    def rate(self) -> float:
        return self.answered / self.seconds


class Client:
    def __init__(self, directory: Path) -> None:
        self._program = build("client.c", directory)

    def start(self, address: tuple[str, int], outstanding: int, seconds: float, netns: str = "") -> subprocess.Popen[str]:
        inside = ["nsenter", f"--net={netns}"] if netns else []
        command = [*inside, str(self._program), address[0], str(address[1]), str(outstanding), str(seconds)]
        with pinned(CLIENT_CPU):
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(
        self, address: tuple[str, int], questions: Sequence[Question], outstanding: int, seconds: float, *, pid: int, netns: str = ""
    ) -> Result:
        before = cpu_s(pid)
        process = self.start(address, outstanding, seconds, netns)
        result = finished(process, questions)
        return Result(**{**vars(result), "cpu_us": (cpu_s(pid) - before) / max(1, result.answered) * 1e6})


def finished(process: subprocess.Popen[str], questions: Sequence[Question]) -> Result:
    out, _ = process.communicate("".join(question.line() for question in questions), timeout=120)
    answered, lost, wrong, *figures = out.split()
    return Result(int(answered), int(lost), int(wrong), *map(float, figures))


def build(source: str, directory: Path) -> Path:
    program = directory / Path(source).stem
    subprocess.run(["gcc", "-O2", "-o", str(program), str(HERE / source)], check=True)
    return program


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """What is started inside stays on that core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_s(pid: int) -> float:
    """What all threads of a process have used, to the nanosecond; /proc/<pid>/stat counts ticks."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def rss_mib(pid: int) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024
