"""What crosses the wire between the hosts of a bed, as scapy packets."""

from __future__ import annotations

import socket
import time
from types import TracebackType
from typing import Any, Self

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN

from mesh.linux.namespace import inside
from tests.mesh.bed import Bed

__all__ = ["ARP", "IP", "TCP", "Ether", "Wire", "icmpv6"]

_ETH_P_ALL = 3
_QUIET_S = 0.5


class Wire:
    """Captures on every port of the bridge between the hosts while the block runs."""

    def __init__(self, bed: Bed) -> None:
        self._sockets: list[socket.socket] = []
        self._frames: list[bytes] = []
        with inside(f"/run/netns/{bed.wire}"):
            for number in range(1, len(bed.hosts) + 1):
                s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
                s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
                s.bind((f"p{number}", 0))
                s.settimeout(_QUIET_S)
                self._sockets.append(s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        deadline = time.monotonic() + 10
        for s in self._sockets:
            try:
                while time.monotonic() < deadline:
                    self._frames.append(s.recv(65536))
            except TimeoutError:
                pass
            finally:
                s.close()

    def frames(self) -> list[Any]:
        return [Ether(frame) for frame in self._frames]

    def outer(self) -> list[Any]:
        """Frames that carry a tunnel's."""
        return [frame for frame in map(Ether, self._frames) if UDP in frame and frame[UDP].dport == 4789]

    def tunnelled(self) -> list[tuple[int, Any]]:
        """(VNI, inner frame)"""
        return [(frame[VXLAN].vni, frame[VXLAN].payload) for frame in self.outer()]


def icmpv6(frame: Any) -> bool:
    return IPv6 in frame and frame[IPv6].nh == socket.IPPROTO_ICMPV6
