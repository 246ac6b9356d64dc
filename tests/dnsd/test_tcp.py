"""DNS over TCP on loopback: framing, pipelining in any order, limits, silence, half-closed connections."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from dnslib import DNSRecord

from dnsd import wire
from dnsd.resolve import Forward
from dnsd.tcp import TcpListener
from tests.dnsd.ask import query, until

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Service:
    """Answers "now<n>" at once, "later<n>" when told to, and nothing to what is no query."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.address: tuple[str, int] = self.sock.getsockname()
        self.counters: Counter[str] = Counter()
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.listener = TcpListener(self.sock, self.answer, self.resolve, self.counters)
        self.writers: list[asyncio.StreamWriter] = []

    def answer(self, packet: bytes) -> bytes | Forward | None:
        asked = wire.read_query(packet)
        if not isinstance(asked, wire.Query):
            return None
        return Forward(asked) if asked.question[1:6] == b"later" else wire.failure(asked, wire.NXDOMAIN)

    async def resolve(self, forward: Forward) -> bytes:
        asked = forward.query
        name = asked.question[1 : 1 + asked.question[0]].decode()
        told = self.waiting[name] = asyncio.get_running_loop().create_future()
        try:
            await told
        finally:
            del self.waiting[name]
        return wire.failure(asked, wire.NOERROR)

    async def connect(self) -> Streams:
        reader, writer = await asyncio.open_connection(*self.address)
        self.writers.append(writer)
        return reader, writer

    def close(self) -> None:
        self.listener.close()
        for writer in self.writers:
            writer.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    yield service
    service.close()
    await until(lambda: service.counters["tcp_open"] == 0)


def framed(name: str, query_id: int = 1) -> bytes:
    packet = query(name, query_id=query_id)
    return len(packet).to_bytes(2) + packet


async def ids(streams: Streams, count: int) -> list[int]:
    return [(await answer(streams)).header.id for _ in range(count)]


async def answer(streams: Streams) -> DNSRecord:
    async with asyncio.timeout(5):
        size = int.from_bytes(await streams[0].readexactly(2))
        return DNSRecord.parse(await streams[0].readexactly(size))


async def ended(streams: Streams) -> bool:
    try:
        return await asyncio.wait_for(streams[0].read(), 5) == b""
    except ConnectionError:
        return True


async def test_each_is_answered_as_soon_as_its_answer_is_there(service: Service) -> None:
    streams = await service.connect()
    streams[1].write(framed("later1", 1) + framed("now1", 2) + framed("later2", 3) + framed("now2", 4))
    assert await ids(streams, 2) == [2, 4]
    await until(lambda: len(service.waiting) == 2)
    service.waiting["later2"].set_result(None)
    assert await ids(streams, 1) == [3]
    service.waiting["later1"].set_result(None)
    assert await ids(streams, 1) == [1]


async def test_byte_by_byte(service: Service) -> None:
    streams = await service.connect()
    for byte in framed("now1", 7) + framed("now2", 8):
        streams[1].write(bytes((byte,)))
        await streams[1].drain()
    assert await ids(streams, 2) == [7, 8]


@pytest.mark.parametrize("junk", [b"\0\0", b"\0\3abc", framed("now1")[:4] + b"\x80" + framed("now1")[5:]])
async def test_what_is_no_query_ends_the_connection(service: Service, junk: bytes) -> None:
    streams = await service.connect()
    streams[1].write(framed("now1") + junk + framed("now2"))
    assert await ids(streams, 1) == [1]
    assert await ended(streams)


async def test_who_sends_no_more_still_gets_its_answers(service: Service) -> None:
    streams = await service.connect()
    streams[1].write(framed("later1", 1) + framed("now1", 2))
    streams[1].write_eof()
    assert await ids(streams, 1) == [2]
    service.waiting["later1"].set_result(None)
    assert await ids(streams, 1) == [1]
    assert await ended(streams)
    # Left in the middle of a query: nothing to wait for.
    streams = await service.connect()
    streams[1].write(framed("now1")[:9])
    streams[1].write_eof()
    assert await ended(streams)


async def test_silence_ends_a_connection_waiting_does_not(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.tcp.IDLE_S", 0.1)
    waiting, silent, half = [await service.connect() for _ in range(3)]
    half[1].write(framed("now1")[:5])
    waiting[1].write(framed("later1"))
    while not service.waiting:
        # A busy machine may have let it count as silent before it could speak.
        await until(lambda: bool(service.waiting) or waiting[0].at_eof())  # noqa: B023
        if waiting[0].at_eof():
            waiting = await service.connect()
            waiting[1].write(framed("later1"))
    assert await ended(silent)
    assert await ended(half)
    service.waiting["later1"].set_result(None)
    assert await ids(waiting, 1) == [1]
    assert await ended(waiting)


async def test_who_takes_no_answers_is_ended(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.tcp.IDLE_S", 0.3)
    streams = await service.connect()
    streams[1].transport.pause_reading()
    # More than all the buffers on the way can hold.
    writing = asyncio.create_task(flood(streams[1]))
    await until(lambda: service.counters["tcp_connections"] == 1 and service.counters["tcp_open"] == 0, 20)
    writing.cancel()


async def flood(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(framed("now1") * 1000)
        await writer.drain()


async def test_what_is_under_way_on_one_connection_is_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.tcp.MAX_UNDER_WAY", 3)
    streams = await service.connect()
    streams[1].write(b"".join(framed(f"later{number}", number) for number in range(10)) + framed("now1", 99))
    await until(lambda: len(service.waiting) == 3)
    answered = set()
    for number in range(10):
        await until(lambda: f"later{number}" in service.waiting)  # noqa: B023
        assert len(service.waiting) <= 3
        service.waiting[f"later{number}"].set_result(None)
        answered.update(await ids(streams, 1))
    answered.update(await ids(streams, 1))
    assert answered == {*range(10), 99}


async def test_thousands_in_one_write(service: Service) -> None:
    streams = await service.connect()
    streams[1].write(b"".join(framed("now1", number) for number in range(5000)))
    assert await ids(streams, 5000) == list(range(5000))


async def test_the_idlest_makes_room_busy_ones_do_not(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.tcp.MAX_CONNECTIONS", 2)
    first = await service.connect()
    second = await service.connect()
    for streams in (second, first):
        streams[1].write(framed("now1"))
        await answer(streams)
    third = await service.connect()
    assert await ended(second)
    for streams, name in ((first, "later1"), (third, "later2")):
        streams[1].write(framed(name))
    await until(lambda: len(service.waiting) == 2)
    assert await ended(await service.connect())
    assert service.counters["tcp_refused"] == 1
    for name in ("later1", "later2"):
        service.waiting[name].set_result(None)
    assert [await ids(streams, 1) for streams in (first, third)] == [[1], [1]]


async def test_connections_of_the_whole_process_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.tcp.MAX_CONNECTIONS_TOTAL", 1)
    service.counters["tcp_open"] += 1
    assert await ended(await service.connect())
    service.counters["tcp_open"] -= 1
    streams = await service.connect()
    streams[1].write(framed("now1", 5))
    assert await ids(streams, 1) == [5]


async def test_close_ends_everything(service: Service) -> None:
    streams = await service.connect()
    streams[1].write(framed("later1"))
    await until(lambda: len(service.waiting) == 1)
    service.listener.close()
    assert await ended(streams)
    assert service.counters["tcp_open"] == 0
    with pytest.raises(ConnectionError):
        await asyncio.open_connection(*service.address)
