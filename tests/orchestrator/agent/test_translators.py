"""Rows and containers as the states of mesh and dnsd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dnsd.model import DnsState, PortName, RouteSpec, ScopeSpec
from mesh.facts import Facts
from mesh.model import (
    Backend,
    Encryption,
    EncryptionPeer,
    HostPort,
    LocalEndpoint,
    NodeState,
    PublishedPort,
    RemoteEndpoint,
    Sandbox,
    VirtualService,
)
from mesh.render import Names, render
from orchestrator.agent.keyring import Keyring
from orchestrator.agent.names_state import dns_state
from orchestrator.agent.network_state import draining_addresses, node_state
from orchestrator.agent.rows import Rows
from orchestrator.agent.runtime import Container
from orchestrator.dispatcher.messages import ConfigRow, EndpointRow, NetworkRow, NodeRow, Row, SecretRow, ServiceRow, TaskRow
from orchestrator.dns_options import DnsOptions
from orchestrator.encryption import tunnel_address
from orchestrator.errors import ConfigError
from orchestrator.model import (
    ContainerSpec,
    DNSConfig,
    NetworkAttachment,
    NetworkAttachmentConfig,
    NetworkReference,
    PortConfig,
    Task,
    TaskSpec,
)

PORT = PortConfig(target_port=80, published_port=8080)


def task(id: str, slot: int, *addresses: tuple[str, str], **more: Any) -> Task:
    return msgspec.structs.replace(
        Task(
            id=id, service_id="web", slot=slot, node_id="n1", mesh_service_name="web",
            spec=TaskSpec(container_spec=ContainerSpec(image="i")),
            networks_attachments=[NetworkAttachment(network=NetworkReference(id=n), addresses=[a]) for n, a in addresses],
        ), **more,
    )  # fmt: skip


def keyed(id: str, *, step: int = 0, keys: dict[str, dict[str, str]]) -> NetworkRow:
    """An encrypted network of both nodes."""
    lb = {"n1": "10.0.9.2", "n2": "10.0.9.3"}
    return NetworkRow(id=id, name=id, vni=4100, subnets=("10.0.9.0/24",), lb_addresses=lb, keys_step=step, keys=keys)


def endpoint(task_id: str, network: str, address: str, node: str, **more: Any) -> EndpointRow:
    more = {"serving": True, **more}
    return EndpointRow(
        task_id=task_id, network_id=network, service_id="web", node_id=node, name=f"web.{task_id}", slot=1, addresses=(address,), **more
    )


ROWS: list[Row] = [
    NodeRow(id="n1", hostname="one", data_addr="192.0.2.1"),
    NodeRow(id="n2", hostname="two", data_addr="192.0.2.2"),
    NetworkRow(id="app", name="shop", vni=4097, subnets=("10.0.1.0/24",), lb_addresses={"n1": "10.0.1.2", "n2": "10.0.1.3"}),
    NetworkRow(id="ing", name="ingress", vni=4096, subnets=("10.0.0.0/24",), ingress=True,
               lb_addresses={"n1": "10.0.0.2", "n2": "10.0.0.3"}),
    ServiceRow(id="web", network_id="app", name="web", aliases=("www",), stack="st", vips=("10.0.1.10",)),
    ServiceRow(id="web", network_id="ing", name="web", vips=("10.0.0.10",), ports=(PORT,)),
    TaskRow(task=task("t1", 1, ("ing", "10.0.0.21/24"), ("app", "10.0.1.21/24"))),
    endpoint("t1", "app", "10.0.1.21", "n1", aliases=("www",)), endpoint("t1", "ing", "10.0.0.21", "n1"),
    endpoint("t2", "app", "10.0.1.22", "n2", aliases=("www",)), endpoint("t2", "ing", "10.0.0.22", "n2"),
]  # fmt: skip
RUNNING = Container("c1", "t1", "web.1.t1", "running", pid=77)


def rows(*more: Row) -> Rows:
    built = Rows()
    built.update(1, [*ROWS, *more], [], True)
    return built


def mesh(built: Rows, *containers: Container) -> NodeState:
    return node_state(built, {c.task_id: c for c in containers}, node_id="n1", data_addr="192.0.2.1")


def names(built: Rows, *containers: Container) -> DnsState:
    return dns_state(built, {c.task_id: c for c in containers}, node_id="n1")


def test_the_whole_picture() -> None:
    state = mesh(rows(), RUNNING)
    app, ingress = state.networks
    assert state.underlay == "192.0.2.1"
    assert (app.id, app.vni, app.lb_address, app.ingress) == ("app", 4097, "10.0.1.2", False)
    assert app.local == (LocalEndpoint(id="t1", address="10.0.1.21", netns="/proc/77/ns/net"),)
    assert app.remote == (RemoteEndpoint("10.0.1.22", "192.0.2.2"), RemoteEndpoint("10.0.1.3", "192.0.2.2", balancer=True))
    assert app.services == (VirtualService(vip="10.0.1.10", backends=(Backend("10.0.1.21"), Backend("10.0.1.22"))),)
    assert ingress.ingress
    assert state.published == (
        PublishedPort(protocol="tcp", published=8080, target=80, backends=(Backend("10.0.0.21"), Backend("10.0.0.22"))),
    )
    assert state.sandboxes == (Sandbox(id="t1", netns="/proc/77/ns/net"),)
    assert state.host_ports == ()


@pytest.mark.parametrize("container", [
    None, replace(RUNNING, pid=0), replace(RUNNING, state="exited", pid=0, exit_code=137), replace(RUNNING, state="created", pid=0),
])  # fmt: skip
def test_what_died_here_is_out_before_any_manager_knows(container: Container | None) -> None:
    there = [container] if container else []
    state, dns = mesh(rows(), *there), names(rows(), *there)
    assert state.sandboxes == ()
    assert state.networks[0].local == ()
    assert state.networks[0].services[0].backends == (Backend("10.0.1.22"),)
    assert state.published[0].backends == (Backend("10.0.0.22"),)
    lost = next(t for t in dns.zones[0].services[0].tasks if t.id == "t1")
    assert (lost.serving, lost.running, lost.left_out) == (False, False, "not running")
    assert dns.scopes == ()


@pytest.mark.parametrize(
    ("serving", "draining", "backends", "dns"),
    [
        (True, False, (Backend("10.0.1.22", 1),), (True, True)),
        (False, True, (Backend("10.0.1.22", 0),), (False, True)),
        (False, False, (), (False, False)),
    ],
)
def test_weights(serving: bool, draining: bool, backends: tuple[Backend, ...], dns: tuple[bool, bool]) -> None:
    built = rows(endpoint("t2", "app", "10.0.1.22", "n2", serving=serving, draining=draining))
    assert mesh(built, RUNNING).networks[0].services[0].backends == (Backend("10.0.1.21"), *backends)
    named = next(t for t in names(built, RUNNING).zones[0].services[0].tasks if t.id == "t2")
    assert (named.serving, named.running) == dns
    assert named.left_out == {(True, True): "", (False, True): "draining", (False, False): "not running"}[dns]


def test_unhealthy_here_gets_nothing_new_and_keeps_what_it_has() -> None:
    sick = replace(RUNNING, health="unhealthy")
    assert mesh(rows(), sick).networks[0].services[0].backends == (Backend("10.0.1.21", 0), Backend("10.0.1.22"))
    tasks = names(rows(), sick).zones[0].services[0].tasks
    assert [(t.serving, t.running, t.left_out) for t in tasks] == [(False, True, "unhealthy"), (True, True, "")]


def test_held_has_its_network_before_it_serves() -> None:
    built = rows(endpoint("t1", "app", "10.0.1.21", "n1", serving=False), endpoint("t1", "ing", "10.0.0.21", "n1", serving=False))
    state = mesh(built, replace(RUNNING, state="held"))
    assert [one.id for one in state.networks[0].local] == ["t1"]
    assert state.networks[0].services[0].backends == (Backend("10.0.1.22"),)
    assert [scope.id for scope in names(built, replace(RUNNING, state="held")).scopes] == ["t1"]


def test_the_tunnels_use_the_cluster_s_port() -> None:
    built = Rows()
    built.update(1, [msgspec.structs.replace(row, vxlan_port=5789) if isinstance(row, NetworkRow) else row for row in ROWS], [], True)
    assert mesh(built).vxlan_port == 5789
    assert mesh(Rows()).vxlan_port == 4789


def test_a_network_without_an_address_of_ours_is_not_there_yet() -> None:
    built = rows(NetworkRow(id="app", name="shop", vni=4097, subnets=("10.0.1.0/24",), lb_addresses={"n2": "10.0.1.3"}))
    assert [network.id for network in mesh(built, RUNNING).networks] == ["ing"]


def test_a_node_that_has_not_said_where_its_tunnels_end() -> None:
    built = rows()
    built.update(2, [], ["node/n2"], False)
    assert mesh(built, RUNNING).networks[0].remote == ()


def test_host_ports_internal_networks_and_host_network() -> None:
    port = PortConfig(protocol="udp", target_port=53, published_port=5353, publish_mode="host")
    built = rows(
        TaskRow(task=task("t1", 1, ("app", "10.0.1.21/24"), mesh_endpoint_ports=[port, PORT])),
        NetworkRow(id="app", name="shop", vni=4097, subnets=("10.0.1.0/24",), internal=True, lb_addresses={"n1": "10.0.1.2"}),
        TaskRow(task=task("t3", 3, spec=TaskSpec(networks=[NetworkAttachmentConfig(target="host")]))),
        TaskRow(task=task("t4", 4)),
    )
    state = mesh(built, RUNNING, Container("c3", "t3", "n", "running", pid=78), Container("c4", "t4", "n", "running", pid=79))
    assert state.host_ports == (HostPort(protocol="udp", published=5353, target=53, sandbox="t1"),)
    assert state.sandboxes == (Sandbox("t1", "/proc/77/ns/net", gateway=False), Sandbox("t4", "/proc/79/ns/net", gateway=True))


def test_names() -> None:
    (zone,), (scope,) = names(rows(), RUNNING).zones, names(rows(), RUNNING).scopes
    assert (zone.network, zone.name, zone.forward, zone.upstreams, zone.routes) == ("app", "shop", True, (), ())
    (service,) = zone.services
    assert (service.name, service.aliases, service.vips) == ("web", ("www",), ("10.0.1.10",))
    assert service.ports == (PortName(name="80", protocol="tcp", port=80),)
    assert [(t.id, t.name, t.aliases) for t in service.tasks] == [("t1", "web.t1", ()), ("t2", "web.t2", ())]
    assert scope == ScopeSpec(id="t1", netns="/proc/77/ns/net", networks=("app",), stack="st")


def test_what_a_network_says_about_names_outside() -> None:
    options = DnsOptions(forward=False, upstreams=("192.0.2.1",), routes=(RouteSpec(domain="corp", upstreams=("192.0.2.2",)),))
    network = NetworkRow(id="app", name="shop", vni=4097, subnets=("10.0.1.0/24",), lb_addresses={"n1": "10.0.1.2"}, dns=options)
    (zone,) = names(rows(network), RUNNING).zones
    assert (zone.forward, zone.upstreams, zone.routes) == (options.forward, options.upstreams, options.routes)


def test_the_specs_nameservers_are_forwarded_to() -> None:
    spec = TaskSpec(container_spec=ContainerSpec(image="i", dns_config=DNSConfig(nameservers=["9.9.9.9"])))
    (scope,) = names(rows(TaskRow(task=task("t1", 1, ("app", "10.0.1.21/24"), spec=spec))), RUNNING).scopes
    assert scope.upstreams == ("9.9.9.9",)


def test_an_endpoint_without_a_service_is_a_container() -> None:
    built = rows()
    built.update(2, [], ["service/app/web"], False)
    (zone,) = names(built, RUNNING).zones
    assert zone.services == ()
    assert [(c.id, c.aliases) for c in zone.containers] == [("t1", ("www",)), ("t2", ("www",))]


def test_draining_addresses() -> None:
    built = rows(endpoint("t2", "app", "10.0.1.22", "n2", serving=False, draining=True))
    assert draining_addresses(built) == {("app", "10.0.1.22"): "t2"}


def test_order_of_rows_never_matters() -> None:
    backwards = Rows()
    backwards.update(1, list(reversed(ROWS)), [], True)
    assert mesh(backwards, RUNNING) == mesh(rows(), RUNNING)
    assert names(backwards, RUNNING) == names(rows(), RUNNING)


def test_rows_come_and_go_by_key() -> None:
    every = [*ROWS, SecretRow(id="s", name="pw", data=b"1"), ConfigRow(id="c", name="conf", data=b"2")]
    built = Rows()
    built.update(1, every, [], True)
    assert {id: row.data for id, row in built.files.items()} == {"s": b"1", "c": b"2"}
    built.update(2, [], [row.key for row in every], False)
    assert (built.tasks, built.nodes, built.networks, built.endpoints, built.services, built.files) == ({}, {}, {}, {}, {}, {})
    built.update(3, every, [], False)
    built.update(4, [ROWS[0]], [], True)
    assert (list(built.nodes), built.tasks, built.revision) == (["n1"], {}, 4)


# ---- encrypted networks --------------------------------------------------------------------------------------------------------

PRIVATE = {0: "own0", 1: "own1"}
PUBLISHED = {"n1": {"0": "a0", "1": "a1"}, "n2": {"0": "b0", "1": "b1"}}


def test_tunnels_of_an_encrypted_network_lead_to_tunnel_addresses() -> None:
    built = rows(keyed("secret", keys=PUBLISHED), endpoint("t9", "secret", "10.0.9.22", "n2"))
    state = node_state(built, {}, node_id="n1", data_addr="192.0.2.1", cluster_id="c", private_keys=PRIVATE)
    there = tunnel_address("c", "n2")
    secret, *_ = sorted(state.networks, key=lambda network: not network.encrypted)
    assert {remote.vtep for network in state.networks if not network.encrypted for remote in network.remote} == {"192.0.2.2"}
    assert {remote.vtep for remote in secret.remote} == {there} and {remote.address for remote in secret.remote} == {
        "10.0.9.3",
        "10.0.9.22",
    }
    peer = EncryptionPeer(there, "192.0.2.2", ("b0", "b1"))
    assert state.encryption == Encryption(tunnel_address("c", "n1"), ("own0", "own1"), 0, (peer,))


def test_the_device_that_packets_leave_by_follows_the_step() -> None:
    def at(step: int, private: dict[int, str], theirs: dict[str, str]) -> Encryption | None:
        built = rows(keyed("secret", step=step, keys={"n2": theirs}))
        return node_state(built, {}, node_id="n1", data_addr="192.0.2.1", cluster_id="c", private_keys=private).encryption

    for step, active in enumerate((0, 0, 1)):
        found = at(step, PRIVATE, PUBLISHED["n2"])
        assert found is not None and found.active == active and found.keys == ("own0", "own1")
    later = at(3, {1: "own1", 2: "own2"}, {"1": "b1"})
    assert later is not None and later.active == 1 and later.keys == ("own2", "own1")
    assert later.peers[0].keys == ("", "b1"), "the other one has not made its next key yet"
    assert at(3, PRIVATE, {}) is None, "without its own keys a node has no encrypted networks"


def test_without_keys_an_encrypted_network_is_never_plain() -> None:
    built = rows(keyed("secret", keys=PUBLISHED))
    state = node_state(built, {}, node_id="n1", data_addr="192.0.2.1", cluster_id="c")
    assert state.encryption is None and [network.id for network in state.networks if network.encrypted] == ["secret"]
    rendered = render(state, Facts(underlay_mtu=1500, host_id=1, netns={}, has_wireguard=True), Names("mesh"))
    assert "was given no keys" in str(rendered.errors["network:secret"]) and "mesh-secret" not in rendered.tables


def test_a_keyring_outlives_its_process_and_keeps_what_is_still_used(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "wireguard.json"
    ring = Keyring(path)
    assert sorted(ring.private) == [0, 1] and path.stat().st_mode & 0o777 == 0o600
    assert (Keyring(path).private, Keyring(path).public) == (ring.private, ring.public)
    first = ring.private
    ring.follow(2)
    assert ring.private == first and Keyring(path).step == 2
    ring.follow(3)
    assert sorted(ring.private) == [1, 2] and ring.private[1] == first[1] and Keyring(path).private == ring.private
    assert set(ring.public) == {"1", "2"} and not set(ring.public.values()) & set(ring.private.values())
    path.write_text("{")
    with pytest.raises(ConfigError, match="makes itself new keys"):
        Keyring(path)
    ring.erase()
    assert Keyring(path).step == 0 and Keyring(path).private != ring.private
