"""Requests that an Engine answers: passed on as they are, hijacked and streamed bodies included.

Edge: an Engine. The last route, for all that no other took, asks this node's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from aiohttp import web

from orchestrator.api import access, newer_requests
from orchestrator.api.upgrade import last_words, upgrade, wants_upgrade
from orchestrator.engine_http import CHUNK_BYTES, Engine, LocalEngine, end_to_end
from orchestrator.errors import ApiError
from orchestrator.relay import relay, whole

_SWARM_ROOTS = frozenset({"swarm", "services", "tasks", "nodes", "secrets", "configs"})
# These are the API's own, not the Engine's (see app.announce).
_OURS = frozenset({"api-version", "docker-experimental", "ostype", "server", "swarm"})
_DISTRIBUTION_TIMEOUT_S = 3.0


def path_of(request: web.Request) -> str:
    """What was asked for, percent-encoded, version and query included."""
    query = request.rel_url.raw_query_string
    return request.rel_url.raw_path + (f"?{query}" if query else "")


async def forward(
    request: web.Request,
    engine: Engine,
    *,
    path: str | None = None,
    body: bytes | None = None,
    timeout_s: float | None = None,
) -> web.StreamResponse:
    """The request at that Engine, its answer to the client. path: instead of the request's own; body: what was already read of the
    request (all of it). EngineAway: it can't be asked."""
    asked = path_of(request) if path is None else path
    if (answered := await newer_requests.instead(engine, request.method, asked)) is not None:
        return whole(answered)
    spoken = await engine.path(asked)
    if wants_upgrade(request):
        return await upgrade(request, engine, spoken, await access.body(request) if body is None else body)
    headers = end_to_end(request.headers)
    data: bytes | AsyncIterator[bytes] | None = body
    if body is not None:
        headers.popall("Content-Length", None)
    elif request.body_exists:
        data = request.content.iter_chunked(CHUNK_BYTES)
    async with engine.request(request.method, spoken, headers=headers, data=data, timeout_s=timeout_s) as answer:
        kept = end_to_end(answer.headers)
        for name in {name for name in kept if name.lower() in _OURS}:
            kept.popall(name, None)

        def words(beginning: bytes) -> bytes | None:
            return _last_words(request.path, beginning, f"the connection to {engine.name} is lost: the answer is incomplete")

        return await relay(request, answer, kept, words)


class EngineProxy(LocalEngine):
    """This node's own, one an application."""

    async def get_json(self, path: str, timeout_s: float = 10.0) -> Any:
        """The Engine's answer to GET; None when it says it has nothing there. Raises ApiError(503) when it can't be asked."""
        answer = await self.ask("GET", path, timeout_s=timeout_s)
        return answer.json() if answer.status == HTTPStatus.OK else None

    async def forward(self, request: web.Request, body: bytes | None = None, timeout_s: float | None = None) -> web.StreamResponse:
        """See `forward`."""
        return await forward(request, self, body=body, timeout_s=timeout_s)


PROXY: web.AppKey[EngineProxy] = web.AppKey("engine-proxy", EngineProxy)


async def to_engine(request: web.Request) -> web.StreamResponse:
    """The last route: whatever no other took."""
    path = request.match_info["path"]
    if path.partition("/")[0] in _SWARM_ROOTS:
        raise ApiError(404, "page not found")
    return await request.app[PROXY].forward(request)


async def distribution(request: web.Request) -> web.StreamResponse:
    """The CLI asks for an image's digest before it creates a service and does without it, unless the answer hangs."""
    return await request.app[PROXY].forward(request, timeout_s=_DISTRIBUTION_TIMEOUT_S)


ROUTES = [
    web.get("/distribution/{name:.+}/json", distribution),
    web.route("*", "/{path:.*}", to_engine),
]


def _last_words(path: str, beginning: bytes, text: str) -> bytes | None:
    """Where the answer has a place for words, once its head is out."""
    action = path.rpartition("/")[2]
    if action == "logs":
        return last_words(beginning, text)
    if action == "wait":
        # no JSON: Docker's client then shows what it got, while `docker wait` would print any exit code we gave as the container's
        return text.encode()
    return None
