"""A socket filter that lets only frames through that may belong to a trace, so that a busy node doesn't copy all its traffic.

Pure: a classic BPF program as bytes. Source: linux/filter.h, Documentation/networking/filter.rst. It looks at plain frames and into VXLAN
capsules whose outer header has no IP options (Linux writes none); ICMP is let through whole, the reader looks closer.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from mesh.trace.model import MAX_PROBES, Mark
from mesh.trace.packets import MAGIC

_LD_B, _LD_H, _LD_W = 0x30, 0x28, 0x20
_LD_H_X, _LD_W_X = 0x48, 0x40
_LDX_HEADER_LENGTH: Final = 0xB1  # X = 4 * (byte & 0xf): the length of an IPv4 header
_LDX_CONSTANT: Final = 0x01
_AND, _JUMP_EQUAL, _JUMP, _RETURN = 0x54, 0x15, 0x05, 0x06
_INSTRUCTION = struct.Struct("=HBBI")

_ETHERNET: Final = 14
_VXLAN_INNER: Final = 8 + 8 + 14  # after the outer IP header: UDP, VXLAN, inner Ethernet
_IPV4, _IPV6 = 0x0800, 0x86DD
_TCP, _UDP = 6, 17
_WHOLE_FRAME: Final = 0x40000


@dataclass(slots=True)
class _Program:
    """Jumps are written as labels and resolved at the end; all lead forward, as the kernel demands."""

    lines: list[tuple[int, str, str, int]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def do(self, code: int, k: int) -> None:
        self.lines.append((code, "", "", k))

    def if_equal(self, k: int, then: str = "", otherwise: str = "") -> None:
        """An empty label is the next line."""
        self.lines.append((_JUMP_EQUAL, then, otherwise, k))

    def go(self, label: str) -> None:
        self.lines.append((_JUMP, label, "", 0))

    def label(self, name: str) -> None:
        self.labels[name] = len(self.lines)

    def encode(self) -> bytes:
        encoded = bytearray()
        for at, (code, then, otherwise, k) in enumerate(self.lines):
            distance = [self.labels[name] - at - 1 if name else 0 for name in (then, otherwise)]
            if code == _JUMP:
                encoded += _INSTRUCTION.pack(code, 0, 0, distance[0])
            else:
                encoded += _INSTRUCTION.pack(code, *distance, k)
        return bytes(encoded)


def program(mark: Mark, vxlan_port: int) -> bytes:
    """Instructions for SO_ATTACH_FILTER on a packet socket that sees Ethernet frames."""
    p = _Program()
    _layer3(p, "plain", _ETHERNET, mark, vxlan_port)
    _layer3(p, "in4", _ETHERNET + 20 + _VXLAN_INNER, mark, None)
    _layer3(p, "in6", _ETHERNET + 40 + _VXLAN_INNER, mark, None)
    return p.encode()


def _layer3(p: _Program, name: str, base: int, mark: Mark, vxlan_port: int | None) -> None:
    """The IP packet at `base`. vxlan_port None: capsules in capsules are not looked into."""
    p.label(name)
    p.do(_LD_H, base - 2)
    p.if_equal(_IPV4, f"{name}-v4")
    p.if_equal(_IPV6, f"{name}-v6", f"{name}-drop")

    p.label(f"{name}-v4")
    p.do(_LDX_HEADER_LENGTH, base)
    p.do(_LD_B, base + 9)
    p.if_equal(1, f"{name}-keep")
    p.if_equal(_TCP, f"{name}-tcp")
    p.if_equal(_UDP, f"{name}-udp4", f"{name}-drop")

    p.label(f"{name}-v6")
    p.do(_LDX_CONSTANT, 40)
    p.do(_LD_B, base + 6)
    p.if_equal(58, f"{name}-keep")
    p.if_equal(_TCP, f"{name}-tcp")
    p.if_equal(_UDP, f"{name}-udp6", f"{name}-drop")

    p.label(f"{name}-tcp")
    for offset in (4, 8):  # sequence and acknowledgement number
        p.do(_LD_W_X, base + offset)
        p.do(_AND, 0xFFFFFF00)
        p.if_equal(mark.value << 8, f"{name}-keep")
    p.go(f"{name}-drop")

    for version in (4, 6):
        p.label(f"{name}-udp{version}")
        if vxlan_port is not None:
            p.do(_LD_H_X, base + 2)
            p.if_equal(vxlan_port, f"{name}-capsule{version}")
        p.go(f"{name}-udp")
        if vxlan_port is not None:
            p.label(f"{name}-capsule{version}")
            p.go(f"in{version}")

    p.label(f"{name}-udp")
    for offset in (0, 2):  # source and destination port
        p.do(_LD_H_X, base + offset)
        p.do(_AND, 0x10000 - MAX_PROBES)
        p.if_equal(mark.ports.start, f"{name}-keep")
    p.do(_LD_W_X, base + 8)
    p.if_equal(int.from_bytes(MAGIC, "big"), f"{name}-keep", f"{name}-drop")

    p.label(f"{name}-keep")
    p.do(_RETURN, _WHOLE_FRAME)
    p.label(f"{name}-drop")
    p.do(_RETURN, 0)
