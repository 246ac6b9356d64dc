"""Engines of other nodes: asked together within bounds, and one of them alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace

from orchestrator.api.engines import Engines, Member, Patience, Replies
from orchestrator.api.node_scope import root_of, without_node
from orchestrator.api.node_sockets import wanted
from orchestrator.api.proxy import EngineProxy
from orchestrator.engine_http import Answer, EngineAway, at_version
from orchestrator.errors import ApiError
from orchestrator.model import Node
from orchestrator.store.base import Delete, Put
from tests.orchestrator.agent.wait import until
from tests.orchestrator.api.fakes import FakeEngine, Setup, a_node, other_node

SHORT = Patience(first_s=0.5, silent_s=5.0, most_s=5.0)


@pytest.fixture
async def remote(manager: Setup, tmp_path: Path) -> AsyncIterator[FakeEngine]:
    """The Engine of node-b, beside the manager's own."""
    engine = FakeEngine()
    async with other_node(manager, tmp_path, a_node("nb", "node-b"), engine.app()):
        yield engine


@pytest.fixture
async def engines(node: Setup) -> AsyncIterator[Engines]:
    local = EngineProxy(node.backend.engine_socket)
    yield Engines(node.backend, local)  # type: ignore[arg-type]
    await local.close()


# ---- pure ------------------------------------------------------------------------------------------------------------------------------


def test_patience_grows_with_the_quicker_half_within_bounds() -> None:
    patience = Patience(first_s=1.0, silent_s=3.0, most_s=10.0)
    for half_after_s, limit_s in ((None, 3.0), (0.0, 1.0), (0.25, 1.0), (0.5, 2.0), (2.5, 10.0), (60.0, 10.0)):
        assert patience.limit_s(half_after_s) == limit_s


def test_versions_are_brought_into_what_is_spoken() -> None:
    for asked, reached in (("/v1.44/x?a=1", "/v1.41/x?a=1"), ("/v1.30/x", "/v1.30/x"), ("/x", "/v1.41/x"), ("/v1.9/x", "/v1.24/x")):
        assert at_version(asked, "1.24", "1.41") == reached
    assert at_version("/volumes/v1.9/x", "1.24", "1.41") == "/v1.41/volumes/v1.9/x"


def test_the_parameter_node_and_nothing_else_is_taken_out() -> None:
    for path, kept in (
        ("/a?node=x", "/a"), ("/a?x=1&node=y&z=%26node=1", "/a?x=1&z=%26node=1"), ("/a?nodes=1", "/a?nodes=1"), ("/a", "/a"),
    ):  # fmt: skip
        assert without_node(path) == kept
    for path, root in (("/v1.44/services/x", "services"), ("/services", "services"), ("/volumes/x", "volumes"), ("/", "")):
        assert root_of(path) == root


def test_replies_say_who_is_missing_and_refuse_when_nobody_did_it() -> None:
    members = [Member(f"n{number}", f"node-{number}", "", False) for number in range(12)]
    silent = Replies([], [(member, "no answer") for member in members])
    assert silent.missing().startswith("could not be asked: node-0 (no answer), ")
    assert silent.missing().endswith("node-7 (no answer), 4 more nodes")
    with pytest.raises(ApiError, match="could not be asked") as refused:
        silent.require_one()
    assert refused.value.status == 503
    no = Answer(409, {}, b'{"message":"in use"}')
    Replies([(members[0], Answer(200, {}, b"{}")), (members[1], no)]).require_one()
    with pytest.raises(ApiError, match="in use") as refused:
        Replies([(members[1], no)], [(members[0], "no answer")]).require_one()
    assert refused.value.status == 409
    response = web.Response()
    Replies([], [(members[0], 'a "quoted" word\u2026')]).warn(response, "incomplete")
    assert response.headers["Warning"] == "199 meshd \"could not be asked: node-0 (a 'quoted' word?); incomplete\""


# ---- asking ----------------------------------------------------------------------------------------------------------------------------


async def test_all_engines_are_asked_and_missing_ones_named(manager: Setup, remote: FakeEngine, engines: Engines, tmp_path: Path) -> None:
    async def hang(request: web.Request) -> web.Response:
        if request.path == "/version":
            return web.json_response({"ApiVersion": "1.44", "MinAPIVersion": "1.24"})
        await asyncio.Event().wait()
        raise AssertionError

    silent = web.Application()
    silent.router.add_route("*", "/{path:.*}", hang)
    async with other_node(manager, tmp_path, a_node("nc", "node-c"), silent):
        down = a_node("nd", "node-d", state="down")
        await manager.store.commit(
            [Put(replace(down, status=replace(down.status, message="heartbeat failure"))), Put(a_node("ne", "node-e"))]
        )
        replies = await engines.ask_all("GET", "/v1.44/containers/json", patience=SHORT)
    assert [(member.name, value) for member, value in replies.values()] == [("node-a", []), ("node-b", [])]
    assert remote.asked[-1] == ("GET", "/v1.41/containers/json")
    [c, d, e] = [(member.name, reason) for member, reason in replies.away]
    assert c[0] == "node-c" and c[1].startswith("no answer within")
    assert d == ("node-d", "heartbeat failure")
    assert e == ("node-e", "node ne can't be reached")


async def test_a_node_without_its_engine_says_so(manager: Setup, engines: Engines, tmp_path: Path) -> None:
    async with other_node(manager, tmp_path, a_node("nb", "node-b"), web.Application()):
        (tmp_path / "nb.sock").unlink()
        with pytest.raises(EngineAway, match=r"node node-b: the Docker Engine of this node does not answer at unix://.*nb.sock"):
            await engines.engine(engines.find("node-b")).ask("GET", "/info")


async def test_members_off_managers_are_the_node_itself(node: Setup, engines: Engines) -> None:
    assert [member.local for member in engines.members()] == [True]
    with pytest.raises(ApiError):
        engines.find("node-b")


async def test_members_know_their_own_node(manager: Setup, remote: FakeEngine, engines: Engines) -> None:
    assert [(member.name, member.local) for member in engines.members()] == [("node-a", True), ("node-b", False)]
    assert engines.local().name == "node-a"
    assert manager.store.snapshot().count(Node) == 2


# ---- one node ----------------------------------------------------------------------------------------------------------------------------


async def test_one_nodes_engine_by_query_and_by_path(manager: Setup, remote: FakeEngine) -> None:
    for path in ("/v1.44/containers/json?node=node-b&all=1", "/mesh/v1/nodes/nb/engine/v1.44/containers/json?all=1"):
        assert await manager.ok("GET", path) == []
        assert remote.asked.pop() == ("GET", "/v1.41/containers/json?all=1")
    assert ("GET", "/v1.41/containers/json?all=1") not in manager.engine.asked
    assert await manager.refused("GET", "/v1.44/containers/json?node=nosuch") == (404, "node nosuch not found")
    assert await manager.ok("GET", "/mesh/v1/nodes/node-a/engine/info") != []
    assert (await manager.call("GET", "/v1.44/services?node=node-b"))[0] == 200


async def test_each_node_has_a_socket_of_its_own_at_managers(manager: Setup, remote: FakeEngine) -> None:
    directory = Path(manager.socket).with_suffix(".nodes")
    socket = directory / "node-b.sock"
    # it is made for nobody and opened then
    await until(lambda: socket.exists() and socket.stat().st_mode & 0o777 == 0o660, "it has its socket", 20)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session:
        # by what the fake Engine says of itself: it is asked, not the cluster
        async with session.get("http://d/v1.44/info") as response:
            assert (await response.json())["Swarm"] == {"LocalNodeState": "inactive"}
        async with session.get("http://d/v1.44/services") as response:
            assert response.status == 404
        assert remote.asked[-1] == ("GET", "/v1.41/services")
    await manager.store.commit([Delete("node", "nb")])
    await until(lambda: not socket.exists(), "its socket goes with it", 20)
    assert (directory / "node-a.sock").exists()


def test_sockets_are_named_after_nodes_as_far_as_that_names_one() -> None:
    named = (("1", "a"), ("2", "b"), ("3", "b"), ("4", "x/y"), ("5", ".."), ("6", "n" * 110))
    members = [Member(id, name, "", False) for id, name in named]
    assert wanted(Path("/d"), members) == {"/d/a.sock": "1", **{f"/d/{id}.sock": id for id in "2345"}}


async def test_info_says_who_is_away(manager: Setup, remote: FakeEngine) -> None:
    assert not (await manager.ok("GET", "/info"))["Warnings"]
    node = a_node("nc", "node-c", state="down")
    await manager.store.commit([Put(replace(node, status=replace(node.status, message="heartbeat failure")))])
    assert (await manager.ok("GET", "/info"))["Warnings"] == [
        "WARNING: nodes could not be asked: node-c (heartbeat failure); their containers, images and volumes are not shown"
    ]
