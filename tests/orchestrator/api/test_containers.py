"""Containers of three nodes through one manager, and through two at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from orchestrator.model import Claim, Node
from orchestrator.store.base import Put
from tests.orchestrator.api.fake_containers import ContainerEngine
from tests.orchestrator.api.fakes import Setup, a_node, other_node, serving


@dataclass
class Cluster:
    """Nodes node-a (the manager, behind `setup`), node-b and node-c."""

    setup: Setup
    engines: dict[str, ContainerEngine]
    directory: Path

    async def create(self, name: str = "", **body: Any) -> str:
        made = await self.setup.ok("POST", f"/v1.44/containers/create?name={name}", {"Image": "img", **body})
        return str(made["Id"])

    def where(self, id: str) -> str:
        [node] = [node for node, engine in self.engines.items() if id in engine.containers]
        return node


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Cluster]:
    engines = {node: ContainerEngine(mark) for node, mark in (("node-a", "a"), ("node-b", "b"), ("node-c", "c"))}
    async with AsyncExitStack() as stack:
        setup = await stack.enter_async_context(serving(tmp_path, engines["node-a"]))
        await setup.init()
        for node in ("node-b", "node-c"):
            await stack.enter_async_context(other_node(setup, tmp_path, a_node(f"id-{node}", node), engines[node].app()))
        yield Cluster(setup, engines, tmp_path)


async def down(cluster: Cluster, name: str) -> None:
    node = next(node for node in cluster.setup.store.snapshot().all(Node) if node.description.hostname == name)
    await cluster.setup.store.commit([Put(replace(node, status=replace(node.status, state="down", message="heartbeat failure")))])


# ---- lists -----------------------------------------------------------------------------------------------------------------------------


async def test_containers_are_spread_and_listed_together(three: Cluster) -> None:
    ids = [await three.create(f"c{number}") for number in range(6)]
    assert [three.where(id) for id in ids] == ["node-a", "node-b", "node-c"] * 2
    assert await three.setup.ok("GET", "/v1.44/containers/json") == []
    shown = await three.setup.ok("GET", "/v1.44/containers/json?all=1")
    assert [one["Names"] for one in shown] == [
        [f"/c{number}", f"/{node}/c{number}"] for number, node in reversed(list(enumerate(["node-a", "node-b", "node-c"] * 2)))
    ]
    assert shown[0]["Labels"] == {"com.meshd.node": "node-c"}
    assert [one["Id"] for one in await three.setup.ok("GET", "/containers/json?limit=2")] == ids[:-3:-1]
    filtered = json.dumps({"node": ["node-b"], "name": {"c": True}})
    assert [one["Id"] for one in await three.setup.ok("GET", f"/containers/json?all=1&filters={filtered}")] == [ids[4], ids[1]]
    since = json.dumps({"since": ["c2"]})
    assert [one["Id"] for one in await three.setup.ok("GET", f"/containers/json?all=1&filters={since}")] == ids[:2:-1]


async def test_a_filter_that_engines_refuse_is_refused(three: Cluster) -> None:
    assert await three.setup.refused("GET", '/containers/json?filters={"nosuch":["x"]}') == (400, "invalid filter 'nosuch'")
    assert await three.setup.refused("GET", '/containers/json?filters={"since":["nosuch"]}') == (404, "No such container: nosuch")
    assert (await three.setup.refused("GET", "/containers/json?limit=x"))[0] == 400
    assert await three.setup.ok("GET", '/containers/json?filters={"node":["nosuch"]}') == []


async def test_a_node_that_is_away_is_named_in_lists_and_its_containers_refuse_in_words(three: Cluster) -> None:
    ids = [await three.create(f"c{number}") for number in range(3)]
    await down(three, "node-b")
    async with three.setup.session.get("http://d/v1.44/containers/json?all=1") as response:
        assert [one["Id"] for one in await response.json()] == [ids[2], ids[0]]
        assert response.headers["Warning"] == ('199 meshd "could not be asked: node-b (heartbeat failure); their containers are not shown"')
    assert await three.setup.refused("POST", f"/containers/{ids[1]}/start") == (503, "node node-b is away: heartbeat failure")
    assert await three.setup.refused("GET", "/containers/c1/json") == (
        404, "No such container: c1 (could not be asked: node-b (heartbeat failure))",
    )  # fmt: skip
    assert three.where(await three.create("c3")) in ("node-a", "node-c")
    status, text = await three.setup.refused("POST", "/containers/create", {"Image": "img", "Env": ["constraint:node==node-b"]})
    assert (status, text) == (
        409,
        "no suitable node (constraint:node==node-b not satisfied on 2 nodes) (could not be asked: node-b (heartbeat failure))",
    )


async def test_a_container_that_is_nowhere_is_an_engines_to_miss(three: Cluster) -> None:
    """Each request has its own words for it, and some are refused for something else first."""
    await three.create("one")
    assert await three.setup.refused("POST", "/v1.41/containers/nosuch/start") == (404, "No such container: nosuch")
    assert ("POST", "/v1.41/containers/nosuch/start") in three.engines["node-a"].asked
    assert ("POST", "/v1.41/containers/nosuch/start") not in three.engines["node-b"].asked
    await down(three, "node-b")
    status, text = await three.setup.refused("POST", "/v1.41/containers/nosuch2/start")
    assert (status, text) == (404, "No such container: nosuch2 (could not be asked: node-b (heartbeat failure))")
    assert ("POST", "/v1.41/containers/nosuch2/start") not in three.engines["node-a"].asked


# ---- one container ---------------------------------------------------------------------------------------------------------------------


async def test_a_containers_requests_reach_its_node_by_id_name_prefix_and_node(three: Cluster) -> None:
    ids = {f"c{number}": await three.create(f"c{number}") for number in range(3)}
    for name, id in ids.items():
        node = three.where(id)
        for reference in (id, name, id[:12], f"{node}/{name}"):
            shown = await three.setup.ok("GET", f"/v1.44/containers/{reference}/json")
            assert (shown["Id"], shown["Name"], shown["Node"]["Name"]) == (id, f"/{name}", node)
            assert (await three.setup.call("POST", f"/v1.44/containers/{reference}/start"))[0] == 204
            assert three.engines[node].containers[id].pop("State") == "running"
            three.engines[node].containers[id]["State"] = "created"
        assert (await three.setup.call("DELETE", f"/containers/{name}"))[0] == 204
    assert all(not engine.containers for engine in three.engines.values())
    assert await three.setup.refused("GET", "/containers/c1/json") == (404, "No such container: c1")
    assert await three.setup.refused("GET", "/containers/nowhere/c1/json") == (404, "No such container: nowhere/c1")


async def test_ambiguous_references(three: Cluster) -> None:
    for node in ("node-b", "node-c"):
        engine = three.engines[node]
        engine.containers["ab" + node] = {"Id": "ab" + node, "Name": "twin", "Created": 1, "Labels": {}}
    assert await three.setup.refused("GET", "/containers/twin/json") == (
        400, "container twin is on several nodes: name one of node-b/twin, node-c/twin",
    )  # fmt: skip
    assert await three.setup.refused("GET", "/containers/ab/json") == (400, "Multiple IDs found with provided prefix: ab")
    assert (await three.setup.ok("GET", "/containers/node-b/twin/json"))["Id"] == "abnode-b"


async def test_a_container_is_connected_to_networks_of_its_own_node(three: Cluster) -> None:
    ids = [await three.create(f"c{number}") for number in range(3)]
    for node in ("node-b", "node-c"):
        three.engines[node].local_networks.add("both")
    three.engines["node-c"].local_networks.add("lone")
    networks = three.engines["node-b"].containers[ids[1]]["Networks"]
    # by whichever name: of networks with one name its node's is meant, and every node has a bridge
    for network, container in (("both", "c1"), ("node-b/both", ids[1]), ("bridge", "node-b/c1"), ("id-both-b", "c1")):
        sent = {"Container": container, "EndpointConfig": {"Aliases": [network]}}
        assert (await three.setup.call("POST", f"/networks/{network}/connect", sent))[0] == 200
        assert networks.popitem() == ("bridge" if network == "bridge" else "both", {"Aliases": [network]})
    await three.setup.ok("POST", "/networks/both/connect", {"container": "c1"})
    await three.setup.ok("POST", "/networks/both/disconnect", {"Container": "c1", "Force": True})
    assert networks == {}
    for network in ("lone", "node-c/both"):
        assert await three.setup.refused("POST", f"/networks/{network}/connect", {"Container": "c1"}) == (
            403,
            f"network {network} is node node-c's and container c1 is on node node-b: what is to reach both is a network of the cluster "
            "(docker network create -d overlay --attachable)",
        )
    assert await three.setup.refused("POST", "/networks/lone/connect", {"Container": "nosuch"}) == (404, "No such container: nosuch")
    assert await three.setup.refused("POST", "/networks/nosuch/connect", {"Container": "c1"}) == (404, "network nosuch not found")


async def test_commit_and_prune(three: Cluster) -> None:
    ids = [await three.create(f"c{number}") for number in range(3)]
    assert await three.setup.ok("POST", "/v1.41/commit?container=c1&repo=c1&comment=a%26b", {}) == {"Id": "sha256:b"}
    assert ("POST", f"/v1.41/commit?container={ids[1]}&repo=c1&comment=a%26b") in three.engines["node-b"].asked
    await three.setup.call("POST", f"/containers/{ids[0]}/start")
    assert await three.setup.ok("POST", '/containers/prune?filters={"node":["node-c"]}') == {
        "ContainersDeleted": [ids[2]], "SpaceReclaimed": 10,
    }  # fmt: skip
    assert await three.setup.ok("POST", "/containers/prune") == {"ContainersDeleted": [ids[1]], "SpaceReclaimed": 10}
    assert await three.setup.ok("POST", "/containers/prune") == {"ContainersDeleted": None, "SpaceReclaimed": 0}


@pytest.mark.parametrize("where", ["query", "header"])
async def test_prune_leaves_nodes_alone_that_are_not_chosen(three: Cluster, where: str) -> None:
    ids = [await three.create(f"c{number}") for number in range(3)]
    query, headers = ("?node=node-b&node=node-c", {}) if where == "query" else ("", {"X-Meshd-Nodes": "node-b, node-c"})
    async with three.setup.session.post(f"http://d/v1.44/containers/prune{query}", headers=headers) as response:
        assert await response.json() == {"ContainersDeleted": ids[1:], "SpaceReclaimed": 20}
    assert list(three.engines["node-a"].containers) == ids[:1]


async def test_exec_instances_are_found_again_by_who_did_not_make_them(three: Cluster, tmp_path: Path) -> None:
    for number in range(3):
        await three.create(f"c{number}")
    made = [await three.setup.ok("POST", f"/v1.44/containers/c{number}/exec", {"Cmd": ["x"]}) for number in range(3)]
    (tmp_path / "second").mkdir()
    async with serving(tmp_path / "second", three.engines["node-a"]) as second:
        _share(three.setup, second)
        for asked in (three.setup, second):
            codes = [(await asked.ok("GET", f"/v1.44/exec/{one['Id']}/json"))["ExitCode"] for one in made]
            assert codes == [0xA, 0xB, 0xC]
        assert await second.refused("GET", "/exec/nosuch/json") == (404, "No such exec instance: nosuch")


# ---- names -----------------------------------------------------------------------------------------------------------------------------


def _share(first: Setup, second: Setup) -> None:
    """Another manager's API over the same store; as an own process, but with the first one's Engine for its own."""
    second.backend.store, second.backend.state, second.backend.node_id = first.store, "manager", first.backend.node_id
    second.backend.engines = first.backend.engines


async def test_of_many_creations_with_one_name_at_two_managers_one_succeeds(three: Cluster, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    async with serving(tmp_path / "second", three.engines["node-a"]) as second:
        _share(three.setup, second)
        asked = [
            setup.call("POST", "/v1.44/containers/create?name=web", {"Image": "img"}) for _ in range(5) for setup in (three.setup, second)
        ]
        answers = await asyncio.gather(*asked)
    assert sorted(status for status, _ in answers) == [201] + [409] * 9
    [id] = [id for engine in three.engines.values() for id in engine.containers]
    taken = f'The container name "/web" is already in use by container "{id}"'
    assert all(taken in answer["message"] for status, answer in answers if status == 409)
    assert not [claim for claim in three.setup.store.snapshot().all(Claim) if claim.id.startswith("container/")]


async def test_a_name_that_any_node_has_is_taken_for_renames_too(three: Cluster) -> None:
    first, second = await three.create("one"), await three.create("two")
    assert three.where(first) != three.where(second)
    status, text = await three.setup.refused("POST", "/containers/create?name=two", {"Image": "img"})
    assert (status, f'"/two" is already in use by container "{second}"' in text) == (409, True)
    status, text = await three.setup.refused("POST", "/containers/one/rename?name=two")
    assert (status, f'"/two" is already in use by container "{second}"' in text) == (409, True)
    assert (await three.setup.call("POST", "/containers/one/rename?name=three"))[0] == 204
    assert three.engines[three.where(first)].containers[first]["Name"] == "three"
    assert (await three.setup.refused("POST", "/containers/two/rename?name="))[0] == 400


async def test_names_that_engines_make_up_are_unique_too(three: Cluster) -> None:
    for engine in three.engines.values():
        engine.made_name = lambda: "happy_fermi"
    for _ in range(3):
        await three.create()
    assert sorted(one["Name"] for engine in three.engines.values() for one in engine.containers.values()) == [
        "happy_fermi", "happy_fermi1", "happy_fermi2",
    ]  # fmt: skip


# ---- placement -------------------------------------------------------------------------------------------------------------------------


async def test_a_container_goes_where_its_image_network_and_volume_are(three: Cluster) -> None:
    a, b, c = (three.engines[node] for node in ("node-a", "node-b", "node-c"))
    b.images.add("only")
    assert three.where(await three.create("image", Image="only")) == "node-b"
    c.local_networks.add("mine")
    assert three.where(await three.create("network", HostConfig={"NetworkMode": "mine"})) == "node-c"
    b.volumes = {"data", "database"}
    assert three.where(await three.create("volume", HostConfig={"Binds": ["data:/d"]})) == "node-b"
    assert three.where(await three.create("again", HostConfig={"Binds": ["data:/d"]})) == "node-b"
    assert three.where(await three.create("directory", HostConfig={"Binds": ["/src:/d"]})) == "node-a"
    assert json.loads(a.bodies[-1]) == {"Image": "img", "HostConfig": {"Binds": ["/src:/d"]}}


async def test_an_image_that_is_nowhere_is_the_engines_to_miss(three: Cluster) -> None:
    """The CLI pulls at this answer."""
    assert await three.setup.refused("POST", "/containers/create", {"Image": "nosuch"}) == (404, "No such image: nosuch:latest")


async def test_expressions_become_labels(three: Cluster) -> None:
    id = await three.create("web", Env=["A=1", "constraint:node==node-c"])
    assert three.where(id) == "node-c"
    assert json.loads(three.engines["node-c"].bodies[-1])["Env"] == ["A=1"]
    assert three.engines["node-c"].containers[id]["Labels"] == {"com.docker.swarm.constraints": '["node==node-c"]'}
    status, text = await three.setup.refused("POST", "/containers/create", {"Image": "img", "Env": ["constraint:oops"]})
    assert (status, "expected <key>==<value>" in text) == (400, True)


async def test_many_at_once_are_spread_all_the_same(three: Cluster) -> None:
    await asyncio.gather(*(three.create(f"c{number}") for number in range(30)))
    assert max(len(engine.containers) for engine in three.engines.values()) <= 15


async def test_a_workers_api_is_its_own_engines(three: Cluster) -> None:
    await three.create("c0")
    await three.create("c1")
    three.setup.backend.state = "worker"
    shown = await three.setup.ok("GET", "/v1.44/containers/json?all=1")
    assert [one["Names"] for one in shown] == [["/c0"]]
    assert (await three.setup.refused("GET", "/containers/c1/json"))[0] == 404
