"""Gives managers the Engine of this node: forwards HTTP requests to its unix socket, bodies streamed both ways.

Edge: aiohttp in, aiohttp out. Who may ask is decided before (`tls_app`). A connection that leaves HTTP behind at the Engine (attach,
exec) stays HTTP on the way here, which TLS needs: it can't close one direction only. The request's body is the container's input, the
answer's body its output, both at once; each ends on its own (`remote_engine` is the other side).
"""

from __future__ import annotations

import asyncio
import base64
import logging

from aiohttp import web

from orchestrator.engine_http import Answer, Duplex, EngineAway, LocalEngine, end_to_end
from orchestrator.relay import relay, whole

log = logging.getLogger(__name__)

# Request: the protocol to upgrade to. The body then begins with 4 bytes: how many of those that follow are the request's own.
UPGRADE = "X-Meshd-Upgrade"
# Answer: base64 of the Engine's head, when it did upgrade.
UPGRADED_HEAD = "X-Meshd-Upgraded-Head"
PREAMBLE_BYTES = 4
MAX_UPGRADE_BODY_BYTES = 1024 * 1024


class EngineProxy:
    """For the node's TLS server."""

    def __init__(self, socket_path: str) -> None:
        self._engine = LocalEngine(socket_path)

    async def close(self) -> None:
        await self._engine.close()

    async def forward(self, request: web.Request, raw_path: str) -> web.StreamResponse:
        """raw_path: still percent-encoded, with its leading slash. 502: the Engine is not there."""
        if "upgrade" in request.headers.get("Connection", "").lower():
            raise web.HTTPNotImplemented(text=f"connections that upgrade (attach, exec) stay HTTP here: ask with the header {UPGRADE}")
        query = request.rel_url.raw_query_string
        path = raw_path + (f"?{query}" if query else "")
        try:
            if UPGRADE in request.headers:
                return await self._upgrade(request, path)
            headers = end_to_end(request.headers)
            data = request.content.iter_any() if request.body_exists else None
            async with self._engine.request(request.method, path, headers=headers, data=data) as answer:
                return await relay(request, answer, end_to_end(answer.headers))
        except EngineAway as error:
            raise web.HTTPBadGateway(text=error.message) from None

    async def _upgrade(self, request: web.Request, path: str) -> web.StreamResponse:
        try:
            size = int.from_bytes(await request.content.readexactly(PREAMBLE_BYTES), "big")
            if size > MAX_UPGRADE_BODY_BYTES:
                raise web.HTTPRequestEntityTooLarge(max_size=MAX_UPGRADE_BODY_BYTES, actual_size=size)
            body = await request.content.readexactly(size)
        except asyncio.IncompleteReadError:
            raise web.HTTPBadRequest(text="the request ended before its own body did") from None
        headers = end_to_end(request.headers)
        headers["Connection"] = "Upgrade"
        headers["Upgrade"] = headers.pop(UPGRADE)
        connection = await self._engine.upgrade(request.method, path, headers, body)
        if isinstance(connection, Answer):
            refusal = whole(connection)
            # the input that may follow is nobody's
            refusal.force_close()
            return refusal
        try:
            return await _carry(request, connection)
        finally:
            connection.close()


async def _carry(request: web.Request, connection: Duplex) -> web.StreamResponse:
    answer = web.StreamResponse(headers={UPGRADED_HEAD: base64.b64encode(connection.head).decode()})
    answer.force_close()
    await answer.prepare(request)
    feeding = asyncio.create_task(_feed(request, connection))
    try:
        while chunk := await connection.read():
            await answer.write(chunk)
        await answer.write_eof()
    except ConnectionError as error:
        # the output broke off on one side: the other must not take it for an end
        log.info("upgraded connection broke path=%s error=%r", request.path, error)
        if request.transport is not None:
            request.transport.abort()
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    return answer


async def _feed(request: web.Request, connection: Duplex) -> None:
    async for chunk in request.content.iter_any():
        await connection.write(chunk)
    await connection.write_eof()
