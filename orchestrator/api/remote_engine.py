"""Another node's Engine, through that node's TLS server.

Edge: HTTPS. A connection that leaves HTTP behind (attach, exec) is one request here, its body the input and the answer's body the
output, both open at once (`dispatcher.engine_proxy` is the other side).
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from orchestrator.dispatcher.engine_proxy import PREAMBLE_BYTES, UPGRADE, UPGRADED_HEAD
from orchestrator.engine_http import AUTOMATIC_HEADERS, CHUNK_BYTES, Answer, Body, Duplex, Engine, EngineAway, slow
from orchestrator.errors import ApiError

log = logging.getLogger(__name__)

SessionOf = Callable[[], Awaitable[tuple[aiohttp.ClientSession, str]]]
_OTHERS_HEADERS = frozenset({"connection", "upgrade", "host", "content-length", "transfer-encoding"})
_CONNECT_S = 5.0


class RemoteEngine(Engine):
    """`session_of`: the backend's session to that node and the URL its Engine's API is at."""

    def __init__(self, node_name: str, session_of: SessionOf) -> None:
        super().__init__(f"the Docker Engine of node {node_name}")
        self._node_name = node_name
        self._session_of = session_of

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, data: Body = None, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._requested(method, path, headers, data, timeout_s)

    @asynccontextmanager
    async def _requested(
        self, method: str, path: str, headers: Mapping[str, str] | None, data: Body, timeout_s: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        response = await self._begun(method, path, headers, data, timeout_s)
        try:
            yield response
        finally:
            response.release()

    async def _begun(
        self, method: str, path: str, headers: Mapping[str, str] | None, data: Body, timeout_s: float | None
    ) -> aiohttp.ClientResponse:
        try:
            session, base = await self._session_of()
            response = await session.request(
                method,
                URL(f"{base}{path}", encoded=True),
                headers=headers,
                data=data,
                allow_redirects=False,
                skip_auto_headers=AUTOMATIC_HEADERS,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S),
                auto_decompress=False,
                read_bufsize=CHUNK_BYTES,
            )
        except ApiError as error:
            raise EngineAway(error.message) from None
        except TimeoutError:
            raise slow(self.name, timeout_s) from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineAway(f"node {self._node_name} can't be reached ({_reason(error)})") from None
        if response.status == HTTPStatus.BAD_GATEWAY:
            answer = Answer(response.status, {}, await response.read())
            raise EngineAway(f"node {self._node_name}: {answer.message()}")
        self.heard(response)
        return response

    async def upgrade(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Duplex | Answer:
        lowered = {name.lower(): value for name, value in headers.items()}
        # a build's session has headers that come many times
        sent = CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _OTHERS_HEADERS)
        sent[UPGRADE] = lowered.get("upgrade", "tcp")
        input = _Input(len(body).to_bytes(PREAMBLE_BYTES, "big") + body)
        response = await self._begun(method, path, sent, input.chunks(), None)
        head = response.headers.get(UPGRADED_HEAD)
        if head is not None:
            return _RequestDuplex(base64.b64decode(head), response, input, self._node_name)
        try:
            return Answer(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise EngineAway(f"node {self._node_name} broke the connection ({_reason(error)})") from None
        finally:
            input.close()
            response.close()


class _Input:
    """A request's body that is written bit by bit. One chunk waits at most."""

    def __init__(self, first: bytes) -> None:
        self._first = first
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._closed = False

    async def chunks(self) -> AsyncIterator[bytes]:
        # at once, for aiohttp sends the request's head along with it
        yield self._first
        while chunk := await self._queue.get():
            yield chunk

    async def put(self, chunk: bytes) -> None:
        """b"" ends it."""
        if self._closed:
            raise ConnectionResetError("the connection is closed")
        await self._queue.put(chunk)

    def close(self) -> None:
        self._closed = True


class _RequestDuplex:
    def __init__(self, head: bytes, response: aiohttp.ClientResponse, input: _Input, node_name: str) -> None:
        self.head = head
        self._response = response
        self._input = input
        self._node_name = node_name

    async def read(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            log.info("stream broke node=%s error=%s", self._node_name, error)
            raise ConnectionResetError(f"the connection to node {self._node_name} is lost: the output is incomplete") from None

    async def write(self, data: bytes) -> None:
        await self._input.put(data)

    async def write_eof(self) -> None:
        await self._input.put(b"")

    def close(self) -> None:
        self._input.close()
        self._response.close()


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return (error.os_error.strerror or str(error.os_error)).lower()
    return str(error) or type(error).__name__
