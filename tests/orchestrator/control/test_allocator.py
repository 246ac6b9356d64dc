"""The allocator: what each kind of object is given, exhaustion and recovery, and that nothing is ever given twice."""

from __future__ import annotations

import ipaddress
from datetime import timedelta

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.control.addresses import SubnetPool
from orchestrator.control.allocator import LINGER, allocate
from orchestrator.control.ports import DYNAMIC_PORTS
from orchestrator.control.scheduler import schedule
from orchestrator.control.steps import applied
from orchestrator.control.subnets import FIRST_VNI
from orchestrator.model import Claim, Endpoint, IPAMConfig, Network, Node, NodeAttachment, Service, Task, TaskState
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.clusters import (
    NOW,
    addresses,
    cluster,
    context,
    network,
    node,
    port,
    run,
    service,
    settled,
    snapshot,
    task,
    tasks,
    with_state,
)

# ---- networks ------------------------------------------------------------------------------------------------------------------


def subnets(picture: Snapshot) -> dict[str, list[str]]:
    return {n.id: [config.subnet for config in n.ipam.config or ()] for n in picture.all(Network)}


def test_a_network_gets_vni_subnet_and_gateway_as_docker_shows_them() -> None:
    picture = run(snapshot(cluster(), network("a"), network("b", age_s=5)), allocate)
    older, younger = picture.network("b"), picture.network("a")
    assert older is not None and younger is not None
    assert older.ipam.config == [IPAMConfig(subnet="10.0.0.0/24", gateway="10.0.0.1")]
    assert younger.ipam.config == [IPAMConfig(subnet="10.0.1.0/24", gateway="10.0.1.1")]
    assert (older.mesh_vni, younger.mesh_vni) == (FIRST_VNI, FIRST_VNI + 1)
    assert older.options == {"com.docker.network.driver.overlay.vxlanid_list": "4097"}


def test_a_vni_of_a_removed_network_is_free_again() -> None:
    picture = run(snapshot(cluster(), network("a"), network("b", age_s=5)), allocate)
    picture = run(picture.without_object("network", "b").with_object(network("c")), allocate)
    new = picture.network("c")
    assert new is not None and new.mesh_vni == FIRST_VNI
    assert new.ipam.config == [IPAMConfig(subnet="10.0.0.0/24", gateway="10.0.0.1")]


def test_a_chosen_subnet_and_gateway_stay() -> None:
    chosen = [IPAMConfig(subnet="10.55.0.0/24", gateway="10.55.0.254")]
    a = network("a")
    a = msgspec.structs.replace(a, ipam=msgspec.structs.replace(a.ipam, config=chosen))
    picture = run(snapshot(cluster(), a, network("b", "10.55.1.0/24")), allocate)
    assert [n.ipam.config for n in (picture.network("a"), picture.network("b")) if n] == [
        chosen,
        [IPAMConfig(subnet="10.55.1.0/24", gateway="10.55.1.1")],
    ]


@pytest.mark.parametrize(
    ("pools", "size", "there", "node_addr", "expected"),
    [
        (["10.0.0.0/8"], 24, ["10.0.0.0/24"], "", "10.0.1.0/24"),
        (["10.0.0.0/8"], 24, ["10.0.0.128/25"], "", "10.0.1.0/24"),
        (["10.0.0.0/8"], 24, ["10.0.0.0/16"], "", "10.1.0.0/24"),
        (["10.0.0.0/8"], 24, ["10.0.0.0/24", "10.0.2.0/24"], "", "10.0.1.0/24"),
        (["10.0.0.0/8"], 20, ["10.0.5.0/24"], "", "10.0.16.0/20"),
        (["10.0.0.0/8"], 24, [], "10.0.0.7", "10.0.1.0/24"),
        (["10.0.0.0/24", "10.9.0.0/16"], 24, ["10.0.0.0/24"], "", "10.9.0.0/24"),
        (["10.0.0.0/28", "10.9.0.0/16"], 24, [], "", "10.9.0.0/24"),
        (["172.30.0.0/15"], 24, [], "", "172.31.0.0/24"),
        (["10.0.0.0/8"], 24, ["fd00::/64"], "", "10.0.0.0/24"),
    ],
)
def test_a_subnet_overlaps_nothing(pools: list[str], size: int, there: list[str], node_addr: str, expected: str) -> None:
    others = [msgspec.structs.replace(network(f"x{i}", subnet, age_s=9), enable_ipv6=":" in subnet) for i, subnet in enumerate(there)]
    picture = run(snapshot(cluster(pools, size), node("n", addr=node_addr or "203.0.113.1"), *others, network("a")), allocate)
    assert subnets(picture)["a"] == [expected]


def test_no_subnet_left_is_told_to_the_tasks_and_mends_itself() -> None:
    s = service("s", networks=["b"])
    full = snapshot(cluster(["10.0.0.0/24"]), network("a", age_s=1), network("b"), s, *tasks(s, 1))
    picture = run(full, allocate)
    waiting = picture.task("s-1")
    assert waiting is not None and waiting.status.state is TaskState.NEW
    assert waiting.status.err.startswith("could not find an available, non-overlapping IPv4 address pool among the defaults")
    picture = run(picture.without_object("network", "a"), allocate)
    done = picture.task("s-1")
    assert done is not None and done.status.state is TaskState.PENDING and done.status.err == ""


def test_ipv6_gets_a_private_subnet_and_tasks_an_address_of_each_family() -> None:
    s = service("s", networks=["a"])
    picture = settled(snapshot(cluster(), network("a", enable_ipv6=True), node("n"), s, *tasks(s, 2)))
    four, six = (ipaddress.ip_network(subnet) for subnet in subnets(picture)["a"])
    assert (four.version, six.version) == (4, 6)
    assert six.is_private and six.prefixlen == 64 and six.network_address.packed[0] == 0xFD
    one = picture.task("s-1")
    assert one is not None and one.networks_attachments is not None
    first, second = (ipaddress.ip_interface(a) for a in one.networks_attachments[0].addresses or ())
    assert first.network == four and second.network == six
    found = addresses(picture, "a")
    assert len(found) == len(set(found)) == 2 * 3 + 1


# ---- services ------------------------------------------------------------------------------------------------------------------


def test_a_service_gets_a_vip_a_network_and_one_on_ingress_if_it_publishes() -> None:
    s = service("s", networks=["a", "b"], ports=[port(80, 8080)])
    picture = run(snapshot(cluster(), network("ing", ingress=True, age_s=9), network("a", age_s=2), network("b", age_s=1), s), allocate)
    got = picture.service("s")
    assert got is not None
    assert got.endpoint.spec == s.spec.endpoint_spec
    assert got.endpoint.ports == [port(80, 8080)]
    assert [(vip.network_id, vip.addr) for vip in got.endpoint.virtual_ips or ()] == [
        ("ing", "10.0.0.2/24"),
        ("a", "10.0.1.2/24"),
        ("b", "10.0.2.2/24"),
    ]
    assert picture.claim("port/tcp/8080") == Claim(id="port/tcp/8080", owner="s")


def test_dnsrr_has_no_vip_but_may_publish() -> None:
    s = service("s", networks=["a"], ports=[port(80)], mode="dnsrr")
    picture = run(snapshot(cluster(), network("ing", ingress=True), network("a"), s, *tasks(s, 1)), allocate)
    got, its_task = picture.service("s"), picture.task("s-1")
    assert got is not None and got.endpoint.virtual_ips is None and got.endpoint.ports == [port(80, 30000)]
    assert its_task is not None
    assert [a.network.id for a in its_task.networks_attachments or ()] == ["ing", "a"]
    assert its_task.mesh_endpoint_ports == [port(80, 30000)]


def test_a_service_without_networks_and_ports_is_left_alone() -> None:
    s = msgspec.structs.replace(service("s"), spec=msgspec.structs.replace(service("s").spec, endpoint_spec=None))
    assert allocate(snapshot(cluster(), s), context()).steps == []


def updated(picture: Snapshot, new: Service) -> Snapshot:
    old = picture.service(new.id)
    assert old is not None
    return picture.with_object(msgspec.structs.replace(old, spec=new.spec))


def test_update_keeps_what_stays_and_frees_what_goes() -> None:
    start = snapshot(cluster(), network("ing", ingress=True, age_s=9), network("a", age_s=2), network("b", age_s=1))
    picture = run(start.with_object(service("s", networks=["a"], ports=[port(80), port(81, 8081)])), allocate)
    before = picture.service("s")
    assert before is not None
    # one port less, one network more; the dynamic port and both VIPs stay
    picture = run(updated(picture, service("s", networks=["a", "b"], ports=[port(80)])), allocate)
    after = picture.service("s")
    assert after is not None
    assert after.endpoint.ports == [port(80, 30000)]
    assert (after.endpoint.virtual_ips or [])[:2] == before.endpoint.virtual_ips
    assert [vip.network_id for vip in after.endpoint.virtual_ips or ()] == ["ing", "a", "b"]
    assert sorted(claim.id for claim in picture.all(Claim)) == ["port/tcp/30000"]
    # to dnsrr without ports: nothing is left of them
    picture = run(updated(picture, service("s", networks=["a"], mode="dnsrr")), allocate)
    last = picture.service("s")
    assert last is not None and last.endpoint == Endpoint(spec=service("s", mode="dnsrr").spec.endpoint_spec)
    assert list(picture.all(Claim)) == []


def test_claims_of_a_removed_service_go_and_no_others() -> None:
    picture = run(snapshot(cluster(), network("ing", ingress=True), service("s", ports=[port(80, 8080)])), allocate)
    picture = picture.with_object(Claim(id="service/other", owner="gone"))
    picture = run(picture.without_object("service", "s"), allocate)
    assert [claim.id for claim in picture.all(Claim)] == ["service/other"]


def test_a_taken_port_is_told_to_the_tasks() -> None:
    one, two = service("one", ports=[port(80, 8080)]), service("two", ports=[port(80, 8080)])
    picture = run(snapshot(cluster(), network("ing", ingress=True), one, two, *tasks(two, 1)), allocate)
    waiting = picture.task("two-1")
    assert waiting is not None and waiting.status.state is TaskState.NEW
    assert waiting.status.err == "port '8080' is already in use by service 'one' (one) as an ingress port"
    picture = run(picture.without_object("service", "one"), allocate)
    done, claim = picture.task("two-1"), picture.claim("port/tcp/8080")
    assert done is not None and done.status.state is TaskState.PENDING
    assert claim is not None and claim.owner == "two"


def test_protocols_do_not_compete_and_dynamic_ports_avoid_named_ones() -> None:
    s = service("s", ports=[port(1), port(2), port(3, 30000), port(4, protocol="udp"), port(5, mode="host")])
    picture = run(snapshot(cluster(), network("ing", ingress=True), s), allocate)
    got = picture.service("s")
    assert got is not None
    assert [(p.protocol, p.published_port) for p in got.endpoint.ports or ()] == [
        ("tcp", 30001),
        ("tcp", 30002),
        ("tcp", 30000),
        ("udp", 30000),
        ("tcp", 0),
    ]
    assert len(list(picture.all(Claim))) == 4


def test_dynamic_ports_run_out_with_a_sentence() -> None:
    claims = [Claim(id=f"port/tcp/{number}", owner="big") for number in DYNAMIC_PORTS]
    big = service("big", ports=[port(1, number) for number in DYNAMIC_PORTS])
    s = service("s", ports=[port(80)])
    picture = run(snapshot(cluster(), network("ing", ingress=True), big, s, *tasks(s, 1), *claims), allocate)
    waiting = picture.task("s-1")
    assert waiting is not None and waiting.status.err == "no free tcp port is left between 30000 and 32767 to publish"


def test_without_ingress_network_a_publishing_service_waits() -> None:
    s = service("s", ports=[port(80)])
    picture = run(snapshot(cluster(), s, *tasks(s, 1)), allocate)
    waiting = picture.task("s-1")
    assert waiting is not None and waiting.status.err == "service needs ingress network, but no ingress network is present"
    picture = run(picture.with_object(network("ing", ingress=True)), allocate)
    done = picture.task("s-1")
    assert done is not None and done.status.state is TaskState.PENDING


# ---- tasks ---------------------------------------------------------------------------------------------------------------------


def test_tasks_become_pending_with_an_address_on_every_network() -> None:
    s = service("s", networks=["a"], ports=[port(80, 8080)])
    picture = run(snapshot(cluster(), network("ing", ingress=True, age_s=9), network("a"), s, *tasks(s, 2)), allocate)
    for one in picture.all(Task):
        assert one.status.state is TaskState.PENDING
        assert one.status.message == "pending task scheduling"
    first = picture.task("s-1")
    assert first is not None
    assert [(a.network.id, a.addresses) for a in first.networks_attachments or ()] == [("ing", ["10.0.0.3/24"]), ("a", ["10.0.1.3/24"])]


@pytest.mark.parametrize("target", ["host", "bridge", "none"])
def test_networks_of_the_node_itself_need_nothing(target: str) -> None:
    s = service("s", networks=[target])
    done = run(snapshot(cluster(), s, *tasks(s, 1)), allocate).task("s-1")
    assert done is not None and done.status.state is TaskState.PENDING and done.networks_attachments is None


def test_an_unknown_network_is_told() -> None:
    s = service("s", networks=["nope"])
    waiting = run(snapshot(cluster(), s, *tasks(s, 1)), allocate).task("s-1")
    assert waiting is not None and waiting.status.err == "network nope not found"


@pytest.mark.parametrize("desired", [TaskState.SHUTDOWN, TaskState.REMOVE])
def test_unwanted_tasks_get_nothing(desired: TaskState) -> None:
    s = service("s", networks=["a"])
    picture = run(snapshot(cluster(), network("a", "10.1.0.0/24"), s), allocate)
    picture = picture.with_object(task(s, 1, desired=desired))
    assert allocate(picture, context()).steps == []


def test_exhaustion_is_told_and_ends_when_an_address_is_free() -> None:
    # 6 addresses: gateway, VIP, and of the other four one is kept for the only node
    s = service("s", networks=["a"])
    picture = settled(snapshot(cluster(), network("a", "10.1.0.0/29"), node("n"), s, *tasks(s, 5)))
    states = [one.status.state for slot in range(1, 6) if (one := picture.task(f"s-{slot}"))]
    assert states == [TaskState.ASSIGNED] * 3 + [TaskState.NEW] * 2
    waiting = picture.task("s-5")
    # the gateway is in use as well
    assert waiting is not None and waiting.status.err == "pool exhausted 6/6 of network a"
    assert len(addresses(picture, "a")) == 5
    picture = with_state(picture, "s-2", TaskState.FAILED)
    picture = settled(picture)
    fourth, fifth = picture.task("s-4"), picture.task("s-5")
    assert fourth is not None and fourth.status.state is TaskState.ASSIGNED
    assert fifth is not None and fifth.status.err == "pool exhausted 6/6 of network a"


def test_a_waiting_task_takes_nothing_from_other_networks() -> None:
    both, other = service("both", networks=["big", "tiny"]), service("other", networks=["tiny"])
    picture = snapshot(cluster(), network("big", "10.1.0.0/28"), network("tiny", "10.2.0.0/29"), both, other)
    picture = run(picture.with_object(service("third", networks=["big"])), allocate)
    for one in (*tasks(other, 4, age_s=9), *tasks(both, 20, age_s=5), *tasks(service("third", networks=["big"]), 10)):
        picture = picture.with_object(one)
    picture = run(picture, allocate)
    third = [one for one in picture.tasks_of_service("third") if one.status.state is TaskState.PENDING]
    assert len(third) == 10


def test_addresses_are_not_reused_at_once() -> None:
    s = service("s", networks=["a"])
    picture = settled(snapshot(cluster(), network("a", "10.1.0.0/24"), node("n"), s, *tasks(s, 3, age_s=60)))
    seen = {address for one in picture.all(Task) for a in one.networks_attachments or () for address in a.addresses or ()}
    for number in range(4, 40):
        # the youngest ends, a new one comes: it never gets an address that was in use before
        picture = with_state(picture, f"s-{number - 1}", TaskState.FAILED)
        picture = settled(picture.with_object(task(s, number, age_s=60 - number)))
        one = picture.task(f"s-{number}")
        assert one is not None and one.networks_attachments is not None
        (address,) = one.networks_attachments[0].addresses or ()
        assert address not in seen
        seen.add(address)


def test_history_gives_way_when_the_pool_is_full() -> None:
    s = service("s", networks=["a"])
    picture = settled(snapshot(cluster(), network("a", "10.1.0.0/29"), node("n"), s, *tasks(s, 3)))
    for number in range(4, 12):
        picture = with_state(picture, f"s-{number - 3}", TaskState.FAILED)
        picture = settled(picture.with_object(task(s, number)))
        one = picture.task(f"s-{number}")
        assert one is not None and one.status.state is TaskState.ASSIGNED


# ---- nodes ---------------------------------------------------------------------------------------------------------------------


def attached(picture: Snapshot, node_id: str) -> list[str]:
    one = picture.node(node_id)
    assert one is not None
    return [attachment.network_id for attachment in one.mesh_attachments or ()]


def test_every_node_is_on_ingress_and_on_a_network_only_with_its_tasks() -> None:
    s = service("s", networks=["a"])
    picture = settled(
        snapshot(cluster(), network("ing", ingress=True), network("a"), node("n1"), node("n2", state="down"), s, *tasks(s, 1))
    )
    assert attached(picture, "n1") == ["ing", "a"]
    assert attached(picture, "n2") == ["ing"]


def test_a_node_keeps_its_address_while_its_last_task_is_fresh_in_memory() -> None:
    s = service("s", networks=["a"])
    picture = settled(snapshot(cluster(), network("a"), node("n"), s, *tasks(s, 1)))
    picture = with_state(picture, "s-1", TaskState.FAILED)
    decision = allocate(picture, context())
    assert decision.steps == [] and decision.wakeup == NOW + LINGER
    later = run(picture, allocate, now=NOW + LINGER)
    assert attached(later, "n") == []
    # a clock that is ahead keeps nothing
    ahead = with_state(picture, "s-1", TaskState.FAILED, NOW + timedelta(days=1))
    assert attached(run(ahead, allocate), "n") == []
    # and a task that is forgotten holds nothing
    assert attached(run(picture.without_object("task", "s-1"), allocate), "n") == []


def test_a_missing_node_address_is_made_good() -> None:
    s = service("s", networks=["a"])
    picture = settled(snapshot(cluster(), network("a"), node("n"), s, *tasks(s, 1)))
    one = picture.node("n")
    assert one is not None
    picture = run(picture.with_object(msgspec.structs.replace(one, mesh_attachments=None)), allocate)
    assert attached(picture, "n") == ["a"]
    assert len(addresses(picture, "a")) == len(set(addresses(picture, "a"))) == 3


# ---- properties ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix_length", [24, 26, 28, 29, 30, 31, 32])
def test_a_pool_gives_each_address_once_and_exactly_its_size(prefix_length: int) -> None:
    pool = SubnetPool(IPAMConfig(subnet=f"10.3.0.0/{prefix_length}", gateway="10.3.0.1"))
    given_out = []
    while address := pool.take():
        given_out.append(ipaddress.ip_interface(address))
    usable = max(0, 2 ** (32 - prefix_length) - 2)
    assert len(set(given_out)) == len(given_out) == max(0, usable - 1)
    assert all(a.network == ipaddress.ip_network(f"10.3.0.0/{prefix_length}") for a in given_out)
    assert pool.free == 0 and pool.used == pool.size == usable


def test_a_pool_stays_in_its_range_and_off_auxiliary_addresses() -> None:
    config = IPAMConfig(subnet="10.3.0.0/24", ip_range="10.3.0.8/29", gateway="10.3.0.1", auxiliary_addresses={"r": "10.3.0.9"})
    pool = SubnetPool(config)
    given_out = []
    while address := pool.take():
        given_out.append(address)
    assert given_out == [f"10.3.0.{last}/24" for last in (8, *range(10, 16))]


def test_a_pool_prefers_addresses_that_history_does_not_show() -> None:
    pool = SubnetPool(IPAMConfig(subnet="10.3.0.0/29", gateway="10.3.0.1"))
    pool.remember(int(ipaddress.ip_address("10.3.0.2")))
    pool.remember(int(ipaddress.ip_address("10.3.0.4")))
    pool.start_after(int(ipaddress.ip_address("10.3.0.4")))
    assert [pool.take() for _ in range(6)] == [*(f"10.3.0.{last}/29" for last in (5, 6, 3, 4, 2)), None]


def test_a_dynamic_port_that_another_service_claims_by_now_is_chosen_anew() -> None:
    s = service("s", ports=[port(80)])
    had = msgspec.structs.replace(s, endpoint=Endpoint(spec=s.spec.endpoint_spec, ports=[port(80, 30000)]))
    other = service("other", ports=[port(80, 30000)])
    claim = Claim(id="port/tcp/30000", owner="other")
    got = run(snapshot(cluster(), network("ing", ingress=True), had, other, claim), allocate).service("s")
    assert got is not None and got.endpoint.ports == [port(80, 30001)]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("service"), st.integers(0, 3), st.sampled_from([(), ("a",), ("a", "b")]), st.booleans()),
        st.tuples(st.just("task"), st.integers(0, 3)),
        st.tuples(st.just("end"), st.integers(0, 30)),
        st.tuples(st.just("forget"), st.integers(0, 30)),
        st.tuples(st.just("remove"), st.integers(0, 3)),
        st.tuples(st.just("node"), st.integers(0, 4)),
        st.tuples(st.just("wait"), st.integers(0, 60)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
@example([*(("service", number, ("a",), False) for number in range(3)), *[("task", 0)] * 3, ("node", 1), ("forget", 0)])
def test_nothing_is_ever_given_twice(actions: list[tuple[object, ...]]) -> None:
    start = (cluster(), network("ing", "10.9.0.0/27", ingress=True), network("a", "10.1.0.0/29"), network("b", "10.2.0.0/28"))
    picture = snapshot(*start, node("n0"))
    now, count = NOW, 0
    for action in actions:
        match action:
            case ("service", int(number), tuple(networks), bool(publishes)):
                new = service(f"s{number}", networks=networks, ports=[port(80), port(81, 8000)] if publishes else [])
                old = picture.service(new.id)
                picture = picture.with_object(msgspec.structs.replace(old, spec=new.spec) if old else new)
            case ("task", int(number)) if of := picture.service(f"s{number}"):
                count += 1
                picture = picture.with_object(msgspec.structs.replace(task(of, count), created_at=now))
            case ("end" | "forget" as what, int(number)) if everything := sorted(one.id for one in picture.all(Task)):
                victim = everything[number % len(everything)]
                ended = with_state(picture, victim, TaskState.FAILED, now)
                picture = ended if what == "end" else picture.without_object("task", victim)
            case ("remove", int(number)):
                picture = picture.without_object("service", f"s{number}")
            case ("node", int(number)):
                picture = picture.with_object(picture.node(f"n{number}") or node(f"n{number}"))
            case ("wait", int(seconds)):
                now += timedelta(seconds=seconds)
        picture = settled(picture, now)
        for network_id in ("ing", "a", "b"):
            found = addresses(picture, network_id)
            assert len(found) == len(set(found)), f"twice on {network_id}: {sorted(found)}"
        published = [
            (p.protocol, p.published_port) for s in picture.all(Service) for p in s.endpoint.ports or () if p.publish_mode == "ingress"
        ]
        assert len(published) == len(set(published))
        assert {f"port/{protocol}/{number}" for protocol, number in published} <= {claim.id for claim in picture.all(Claim)}
        for one in picture.all(Task):
            if one.status.state is TaskState.ASSIGNED:
                member = picture.node(one.node_id)
                assert member is not None
                on = {attachment.network_id for attachment in member.mesh_attachments or ()}
                assert {attachment.network.id for attachment in one.networks_attachments or ()} <= on


def test_any_prefix_of_the_steps_may_be_all_that_happens() -> None:
    """A leader may die between two steps: the next one goes on from there and ends the same way."""
    s = service("s", networks=["a"], ports=[port(80), port(81, 8081)])
    begin = snapshot(cluster(), network("ing", ingress=True, age_s=3), network("a"), node("n1"), node("n2"), s, *tasks(s, 3))
    allocation = allocate(begin, context()).steps
    placing = schedule(applied(begin, allocation), context()).steps
    steps = [*allocation, *placing]
    for length in range(len(steps) + 1):
        picture = settled(applied(begin, steps[:length]))
        for network_id in ("ing", "a"):
            found = addresses(picture, network_id)
            assert len(found) == len(set(found)) == 1 + 3 + 2
        assert all(one.status.state is TaskState.ASSIGNED for one in picture.all(Task))


def test_a_hundred_vips_and_nodes_never_meet() -> None:
    services = [service(f"s{i}", networks=["a"]) for i in range(100)]
    nodes = [node(f"n{i}") for i in range(20)]
    picture = snapshot(cluster(), network("a", "10.1.0.0/24"), *nodes, *services, *(task(s, 1) for s in services))
    picture = settled(picture)
    found = addresses(picture, "a")
    assert len(found) == len(set(found)) == 100 + 100 + 20
    assert NodeAttachment(network_id="a", addr="10.1.0.1/24") not in [a for n in picture.all(Node) for a in n.mesh_attachments or ()]
