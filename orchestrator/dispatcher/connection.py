"""The wire under a session: whole messages over one connection, in order. What carries them can be exchanged (simulation does).

Edge: aiohttp's WebSockets over mutual TLS. `Connection` and `Connect` are all that the session and the dispatcher know of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

import aiohttp
from aiohttp import WSMsgType, web

from orchestrator.errors import RemoteProtocolError
from orchestrator.keepalive import impatient
from orchestrator.security.identity import Credentials
from orchestrator.security.join import dial_failure

CONNECT_TIMEOUT_S = 5.0
# Pings find out that a manager hangs; that its machine is gone is noticed by the kernel (`keepalive`).
PING_S = 5.0
AGENTS, RELAY = "/v1/dispatcher", "/v1/relay"


class Connection(Protocol):
    async def send(self, message: bytes) -> None:
        """Returns when the connection can take more. ConnectionError: it has ended."""
        ...

    async def receive(self, timeout_s: float | None) -> bytes | None:
        """The next message; None = closed by the other side. TimeoutError; RemoteProtocolError: that was no message of ours."""
        ...

    async def close(self, code: int = 1000, reason: str = "") -> None: ...

    @property
    def closed(self) -> bool: ...

    @property
    def close_code(self) -> int | None:
        """As the other side said; None: it said nothing."""
        ...


Connect: TypeAlias = Callable[[str], AbstractAsyncContextManager[Connection]]
"""To a manager ("ip:port"). ConnectionError: a sentence why not."""


class WebSocket:
    """Either end of a WebSocket as a `Connection`."""

    def __init__(self, ws: web.WebSocketResponse | aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws

    async def send(self, message: bytes) -> None:
        try:
            await self._ws.send_bytes(message)
        except (RuntimeError, aiohttp.ClientError) as error:
            # RuntimeError is aiohttp's word for "closed meanwhile"
            raise ConnectionError(str(error)) from error

    async def receive(self, timeout_s: float | None) -> bytes | None:
        frame = await self._ws.receive(timeout=timeout_s)
        if frame.type is WSMsgType.BINARY:
            message: bytes = frame.data
            return message
        if frame.type is WSMsgType.TEXT:
            raise RemoteProtocolError("a text message")
        if frame.type is WSMsgType.ERROR:
            raise RemoteProtocolError(f"a broken frame: {self._ws.exception()}")
        return None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        # RFC 6455, 5.5: at most 125 bytes, two of them the code
        await self._ws.close(code=code, message=reason.encode()[:100])

    @property
    def closed(self) -> bool:
        return self._ws.closed

    @property
    def close_code(self) -> int | None:
        return self._ws.close_code


def over_tls(credentials: Credentials, path: str = AGENTS) -> Connect:
    """Connections to managers of the credentials' cluster; whoever else answers there fails the handshake."""

    @contextlib.asynccontextmanager
    async def connect(manager: str) -> AsyncIterator[Connection]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        connector = aiohttp.TCPConnector(ssl=credentials.client_context(), force_close=True, socket_factory=impatient)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as http:
            url = f"https://{manager}{path}"
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S * 2):
                    ws = await http.ws_connect(url, heartbeat=PING_S, max_msg_size=0, compress=0, autoclose=True)
            except aiohttp.WSServerHandshakeError as error:
                raise ConnectionError(f"refused with HTTP status {error.status}") from error
            except aiohttp.ClientConnectorError as error:
                raise ConnectionError(dial_failure(error)) from error
            except (aiohttp.ClientError, TimeoutError) as error:
                raise ConnectionError(str(error) or type(error).__name__) from error
            try:
                yield WebSocket(ws)
            finally:
                await ws.close()

    return connect
