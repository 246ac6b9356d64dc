"""What is traced, from where and past whom; and what is said when it can't be."""

from __future__ import annotations

import pytest

from orchestrator.diagnose.itinerary import Itinerary, TraceRequest, itinerary
from orchestrator.errors import ApiError
from orchestrator.model import (
    Endpoint,
    Network,
    NetworkAttachment,
    NetworkReference,
    Node,
    NodeDescription,
    NodeStatus,
    PortConfig,
    Service,
    ServiceSpec,
    Task,
    TaskState,
    TaskStatus,
    VirtualIP,
)
from orchestrator.store.snapshot import Snapshot


def a_node(number: int) -> Node:
    addr = f"192.0.2.{number}"
    return Node(id=f"n{number}", description=NodeDescription(hostname=f"node-{number}"), status=NodeStatus(state="ready", addr=addr))


def a_task(service: str, slot: int, node: int, state: TaskState = TaskState.RUNNING, **addresses: str) -> Task:
    return Task(
        id=f"{service}{slot}n{node}id",
        service_id=service,
        mesh_service_name=service,
        slot=slot,
        node_id=f"n{node}",
        status=TaskStatus(state=state),
        desired_state=TaskState.RUNNING,
        networks_attachments=[
            NetworkAttachment(network=NetworkReference(id=network), addresses=[address]) for network, address in addresses.items()
        ],
    )


def a_service(name: str, ports: list[PortConfig] | None = None, **vips: str) -> Service:
    endpoint = Endpoint(ports=ports, virtual_ips=[VirtualIP(network_id=network, addr=address) for network, address in vips.items()])
    return Service(id=name, spec=ServiceSpec(name=name), endpoint=endpoint)


WEB_PORT = PortConfig(target_port=8000, published_port=8080)
OBJECTS = [
    *(a_node(number) for number in (1, 2, 3, 4)),
    Network(id="ingress", name="ingress", ingress=True, mesh_vni=4096),
    Network(id="front", name="front", mesh_vni=4097),
    Network(id="back", name="back", mesh_vni=4098),
    a_service("web", [WEB_PORT], ingress="10.0.0.9/24", front="10.0.1.9/24"),
    a_task("web", 1, 1, ingress="10.0.0.11/24", front="10.0.1.11/24"),
    a_task("web", 2, 2, ingress="10.0.0.12/24", front="10.0.1.12/24"),
    a_task("web", 3, 4, TaskState.PREPARING, ingress="10.0.0.13/24", front="10.0.1.13/24"),
    a_service("client", front="10.0.1.8/24"),
    a_task("client", 0, 2, front="10.0.1.21/24"),
    a_task("client", 0, 3, front="10.0.1.22/24"),
    a_service("rr", back="", front=""),
    a_task("rr", 1, 3, back="10.0.2.31/24"),
    a_service("edge", [PortConfig(target_port=53, published_port=53, protocol="udp", publish_mode="host")]),
    a_task("edge", 1, 3),
    a_service("only", [PortConfig(target_port=70, published_port=7070)], ingress="10.0.0.8/24"),
    a_service("lonely"),
]
SNAPSHOT = Snapshot(revision=1)
for _object in OBJECTS:
    SNAPSHOT = SNAPSHOT.with_object(_object)


def of(target: str, here: str = "n1", **more: object) -> Itinerary:
    return itinerary(SNAPSHOT, TraceRequest(target=target, **more), here)  # type: ignore[arg-type]


def test_a_service_is_its_vip_asked_by_a_task_of_another() -> None:
    trip = of("web")
    assert (trip.network_id, trip.destination, trip.port, trip.protocol) == ("front", "10.0.1.9", 8000, "tcp")
    assert (trip.client_node, trip.client_place, trip.entry) == ("n2", "task:client0n2id", "n2")
    assert trip.watch == {"n1": ("web1n1id",), "n2": ("client0n2id", "web2n2id")}, "the task that doesn't run yet is nobody's backend"
    assert trip.names == {"web1n1id": "web.1", "web2n2id": "web.2", "client0n2id": "client.node-2"}


def test_the_nearest_client_is_taken_unless_one_is_named() -> None:
    assert of("web", here="n3").client_place == "task:client0n3id"
    assert of("web", start="node-3").client_place == "task:client0n3id"
    assert of("web", start="node-1").client_place == "task:web1n1id", "a task of the service itself will do"
    for name in ("web.2", "web2n2id", "web2"):
        assert of("web", start_task=name).client_place == "task:web2n2id"
    assert of("web", start_task="client.node-3").client_node == "n3"


def test_addresses_are_vips_or_tasks() -> None:
    assert of("10.0.1.9").service == "web"
    task = of("10.0.1.12")
    assert (task.service, task.destination, task.port) == ("web", "10.0.1.12", 8000)
    assert of("10.0.2.31").network_id == "back"
    assert of("10.0.1.9", port=81, protocol="udp").protocol == "udp"
    assert of("10.0.1.9", port=81).port == 81
    assert of("10.0.1.9", protocol="icmp").port == 0


def test_dnsrr_goes_straight_to_a_task() -> None:
    assert of("rr", network="back").destination == "10.0.2.31"


def test_a_published_port_is_called_from_a_node() -> None:
    own = of(":8080", here="n3")
    assert (own.destination, own.port, own.client_node, own.client_place, own.entry) == ("192.0.2.3", 8080, "n3", "host", "n3")
    assert own.network_id == "ingress"
    assert set(own.watch) == {"n1", "n2", "n3"}
    via = of("node-4:8080", start="node-2")
    assert (via.destination, via.client_node, via.entry) == ("192.0.2.4", "n2", "n4")
    assert of(":8080", entry="node-4").destination == "192.0.2.4"
    assert of(":8080", start_task="client.node-3").client_place == "task:client0n3id"
    assert of("only").port == 7070, "a service on no network of its own is its published port"
    host = of(":53/udp")
    assert (host.protocol, host.entry, host.destination) == ("udp", "n3", "192.0.2.3"), "only a node with a task of it has a host-mode port"


@pytest.mark.parametrize(
    ("target", "more", "status", "text"),
    [
        ("nope", {}, 404, "service nope not found"),
        (":81", {}, 404, "no service publishes port 81/tcp; published: :53/udp, :7070/tcp, :8080/tcp"),
        ("10.9.9.9", {}, 404, "neither a VIP nor the address of a running task"),
        ("10.0.1.13", {}, 404, "neither a VIP nor the address of a running task"),
        ("10.0.1.9", {"network": "back"}, 404, "on that network"),
        ("web", {"network": "back"}, 400, "web is not on the network back"),
        ("web", {"start": "node-4"}, 400, "no task on node-4 is on the network front"),
        ("web", {"start": "ghost"}, 404, "node ghost not found"),
        (
            "web",
            {"start_task": "db.1"},
            404,
            "no running task db.1 on the network front; there: client.node-2, client.node-3, web.1, web.2",
        ),
        ("web", {"start": "node-1", "start_task": "web.1"}, 400, "not both"),
        ("lonely", {}, 400, "is on no network and publishes no port"),
        ("web", {"count": 0}, 400, "between 1 and 16 probes, not 0"),
        ("web", {"count": 17}, 400, "between 1 and 16 probes"),
        ("web", {"protocol": "sctp"}, 400, "unknown protocol 'sctp'"),
    ],
)
def test_what_cant_be_traced_is_said(target: str, more: dict[str, object], status: int, text: str) -> None:
    with pytest.raises(ApiError) as refused:
        of(target, **more)
    assert refused.value.status == status
    assert text in refused.value.message
