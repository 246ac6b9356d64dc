"""The servers that are compared: dnsd, others from Debian, the Docker Engine's, and the bare system calls. All on one core."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dnslib import DNSRecord

from orchestrator.lab import image
from tests.dnsd.ask import query
from tests.dnsd.bench.client import HERE, SERVER_CPU, build, pinned
from tests.orchestrator.agent.conftest import Engine

# program of a peer -> Debian package
PACKAGES = {
    "/usr/sbin/dnsmasq": "dnsmasq-base",
    "/usr/sbin/unbound": "unbound",
    "/usr/sbin/knotd": "knot",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
}
# The name that all of them have, with ten addresses.
NAME = "web30"
ADDRESSES = tuple(f"10.0.0.{n}" for n in range(1, 11))


@dataclass(frozen=True)
class Peer:
    name: str
    pid: int
    address: tuple[str, int]
    netns: str = ""


def start_all(stack: ExitStack, directory: Path) -> list[Peer]:
    """All that can be had on this machine; who can't is said and left out."""
    peers = []
    for start in (_c_floor, _python_floor, _batched_floor, _knot, _unbound, _dnsmasq, _aardvark, _docker):
        try:
            peers.append(stack.enter_context(start(directory)))
        except (OSError, AssertionError, subprocess.SubprocessError) as error:
            print(f"left out: {start.__name__.strip('_')}: {error}", file=sys.stderr)
    return peers


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def started(name: str, port: int, *command: str) -> Iterator[Peer]:
    with pinned(SERVER_CPU):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(("127.0.0.1", port))
        yield Peer(name, process.pid, ("127.0.0.1", port))
    finally:
        process.kill()
        process.wait()


def wait_for(address: tuple[str, int], open_socket: Callable[[], socket.socket] | None = None) -> None:
    """Until the name is answered there. open_socket: opens a UDP socket elsewhere than here."""
    with open_socket() if open_socket else socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                sock.sendto(query(NAME), address)
                if len(DNSRecord.parse(sock.recv(4096)).rr) == len(ADDRESSES):
                    return
            except OSError:
                time.sleep(0.05)
    raise AssertionError(f"{NAME} is not answered at {address[0]}:{address[1]}")


# -- the limits -----------------------------------------------------------------------------------------------------------------


def _answer() -> str:
    """As dnsd would give it."""
    records = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(address) for address in ADDRESSES)
    packet = query(NAME)
    return (packet[:2] + b"\x85\x80\0\1\0\x0a\0\0\0\0" + packet[12:] + records).hex()


@contextmanager
def _c_floor(directory: Path) -> Iterator[Peer]:
    port = free_port()
    with started("C, recvfrom and sendto only", port, str(build("floor.c", directory)), str(port), _answer()) as peer:
        yield peer


@contextmanager
def _python_floor(directory: Path) -> Iterator[Peer]:
    port = free_port()
    with started("Python, recvfrom and sendto only", port, sys.executable, str(HERE / "floor.py"), "plain", str(port), _answer()) as peer:
        yield peer


@contextmanager
def _batched_floor(directory: Path) -> Iterator[Peer]:
    port = free_port()
    command = [sys.executable, str(HERE / "floor.py"), "batched", str(port), _answer()]
    with started("Python, recvmmsg and sendmmsg only", port, *command) as peer:
        yield peer


# -- others' servers ------------------------------------------------------------------------------------------------------------


@contextmanager
def _knot(directory: Path) -> Iterator[Peer]:
    port, home = free_port(), directory / "knot"
    home.mkdir()
    records = "".join(f"@ 5 A {address}\n" for address in ADDRESSES)
    (home / "zone").write_text(f"$ORIGIN {NAME}.\n@ 5 SOA ns h 1 60 10 60 0\n@ 5 NS ns\n{records}ns 5 A 127.0.0.1\n")
    (home / "conf").write_text(
        f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {home}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n"
        f"database:\n  storage: {home}\n"
        f"zone:\n  - domain: {NAME}\n    file: {home}/zone\n    zonefile-load: whole\n    journal-content: none\n"
    )
    with started("knot", port, "/usr/sbin/knotd", "-c", str(home / "conf")) as peer:
        yield peer


@contextmanager
def _unbound(directory: Path) -> Iterator[Peer]:
    port = free_port()
    records = "".join(f'  local-data: "{NAME}. 5 A {address}"\n' for address in ADDRESSES)
    (directory / "unbound.conf").write_text(
        f'server:\n  interface: 127.0.0.1@{port}\n  port: {port}\n  num-threads: 1\n  do-daemonize: no\n  username: ""\n  chroot: ""\n'
        f'  directory: "{directory}"\n  pidfile: ""\n  use-syslog: no\n  rrset-roundrobin: yes\n  local-zone: "{NAME}." static\n{records}'
        "remote-control:\n  control-enable: no\n"
    )
    with started("unbound", port, "/usr/sbin/unbound", "-d", "-c", str(directory / "unbound.conf")) as peer:
        yield peer


@contextmanager
def _dnsmasq(directory: Path) -> Iterator[Peer]:
    port = free_port()
    (directory / "hosts").write_text("".join(f"{address} {NAME}\n" for address in ADDRESSES))
    command = ["-k", "-p", str(port), "-C", "/dev/null", "-R", "-h", "-H", str(directory / "hosts"), "--listen-address=127.0.0.1"]
    with started("dnsmasq", port, "/usr/sbin/dnsmasq", *command, "--bind-interfaces", "-u", "root", "--pid-file=") as peer:
        yield peer


@contextmanager
def _aardvark(directory: Path) -> Iterator[Peer]:
    """It leaves its parent, and answers only to containers: we are one."""
    port, home = free_port(), directory / "aardvark"
    home.mkdir()
    containers = "".join(f"c{number} {address}  {NAME}\n" for number, address in enumerate(ADDRESSES))
    (home / "net").write_text(f"127.0.0.1\nme 127.0.0.1  me\n{containers}")
    with pinned(SERVER_CPU):
        command = ["/usr/lib/podman/aardvark-dns", "--config", str(home), "-p", str(port), "run"]
        starting = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = 0
    try:
        wait_for(("127.0.0.1", port))
        pid = int((home / "aardvark.pid").read_text())
        yield Peer("aardvark-dns", pid, ("127.0.0.1", port))
    finally:
        for number in {pid, starting.pid} - {0}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        starting.wait()


@contextmanager
def _docker(directory: Path) -> Iterator[Peer]:
    """An Engine of our own; ten containers share an alias, an eleventh asks, from inside."""
    assert shutil.which("iptables", path="/usr/sbin:/sbin:/usr/bin:/bin"), "the Engine's DNS needs iptables"
    home = directory / "docker"
    home.mkdir()
    engine = Engine(home)
    try:
        with pinned(SERVER_CPU):
            engine.start()
        client = engine.client()
        engine.import_image("bb:1", image.rootfs(), "ENV PATH=/bin", 'CMD ["sleep", "1000"]')
        pool = {"Config": [{"Subnet": "10.0.0.0/24", "IPRange": "10.0.0.128/25", "Gateway": "10.0.0.254"}]}
        client.create_network("bench", driver="bridge", ipam=pool)

        def run(address: str | None, *aliases: str) -> str:
            endpoint = client.create_endpoint_config(aliases=list(aliases), ipv4_address=address)
            container = client.create_container(
                "bb:1",
                host_config=client.create_host_config(network_mode="bench"),
                networking_config={"EndpointsConfig": {"bench": endpoint}},
            )
            client.start(container)
            return str(container["Id"])

        for address in ADDRESSES:
            run(address, NAME)
        asker = client.inspect_container(run(None, "me"))["State"]["Pid"]
        netns = f"/proc/{asker}/ns/net"
        yield Peer("Docker Engine, 127.0.0.11", _dockerd(engine.pid), ("127.0.0.11", 53), netns)
    finally:
        engine.end()


def _dockerd(pid: int) -> int:
    """`unshare` becomes dockerd."""
    assert "dockerd" in Path(f"/proc/{pid}/cmdline").read_text()
    return pid
