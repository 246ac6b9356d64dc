"""Small clusters for the tests of allocator, scheduler and assignment: short builders, and loops run to their fixpoint."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec

from orchestrator.control.allocator import allocate
from orchestrator.control.context import Context
from orchestrator.control.scheduler import schedule
from orchestrator.control.steps import Loop, applied
from orchestrator.model import (
    IPAM,
    Cluster,
    EndpointSpec,
    IPAMConfig,
    Network,
    NetworkAttachmentConfig,
    Node,
    NodeDescription,
    NodeSpec,
    NodeStatus,
    Object,
    Placement,
    Platform,
    PortConfig,
    ResourceObject,
    ResourceRequirements,
    Service,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)
from orchestrator.store.snapshot import Snapshot

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GIB = 1 << 30


def context(now: datetime = NOW) -> Context:
    ids = itertools.count()
    return Context(now=now, new_id=lambda: f"new{next(ids)}")


def snapshot(*objects: Object) -> Snapshot:
    result = Snapshot(revision=1)
    for obj in objects:
        result = result.with_object(obj)
    return result


def cluster(pools: list[str] | None = None, size: int = 24) -> Cluster:
    return Cluster(id="cluster", default_addr_pool=pools or ["10.0.0.0/8"], subnet_size=size)


def network(id: str, subnet: str = "", *, ingress: bool = False, age_s: int = 0, **fields: object) -> Network:
    config = [IPAMConfig(subnet=subnet)] if subnet else None
    made = Network(id=id, name=id, ingress=ingress, created_at=NOW - timedelta(seconds=age_s), ipam=IPAM(config=config))
    return msgspec.structs.replace(made, **fields)


def node(
    id: str,
    *,
    state: str = "ready",
    availability: str = "active",
    cpus: float = 4,
    memory_gib: float = 8,
    labels: dict[str, str] | None = None,
    addr: str = "",
    os: str = "linux",
    role: str = "worker",
) -> Node:
    return Node(
        id=id,
        spec=NodeSpec(labels=labels, availability=availability, role=role),
        description=NodeDescription(
            hostname=f"host-{id}",
            platform=Platform(architecture="x86_64", os=os),
            resources=ResourceObject(nano_cpus=int(cpus * 1e9), memory_bytes=int(memory_gib * GIB)),
        ),
        status=NodeStatus(state=state, addr=addr or f"192.168.0.{zlib.crc32(id.encode()) % 250 + 1}"),
    )


def port(target: int = 80, published: int = 0, *, mode: str = "ingress", protocol: str = "tcp") -> PortConfig:
    return PortConfig(protocol=protocol, target_port=target, published_port=published, publish_mode=mode)


def service(
    id: str,
    *,
    networks: Iterable[str] = (),
    ports: Iterable[PortConfig] = (),
    mode: str = "vip",
    cpus: float = 0,
    constraints: list[str] | None = None,
    max_replicas: int = 0,
    aliases: list[str] | None = None,
    labels: dict[str, str] | None = None,
) -> Service:
    template = TaskSpec(
        networks=[NetworkAttachmentConfig(target=target, aliases=aliases) for target in networks] or None,
        resources=ResourceRequirements(reservations=ResourceObject(nano_cpus=int(cpus * 1e9))) if cpus else None,
        placement=Placement(constraints=constraints, max_replicas=max_replicas) if constraints or max_replicas else None,
    )
    endpoint_spec = EndpointSpec(mode=mode, ports=list(ports) or None)
    return Service(id=id, created_at=NOW, spec=ServiceSpec(name=id, labels=labels, task_template=template, endpoint_spec=endpoint_spec))


def task(
    of: Service,
    slot: int,
    *,
    node_id: str = "",
    state: TaskState = TaskState.NEW,
    desired: TaskState = TaskState.RUNNING,
    age_s: int = 0,
    ended_s: int = 0,
) -> Task:
    """`ended_s`: its status is that old."""
    return Task(
        id=f"{of.id}-{slot}{'-' + node_id if node_id else ''}",
        created_at=NOW - timedelta(seconds=age_s),
        spec=of.spec.task_template,
        service_id=of.id,
        slot=slot,
        node_id=node_id,
        status=TaskStatus(state=state, timestamp=NOW - timedelta(seconds=ended_s)),
        desired_state=desired,
        mesh_service_name=of.spec.name,
        mesh_endpoint_ports=of.spec.endpoint_spec.ports if of.spec.endpoint_spec else None,
    )


def tasks(of: Service, count: int, **fields: object) -> list[Task]:
    return [task(of, slot, **fields) for slot in range(1, count + 1)]  # type: ignore[arg-type]


def run(picture: Snapshot, *loops: Loop, now: datetime = NOW) -> Snapshot:
    """The loops, one after the other, until none has anything left to say: after three passes at the latest (the third may still
    count addresses anew in a sentence)."""
    ctx = context(now)
    for last in (False, False, False, True):
        decided = []
        for loop in loops:
            steps = loop(picture, ctx).steps
            picture = applied(picture, steps)
            decided += steps
        if not decided:
            return picture
        assert not last, f"never done: {decided}"
    raise AssertionError("unreachable")


def settled(picture: Snapshot, now: datetime = NOW) -> Snapshot:
    return run(picture, allocate, schedule, now=now)


def with_state(picture: Snapshot, task_id: str, state: TaskState, now: datetime = NOW) -> Snapshot:
    old = picture.task(task_id)
    assert old is not None
    return picture.with_object(msgspec.structs.replace(old, status=TaskStatus(state=state, timestamp=now)))


def addresses(picture: Snapshot, network_id: str) -> list[str]:
    """Everything in use on a network, with repetitions: VIPs, nodes' addresses, tasks that have not ended."""
    found = [vip.addr for s in picture.all(Service) for vip in s.endpoint.virtual_ips or () if vip.network_id == network_id]
    found += [a.addr for n in picture.all(Node) for a in n.mesh_attachments or () if a.network_id == network_id]
    for one in picture.tasks_of_network(network_id):
        if one.status.state not in (TaskState.SHUTDOWN, TaskState.FAILED, TaskState.COMPLETE, TaskState.REJECTED):
            found += [x for a in one.networks_attachments or () if a.network.id == network_id for x in a.addresses or ()]
    return found
