"""An Engine is asked for its version once, and again when its answers say another one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from orchestrator import engine_http
from orchestrator.engine_http import LocalEngine, version_key


class Versioned:
    """Speaks up to `version`, and refuses what is newer as moby does. announces: says so in every answer."""

    def __init__(self) -> None:
        self.version = "1.44"
        self.announces = True
        self.asked: list[str] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path}")
        headers = {"Api-Version": self.version} if self.announces else {}
        if request.path == "/version":
            return web.json_response({"ApiVersion": self.version, "MinAPIVersion": "1.24"}, headers=headers)
        if version_key(request.path.split("/")[1][1:]) > version_key(self.version):
            return web.json_response({"message": "client version is too new"}, status=400, headers=headers)
        if request.path.endswith("/bad"):
            return web.json_response({"message": "bad"}, status=400, headers=headers)
        return web.json_response({}, headers=headers)


@pytest.fixture
async def versioned(tmp_path: Path) -> AsyncIterator[tuple[Versioned, LocalEngine]]:
    served = Versioned()
    runner = web.AppRunner(served.app())
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "engine.sock")).start()
    engine = LocalEngine(str(tmp_path / "engine.sock"))
    yield served, engine
    await engine.close()
    await runner.cleanup()


async def test_it_is_asked_once_if_its_answers_say_their_version(
    versioned: tuple[Versioned, LocalEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_http, "_VERSION_TTL_S", 0.0)
    served, engine = versioned
    for _ in range(3):
        assert (await engine.ask("GET", "/v1.50/info")).ok
    assert served.asked == ["GET /version", *["GET /v1.44/info"] * 3]
    served.announces = False
    await engine.ask("GET", "/info")
    served.asked.clear()
    for _ in range(2):
        await engine.ask("GET", "/info")
    assert served.asked == ["GET /version", "GET /v1.44/info"] * 2


async def test_one_that_was_upgraded_is_asked_again(versioned: tuple[Versioned, LocalEngine]) -> None:
    served, engine = versioned
    await engine.ask("GET", "/v1.50/info")
    served.version = "1.47"
    served.asked.clear()
    for _ in range(2):
        assert (await engine.ask("GET", "/v1.50/info")).ok
    assert served.asked == ["GET /v1.44/info", "GET /version", "GET /v1.47/info"]


async def test_what_one_that_was_set_back_refuses_is_asked_at_its_version(versioned: tuple[Versioned, LocalEngine]) -> None:
    served, engine = versioned
    await engine.ask("GET", "/v1.50/info")
    served.version = "1.41"
    served.asked.clear()
    assert (await engine.ask("POST", "/v1.50/made", body=b"{}")).ok
    assert served.asked == ["POST /v1.44/made", "GET /version", "POST /v1.41/made"]


async def test_a_refusal_for_another_reason_is_final(versioned: tuple[Versioned, LocalEngine]) -> None:
    served, engine = versioned
    answer = await engine.ask("POST", "/v1.44/bad", body=b"{}")
    assert (answer.status, answer.message()) == (400, "bad")
    assert served.asked == ["GET /version", "POST /v1.44/bad"]
