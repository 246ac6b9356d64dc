"""Two hosts on one wire, with containers, as namespaces of this machine; servers in the containers; clients anywhere.

Everything is named after this process and removed at the end, also after a failure.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections import Counter
from pathlib import Path

from mesh import NodeMesh
from mesh.linux.namespace import inside
from tests.mesh.server import Servers

TIMEOUT_S = 3.0


def sh(command: str, *, check: bool = True) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.stderr}")
    return done.stdout


class Bed:
    def __init__(self, hosts: str = "ab") -> None:
        self.tag = f"m{os.getpid() & 0xFFFFF:05x}"
        self._servers = Servers()
        self._spaces: list[str] = []
        self.hosts = hosts
        self.draws = 40
        self.meshes: dict[str, NodeMesh] = {}
        self.wire = self._space("w")
        sh(f"ip -n {self.wire} link add name wire type bridge && ip -n {self.wire} link set wire up")
        for number, host in enumerate(hosts, 1):
            self._wired(self._space(f"{host}0"), f"192.0.2.{number}")
        self._wired(self._space("out"), "192.0.2.99")

    def _space(self, name: str) -> str:
        full = f"{self.tag}x{name}"
        sh(f"ip netns add {full} && ip -n {full} link set lo up")
        self._spaces.append(full)
        return full

    def _wired(self, space: str, address: str) -> None:
        sh(f"ip -n {self.wire} link add p{address.rpartition('.')[2]} type veth peer name eth0 netns {space}")
        sh(f"ip -n {self.wire} link set p{address.rpartition('.')[2]} master wire up")
        sh(f"ip -n {space} addr add {address}/24 dev eth0 && ip -n {space} link set eth0 up")

    def path(self, name: str) -> str:
        return f"/run/netns/{self.tag}x{name}"

    def space(self, name: str) -> str:
        return f"{self.tag}x{name}"

    def prefix(self, host: str) -> str:
        return f"{self.tag}{host}"

    def underlay(self, host: str) -> str:
        return f"192.0.2.{self.hosts.index(host) + 1}"

    def container(self, name: str, *, server: bool = True) -> str:
        """A namespace with a server for TCP 80 and UDP 53 that answers with its name; returns its path."""
        self._space(name)
        if server:
            self.serve(name)
        return self.path(name)

    def serve(self, name: str) -> None:
        self._servers.add(name, self.path(name))

    def remove_container(self, name: str) -> None:
        self._servers.remove(name)
        sh(f"ip netns del {self.space(name)}")
        self._spaces.remove(self.space(name))

    def close(self) -> None:
        self._servers.close()
        for mesh in self.meshes.values():
            asyncio.run(mesh.close())
        for entry in sorted(Path("/run/netns").glob(f"{self.tag}*")):
            sh(f"ip netns del {entry.name}", check=False)

    # ------------------------------------------------------------ clients

    def connect(self, name: str, address: str, port: int, timeout_s: float = TIMEOUT_S) -> socket.socket:
        with inside(self.path(name)):
            s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        s.settimeout(timeout_s)
        try:
            s.connect((address, port))
        except BaseException:
            s.close()
            raise
        return s

    def ask(self, name: str, address: str, port: int = 80, *, timeout_s: float = TIMEOUT_S) -> str:
        """Who answers a TCP client in that namespace: the server's name, "refused" or "timeout"."""
        try:
            with self.connect(name, address, port, timeout_s) as s:
                return say(s).split()[0]
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "timeout"

    def seen(self, name: str, address: str, port: int = 80) -> tuple[str, str]:
        """Who answers a TCP client in that namespace, and what address it says the client has."""
        with self.connect(name, address, port) as s:
            return _who_saw_whom(say(s))

    def seen_udp(self, name: str, address: str, port: int = 53, size_bytes: int = 1) -> tuple[str, str]:
        with inside(self.path(name)):
            s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        with s:
            s.settimeout(TIMEOUT_S)
            s.connect((address, port))
            s.send(b"?" * size_bytes)
            return _who_saw_whom(s.recv(100).decode())

    def udp(self, name: str, address: str, port: int = 53, source_port: int = 0) -> str:
        with inside(self.path(name)):
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with s:
            s.settimeout(TIMEOUT_S)
            s.bind(("0.0.0.0", source_port))
            s.connect((address, port))
            try:
                s.send(b"?")
                return s.recv(100).decode().split()[0]
            except ConnectionRefusedError:
                return "refused"
            except TimeoutError:
                return "timeout"

    def ping(self, name: str, address: str) -> bool:
        done = subprocess.run(["ip", "netns", "exec", self.space(name), "busybox", "ping", "-c1", "-W2", address], capture_output=True)
        return done.returncode == 0

    def asked(self, name: str, address: str, port: int = 80, times: int = 0) -> Counter[str]:
        """`times` 0: as often as it takes to meet every backend (`draws`)."""
        return Counter(self.ask(name, address, port) for _ in range(times or self.draws))


def _who_saw_whom(answer: str) -> tuple[str, str]:
    server, client = answer.split()
    return server, client.removeprefix("::ffff:")


def say(s: socket.socket) -> str:
    s.sendall(b"?\n")
    answer = b""
    while not answer.endswith(b"\n"):
        part = s.recv(200)
        if not part:
            raise ConnectionResetError("closed")
        answer += part
    return answer.decode()
