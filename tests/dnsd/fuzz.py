"""Mutated packets against a dnsd process, over UDP in bursts: `python -m tests.dnsd.fuzz --count 1000000`.

Each must be treated as the invariant in `packets` says, by the process as by a view in this one, and over TCP's rules as well; afterwards
the process still runs, has met no bug and answers as before. And mutated replies of an upstream: each is dropped, or passed on as
a message that ends where its counts say, within the size asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from dnslib import QTYPE, RCODE, RR, SOA, A, DNSRecord

from dnsd import Client, DnsState, ScopeSpec, Zone, wire
from dnsd.model import Status
from dnsd.resolve import Forward, View
from tests.dnsd.ask import query, values
from tests.dnsd.packets import SEEDS, check_response, end_of, mutated, zone_spec
from tests.dnsd.process import Process, free_port
from tests.dnsd.upstream import closed_port

# As many as one batched system call takes, and some that wait for the next.
_BURST = 96
# More than a classic datagram takes, few enough to be read a million times.
_SPEC = zone_spec(tasks=40)


class Queries:
    """Sends bursts to a dnsd and holds what comes back against the invariant and against a view of its own."""

    def __init__(self, address: tuple[str, int], chance: random.Random) -> None:
        self.outcomes: Counter[str] = Counter()
        self._chance = chance
        self._view = View((Zone(_SPEC),))
        self._seen: set[bytes] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(20)
        self._socket.connect(address)

    def close(self) -> None:
        self._socket.close()

    def burst(self, size: int) -> None:
        mutants = {}
        for number in range(size):
            mutant = mutated(self._chance.choice(SEEDS), self._chance)
            mutants[number] = number.to_bytes(2) + mutant[2:] if len(mutant) >= 2 else mutant
        expected = {number: self._view.respond(mutant) for number, mutant in mutants.items()}
        for mutant in mutants.values():
            self._socket.send(mutant)
        waiting = {number for number, response in expected.items() if response is not None}
        self.outcomes["dropped"] += size - len(waiting)
        while waiting:
            response = self._socket.recv(65535)
            number = int.from_bytes(response[:2])
            assert number in waiting, f"answered twice, or not to be answered: {response.hex()}"
            waiting.remove(number)
            self._check(mutants[number], response, expected[number])
        for mutant in mutants.values():
            over_tcp = self._view.respond(mutant, tcp=True)
            if not isinstance(over_tcp, Forward):
                check_response(mutant, over_tcp, 65535, self._seen)

    def _check(self, mutant: bytes, response: bytes, expected: bytes | Forward | None) -> None:
        outcome = check_response(mutant, response, 4096, self._seen)
        if isinstance(expected, Forward):
            assert outcome == "2"
            outcome = "forwarded"
        else:
            # But for the rotation: equal header, question and size.
            assert expected is not None
            end = expected.find(b"\0", 12) + 5
            assert (response[:end], len(response)) == (expected[:end], len(expected)), mutant.hex()
        self.outcomes[outcome] += 1


def fuzz_replies(count: int, chance: random.Random) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    seeds = [reply for name in ("a.example.com", "example.com") for reply in _replies(name)]
    asked = wire.read_query(query("a.example.com", size_bytes=1232))
    assert isinstance(asked, wire.Query)
    for _ in range(count):
        packet = mutated(chance.choice(seeds), chance)
        reply = wire.read_reply(packet, asked.id, asked.question)
        if reply is None:
            outcomes["ignored"] += 1
            continue
        for size_bytes in (512, asked.size_bytes, 65535):
            written = wire.write_reply(reply, asked, 1, size_bytes)
            assert len(written) <= size_bytes
            assert end_of(written) == len(written), packet.hex()
            assert written[:2] == asked.id and written[12 : 12 + len(asked.question)] == asked.question
        outcomes["passed on"] += 1
    return outcomes


def _replies(name: str) -> list[bytes]:
    asked = DNSRecord.parse(query(name, size_bytes=1232))
    plain, long, denied, failed = (asked.reply() for _ in range(4))
    plain.add_answer(RR(name, QTYPE.A, ttl=300, rdata=A("192.0.2.1")))
    for number in range(60):
        long.add_answer(RR(name, QTYPE.A, ttl=number, rdata=A(f"192.0.2.{number}")))
    denied.header.rcode, failed.header.rcode = RCODE.NXDOMAIN, RCODE.SERVFAIL
    denied.add_auth(RR("example.com", QTYPE.SOA, ttl=60, rdata=SOA("ns.example.com", "x.example.com", (1, 2, 3, 4, 5))))
    return [bytes(reply.pack()) for reply in (plain, long, denied, failed)]


def run(count: int, seed: int, *, tell: bool = False) -> tuple[Counter[str], Counter[str]]:
    """What became of `count` queries and of a quarter as many replies. AssertionError: the invariant is broken."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="dnsd-fuzz-") as directory:
        process = Process(Path(directory))
        running, port = process.start(), free_port()
        nobody = f"127.0.0.1:{closed_port()}"
        scope = ScopeSpec(id="s", netns="", networks=(_SPEC.network,), listen=f"127.0.0.1:{port}", upstreams=(nobody,))
        queries = Queries(("127.0.0.1", port), chance)
        try:
            asyncio.run(_apply(process, DnsState(zones=(_SPEC,), scopes=(scope,))))
            since, told = time.monotonic(), 0
            for done in range(0, count, _BURST):
                queries.burst(min(_BURST, count - done))
                if tell and done - told >= count // 10:
                    told = done
                    print(f"{done} of {count} queries after {time.monotonic() - since:.0f} s: {dict(queries.outcomes)}", flush=True)
            status = asyncio.run(_status(process))
            assert running.poll() is None
            assert "bugs" not in status.counters, status.counters
            assert values(DNSRecord.parse(queries._view.respond(query("web")))) == ["10.9.0.1"]
        finally:
            queries.close()
            process.end()
    return queries.outcomes, fuzz_replies(count // 4, chance)


async def _apply(process: Process, state: DnsState) -> None:
    client = Client(process.control, timeout_s=30)
    assert (await client.apply(state)).failed == {}
    await client.close()


async def _status(process: Process) -> Status:
    client = Client(process.control, timeout_s=30)
    status = await client.status()
    await client.close()
    return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.dnsd.fuzz", description="Mutated packets against a dnsd process.")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    queries, replies = run(arguments.count, arguments.seed, tell=True)
    print(f"queries: {dict(queries)}\nreplies: {dict(replies)}\nthe invariant holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
