"""Asking a DNS server in tests: one query, one dnslib record. dnslib is the reference; nothing of dnsd is used here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from dnslib import EDNS0, QTYPE, DNSHeader, DNSQuestion, DNSRecord

from dnsd.resolve import Forward, View

T = TypeVar("T")


def query(name: str, kind: str = "A", *, size_bytes: int = 0, query_id: int = 4711, rd: int = 1) -> bytes:
    record = DNSRecord(DNSHeader(id=query_id, rd=rd), q=DNSQuestion(name, getattr(QTYPE, kind)))
    if size_bytes:
        record.add_ar(EDNS0(udp_len=size_bytes))
    return bytes(record.pack())


def look_up(view: View, name: str, kind: str = "A", **options: Any) -> Any:
    """The dnslib record; "forward"; or None."""
    packet = query(name, kind, **options)
    # Twice: the first builds the answer, the second takes the hot path. They must say the same.
    first, second = view.respond(packet), view.respond(packet)
    if isinstance(first, Forward):
        assert isinstance(second, Forward)
        return "forward"
    assert isinstance(first, bytes) and isinstance(second, bytes)
    one, two = DNSRecord.parse(first), DNSRecord.parse(second)
    assert (one.header.bitmap, values(one, sort=True)) == (two.header.bitmap, values(two, sort=True))
    return one


def values(record: Any, *, sort: bool = False) -> list[str]:
    answers = [str(answer.rdata) for answer in record.rr]
    return sorted(answers) if sort else answers


def over_udp(address: tuple[str, int], packet: bytes, timeout_s: float = 10.0) -> Any:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        # Connected: when nobody listens, that is said at once.
        sock.connect(address)
        sock.send(packet)
        return DNSRecord.parse(sock.recv(65535))


async def ask(address: tuple[str, int], name: str, kind: str = "A", **options: Any) -> Any:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(address)
        await loop.sock_sendall(sock, query(name, kind, **options))
        async with asyncio.timeout(10):
            return DNSRecord.parse(await loop.sock_recv(sock, 65535))


async def ask_tcp(address: tuple[str, int], *packets: bytes) -> list[Any]:
    """All packets in one write; one record for each."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(b"".join(len(packet).to_bytes(2) + packet for packet in packets))
        answers = []
        for _ in packets:
            size = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), 10))
            answers.append(DNSRecord.parse(await asyncio.wait_for(reader.readexactly(size), 10)))
        return answers
    finally:
        writer.close()


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def outcome(steps: Generator[None, None, T]) -> T:
    """What work that pauses comes to, without pauses."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
