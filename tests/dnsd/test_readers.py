"""Two independent readers, dnslib and dnspython, find the same in every answer; and what dnspython asks for is what it gets."""

from __future__ import annotations

import itertools

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from dnsd import wire
from dnsd.resolve import Forward, View
from tests.dnsd.ask import query
from tests.dnsd.packets import check_response
from tests.dnsd.test_explain import every_name
from tests.dnsd.test_names import back, front

VIEW = View((front, back), "shop")


def respond(message: dns.message.Message, *, tcp: bool = False) -> dns.message.Message:
    """The view's response to it, the first time and when it is known."""
    packet = message.to_wire()
    for _ in range(4):
        response = VIEW.respond(packet, tcp)
        assert isinstance(response, bytes)
        check_response(packet, response, 65535 if tcp else 4096)
        answer = dns.message.from_wire(response)
        assert message.is_response(answer)
    return answer


@pytest.mark.parametrize("kind", ["A", "AAAA", "SRV", "PTR", "ANY", "TXT", "HTTPS"])
def test_both_find_the_same_in_every_answer(kind: str) -> None:
    seen: set[bytes] = set()
    for text, (edns, tcp) in itertools.product(every_name(), ((0, False), (1232, False), (1232, True))):
        packet = query(text, kind, size_bytes=edns)
        for _ in range(2):
            response = VIEW.respond(packet, tcp)
            if not isinstance(response, Forward):
                check_response(packet, response, 65535 if tcp else max(512, edns), seen)
    assert seen


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("dnssec_ok", [False, True])
@pytest.mark.parametrize("name", ["web", "nosuch", "tasks.rr"])
def test_the_bit_do_comes_back_as_it_was_asked(name: str, dnssec_ok: bool, tcp: bool) -> None:
    answer = respond(dns.message.make_query(name, "A", want_dnssec=dnssec_ok, use_edns=0), tcp=tcp)
    assert answer.edns == 0
    assert bool(answer.ednsflags & dns.flags.DO) == dnssec_ok


def test_options_of_edns_are_ignored_and_not_sent_back() -> None:
    options = [dns.edns.GenericOption(10, b"12345678"), dns.edns.GenericOption(65001, b"")]
    answer = respond(dns.message.make_query("web", "A", options=options))
    assert (answer.options, len(answer.answer)) == ((), 1)


def test_a_later_version_of_edns() -> None:
    for version in (1, 255):
        answer = respond(dns.message.make_query("web", "A", use_edns=version))
        assert (answer.rcode(), answer.edns, answer.answer) == (dns.rcode.BADVERS, 0, [])


def test_a_signature_is_not_understood_but_does_not_disturb() -> None:
    """Additional records other than OPT (here an A) are skipped, whatever they say."""
    message = dns.message.make_query("web", "A")
    message.additional.append(dns.rrset.from_text("x.", 60, "IN", "A", "192.0.2.1"))
    assert [str(record) for record in respond(message).answer[0]] == ["10.0.1.2"]


# -- forwarded answers ----------------------------------------------------------------------------------------------------------


def upstream_reply(*, opt: bool) -> bytes:
    """With names that are compressed, also within the data of records."""
    asked = dns.message.from_wire(query("www.example.com", "ANY", size_bytes=1232))
    reply = dns.message.make_response(asked)
    if not opt:
        reply.use_edns(False)
    reply.answer = [
        dns.rrset.from_text("www.example.com.", 300, "IN", "CNAME", "web.example.com."),
        dns.rrset.from_text("web.example.com.", 100, "IN", "A", "192.0.2.1", "192.0.2.2"),
        dns.rrset.from_text("web.example.com.", 200, "IN", "MX", "10 mail.example.com.", "20 mail2.example.com."),
        dns.rrset.from_text("web.example.com.", 200, "IN", "TXT", '"a text"'),
    ]
    reply.authority = [dns.rrset.from_text("example.com.", 200, "IN", "NS", "ns.example.com.")]
    reply.additional = [dns.rrset.from_text("ns.example.com.", 200, "IN", "AAAA", "2001:db8::1")]
    return reply.to_wire()


@pytest.mark.parametrize("opt", [False, True])
@pytest.mark.parametrize("edns", [0, 1232])
def test_what_others_say_is_passed_on_as_it_was(edns: int, opt: bool) -> None:
    question = query("www.example.com", "ANY", size_bytes=edns)
    asked = wire.read_query(question)
    assert isinstance(asked, wire.Query)
    packet = upstream_reply(opt=opt)
    reply = wire.read_reply(packet, packet[:2], asked.question)
    assert reply is not None
    assert reply.ttl_s == 100
    written = wire.write_reply(reply, asked, 40, 65535)
    check_response(question, written, 65535)
    before, after = dns.message.from_wire(packet), dns.message.from_wire(written)
    for one, other in ((before.answer, after.answer), (before.authority, after.authority), (before.additional, after.additional)):
        assert one == other
        assert [set_.ttl - 40 for set_ in one] == [set_.ttl for set_ in other]
    assert (after.edns, after.flags & dns.flags.AA) == (0 if edns else -1, 0)
