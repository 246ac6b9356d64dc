"""Classic Swarm's expressions: their grammar, constraints on nodes, affinities between tasks; strategies and soft wishes."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.control.affinities import image_names
from orchestrator.control.expressions import expressions_of, without_expressions
from orchestrator.control.placement_labels import OVERCOMMIT, PRIORITY, REBALANCE, STRATEGY, check_cluster, check_node, check_service
from orchestrator.control.scheduler import schedule
from orchestrator.errors import ConfigError
from orchestrator.model import ContainerSpec, Node, Service, Task, TaskState
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.clusters import cluster, node, run, service, snapshot, task, tasks

PENDING, RUNNING = TaskState.PENDING, TaskState.RUNNING


def wishing(id: str, *env: str, image: str = "app:1", labels: dict[str, str] | None = None, **fields: object) -> Service:
    of = service(id, **fields)  # type: ignore[arg-type]
    container = ContainerSpec(image=image, env=list(env) or None, labels=labels)
    template = msgspec.structs.replace(of.spec.task_template, container_spec=container)
    return msgspec.structs.replace(of, spec=msgspec.structs.replace(of.spec, task_template=template))


def placed(picture: Snapshot, service_id: str) -> list[str]:
    return [one.node_id for one in sorted(picture.tasks_of_service(service_id), key=lambda one: one.slot) if one.node_id]


# ---- grammar -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "accepted"),
    [
        ("k_y==ssd", "ssd", True),
        ("k_y==ssd", "ssds", False),
        ("k_y==ss*", "ssds", True),
        ("k_y==*s*d", "ssd", True),
        ("k_y==a.c", "abc", False),
        ("k_y==/s.d/", "xssdx", True),
        ("k_y==/^s.d$/", "xssdx", False),
        ("k_y==/(?i)SSD/", "ssd", True),
        ("k_y==~ssd", "ssd", True),
        ("k_y!=~/s+/", "hdd", False),
    ],
)
def test_patterns(text: str, value: str, accepted: bool) -> None:
    for container in (
        ContainerSpec(env=[f"affinity:{text}", "A=B"]),
        ContainerSpec(labels={"com.docker.swarm.affinities": msgspec.json.encode([text]).decode()}),
    ):
        (one,) = expressions_of(container)
        assert (one.kind, one.key, one.equal, one.soft) == ("affinity", "k_y", "==" in text, "~" in text)
        assert one.accepts(value) is accepted
        assert str(one) == f"affinity:{text}"


@pytest.mark.parametrize("text", ["nothing", "a==x", "-k==x", "key=", "key==", "key==~", "key==/(/", "key==" + "x" * 300, "k y==x"])
def test_what_is_no_expression_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ConfigError, match="is invalid"):
        expressions_of(ContainerSpec(env=[f"constraint:{text}"]))


def test_a_label_that_is_no_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a JSON list"):
        expressions_of(ContainerSpec(labels={"com.docker.swarm.constraints": "storage==ssd"}))


def test_the_container_does_not_see_them() -> None:
    environment = [
        "A=B",
        "constraint:storage==ssd",
        "affinity:image==~x",
        "reschedule:on-node-failure",
        "whitelist:node==n",
        "constraintX=1",
    ]
    assert without_expressions(environment) == ["A=B", "constraintX=1"]


@pytest.mark.parametrize(
    ("image", "names"),
    [
        ("redis", ["redis"]),
        ("redis:7", ["redis:7", "redis"]),
        ("hub:5000/x/redis", ["hub:5000/x/redis"]),
        ("hub:5000/x/redis:7", ["hub:5000/x/redis:7", "hub:5000/x/redis"]),
        ("redis:7@sha256:ab", ["redis:7@sha256:ab", "redis:7", "redis"]),
    ],
)
def test_names_of_an_image(image: str, names: list[str]) -> None:
    assert list(image_names(image)) == names


@pytest.mark.parametrize(
    ("check", "labels", "words"),
    [
        (check_service, {STRATEGY: "tight"}, "'tight' is no strategy: expected one of spread, binpack, random"),
        (check_service, {PRIORITY: "high"}, "'high' is no priority"),
        (check_service, {PRIORITY: "1000001"}, "is no priority"),
        (check_service, {REBALANCE: "maybe"}, "neither true nor false"),
        (check_service, {OVERCOMMIT: "0.1"}, "means nothing on a service"),
        (check_node, {OVERCOMMIT: "-1"}, "is no overcommit ratio"),
        (check_node, {OVERCOMMIT: "nan"}, "is no overcommit ratio"),
        (check_cluster, {PRIORITY: "1"}, "means nothing on the swarm"),
    ],
)
def test_labels_that_mean_nothing_are_refused(check, labels: dict[str, str], words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=words):
        check(labels)


def test_labels_that_mean_something_and_those_of_others_pass() -> None:
    check_service({STRATEGY: "random", PRIORITY: "-5", REBALANCE: "True", "other": "x"})
    check_node({OVERCOMMIT: "-0.5"})
    check_cluster({OVERCOMMIT: "0.05", STRATEGY: "binpack", REBALANCE: "no"})
    check_service(None)


# ---- constraints ---------------------------------------------------------------------------------------------------------------


def facts(of: Node, **values: str) -> Node:
    return msgspec.structs.replace(of, description=msgspec.structs.replace(of.description, mesh_facts=values))


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("node==n2", ["n2"]),
        ("node==host-n*", ["n1", "n2", "n3"]),
        ("node!=/n[12]/", ["n3"]),
        ("storage==ssd", ["n1"]),
        ("storage!=ssd", ["n2", "n3"]),
        ("ostype==linux", ["n1", "n2", "n3"]),
        ("storagedriver==overlay*", ["n3"]),
        ("kernelversion==6.1", []),
    ],
)
def test_classic_constraints(wish: str, expected: list[str]) -> None:
    nodes = [node("n1", labels={"storage": "ssd"}), node("n2", labels={"storage": "hdd"}), facts(node("n3"), storagedriver="overlay2")]
    s = wishing("s", f"constraint:{wish}", max_replicas=1)
    picture = run(snapshot(*nodes, s, *tasks(s, 3, state=PENDING)), schedule)
    assert sorted(placed(picture, "s")) == expected
    if not expected:
        one = picture.task("s-1")
        assert one is not None and one.status.err == (
            f"no suitable node (scheduling constraints not satisfied on 3 nodes: 3 do not match constraint:{wish})"
        )


def test_soft_constraints_are_each_for_itself_and_never_in_the_way() -> None:
    """Classic Swarm drops all of them as soon as one can't be had."""
    nodes = [node("n1", labels={"a_a": "1"}), node("n2", labels={"a_a": "1", "b_b": "1"}), node("n3", labels={"b_b": "1"})]
    s = wishing("s", "constraint:a_a==~1", "constraint:b_b==~1", "constraint:c_c==~1", max_replicas=1)
    picture = run(snapshot(*nodes, s, *tasks(s, 3, state=PENDING)), schedule)
    assert placed(picture, "s") == ["n2", "n1", "n3"]


# ---- affinities ----------------------------------------------------------------------------------------------------------------


def company() -> tuple[list[Node | Service | Task], list[str]]:
    """n1 runs redis:7 of the service cache (label tier=back), n2 something of the service other, n3 nothing."""
    cache, other = wishing("cache", image="redis:7", labels={"tier": "back"}), wishing("other")
    there = [task(cache, 1, node_id="n1", state=RUNNING), task(other, 1, node_id="n2", state=RUNNING)]
    return [node("n1"), node("n2"), node("n3"), cache, other, *there], ["n1", "n2", "n3"]


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("image==redis", ["n1"]),
        ("image==redis:7", ["n1"]),
        ("image==redis:6", []),
        ("image!=redis*", ["n2", "n3"]),
        ("service==cache", ["n1"]),
        ("service!=/^(cache|other)$/", ["n3"]),
        ("container==cache.1", ["n1"]),
        ("container!=cache.1.*", ["n2", "n3"]),
        ("tier==back", ["n1"]),
        ("tier!=back", ["n2", "n3"]),
    ],
)
def test_affinities(wish: str, expected: list[str]) -> None:
    objects, _ = company()
    s = wishing("s", f"affinity:{wish}", max_replicas=1)
    picture = run(snapshot(*objects, s, *tasks(s, 3, state=PENDING)), schedule)
    assert sorted(placed(picture, "s")) == expected
    if not expected:
        one = picture.task("s-1")
        assert one is not None
        assert one.status.err == f"no suitable node (affinity not satisfied on 3 nodes: 3 do not match affinity:{wish})"


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        # apart from its own kind: one a node, the rest waits
        ("service!=s", ["n1", "n2", "n3"]),
        # the first one anywhere, all others with it
        ("service==s", ["n1"] * 4),
        ("service==~s", ["n1"] * 4),
        # apart as long as there is room apart
        ("service!=~s", ["n1", "n2", "n3", "n1"]),
    ],
)
def test_affinities_to_ones_own_kind(wish: str, expected: list[str]) -> None:
    s = wishing("s", f"affinity:{wish}")
    picture = run(snapshot(node("n1"), node("n2"), node("n3"), s, *tasks(s, 4, state=PENDING)), schedule)
    assert placed(picture, "s") == expected


def test_tasks_placed_in_the_same_pass_are_company() -> None:
    a, b = wishing("a", image="redis:7"), wishing("b", "affinity:image==redis")
    b = msgspec.structs.replace(b, created_at=b.created_at)
    picture = snapshot(node("n1"), node("n2"), a, b, task(a, 1, state=PENDING, age_s=9), *tasks(b, 3, state=PENDING))
    assert placed(run(picture, schedule), "b") == ["n1"] * 3


def test_tasks_that_leave_are_no_company() -> None:
    a, b = wishing("a", image="redis:7"), wishing("b", "affinity:image!=redis")
    leaving = task(a, 1, node_id="n1", state=RUNNING, desired=TaskState.SHUTDOWN)
    assert placed(run(snapshot(node("n1"), a, b, leaving, task(b, 1, state=PENDING)), schedule), "b") == ["n1"]


# ---- strategies ----------------------------------------------------------------------------------------------------------------


def swarm(**labels: str):  # type: ignore[no-untyped-def]
    made = cluster()
    return msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, labels={STRATEGY: labels["strategy"]} if labels else None))


@pytest.mark.parametrize(
    ("of_swarm", "of_service", "expected"),
    [
        ({}, {}, ["n1", "n2", "n1", "n2"]),
        ({}, {STRATEGY: "binpack"}, ["n2", "n2", "n1", "n1"]),
        ({"strategy": "binpack"}, {}, ["n2", "n2", "n1", "n1"]),
        ({"strategy": "binpack"}, {STRATEGY: "spread"}, ["n1", "n2", "n1", "n2"]),
    ],
)
def test_strategy_of_the_service_or_of_the_swarm(of_swarm: dict[str, str], of_service: dict[str, str], expected: list[str]) -> None:
    """n2 is half full: binpack fills it up first."""
    there, s = service("there", cpus=2), service("s", cpus=1, labels=of_service)
    objects = [swarm(**of_swarm), node("n1"), node("n2"), there, s, task(there, 1, node_id="n2", state=RUNNING)]
    assert placed(run(snapshot(*objects, *tasks(s, 4, state=PENDING)), schedule), "s") == expected


def test_random_is_random_but_decided_by_the_tasks() -> None:
    s = service("s", labels={STRATEGY: "random"})
    picture = snapshot(*(node(f"n{number}") for number in range(4)), s, *tasks(s, 200, state=PENDING))
    first = placed(run(picture, schedule), "s")
    # the chance to miss one of four nodes 200 times is below 1e-24
    assert len(set(first)) == 4 and placed(run(picture, schedule), "s") == first
    assert first != placed(run(snapshot(*picture.all(Node), service("s"), *tasks(s, 200, state=PENDING)), schedule), "s")
