"""DNS on the wire: records and the shapes of queries and answers as bytes.

Pure: no I/O. The usual is packed and read by hand, because it runs once a query; dnslib packs the unusual and knows every
record type. Names are as in `names`.
Source: RFC 1035, RFC 6891 (EDNS0), RFC 2308 (SOA in negative answers), RFC 2782 (SRV), RFC 4343 (case).
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from itertools import accumulate

import msgspec

from dnsd.errors import WireError
from dnsd.names import MAX_LABEL_BYTES, MAX_NAME_BYTES, name_of

A, NS, SOA_TYPE, PTR, HINFO, AAAA, SRV, OPT, IXFR, AXFR, ANY = 1, 2, 6, 12, 13, 28, 33, 41, 251, 252, 255
IN, CLASS_ANY = 1, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16

HEADER_BYTES = 12
CLASSIC_UDP_BYTES = 512
# What we tell others we take, and the most we send in one datagram: answers travel over loopback, where nothing is fragmented.
ADVERTISED_UDP_BYTES = 1232
MAX_UDP_BYTES = 4096
MAX_TCP_BYTES = 65535

# Every record about the question's own name points to it (offset 12).
_OWNER_IS_QUESTION = b"\xc0\x0c"
_OPT_ANSWER = struct.pack("!BHHIH", 0, OPT, ADVERTISED_UDP_BYTES, 0, 0)
_OPT_ANSWER_DO = struct.pack("!BHHIH", 0, OPT, ADVERTISED_UDP_BYTES, 0x8000, 0)
_OPT_BADVERS = struct.pack("!BHHIH", 0, OPT, ADVERTISED_UDP_BYTES, (BADVERS >> 4) << 24, 0)
BARE_OPT_BYTES = len(_OPT_ANSWER)
_DO_BIT = 0x8000


# -- records --------------------------------------------------------------------------------------------------------------------


def address_record(packed: bytes, ttl_s: int, owner: bytes = _OWNER_IS_QUESTION) -> bytes:
    kind = A if len(packed) == 4 else AAAA
    return owner + struct.pack("!HHIH", kind, IN, ttl_s, len(packed)) + packed


def pointer_record(target: bytes, ttl_s: int) -> bytes:
    return _OWNER_IS_QUESTION + struct.pack("!HHIH", PTR, IN, ttl_s, len(target)) + target


def service_record(port: int, target: bytes, ttl_s: int) -> bytes:
    """SRV, priority 0, weight 0. The target is not compressed (RFC 2782)."""
    return _OWNER_IS_QUESTION + struct.pack("!HHIHHHH", SRV, IN, ttl_s, 6 + len(target), 0, 0, port) + target


def _soa_record() -> bytes:
    # The root owns it: the names of a mesh have no domain of their own, and the owner must be an ancestor of whatever is
    # denied. Minimum 0: a service created right after somebody asked for it must be found at once. Not compressed: it is
    # used behind questions of any length.
    names = (name_of("dnsd") or b"") + (name_of("hostmaster.dnsd") or b"")
    rdata = names + struct.pack("!IIIII", 1, 60, 10, 60, 0)
    return b"\0" + struct.pack("!HHIH", SOA_TYPE, IN, 0, len(rdata)) + rdata


SOA_RECORD = _soa_record()


# -- questions ------------------------------------------------------------------------------------------------------------------


class Query(msgspec.Struct, frozen=True):
    """A well-formed query. question: as asked, case kept. size_bytes: largest datagram the asker takes."""

    id: bytes
    question: bytes
    opcode_flags: int
    recursion_desired: bool
    checking_disabled: bool = False
    edns: bool = False
    dnssec_ok: bool = False
    size_bytes: int = CLASSIC_UDP_BYTES

    @property
    def key(self) -> bytes:
        """The question in lower case: what answers are found by. Length bytes are below 64 and so never letters."""
        return self.question[:-4].lower() + self.question[-4:]

    @property
    def name(self) -> bytes:
        return self.question[:-4].lower()

    @property
    def qtype(self) -> int:
        return int.from_bytes(self.question[-4:-2])

    @property
    def qclass(self) -> int:
        return int.from_bytes(self.question[-2:])


def read_query(packet: bytes) -> Query | bytes | None:
    """A Query; or the error response to send (FORMERR, NOTIMP, BADVERS); or None: answer nothing (a response, or no header)."""
    if len(packet) < HEADER_BYTES or packet[2] & 0x80:
        return None
    if packet[2] & 0x78:
        return error_response(packet, NOTIMP)
    questions, answers, authorities, additionals = struct.unpack_from("!HHHH", packet, 4)
    if questions != 1:
        return error_response(packet, FORMERR)
    try:
        end = _question_end(packet)
    except WireError:
        return error_response(packet, FORMERR)
    question = packet[HEADER_BYTES:end]
    # Only zone transfers and updates carry anything but additional records, and we do neither.
    if answers or authorities:
        return error_response(packet, FORMERR, question)
    edns, size, flags = False, CLASSIC_UDP_BYTES, 0
    at = end
    try:
        for _ in range(additionals):
            owner_end = _name_end(packet, at)
            kind, klass, ttl, length = struct.unpack_from("!HHIH", packet, owner_end)
            if kind == OPT:
                if edns or owner_end != at + 1:
                    return error_response(packet, FORMERR, question)
                edns, size, flags = True, klass, ttl
            at = owner_end + 10 + length
    except (WireError, struct.error):
        return error_response(packet, FORMERR, question)
    if at != len(packet):
        return error_response(packet, FORMERR, question)
    if edns and (flags >> 16) & 0xFF:
        return error_response(packet, BADVERS, question)
    return Query(
        id=packet[:2],
        question=question,
        opcode_flags=packet[2] & 0x79,
        recursion_desired=bool(packet[2] & 1),
        checking_disabled=bool(packet[3] & 0x10),
        edns=edns,
        dnssec_ok=bool(flags & _DO_BIT),
        size_bytes=min(max(size, CLASSIC_UDP_BYTES), MAX_UDP_BYTES),
    )


def write_query(query_id: bytes, question: bytes, *, edns: bool, dnssec_ok: bool = False, checking_disabled: bool = False) -> bytes:
    """What we ask others: recursion desired, one question."""
    header = query_id + struct.pack("!BBHHHH", 1, 0x10 if checking_disabled else 0, 1, 0, 0, 1 if edns else 0)
    opt = struct.pack("!BHHIH", 0, OPT, ADVERTISED_UDP_BYTES, _DO_BIT if dnssec_ok else 0, 0) if edns else b""
    return header + question + opt


def _question_end(packet: bytes) -> int:
    """A question's name is never compressed: nothing comes before it that it could point to."""
    at, total = HEADER_BYTES, len(packet)
    while at < total:
        size = packet[at]
        if size > MAX_LABEL_BYTES:
            raise WireError("a label of the question is longer than 63 bytes")
        at += 1 + size
        if not size:
            if at + 4 > total or at - HEADER_BYTES > MAX_NAME_BYTES:
                break
            return at + 4
    raise WireError("the question is cut off or its name is too long")


def _name_end(packet: bytes, at: int) -> int:
    """Where the name at `at` ends; a compression pointer ends it."""
    total = len(packet)
    while at < total:
        size = packet[at]
        if not size:
            return at + 1
        if size >= 0xC0:
            return at + 2
        if size > MAX_LABEL_BYTES:
            raise WireError("a label is longer than 63 bytes")
        at += 1 + size
    raise WireError("a name is cut off")


# -- responses ------------------------------------------------------------------------------------------------------------------


def error_response(packet: bytes, rcode: int, question: bytes = b"") -> bytes:
    """A response without records to whatever came in; the opcode and RD are kept. BADVERS needs an OPT to carry its upper bits."""
    opt = _OPT_BADVERS if rcode == BADVERS else b""
    flags = bytes((0x80 | (packet[2] & 0x79), rcode & 0xF))
    return packet[:2] + flags + struct.pack("!HHHH", 1 if question else 0, 0, 0, 1 if opt else 0) + question + opt


def failure(query: Query, rcode: int, *, recursion_available: bool = True) -> bytes:
    """SERVFAIL, REFUSED or NXDOMAIN without records, with EDNS as the query had it."""
    flags = bytes((0x80 | query.recursion_desired, (0x80 if recursion_available else 0) | rcode))
    counts = struct.pack("!HHHH", 1, 0, 0, 1 if query.edns else 0)
    return query.id + flags + counts + query.question + _opt_answer(query)


def _opt_answer(query: Query) -> bytes:
    """RFC 3225, 3: the bit DO comes back as it was asked."""
    if not query.edns:
        return b""
    return _OPT_ANSWER_DO if query.dnssec_ok else _OPT_ANSWER


class Answer:
    """Everything about one question but the asker: prebuilt once, then written out for a query, each time starting with the next record.

    records are of the answer section; authority and additional are whole sections already packed, with their record counts.
    """

    __slots__ = ("_additional", "_authority", "_ends", "_records", "_recursion_available", "_turn", "count", "rcode", "size_bytes")

    def __init__(
        self,
        rcode: int,
        records: list[bytes],
        authority: bytes = b"",
        authorities: int = 0,
        additional: list[bytes] | None = None,
        *,
        recursion_available: bool,
        turn: int = 0,
    ) -> None:
        self.rcode = rcode
        self.count = len(records)
        self._turn = turn
        # Twice in a row, so that each rotation is one slice.
        twice = records * 2 if self.count > 1 else records
        self._records = b"".join(twice)
        self._ends = array("I", accumulate(map(len, twice), initial=0))
        self._authority = (authority, authorities)
        self._additional = (b"".join(additional or ()), len(additional or ()))
        self._recursion_available = 0x80 if recursion_available else 0
        self.size_bytes = len(self._records) + 4 * len(self._ends) + len(self._additional[0])

    def write(self, query: Query, size_bytes: int) -> bytes:
        """The response, at most `size_bytes` long. What doesn't fit: additional records go first, without a word (RFC 2181, 9). Then
        as many answers as fit are sent with TC: resolvers that don't retry over TCP (musl before 1.2.4) still have some addresses."""
        count = self.count
        start = self._turn = (self._turn + 1) % count if count else 0
        ends = self._ends
        opt = _opt_answer(query)
        room = size_bytes - HEADER_BYTES - len(query.question) - len(opt)
        (authority, authorities), (additional, additionals) = self._authority, self._additional
        if ends[start + count] - ends[start] + len(authority) + len(additional) > room:
            authority, authorities, additional, additionals = b"", 0, b"", 0
            count = bisect_right(ends, ends[start] + room, start, start + count + 1) - start - 1
        truncated = count < self.count and size_bytes < MAX_TCP_BYTES
        flags = bytes((0x84 | query.recursion_desired | (2 if truncated else 0), self._recursion_available | self.rcode))
        counts = struct.pack("!HHHH", 1, count, authorities, additionals + query.edns)
        records = self._records[ends[start] : ends[start + count]]
        return query.id + flags + counts + query.question + records + authority + additional + opt


# -- what other servers say -----------------------------------------------------------------------------------------------------


class Reply(msgspec.Struct, frozen=True):
    """A response of another server, ready to be passed on: everything after its question, without its OPT.

    ttl_offsets point into body. answer_ends: where each answer ends. ttl_s: how long it may be kept, 0 = not at all.
    """

    rcode: int
    truncated: bool
    authentic: bool
    counts: tuple[int, int, int]
    body: bytes
    ttl_offsets: tuple[int, ...]
    answer_ends: tuple[int, ...]
    ttl_s: int


def read_reply(packet: bytes, query_id: bytes, question: bytes) -> Reply | None:
    """None: not a well-formed response to that query (wrong id, wrong question, broken)."""
    start = HEADER_BYTES + len(question)
    if len(packet) < start or packet[:2] != query_id or packet[2] & 0xF8 != 0x80 or packet[4:6] != b"\0\1":
        # Some servers leave the question out of an error; only the rcode is worth anything then.
        if len(packet) >= HEADER_BYTES and packet[:2] == query_id and packet[2] & 0xF8 == 0x80 and packet[3] & 0xF in (FORMERR, NOTIMP):
            return Reply(packet[3] & 0xF, False, False, (0, 0, 0), b"", (), (), 0)
        return None
    if packet[HEADER_BYTES:start].lower() != question.lower():
        return None
    try:
        reply, opt_is_last = _read_sections(packet, start)
        if opt_is_last:
            return reply
        # Records behind the OPT may be pointed to: cutting it out would move them. Rare enough for dnslib to pack it again.
        from dnslib import DNSRecord

        record = DNSRecord.parse(packet)
        record.ar = [additional for additional in record.ar if additional.rtype != OPT]
        return _read_sections(bytes(record.pack()), start)[0]
    except Exception:  # dnslib raises whatever a broken packet makes it trip over
        return None


def _read_sections(packet: bytes, start: int) -> tuple[Reply, bool]:
    counts = list(struct.unpack_from("!HHH", packet, 6))
    at = end = start
    rcode = packet[3] & 0xF
    ttl_offsets: list[int] = []
    answer_ends: list[int] = []
    ttls: list[int] = []
    negative_ttls: list[int] = []
    opt_at = -1
    opt_is_last = True
    asked_kind = int.from_bytes(packet[start - 4 : start - 2])
    answered = False
    for section, count in enumerate(tuple(counts)):
        for _ in range(count):
            owner_end = _name_end(packet, at)
            kind, _klass, ttl, length = struct.unpack_from("!HHIH", packet, owner_end)
            after = owner_end + 10 + length
            if after > len(packet):
                raise WireError("a record is cut off")
            if kind == OPT:
                # RFC 6891, 6.1.1: there is one at most, among the additional records, and the root owns it.
                if section != 2 or opt_at >= 0 or owner_end != at + 1:
                    raise WireError("an OPT record where none may be")
                opt_at = at
                counts[section] -= 1
                rcode |= (ttl >> 24) << 4
            else:
                opt_is_last = opt_is_last and opt_at < 0
                end = after
                # RFC 2181, 8: a TTL with the top bit set is 0.
                ttl = 0 if ttl & 0x80000000 else ttl
                ttl_offsets.append(owner_end + 4 - start)
                if section == 0:
                    answered = answered or asked_kind in (kind, ANY)
                    ttls.append(ttl)
                    answer_ends.append(after - start)
                elif section == 1 and kind == SOA_TYPE and length >= 22:
                    negative_ttls.append(min(ttl, int.from_bytes(packet[after - 4 : after])))
            at = after
    # A denial without SOA must not be kept (RFC 2308, 5), also one at the end of a CNAME; neither may a server's own trouble.
    negative = rcode == NXDOMAIN or not answered
    keep = rcode in (NOERROR, NXDOMAIN) and (bool(negative_ttls) or not negative)
    reply = Reply(
        rcode=rcode,
        truncated=bool(packet[2] & 2),
        authentic=bool(packet[3] & 0x20),
        counts=(counts[0], counts[1], counts[2]),
        body=packet[start:end],
        ttl_offsets=tuple(ttl_offsets),
        answer_ends=tuple(answer_ends),
        ttl_s=min(ttls + negative_ttls) if keep else 0,
    )
    return reply, opt_is_last


def write_reply(reply: Reply, query: Query, age_s: int, size_bytes: int, stale_ttl_s: int | None = None) -> bytes:
    """Another server's answer as ours: our asker's id, case and EDNS; TTLs lowered by its age (or set, when it is stale)."""
    body = bytearray(reply.body)
    for offset in reply.ttl_offsets:
        ttl = int.from_bytes(body[offset : offset + 4])
        ttl = stale_ttl_s if stale_ttl_s is not None else max(0, (0 if ttl & 0x80000000 else ttl) - age_s)
        body[offset : offset + 4] = ttl.to_bytes(4)
    opt = _opt_answer(query)
    answers, authorities, additionals = reply.counts
    truncated = False
    room = size_bytes - HEADER_BYTES - len(query.question) - len(opt)
    if len(body) > room:
        fitting = [end for end in reply.answer_ends if end <= room]
        truncated = len(fitting) < answers or not answers
        answers, authorities, additionals = len(fitting), 0, 0
        body = body[: fitting[-1] if fitting else 0]
    # An extended code would need an OPT of its asker: what it says is that the server could not answer.
    rcode = reply.rcode if reply.rcode < 16 else SERVFAIL
    flags = bytes(
        (
            0x80 | query.recursion_desired | (2 if truncated else 0),
            0x80 | (0x20 if reply.authentic else 0) | (0x10 if query.checking_disabled else 0) | rcode,
        )
    )
    counts = struct.pack("!HHHH", 1, answers, authorities, additionals + (1 if query.edns else 0))
    return query.id + flags + counts + query.question + bytes(body) + opt
