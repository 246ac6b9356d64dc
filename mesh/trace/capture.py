"""Packet sockets in the namespaces of a trace, and the raw socket that sends its probes.

Edge. Source: packet(7), raw(7), ipv6(7). One packet socket a namespace sees every link of it; probes go through a raw IP socket, so that
they are routed, resolved and filtered like any packet of that namespace.
"""

from __future__ import annotations

import ctypes
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Final

from mesh.linux.namespace import inside
from mesh.trace.filter import program
from mesh.trace.model import Mark, Probe, Sighting
from mesh.trace.packets import build, dissect

_SO_ATTACH_FILTER: Final = 26
_SO_TIMESTAMPNS: Final = 35
_ETH_P_ALL: Final = 3
_PACKET_OUTGOING: Final = 4
_IPV6_HDRINCL: Final = 36
_ETHERNET_LIKE: Final = frozenset({1, 772})
"""ARPHRD_ETHER and ARPHRD_LOOPBACK: their frames begin with an Ethernet header. (A tun device's don't.)"""
_BUFFER_BYTES: Final = 4 << 20
_FRAME_BYTES: Final = 65536
_TIMESPEC = struct.Struct("=qq")


class Watch:
    """`with Watch({place: path of its namespace}, ...)`: sees from then on; `read` gives what has come, `drain` what is left."""

    def __init__(self, places: Mapping[str, str], mark: Mark, vxlan_port: int) -> None:
        self._mark = mark
        self._vxlan_port = vxlan_port
        self._places: dict[socket.socket, str] = {}
        self._selector = selectors.DefaultSelector()
        try:
            for place, path in places.items():
                with inside(path):
                    opened = _packet_socket(mark, vxlan_port)
                self._places[opened] = place
                self._selector.register(opened, selectors.EVENT_READ)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._selector.close()
        for opened in self._places:
            opened.close()

    def fileno(self) -> int:
        """Readable when a frame has come."""
        return self._selector.fileno()

    def drain(self) -> Iterator[Sighting]:
        """Everything that has come until now, namespace by namespace; doesn't wait."""
        for opened, place in self._places.items():
            while True:
                try:
                    frame, extra, _, (link, _protocol, kind, hardware, _address) = opened.recvmsg(_FRAME_BYTES, 64)
                except BlockingIOError:
                    break
                if hardware not in _ETHERNET_LIKE:
                    continue
                packet = dissect(frame, self._mark, self._vxlan_port)
                if packet is not None:
                    yield Sighting(_time_of(extra), place, link, kind == _PACKET_OUTGOING, packet)


def _packet_socket(mark: Mark, vxlan_port: int) -> socket.socket:
    """Of all links of the namespace the thread is in. Frames that came before its filter was attached are dropped by `dissect`."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    try:
        instructions = program(mark, vxlan_port)
        kept = ctypes.create_string_buffer(instructions)
        opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(instructions) // 8, ctypes.addressof(kept)))
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        opened.setblocking(False)
    except BaseException:
        opened.close()
        raise
    return opened


def _time_of(extra: list[tuple[int, int, bytes]]) -> int:
    for level, kind, value in extra:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(value) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(value)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return time.time_ns()


def send(namespace: str, probe: Probe) -> str:
    """All probes of it, from that namespace; returns the source address the namespace chose. OSError: there is no way there."""
    family = socket.AF_INET6 if ":" in probe.destination else socket.AF_INET
    with inside(namespace):
        chooser = socket.socket(family, socket.SOCK_DGRAM)
        sender = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with chooser, sender:
        # connecting a datagram socket sends nothing: it asks the namespace for its route and source address
        chooser.connect((probe.destination, probe.port or 9))
        source = str(chooser.getsockname()[0])
        if family == socket.AF_INET6:
            sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
        for number in range(probe.count):
            sender.sendto(build(probe, number, source), (probe.destination, 0))
    return source
