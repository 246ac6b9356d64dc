"""Does a network carry packets between this node and its peers, and full-size ones? Asked with echo requests, answered by kernels.

Edge. Source: RFC 7348 (VXLAN), RFC 5227 (address conflicts), ip(7) for IP_MTU_DISCOVER. Four ways to each peer:

    direct  a full-size echo to its underlay address, not to be fragmented
    small   a small echo through the tunnel to its LB address
    full    one as big as the network's MTU
    sealed  the same in a capsule made here, which, unlike the kernel's, must not be fragmented on the underlay

Nothing runs on the peer for it: its kernel answers, and its answers come through its own tunnel.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from mesh.address import mac
from mesh.linux.namespace import inside

WAYS: Final = ("direct", "small", "full", "sealed")
_IP_MTU_DISCOVER: Final = 10
_IP_PMTUDISC_PROBE: Final = 3
"""DF is set, and what the kernel knows of the path's MTU is ignored: the network itself is asked."""
_ROUNDS: Final = 4
_PAUSE_S: Final = 0.5
_ETH_P_ARP: Final = 0x0806
_CAPSULE_BYTES: Final = 50
_HEADERS_BYTES: Final = 28
_SMALL_BYTES: Final = 64
_ECHO_REPLY: Final = 0


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    vtep: str
    lb_address: str


@dataclass(frozen=True, slots=True)
class Tunnel:
    """This node's end. namespace: path of the network's. mtu: the network's; underlay_mtu: that of the link with `vtep`."""

    namespace: str
    vtep: str
    lb_address: str
    vni: int
    port: int
    mtu: int
    underlay_mtu: int


def ask(tunnel: Tunnel, peers: Sequence[Peer]) -> dict[str, dict[str, bool]]:
    """By peer: which ways got an answer. IPv4 underlays only."""
    identifier = os.getpid() & 0xFFFF
    with inside(tunnel.namespace):
        within = _echo_socket()
        # answers go to the address that asked: this socket's, in its namespace
        within.bind((tunnel.lb_address, 0))
    underlay = _echo_socket()
    capsules = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    capsules.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
    answered: set[int] = set()
    with within, underlay, capsules, selectors.DefaultSelector() as selector:
        underlay.bind((tunnel.vtep, 0))
        capsules.bind((tunnel.vtep, 0))
        for opened in (within, underlay):
            opened.setblocking(False)
            selector.register(opened, selectors.EVENT_READ)
        for _ in range(_ROUNDS):
            for index, peer in enumerate(peers):
                for way in range(len(WAYS)):
                    number = index * len(WAYS) + way
                    if number not in answered:
                        _send(WAYS[way], tunnel, peer, identifier, number, within, underlay, capsules)
            end = time.monotonic() + _PAUSE_S
            while len(answered) < len(peers) * len(WAYS) and (left_s := end - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    found = _answer(key.fileobj, identifier)
                    if found is not None:
                        answered.add(found)
    return {peer.name: {way: index * len(WAYS) + at in answered for at, way in enumerate(WAYS)} for index, peer in enumerate(peers)}


def _echo_socket() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
    return opened


def _send(
    way: str,
    tunnel: Tunnel,
    peer: Peer,
    identifier: int,
    number: int,
    within: socket.socket,
    underlay: socket.socket,
    capsules: socket.socket,
) -> None:
    size = {"direct": tunnel.underlay_mtu, "small": _SMALL_BYTES, "full": tunnel.mtu, "sealed": tunnel.underlay_mtu - _CAPSULE_BYTES}[way]
    echo = ICMP(type=8, id=identifier, seq=number) / Raw(b"." * (size - _HEADERS_BYTES))
    try:
        if way == "direct":
            underlay.sendto(bytes(echo), (peer.vtep, 0))
        elif way == "sealed":
            inner = Ether(src=mac(tunnel.lb_address), dst=mac(peer.lb_address)) / IP(src=tunnel.lb_address, dst=peer.lb_address) / echo
            capsules.sendto(bytes(VXLAN(vni=tunnel.vni, flags=8) / inner), (peer.vtep, tunnel.port))
        else:
            within.sendto(bytes(echo), (peer.lb_address, 0))
    except OSError:
        # too big for the link, no route, an error about an earlier packet: no answer, which is the answer
        return


def _answer(opened: Any, identifier: int) -> int | None:
    try:
        packet = opened.recv(65536)
    except OSError:
        return None
    body = packet[(packet[0] & 0xF) * 4 :]
    if len(body) < 8:
        return None
    kind, found, number = struct.unpack_from(">B3xHH", body)
    return number if kind == _ECHO_REPLY and found == identifier else None


def owners(link: str, address: str, wait_s: float = 1.0) -> list[str]:
    """MACs of other machines on the link that answer for an address of this machine."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP)) as opened:
        opened.bind((link, _ETH_P_ARP))
        own = opened.getsockname()[4].hex(":")
        question = Ether(src=own, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=own, psrc="0.0.0.0", pdst=address)
        opened.send(bytes(question))
        others: set[str] = set()
        end = time.monotonic() + wait_s
        while (left_s := end - time.monotonic()) > 0:
            opened.settimeout(left_s)
            try:
                arp = Ether(opened.recv(2048)).payload
            except TimeoutError:
                break
            if isinstance(arp, ARP) and arp.psrc == address and arp.hwsrc not in (own, "00:00:00:00:00:00"):
                others.add(arp.hwsrc)
    return sorted(others)
