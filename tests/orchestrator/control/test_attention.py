"""What the loops are not shown changes nothing: they decide as they would, were they shown every service."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from orchestrator.control import attention
from orchestrator.control.attention import Attention
from orchestrator.control.context import Context
from orchestrator.control.endpoints import is_complete, of_new_service
from orchestrator.control.loops import LOOPS
from orchestrator.control.placement_labels import PRIORITY, REBALANCE, priority_of
from orchestrator.control.residents import Resident
from orchestrator.control.steps import Decision, Loop
from orchestrator.model import (
    IPAM,
    Claim,
    Endpoint,
    EndpointSpec,
    Network,
    NetworkAttachmentConfig,
    PortConfig,
    Service,
    ServiceSpec,
    Task,
    TaskState,
    TaskStatus,
    UpdateConfig,
    Version,
)
from orchestrator.store.base import Delete, Put
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.sim import World, job, node, scaled, spec, stateful, with_image


class Everything(Attention):
    """Shows all that there is, whatever its state."""

    def _build(self, snapshot: Snapshot) -> None:
        self._shown = snapshot
        self.port_claims = {claim.id for claim in snapshot.all(Claim) if claim.id.startswith("port/")}
        self.historic = set(snapshot.tasks_by_service)
        self.ownerless = {id for id in snapshot.tasks_by_service if snapshot.service(id) is None}
        self.priorities = {service.id: priority_of(service) for service in snapshot.all(Service)}

    def follow(self, snapshot: Snapshot) -> None:
        self._build(snapshot)

    def unsettled(self) -> list[Service]:
        return sorted(self._shown.all(Service), key=lambda service: service.id)


def checked(loop: Loop) -> Loop:
    """The loop, which fails where it would have decided something else had it been shown everything."""

    def both(snapshot: Snapshot, ctx: Context) -> Decision:
        given: list[str] = []

        def recorded() -> str:
            given.append(ctx.new_id())
            return given[-1]

        decision = loop(snapshot, dataclasses.replace(ctx, new_id=recorded))
        replayed = iter(given)
        usual, attention.RESIDENT = attention.RESIDENT, Resident(Everything)
        try:
            expected = loop(snapshot, dataclasses.replace(ctx, new_id=lambda: next(replayed)))
        finally:
            attention.RESIDENT = usual
        assert decision == expected, loop.__name__
        if loop in (LOOPS[0], LOOPS[-1]):
            check_followed(snapshot)
        return decision

    return both


def check_followed(snapshot: Snapshot) -> None:
    """What has followed is what is built from nothing."""
    followed, built = attention.attention(snapshot), Attention(snapshot)
    assert followed.unsettled() == built.unsettled()
    assert all(service is snapshot.service(service.id) for service in followed.unsettled())
    for one in ("historic", "ownerless", "port_claims", "priorities"):
        assert getattr(followed, one) == getattr(built, one), one


def names_of(unsettled: list[Service]) -> list[str]:
    return [service.spec.name for service in unsettled]


SPECS: dict[str, ServiceSpec] = {
    "web": spec("web", 2, ports=[PortConfig(target_port=80)], update=UpdateConfig(order="start-first")),
    "named": spec("named", 1, ports=[PortConfig(target_port=80, published_port=80)]),
    "rival": spec("rival", 1, networks=(), ports=[PortConfig(target_port=80, published_port=80)]),
    "quiet": spec("quiet", 2, networks=(), update=UpdateConfig(parallelism=0)),
    "local": spec("local", 1, networks=("host",), ports=[PortConfig(target_port=53, published_port=53, publish_mode="host")]),
    "agent": spec("agent", None),
    "spread": spec("spread", 3, networks=(), labels={REBALANCE: "true"}),
    "poor": spec("poor", 1, networks=(), labels={PRIORITY: "-5"}),
    "db": replace(stateful(2, volume=True), name="db"),
    "job": job(2),
}
NODES = ("n1", "n2", "n3")
NETWORKS = {
    "net": Network(id="net", name="net", ipam=IPAM()),
    "ingress": Network(id="ingress", name="ingress", ingress=True, ipam=IPAM()),
}

# of a service of those that there are, in turn
SERVICE_DEEDS = ("create", "remove", "scale 0", "scale 3", "image", "bad image", "rollback", "fail")
service_deeds = st.tuples(st.sampled_from(SERVICE_DEEDS), st.just(""))
other_deeds = st.one_of(
    st.tuples(st.sampled_from(["lose", "drain", "remove node", "add node"]), st.sampled_from(NODES)),
    st.tuples(st.just("network"), st.sampled_from(sorted(NETWORKS))),
    st.tuples(st.sampled_from(["take port", "free port", "history 1", "rebalance all", "new leader"]), st.just("")),
)
Script: TypeAlias = list[tuple[tuple[str, str], float]]

A_LIFE: Script = [
    (("image", ""), 0.25), (("fail", ""), 3.0), (("bad image", ""), 20.0), (("rollback", ""), 20.0), (("scale 0", ""), 0.25),
    (("scale 3", ""), 20.0), (("fail", ""), 0.25), (("history 1", ""), 20.0), (("remove", ""), 0.25), (("create", ""), 20.0),
]  # fmt: skip
THE_WORLD_AROUND: Script = [
    (("network", "ingress"), 3.0), (("network", "ingress"), 20.0), (("take port", ""), 3.0), (("free port", ""), 3.0),
    (("network", "net"), 3.0), (("scale 3", ""), 3.0), (("network", "net"), 20.0), (("lose", "n1"), 20.0), (("lose", "n1"), 3.0),
    (("drain", "n2"), 20.0), (("rebalance all", ""), 20.0), (("drain", "n2"), 40.0), (("remove node", "n3"), 20.0),
]  # fmt: skip


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    names=st.lists(st.sampled_from(sorted(SPECS)), min_size=1, max_size=3, unique=True),
    script=st.lists(st.tuples(st.one_of(service_deeds, other_deeds), st.sampled_from([0.0, 0.25, 3.0, 20.0])), max_size=8),
)
@example(names=["quiet"], script=A_LIFE)
@example(names=["web"], script=A_LIFE)
@example(names=["db"], script=A_LIFE)
@example(names=["named", "spread", "rival"], script=THE_WORLD_AROUND)
def test_the_loops_decide_as_if_they_were_shown_every_service(names: list[str], script: Script) -> None:
    world = World.of(len(NODES), loops=tuple(map(checked, LOOPS)), overlap=True)
    world.write(Put(NETWORKS["ingress"]))
    doomed: set[str] = set()

    def fate(task: Task, age: timedelta) -> TaskState | None:
        bad = task.spec.container_spec is not None and task.spec.container_spec.image == "app:bad"
        return TaskState.FAILED if task.id in doomed or (bad and task.status.state is TaskState.STARTING) else None

    world.fate = fate
    for name in names:
        world.create(SPECS[name])
    world.run(20)
    for number, ((deed, name), pause_s) in enumerate(script):
        perform(world, deed, name or names[number % len(names)], doomed)
        world.run(pause_s)


def perform(world: World, deed: str, name: str, doomed: set[str]) -> None:
    service = world.snapshot.service(f"s-{name}")
    cluster = world.snapshot.cluster
    assert cluster is not None
    match deed:
        case "create" if service is None:
            world.create(SPECS[name])
        case "remove" if service is not None:
            world.remove(service.id)
        case "scale 0" | "scale 3" if service is not None and service.spec.mode.replicated is not None:
            world.update(service.id, scaled(service.spec, int(deed[-1])))
        case "image" | "bad image" if service is not None:
            world.update(service.id, with_image(service.spec, "app:bad" if deed == "bad image" else "app:2"))
        case "rollback" if service is not None and service.previous_spec is not None:
            world.rollback(service.id)
        case "fail" if service is not None:
            doomed.update(task.id for task in world.live(service.id)[:1])
        case "lose":
            if name in world.lost:
                world.find(name)
            elif world.snapshot.node(name) is not None:
                world.lose(name)
        case "drain" if (known := world.snapshot.node(name)) is not None:
            world.availability(name, "active" if known.spec.availability == "drain" else "drain")
        case "remove node" if world.snapshot.node(name) is not None:
            world.remove_node(name)
        case "add node" if world.snapshot.node(name) is None:
            world.write(Put(node(name)))
        case "network":
            gone = world.snapshot.network(name) is not None
            world.write(Delete("network", name) if gone else Put(NETWORKS[name]))
        case "take port":
            claim = world.snapshot.claim("port/tcp/80") or Claim(id="port/tcp/80")
            world.write(Put(replace(claim, owner=f"s-{name}")))
        case "free port":
            world.write(Delete("claim", "port/tcp/80"))
        case "history 1":
            orchestration = replace(cluster.spec.orchestration, task_history_retention_limit=1)
            world.write(Put(replace(cluster, spec=replace(cluster.spec, orchestration=orchestration))))
        case "rebalance all":
            world.write(Put(replace(cluster, spec=replace(cluster.spec, labels={REBALANCE: "true"}))))
        case "new leader":
            attention.RESIDENT.forget()


def test_services_that_run_need_no_attention() -> None:
    """Those do which follow nodes or time."""
    world = World.of(3)
    world.write(Put(NETWORKS["ingress"]))
    for name in sorted(SPECS.keys() - {"rival"}):
        world.create(SPECS[name])
    world.run(120)
    assert names_of(attention.attention(world.snapshot).unsettled()) == ["agent", "db", "job", "spread"]


def test_a_service_with_history_is_settled_and_a_refused_one_is_not() -> None:
    world = World.of(3)
    world.write(Put(NETWORKS["ingress"]))
    world.create(SPECS["quiet"])
    world.create(SPECS["named"])
    world.run(20)
    # its port is taken
    world.create(SPECS["rival"])
    world.update("s-quiet", with_image(SPECS["quiet"], "app:2"))
    world.run(60)
    looked_at = attention.attention(world.snapshot)
    assert looked_at.historic == {"s-quiet"}
    assert names_of(looked_at.unsettled()) == ["rival"]


def with_mode(service: Service, mode: str) -> Service:
    """As the allocator left it for an earlier spec."""
    return replace(service, endpoint=replace(service.endpoint, spec=replace(service.endpoint.spec, mode=mode)))


def test_what_concerns_a_settled_service_unsettles_it() -> None:
    changes: dict[str, Callable[[World], None]] = {
        "its network": lambda world: world.write(Delete("network", "net")),
        "the ingress network": lambda world: world.write(Delete("network", "ingress")),
        "its port": lambda world: world.write(Delete("claim", "port/tcp/80")),
        "its spec": lambda world: world.update("s-named", scaled(SPECS["named"], 2)),
        "its task": lambda world: world.write(Put(replace(world.live("s-named")[0], desired_state=TaskState.SHUTDOWN))),
        "its endpoint": lambda world: world.write(Put(replace(world.service("s-named"), endpoint=Endpoint()))),
        "its way of being found": lambda world: world.write(Put(with_mode(world.service("s-named"), "dnsrr"))),
        "its volumes": lambda world: world.write(Put(replace(world.service("s-named"), mesh_homes={"1": "n1"}))),
        "a failure beside a task that runs": lambda world: world.write(
            Put(replace(world.live("s-named")[0], id="another", version=Version(), status=TaskStatus(state=TaskState.FAILED)))
        ),
        "a slot twice and one not at all": lambda world: world.write(
            Put(replace(world.service("s-named"), spec=scaled(SPECS["named"], 2))),
            Put(replace(world.live("s-named")[0], id="another", version=Version())),
        ),
    }
    for what, change in changes.items():
        world = World.of(1, overlap=True)
        world.write(Put(NETWORKS["ingress"]))
        world.create(SPECS["named"])
        world.run(20)
        assert not attention.attention(world.snapshot).unsettled()
        change(world)
        assert names_of(attention.attention(world.snapshot).unsettled()) == ["named"], what


def test_a_new_service_that_takes_nothing_has_all_of_its_endpoint() -> None:
    """The allocator has nothing to add, so its creation is one write; where it takes something, all is the allocator's."""
    host_port = PortConfig(target_port=80, published_port=80, publish_mode="host")
    for endpoint_spec in (
        None,
        EndpointSpec(mode="vip"),
        EndpointSpec(mode="dnsrr"),
        EndpointSpec(ports=[host_port]),
        EndpointSpec(ports=[]),
    ):
        for networks in ((), ("host",), ("net",)):
            asked = replace(spec(networks=networks), endpoint_spec=endpoint_spec)
            taking = "net" in networks and (endpoint_spec is None or endpoint_spec.mode != "dnsrr")
            service = Service(id="s", spec=asked, endpoint=of_new_service(asked))
            assert is_complete(service, Snapshot(), None) == (not taking), asked
            assert not taking or service.endpoint == Endpoint()
    published = replace(spec(networks=()), endpoint_spec=EndpointSpec(ports=[PortConfig(target_port=80)]))
    assert of_new_service(published) == Endpoint()
    old_place = replace(spec(networks=()), networks=[NetworkAttachmentConfig(target="net")])
    assert of_new_service(old_place) == Endpoint()


def test_what_failed_to_follow_is_built_anew() -> None:
    class Failing:
        def __init__(self, snapshot: Snapshot) -> None:
            self.shown = snapshot

        def follow(self, snapshot: Snapshot) -> None:
            raise RuntimeError("a bug")

    resident = Resident(Failing)
    first = resident.showing(Snapshot())
    with pytest.raises(RuntimeError):
        resident.showing(Snapshot(revision=2))
    second = resident.showing(Snapshot(revision=3))
    assert first.shown.revision == 0 and second.shown.revision == 3
