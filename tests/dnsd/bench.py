"""How fast dnsd is, beside a bare Python echo loop in the same run: `python -m tests.dnsd.bench`.

Prints queries a second of one closed-loop client (50 outstanding), the servers' CPU per query, the time of a swap, memory, restart.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dnsd import Client, DnsState, ScopeSpec, ServiceName, TaskName, Zone, ZoneSpec
from dnsd.resolve import View
from tests.dnsd.ask import query

ECHO = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", int(sys.argv[1])))
while True:
    packet, peer = sock.recvfrom(4096)
    sock.sendto(packet, peer)
"""
OUTSTANDING = 50
SECONDS = 3.0


def zone(services: int, tasks: int, vip: int = 1) -> ZoneSpec:
    return ZoneSpec(
        network="n",
        name="bench",
        services=tuple(
            ServiceName(
                id=f"s{s}",
                name=f"s{s}",
                vips=(f"10.{vip}.{s >> 8}.{s & 255}",),
                tasks=tuple(
                    TaskName(
                        id=f"s{s}t{t}", name=f"s{s}.{t}.abcdefghij", slot=t, addresses=(f"10.200.{(s * tasks + t) >> 8 & 255}.{t & 255}",)
                    )
                    for t in range(1, tasks + 1)
                ),
            )
            for s in range(services)
        ),
    )


def closed_loop(port: int, packet: bytes) -> tuple[float, int]:
    """Queries a second, and how many had no answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(0.5)
        for _ in range(OUTSTANDING):
            sock.send(packet)
        answered = lost = 0
        since = time.monotonic()
        while (now := time.monotonic()) < since + SECONDS:
            for _ in range(100):
                try:
                    sock.recv(4096)
                    answered += 1
                except TimeoutError:
                    lost += 1
                sock.send(packet)
        return answered / (now - since), lost


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def start(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def measure(label: str, pid: int, port: int, packet: bytes, floor: float = 0.0) -> float:
    closed_loop(port, packet)
    before = cpu_s(pid)
    rate, lost = closed_loop(port, packet)
    used = cpu_s(pid) - before
    ratio = f"  {rate / floor:.2f} of the echo loop" if floor else ""
    print(f"{label:<28}{rate:>9,.0f}/s  {used / (rate * SECONDS) * 1e6:5.1f} us CPU a query  lost {lost}{ratio}")
    return rate


async def bench(directory: Path) -> None:
    port, echo_port = free_port(), free_port()
    control, state = directory / "sock", directory / "state"
    command = [sys.executable, "-m", "dnsd", "--control", str(control), "--state-file", str(state)]
    echo = start(sys.executable, "-c", ECHO, str(echo_port))
    dnsd = start(*command)
    client = Client(control)
    try:
        await client.status()
        print(f"memory, empty               {rss_mib(dnsd.pid):9.1f} MiB")
        scope = ScopeSpec(id="s", netns="", networks=("n",), listen=f"127.0.0.1:{port}")
        await client.apply(DnsState(zones=(zone(100, 10),), scopes=(scope,)))
        floor = measure("bare recvfrom/sendto loop", echo.pid, echo_port, query("s1"))
        measure("VIP, 1 record", dnsd.pid, port, query("s1"), floor)
        measure("tasks.*, 10 records", dnsd.pid, port, query("tasks.s1"), floor)
        measure("VIP with EDNS", dnsd.pid, port, query("s1", size_bytes=1232), floor)
        measure("unknown name", dnsd.pid, port, query("nosuch"), floor)
        for services, tasks in ((100, 10), (1000, 1), (1000, 10)):
            took_s, compile_s = [], []
            for vip in range(2, 12):
                wanted = zone(services, tasks, vip)
                since = time.perf_counter()
                await client.apply(DnsState(zones=(wanted,), scopes=(scope,)))
                took_s.append(time.perf_counter() - since)
                since = time.perf_counter()
                View((Zone(wanted),)).respond(query("s1"))
                compile_s.append(time.perf_counter() - since)
            print(
                f"swap, {services} services x {tasks:<2} tasks {min(took_s) * 1e3:7.1f} ms best, {sorted(took_s)[5] * 1e3:.1f} ms median; "
                f"compiling {sorted(compile_s)[5] * 1e3:.1f} ms; memory {rss_mib(dnsd.pid):.1f} MiB"
            )
        since = time.perf_counter()
        dnsd.send_signal(signal.SIGKILL)
        dnsd.wait()
        dnsd = start(*command)
        status = await client.status()
        print(f"killed, back with {status.zones[0].names:,} names after {(time.perf_counter() - since) * 1e3:.0f} ms")
    finally:
        await client.close()
        for process in (echo, dnsd):
            process.kill()
            process.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="dnsd-bench-") as name:
        asyncio.run(bench(Path(name)))
