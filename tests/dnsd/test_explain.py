"""Explanations agree with the answers they explain; who asks is found by any of its names."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from dnslib import DNSRecord

from dnsd import ConfigError, DnsState, RouteSpec, ScopeSpec, Server, ServiceName, TaskName, Zone, ZoneSpec, presentation
from dnsd.encoded import EncodedZone, encode
from dnsd.explain import find_asker, reason_of
from dnsd.names import address_text, name_of, reverse_address
from dnsd.policy import Policy, policy_of
from dnsd.resolve import Forward, View
from dnsd.resolvers import NodeResolvers
from tests.dnsd.ask import ask, ask_tcp, outcome, query
from tests.dnsd.test_names import BACK, FRONT, back, front
from tests.dnsd.upstream import Upstream


def wire(text: str) -> bytes:
    name = name_of(text)
    assert name is not None
    return name


def every_name() -> list[str]:
    bases = {"nosuch", "tasks", "localhost", "example.com", "tasks.nosuch", "nosuch_x", "x.corp", "corp", "_a._b.c", "10.0.0.9"}
    for spec in (FRONT, BACK):
        for service in spec.services:
            for text in (service.name, *service.aliases):
                bases |= {text, f"tasks.{text}", f"{text}.1", f"{text}.9", f"_http._tcp.{text}", f"_53._udp.{text}", f"_tcp.{text}"}
            for task in service.tasks:
                bases |= {task.name, *task.aliases, task.name.split(".", 1)[-1]}
        for task in spec.containers:
            bases |= {task.name, *task.aliases}
    suffixed = [f"{base}{suffix}" for base in sorted(bases) for suffix in ("", ".front", ".shop_back")]
    return [*suffixed, *(f"{n}.1.0.10.in-addr.arpa" for n in (2, 11, 99)), "1.0.0.127.in-addr.arpa"]


@pytest.mark.parametrize("stack", ["", "shop"])
@pytest.mark.parametrize("policy", [Policy(), Policy(forward=False), Policy(routes=((wire("corp"), (("192.0.2.1", 53),)),))])
@pytest.mark.parametrize("zones", [(front, back), (back, front), (Zone(EncodedZone(encode(FRONT))),), ()])
def test_every_explanation_agrees_with_the_answer(zones: tuple[Zone, ...], policy: Policy, stack: str) -> None:
    view = View(zones, stack, policy=policy)
    for text in every_name():
        name = wire(text)
        reason, found, response = outcome(reason_of(view, name)), view.find(name), view.respond(query(text), tcp=True)
        assert reason.rule and (reason.origin == "upstream") == isinstance(response, Forward), text
        if isinstance(response, bytes):
            assert (found is None) == (DNSRecord.parse(response).header.rcode == 3), text
        if reason.network:
            assert found is not None
            (zone,) = [zone for zone in zones if zone.name == reason.network]
            packed = reverse_address(name)
            here = [zone.pointer(packed)] if packed else [zone.find(name, prefix) for prefix in view.prefixes]
            assert found in here, text
        if found is not None and reason.tasks and "virtual IP: connections" not in reason.rule:
            offered = {address for task in reason.tasks if task.offered for address in task.addresses}
            reached = found.addresses or tuple(address for target in found.targets for address in target.addresses)
            assert offered == {address_text(address) for address in reached}, text


def task(number: int, state: str) -> TaskName:
    return TaskName(
        id=f"t{number}",
        name=f"rr.{number}.x",
        slot=number,
        addresses=(f"10.0.0.{number}",),
        serving=state == "serving",
        running=state != "dead",
        left_out="draining" if state == "draining" else "",
    )


def test_who_is_left_out_and_why_for_all_states_of_three_tasks() -> None:
    for states in product(("serving", "draining", "dead"), repeat=3):
        tasks = tuple(task(number, state) for number, state in enumerate(states, 1))
        view = View((Zone(ZoneSpec(network="n", name="net", services=(ServiceName(id="s", name="rr", tasks=tasks),))),))
        reason = outcome(reason_of(view, wire("rr")))
        found = view.find(wire("rr"))
        assert found is not None
        assert {a for t in reason.tasks if t.offered for a in t.addresses} == {address_text(a) for a in found.addresses}
        assert [t.state for t in reason.tasks] == ["not running" if state == "dead" else state for state in states]
        assert bool(reason.notes) == ("serving" not in states)


@pytest.mark.parametrize(
    ("stack", "name", "network", "sentences"),
    [
        ("", "web", "front", ["service web has a virtual IP", "also known on shop_back: not used"]),
        ("", "www", "front", ["www is an alias of service web"]),
        ("", "rr", "front", ["service rr has no virtual IP (dnsrr)"]),
        ("", "tasks.web", "front", ["tasks.web is always the addresses of service web's serving tasks"]),
        ("", "web.2", "front", ["web.2 is the slot of container web.2.bbb"]),
        ("", "web.1.aaa", "front", ["web.1.aaa is container web.1.aaa"]),
        ("", "first", "front", ["first is an alias of container web.1.aaa"]),
        ("", "both", "front", ["both is an alias of service green", "both is an alias of service blue", "several have this name"]),
        ("", "sick", "front", ["none of them serves: those that run are offered"]),
        ("", "gone", "front", ["nothing of it runs"]),
        ("", "_http._tcp.web", "front", ["_http._tcp is a declared port of service web"]),
        ("shop", "db", "front", ["service shop_db has a virtual IP", "the asker's own stack comes first: shop_db goes before"]),
        ("", "db", "front", ["service db has a virtual IP"]),
        ("", "only", "shop_back", ["service only has a virtual IP"]),
        ("", "none", "shop_back", ["also known on front"]),
        ("", "2.1.0.10.in-addr.arpa", "front", ["10.0.1.2 is a virtual IP of service web"]),
        ("", "11.1.0.10.in-addr.arpa", "front", ["10.0.1.11 is the address of a task"]),
        ("", "localhost", "", ["own loopback"]),
        ("", "front", "", ["exists only because there are names below it"]),
        ("", "nosuch", "", ["no such name on the asker's networks (front, shop_back)", "asked of others: nosuch is a single label"]),
        ("", "x.front", "", ["it is below the name of network front"]),
        ("", "web.9", "", ["no public domain is called 9"]),
        ("", "_a._tcp.nosuch", "", ["it asks for a port of a single-label name"]),
        ("", "example.com", "", ["example.com is not ours: the node's own resolvers are asked"]),
    ],
)  # fmt: skip
def test_rules_in_words(stack: str, name: str, network: str, sentences: list[str]) -> None:
    reason = outcome(reason_of(View((front, back), stack), wire(name)))
    assert reason.network == network
    told = " | ".join((reason.rule, *reason.notes))
    for sentence in sentences:
        assert sentence in told


def test_whom_is_asked_in_words() -> None:
    routes = (RouteSpec(domain="corp", upstreams=("192.0.2.2",)), RouteSpec(domain="lan"))
    zone = msgspec.structs.replace(FRONT, upstreams=("192.0.2.1",), routes=routes)
    policy, _ = policy_of(ScopeSpec(id="s", netns=""), [zone])
    view = View((Zone(zone),), policy=policy)
    assert "the servers that the asker or its network names are asked" in outcome(reason_of(view, wire("example.com"))).rule
    assert "network names are asked about corp and all below it" in outcome(reason_of(view, wire("x.corp"))).rule
    assert "the node's own resolvers are asked about lan and all below it" in outcome(reason_of(view, wire("x.lan"))).rule
    closed = View((Zone(zone),), policy=Policy(forward=False))
    assert "forbids to forward" in outcome(reason_of(closed, wire("example.com"))).rule


# -- who asks -------------------------------------------------------------------------------------------------------------------

SCOPES = {id: ScopeSpec(id=id, netns="") for id in ("web.1.aaa", "tool", "shop_db.1.h", "web.1.zzz", "lonely-scope")}


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("tool", "tool"),
        ("web.1.aaa", "web.1.aaa"),
        ("shop_db", "shop_db.1.h"),
        ("shop_db.1", "shop_db.1.h"),
        ("lonely-scope", "lonely-scope"),
        ("lonely", "lonely-scope"),
        ("web", "'web' may be web.1.aaa, web.1.zzz: say which"),
        ("web.1", "'web.1' may be web.1.aaa, web.1.zzz: say which"),
        ("rr", "rr is not on this node"),
        ("web.2", "web.2 is not on this node"),
        ("tol", "no task 'tol' on this node: did you mean tool?"),
        ("zzzzzzzz", "no task 'zzzzzzzz' on this node: there are lonely-scope, shop_db.1.h, tool, web.1.aaa, web.1.zzz"),
        ("", "no task '' on this node"),
    ],
)
def test_who_asks(reference: str, found: str) -> None:
    if found in SCOPES:
        assert outcome(find_asker(reference, SCOPES, (front, back))) == (found, found)
    else:
        with pytest.raises(ConfigError) as raised:
            outcome(find_asker(reference, SCOPES, (front, back)))
        assert found in str(raised.value)


# -- by a server ----------------------------------------------------------------------------------------------------------------


async def test_a_servers_explanations_and_logs() -> None:
    server = Server(NodeResolvers())
    async with Upstream(lambda record, tcp: record.reply()) as upstream:
        try:
            asker = ScopeSpec(id="web.1.aaa", netns="", networks=("n1",), listen="127.0.0.1:0", upstreams=(upstream.address,))
            state = DnsState(zones=(FRONT,), scopes=(asker, ScopeSpec(id="tool", netns="", networks=("n1",), listen="127.0.0.1:0")))
            await server.apply(state)
            one = await server.explain("web.1", "TASKS.web")
            assert (one.scope, one.asker, one.networks, one.name, one.type) == ("web.1.aaa", "web.1.aaa", ("front",), "tasks.web", "A")
            assert (one.rcode, one.origin, one.network) == ("NOERROR", "zone", "front")
            assert sorted(one.records) == ["tasks.web. 0 IN A 10.0.1.11", "tasks.web. 0 IN A 10.0.1.12"]
            assert [(t.name, t.state, t.offered) for t in one.tasks] == [
                ("web.1.aaa", "serving", True), ("web.2.bbb", "serving", True), ("web.3.ccc", "not serving", False),
            ]  # fmt: skip
            for origin in ("upstream", "upstream"):
                other = await server.explain("web.1", "example.com", "TYPE15")
                assert (other.rcode, other.type, other.origin, other.upstreams) == ("NOERROR", "MX", origin, (upstream.address,))
            assert (await server.explain("web.1", "nosuch")).rcode == "NXDOMAIN"
            for arguments, sentence in (
                (("web.1", "a..b"), "is no name"),
                (("web.1", "web", "QQ"), "is no record type"),
                (("wob", "web"), "no task"),
            ):
                with pytest.raises(ConfigError, match=sentence):
                    await server.explain(*arguments)

            assert await server.log("tool", on=True) == ("tool", False, ())
            address = server.address("tool")
            await ask(address, "web")
            await ask(server.address("web.1.aaa"), "web")
            # A new state changes nothing about who is logged.
            await server.apply(msgspec.structs.replace(state, zones=(msgspec.structs.replace(FRONT, vip_ttl_s=9),)))
            await ask_tcp(address, query("nosuch", "AAAA"))
            asker_name, was_on, entries = await server.log("tool", on=True, after=0)
            assert (asker_name, was_on) == ("tool", True)
            assert [(e.number, e.client, e.name, e.type, e.rcode, e.records) for e in entries] == [
                (1, "127.0.0.1", "web.", "A", "NOERROR", ("web. 5 IN A 10.0.1.2",)), (2, "tcp", "nosuch.", "AAAA", "NXDOMAIN", ()),
            ]  # fmt: skip
            assert [e.number for e in (await server.log("tool", on=False, after=1))[2]] == [2]
            await ask(address, "web")
            assert await server.log("tool", on=True) == ("tool", False, ())
            # Gone with its scope.
            await server.apply(DnsState())
            assert server._logs == {}
        finally:
            await server.close()


@pytest.mark.parametrize(("text", "number"), [("a", 1), ("AAAA", 28), ("type65", 65), ("HTTPS", 65), ("TYPE65535", 65535)])
def test_types(text: str, number: int) -> None:
    assert presentation.type_number(text) == number
    assert presentation.type_number(presentation.type_text(number)) == number


@pytest.mark.parametrize("text", ["", "x", "TYPE", "TYPE65536", "TYPE-1", "TYPE٣"])
def test_no_types(text: str) -> None:
    with pytest.raises(ConfigError):
        presentation.type_number(text)


@pytest.mark.parametrize("packet", [b"", b"\0" * 11, b"\xff" * 40, query("web")[:-3]])
def test_the_unreadable_is_said_to_be(packet: bytes) -> None:
    assert presentation.question_text(packet)[0] in ("(unreadable)", "web.")
    if len(packet) > 3:
        assert presentation.answer_text(packet)[1] in (("(unreadable)",), ())
