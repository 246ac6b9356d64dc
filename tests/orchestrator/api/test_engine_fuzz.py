"""Whatever is asked of containers, images, volumes and networks, with a real Engine behind: an answer in time, a failure only where the
Engine fails itself, and nothing half-made.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import pytest
from hypothesis import given
from yarl import URL

from orchestrator.api.app import serve_unix
from orchestrator.store.base import Put
from tests.orchestrator.agent.conftest import Engine
from tests.orchestrator.api import hostile, hostile_engine
from tests.orchestrator.api.fakes import FakeBackend, a_node
from tests.orchestrator.api.fuzzing import more, objects
from tests.orchestrator.api.test_engine import dockerd

__all__ = ["dockerd"]

pytestmark = [pytest.mark.engine]

_ANSWER_S = 60.0
# a body that goes on for longer is a stream's
_STREAM_S = 1.0
_NOT_SUPPORTED = 501
_KEPT = {"containers": "web", "volumes": "vol", "networks": "br"}


@dataclass
class Beside:
    """A manager and its Engine, which can both be asked. Another node is down."""

    runner: asyncio.Runner
    backend: FakeBackend
    mesh: aiohttp.ClientSession
    engine: aiohttp.ClientSession

    def ask(self, session: aiohttp.ClientSession, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        async def answered() -> tuple[int, bytes]:
            headers = {"Content-Type": "application/x-tar" if body[:1] not in (b"{", b"[") else "application/json"}
            async with asyncio.timeout(_ANSWER_S):
                answer = await session.request(method, URL(f"http://d{path}", encoded=True), data=body, headers=headers)
            try:
                async with asyncio.timeout(_STREAM_S if answer.status < 400 else _ANSWER_S):
                    return answer.status, await answer.read()
            except TimeoutError:
                assert answer.status < 400, f"{method} {path}: {answer.status} without an end"
                return answer.status, b""
            finally:
                answer.close()

        return self.runner.run(answered())

    def there(self) -> dict[str, dict[str, str]]:
        """What the Engine has: kind -> id -> name."""
        found = {}
        for kind, path in (("containers", "/containers/json?all=1"), ("volumes", "/volumes"), ("networks", "/networks")):
            listed = json.loads(self.ask(self.engine, "GET", path)[1])
            entries = listed["Volumes"] or () if kind == "volumes" else listed
            found[kind] = {entry.get("Id") or entry["Name"]: entry.get("Name") or entry["Names"][0].strip("/") for entry in entries}
        return found

    def begin(self) -> dict[str, dict[str, str]]:
        """As it is before each example: a container, a volume and a network."""
        present = self.there()
        for kind, ids in present.items():
            for id, name in ids.items():
                if name != _KEPT[kind] and name not in ("bridge", "host", "none"):
                    self.ask(self.engine, "DELETE", f"/{kind}/{id}?force=1")
        if "vol" not in present["volumes"].values():
            self.ask(self.engine, "POST", "/volumes/create", b'{"Name":"vol"}')
        if "br" not in present["networks"].values():
            self.ask(self.engine, "POST", "/networks/create", b'{"Name":"br","Driver":"bridge","Internal":true,"CheckDuplicate":true}')
        if "web" not in present["containers"].values():
            made = b'{"Image":"bb:1","Cmd":["sleep","1000"],"HostConfig":{"NetworkMode":"none","Mounts":[]}}'
            status, answer = self.ask(self.engine, "POST", "/containers/create?name=web", made)
            assert status == 201, answer
        return self.there()


@pytest.fixture
def beside(dockerd: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def serve() -> Beside:
            engine_socket = str(dockerd.directory / "docker.sock")
            backend = FakeBackend(engine_socket)
            socket = str(tmp_path_factory.mktemp("fuzz") / "meshd.sock")
            api = await serve_unix(backend, socket)
            stack.push_async_callback(api.cleanup)
            sessions = [
                await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.UnixConnector(path, limit=0)))
                for path in (socket, engine_socket)
            ]
            beside = Beside(runner, backend, *sessions)
            async with sessions[0].post("http://d/swarm/init", data=b"{}") as answer:
                assert answer.status == 200, await answer.text()
            assert backend.store is not None
            await backend.store.commit([Put(a_node("nb", "node-b", state="down"))])
            return beside

        try:
            yield runner.run(serve())
        finally:
            runner.run(stack.aclose())


@more(60)
@given(request=hostile_engine.requests())
def test_any_request_fails_only_where_the_engine_fails(beside: Beside, request: hostile.Request) -> None:
    present = beside.begin()
    assert beside.backend.store is not None
    before = objects(beside.backend.store.snapshot())
    id = next(id for id, name in present["containers"].items() if name == "web")
    path = request.path.replace("{id}", id).replace("{short}", id[:6])
    status, answer = beside.ask(beside.mesh, request.method, path, request.body)
    said = f"{request.method} {path} {request.body!r}: {status} {answer[:500]!r}"
    assert objects(beside.backend.store.snapshot()) == before, f"{said}, and the store is not as it was"
    if status < 400:
        return
    if request.method != "HEAD":
        assert json.loads(answer)["message"], f"{said}: refused without a word"
    if request.method != "DELETE" and "/prune" not in path:
        assert beside.there() == present, f"{said}, and yet something was made"
    if status >= 500 and status != _NOT_SUPPORTED:
        # what only a cluster knows: names of nodes, and newer versions of the API than the Engine's
        own_path = re.sub(r"^/v[0-9.]+|node-a(/|%2F)", "", path)
        own, own_answer = beside.ask(beside.engine, request.method, own_path, request.body)
        assert own >= 500, f"{said}; the Engine itself: {own} {own_answer[:500]!r}"
