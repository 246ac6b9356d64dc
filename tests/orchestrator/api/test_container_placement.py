"""Where a container goes: against the definition over all small clusters, then each rule by itself."""

from __future__ import annotations

import itertools
from dataclasses import replace as altered
from typing import Any

import pytest
from msgspec.structs import replace

from orchestrator.api import codec
from orchestrator.api.container_placement import (
    RESERVED_MEMORY,
    Candidate,
    Creation,
    Present,
    Wanted,
    choose,
    name_holder,
    rewritten,
    wanted_of,
)
from orchestrator.errors import ApiError
from orchestrator.model import NodeSpec, Platform, ResourceObject
from tests.orchestrator.api.fakes import a_node


def wanted(body: dict[str, Any], platform: str = "") -> Wanted:
    return wanted_of(codec.convert(body, Creation), platform, body.get("HostConfig") or {}, lambda name: name == "overlay")


def candidate(name: str, count: int = 0, **fields: Any) -> Candidate:
    """`count` running containers; everything else as it is given."""
    node = a_node(f"id-{name}", name)
    node = replace(node, description=replace(node.description, resources=ResourceObject(memory_bytes=1000)))
    containers = tuple(Present(f"{name}{number}", (f"{name}-{number}",), "x") for number in range(count))
    known = {"has_image": True, "local": name == "a", "containers": containers, **fields}
    return Candidate(node=node, name=name, **known)


def labelled(one: Candidate, **labels: str) -> Candidate:
    return altered(one, node=replace(one.node, spec=NodeSpec(labels=labels)))


def chosen(asked: Wanted, *candidates: Candidate) -> str:
    return choose(asked, candidates).name


def refused(asked: Wanted, *candidates: Candidate) -> str:
    with pytest.raises(ApiError) as error:
        choose(asked, candidates)
    assert error.value.status == 409
    return error.value.message


# ---- spread ----------------------------------------------------------------------------------------------------------------------------


def test_every_small_cluster() -> None:
    """Three nodes, each with or without the image, open or drained, with 0 to 2 containers: the fullest never wins, nor one that is closed,
    nor one without the image while another has it; equals are this node, then the first by name."""
    for states in itertools.product(itertools.product((True, False), ("active", "drain"), (0, 1, 2)), repeat=3):
        nodes = []
        for name, (has_image, availability, count) in zip("cab", states, strict=True):
            one = candidate(name, count, has_image=has_image)
            nodes.append(altered(one, node=replace(one.node, spec=NodeSpec(availability=availability))))
        open_nodes = [one for one in nodes if one.node.spec.availability == "active"]
        if not open_nodes:
            assert refused(Wanted(image="x"), *nodes) == "no suitable node (not available for new containers on 3 nodes)"
            continue
        pool = [one for one in open_nodes if one.has_image] or open_nodes
        fewest = min(len(one.containers) for one in pool)
        equals = {one.name for one in pool if len(one.containers) == fewest}
        assert chosen(Wanted(image="x"), *nodes) == min(equals)


def test_what_has_ended_does_not_count_and_what_is_on_its_way_does() -> None:
    ended = altered(candidate("b", 2), containers=tuple(altered(one, state="exited") for one in candidate("b", 2).containers))
    assert chosen(Wanted(), candidate("c", 1), ended) == "b"
    assert chosen(Wanted(), candidate("b", 0, pending=2), candidate("c", 1)) == "c"


def test_no_node_at_all() -> None:
    assert refused(Wanted()) == "no suitable node (the cluster has none that answers)"


# ---- demands ---------------------------------------------------------------------------------------------------------------------------


def test_constraints_by_env_and_label_hard_and_soft() -> None:
    nodes = (labelled(candidate("a"), disk="hdd"), labelled(candidate("b", 5), disk="ssd"))
    assert chosen(wanted({"Env": ["constraint:disk==ssd"]}), *nodes) == "b"
    assert chosen(wanted({"Labels": {"com.docker.swarm.constraints": '["disk!=hdd"]'}}), *nodes) == "b"
    assert chosen(wanted({"Env": ["constraint:disk==~ssd"]}), *nodes) == "b"
    assert chosen(wanted({"Env": ["constraint:disk==~nvme"]}), *nodes) == "a"
    for text in ("node==b", "node==id-b", "node.hostname==b", "node.labels.disk==ssd", "node==/^b$/"):
        assert chosen(wanted({"Env": [f"constraint:{text}"]}), *nodes) == "b", text
    assert refused(wanted({"Env": ["constraint:disk==nvme"]}), *nodes) == (
        "no suitable node (constraint:disk==nvme not satisfied on 2 nodes)"
    )
    with pytest.raises(ApiError, match="expected <key>==<value>"):
        wanted({"Env": ["constraint:disk"]})


def test_affinities_to_containers_images_and_labels() -> None:
    db = Present("d" * 64, ("db",), "redis:7", labels={"tier": "back"}, state="exited")
    nodes = (candidate("a"), altered(candidate("b", 3), containers=(db,)))
    for text in ("container==db", f"container=={'d' * 64}", "image==redis", "image==redis:7", "tier==back"):
        assert chosen(wanted({"Env": [f"affinity:{text}"]}), *nodes) == "b", text
        assert chosen(wanted({"Env": [f"affinity:{text.replace('==', '!=')}"]}), *nodes) == "a", text


def test_containers_it_depends_on_are_on_its_node() -> None:
    db = Present("d" * 64, ("db",), "redis")
    nodes = (candidate("a"), altered(candidate("b"), containers=(db, db)))
    for options in (
        {"NetworkMode": "container:db"}, {"PidMode": "container:ddd"}, {"IpcMode": "container:db"}, {"VolumesFrom": ["db:ro"]},
        {"Links": ["/db:/web/db"]},
    ):  # fmt: skip
        assert chosen(wanted({"HostConfig": options}), *nodes) == "b", options
    elsewhere = altered(candidate("c"), containers=(Present("e" * 64, ("other",), "redis"),))
    assert "container db not there on 2 nodes; container other not there on 1 node" in refused(
        wanted({"HostConfig": {"VolumesFrom": ["db", "other"]}}), *nodes, elsewhere
    )
    with pytest.raises(ApiError, match=r"^No such container: nosuch$") as error:
        choose(wanted({"HostConfig": {"VolumesFrom": ["nosuch"]}}), nodes)
    assert error.value.status == 400


def test_ports_that_are_taken() -> None:
    def publishing(ip: str, port: str = "80") -> Wanted:
        return wanted({"HostConfig": {"PortBindings": {"8080/tcp": [{"HostIp": ip, "HostPort": port}]}}})

    def holding(ip: str) -> Candidate:
        return altered(candidate("a"), containers=(Present("1", (), "x", ports=frozenset({("tcp", ip, 80)})),))

    addresses = ("", "0.0.0.0", "::", "10.0.0.1", "10.0.0.2")
    for asked, held in itertools.product(addresses, addresses):
        collides = asked == held or asked in ("", "0.0.0.0", "::") or held in ("", "0.0.0.0", "::")
        assert (chosen(publishing(asked), holding(held), candidate("b", 9)) == "b") is collides, (asked, held)
    for free in ("", "0", "8000-9000", "81"):
        assert chosen(publishing("", free), holding(""), candidate("b", 9)) == "a"
    udp = wanted({"HostConfig": {"PortBindings": {"8080/udp": [{"HostPort": "80"}]}}})
    assert chosen(udp, holding(""), candidate("b", 9)) == "a"
    # nowhere free: it takes its turn, as one that replaces another does
    assert chosen(publishing(""), holding("")) == "a"
    overlaid = {"NetworkMode": "overlay", "PortBindings": {"8080/tcp": [{"HostPort": "80"}]}}
    assert refused(wanted({"HostConfig": overlaid}), holding("")) == "no suitable node (port already in use on 1 node)"
    # a service's, of which the Engine knows nothing: on every address
    services = candidate("a", task_ports=frozenset({("tcp", 80)}))
    assert chosen(udp, services, candidate("b", 9)) == "a"
    for address in addresses:
        assert chosen(publishing(address), services, candidate("b", 9)) == "b"
    assert refused(publishing(""), services) == "no suitable node (port already in use on 1 node)"


def test_addresses_that_ports_are_published_on() -> None:
    def publishing(*addresses: str, port: str = "") -> Wanted:
        return wanted({"HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": ip, "HostPort": port} for ip in addresses]}}})

    def at(name: str, address: str, count: int = 0) -> Candidate:
        one = candidate(name, count)
        return altered(one, node=replace(one.node, status=replace(one.node.status, addr=address)))

    nodes = (at("a", "10.0.0.1", 9), at("b", "10.0.0.2"))
    # loopback means the machine one is at
    for loopback in ("127.0.0.1", "127.1.2.3", "::1"):
        assert chosen(publishing(loopback), *nodes) == "a"
    assert chosen(publishing("127.0.0.1", port="8080"), at("b", "10.0.0.2")) == "b"
    # a node's own address means that node; an address that nobody has said to have, and one that is none, are for the Engine to judge
    assert chosen(publishing("10.0.0.2"), at("a", "10.0.0.1"), at("b", "10.0.0.2", 9)) == "b"
    for address in ("", "0.0.0.0", "::", "10.0.0.9", "nonsense"):
        assert chosen(publishing(address), *nodes) == "b"
    assert refused(publishing("10.0.0.1", "10.0.0.2"), *nodes) == "no suitable node (address not there on 2 nodes)"


def test_platforms() -> None:
    arm = candidate("b", 9)
    arm = altered(arm, node=replace(arm.node, description=replace(arm.node.description, platform=Platform("aarch64", "linux"))))
    for platform, name in (
        ("linux/arm64", "b"), ("linux/arm64/v8", "b"), ("arm64", "b"), ("linux/amd64", "a"), ("linux", "a"), ("amd64", "a"), ("", "a"),
    ):  # fmt: skip
        assert chosen(wanted({}, platform), candidate("a"), arm) == name, platform
    assert refused(wanted({}, "windows/amd64"), candidate("a")) == "no suitable node (unsupported platform on 1 node)"


def test_memory_that_is_reserved() -> None:
    holder = Present("1", (), "x", labels={RESERVED_MEMORY: "600"})
    asked = wanted({"HostConfig": {"MemoryReservation": 500}})
    full = altered(candidate("a"), containers=(holder,))
    assert chosen(asked, full, candidate("b", 9)) == "b"
    assert chosen(asked, altered(full, containers=(altered(holder, state="exited"),)), candidate("b", 9)) == "a"
    assert chosen(asked, candidate("a", task_memory_bytes=501), candidate("b", 9)) == "b"
    assert "less than 500 B free on 1 node" in refused(asked, full)


def test_what_another_nodes_owner_does_not_permit() -> None:
    asked = wanted({"HostConfig": {"Privileged": True}})
    forbidding = candidate("b")
    forbidding = altered(forbidding, node=replace(forbidding.node, description=replace(forbidding.node.description, mesh_permits=[])))
    assert chosen(asked, candidate("a", 9), forbidding) == "a"
    assert chosen(asked, candidate("a", 9), candidate("b")) == "b"
    assert "does not permit privileged" in refused(asked, forbidding)


def test_networks_of_engines_and_of_the_cluster() -> None:
    asked = wanted({"HostConfig": {"NetworkMode": "mine"}, "NetworkingConfig": {"EndpointsConfig": {"overlay": {}}}})
    assert asked.networks == {"mine"}
    assert chosen(asked, candidate("a"), candidate("b", 9, networks=frozenset({"mine"}))) == "b"
    # nowhere: the Engine says so
    assert chosen(asked, candidate("a"), candidate("b", 9)) == "a"
    for mode in ("", "bridge", "host", "none", "default", "container:x", "overlay"):
        assert wanted({"HostConfig": {"NetworkMode": mode}}).networks == set()


# ---- preferences -----------------------------------------------------------------------------------------------------------------------


def test_directories_of_the_machine_are_this_ones_unless_something_else_is_demanded() -> None:
    for options in ({"Binds": ["/src:/src:ro"]}, {"Mounts": [{"Type": "bind", "Source": "/src"}]}):
        assert chosen(wanted({"HostConfig": options}), candidate("a", 9), candidate("b")) == "a"
        assert chosen(wanted({"HostConfig": options, "Env": ["constraint:node==b"]}), candidate("a", 9), candidate("b")) == "b"


def test_named_volumes_are_found_again() -> None:
    """Whatever else runs where: a container with a volume goes where it is in use, else where it exists, else always to the same node."""
    for options in ({"Binds": ["data:/d"]}, {"Mounts": [{"Type": "volume", "Source": "data", "Target": "/d"}]}):
        asked = wanted({"HostConfig": options})
        assert asked.volumes == {"data"}
        here = frozenset({"data"})
        user = Present("1", (), "x", state="exited", volumes=here)
        used = altered(candidate("c", volumes=here), containers=(user,) * 9)
        assert chosen(asked, candidate("a", volumes=here), candidate("b"), used) == "c"
        assert chosen(asked, candidate("a"), candidate("b", 9, volumes=here)) == "b"
        everywhere = {
            chosen(asked, *(candidate(name, count, volumes=here) for name, count in zip("abc", counts, strict=True)))
            for counts in itertools.permutations((0, 5, 9))
        }
        assert len(everywhere) == 1
    assert wanted({"HostConfig": {"Binds": ["/only", "./x:/y"]}}).volumes == set()


# ---- the body and the name -------------------------------------------------------------------------------------------------------------


def test_expressions_move_to_labels_and_the_rest_is_as_it_was_sent() -> None:
    body = {
        "Image": "x", "Env": ["A=1", "constraint:a==b", "affinity:c!=d", "reschedule:on-node-failure"], "Foo": {"bar": 1},
        "Labels": {"k": "v", "com.docker.swarm.constraints": '["x==y"]'}, "HostConfig": {"MemoryReservation": 7},
    }  # fmt: skip
    assert rewritten(body, codec.convert(body, Creation)) == {
        "Image": "x", "Env": ["A=1"], "Foo": {"bar": 1}, "HostConfig": {"MemoryReservation": 7},
        "Labels": {
            "k": "v", "com.docker.swarm.constraints": '["x==y","a==b"]', "com.docker.swarm.affinities": '["c!=d"]', RESERVED_MEMORY: "7",
        },
    }  # fmt: skip
    plain = {"Image": "x", "env": ["A=1"], "labels": {"k": "v"}}
    assert rewritten(plain, codec.convert(plain, Creation)) is None


def test_what_an_engine_lists() -> None:
    present = Present.listed(
        {
            "Id": "1", "Names": ["/web", "/other/alias"], "Image": "x", "ImageID": "sha256:1", "Labels": None, "State": "running",
            "Ports": [{"PrivatePort": 80}, {"IP": "0.0.0.0", "PublicPort": 80, "Type": "udp"}],
            "Mounts": [{"Name": "data"}, {"Source": "/x"}],
        }
    )  # fmt: skip
    assert present == Present("1", ("web",), "x", "sha256:1", {}, "running", frozenset({("udp", "0.0.0.0", 80)}), frozenset({"data"}))
    holder = name_holder([altered(candidate("a"), containers=(present,))], "web")
    assert holder == present
    assert name_holder([candidate("a")], "web") is None
