"""The assignment: which rows exist when, row by row; that a node learns nothing that is not its business; that events tell what changed."""

from __future__ import annotations

import base64
import itertools
from datetime import timedelta
from typing import TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.dispatcher.assignment import affected_networks, assignment, diff, encode, network_scope_rows
from orchestrator.dispatcher.messages import ConfigRow, EndpointRow, NetworkRow, NodeRow, Row, SecretRow, ServiceRow, TaskRow
from orchestrator.dns_options import DnsOptions
from orchestrator.model import (
    STATE_ORDER,
    Cluster,
    Config,
    ConfigReference,
    ContainerSpec,
    KeyChange,
    Network,
    Node,
    NodeEncryption,
    Secret,
    SecretReference,
    SecretSpec,
    Service,
    Task,
    TaskState,
    TaskStatus,
    terminal,
)
from orchestrator.store.base import Event
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.clusters import NOW, cluster, network, node, port, service, settled, snapshot, task, tasks, with_state


def decrypt(secret: Secret) -> bytes:
    return b"clear " + secret.mesh_ciphertext


def secret(id: str) -> Secret:
    return Secret(id=id, spec=SecretSpec(name=f"name-{id}"), mesh_ciphertext=id.encode())


def config(id: str) -> Config:
    return Config(id=id, spec=SecretSpec(name=f"name-{id}", data=base64.b64encode(id.encode()).decode()))


def using(of: Service, *, secrets: tuple[str, ...] = (), configs: tuple[str, ...] = (), **fields: object) -> Service:
    container = ContainerSpec(
        secrets=[SecretReference(secret_id=id) for id in secrets],
        configs=[ConfigReference(config_id=id) for id in configs],
        **fields,  # type: ignore[arg-type]
    )
    template = msgspec.structs.replace(of.spec.task_template, container_spec=container)
    return msgspec.structs.replace(of, spec=msgspec.structs.replace(of.spec, task_template=template))


R = TypeVar("R", bound=Row)


def of_kind(rows: dict[str, Row], kind: type[R]) -> list[R]:
    return [row for row in rows.values() if isinstance(row, kind)]


def placed(*extra: object) -> Snapshot:
    """Two nodes, one task of `web` on each; `web` is on network a (alias www) and publishes 8080."""
    web = service(
        "web",
        networks=["a"],
        ports=[port(80, 8080), port(81, 9, mode="host")],
        aliases=["www"],
        labels={"com.docker.stack.namespace": "shop"},
    )
    return settled(
        snapshot(
            cluster(),
            network("ing", ingress=True, age_s=9),
            network("a", age_s=5),
            node("n1", addr="192.168.7.1"),
            node("n2", addr="192.168.7.2"),
            web,
            *tasks(web, 2),
            *extra,  # type: ignore[arg-type]
        )
    )


def changed(picture: Snapshot, task_id: str, **fields: object) -> Snapshot:
    old = picture.task(task_id)
    assert old is not None
    return picture.with_object(msgspec.structs.replace(old, **fields))


def web_endpoint(slot: int, address: str) -> EndpointRow:
    return EndpointRow(
        task_id=f"web-{slot}",
        network_id="a",
        service_id="web",
        node_id=f"n{slot}",
        name=f"web.{slot}.web-{slot}",
        slot=slot,
        addresses=(address,),
        aliases=("www",),
    )


# ---- row by row ----------------------------------------------------------------------------------------------------------------


def test_the_scope_of_a_network_in_full() -> None:
    rows = network_scope_rows(placed(), "a")
    assert rows == {
        "network/a": NetworkRow(id="a", name="a", vni=4098, subnets=("10.0.1.0/24",), lb_addresses={"n1": "10.0.1.5", "n2": "10.0.1.6"}),
        "node/n1": NodeRow(id="n1", hostname="host-n1", data_addr="192.168.7.1"),
        "node/n2": NodeRow(id="n2", hostname="host-n2", data_addr="192.168.7.2"),
        "endpoint/a/web-1": EndpointRow(
            task_id="web-1",
            network_id="a",
            service_id="web",
            node_id="n1",
            name="web.1.web-1",
            slot=1,
            addresses=("10.0.1.3",),
            aliases=("www",),
        ),
        "endpoint/a/web-2": EndpointRow(
            task_id="web-2",
            network_id="a",
            service_id="web",
            node_id="n2",
            name="web.2.web-2",
            slot=2,
            addresses=("10.0.1.4",),
            aliases=("www",),
        ),
        "service/a/web": ServiceRow(id="web", network_id="a", name="web", aliases=("www",), stack="shop", vips=("10.0.1.2",)),
    }
    assert all(row.key == key for key, row in rows.items())


def test_published_ports_are_on_the_ingress_row_only_and_host_ports_nowhere() -> None:
    rows = network_scope_rows(placed(), "ing")
    (row,) = of_kind(rows, ServiceRow)
    assert row.ports == (port(80, 8080),) and row.vips and row.aliases == ()
    (net,) = of_kind(rows, NetworkRow)
    assert net.ingress and set(net.lb_addresses) == {"n1", "n2"}


def test_dnsrr_has_rows_without_vips_on_its_network_and_on_ingress() -> None:
    s = service("rr", networks=["a"], ports=[port(80, 9000)], mode="dnsrr")
    picture = placed(s, *tasks(s, 1))
    for network_id, ports in (("a", ()), ("ing", (port(80, 9000),))):
        row = network_scope_rows(picture, network_id)[f"service/{network_id}/rr"]
        assert isinstance(row, ServiceRow) and row.vips == () and row.ports == ports


def test_a_vip_service_has_no_row_before_its_vip() -> None:
    picture = placed().with_object(service("new", networks=["a"]))
    assert "service/a/new" not in network_scope_rows(picture, "a")


def test_a_network_has_no_scope_before_it_is_allocated() -> None:
    assert network_scope_rows(snapshot(network("a")), "a") == {}
    assert network_scope_rows(snapshot(), "a") == {}


def test_the_cluster_s_data_path_port_is_on_every_network() -> None:
    for chosen, shown in ((5789, 5789), (0, 4789)):
        row = network_scope_rows(placed().with_object(Cluster(id="cluster", data_path_port=chosen)), "a")["network/a"]
        assert isinstance(row, NetworkRow) and row.vxlan_port == shown


def test_options_and_internal_are_passed_on() -> None:
    picture = placed()
    old = picture.network("a")
    assert old is not None
    options = {**(old.options or {}), "com.docker.network.driver.mtu": "1400", "meshd.dns.upstreams": "192.0.2.1"}
    new = msgspec.structs.replace(old, internal=True, options=options)
    row = network_scope_rows(picture.with_object(new), "a")["network/a"]
    assert isinstance(row, NetworkRow) and row.internal and row.mtu == 1400
    assert row.dns == DnsOptions(upstreams=("192.0.2.1",))
    # Stored before it was refused: then nobody outside is asked.
    nonsense = msgspec.structs.replace(old, options={"meshd.dns.upstreams": "nonsense"})
    row = network_scope_rows(picture.with_object(nonsense), "a")["network/a"]
    assert isinstance(row, NetworkRow) and row.dns == DnsOptions(forward=False)


@pytest.mark.parametrize(("state", "desired"), list(itertools.product(TaskState, TaskState)))
def test_when_an_endpoint_is_there_serves_or_drains(state: TaskState, desired: TaskState) -> None:
    picture = changed(placed(), "web-1", status=TaskStatus(state=state), desired_state=desired)
    row = network_scope_rows(picture, "a").get("endpoint/a/web-1")
    there = STATE_ORDER[state] >= STATE_ORDER[TaskState.ASSIGNED] and not terminal(state)
    assert (row is not None) is there
    if isinstance(row, EndpointRow):
        assert row.serving is (state is TaskState.RUNNING and desired is TaskState.RUNNING)
        assert row.draining is (state is TaskState.RUNNING and not row.serving)


@pytest.mark.parametrize(("state", "serves"), [("ready", True), ("unknown", True), ("disconnected", True), ("down", False)])
def test_only_a_node_that_is_down_serves_nothing_but_its_rows_stay(state: str, serves: bool) -> None:
    picture = with_state(placed(), "web-1", TaskState.RUNNING)
    old = picture.node("n1")
    assert old is not None
    row = network_scope_rows(
        picture.with_object(msgspec.structs.replace(old, status=msgspec.structs.replace(old.status, state=state))), "a"
    )
    endpoint = row["endpoint/a/web-1"]
    assert isinstance(endpoint, EndpointRow) and endpoint.serving is serves
    assert "node/n1" in row


def test_a_removed_node_takes_its_endpoints_along() -> None:
    rows = network_scope_rows(placed().without_object("node", "n1"), "a")
    assert [row.task_id for row in of_kind(rows, EndpointRow)] == ["web-2"]
    assert [row.id for row in of_kind(rows, NodeRow)] == ["n2"]


def test_secrets_and_configs_of_tasks_that_have_not_ended() -> None:
    s = using(service("s"), secrets=("x", "y", "gone"), configs=("c", "gone"))
    picture = settled(snapshot(cluster(), node("n"), secret("x"), secret("y"), secret("z"), config("c"), config("d"), s, *tasks(s, 2)))
    rows = assignment(picture, "n", decrypt)
    assert of_kind(rows, SecretRow) == [SecretRow(id=id, name=f"name-{id}", data=f"clear {id}".encode()) for id in ("x", "y")]
    assert of_kind(rows, ConfigRow) == [ConfigRow(id="c", name="name-c", data=b"c")]
    for slot in (1, 2):
        picture = with_state(picture, f"s-{slot}", TaskState.FAILED)
    rows = assignment(picture, "n", decrypt)
    assert len(of_kind(rows, TaskRow)) == 2 and not of_kind(rows, SecretRow) and not of_kind(rows, ConfigRow)


def test_a_config_that_is_not_base64_is_left_out() -> None:
    s = using(service("s"), configs=("c",))
    broken = msgspec.structs.replace(config("c"), spec=SecretSpec(name="c", data="%%%"))
    assert not of_kind(assignment(settled(snapshot(node("n"), broken, s, *tasks(s, 1))), "n", decrypt), ConfigRow)


def test_tasks_arrive_with_their_templates_expanded() -> None:
    s = using(service("s"), hostname="{{.Service.Name}}-{{.Task.Slot}}-{{.Node.Hostname}}")
    picture = settled(snapshot(node("n"), s, *tasks(s, 1)))
    (row,) = of_kind(assignment(picture, "n", decrypt), TaskRow)
    assert row.task.spec.container_spec is not None and row.task.spec.container_spec.hostname == "s-1-host-n"
    stored = picture.task("s-1")
    assert stored is not None and row.task == msgspec.structs.replace(stored, spec=row.task.spec)


@pytest.mark.parametrize("state", list(TaskState))
def test_a_task_is_told_from_assigned_on(state: TaskState) -> None:
    s = service("s")
    rows = assignment(snapshot(node("n"), s, task(s, 1, node_id="n", state=state)), "n", decrypt)
    assert bool(rows) is (STATE_ORDER[state] >= STATE_ORDER[TaskState.ASSIGNED])


def test_unknown_nodes_know_nothing() -> None:
    assert assignment(placed(), "nobody", decrypt) == {}


# ---- the hostile agent ---------------------------------------------------------------------------------------------------------

SERVICES = st.lists(
    st.tuples(st.sampled_from([(), ("a",), ("b",), ("a", "b")]), st.sets(st.sampled_from("xyz")), st.integers(0, 4), st.booleans()),
    min_size=1,
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), SERVICES, st.lists(st.tuples(st.integers(0, 15), st.sampled_from(list(TaskState)))))
def test_a_node_is_told_nothing_that_is_not_its_business(
    node_count: int, services: list[tuple[tuple[str, ...], set[str], int, bool]], moves: list[tuple[int, TaskState]]
) -> None:
    picture = snapshot(cluster(), network("ing", ingress=True), network("a"), network("b"), *(secret(id) for id in "xyz"))
    for number in range(node_count):
        picture = picture.with_object(node(f"n{number}", addr=f"192.168.7.{number + 1}"))
    for number, (networks, secrets, count, publishes) in enumerate(services):
        s = using(
            service(f"s{number}", networks=networks, ports=[port(80)] if publishes else []),
            secrets=tuple(sorted(secrets)),
            env=[f"PASSWORD=of-s{number}"],
        )
        for obj in (s, *tasks(s, count)):
            picture = picture.with_object(obj)
    picture = settled(picture)
    everything = sorted(one.id for one in picture.all(Task))
    for index, state in moves:
        if everything:
            picture = with_state(picture, everything[index % len(everything)], state)
    picture = settled(picture, NOW + timedelta(minutes=5))

    for member in picture.all(Node):
        rows = assignment(picture, member.id, decrypt)
        own = picture.tasks_of_node(member.id)
        assert {row.task.id for row in of_kind(rows, TaskRow)} <= {one.id for one in own}
        live = [one for one in own if not terminal(one.status.state)]
        named = {ref.secret_id for one in live if one.spec.container_spec for ref in one.spec.container_spec.secrets or ()}
        assert {row.id for row in of_kind(rows, SecretRow)} <= named
        networks = {a.network.id for one in live for a in one.networks_attachments or ()} | {"ing"}
        for row in rows.values():
            assert not isinstance(row, EndpointRow | ServiceRow) or row.network_id in networks
            assert not isinstance(row, NetworkRow) or row.id in networks
        # whatever form it takes: nothing of another node's environment or secrets is in the bytes
        sent = b"".join(encode(row) for row in rows.values())
        foreign = {one.service_id for one in picture.all(Task)} - {one.service_id for one in own}
        assert not any(f"of-{service_id}".encode() in sent for service_id in foreign)
        assert not any(f"clear {id}".encode() in sent for id in set("xyz") - named)


# ---- what changed --------------------------------------------------------------------------------------------------------------


def test_diff_leads_from_old_to_new_for_all_small_tables() -> None:
    tables = [
        {key: value for key, value in zip("abc", values, strict=True) if value} for values in itertools.product([b"", b"1", b"2"], repeat=3)
    ]
    for old, new in itertools.product(tables, repeat=2):
        put, removed = diff(old, new)
        assert {key: value for key, value in {**old, **put}.items() if key not in removed} == new
        assert all(old.get(key) != value for key, value in put.items()) and set(removed) == old.keys() - new.keys()
        assert list(put) == sorted(put) and list(removed) == sorted(removed)


def events_between(before: Snapshot, after: Snapshot) -> list[Event]:
    return [
        Event(kind, id, 2, before.raw(kind, id), after.raw(kind, id))
        for kind in ("node", "service", "task", "network", "secret", "config")
        for id in sorted(set(before.tables.get(kind, {})) | set(after.tables.get(kind, {})))
        if before.raw(kind, id) != after.raw(kind, id)
    ]


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("state"), st.integers(0, 5), st.sampled_from(list(TaskState))),
        st.tuples(st.just("desired"), st.integers(0, 5), st.sampled_from([TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE])),
        st.tuples(st.just("node"), st.integers(0, 2), st.sampled_from(["ready", "down", "gone"])),
        st.tuples(st.just("service"), st.integers(0, 2), st.sampled_from([("a",), ("b",), ("a", "b"), None])),
        st.tuples(st.just("scale"), st.integers(0, 2), st.integers(3, 6)),
        st.tuples(st.just("network"), st.sampled_from(["a", "b"]), st.booleans()),
        st.tuples(st.just("address"), st.integers(0, 2), st.integers(1, 9)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(CHANGES)
def test_a_scope_that_events_do_not_name_has_not_changed(changes: list[tuple[object, ...]]) -> None:
    picture = snapshot(cluster(), network("ing", ingress=True), network("a"), network("b"))
    for number in range(3):
        s = service(
            f"s{number}", networks=["a", "b"][: number + 1], ports=[port(80)] if number == 2 else [], mode=("vip", "dnsrr")[number % 2]
        )
        for obj in (node(f"n{number}", addr=f"192.168.7.{number + 1}"), s, *tasks(s, 2)):
            picture = picture.with_object(obj)
    before = picture = settled(picture)
    for change in changes:
        everything = sorted(one.id for one in picture.all(Task))
        match change:
            case ("state", int(index), TaskState() as state) if everything:
                picture = with_state(picture, everything[index % len(everything)], state)
            case ("desired", int(index), TaskState() as desired) if everything:
                picture = changed(picture, everything[index % len(everything)], desired_state=desired)
            case ("node", int(index), "gone"):
                picture = picture.without_object("node", f"n{index}")
            case ("node", int(index), str(state)) if old := picture.node(f"n{index}"):
                picture = picture.with_object(msgspec.structs.replace(old, status=msgspec.structs.replace(old.status, state=state)))
            case ("address", int(index), int(last)) if old := picture.node(f"n{index}"):
                status = msgspec.structs.replace(old.status, addr=f"192.168.8.{last}")
                picture = picture.with_object(msgspec.structs.replace(old, status=status))
            case ("service", int(index), None):
                picture = picture.without_object("service", f"s{index}")
            case ("service", int(index), tuple(networks)) if was := picture.service(f"s{index}"):
                new = service(f"s{index}", networks=networks, aliases=["other"])
                picture = picture.with_object(msgspec.structs.replace(was, spec=new.spec))
            case ("scale", int(index), int(slot)) if was := picture.service(f"s{index}"):
                picture = picture.with_object(task(was, slot))
            case ("network", str(id), bool(internal)) if net := picture.network(id):
                picture = picture.with_object(msgspec.structs.replace(net, internal=internal))
        for after in (picture, settled(picture)):
            affected = affected_networks(after, events_between(before, after))
            for network_id in ("ing", "a", "b"):
                if network_scope_rows(before, network_id) != network_scope_rows(after, network_id):
                    assert network_id in affected
            before = after
        picture = before


def test_what_a_scope_shows_of_running_tasks_affects_it() -> None:
    picture = with_state(placed(), "web-1", TaskState.RUNNING)
    old, member = picture.task("web-1"), picture.node("n1")
    assert old is not None and member is not None
    for new in (
        msgspec.structs.replace(old, desired_state=TaskState.SHUTDOWN),
        msgspec.structs.replace(old, status=TaskStatus(state=TaskState.FAILED)),
        msgspec.structs.replace(member, status=msgspec.structs.replace(member.status, state="down")),
        msgspec.structs.replace(member, description=msgspec.structs.replace(member.description, mesh_data_addr="192.168.9.9")),
    ):
        after = picture.with_object(new)
        assert network_scope_rows(picture, "a") != network_scope_rows(after, "a")
        assert affected_networks(after, events_between(picture, after)) == {"a", "ing"}


def test_what_no_scope_shows_affects_none() -> None:
    picture = placed()
    old, member, web = picture.task("web-1"), picture.node("n1"), picture.service("web")
    assert old is not None and member is not None and web is not None
    for new in (
        msgspec.structs.replace(old, status=msgspec.structs.replace(old.status, timestamp=NOW + timedelta(hours=1)), mesh_released=True),
        msgspec.structs.replace(member, mesh_disconnected_since=NOW),
        msgspec.structs.replace(web, updated_at=NOW + timedelta(hours=1)),
    ):
        after = picture.with_object(new)
        assert affected_networks(after, events_between(picture, after)) == set()
    assert affected_networks(picture, events_between(snapshot(), picture)) == {one.id for one in picture.all(Network)}


def keyed(one: Node | None, own: NodeEncryption) -> Node:
    assert one is not None
    return msgspec.structs.replace(one, description=msgspec.structs.replace(one.description, mesh_encryption=own))


def test_keys_are_told_to_the_nodes_of_encrypted_networks_only() -> None:
    picture = placed()
    for id in ("n1", "n2"):
        picture = picture.with_object(keyed(picture.node(id), NodeEncryption(keys={"0": f"{id}0", "1": f"{id}1"})))
    secret = picture.network("a")
    assert secret is not None
    after = picture.with_object(msgspec.structs.replace(secret, mesh_encrypted=True))
    (row,) = of_kind(network_scope_rows(after, "a"), NetworkRow)
    assert row.keys == {"n1": {"0": "n10", "1": "n11"}, "n2": {"0": "n20", "1": "n21"}}
    (ingress,) = of_kind(network_scope_rows(after, "ing"), NetworkRow)
    assert ingress.keys is None and of_kind(network_scope_rows(picture, "a"), NetworkRow)[0].keys is None


def test_a_step_of_the_change_of_keys_and_new_keys_are_news() -> None:
    picture = placed()
    old = picture.cluster or Cluster(id="c")
    new = msgspec.structs.replace(old, mesh_keys=KeyChange(step=1))
    assert {"a", "ing"} <= affected_networks(picture.with_object(new), [Event("cluster", old.id, 9, old, new)])
    other = msgspec.structs.replace(old, data_path_port=1)
    assert affected_networks(picture, [Event("cluster", old.id, 9, old, other)]) == set()
    one = picture.node("n1")
    published = keyed(one, NodeEncryption(keys={"0": "k"}))
    assert "a" in affected_networks(picture.with_object(published), [Event("node", "n1", 9, one, published)])
    shown = keyed(one, NodeEncryption(keys={"0": "k"}, step=1))
    assert affected_networks(picture.with_object(shown), [Event("node", "n1", 9, published, shown)]) == set()
