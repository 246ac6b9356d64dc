"""Probes as bytes, and frames as sightings of them.

Pure, with scapy. Source: RFC 7348 (VXLAN), RFC 9293 (TCP), RFC 792 and 4443 (ICMP errors quote the packet they are about).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Final

# scapy warns about what it finds on the machine (no IPv6 route, ...), which is not what a trace is about
logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror, TCPerror, UDPerror  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPerror6,
    IPv6,
)
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.layers.vxlan import VXLAN  # noqa: E402
from scapy.packet import Raw  # noqa: E402

from mesh.trace.model import Capsule, Mark, Packet, Probe, Way  # noqa: E402

MAGIC: Final = b"mesh"
"""Begins the payload of UDP and ICMP probes; the mark and the probe's number follow, as one 32-bit number."""
_PAYLOAD_BYTES: Final = 32


def payload(mark: Mark, number: int) -> bytes:
    return (MAGIC + mark.sequence(number).to_bytes(4, "big")).ljust(_PAYLOAD_BYTES, b".")


def build(probe: Probe, number: int, source: str) -> bytes:
    """One IP packet with all its checksums."""
    six = ":" in probe.destination
    ip = IPv6(src=source, dst=probe.destination) if six else IP(src=source, dst=probe.destination, flags="DF")
    port = probe.mark.ports[number]
    rest: Any
    match probe.protocol:
        case "tcp":
            options = [("MSS", 1220)]
            rest = TCP(sport=port, dport=probe.port, flags="S", seq=probe.mark.sequence(number), window=64240, options=options)
        case "udp":
            rest = UDP(sport=port, dport=probe.port) / Raw(payload(probe.mark, number))
        case "icmp" if six:
            rest = ICMPv6EchoRequest(id=port, seq=number, data=payload(probe.mark, number))
        case "icmp":
            rest = ICMP(id=port, seq=number) / Raw(payload(probe.mark, number))
    return bytes(ip / rest)


def dissect(frame: bytes, mark: Mark, vxlan_port: int) -> Packet | None:
    """The probe, answer or error in an Ethernet frame, looked for in a VXLAN capsule too; None for any other frame."""
    try:
        return _dissect(Ether(frame), mark, vxlan_port, None)
    except Exception:
        # scapy raises what it likes on a malformed frame; it is none of ours
        return None


def _dissect(ether: Any, mark: Mark, vxlan_port: int, capsule: Capsule | None) -> Packet | None:
    ip = ether.payload
    if not isinstance(ip, (IP, IPv6)):
        return None
    rest = ip.payload
    if capsule is None and isinstance(rest, UDP) and rest.dport == vxlan_port:
        vxlan = rest.payload if isinstance(rest.payload, VXLAN) else VXLAN(bytes(rest.payload))
        outer = Capsule(ip.src, ip.dst, vxlan.vni)
        return _dissect(Ether(bytes(vxlan.payload)), mark, vxlan_port, outer)
    found = _recognised(ip, rest, mark)
    if found is None:
        return None
    return replace(found, source_mac=ether.src, destination_mac=ether.dst, capsule=capsule)


def _recognised(ip: Any, rest: Any, mark: Mark) -> Packet | None:
    if isinstance(rest, TCP):
        return _tcp(ip, rest, mark)
    if isinstance(rest, UDP):
        number = _number_in(bytes(rest.payload), mark)
        if number is not None and rest.dport not in mark.ports:
            return Packet(number, "there", "datagram", ip.src, ip.dst, rest.sport, rest.dport)
        if rest.dport in mark.ports:
            return Packet(mark.ports.index(rest.dport), "back", "datagram", ip.src, ip.dst, rest.sport, rest.dport)
        return None
    if isinstance(rest, (ICMPv6EchoRequest, ICMPv6EchoReply)):
        return _echo(ip, _number_in(bytes(rest.data), mark), rest.type == 128)
    if isinstance(rest, ICMPv6DestUnreach):
        return _error(ip, rest.payload, mark)
    if isinstance(rest, ICMP):
        if rest.type in (0, 8):
            return _echo(ip, _number_in(bytes(rest.payload), mark), rest.type == 8)
        return _error(ip, rest.payload, mark)
    return None


def _tcp(ip: Any, tcp: Any, mark: Mark) -> Packet | None:
    flags = str(tcp.flags)
    if "S" in flags and "A" not in flags:
        way: Way = "there"
        kind, number = "syn", mark.number_of(tcp.seq)
    elif "A" in flags and tcp.ack & 1 and ("S" in flags or "R" in flags):
        way = "back"
        kind, number = "syn-ack" if "S" in flags else "rst", mark.number_of(tcp.ack)
    else:
        return None
    if number is None:
        return None
    return Packet(number, way, kind, ip.src, ip.dst, tcp.sport, tcp.dport)


def _echo(ip: Any, number: int | None, request: bool) -> Packet | None:
    if number is None:
        return None
    return Packet(number, "there" if request else "back", "echo" if request else "echo-reply", ip.src, ip.dst)


def _error(ip: Any, quoted: Any, mark: Mark) -> Packet | None:
    """An error is about the packet whose beginning it quotes."""
    if not isinstance(quoted, (IPerror, IPerror6)):
        return None
    inner = quoted.payload
    number: int | None = None
    if isinstance(inner, TCPerror):
        number = mark.number_of(inner.seq)
    elif isinstance(inner, UDPerror):
        number = _number_in(bytes(inner.payload), mark)
        if number is None and inner.sport in mark.ports:
            number = mark.ports.index(inner.sport)
    elif isinstance(inner, ICMPerror):
        number = _number_in(bytes(inner.payload), mark)
    if number is None:
        return None
    return Packet(number, "back", "unreachable", ip.src, ip.dst)


def _number_in(content: bytes, mark: Mark) -> int | None:
    if not content.startswith(MAGIC) or len(content) < 8:
        return None
    return mark.number_of(int.from_bytes(content[4:8], "big"))
