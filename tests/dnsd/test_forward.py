"""Forwarding on loopback: hedging, dead and broken upstreams, cache, stale, singleflight, bounds, loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from dnslib import CNAME, EDNS0, QTYPE, RCODE, RR, SOA, A, DNSRecord

from dnsd import ConfigError, DnsState, RouteSpec, ScopeSpec, Server, ServiceName, ZoneSpec, wire
from dnsd.cache import Cache
from dnsd.forward import Forwarder
from dnsd.resolve import Forward
from dnsd.resolvers import NodeResolvers, parse_endpoint, parse_resolv_conf
from tests.dnsd.ask import ask, ask_tcp, query, until, values
from tests.dnsd.upstream import Upstream, closed_port

ZONE = ZoneSpec(network="n", name="net", services=(ServiceName(id="w", name="web", vips=("10.0.0.2",)),))


def answer(record: Any, tcp: bool = False, *, address: str = "192.0.2.1", ttl_s: int = 300) -> Any:
    reply = record.reply()
    reply.add_answer(RR(record.q.qname, QTYPE.A, ttl=ttl_s, rdata=A(address)))
    return reply


def denial(record: Any, tcp: bool = False, *, soa: bool = True) -> Any:
    reply = record.reply()
    reply.header.rcode = RCODE.NXDOMAIN
    if soa:
        reply.add_auth(RR("com.", QTYPE.SOA, ttl=60, rdata=SOA("a.com.", "b.com.", (1, 2, 3, 4, 30))))
    return reply


def trouble(record: Any, tcp: bool = False) -> Any:
    reply = record.reply()
    reply.header.rcode = RCODE.SERVFAIL
    return reply


def silence(record: Any, tcp: bool = False) -> Any:
    return None


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(NodeResolvers(Path("/nonexistent"), Path("/nonexistent")))
    yield server
    await server.close()


async def serve(server: Server, *upstreams: str) -> tuple[str, int]:
    scope = ScopeSpec(id="s", netns="", networks=("n",), listen="127.0.0.1:0", upstreams=upstreams)
    applied = await server.apply(DnsState(zones=(ZONE,), scopes=(scope,)))
    assert applied.failed == {}
    return server.address("s")


async def test_passes_answers_on(server: Server) -> None:
    async with Upstream(answer) as upstream:
        address = await serve(server, upstream.address)
        record = await ask(address, "ExAmple.com", query_id=77)
        assert values(record) == ["192.0.2.1"]
        header = record.header
        assert (header.id, header.aa, header.ra, header.rcode, str(record.q.qname)) == (77, 0, 1, 0, "ExAmple.com.")
        # Ours are ours, whatever an upstream would say.
        assert values(await ask(address, "web")) == ["10.0.0.2"]
        assert (await ask(address, "web", "TXT")).header.rcode == 0
        assert (await ask(address, "nosuch")).header.rcode == 3
        assert upstream.asked == [("ExAmple.com.", False)]
        # TCP takes the same way.
        (record,) = await ask_tcp(address, query("other.example.com"))
        assert values(record) == ["192.0.2.1"]


async def test_cache_counts_ttls_down_and_keeps_the_askers_case(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Upstream(answer) as upstream:
        address = await serve(server, upstream.address)
        await ask(address, "example.com")
        now = time.monotonic() + 100
        monkeypatch.setattr("dnsd.forward.monotonic", lambda: now)
        record = await ask(address, "EXAMPLE.com", query_id=5)
        assert (record.rr[0].ttl, str(record.q.qname), record.header.id) == (200, "EXAMPLE.com.", 5)
        assert len(upstream.asked) == 1
        now += 201
        assert (await ask(address, "example.com")).rr[0].ttl == 300
        assert len(upstream.asked) == 2


async def test_negative_caching_needs_an_soa(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Upstream(denial) as upstream:
        address = await serve(server, upstream.address)
        for _ in range(3):
            record = await ask(address, "a.example.com")
            assert (record.header.rcode, len(record.auth)) == (3, 1)
        assert len(upstream.asked) == 1
        now = time.monotonic() + 31
        monkeypatch.setattr("dnsd.forward.monotonic", lambda: now)
        await ask(address, "a.example.com")
        assert len(upstream.asked) == 2
        upstream.script = lambda record, tcp: denial(record, soa=False)
        for _ in range(2):
            assert (await ask(address, "b.example.com")).header.rcode == 3
        assert len(upstream.asked) == 4


async def test_a_denial_at_the_end_of_an_alias_needs_an_soa_too(server: Server) -> None:
    def alias(record: Any, tcp: bool) -> Any:
        reply = record.reply()
        reply.add_answer(RR(record.q.qname, QTYPE.CNAME, ttl=300, rdata=CNAME("other.example.com.")))
        if str(record.q.qname).startswith("soa"):
            reply.add_auth(RR("com.", QTYPE.SOA, ttl=60, rdata=SOA("a.com.", "b.com.", (1, 2, 3, 4, 30))))
        return reply

    async with Upstream(alias) as upstream:
        address = await serve(server, upstream.address)
        for name in ("bare.example.com", "soa.example.com"):
            for _ in range(2):
                assert values(await ask(address, name)) == ["other.example.com."]
        assert [name for name, _ in upstream.asked] == ["bare.example.com.", "bare.example.com.", "soa.example.com."]
        # Asked for the alias itself, it is the answer.
        for _ in range(2):
            assert values(await ask(address, "bare.example.com", "CNAME")) == ["other.example.com."]
        assert len(upstream.asked) == 4


@pytest.mark.parametrize("first", ["closed", "silent", "servfail", "garbage"])
async def test_a_bad_first_upstream_costs_little(server: Server, first: str) -> None:
    scripts = {"silent": silence, "servfail": trouble, "garbage": lambda record, tcp: b"\0" * 30, "closed": silence}
    async with Upstream(scripts[first]) as bad, Upstream(answer) as good:
        bad_address = f"127.0.0.1:{closed_port()}" if first == "closed" else bad.address
        address = await serve(server, bad_address, good.address)
        assert values(await ask(address, "example.com")) == ["192.0.2.1"]
        health = {one.address: one for one in server.status().health}
        assert health[bad_address].answered == 0
        # Who stayed silent comes last the next time.
        assert (health[bad_address].state == "silent") == (first != "servfail")
        usable = server._forwarder.upstreams((parse_endpoint(bad_address), parse_endpoint(good.address)))
        assert (usable[0] == parse_endpoint(good.address)) == (first != "servfail")


async def test_a_lost_datagram_is_sent_again(server: Server) -> None:
    seen = []

    def lossy(record: Any, tcp: bool) -> Any:
        seen.append(1)
        return answer(record) if len(seen) > 1 else None

    async with Upstream(lossy) as upstream:
        address = await serve(server, upstream.address)
        assert values(await ask(address, "example.com")) == ["192.0.2.1"]


async def test_no_upstream_fails_at_once(server: Server) -> None:
    address = await serve(server)
    record = await ask(address, "example.com")
    assert (record.header.rcode, record.header.ra) == (2, 1)
    assert values(await ask(address, "web")) == ["10.0.0.2"]


async def test_all_upstreams_dead_fails_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.forward.DEADLINE_S", 3600)
    address = await serve(server, f"127.0.0.1:{closed_port()}", f"127.0.0.1:{closed_port()}")
    assert (await ask(address, "example.com")).header.rcode == 2


async def test_silence_ends_in_servfail_before_resolvers_give_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.forward.DEADLINE_S", 0.3)
    async with Upstream(silence) as upstream:
        address = await serve(server, upstream.address)
        assert (await ask(address, "example.com")).header.rcode == 2


@pytest.mark.parametrize("failing", [silence, trouble])
async def test_stale_answers_are_better_than_none(server: Server, monkeypatch: pytest.MonkeyPatch, failing: Any) -> None:
    monkeypatch.setattr("dnsd.forward.STALE_AFTER_S", 0.2)
    monkeypatch.setattr("dnsd.forward.DEADLINE_S", 0.5)
    async with Upstream(answer) as upstream:
        address = await serve(server, upstream.address)
        await ask(address, "example.com")
        offset = 1000.0
        real = time.monotonic
        monkeypatch.setattr("dnsd.forward.monotonic", lambda: real() + offset)
        upstream.script = failing
        record = await ask(address, "example.com")
        assert (values(record), record.rr[0].ttl) == (["192.0.2.1"], 30)
        # For a while what is stale goes out at once, and the upstream is left alone.
        await until(lambda: not server._forwarder._flights)
        asked = upstream.asked.count(("example.com.", False))
        assert values(await ask(address, "EXAMPLE.com")) == ["192.0.2.1"]
        assert (upstream.asked.count(("example.com.", False)), server._forwarder._flights) == (asked, {})
        # A denial is an answer, no failure: nothing stale goes before it.
        offset += 30
        upstream.script = denial
        assert (await ask(address, "example.com")).header.rcode == 3


async def test_one_flight_for_the_same_question(server: Server) -> None:
    async with Upstream(lambda record, tcp: answer(record, ttl_s=0)) as upstream:
        upstream.holding = True
        address = await serve(server, upstream.address)
        asking = [asyncio.create_task(ask(address, name)) for name in ["one.example.com", "ONE.example.com"] * 10]
        await until(lambda: server._forwarder.counters["joined"] == 19 and bool(upstream.held))
        upstream.release()
        assert all(values(record) == ["192.0.2.1"] for record in await asyncio.gather(*asking))
        assert len(upstream.asked) == 1


async def test_bounded(server: Server) -> None:
    server._forwarder._max_flights = 3
    async with Upstream(answer) as upstream:
        upstream.holding = True
        address = await serve(server, upstream.address)
        asking = [asyncio.create_task(ask(address, f"x{number}.example.com")) for number in range(3)]
        await until(lambda: len(upstream.held) == 3)
        # Full: said at once. Names of ours are not concerned.
        assert (await ask(address, "more.example.com")).header.rcode == 2
        assert values(await ask(address, "web")) == ["10.0.0.2"]
        upstream.release()
        assert [values(record) for record in await asyncio.gather(*asking)] == [["192.0.2.1"]] * 3
        assert values(await ask(address, "more.example.com")) == ["192.0.2.1"]


async def test_one_scope_leaves_room_for_others(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.listener._MAX_WAITING", 2)
    async with Upstream(answer) as upstream:
        upstream.holding = True
        scopes = tuple(ScopeSpec(id=id, netns="", listen="127.0.0.1:0", upstreams=(upstream.address,)) for id in "st")
        await server.apply(DnsState(scopes=scopes))
        asking = [asyncio.create_task(ask(server.address("s"), f"x{number}.example.com")) for number in range(2)]
        await until(lambda: len(upstream.held) == 2)
        assert (await ask(server.address("s"), "more.example.com")).header.rcode == 2
        (over_tcp,) = await ask_tcp(server.address("s"), query("more.example.com"))
        assert over_tcp.header.rcode == 2
        asking.append(asyncio.create_task(ask(server.address("t"), "other.example.com")))
        await until(lambda: len(upstream.held) == 3)
        upstream.release()
        assert [values(record) for record in await asyncio.gather(*asking)] == [["192.0.2.1"]] * 3


def many(record: Any, tcp: bool) -> Any:
    reply = record.reply()
    if tcp:
        for number in range(200):
            reply.add_answer(RR(record.q.qname, QTYPE.A, ttl=60, rdata=A(f"192.0.2.{number}")))
    else:
        reply.header.tc = 1
    return reply


async def test_truncated_answers_are_fetched_over_tcp(server: Server) -> None:
    async with Upstream(many) as upstream:
        address = await serve(server, upstream.address)
        record = await ask(address, "many.example.com")
        assert record.header.tc == 1
        assert 0 < len(record.rr) < 31
        (full,) = await ask_tcp(address, query("many.example.com"))
        assert (len(full.rr), full.header.tc) == (200, 0)
        # Fetched once: the cache has the whole.
        assert upstream.asked == [("many.example.com.", False), ("many.example.com.", True)]
        assert len((await ask(address, "many.example.com", size_bytes=4096)).rr) == 200


async def test_an_upstream_without_edns(server: Server) -> None:
    def old(record: Any, tcp: bool) -> Any:
        if record.ar:
            reply = record.reply()
            reply.header.rcode = RCODE.FORMERR
            return reply
        return answer(record)

    async with Upstream(old) as upstream:
        address = await serve(server, upstream.address)
        record = await ask(address, "example.com", size_bytes=1232)
        assert values(record) == ["192.0.2.1"]
        assert [extra.rtype for extra in record.ar] == [41]
        # It is asked without from now on.
        assert len(upstream.asked) == 2
        assert values(await ask(address, "other.example.com", size_bytes=1232)) == ["192.0.2.1"]
        assert len(upstream.asked) == 3


@pytest.mark.parametrize("last", [True, False])
async def test_an_upstreams_opt_is_its_own(server: Server, last: bool) -> None:
    def with_opt(record: Any, tcp: bool) -> Any:
        reply = answer(record)
        extra = RR("extra.example.com.", QTYPE.A, ttl=9, rdata=A("192.0.2.9"))
        opt = EDNS0(udp_len=999)
        for additional in [extra, opt] if last else [opt, extra]:
            reply.add_ar(additional)
        return reply

    async with Upstream(with_opt) as upstream:
        address = await serve(server, upstream.address)
        plain = await ask(address, "example.com")
        assert [(str(extra.rname), str(extra.rdata)) for extra in plain.ar] == [("extra.example.com.", "192.0.2.9")]
        edns = await ask(address, "example.com", size_bytes=600)
        assert [(extra.rtype, extra.rclass) for extra in edns.ar] == [(1, 1), (41, 1232)]


async def test_forged_replies_are_ignored(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.forward.DEADLINE_S", 0.6)
    monkeypatch.setattr("dnsd.forward.RESEND_S", 0.2)

    def forged(record: Any, tcp: bool) -> Any:
        other = answer(record, address="203.0.113.6")
        other.header.id ^= 1
        return other

    async with Upstream(forged) as upstream:
        address = await serve(server, upstream.address)
        asking = asyncio.create_task(ask(address, "example.com"))
        await until(lambda: len(upstream.asked) == 1)
        upstream.script = lambda record, tcp: answer(DNSRecord.question("wrong.example.com"))
        await until(lambda: len(upstream.asked) == 2)
        # It ends in a failure, never in somebody else's address.
        assert (await asking).header.rcode == 2


async def test_never_asks_itself() -> None:
    """The node's resolver is this very server: on its address, and on a wildcard that covers it."""
    server = Server(NodeResolvers(Path("/nonexistent"), Path("/nonexistent")))
    try:
        for listen in ("127.0.0.1:0", "0.0.0.0:0"):
            scope = ScopeSpec(id=listen, netns="", networks=("n",), listen=listen)
            await server.apply(DnsState(zones=(ZONE,), scopes=(scope,)))
            port = server.address(listen)[1]
            looped = ScopeSpec(id=listen, netns="", networks=("n",), listen=listen, upstreams=(f"127.0.0.1:{port}",))
            assert (await server.apply(DnsState(zones=(ZONE,), scopes=(looped,)))).failed == {}
            assert (await ask(("127.0.0.1", server.address(listen)[1]), "example.com")).header.rcode == 2
            assert server.status().counters.get("forwarded", 0) == 0
    finally:
        await server.close()


async def test_a_loop_through_another_server_ends_and_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.forward.DEADLINE_S", 0.5)
    one, two = (Server(NodeResolvers(Path("/nonexistent"), Path("/nonexistent"))) for _ in range(2))
    try:
        through = await serve(two)
        address = await serve(one, f"127.0.0.1:{through[1]}")
        await serve(two, f"127.0.0.1:{address[1]}")
        assert (await ask(address, "example.com")).header.rcode == 2
        # Joined to the flight that is under way, instead of going round and round.
        assert one.status().counters["forwarded"] <= 2
        await until(lambda: one.status().counters.get("loops", 0) == 1)
        (health,) = one.status().health
        assert (health.address, health.state) == (f"127.0.0.1:{through[1]}", "looping")
        # From now on that way isn't taken: a failure is said at once.
        forwarded = one.status().counters["forwarded"]
        assert (await ask(address, "other.example.com")).header.rcode == 2
        assert one.status().counters["forwarded"] == forwarded
        # Who is no loop is asked all the same.
        async with Upstream(answer) as upstream:
            address = await serve(one, f"127.0.0.1:{through[1]}", upstream.address)
            assert values(await ask(address, "example.com")) == ["192.0.2.1"]
    finally:
        await one.close()
        await two.close()


async def test_a_silent_upstream_is_no_loop(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.forward.DEADLINE_S", 0.4)
    async with Upstream(silence) as upstream:
        address = await serve(server, upstream.address)
        for _ in range(2):
            assert (await ask(address, "example.com")).header.rcode == 2
        await until(lambda: not server._forwarder._probing)
        (health,) = server.status().health
        assert (health.state, health.asked, health.silent) == ("silent", 2, 2)
        # Suspected and probed, once.
        assert [name.endswith(".dnsd-loop-probe.") for name, _ in upstream.asked].count(True) == 1
        upstream.script = answer
        assert values(await ask(address, "example.com")) == ["192.0.2.1"]
        (health,) = server.status().health
        assert (health.state, health.answered, health.failed) == ("up", 1, 0)


async def test_domains_go_to_servers_of_their_own(server: Server) -> None:
    """A network's upstreams, its routes, and a network that forbids the rest."""
    async with Upstream(answer) as general, Upstream(lambda record, tcp: answer(record, address="192.0.2.2")) as corporate:
        routes = (RouteSpec(domain="Corp.Example", upstreams=(corporate.address,)), RouteSpec(domain="lan", upstreams=(corporate.address,)))

        async def apply(**policy: Any) -> tuple[str, int]:
            zone = msgspec.structs.replace(ZONE, routes=routes, **policy)
            state = DnsState(zones=(zone,), scopes=(ScopeSpec(id="s", netns="", networks=("n",), listen="127.0.0.1:0"),))
            assert (await server.apply(state)).problems == ()
            return server.address("s")

        async def ask_all(address: tuple[str, int]) -> list[Any]:
            names = ("example.com", "a.corp.example", "CORP.example", "xcorp.example", "printer.lan", "web.net", "nosuch", "nosuch.net")
            records = [await ask(address, name) for name in names]
            return [values(record) or record.header.rcode for record in records]

        one, two, ours = ["192.0.2.1"], ["192.0.2.2"], ["10.0.0.2"]
        assert await ask_all(await apply(upstreams=(general.address,))) == [one, two, two, one, two, ours, 3, 3]
        assert {name.lower() for name, _ in corporate.asked} == {"a.corp.example.", "corp.example.", "printer.lan."}
        assert await ask_all(await apply(forward=False)) == [3, two, two, 3, two, ours, 3, 3]


# -- where upstreams come from --------------------------------------------------------------------------------------------------


def test_resolv_conf() -> None:
    text = "# x\nsearch a b\nnameserver 10.0.0.1\n nameserver  fe80::1%eth0 \nnameserver\nnameserver nonsense\n"
    text += "nameserver 10.0.0.1\noptions ndots:2"
    assert parse_resolv_conf(text) == (("10.0.0.1", 53), ("fe80::1%eth0", 53))


def test_resolved_stub_is_bypassed_and_changes_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.resolvers._LOOK_AGAIN_S", 0.0)
    conf, uplinks = tmp_path / "resolv.conf", tmp_path / "uplinks"
    resolvers = NodeResolvers(conf, uplinks)
    assert resolvers.endpoints() == ()
    conf.write_text("nameserver 127.0.0.53\n")
    assert resolvers.endpoints() == (("127.0.0.53", 53),)
    uplinks.write_text("nameserver 192.0.2.53\nnameserver 192.0.2.54\n")
    assert resolvers.endpoints() == (("192.0.2.53", 53), ("192.0.2.54", 53))
    conf.write_text("nameserver 192.0.2.1\n")
    assert resolvers.endpoints() == (("192.0.2.1", 53),)
    conf.unlink()
    assert resolvers.endpoints() == ()


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("10.0.0.1", ("10.0.0.1", 53)),
        ("10.0.0.1:5353", ("10.0.0.1", 5353)),
        ("fd00::1", ("fd00::1", 53)),
        ("[fd00::1]", ("fd00::1", 53)),
        ("[fd00::1]:54", ("fd00::1", 54)),
    ],
)
def test_endpoints(text: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text", ["", "web", "10.0.0.1:", "10.0.0.1:x", "10.0.0.1:65536", "10.0.0.256", "[fd00::1", "[::1]x", ":53", "10.0.0.1:-1", "10.0.0.1:٣"]
)
def test_bad_endpoints(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no address|has no valid port"):
        parse_endpoint(text)


# -- the cache ------------------------------------------------------------------------------------------------------------------


def reply_of(record: Any) -> wire.Reply:
    packet = bytes(record.pack())
    question = bytes(DNSRecord.question(str(record.q.qname)).pack())[12:]
    reply = wire.read_reply(packet, packet[:2], question)
    assert reply is not None
    return reply


def test_cache_is_bounded_and_the_least_recently_used_goes() -> None:
    cache = Cache(size_bytes=10_000)
    reply = reply_of(answer(DNSRecord.question("example.com")))
    for number in range(100):
        cache.put(number, reply, 0.0)
        assert cache.fresh(0, 1.0) is not None
    assert 5 < len(cache) < 15
    assert cache.fresh(1, 1.0) is None


def test_cache_times() -> None:
    cache = Cache()
    cache.put("a", reply_of(answer(DNSRecord.question("example.com"))), 1000.0)
    assert cache.fresh("a", 1299.9) is not None
    assert cache.fresh("a", 1300.0) is None
    assert cache.stale("a", 1300.0 + 86_399) is not None
    assert cache.stale("a", 1300.0 + 86_400) is None
    cache.put("a", reply_of(answer(DNSRecord.question("example.com"), ttl_s=0)), 1400.0)
    assert cache.stale("a", 1400.0) is None


async def test_waiting_is_bounded_too() -> None:
    forwarder = Forwarder(NodeResolvers(Path("/nonexistent"), Path("/nonexistent")), max_waiting=0)
    asked = wire.read_query(query("example.com"))
    assert isinstance(asked, wire.Query)
    response = await forwarder.resolve(Forward(asked, (("127.0.0.1", 1),)), 512)
    assert DNSRecord.parse(response).header.rcode == 2
    assert forwarder.counters["refused_full"] == 1
