"""Probes are recognised in whatever they have become on their way, other traffic is not; and the socket filter agrees."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from mesh.trace.filter import program
from mesh.trace.model import MAX_PROBES, Capsule, Mark, Packet, Probe, Protocol
from mesh.trace.packets import build, dissect, payload

MARK = Mark(0xABCDEF)
PORT = 4789
CASES: list[tuple[Protocol, str, str]] = [
    (protocol, source, destination)
    for protocol in ("tcp", "udp", "icmp")
    for source, destination in (("10.0.1.5", "10.0.1.9"), ("fd00::5", "fd00::9"))
]


def ether() -> Ether:
    """With both addresses: scapy would ask the network for the one that is missing."""
    return Ether(src="02:42:0a:00:01:05", dst="02:42:0a:00:01:09")


def framed(packet: bytes) -> bytes:
    header = ether()
    header.type = 0x86DD if packet[0] >> 4 == 6 else 0x0800
    return bytes(header) + packet


def capsuled(frame: bytes, port: int = PORT, six: bool = False) -> bytes:
    outer = IPv6(src="fd01::1", dst="fd01::2") if six else IP(src="192.0.2.1", dst="192.0.2.2")
    return bytes(ether() / outer / UDP(sport=50000, dport=port) / VXLAN(vni=77, flags=8) / Raw(frame))


def passes(frame: bytes, mark: Mark = MARK, port: int = PORT) -> bool:
    """What the kernel would say. Source: Documentation/networking/filter.rst; a load beyond the frame drops it."""
    code = list(struct.iter_unpack("=HBBI", program(mark, port)))
    at = a = x = 0
    while True:
        instruction, then, otherwise, k = code[at]
        at += 1
        try:
            match instruction:
                case 0x28:
                    (a,) = struct.unpack_from(">H", frame, k)
                case 0x30:
                    a = frame[k]
                case 0x48:
                    (a,) = struct.unpack_from(">H", frame, x + k)
                case 0x40:
                    (a,) = struct.unpack_from(">I", frame, x + k)
                case 0xB1:
                    x = (frame[k] & 0xF) * 4
                case 0x01:
                    x = k
                case 0x54:
                    a &= k
                case 0x15:
                    at += then if a == k else otherwise
                case 0x05:
                    at += k
                case 0x06:
                    return k > 0
                case _:
                    raise AssertionError(f"unknown instruction {instruction:#x}")
        except (struct.error, IndexError):
            return False


@pytest.mark.parametrize(("protocol", "source", "destination"), CASES)
@pytest.mark.parametrize("number", range(MAX_PROBES))
def test_a_probe_is_recognised_plain_and_in_a_capsule(protocol: Protocol, source: str, destination: str, number: int) -> None:
    frame = framed(build(Probe(protocol, destination, 80, MARK, MAX_PROBES), number, source))
    found = dissect(frame, MARK, PORT)
    assert found is not None
    assert (found.number, found.way, found.source, found.destination, found.capsule) == (number, "there", source, destination, None)
    assert passes(frame)
    for six in (False, True):
        inner = dissect(capsuled(frame, six=six), MARK, PORT)
        ends = ("fd01::1", "fd01::2") if six else ("192.0.2.1", "192.0.2.2")
        assert inner == Packet(**{**{f: getattr(found, f) for f in Packet.__slots__}, "capsule": Capsule(*ends, 77)})
        assert passes(capsuled(frame, six=six))
    # on another port it is no capsule, and a mark in the middle of somebody's data is nobody's probe
    assert dissect(capsuled(frame, 4790), MARK, PORT) is None
    assert dissect(frame, Mark(MARK.value ^ 1), PORT) is None


def test_a_probe_is_recognised_after_translation_of_addresses_and_ports() -> None:
    syn = IP(build(Probe("tcp", "10.0.1.9", 80, MARK), 0, "10.0.1.5"))
    syn.src, syn.dst, syn.sport, syn.dport = "10.0.1.2", "10.0.1.11", 1025, 8080
    datagram = IP(build(Probe("udp", "10.0.1.9", 53, MARK), 0, "10.0.1.5"))
    datagram.src, datagram.dst, datagram.sport, datagram.dport = "10.0.1.2", "10.0.1.11", 1025, 5353
    for packet in (syn, datagram):
        frame = framed(bytes(packet))
        found = dissect(frame, MARK, PORT)
        assert found is not None and found.way == "there"
        assert (found.source, found.destination, found.source_port) == ("10.0.1.2", "10.0.1.11", 1025)
        assert passes(frame) and passes(capsuled(frame))


NUMBER = 5
CLIENT = MARK.ports[NUMBER]
TCP_PROBE = IP(build(Probe("tcp", "10.0.1.9", 80, MARK, MAX_PROBES), NUMBER, "10.0.1.5"))
UDP_PROBE = IP(build(Probe("udp", "10.0.1.9", 53, MARK, MAX_PROBES), NUMBER, "10.0.1.5"))
UDP6_PROBE = IPv6(build(Probe("udp", "fd00::9", 53, MARK, MAX_PROBES), NUMBER, "fd00::5"))


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("syn-ack", IP() / TCP(sport=80, dport=CLIENT, flags="SA", ack=MARK.sequence(NUMBER) + 1)),
        ("rst", IP() / TCP(sport=80, dport=1025, flags="RA", ack=MARK.sequence(NUMBER) + 1)),
        ("rst", IPv6() / TCP(sport=80, dport=CLIENT, flags="RA", ack=MARK.sequence(NUMBER) + 1)),
        ("datagram", IP() / UDP(sport=53, dport=CLIENT) / Raw(b"whatever")),
        ("datagram", IP() / UDP(sport=53, dport=CLIENT) / Raw(payload(MARK, NUMBER))),
        ("echo-reply", IP() / ICMP(type=0) / Raw(payload(MARK, NUMBER))),
        ("echo-reply", IPv6() / ICMPv6EchoReply(data=payload(MARK, NUMBER))),
        # what a kernel quotes: at least the IP header and eight bytes
        ("unreachable", IP() / ICMP(type=3, code=3) / Raw(bytes(UDP_PROBE)[:28])),
        ("unreachable", IP() / ICMP(type=3, code=13) / Raw(bytes(TCP_PROBE)[:28])),
        ("unreachable", IPv6() / ICMPv6DestUnreach(code=4) / Raw(bytes(UDP6_PROBE))),
    ],
)
def test_an_answer_is_recognised(kind: str, answer: IP | IPv6) -> None:
    for frame in (framed(bytes(answer)), capsuled(framed(bytes(answer)))):
        found = dissect(frame, MARK, PORT)
        assert found is not None
        assert (found.way, found.kind, found.number) == ("back", kind, NUMBER)
        assert passes(frame)


@pytest.mark.parametrize(
    "other",
    [
        IP() / TCP(sport=CLIENT, dport=80, flags="R", seq=MARK.sequence(NUMBER) + 1),  # the client's kernel, which knows no such connection
        IP() / TCP(dport=80, flags="S", seq=1),
        IP() / TCP(dport=80, flags="PA", seq=MARK.sequence(0), ack=77),
        IP() / UDP(sport=1000, dport=53) / Raw(b"q" * 40),
        IP() / UDP(sport=1000, dport=53) / Raw(b"mesh" + bytes(4)),
        IP() / ICMP() / Raw(b"ping"),
        IP() / ICMP(type=3, code=3) / Raw(bytes(IP() / UDP(sport=1, dport=2))[:28]),
        IPv6() / Raw(b"x"),
        ARP(hwsrc="02:42:0a:00:01:05", psrc="10.0.1.5", pdst="10.0.1.9"),
    ],
)
def test_other_traffic_is_not(other: IP) -> None:
    frame = bytes(ether() / other)
    assert dissect(frame, MARK, PORT) is None
    assert dissect(capsuled(frame), MARK, PORT) is None


@given(st.binary(max_size=200), st.booleans())
def test_no_frame_is_too_broken(noise: bytes, inside: bool) -> None:
    frame = capsuled(noise) if inside else noise
    assert dissect(frame, MARK, PORT) is None or passes(frame)
    passes(frame)


def test_ordinary_traffic_stays_in_the_kernel() -> None:
    for frame in (
        bytes(ether() / ARP(hwsrc="02:42:0a:00:01:05", psrc="10.0.1.5", pdst="10.0.1.9")),
        bytes(ether() / IP() / TCP(dport=80, flags="S", seq=1)),
        bytes(ether() / IP() / UDP(sport=1000, dport=53) / Raw(b"q" * 40)),
        bytes(ether() / IPv6() / UDP(sport=1000, dport=53) / Raw(b"q" * 40)),
    ):
        assert not passes(frame)
        assert not passes(capsuled(frame))
        assert not passes(capsuled(frame, six=True))


@given(st.integers(0, (1 << 24) - 1))
def test_ports_of_a_mark_are_a_block_that_no_client_is_given(value: int) -> None:
    ports = Mark(value).ports
    assert len(ports) == MAX_PROBES and ports[0] % MAX_PROBES == 0
    assert ports[0] > 60999 and ports[-1] < 65536
