"""From a packet and a scope to an answer, or to "somebody else knows".

Pure but for its memory: answers are built from the zones on first use and then kept as bytes until the zones change.
A View is what one kind of asker sees (its networks in order, its stack); scopes that see the same share one.
Source: RFC 1034 4.3, RFC 2308 (NODATA, NXDOMAIN), RFC 6761 (localhost), RFC 8020 (empty non-terminals), RFC 8482 (ANY).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, cycle, repeat

import msgspec

from dnsd import datagrams, names, wire
from dnsd.counters import label
from dnsd.datagrams import Row
from dnsd.policy import Policy, Upstreams
from dnsd.wire import Answer, Query
from dnsd.zone import EXISTS, Found, Zone

LOCALHOST = names.name_of("localhost") or b""
LOOPBACK = (b"\x7f\0\0\1", bytes(15) + b"\1")
_turns = count()

# Longer packets are looked up no more than `datagrams` copies of them.
_MAX_PACKET_BYTES = datagrams.HEAD_BYTES - 1
# Of an answer of more records not every rotation is prebuilt: it would take more room than the rest together.
_MAX_ROTATIONS = 32
# What an entry costs beside its bytes, seen with tracemalloc.
_ANSWER_BYTES = 900
_ROW_BYTES = 250

# What is found in `View.rows` where nothing is: its label is no answer's.
UNKNOWN_LABEL = -1
UNKNOWN_ROW: Row = (bytes(32), UNKNOWN_LABEL, 0, b"")
UNKNOWN: Iterator[Row] = repeat(UNKNOWN_ROW)


class Forward(msgspec.Struct, frozen=True):
    """Not ours: these know. None: the node's own resolvers."""

    query: Query
    upstreams: Upstreams = None


class Room:
    """Bounds what views remember together. When it is full all of it goes: what is asked for again is soon there again."""

    def __init__(self, limit_bytes: int = 4 << 20) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes: dict[View, int] = {}
        self._total_bytes = 0

    def take(self, view: View, size_bytes: int) -> None:
        """Before `view` remembers that much."""
        if self._total_bytes + size_bytes > self._limit_bytes:
            for other in self._used_bytes:
                other.forget()
            self._used_bytes.clear()
            self._total_bytes = 0
        self._used_bytes[view] = self._used_bytes.get(view, 0) + size_bytes
        self._total_bytes += size_bytes

    def leave(self, view: View) -> None:
        """`view` is not used any more."""
        self._total_bytes -= self._used_bytes.pop(view, 0)


class View:
    """`respond` never raises for any packet. What is not ours and, by the policy, not to be forwarded does not exist.

    rows: a packet without its id, in lower case -> its responses in turns, each to be filled in with the id and question asked.
    """

    __slots__ = ("_answers", "_room", "forward", "policy", "prefixes", "rows", "zones")

    def __init__(self, zones: tuple[Zone, ...], stack: str = "", *, policy: Policy | None = None, room: Room | None = None) -> None:
        self.zones = zones
        self.policy = policy or Policy()
        # Also the flag "recursion available" of every answer.
        self.forward = self.policy.forward or bool(self.policy.routes)
        self.rows: dict[bytes, Iterator[Row]] = {}
        # What names are looked up with, in that order: the asker's own stack comes first.
        self.prefixes = (f"{stack.lower()}_".encode(), b"") if stack else (b"",)
        self._answers: dict[bytes, Answer] = {}
        self._room = room or Room()

    def forget(self) -> None:
        self.rows.clear()
        self._answers.clear()

    def respond(self, packet: bytes, tcp: bool = False) -> bytes | Forward | None:
        """The response; Forward; or None: such a packet gets no answer."""
        if not tcp:
            row = self.row(packet)
            if row is not UNKNOWN_ROW:
                return datagrams.write_row(row, packet)
        query = wire.read_query(packet)
        if not isinstance(query, Query):
            return query
        return self.answer(query, b"" if tcp else packet)

    def row(self, packet: bytes) -> Row:
        """The next of its prebuilt responses; UNKNOWN_ROW: it has none."""
        row = next(self.rows.get(packet[2:], UNKNOWN))
        return next(self.rows.get(packet[2:].lower(), UNKNOWN)) if row is UNKNOWN_ROW else row

    def answer(self, query: Query, packet: bytes = b"") -> bytes | Forward:
        """packet: what the query came in, over UDP; over TCP there is none, and no limit to the size."""
        qtype = query.qtype
        if query.qclass not in (wire.IN, wire.CLASS_ANY) or qtype in (wire.AXFR, wire.IXFR):
            return wire.failure(query, wire.REFUSED, recursion_available=self.forward)
        if qtype == wire.OPT or 249 <= qtype <= 254:
            # Meta types: never data, never forwarded.
            return wire.failure(query, wire.FORMERR if qtype == wire.OPT else wire.NOTIMP, recursion_available=self.forward)
        key = query.key
        answer = self._answers.get(key)
        again = answer is not None
        if answer is None:
            answer = self._build(query.name, qtype)
            if answer is None:
                if not query.recursion_desired:
                    return wire.failure(query, wire.REFUSED, recursion_available=self.forward)
                return Forward(query, self.policy.upstreams_of(query.name))
            self._room.take(self, _ANSWER_BYTES + answer.size_bytes)
            self._answers[key] = answer
        response = answer.write(query, query.size_bytes if packet else wire.MAX_TCP_BYTES)
        if again and packet:
            # From now on it is answered without being read.
            self._keep_rows(packet, query, answer)
        return response

    def _keep_rows(self, packet: bytes, query: Query, answer: Answer) -> None:
        end = wire.HEADER_BYTES + len(query.question)
        fixed = packet[2 : wire.HEADER_BYTES] + packet[end - 4 :]
        # Packets with options of EDNS are all different. Letters outside the name have a case that counts.
        bare = len(packet) == end + (wire.BARE_OPT_BYTES if query.edns else 0)
        if not bare or len(packet) > _MAX_PACKET_BYTES or answer.count > _MAX_ROTATIONS or fixed.lower() != fixed or fixed.upper() != fixed:
            return
        responses = [answer.write(query, query.size_bytes) for _ in range(max(1, answer.count))]
        rows = [datagrams.row_of(response, len(query.question), label(query.qtype, answer.rcode)) for response in responses]
        self._room.take(self, _ROW_BYTES * (1 + len(rows)) + len(packet) + sum(map(len, responses)))
        self.rows[packet[2:].lower()] = cycle(rows)

    def find(self, name: bytes) -> Found | None:
        """What a name stands for here. The asker's own stack comes first, then its networks in order; a name that can be reached
        on one network goes before one that merely exists on another. Never mixed: the same name may be two things."""
        if name == LOCALHOST:
            return Found(addresses=LOOPBACK, ttl_s=0)
        packed = names.reverse_address(name)
        if packed is not None:
            if packed in LOOPBACK:
                return Found(pointer=LOCALHOST)
            return next((found for zone in self.zones if (found := zone.pointer(packed))), None)
        for prefix in self.prefixes:
            exists = None
            for zone in self.zones:
                found = zone.find(name, prefix)
                if found is not None:
                    if not found.empty:
                        return found
                    exists = exists or found
            if exists is not None:
                return exists
        # What lies above our names exists too, unless others may know more of it: an alias `s3.example.com` hides nothing else of
        # `example.com`.
        if any(zone.is_parent(name) for zone in self.zones) and (name[1:2] == b"_" or self.denies(name)):
            return EXISTS
        return None

    def denies(self, name: bytes) -> bool:
        """Whether an unknown name is ours to deny rather than the outside's to know."""
        if self.policy.route_of(name):
            return False
        if not self.policy.forward:
            return True
        labels = names.labels_of(name)
        if not labels:
            return False
        # No public domain is all digits ("web.9", "10.0.0.1" taken for a name) or has an underscore ("tasks.shop_db").
        if len(labels) == 1 or labels[-1].isdigit() or b"_" in labels[-1]:
            return True
        if len(labels) == 3 and labels[0].startswith(b"_") and labels[1].startswith(b"_"):
            return True
        return any(zone.covers(name) for zone in self.zones)

    def _build(self, name: bytes, qtype: int) -> Answer | None:
        found = self.find(name)
        if found is None:
            return self._denial(wire.NXDOMAIN) if self.denies(name) else None
        records: list[bytes] = []
        additional: list[bytes] = []
        if qtype in (wire.A, wire.ANY):
            records += [wire.address_record(address, found.ttl_s) for address in found.addresses if len(address) == 4]
        if qtype in (wire.AAAA, wire.ANY):
            records += [wire.address_record(address, found.ttl_s) for address in found.addresses if len(address) == 16]
        if qtype in (wire.PTR, wire.ANY) and found.pointer:
            records.append(wire.pointer_record(found.pointer, found.ttl_s))
        if qtype in (wire.SRV, wire.ANY):
            for target in found.targets:
                records.append(wire.service_record(target.port, target.name, found.ttl_s))
                additional += [wire.address_record(address, found.ttl_s, target.name) for address in target.addresses]
        if not records:
            return self._denial(wire.NOERROR)
        return Answer(wire.NOERROR, records, additional=additional, recursion_available=self.forward, turn=next(_turns))

    def _denial(self, rcode: int) -> Answer:
        return Answer(rcode, [], wire.SOA_RECORD, 1, recursion_available=self.forward)
