"""No packet harms: each gets no answer or one well-formed response with its id. And the book's answers to odd ones."""

from __future__ import annotations

import pytest
from dnslib import DNSRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from dnsd import ServiceName, TaskName, Zone, ZoneSpec
from dnsd.resolve import Room, View
from tests.dnsd.ask import query, values
from tests.dnsd.packets import SEEDS, check, check_response, zone_spec

ZONE = Zone(zone_spec(tasks=200))
VIEW = View((ZONE,))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes(packet: bytes, tcp: bool) -> None:
    check(VIEW, packet, tcp=tcp)


def test_every_prefix_and_every_one_byte_change_of_a_query() -> None:
    packet = query("web", size_bytes=1232)
    for size in range(len(packet)):
        assert check(VIEW, packet[:size]) in ("dropped", "1")
    for at in range(2, len(packet)):
        for value in range(256):
            check(VIEW, packet[:at] + bytes((value,)) + packet[at + 1 :])


HEADER = b"\x12\x34"


@pytest.mark.parametrize(
    ("packet", "rcode"),
    [
        (HEADER + b"\x01\0\0\0\0\0\0\0\0\0", 1),  # no question
        (HEADER + b"\x01\0\0\2\0\0\0\0\0\0" + b"\3web\0\0\1\0\1" * 2, 1),  # two
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\0" + b"\3web\0\0\1", 1),  # cut off
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\0" + b"\3web\0\0\1\0\1x", 1),  # something behind it
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\0" + b"\xc0\x0c\0\1\0\1", 1),  # compressed question
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\0" + b"\x40" + b"a" * 64 + b"\0\0\1\0\1", 1),  # label of 64
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\0" + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", 1),  # name of 257
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\2" + b"\3web\0\0\1\0\1" + b"\0\0\x29\x10\0\0\0\0\0\0\0" * 2, 1),  # two OPTs
        (HEADER + b"\x01\0\0\1\0\1\0\0\0\0" + b"\3web\0\0\1\0\1" + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\1\2\3\4", 1),  # an answer
        (HEADER + b"\x09\0\0\1\0\0\0\0\0\0" + b"\3web\0\0\1\0\1", 4),  # inverse query
        (HEADER + b"\x28\0\0\1\0\0\0\0\0\0" + b"\3web\0\0\6\0\1", 4),  # update
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\0" + b"\3web\0\0\1\0\3", 5),  # class CHAOS
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\0" + b"\3web\0\0\xfc\0\1", 5),  # AXFR
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\0" + b"\3web\0\0\xfb\0\1", 5),  # IXFR
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\0" + b"\3web\0\0\x29\0\1", 1),  # OPT is no question
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\0" + b"\3web\0\0\xfe\0\1", 4),  # MAILA
        (HEADER + b"\x01\0\0\1\0\0\0\0\0\0" + b"\3web\0\0\1\0\xff", 0),  # class ANY
    ],
)
def test_by_the_book(packet: bytes, rcode: int) -> None:
    for _ in range(2):
        response = VIEW.respond(packet)
        assert isinstance(response, bytes)
        check_response(packet, response, 512)
        assert response[3] & 0xF == rcode


def test_bad_edns_version() -> None:
    packet = bytearray(query("web", size_bytes=1232))
    packet[-5] = 1
    VIEW.respond(query("web", size_bytes=1232))
    response = VIEW.respond(bytes(packet))
    assert isinstance(response, bytes)
    record = DNSRecord.parse(response)
    assert (record.header.rcode, record.ar[0].ttl >> 24) == (0, 1)
    assert not record.rr


def test_responses_are_never_answered() -> None:
    for seed in SEEDS:
        assert VIEW.respond(seed[:2] + bytes((seed[2] | 0x80,)) + seed[3:]) is None


def test_case_and_id_are_the_askers() -> None:
    for _ in range(3):
        packet = query("wEb.NeT", query_id=99)
        response = VIEW.respond(packet)
        assert isinstance(response, bytes)
        assert response[12 : len(packet)] == packet[12:]
        assert response[:2] == b"\0\x63"


@pytest.mark.parametrize("size_bytes", [0, 1, 511, 512, 600, 1232, 4095, 4096, 65535])
def test_truncation(size_bytes: int) -> None:
    limit = min(max(size_bytes, 512), 4096)
    for name in ("big", "_x"):
        for _ in range(3):
            response = VIEW.respond(query(name, size_bytes=size_bytes))
            assert isinstance(response, bytes)
            check_response(query(name), response, limit)
    record = DNSRecord.parse(VIEW.respond(query("big", size_bytes=size_bytes)))
    fits = (limit - 12 - 9 - (11 if size_bytes else 0)) // 16
    assert len(record.rr) == min(fits, 200)
    assert record.header.tc == (fits < 200)
    # In turns, everything is seen although it never fits at once.
    seen = {value for _ in range(200) for value in values(DNSRecord.parse(VIEW.respond(query("big"))))}
    assert len(seen) == 200
    full = DNSRecord.parse(VIEW.respond(query("big"), True))
    assert (len(full.rr), full.header.tc) == (200, 0)


def test_more_than_tcp_can_carry() -> None:
    tasks = tuple(TaskName(id=f"{i}", name=f"t{i}", addresses=(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}",)) for i in range(5000))
    view = View((Zone(ZoneSpec(network="n", name="net", services=(ServiceName(id="h", name="huge", tasks=tasks),))),))
    record = DNSRecord.parse(view.respond(query("huge"), True))
    assert (len(record.rr), record.header.tc) == ((65535 - 12 - 10) // 16, 0)


def test_edns_is_answered_only_when_asked() -> None:
    for name in ("web", "nosuch"):
        for _ in range(2):
            assert not DNSRecord.parse(VIEW.respond(query(name))).ar
            (opt,) = DNSRecord.parse(VIEW.respond(query(name, size_bytes=1000))).ar
            assert (opt.rtype, opt.rclass) == (41, 1232)


def test_edns_options_do_not_disturb() -> None:
    cookie = b"\0\x0a\0\x08abcdefgh"
    packet = query("web")[:10] + b"\0\1" + query("web")[12:] + b"\0\0\x29\x10\0\0\0\0\0\0\x0c" + cookie
    for _ in range(2):
        assert values(DNSRecord.parse(VIEW.respond(packet))) == ["10.9.0.1"]


def test_what_is_remembered_is_bounded_for_all_views_together() -> None:
    room = Room(limit_bytes=100_000)
    views = [View((ZONE,), room=room) for _ in range(3)]
    most = 0
    for number in range(3_000):
        for _ in range(3):
            assert isinstance(views[number % 3].respond(query(f"x{number}")), bytes)
        most = max(most, sum(len(view.rows) for view in views))
    assert 20 < most < 400
    # A view that is given up gives its room back, and another one may use it all.
    for view in views:
        room.leave(view)
    assert (room._total_bytes, room._used_bytes) == (0, {})


def test_only_the_name_may_differ_in_case() -> None:
    """Type 65 (HTTPS) is a letter in upper case, type 97 the same in lower case."""
    view = View((ZONE,))
    for kind in (65, 97, 65, 97, 65, 97):
        packet = query("web")[:-4] + bytes((0, kind, 0, 1))
        response = view.respond(packet)
        assert isinstance(response, bytes)
        assert response[12 : len(packet)] == packet[12:]
    assert not view.rows


@pytest.mark.parametrize("seed", SEEDS)
def test_prebuilt_rows_say_what_reading_the_query_says(seed: bytes) -> None:
    """Every one-byte change of a query, of which all are asked often enough to be prebuilt, against a view that remembers nothing."""
    view = View((ZONE,))
    reached = set()
    for at in range(2, len(seed)):
        for value in (0, 1, 2, 4, 12, 16, 28, 33, 41, 64, 65, 97, 128, 192, 255):
            packet = seed[:at] + bytes((value,)) + seed[at + 1 :]
            responses = [view.respond(packet) for _ in range(3)]
            forgetful = View((ZONE,), room=Room(0))
            for response in responses:
                expected = forgetful.respond(packet)
                assert type(response) is type(expected)
                if isinstance(response, bytes) and isinstance(expected, bytes):
                    # But for the rotation: equal header, question and size.
                    end = expected.find(b"\0", 12) + 5
                    assert (response[:end], len(response)) == (expected[:end], len(expected))
                reached.add(packet[2:].lower() in view.rows)
    assert True in reached or seed == query("example.com")
