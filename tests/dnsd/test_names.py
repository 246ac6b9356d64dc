"""Every naming rule, as tables: zones, what is asked, what must be said."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from dnslib import DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from dnsd import PortName, ServiceName, TaskName, Zone, ZoneSpec
from dnsd.encoded import EncodedZone, encode
from dnsd.names import labels_of, name_of, packed_address, reverse_address, reverse_name, text_of, wire_name
from dnsd.policy import Policy
from dnsd.resolve import View
from dnsd.zone import TASKS
from tests.dnsd.ask import look_up, outcome, query, values


def task(name: str, *addresses: str, slot: int = 0, serving: bool = True, running: bool = True, aliases: tuple[str, ...] = ()) -> TaskName:
    return TaskName(id=name, name=name, slot=slot, addresses=addresses, serving=serving, running=running, aliases=aliases)


FRONT = ZoneSpec(
    network="n1",
    name="front",
    services=(
        ServiceName(
            id="s1",
            name="web",
            aliases=("www",),
            vips=("10.0.1.2",),
            ports=(PortName(name="http", protocol="tcp", port=80), PortName(name="", protocol="udp", port=53)),
            tasks=(
                task("web.1.aaa", "10.0.1.11", slot=1, aliases=("first",)),
                task("web.2.bbb", "10.0.1.12", slot=2),
                task("web.3.ccc", "10.0.1.13", slot=3, serving=False),
            ),
        ),
        ServiceName(
            id="s2",
            name="rr",
            tasks=(task("rr.1.ddd", "10.0.1.21", "fd00::21", slot=1), task("rr.2.eee", "10.0.1.22", slot=2)),
        ),
        ServiceName(id="s3", name="sick", tasks=(task("sick.1.f", "10.0.1.31", slot=1, serving=False),)),
        ServiceName(id="s4", name="gone", tasks=(task("gone.1.g", "10.0.1.41", slot=1, serving=False, running=False),)),
        ServiceName(id="s5", name="none"),
        ServiceName(id="s6", name="shop_db", vips=("10.0.1.5",), tasks=(task("shop_db.1.h", "10.0.1.51", slot=1),)),
        ServiceName(id="s7", name="db", vips=("10.0.1.6",), tasks=(task("db.1.i", "10.0.1.61", slot=1),)),
        ServiceName(
            id="s8", name="agent", ports=(PortName(name="api", protocol="tcp", port=9),), tasks=(task("agent.node1", "10.0.1.71"),)
        ),
        ServiceName(id="s9", name="six", vips=("fd00::9",), tasks=(task("six.1.j", "fd00::91", slot=1),)),
        ServiceName(id="s10", name="green", aliases=("both",), tasks=(task("green.1.k", "10.0.1.81", slot=1),)),
        ServiceName(id="s11", name="blue", aliases=("both",), tasks=(task("blue.1.l", "10.0.1.82", slot=1),)),
    ),
    containers=(task("tool", "10.0.1.91", aliases=("t", "helper.local")), task("stopped", "10.0.1.92", serving=False, running=False)),
)
BACK = ZoneSpec(
    network="n2",
    name="shop_back",
    services=(
        ServiceName(id="t1", name="web", vips=("10.0.2.2",), tasks=(task("web.1.zzz", "10.0.2.11", slot=1),)),
        ServiceName(id="t2", name="none", vips=("10.0.2.3",)),
        ServiceName(id="t3", name="only", vips=("10.0.2.4",)),
        ServiceName(id="t4", name="rr", vips=("fd00:2::1",)),
    ),
)
front, back = Zone(FRONT), Zone(BACK)
VIEW = View((front, back))

ADDRESSES = [
    # a service by its name: its VIP; its tasks by tasks.*: the serving ones
    ("web", ["10.0.1.2"], 5),
    ("web.", ["10.0.1.2"], 5),
    ("wEb", ["10.0.1.2"], 5),
    ("www", ["10.0.1.2"], 5),
    ("tasks.web", ["10.0.1.11", "10.0.1.12"], 0),
    ("tasks.www", ["10.0.1.11", "10.0.1.12"], 0),
    # dnsrr: the tasks either way
    ("rr", ["10.0.1.21", "10.0.1.22"], 0),
    ("tasks.rr", ["10.0.1.21", "10.0.1.22"], 0),
    # nothing serves: what runs; nothing runs: it exists without addresses
    ("sick", ["10.0.1.31"], 0),
    ("tasks.sick", ["10.0.1.31"], 0),
    ("gone", [], None),
    ("tasks.gone", [], None),
    ("tasks.none", [], None),
    # slots, task names, container names, aliases
    ("web.1", ["10.0.1.11"], 0),
    ("www.2", ["10.0.1.12"], 0),
    ("web.3", ["10.0.1.13"], 0),
    ("web.3.ccc", ["10.0.1.13"], 0),
    ("first", ["10.0.1.11"], 0),
    ("agent.node1", ["10.0.1.71"], 0),
    ("tool", ["10.0.1.91"], 0),
    ("t", ["10.0.1.91"], 0),
    ("helper.local", ["10.0.1.91"], 0),
    # an alias that two services share
    ("both", ["10.0.1.81", "10.0.1.82"], 0),
    # with the network's name
    ("web.front", ["10.0.1.2"], 5),
    ("web.shop_back", ["10.0.2.2"], 5),
    ("tasks.web.shop_back", ["10.0.2.11"], 0),
    ("web.1.front", ["10.0.1.11"], 0),
    ("web.1.zzz.shop_back", ["10.0.2.11"], 0),
    ("tool.front", ["10.0.1.91"], 0),
    # networks in order; what can be reached goes before what merely exists
    ("only", ["10.0.2.4"], 5),
    ("none", ["10.0.2.3"], 5),
    # not the asker's stack
    ("db", ["10.0.1.6"], 5),
    ("shop_db", ["10.0.1.5"], 5),
    # IPv6 only: it exists
    ("six", [], None),
    ("localhost", ["127.0.0.1"], 0),
]


@pytest.mark.parametrize(("name", "addresses", "ttl_s"), ADDRESSES, ids=[row[0] for row in ADDRESSES])
def test_addresses(name: str, addresses: list[str], ttl_s: int | None) -> None:
    record = look_up(VIEW, name)
    assert record.header.rcode == 0
    assert record.header.aa
    assert values(record, sort=True) == addresses
    assert {answer.ttl for answer in record.rr} == ({ttl_s} if ttl_s is not None else set())
    # NODATA carries an SOA, an answer none.
    assert [str(auth.rname) for auth in record.auth] == ([] if addresses else ["."])


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("db", ["10.0.1.5"]),
        ("tasks.db", ["10.0.1.51"]),
        ("db.1", ["10.0.1.51"]),
        ("db.front", ["10.0.1.5"]),
        ("tasks.db.front", ["10.0.1.51"]),
        ("shop_db", ["10.0.1.5"]),
        ("web", ["10.0.1.2"]),
    ],
)
def test_own_stack_comes_first(name: str, addresses: list[str]) -> None:
    assert values(look_up(View((front, back), "shop"), name)) == addresses


@pytest.mark.parametrize(
    ("name", "addresses"),
    [("six", ["fd00::9"]), ("tasks.six", ["fd00::91"]), ("rr", ["fd00::21"]), ("rr.1", ["fd00::21"]), ("web", []), ("localhost", ["::1"])],
)
def test_ipv6(name: str, addresses: list[str]) -> None:
    record = look_up(VIEW, name, "AAAA")
    assert (record.header.rcode, values(record)) == (0, addresses)
    assert bool(record.auth) == (not addresses)


def test_a_name_on_two_networks_is_never_mixed() -> None:
    # `rr` of the first network has no VIP; the second's fd00:2::1 is another service's.
    assert values(look_up(VIEW, "rr", "AAAA")) == ["fd00::21"]
    assert values(look_up(View((back, front)), "rr", "A")) == []


@pytest.mark.parametrize(
    ("name", "rcode"),
    [
        ("nosuch", 3),
        ("nosuch.front", 3),
        ("a.b.front", 3),
        ("tasks.nosuch.front", 3),
        ("web.9", 3),
        ("10.0.1.2", 3),
        ("tasks.shop_nosuch", 3),
        ("_nosuch._tcp.web", 3),
        ("_80._udp.web", 3),
        ("_http._tcp.nosuch", 3),
        # what doesn't run keeps its names, without addresses
        ("stopped", 0),
        ("gone.1.g", 0),
        ("gone.1", 0),
        # names that exist only because others are below them
        ("front", 0),
        ("shop_back", 0),
        ("tasks", 0),
        ("_tcp.web", 0),
        ("_udp.web.front", 0),
        ("1.aaa.front", 0),
        ("tasks.front", 0),
        ("aaa", 0),
    ],
)
def test_denials(name: str, rcode: int) -> None:
    record = look_up(VIEW, name)
    assert (record.header.rcode, record.rr) == (rcode, [])
    (soa,) = record.auth
    assert str(soa.rdata) == "dnsd. hostmaster.dnsd. 1 60 10 60 0"


@pytest.mark.parametrize("name", ["example.com", "tasks.com", "web.example.com", "xfront.nosuch", "77.1.0.10.in-addr.arpa", "."])
def test_forwarded(name: str) -> None:
    assert look_up(VIEW, name) == "forward"
    # Without recursion desired there is nothing to forward; a scope without forwarding knows that it doesn't exist.
    assert look_up(VIEW, name, rd=0).header.rcode == 5
    record = look_up(View((front,), policy=Policy(forward=False)), name)
    assert (record.header.rcode, record.header.ra) == (3, 0)


def test_an_alias_of_a_public_name_hides_only_itself() -> None:
    zone = Zone(ZoneSpec(network="n", name="net", containers=(task("mock", "10.0.0.7", aliases=("s3.example.com",)),)))
    assert values(look_up(View((zone,)), "s3.example.com")) == ["10.0.0.7"]
    assert look_up(View((zone,)), "s3.example.com", "AAAA").header.rcode == 0
    for name in ("example.com", "com", "www.example.com", "x.s3.example.com"):
        expected = "forward" if "." in name else 0
        found = look_up(View((zone,)), name)
        assert (found if isinstance(found, str) else found.header.rcode) == expected, name
    # Where nobody else is asked, what lies above exists.
    assert look_up(View((zone,), policy=Policy(forward=False)), "example.com").header.rcode == 0


@pytest.mark.parametrize("kind", ["TXT", "MX", "NS", "SOA", "CNAME", "HTTPS", "CAA", "NAPTR", "PTR", "SRV"])
def test_other_types_of_an_existing_name_are_nodata(kind: str) -> None:
    record = look_up(VIEW, "web", kind)
    assert (record.header.rcode, record.rr, len(record.auth)) == (0, [], 1)


def test_any() -> None:
    assert values(look_up(VIEW, "rr.1", "ANY"), sort=True) == ["10.0.1.21", "fd00::21"]


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("_http._tcp.web", ["0 0 80 web.1.", "0 0 80 web.2."]),
        ("_HTTP._TCP.web", ["0 0 80 web.1.", "0 0 80 web.2."]),
        ("_80._tcp.web", ["0 0 80 web.1.", "0 0 80 web.2."]),
        ("_53._udp.web", ["0 0 53 web.1.", "0 0 53 web.2."]),
        ("_http._tcp.web.front", ["0 0 80 web.1.front.", "0 0 80 web.2.front."]),
        ("_api._tcp.agent", ["0 0 9 agent.node1."]),
    ],
)
def test_srv(name: str, targets: list[str]) -> None:
    record = look_up(VIEW, name, "SRV")
    assert values(record, sort=True) == targets
    # Every target resolves, to just what came along.
    for extra in record.ar:
        assert str(extra.rdata) in values(look_up(VIEW, str(extra.rname)))
    assert {str(extra.rname) for extra in record.ar} == {target.split()[-1] for target in targets}
    assert look_up(VIEW, name, "A").header.rcode == 0


def test_srv_of_tasks_with_both_families() -> None:
    """Addresses of both come along; a task without a slot is called by its name; what doesn't run is no target."""
    tasks = (
        task("s.1.a", "10.0.0.1", "fd00::1", slot=1),
        task("s.node2", "fd00::2"),
        task("s.3.c", "10.0.0.3", slot=3, serving=False, running=False),
    )
    port = PortName(name="http", protocol="TCP", port=80)
    view = View((Zone(ZoneSpec(network="n", name="net", services=(ServiceName(id="s", name="s", tasks=tasks, ports=(port,)),))),))
    record = look_up(view, "_http._tcp.s.net", "SRV")
    assert values(record, sort=True) == ["0 0 80 s.1.net.", "0 0 80 s.node2.net."]
    assert [(str(extra.rname), str(extra.rdata)) for extra in record.ar] == [
        ("s.1.net.", "10.0.0.1"),
        ("s.1.net.", "fd00::1"),
        ("s.node2.net.", "fd00::2"),
    ]
    assert look_up(view, "_tcp.s", "SRV").header.rcode == 0


def test_ttls_are_the_networks() -> None:
    tasks = (task("w.1.a", "10.0.0.1", "fd00::1", slot=1),)
    port = PortName(name="http", protocol="tcp", port=80)
    one = ServiceName(id="w", name="w", aliases=("x",), vips=("10.0.9.1",), tasks=tasks, ports=(port,))
    other = ServiceName(id="v", name="v", aliases=("x",), tasks=tasks)
    view = View((Zone(ZoneSpec(network="n", name="net", services=(one, other), vip_ttl_s=30, task_ttl_s=3)),))
    for name, kind, ttl_s in (
        ("w", "A", 30), ("w.net", "A", 30), ("v", "A", 3), ("tasks.w", "A", 3), ("tasks.w", "AAAA", 3), ("w.1", "A", 3), ("w.1.a", "A", 3),
        # a VIP beside a task: as short as the task's
        ("x", "A", 3), ("_http._tcp.w", "SRV", 3), ("1.0.0.10.in-addr.arpa", "PTR", 3),
    ):  # fmt: skip
        record = look_up(view, name, kind)
        assert record.rr
        assert {answer.ttl for answer in record.rr + record.ar} == {ttl_s}, name


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.1.11", "web.1.aaa.front."),
        ("10.0.1.13", "web.3.ccc.front."),
        ("10.0.1.2", "web.front."),
        ("10.0.2.2", "web.shop_back."),
        ("10.0.1.91", "tool.front."),
        ("fd00::9", "six.front."),
        ("127.0.0.1", "localhost."),
        ("::1", "localhost."),
    ],
)
def test_pointers_lead_back(address: str, name: str) -> None:
    packed = packed_address(address)
    assert packed is not None
    record = look_up(VIEW, text_of(reverse_name(packed)), "PTR")
    assert values(record) == [name]
    assert address in values(look_up(VIEW, name, "AAAA" if ":" in address else "A"))


def test_a_slot_of_two_tasks_during_its_replacement() -> None:
    old, new = task("w.1.old", "10.0.0.1", slot=1), task("w.1.new", "10.0.0.2", slot=1)
    port = PortName(name="p", protocol="tcp", port=1)
    for old_serves, new_serves in product((False, True), repeat=2):
        tasks = (msgspec.structs.replace(old, serving=old_serves), msgspec.structs.replace(new, serving=new_serves))
        view = View((Zone(ZoneSpec(network="n", name="net", services=(ServiceName(id="w", name="w", tasks=tasks, ports=(port,)),))),))
        serving = [t.addresses[0] for t in tasks if t.serving] or ["10.0.0.1", "10.0.0.2"]
        for name in ("w", "tasks.w", "w.1"):
            assert values(look_up(view, name), sort=True) == serving
        srv = look_up(view, "_p._tcp.w", "SRV")
        assert values(srv) == ["0 0 1 w.1."]
        assert sorted(str(extra.rdata) for extra in srv.ar) == serving


def test_serving_rule_exhaustively() -> None:
    """Up to three tasks, each serving, running or neither; with and without VIP; alone and with an alias shared with a second service."""
    states = [(True, True), (False, True), (False, False)]
    for size in range(4):
        for combination in product(states, repeat=size):
            tasks = tuple(task(f"a.{i}.x", f"10.0.0.{i}", slot=i, serving=s, running=r) for i, (s, r) in enumerate(combination, 1))
            serving = [t.addresses[0] for t in tasks if t.serving]
            running = [t.addresses[0] for t in tasks if t.running]
            for vips in ((), ("10.0.0.100",)):
                one = ServiceName(id="a", name="a", aliases=("shared",), vips=vips, tasks=tasks)
                other = ServiceName(id="b", name="b", aliases=("shared",), tasks=(task("b.1.x", "10.0.0.200", slot=1),))
                view = View((Zone(ZoneSpec(network="n", name="net", services=(one, other))),))
                assert values(look_up(view, "tasks.a"), sort=True) == (serving or running)
                assert values(look_up(view, "a"), sort=True) == (list(vips) or serving or running)
                shared = (list(vips) if serving else []) if vips else serving
                assert values(look_up(view, "shared"), sort=True) == sorted([*shared, "10.0.0.200"])


def test_rotation_starts_with_each_record_in_turn() -> None:
    tasks = tuple(task(f"a.{i}.x", f"10.0.0.{i}", slot=i) for i in range(1, 6))
    view = View((Zone(ZoneSpec(network="n", name="net", services=(ServiceName(id="a", name="a", tasks=tasks),))),))
    orders = [values(DNSRecord.parse(view.respond(query("a")))) for _ in range(10)]
    assert {order[0] for order in orders[:5]} == {f"10.0.0.{i}" for i in range(1, 6)}
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert orders[:5] == orders[5:]


@pytest.mark.parametrize(
    "zone",
    [
        ZoneSpec(network="n", name="x" * 64),
        ZoneSpec(network="n", name="net", services=(ServiceName(id="s", name="a..b"),)),
        ZoneSpec(network="n", name="net", services=(ServiceName(id="s", name="ok", aliases=("y" * 64,)),)),
        ZoneSpec(network="n", name="net", services=(ServiceName(id="s", name="ok", vips=("10.0.0.1/24",)),)),
        ZoneSpec(network="n", name="net", containers=(task("", "10.0.0.1"),)),
        ZoneSpec(network="n", name="net", containers=(task("c", "10.0.0.256"),)),
        ZoneSpec(network="n", name="net", containers=(task(".".join(["z" * 60] * 5), "10.0.0.2"),)),
    ],
)
def test_what_dns_cannot_carry_is_said_and_left_out(zone: ZoneSpec) -> None:
    services = (*zone.services, ServiceName(id="good", name="good", vips=("10.0.0.9",)))
    compiled = Zone(ZoneSpec(network=zone.network, name=zone.name, services=services, containers=zone.containers))
    assert len(compiled.problems) == 1
    assert values(look_up(View((compiled,)), "good")) == ["10.0.0.9"]
    for name in ("ok", "c"):
        assert values(look_up(View((compiled,)), name)) == []


@pytest.mark.parametrize("spec", [FRONT, BACK])
def test_an_encoded_zone_compiles_to_the_same_in_steps_and_can_be_emptied(spec: ZoneSpec) -> None:
    encoded = EncodedZone(encode(spec))
    assert (encoded.network, encoded.decode()) == (spec.network, spec)
    steps, result = 0, Zone.in_steps(encoded)
    try:
        while True:
            next(result)
            steps += 1
    except StopIteration as end:
        zone: Zone = end.value
    assert steps == sum(len(service.tasks) for service in spec.services) + len(spec.containers)
    whole = Zone(spec)
    assert (len(zone), zone.problems) == (len(whole), whole.problems)
    below = [name[1 + name[0] :] for name in whole._entries] + [TASKS + name for name in whole._entries]
    for name in [*whole._entries, *below, b"\5_http\4_tcp\3web\0"]:
        assert (zone.find(name), zone.is_parent(name)) == (whole.find(name), whole.is_parent(name))
        named, expected = outcome(zone.named(name)), outcome(whole.named(name))
        assert [(one.name, of) for one, of in named.services] == [(one.name, of) for one, of in expected.services]
        assert named.tasks == expected.tasks
    for packed in whole._pointers:
        assert zone.pointer(packed) == whole.pointer(packed)
    for _ in zone.emptied():
        pass
    assert (len(zone), zone.find(b"\3web\0"), zone.is_parent(b"\5front\0")) == (0, None, False)


@pytest.mark.parametrize("body", [b"", b"x", encode(1), encode({"name": "n"}), encode({"network": "n", "name": "x", "services": 1})])
def test_what_is_no_zone(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        EncodedZone(body).decode()
    with pytest.raises(msgspec.DecodeError):
        Zone(EncodedZone(body))
    with pytest.raises(msgspec.DecodeError):
        EncodedZone.unpacked(body)


LABEL = st.binary(min_size=1, max_size=63).filter(lambda label: b"." not in label and b"\0" not in label)


@given(st.lists(LABEL, max_size=4).filter(lambda labels: sum(map(len, labels)) < 200))
def test_wire_names_round_trip(labels: list[bytes]) -> None:
    assert labels_of(wire_name(labels)) == labels


@given(st.ip_addresses())
def test_reverse_names_round_trip(address: object) -> None:
    packed = packed_address(str(address))
    assert packed is not None
    assert reverse_address(reverse_name(packed)) == packed


@pytest.mark.parametrize(
    "name", ["1.2.3.in-addr.arpa", "1.2.3.256.in-addr.arpa", "01.2.3.4.in-addr.arpa", "x.2.3.4.in-addr.arpa", "a.ip6.arpa", "1.2.3.4.arpa"]
)
def test_other_names_are_no_reverse_names(name: str) -> None:
    wire = name_of(name)
    assert wire is not None
    assert reverse_address(wire) is None
