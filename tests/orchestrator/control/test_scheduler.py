"""The scheduler: each filter and its words, spreading, global tasks; that it never overcommits and that refusals count every node."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control.allocator import allocate
from orchestrator.control.demand import host_ports
from orchestrator.control.placement_labels import OVERCOMMIT
from orchestrator.control.resources import Available, Reservation, reservation
from orchestrator.control.scheduler import schedule
from orchestrator.control.steps import applied
from orchestrator.model import (
    STATE_ORDER,
    ContainerSpec,
    DiscreteGenericResource,
    Driver,
    EnginePlugin,
    GenericResource,
    Mount,
    NamedGenericResource,
    NetworkAttachment,
    NetworkReference,
    Node,
    NodeDescription,
    NodeEncryption,
    Placement,
    PlacementPreference,
    Platform,
    ResourceObject,
    ResourceRequirements,
    Service,
    SpreadOver,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
    VolumeOptions,
    terminal,
)
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.clusters import NOW, cluster, context, network, node, port, run, service, settled, snapshot, task, tasks

PENDING = TaskState.PENDING


def on_nodes(picture: Snapshot) -> Counter[str]:
    return Counter(one.node_id for one in picture.all(Task) if one.node_id and not terminal(one.status.state))


def err_of(picture: Snapshot, task_id: str) -> str:
    one = picture.task(task_id)
    assert one is not None and one.status.state is PENDING, one
    return one.status.err


def with_spec(of: Service, **fields: object) -> Service:
    template = msgspec.structs.replace(of.spec.task_template, **fields)
    return msgspec.structs.replace(of, spec=msgspec.structs.replace(of.spec, task_template=template))


# ---- outcome -------------------------------------------------------------------------------------------------------------------


def test_a_placed_task_is_assigned_with_node_and_words() -> None:
    s = service("s")
    picture = run(snapshot(node("n"), s, *tasks(s, 1, state=PENDING)), schedule)
    one = picture.task("s-1")
    assert one is not None
    assert one.node_id == "n"
    assert one.status == TaskStatus(timestamp=NOW, state=TaskState.ASSIGNED, message="scheduler assigned task to node")


@pytest.mark.parametrize("desired", list(TaskState))
def test_only_wanted_tasks_are_placed(desired: TaskState) -> None:
    s = service("s")
    picture = run(snapshot(node("n"), s, *tasks(s, 1, state=PENDING, desired=desired)), schedule)
    assert bool(on_nodes(picture)) is (STATE_ORDER[desired] <= STATE_ORDER[TaskState.RUNNING])


@pytest.mark.parametrize("state", [state for state in TaskState if state is not PENDING])
def test_only_pending_tasks_are_placed(state: TaskState) -> None:
    s = service("s")
    assert schedule(snapshot(node("n"), s, *tasks(s, 1, state=state)), context()).steps == []


def test_nothing_to_do_says_nothing_and_a_sentence_is_written_once() -> None:
    s = service("s")
    picture = snapshot(s, *tasks(s, 2, state=PENDING))
    first = schedule(picture, context())
    assert len(first.steps) == 2
    assert schedule(applied(picture, first.steps), context()).steps == []
    assert err_of(applied(picture, first.steps), "s-1") == "no suitable node"


def test_a_sentence_goes_when_the_task_is_placed() -> None:
    s = service("s")
    picture = run(snapshot(s, *tasks(s, 1, state=PENDING)), schedule)
    done = run(picture.with_object(node("n")), schedule).task("s-1")
    assert done is not None and done.node_id == "n" and done.status.err == ""


def test_the_node_gets_its_address_in_the_step_that_places_the_first_task() -> None:
    s = service("s", networks=["a", "b"])
    start = snapshot(cluster(), network("a", "10.1.0.0/24"), network("b", "10.2.0.0/24"), node("n"), s, *tasks(s, 3))
    picture = settled(start.without_object("node", "n")).with_object(node("n"))
    steps = schedule(picture, context()).steps
    assert [[type(change.obj).__name__ for change in step if isinstance(change, Put)] for step in steps] == [
        ["Task", "Node"],
        ["Task"],
        ["Task"],
    ]
    changed = applied(picture, steps[:1]).node("n")
    assert changed is not None and [a.network_id for a in changed.mesh_attachments or ()] == ["a", "b"]


# ---- filters -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "availability"), list(itertools.product(["unknown", "down", "ready", "disconnected"], ["active", "pause", "drain"]))
)
def test_only_ready_and_active_nodes_take_tasks(state: str, availability: str) -> None:
    s = service("s")
    picture = run(snapshot(node("n", state=state, availability=availability), s, *tasks(s, 1, state=PENDING)), schedule)
    if (state, availability) == ("ready", "active"):
        assert on_nodes(picture) == {"n": 1}
    else:
        assert err_of(picture, "s-1") == "no suitable node (1 node not available for new tasks)"


def test_the_sentence_of_the_docker_users() -> None:
    s = service("s", cpus=2, constraints=["node.labels.disk==ssd"])
    picture = snapshot(node("n1"), node("n2"), node("n3", cpus=1, labels={"disk": "ssd"}), s, *tasks(s, 1, state=PENDING))
    sentence = (
        "no suitable node (scheduling constraints not satisfied on 2 nodes: 2 do not match node.labels.disk==ssd; "
        "insufficient resources on 1 node: 1 lacks 2 CPUs)"
    )
    assert err_of(run(picture, schedule), "s-1") == sentence


def test_unreadable_constraints_match_no_node() -> None:
    s = service("s", constraints=["nonsense"])
    picture = run(snapshot(node("n"), s, *tasks(s, 1, state=PENDING)), schedule)
    assert err_of(picture, "s-1") == "no suitable node (scheduling constraints not satisfied on 1 node)"


@pytest.mark.parametrize(
    ("platforms", "fits"),
    [
        ([], True),
        ([Platform(architecture="amd64", os="linux")], True),
        ([Platform(architecture="x86_64", os="Linux")], True),
        ([Platform(architecture="", os="linux")], True),
        ([Platform(architecture="amd64", os="")], True),
        ([Platform(architecture="arm64", os="linux")], False),
        ([Platform(architecture="amd64", os="windows")], False),
        ([Platform(architecture="arm64", os="linux"), Platform(architecture="amd64", os="linux")], True),
    ],
)
def test_platform(platforms: list[Platform], fits: bool) -> None:
    s = with_spec(service("s"), placement=Placement(platforms=platforms))
    picture = run(snapshot(node("n"), s, *tasks(s, 1, state=PENDING)), schedule)
    assert on_nodes(picture) == ({"n": 1} if fits else {})
    if not fits:
        names = " or ".join(f"{one.os}/{one.architecture}" for one in platforms)
        assert err_of(picture, "s-1") == f"no suitable node (unsupported platform on 1 node: 1 is not {names})"


@pytest.mark.parametrize(
    ("plugins", "lacks"),
    [
        ([], ""),
        ([("Network", "overlay")], ""),
        ([("Volume", "local")], "volume"),
        ([("Volume", "nfs")], ""),
        ([("Volume", "nfs:latest")], ""),
        ([("Volume", "nfs"), ("Log", "json-file")], "log"),
        ([("Volume", "nfs"), ("Log", "json-file"), ("Log", "fluentd")], ""),
    ],
)
def test_plugins(plugins: list[tuple[str, str]], lacks: str) -> None:
    mount = Mount(source="v", target="/v", volume_options=VolumeOptions(driver_config=Driver(name="nfs")))
    s = with_spec(service("s"), container_spec=ContainerSpec(mounts=[mount]), log_driver=Driver(name="fluentd"))
    one = node("n")
    engine = msgspec.structs.replace(one.description.engine, plugins=[EnginePlugin(type=kind, name=name) for kind, name in plugins])
    one = msgspec.structs.replace(one, description=msgspec.structs.replace(one.description, engine=engine))
    picture = run(snapshot(one, s, *tasks(s, 1, state=PENDING)), schedule)
    assert on_nodes(picture) == ({} if lacks else {"n": 1})
    if lacks:
        what = {"volume": "volume driver nfs", "log": "log driver fluentd"}[lacks]
        assert err_of(picture, "s-1") == f"no suitable node (missing plugin on 1 node: 1 lacks the {what})"


def test_nodes_are_passed_over_that_do_not_permit_what_a_task_asks_for() -> None:
    """A node that has not said what it permits is asked: its agent answers."""
    s = with_spec(service("s"), container_spec=ContainerSpec(labels={"com.meshd.run.privileged": "true"}))
    permits: dict[str, list[str] | None] = {"a": ["bind-mounts"], "b": ["privileged"], "c": None}
    nodes = {id: node(id) for id in permits}
    nodes = {
        id: msgspec.structs.replace(one, description=msgspec.structs.replace(one.description, mesh_permits=permits[id]))
        for id, one in nodes.items()
    }
    assert on_nodes(run(snapshot(*nodes.values(), s, *tasks(s, 2, state=PENDING)), schedule)) == {"b": 1, "c": 1}
    picture = run(snapshot(nodes["a"], s, *tasks(s, 1, state=PENDING)), schedule)
    assert err_of(picture, "s-1") == "no suitable node (not permitted on 1 node: 1 does not permit privileged)"


def test_tasks_of_encrypted_networks_go_where_they_can_be() -> None:
    """A node that has not said that it can is passed over: it would carry them plain."""
    s = service("s", networks=["a"])
    said = {"able": NodeEncryption(keys={"0": "k"}), "unable": NodeEncryption(unable="no WireGuard"), "old": None}
    nodes = [node(id) for id in said]
    nodes = [
        msgspec.structs.replace(one, description=msgspec.structs.replace(one.description, mesh_encryption=said[one.id])) for one in nodes
    ]
    secret = network("a", "10.0.1.0/24", mesh_vni=5, mesh_encrypted=True)
    picture = run(snapshot(cluster(), secret, *nodes, s, *tasks(s, 3)), allocate, schedule)
    assert on_nodes(picture) == {"able": 3}
    picture = run(snapshot(cluster(), secret, *nodes[1:], s, *tasks(s, 1)), allocate, schedule)
    assert err_of(picture, "s-1") == "no suitable node (encrypted networks not possible on 2 nodes: 2 lack WireGuard)"


def test_host_ports_are_exclusive_on_a_node_until_their_task_has_ended() -> None:
    s = service("s", ports=[port(80, 8080, mode="host")])
    picture = run(snapshot(node("n1"), node("n2"), s, *tasks(s, 3, state=PENDING)), schedule)
    assert on_nodes(picture) == {"n1": 1, "n2": 1}
    assert err_of(picture, "s-3") == "no suitable node (host-mode port already in use on 2 nodes: 2 use 8080/tcp)"
    # another protocol, another port and an ingress port are no obstacle
    for free in (port(80, 8080, mode="host", protocol="udp"), port(80, 8081, mode="host"), port(80, 8080)):
        other = service("o", ports=[free])
        more = run(picture.with_object(other).with_object(task(other, 1, state=PENDING)), schedule)
        placed = more.task("o-1")
        assert placed is not None and placed.node_id
    # one that is to stop still holds it, one that has ended doesn't
    first = picture.task("s-1")
    assert first is not None
    stopping = msgspec.structs.replace(first, desired_state=TaskState.SHUTDOWN)
    assert on_nodes(run(picture.with_object(stopping), schedule)).total() == 2
    ended = msgspec.structs.replace(stopping, status=TaskStatus(state=TaskState.SHUTDOWN))
    third = run(picture.with_object(ended), schedule).task("s-3")
    assert third is not None and third.node_id == first.node_id


def test_max_replicas_per_node_counts_wanted_tasks_only() -> None:
    s = service("s", max_replicas=2)
    picture = run(snapshot(node("n1"), node("n2"), s, *tasks(s, 5, state=PENDING)), schedule)
    assert on_nodes(picture) == {"n1": 2, "n2": 2}
    assert err_of(picture, "s-5") == "no suitable node (max replicas per node limit exceed on 2 nodes: 2 have 2)"
    leaving = next(one for one in picture.all(Task) if one.node_id == "n2")
    picture = run(picture.with_object(msgspec.structs.replace(leaving, desired_state=TaskState.SHUTDOWN)), schedule)
    fifth = picture.task("s-5")
    assert fifth is not None and fifth.node_id == "n2"


def test_a_node_without_address_on_a_network_is_passed_over() -> None:
    s = service("s", networks=["a"])
    # 6 addresses: gateway, VIP, two tasks, one node's; the last is foreign
    full = network("a", "10.1.0.0/29")
    picture = settled(snapshot(cluster(), full, node("n1"), s, *tasks(s, 2)))
    allocated = picture.network("a")
    assert allocated is not None and allocated.ipam.config is not None
    reserved = msgspec.structs.replace(allocated.ipam.config[0], auxiliary_addresses={"x": "10.1.0.6"})
    picture = picture.with_object(msgspec.structs.replace(allocated, ipam=msgspec.structs.replace(allocated.ipam, config=[reserved])))
    waiting = msgspec.structs.replace(
        task(s, 3, state=PENDING), networks_attachments=[NetworkAttachment(network=NetworkReference(id="a"), addresses=["10.1.0.5/29"])]
    )
    picture = picture.with_object(node("n1", availability="pause")).with_object(node("n2")).with_object(waiting)
    picture = run(picture, schedule)
    sentence = "no suitable node (1 node not available for new tasks; no address left for 1 node on its networks)"
    assert err_of(picture, "s-3") == sentence


def test_resources_of_stopping_tasks_stay_reserved() -> None:
    s = service("s", cpus=2)
    for desired, state, placed in (
        (TaskState.RUNNING, TaskState.RUNNING, False),
        (TaskState.SHUTDOWN, TaskState.RUNNING, False),
        (TaskState.SHUTDOWN, TaskState.SHUTDOWN, True),
        (TaskState.RUNNING, TaskState.FAILED, True),
    ):
        there = task(s, 1, node_id="n", state=state, desired=desired)
        picture = run(snapshot(node("n", cpus=3), s, there, task(s, 2, state=PENDING)), schedule)
        second = picture.task("s-2")
        assert second is not None and bool(second.node_id) is placed
        if not placed:
            assert second.status.err == "no suitable node (insufficient resources on 1 node: 1 lacks 2 CPUs)"


def test_a_task_that_reserves_nothing_fits_an_overcommitted_node() -> None:
    heavy, light = service("heavy", cpus=8), service("light")
    there = task(heavy, 1, node_id="n", state=TaskState.RUNNING)
    assert on_nodes(run(snapshot(node("n", cpus=4), heavy, light, there, task(light, 1, state=PENDING)), schedule)) == {"n": 2}


GPU0, GPU1 = (GenericResource(named_resource_spec=NamedGenericResource(kind="gpu", value=name)) for name in ("g0", "g1"))


def discrete(kind: str, count: int) -> GenericResource:
    return GenericResource(discrete_resource_spec=DiscreteGenericResource(kind=kind, value=count))


def test_generic_resources_are_given_by_name_and_only_once() -> None:
    one = node("n")
    resources = msgspec.structs.replace(one.description.resources, generic_resources=[GPU0, GPU1, discrete("ssd", 3)])
    one = msgspec.structs.replace(one, description=msgspec.structs.replace(one.description, resources=resources))
    wanted = ResourceRequirements(reservations=ResourceObject(generic_resources=[discrete("gpu", 1), discrete("ssd", 1)]))
    s = with_spec(service("s"), resources=wanted)
    picture = run(snapshot(one, s, *tasks(s, 3, state=PENDING)), schedule)
    given_out = [one.generic_resources for slot in (1, 2) if (one := picture.task(f"s-{slot}"))]
    assert given_out == [[GPU0, discrete("ssd", 1)], [GPU1, discrete("ssd", 1)]]
    assert err_of(picture, "s-3") == "no suitable node (insufficient resources on 1 node: 1 lacks 1 gpu)"
    first = picture.task("s-1")
    assert first is not None
    picture = picture.with_object(msgspec.structs.replace(first, status=TaskStatus(state=TaskState.FAILED)))
    third = run(picture, schedule).task("s-3")
    assert third is not None and third.generic_resources == [GPU0, discrete("ssd", 1)]


def test_cards_are_given_by_name_as_long_as_there_are_any() -> None:
    available = Available(NodeDescription(resources=ResourceObject(generic_resources=[GPU0, GPU1, discrete("x", 2)])))
    available.hold([GPU0, discrete("x", 1)])
    assert available.take(Reservation(generic=(("gpu", 1), ("x", 1)))) == [GPU1, discrete("x", 1)]


@pytest.mark.parametrize(("overcommit", "fit"), [(None, 4), ("0", 4), ("0.25", 5), ("-0.5", 2), ("nonsense", 4)])
@pytest.mark.parametrize("on_node", [True, False])
def test_overcommit_of_the_node_or_of_the_swarm(overcommit: str | None, fit: int, on_node: bool) -> None:
    labels = {OVERCOMMIT: overcommit} if overcommit is not None else {}
    s = service("s", cpus=1)
    swarm = cluster()
    swarm = msgspec.structs.replace(
        swarm, spec=msgspec.structs.replace(swarm.spec, labels={OVERCOMMIT: "9"} if on_node and labels else labels)
    )
    picture = run(snapshot(swarm, node("n", cpus=4, labels=labels if on_node else None), s, *tasks(s, 9, state=PENDING)), schedule)
    expected = 9 if on_node and overcommit == "nonsense" else fit
    assert on_nodes(picture) == {"n": expected}


# ---- spreading -----------------------------------------------------------------------------------------------------------------


def test_spread_by_service_then_by_load_then_by_id() -> None:
    s, o = service("s"), service("o")
    there = [task(o, 1, node_id="n1", state=TaskState.RUNNING), task(s, 9, node_id="n2", state=TaskState.RUNNING)]
    picture = snapshot(node("n1"), node("n2"), node("n3"), s, o, *there, *tasks(s, 4, state=PENDING))
    picture = run(picture, schedule)
    order = [one.node_id for slot in range(1, 5) if (one := picture.task(f"s-{slot}"))]
    # n3 is empty; n1 has a task, but none of this service; then all have one of it: n2 and n3 have fewer tasks at all
    assert order == ["n3", "n1", "n2", "n3"]


@pytest.mark.parametrize("count", range(12))
def test_tasks_are_spread_evenly(count: int) -> None:
    s = service("s")
    placed = on_nodes(run(snapshot(node("a"), node("b"), node("c"), s, *tasks(s, count, state=PENDING)), schedule))
    numbers = [placed[id] for id in "abc"]
    assert sum(numbers) == count and max(numbers) - min(numbers) <= 1


def spreading(*descriptors: str) -> Placement:
    return Placement(preferences=[PlacementPreference(spread=SpreadOver(spread_descriptor=text)) for text in descriptors])


def test_preference_spreads_over_values_not_nodes() -> None:
    nodes = [node("a1", labels={"dc": "a"}), node("a2", labels={"dc": "a"}), node("a3", labels={"dc": "a"}), node("b1", labels={"dc": "b"})]
    s = with_spec(service("s"), placement=spreading("node.labels.dc"))
    placed = on_nodes(run(snapshot(*nodes, s, *tasks(s, 6, state=PENDING)), schedule))
    assert placed == {"a1": 1, "a2": 1, "a3": 1, "b1": 3}


def test_nested_preferences_and_a_group_of_those_without_label() -> None:
    labels = {"x1": {"dc": "x", "rack": "1"}, "x2": {"dc": "x", "rack": "2"}, "x3": {"dc": "x", "rack": "2"}, "bare": {}}
    s = with_spec(service("s"), placement=spreading("node.labels.dc", "node.labels.rack"))
    placed = on_nodes(run(snapshot(*(node(id, labels=value) for id, value in labels.items()), s, *tasks(s, 8, state=PENDING)), schedule))
    assert placed == {"bare": 4, "x1": 2, "x2": 1, "x3": 1}


def test_a_full_branch_is_left_for_the_others() -> None:
    nodes = [node("a", labels={"dc": "a"}, cpus=1), node("b", labels={"dc": "b"}, cpus=9)]
    s = with_spec(service("s", cpus=1), placement=spreading("node.labels.dc"))
    picture = run(snapshot(*nodes, s, *tasks(s, 11, state=PENDING)), schedule)
    assert on_nodes(picture) == {"a": 1, "b": 9}
    assert err_of(picture, "s-11") == "no suitable node (insufficient resources on 2 nodes: 2 lack 1 CPU)"


def test_a_node_where_the_service_keeps_failing_comes_last() -> None:
    s, o = service("s"), service("o")
    failed = [task(s, slot, node_id="n1", state=TaskState.FAILED, ended_s=60) for slot in range(10, 15)]
    picture = snapshot(node("n1"), node("n2"), s, o, *failed, *tasks(s, 4, state=PENDING), *tasks(o, 2, state=PENDING))
    picture = run(picture, schedule)
    assert {one.node_id for one in picture.tasks_of_service("s") if one.status.state is TaskState.ASSIGNED} == {"n2"}
    assert "n1" in {one.node_id for one in picture.tasks_of_service("o")}
    later = context(NOW + timedelta(minutes=5))
    begin = snapshot(node("n1"), node("n2"), s, *failed, *tasks(s, 2, state=PENDING))
    assert on_nodes(applied(begin, schedule(begin, later).steps)) == {"n1": 1, "n2": 1}


# ---- global tasks, templates ---------------------------------------------------------------------------------------------------


def test_a_task_with_a_node_stays_there_and_is_still_filtered() -> None:
    s = service("s", cpus=3)
    own = [task(s, 0, node_id=id, state=PENDING) for id in ("n1", "n2", "n3", "gone")]
    picture = run(snapshot(node("n1"), node("n2", cpus=1), node("n3", availability="drain"), s, *own), schedule)
    assert {one.node_id: (one.status.state, one.status.err) for one in picture.all(Task)} == {
        "n1": (TaskState.ASSIGNED, ""),
        "n2": (PENDING, "no suitable node (insufficient resources on 1 node: 1 lacks 3 CPUs)"),
        "n3": (PENDING, "no suitable node (1 node not available for new tasks)"),
        "gone": (PENDING, "no suitable node (the task's node is not part of the cluster)"),
    }


@pytest.mark.parametrize("node_id", ["", "n"])
def test_a_template_that_cannot_be_expanded_ends_the_task_with_the_sentence(node_id: str) -> None:
    s = with_spec(service("s"), container_spec=ContainerSpec(env=["A={{.Nope}}"]))
    one = run(snapshot(node("n"), s, task(s, 1, node_id=node_id, state=PENDING)), schedule)
    (ended,) = one.all(Task)
    assert ended.status.state is TaskState.REJECTED and "unknown placeholder '{{.Nope}}'" in ended.status.err


# ---- properties ----------------------------------------------------------------------------------------------------------------

NODES = st.lists(
    st.tuples(
        st.sampled_from(["ready", "ready", "ready", "down"]),
        st.sampled_from(["active", "active", "active", "pause", "drain"]),
        st.integers(0, 6),
        st.sampled_from([None, {"disk": "ssd"}, {"disk": "hdd"}]),
    ),
    min_size=0,
    max_size=5,
)
SERVICES = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from([None, ["node.labels.disk==ssd"], ["node.labels.disk!=ssd"]]),
        st.sampled_from([0, 0, 1, 2]),
        st.booleans(),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(NODES, SERVICES)
def test_never_overcommitted_and_every_refusal_counts_all_nodes(
    nodes: list[tuple[str, str, int, dict[str, str] | None]], services: list[tuple[int, list[str] | None, int, bool, int]]
) -> None:
    picture = snapshot(cluster())
    for number, (state, availability, cpus, labels) in enumerate(nodes):
        picture = picture.with_object(node(f"n{number}", state=state, availability=availability, cpus=cpus, labels=labels))
    for number, (cpus, constraints, max_replicas, has_host_port, count) in enumerate(services):
        ports = [port(80, 8080, mode="host")] if has_host_port else []
        s = service(f"s{number}", cpus=cpus, constraints=constraints, max_replicas=max_replicas, ports=ports)
        picture = picture.with_object(s)
        for one in tasks(s, count, state=PENDING):
            picture = picture.with_object(one)
    picture = run(picture, schedule)

    for member in picture.all(Node):
        here = picture.tasks_of_node(member.id)
        assert sum(reservation(one.spec).nano_cpus for one in here) <= member.description.resources.nano_cpus
        held = [used for one in here for used in host_ports(one)]
        assert len(held) == len(set(held))
        for service_id, count in Counter(one.service_id for one in here).items():
            owner = picture.service(service_id)
            limit = owner.spec.task_template.placement if owner else None
            assert not limit or not limit.max_replicas or count <= limit.max_replicas
        if here:
            assert (member.status.state, member.spec.availability) == ("ready", "active")
            for one in here:
                wanted = (one.spec.placement.constraints if one.spec.placement else None) or []
                is_ssd = (member.spec.labels or {}).get("disk") == "ssd"
                assert wanted in ([], ["node.labels.disk==ssd"] if is_ssd else ["node.labels.disk!=ssd"])

    for one in picture.all(Task):
        if one.status.state is PENDING:
            assert one.status.err.startswith("no suitable node")
            assert sum(int(number) for number in re.findall(r"(\d+) nodes?", one.status.err)) == len(nodes), one.status.err
        else:
            assert one.status.state is TaskState.ASSIGNED


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3), st.integers(0, 12), st.permutations(range(12)))
def test_the_order_in_which_the_store_lists_does_not_matter(node_count: int, task_count: int, order: list[int]) -> None:
    s = service("s", cpus=1)
    objects = [s, *(node(f"n{number}", cpus=2) for number in range(node_count)), *tasks(s, task_count, state=PENDING)]
    shuffled = [objects[index] for index in order if index < len(objects)] + objects[12:]
    assert {one.id: one.node_id for one in run(snapshot(*objects), schedule).all(Task)} == {
        one.id: one.node_id for one in run(snapshot(*shuffled, *objects), schedule).all(Task)
    }


def test_a_spec_without_anything_asks_for_nothing() -> None:
    assert reservation(TaskSpec()) == Reservation()
