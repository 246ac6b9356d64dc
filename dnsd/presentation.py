"""Packets as text, for people: record types, response codes, records, questions.

Pure. dnslib knows every type; whatever it can't show is said to be unreadable rather than left out.
Source: RFC 1035 5.1 (presentation format), RFC 3597 5 (TYPE<number>).
"""

from __future__ import annotations

from dnslib import QTYPE, RCODE, DNSRecord

from dnsd.errors import ConfigError

_UNREADABLE = "(unreadable)"


def type_number(text: str) -> int:
    """ "AAAA", "aaaa", "TYPE28" -> 28. ConfigError: there is no such type."""
    name = text.upper()
    number: int | None = QTYPE.reverse.get(name)
    if number is None and name.startswith("TYPE") and name[4:].isdecimal() and name.isascii() and int(name[4:]) <= 65535:
        number = int(name[4:])
    if number is None:
        raise ConfigError(f"{text!r} is no record type: expected one such as A, AAAA, SRV, PTR, MX, TXT or TYPE65")
    return number


def type_text(number: int) -> str:
    return QTYPE.forward.get(number) or f"TYPE{number}"


def rcode_text(number: int) -> str:
    return RCODE.forward.get(number) or f"RCODE{number}"


def question_text(packet: bytes) -> tuple[str, str]:
    """Name and type of the first question."""
    try:
        question = DNSRecord.parse(packet).q
        return str(question.qname), type_text(question.qtype)
    except Exception:  # dnslib raises whatever a broken packet makes it trip over
        return _UNREADABLE, ""


def answer_text(response: bytes) -> tuple[str, tuple[str, ...]]:
    """The response code, and the records of the answer section."""
    rcode = rcode_text(response[3] & 0xF)
    try:
        records = DNSRecord.parse(response).rr
        return rcode, tuple(f"{record.rname} {record.ttl} IN {type_text(record.rtype)} {record.rdata}" for record in records)
    except Exception:  # see above
        return rcode, (_UNREADABLE,)
