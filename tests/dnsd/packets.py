"""Packets for tests: seeds, mutants of them, and what every response must be, as two independent readers see it.

Invariant: a packet gets no response at all, or one that has its id, is a response, is no longer than the asker takes, has nothing behind
the records its header counts, and is read by dnslib and by dnspython, which find the same in it.
"""

from __future__ import annotations

import random
import struct

import dns.flags
import dns.message
import dns.rdataclass
import dns.rdatatype
from dnslib import QTYPE, DNSRecord

from dnsd import PortName, ServiceName, TaskName, ZoneSpec, wire
from dnsd.resolve import Forward, View
from tests.dnsd.ask import query


def zone_spec(tasks: int) -> ZoneSpec:
    """Services web, with virtual IPs and a port, and big, of so many tasks."""
    names = tuple(
        TaskName(id=f"t{slot}", name=f"big.{slot}.t", slot=slot, addresses=(f"10.0.{slot // 250}.{slot % 250 + 1}",))
        for slot in range(1, tasks + 1)
    )
    ports = (PortName(name="http", protocol="tcp", port=80),)
    web = ServiceName(id="w", name="web", vips=("10.9.0.1", "fd00::1"), tasks=names[:3], ports=ports)
    return ZoneSpec(network="n", name="net", services=(web, ServiceName(id="b", name="big", tasks=names)))


SEEDS = [
    query("web"),
    query("WeB", size_bytes=1232),
    query("web", "AAAA", size_bytes=4096),
    query("big", size_bytes=512),
    query("nosuch"),
    query("example.com"),
    query("1.0.9.10.in-addr.arpa", "PTR"),
    query("_http._tcp.web", "SRV", size_bytes=65535),
    query("tasks.web.net", "ANY"),
]


def mutated(packet: bytes, chance: random.Random) -> bytes:
    """Half of the changes break the form, half leave a query that means something else."""
    mutant = bytearray(packet)
    for _ in range(chance.choice((1, 1, 2, 4))):
        match chance.randint(0, 11):
            case 0 if mutant:
                mutant[chance.randrange(len(mutant))] = chance.randrange(256)
            case 1 if mutant:
                mutant[chance.randrange(len(mutant))] ^= 1 << chance.randrange(8)
            case 2:
                del mutant[chance.randint(0, len(mutant)) :]
            case 3:
                at = chance.randint(0, len(mutant))
                mutant[at:at] = chance.randbytes(chance.randint(1, 20))
            case 4 if len(mutant) > 12:
                mutant[chance.randrange(2, 12)] = chance.choice([0, 1, 2, 0x10, 0x29, 0x80, 0xC0, 0xFF])
            case 5:
                mutant += chance.choice([b"\0\0\x29\x10\0\0\0\0\0\0\0", b"\xc0\x0c", bytes(11), b"\0\0\x29\x02\0\0\1\0\0\0\0"])
            case 6 | 7 if len(mutant) > 20:
                at = chance.randrange(13, min(len(mutant), 30))
                mutant[at] ^= 0x20 if chr(mutant[at]).isalpha() else 0
            case 8 | 9 if (end := mutant.find(0, 12)) > 0 and len(mutant) >= end + 5:
                kind = chance.choice((1, 28, 33, 12, 255, 65, chance.randrange(65536)))
                mutant[end + 1 : end + 5] = struct.pack("!HH", kind, chance.choice((1, 1, 255, 3)))
            case 10 if len(mutant) > 12:
                mutant[2:4] = bytes((chance.choice((0, 1, 2, 0x80, 0x79)), chance.choice((0, 0x10, 0x20, 0x8F))))
            case 11 if mutant[10:12] == b"\0\1" and len(mutant) > 23:
                size, version, flags = chance.choice((0, 511, 512, 1232, 65535)), chance.choice((0, 0, 1)), chance.choice((0, 0x8000))
                mutant[-8:-2] = struct.pack("!HBBH", size, 0, version, flags)
    return bytes(mutant)


def check(view: View, packet: bytes, *, tcp: bool = False) -> str:
    """What became of it; fails if the response is not one."""
    response = view.respond(packet, tcp)
    if isinstance(response, Forward):
        # A forwarded question must be one that we can pass on, fail, and answer.
        check_response(packet, wire.failure(response.query, wire.SERVFAIL), 65535)
        assert DNSRecord.parse(ascii_question(wire.write_query(b"\0\1", response.query.question, edns=True))).header.q == 1
        return "forwarded"
    return check_response(packet, response, 65535 if tcp else 4096)


def check_response(packet: bytes, response: bytes | None, size_bytes: int, seen: set[bytes] | None = None) -> str:
    """Its rcode, or "dropped"; fails if it breaks the invariant. seen: shapes of responses that need not be read again."""
    if response is None:
        assert len(packet) < 12 or packet[2] & 0x80
        return "dropped"
    assert 12 <= len(response) <= size_bytes
    assert response[:2] == packet[:2]
    assert response[2] & 0x80
    start = 12
    if response[4:6] == b"\0\1":
        while response[start]:
            start += 1 + response[start]
        start += 5
        assert response[12:start] == packet[12:start]
    assert end_of(response) == len(response)
    # What both have read alike need not be read again with other letters in its question.
    shape = response[2:12] + bytes(start - 12) + response[start - 4 :]
    if seen is None or shape not in seen:
        assert sections_by_dnslib(response) == sections_by_dnspython(response)
        if seen is not None:
            seen.add(shape)
    return str(response[3] & 0xF)


Sections = tuple[int, int, list[str], list[list[tuple[str, int, str]]]]


def sections_by_dnslib(packet: bytes) -> Sections:
    """id, flags with rcode, questions, and the records of the three sections but OPT, each (owner, TTL, type and data)."""
    record = DNSRecord.parse(ascii_question(packet))
    assert (len(record.questions), len(record.rr), len(record.auth), len(record.ar)) == struct.unpack_from("!HHHH", packet, 4)
    sections = [
        [(str(one.rname).lower(), one.ttl, f"{QTYPE[one.rtype]} {one.rdata}") for one in section if one.rtype != wire.OPT]
        for section in (record.rr, record.auth, record.ar)
    ]
    questions = [f"{str(one.qname).lower()} {one.qtype} {one.qclass}" for one in record.questions]
    return record.header.id, record.header.bitmap, questions, sections


def sections_by_dnspython(packet: bytes) -> Sections:
    # As it is: any byte may be in a label.
    dns.message.from_wire(packet, one_rr_per_rrset=True)
    message = dns.message.from_wire(ascii_question(packet), one_rr_per_rrset=True)
    sections = [
        [
            (set_.name.to_text().lower(), set_.ttl, f"{dns.rdatatype.to_text(set_.rdtype)} {record.to_text()}")
            for set_ in section
            for record in set_
        ]
        for section in (message.answer, message.authority, message.additional)
    ]
    questions = [f"{set_.name.to_text().lower()} {int(set_.rdtype)} {int(set_.rdclass)}" for set_ in message.question]
    return message.id, message.flags, questions, sections


def ascii_question(packet: bytes) -> bytes:
    """Labels may hold any byte (RFC 2181, 11), but dnslib reads only text: letters take the place of all that isn't."""
    if packet[4:6] == b"\0\0":
        return packet
    readable, at = bytearray(packet), 12
    while packet[at]:
        for index in range(at + 1, at + 1 + packet[at]):
            byte = readable[index]
            if not (chr(byte).isalnum() and byte < 128) and byte not in b"-_":
                readable[index] = ord("a") + byte % 26
        at += 1 + packet[at]
    return bytes(readable)


def end_of(packet: bytes) -> int:
    """Where a message ends, walked by hand."""
    counts = struct.unpack_from("!HHHH", packet, 4)
    at = 12
    for section, count in enumerate(counts):
        for _ in range(count):
            while packet[at] and packet[at] < 0xC0:
                at += 1 + packet[at]
            at += 2 if packet[at] else 1
            at += 4 if section == 0 else 10 + struct.unpack_from("!H", packet, at + 8)[0]
    return at
