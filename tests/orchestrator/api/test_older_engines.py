"""What clients of the announced API version ask of an Engine of 1.41."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.older_engines import steps_for
from orchestrator.errors import ApiError
from tests.orchestrator.api.fake_containers import ContainerEngine
from tests.orchestrator.api.fakes import Setup, a_node, other_node, serving

TWO = {"HostConfig": {"NetworkMode": "front"}, "NetworkingConfig": {"EndpointsConfig": {"back": {"Aliases": ["db"]}, "front": None}}}


@dataclass
class Way:
    """A manager with one more node; `query` and `prefix` choose a way to that one's Engine."""

    setup: Setup
    engine: ContainerEngine
    prefix: str
    query: str

    async def create(self, version: str, body: dict[str, Any]) -> tuple[int, Any]:
        return await self.setup.call("POST", f"{self.prefix}/v{version}/containers/create?{self.query}", {"Image": "img", **body})


@pytest.fixture(params=["scheduled", "chosen by query", "chosen by path", "no cluster"])
async def way(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Way]:
    own, other = ContainerEngine("a"), ContainerEngine("b")
    async with AsyncExitStack() as stack:
        setup = await stack.enter_async_context(serving(tmp_path, own))
        if request.param == "no cluster":
            own.local_networks |= {"front", "back"}
            yield Way(setup, own, "", "")
            return
        await setup.init()
        await stack.enter_async_context(other_node(setup, tmp_path, a_node("nb", "node-b"), other.app()))
        other.local_networks |= {"front", "back"}
        prefix = "/mesh/v1/nodes/node-b/engine" if request.param == "chosen by path" else ""
        yield Way(setup, other, prefix, "node=node-b" if request.param == "chosen by query" else "")


async def test_several_networks_are_joined_one_after_the_other(way: Way) -> None:
    status, made = await way.create("1.44", TWO)
    assert status == 201
    [container] = way.engine.containers.values()
    assert container["Id"] == made["Id"]
    assert container["Networks"] == {"front": None, "back": {"Aliases": ["db"]}}


async def test_a_client_of_an_older_version_is_told_what_its_engine_says(way: Way) -> None:
    assert await way.create("1.43", TWO) == (400, {"message": "Container cannot be connected to network endpoints: back, front"})
    assert not way.engine.containers


async def test_no_container_is_left_that_has_only_some_of_its_networks(way: Way) -> None:
    way.engine.local_networks.remove("back")
    assert await way.create("1.50", TWO) == (404, {"message": "network back not found"})
    assert not way.engine.containers


async def test_the_address_of_the_first_network_is_the_containers(way: Way) -> None:
    with_address = {"NetworkingConfig": {"EndpointsConfig": {"front": {"MacAddress": "02:42:00:00:00:09"}}}}
    assert (await way.create("1.44", with_address))[0] == 201
    [container] = way.engine.containers.values()
    assert container["MacAddress"] == "02:42:00:00:00:09"


def body(**sent: Any) -> bytes:
    return json.dumps(sent).encode()


def test_what_such_an_engine_can_not_do_is_refused_in_words() -> None:
    twice = {"EndpointsConfig": {"one": {}, "two": {"MacAddress": "02:42:00:00:00:09"}}}
    with pytest.raises(
        ApiError, match=r"e speaks API 1\.41 and can choose a MAC address on a container's first network only.* network two out"
    ):
        steps_for(body(NetworkingConfig=twice), "1.44", "1.41", "e")
    part = {"Mounts": [{"Type": "volume", "Source": "data", "Target": "/d", "VolumeOptions": {"Subpath": "x"}}]}
    with pytest.raises(ApiError, match=r"e speaks API 1\.44 and mounts whole volumes only: leave the subpath of volume data out"):
        steps_for(body(HostConfig=part), "1.45", "1.44", "e")


@pytest.mark.parametrize(
    ("sent", "asked", "spoken"),
    [
        (body(**TWO), "1.44", "1.44"),
        (body(**TWO), "1.43", "1.41"),
        (body(Image="img"), "1.50", "1.41"),
        (body(NetworkingConfig={"EndpointsConfig": {"one": {"Aliases": ["x"]}}}), "1.50", "1.41"),
        (body(HostConfig=7, NetworkingConfig=[1]), "1.50", "1.41"),
        (b"[]", "1.50", "1.41"),
        (b"nonsense", "1.50", "1.41"),
    ],
)
def test_the_engine_judges_what_needs_no_steps(sent: bytes, asked: str, spoken: str) -> None:
    assert steps_for(sent, asked, spoken, "e") is None


def test_names_are_taken_in_any_case() -> None:
    steps = steps_for(body(hostconfig={"networkmode": "b"}, networkingCONFIG={"endpointsconfig": {"a": {}, "b": {}}}), "1.44", "1.41", "e")
    assert steps is not None
    assert steps.body == {"hostconfig": {"networkmode": "b"}, "NetworkingConfig": {"EndpointsConfig": {"b": {}}}}
    assert steps.connections == {"a": {}}
