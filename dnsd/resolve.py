"""From a packet and a scope to an answer, or to "somebody else knows".

Pure but for its memory: answers are built from the zones on first use and then kept as bytes until the zones change.
A View is what one kind of asker sees (its networks in order, its stack); scopes that see the same share one.
Source: RFC 1034 4.3, RFC 2308 (NODATA, NXDOMAIN), RFC 6761 (localhost), RFC 8020 (empty non-terminals), RFC 8482 (ANY).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from dnsd import names, wire
from dnsd.policy import Policy, Upstreams
from dnsd.wire import Answer, Query
from dnsd.zone import EXISTS, Found, Zone

# Denials and odd types may be asked for without end; what exists is asked for again and refills quickly.
_MEMO_LIMIT = 8192
LOCALHOST = names.name_of("localhost") or b""
LOOPBACK = (b"\x7f\0\0\1", bytes(15) + b"\1")
_turns = count()


@dataclass(frozen=True, slots=True)
class Forward:
    """Not ours: these know. None: the node's own resolvers."""

    query: Query
    upstreams: Upstreams = None


class View:
    """`respond` never raises for any packet. What is not ours and, by the policy, not to be forwarded does not exist."""

    __slots__ = ("_memo", "forward", "policy", "prefixes", "zones")

    def __init__(self, zones: tuple[Zone, ...], stack: str = "", *, policy: Policy | None = None) -> None:
        self.zones = zones
        self.policy = policy or Policy()
        # Also the flag "recursion available" of every answer.
        self.forward = self.policy.forward or bool(self.policy.routes)
        # What names are looked up with, in that order: the asker's own stack comes first.
        self.prefixes = (f"{stack.lower()}_".encode(), b"") if stack else (b"",)
        self._memo: dict[bytes, Answer] = {}

    def respond(self, packet: bytes, tcp: bool = False) -> bytes | Forward | None:
        """The response; Forward; or None: such a packet gets no answer."""
        # The hot path: an ordinary query whose answer is known, without building anything but the response. Should the zero
        # byte lie inside a label, the key is cut too early and matches nothing: equal bytes are an equal question.
        end = packet.find(b"\0", 12) + 5
        if end > 16 and packet[2:3] < b"\x02" and packet[4:10] == b"\0\1\0\0\0\0":
            answer = self._memo.get(packet[12 : end - 4].lower() + packet[end - 4 : end])
            if answer is not None:
                tail = packet[end:]
                if not tail:
                    if packet[10:12] == b"\0\0":
                        limit = wire.MAX_TCP_BYTES if tcp else wire.CLASSIC_UDP_BYTES
                        return answer.write(packet[:2], packet[12:end], packet[2], 0, limit)
                elif (
                    packet[10:12] == b"\0\1"
                    and tail[:3] == b"\0\0\x29"
                    and tail[6:7] == b"\0"
                    and len(tail) > 10
                    and len(tail) == 11 + tail[9] * 256 + tail[10]
                ):
                    size = tail[3] * 256 + tail[4]
                    size = wire.MAX_TCP_BYTES if tcp else min(max(size, wire.CLASSIC_UDP_BYTES), wire.MAX_UDP_BYTES)
                    return answer.write(packet[:2], packet[12:end], packet[2], 1, size)
        query = wire.read_query(packet)
        if not isinstance(query, Query):
            return query
        return self.answer(query, tcp)

    def answer(self, query: Query, tcp: bool = False) -> bytes | Forward:
        qtype = query.qtype
        if query.qclass not in (wire.IN, wire.CLASS_ANY) or qtype in (wire.AXFR, wire.IXFR):
            return wire.failure(query, wire.REFUSED, recursion_available=self.forward)
        if qtype == wire.OPT or 249 <= qtype <= 254:
            # Meta types: never data, never forwarded.
            return wire.failure(query, wire.FORMERR if qtype == wire.OPT else wire.NOTIMP, recursion_available=self.forward)
        key = query.key
        answer = self._memo.get(key)
        if answer is None:
            answer = self._build(query.name, qtype)
            if answer is None:
                if not query.recursion_desired:
                    return wire.failure(query, wire.REFUSED, recursion_available=self.forward)
                return Forward(query, self.policy.upstreams_of(query.name))
            if len(self._memo) >= _MEMO_LIMIT:
                self._memo.clear()
            self._memo[key] = answer
        size = wire.MAX_TCP_BYTES if tcp else query.size_bytes
        return answer.write(query.id, query.question, int(query.recursion_desired), int(query.edns), size)

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
        if any(zone.is_parent(name) for zone in self.zones):
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
