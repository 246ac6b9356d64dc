"""Encrypted networks on a kernel that has WireGuard: what the wire shows, keys changed under traffic, tunnels taken away."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from mesh import LocalEndpoint, Network, NodeMesh, NodeState, RemoteEndpoint
from mesh.address import mac
from mesh.linux import wireguard
from mesh.linux.namespace import inside
from mesh.model import Encryption, EncryptionPeer
from tests.mesh.bed import Bed, sh
from tests.mesh.wire import Wire

pytestmark = [pytest.mark.root, pytest.mark.vm]

HOSTS = "ab"
TUNNEL = {"a": "fd5e::a", "b": "fd5e::b"}
PORTS = (51871, 51872)
VNI = {"secret": 77, "plain": 78}
SUBNET = {"secret": "10.7.0", "plain": "10.8.0"}
LAST = {"a": 11, "b": 21}


def new_key() -> str:
    return base64.b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode()


def public(key: str) -> str:
    private = X25519PrivateKey.from_private_bytes(base64.b64decode(key))
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()


@dataclass
class Nodes:
    """Two nodes with an encrypted network and a plain one. `keys`: what each has; `known`: what the other one was told of them."""

    bed: Bed
    meshes: dict[str, NodeMesh]
    keys: dict[str, list[str]] = field(default_factory=lambda: {host: [new_key(), new_key()] for host in HOSTS})
    known: dict[str, list[str]] = field(default_factory=dict)
    active: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HOSTS, 0))

    def __post_init__(self) -> None:
        self.known = {host: [public(key) for key in self.keys[host]] for host in HOSTS}

    def state(self, host: str) -> NodeState:
        (there,) = set(HOSTS) - {host}
        first, second = self.known[there]
        peer = EncryptionPeer(TUNNEL[there], self.bed.underlay(there), (first, second))
        own, other = self.keys[host]
        return NodeState(
            self.bed.underlay(host),
            (self._network("secret", host, TUNNEL[there]), self._network("plain", host, self.bed.underlay(there))),
            encryption=Encryption(TUNNEL[host], (own, other), self.active[host], (peer,)),  # type: ignore[arg-type]
        )

    def _network(self, name: str, host: str, vtep: str) -> Network:
        (there,) = set(HOSTS) - {host}
        subnet = SUBNET[name]
        return Network(
            id=name,
            vni=VNI[name],
            subnets=(f"{subnet}.0/24",),
            lb_address=f"{subnet}.{LAST[host] - 9}",
            local=(LocalEndpoint(f"{host}1", f"{subnet}.{LAST[host]}", self.bed.path(f"{host}1")),),
            remote=(RemoteEndpoint(f"{subnet}.{LAST[there]}", vtep), RemoteEndpoint(f"{subnet}.{LAST[there] - 9}", vtep, balancer=True)),
            encrypted=name == "secret",
        )

    async def apply(self, hosts: str = HOSTS, *, resync: bool = False) -> list[str]:
        """What others had changed."""
        drift: list[str] = []
        for host in hosts:
            report = await self.meshes[host].apply(self.state(host), resync=resync)
            assert not report.errors
            drift += map(str, report.drift)
        return drift

    def space(self, host: str) -> str:
        return f"{self.bed.prefix(host)}w-+encryption"

    def sent(self, host: str) -> list[int]:
        """Packets, by each device."""
        with inside(f"/run/netns/{self.space(host)}"):
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        return [int(line.split()[10]) for name in ("wg0", "wg1") for line in lines if line.strip().startswith(f"{name}:")]

    def device(self, host: str, name: str) -> wireguard.Device:
        with inside(f"/run/netns/{self.space(host)}"):
            return wireguard.read(name)


@pytest.fixture
async def nodes(bed: Bed) -> Nodes:
    """With new keys; what an earlier test applied is there."""
    for host in HOSTS:
        if f"{host}w" not in bed.meshes:
            bed.meshes[f"{host}w"] = NodeMesh(f"{bed.prefix(host)}w", host_netns=bed.path(f"{host}0"))
    nodes = Nodes(bed, {host: bed.meshes[f"{host}w"] for host in HOSTS})
    await nodes.apply()
    return nodes


def shows(wire: Wire, text: bytes) -> bool:
    return any(text in bytes(frame) for frame in wire.frames())


def ports(wire: Wire) -> set[int]:
    return {frame[UDP].dport for frame in wire.frames() if UDP in frame and IP in frame}


async def test_the_wire_shows_nothing_but_wireguard_and_takes_nothing_else(nodes: Nodes) -> None:
    bed = nodes.bed
    with Wire(bed) as wire:
        assert bed.ask("a1", "10.8.0.21") == "b1"
    assert shows(wire, b"b1 10.8.0.11") or shows(wire, b"b1 ::ffff:10.8.0.11"), "the capture sees what is plain"
    with Wire(bed) as wire:
        assert bed.ask("a1", "10.7.0.21") == "b1"
        assert bed.ping("b1", "10.7.0.11")
        # 1500 - 60 for WireGuard - 70 for VXLAN over IPv6 - 28: the largest datagram of the network is one packet of the wire
        assert bed.seen_udp("a1", "10.7.0.21", size_bytes=1342)[0] == "b1"
    assert ports(wire) == {PORTS[0]} or ports(wire) == set(PORTS)
    assert not shows(wire, b"b1 ") and not shows(wire, b"?" * 40)
    assert max(len(frame) for frame in wire.frames()) <= 1514
    assert not any(IP in frame and (frame[IP].flags.MF or frame[IP].frag) for frame in wire.frames())
    assert await nodes.apply(resync=True) == []
    plain_does_not_get_in(bed)


def plain_does_not_get_in(bed: Bed) -> None:
    """Somebody on the wire sends what a tunnel would carry, were it not encrypted."""
    with inside(bed.path("a1")):
        listening = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    listening.settimeout(3)
    with listening:
        for name in ("secret", "plain"):
            to = f"{SUBNET[name]}.11"
            inner = Ether(dst=mac(to), src=mac(f"{SUBNET[name]}.21")) / IP(src=f"{SUBNET[name]}.21", dst=to) / UDP(dport=9) / f"from {name}"
            with inside(bed.path("out")):
                sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with sender:
                sender.sendto(bytes(VXLAN(vni=VNI[name], flags=8) / inner), (bed.underlay("a"), 4789))
        # the second one was sent later and is there: the first would have been
        seen = b""
        while b"from plain" not in seen:
            seen += listening.recv(2000)
        assert b"from secret" not in seen


@contextmanager
def asking(bed: Bed) -> Iterator[list[int]]:
    """One datagram after another from a1 to b1, each waited for, until the block ends: [answered, lost]."""
    counts = [0, 0]
    ends = threading.Event()
    with inside(bed.path("a1")):
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(10)
    s.connect(("10.7.0.21", 53))

    def ask() -> None:
        while not ends.is_set():
            s.send(b"?")
            try:
                s.recv(100)
                counts[0] += 1
            except TimeoutError:
                counts[1] += 1
            # the machine has other things to do as well
            ends.wait(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield counts
    finally:
        ends.set()
        thread.join()
        s.close()


async def test_new_keys_under_traffic_lose_nothing(nodes: Nodes) -> None:
    bed = nodes.bed
    first = {host: list(nodes.keys[host]) for host in HOSTS}
    with asking(bed) as counts:
        for device, order in ((1, "ab"), (0, "ba")):
            for host in order:
                # a node makes itself a key for the device that carries nothing; the other one is told later
                nodes.keys[host][device] = new_key()
                await nodes.apply(host)
            for host in order:
                nodes.known[host][device] = public(nodes.keys[host][device])
            for host in order:
                await nodes.apply(host)
            for host in order:
                # and only when all have been told do they use it, one after the other
                nodes.active[host] = device
                await nodes.apply(host)
            before = nodes.sent("a")
            answered = counts[0]
            while counts[0] < answered + 30 and not counts[1]:
                await asyncio.sleep(0.05)
            grown = [now - then for now, then in zip(nodes.sent("a"), before, strict=True)]
            assert grown[device] >= 29 > grown[1 - device], "packets leave by the device with the new keys"
    assert counts[0] > 60 and counts[1] == 0, counts
    for host in HOSTS:
        for number, name in enumerate(("wg0", "wg1")):
            device = nodes.device(host, name)
            assert device.private_key not in first[host]
            assert list(device.peers) == [nodes.known["b" if host == "a" else "a"][number]]
    assert await nodes.apply(resync=True) == []


async def test_without_its_tunnel_a_packet_is_dropped_and_the_tunnel_comes_back(nodes: Nodes) -> None:
    bed = nodes.bed
    assert bed.ask("a1", "10.7.0.21") == "b1"
    for damage, name in (
        (f"ip -n {nodes.space('a')} link del wg0", "WireGuard device wg0 is missing"),
        (f"ip -n {nodes.space('a')} link set wg0 down", "WireGuard device wg0 is altered"),
        (f"ip -n {nodes.space('a')} -6 route del {TUNNEL['b']}", f"route {TUNNEL['b']} is missing"),
        (f"ip netns del {nodes.space('a')}", "namespace is missing"),
    ):
        sh(damage)
        with Wire(bed) as wire:
            assert bed.ask("a1", "10.7.0.21", timeout_s=0.5) == "timeout"
        assert 4789 not in ports(wire), "never plain"
        drift = await nodes.apply("a", resync=True)
        assert any(name in one for one in drift), drift
        assert bed.ask("a1", "10.7.0.21") == "b1", damage
    for mesh in nodes.meshes.values():
        await mesh.flush()
    assert "w-+encryption" not in sh("ip netns list")
