"""Batches: whatever arrives together, each asker gets his own answer, as if he had been alone."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from dnslib import DNSRecord

from dnsd import DnsState, ScopeSpec, Server, ServiceName, TaskName, ZoneSpec, loop
from dnsd.datagrams import SLOTS, Batch, row_of, write_row
from dnsd.resolvers import NodeResolvers
from tests.dnsd.ask import query, until, values

TASKS = tuple(TaskName(id=f"t{n}", name=f"web.{n}.x", slot=n, addresses=(f"10.0.0.{n}",)) for n in range(1, 11))
LONG = ".".join(["x" * 60] * 3)
ZONE = ZoneSpec(
    network="n",
    name="net",
    services=(ServiceName(id="w", name="web", vips=("10.0.1.1", "fd00::1"), tasks=TASKS), ServiceName(id="l", name=LONG, tasks=TASKS[:1])),
)
TEN = [f"10.0.0.{n}" for n in range(1, 11)]

# packet, rcode (None: no answer), addresses
KINDS = [
    (query("web"), 0, ["10.0.1.1"]),
    (query("wEB.Net"), 0, ["10.0.1.1"]),
    (query("web", "AAAA", size_bytes=1232), 0, ["fd00::1"]),
    (query("tasks.web"), 0, TEN),
    (query("TASKS.web", size_bytes=4096), 0, TEN),
    (query("web.3"), 0, ["10.0.0.3"]),
    (query(LONG), 0, ["10.0.0.1"]),
    (query("web", "TXT"), 0, []),
    (query("nosuch"), 3, []),
    (query("example.com"), 2, []),
    (query("web", "AXFR"), 5, []),
    (query("web") + b"x", 1, []),
    (query("web")[:14], 1, []),
    (b"short", None, []),
    (query("web")[:2] + b"\x81" + query("web")[3:], None, []),
]


async def exchange(server: Server, host: str, packets: list[bytes]) -> dict[int, bytes]:
    """All packets are in the server's socket before it reads the first; their answers by id."""
    address = server.address(host)
    found: dict[int, bytes] = {}
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        for packet in packets:
            sock.sendto(packet, address)

        def received_all() -> bool:
            try:
                while True:
                    response, peer = sock.recvfrom(65535)
                    assert peer[:2] == address
                    found[int.from_bytes(response[:2])] = response
            except BlockingIOError:
                return len(found) == expected

        expected = sum(rcode is not None for packet in packets for kind, rcode, _ in KINDS if kind[2:] == packet[2:])
        await until(received_all)
    return found


async def ask_in_batches(host: str) -> None:
    server = Server(NodeResolvers(Path("/nonexistent"), Path("/nonexistent")))
    try:
        listen = f"[{host}]:0" if ":" in host else f"{host}:0"
        state = DnsState(zones=(ZONE,), scopes=(ScopeSpec(id=host, netns="", networks=("n",), listen=listen),))
        assert (await server.apply(state)).failed == {}
        (listener,) = server._listeners.values()
        for size in (1, 3, 4, 5, SLOTS, SLOTS + 1, 3 * SLOTS, 1):
            for offset in range(0, len(KINDS), 4):
                asked = [KINDS[(offset + number * 7) % len(KINDS)] for number in range(size)]
                packets = [
                    (number * 3).to_bytes(2) + packet[2:] if rcode is not None else packet
                    for number, (packet, rcode, _) in enumerate(asked)
                ]
                found = await exchange(server, host, packets)
                for number, (packet, rcode, addresses) in enumerate(asked):
                    if rcode is None:
                        continue
                    response = found.pop(number * 3)
                    record = DNSRecord.parse(response)
                    assert (record.header.rcode, values(record, sort=True)) == (rcode, sorted(addresses)), packet
                    if rcode != 1:
                        # The question as it was asked.
                        end = packet.index(b"\0", 12) + 5
                        assert response[12:end] == packet[12:end]
                assert found == {}
            # Batches only while there is load.
            if size == 1:
                assert not listener._loaded
        assert server.counters["unsent"] == server.counters["bugs"] == 0
        assert listener.view.rows
    finally:
        await server.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_in_an_event_loop_of_ours(host: str) -> None:
    loop.run(ask_in_batches(host))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_in_any_event_loop(host: str) -> None:
    asyncio.run(ask_in_batches(host))


def test_what_cannot_be_sent_is_counted_and_harms_no_other() -> None:
    """The asker in the middle has port 0, to which nothing can be sent."""
    row = row_of(query("web"), 9, 16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for sock in (server, client):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(5)
        for number in range(5):
            client.sendto(bytes((0, number)) + query("WEB")[2:], server.getsockname())
        batch = Batch(socket.AF_INET)
        assert batch.receive(server.fileno()) == 5
        assert [batch.peer(slot) for slot in range(5)] == [client.getsockname()] * 5
        batch._addresses[2 * 28 + 2 : 2 * 28 + 4] = b"\0\0"
        assert batch.send(server.fileno(), [row] * 5, skipped=[0, 4]) == 1
        for number in (1, 3):
            # What the kernel gathers is what is written for one.
            assert client.recv(4096) == write_row(row, bytes((0, number)) + query("WEB")[2:])
        assert batch.receive(server.fileno()) == 0


def test_the_loop_keeps_its_timers_and_its_own_descriptors() -> None:
    """While sockets are served without pause, what asyncio has to do is done."""

    async def main() -> list[str]:
        poller = loop.poller_of(asyncio.get_running_loop())
        busy, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        done: list[str] = []
        served = 0

        def serve() -> bool:
            nonlocal served
            busy.recv(10)
            served += 1
            other.send(b"again")
            return False

        with busy, other:
            poller.add(busy.fileno(), serve)
            other.send(b"first")
            loop_ = asyncio.get_running_loop()
            loop_.call_later(0.05, done.append, "timer")
            reading, writing = socket.socketpair()
            with reading, writing:
                loop_.add_reader(reading, lambda: done.append(reading.recv(10).decode()))
                writing.send(b"reader")
                await loop_.run_in_executor(None, done.append, "thread")
                # And the busy socket is served all the while.
                await until(lambda: len(done) == 3 and served > 3)
                loop_.remove_reader(reading)
            poller.remove(busy.fileno())
            # Removed: nobody reads it any more.
            served = 0
            await asyncio.sleep(0)
            assert served == 0
        return done

    assert sorted(loop.run(main())) == ["reader", "thread", "timer"]
