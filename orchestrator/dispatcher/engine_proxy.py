"""Gives managers the Engine of this node: forwards HTTP requests to its unix socket, bodies streamed both ways.

Edge: aiohttp in, aiohttp out. Who may ask is decided before (`tls_app`). Connections that leave HTTP behind (attach, exec) are not
forwarded yet and are refused with a sentence.
"""

from __future__ import annotations

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

# RFC 9110, 7.6.1: they speak of one connection only.
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade", "host"}
)
_CHUNK_BYTES = 64 * 1024


class EngineProxy:
    """One session to the local Engine, opened at first use."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def forward(self, request: web.Request, raw_path: str) -> web.StreamResponse:
        """raw_path: still percent-encoded, with its leading slash. 502: the Engine is not there; 501: an upgrade was asked for."""
        if "upgrade" in request.headers.get("Connection", "").lower():
            raise web.HTTPNotImplemented(text="connections that upgrade (attach, exec) are not forwarded to another node's Engine yet")
        url = URL(
            f"http://engine{raw_path}" + (f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""), encoded=True
        )
        body = request.content if request.body_exists else None
        try:
            answer = await self._opened().request(
                request.method, url, data=body, headers=_forwarded(request.headers), allow_redirects=False, skip_auto_headers=_AUTOMATIC
            )
        except aiohttp.ClientConnectorError as error:
            reason = (error.os_error.strerror or str(error.os_error)).lower()
            raise web.HTTPBadGateway(text=f"the Docker Engine of this node doesn't answer at {self._socket_path}: {reason}") from None
        except aiohttp.ClientError as error:
            raise web.HTTPBadGateway(text=f"the Docker Engine of this node broke the connection ({type(error).__name__})") from None
        async with answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=_forwarded(answer.headers))
            # At once: clients of streams such as logs and events wait for the header before anything has happened.
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self._socket_path, limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=_CHUNK_BYTES,
            )
        return self._session


_AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


def _forwarded(headers: object) -> CIMultiDict[str]:
    kept: CIMultiDict[str] = CIMultiDict(headers)  # type: ignore[arg-type]
    named = {name.strip().lower() for value in kept.getall("Connection", []) for name in value.split(",")}
    for name in {name for name in kept if name.lower() in _HOP_BY_HOP or name.lower() in named}:
        kept.popall(name, None)
    return kept
