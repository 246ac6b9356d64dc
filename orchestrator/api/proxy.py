"""Everything that is not the cluster's goes to this node's Engine as it is, hijacked and streamed bodies included.

Edge: the Engine's unix socket. Source: moby api/server/middleware/version.go, docker CLI hijack.go. The API version in the path is
lowered to what the Engine speaks. A request that upgrades its connection is carried byte by byte, each direction closed on its own:
the end of stdin must reach the container while its output still flows.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from orchestrator.errors import ApiError

log = logging.getLogger(__name__)

_SWARM_ROOTS = frozenset({"swarm", "services", "tasks", "nodes", "secrets", "configs"})
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "proxy-connection", "host"})
# These are the API's own, not the Engine's (see app.announce).
_OURS = frozenset({"api-version", "docker-experimental", "ostype", "server", "swarm"})
_CHUNK_BYTES = 64 * 1024
_VERSION_TTL_S = 5.0
_DISTRIBUTION_TIMEOUT_S = 3.0
_HEAD_LIMIT_BYTES = 64 * 1024
_HANGUP_POLL_S = 1.0


class EngineProxy:
    """One a daemon: the session to the local Engine and the API version it speaks."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        self._session: aiohttp.ClientSession | None = None
        self._version = ""
        self._version_until = 0.0

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self.socket_path, limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def unreachable(self, error: Exception) -> ApiError:
        log.warning("engine unreachable socket=%s error=%s", self.socket_path, error)
        return ApiError(503, f"the Docker Engine of this node does not answer at unix://{self.socket_path}: is dockerd running?")

    async def max_version(self) -> str:
        """The newest API version of the Engine, asked again every few seconds: an Engine may be upgraded under us."""
        loop = asyncio.get_running_loop()
        if not self._version or loop.time() >= self._version_until:
            try:
                async with self.session.get("http://engine/_ping") as response:
                    self._version = response.headers.get("Api-Version", "1.24")
                    self._version_until = loop.time() + _VERSION_TTL_S
            except (aiohttp.ClientError, OSError) as error:
                raise self.unreachable(error) from None
        return self._version

    async def path(self, request: web.Request) -> str:
        """The path at the Engine, still percent-encoded, with the version both speak."""
        newest = await self.max_version()
        asked = request.match_info.get("api_version")
        raw = request.rel_url.raw_path
        rest = raw.removeprefix(f"/v{asked}") if asked else raw
        version = min(asked or newest, newest, key=version_key)
        query = request.rel_url.raw_query_string
        return f"/v{version}{rest}" + (f"?{query}" if query else "")

    async def url(self, request: web.Request) -> URL:
        return URL(f"http://engine{await self.path(request)}", encoded=True)

    async def get_json(self, path: str, timeout_s: float = 10.0) -> Any:
        """The Engine's answer to GET; None when it says it has nothing there. Raises ApiError(503) when it can't be asked."""
        try:
            async with self.session.get(
                URL(f"http://engine{path}", encoded=True), timeout=aiohttp.ClientTimeout(total=timeout_s)
            ) as response:
                return await response.json(content_type=None) if response.status == HTTPStatus.OK else None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self.unreachable(error) from None

    async def post_json(self, request: web.Request) -> dict[str, Any]:
        """A body-less POST repeated at the Engine; its JSON object ({} when it refused)."""
        try:
            async with self.session.post(await self.url(request)) as response:
                value = await response.json(content_type=None) if response.status == HTTPStatus.OK else {}
        except (aiohttp.ClientError, OSError) as error:
            raise self.unreachable(error) from None
        return value if isinstance(value, dict) else {}

    async def forward(self, request: web.Request, body: bytes | None = None, timeout_s: float | None = None) -> web.StreamResponse:
        """`body`: what was already read of the request (all of it)."""
        if body is None and wants_upgrade(request):
            return await self._hijack(request)
        url = await self.url(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        data: bytes | AsyncIterator[bytes] | None = body
        if body is not None:
            headers.pop("Content-Length", None)
        elif request.body_exists:
            data = request.content.iter_chunked(_CHUNK_BYTES)
        try:
            async with self.session.request(
                request.method,
                url,
                headers=headers,
                data=data,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=5),
            ) as response:
                return await _relay_response(request, response)
        except TimeoutError:
            raise ApiError(504, f"the Docker Engine of this node did not answer within {timeout_s:g} s") from None
        except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError) as error:
            raise self.unreachable(error) from None

    async def _hijack(self, request: web.Request) -> web.StreamResponse:
        path = await self.path(request)
        body = await request.read()
        try:
            reader, writer = await asyncio.open_unix_connection(self.socket_path, limit=_HEAD_LIMIT_BYTES)
        except OSError as error:
            raise self.unreachable(error) from None
        try:
            lines = [f"{request.method} {path} HTTP/1.1", "Host: engine"]
            for name, value in request.headers.items():
                if name.lower() not in ("host", "content-length", "transfer-encoding"):
                    lines.append(f"{name}: {value}")
            lines.append(f"Content-Length: {len(body)}")
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status, headers = _parse_head(head)
            if status != HTTPStatus.SWITCHING_PROTOCOLS:
                return await _plain_answer(status, headers, reader)
            return await _carry(request, head, reader, writer)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            raise self.unreachable(error) from None
        finally:
            writer.close()


PROXY: web.AppKey[EngineProxy] = web.AppKey("engine-proxy", EngineProxy)


def version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def wants_upgrade(request: web.Request) -> bool:
    return "upgrade" in request.headers.get("Connection", "").lower() and bool(request.headers.get("Upgrade"))


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


class _Hijacked(web.StreamResponse):
    """Tells aiohttp that this request has been answered and its connection is spent."""

    def __init__(self) -> None:
        super().__init__(status=HTTPStatus.SWITCHING_PROTOCOLS)
        self.force_close()

    @property
    def body_length(self) -> int:
        return 0

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


async def _relay_response(request: web.Request, response: aiohttp.ClientResponse) -> web.StreamResponse:
    headers = [(name, value) for name, value in response.headers.items() if name.lower() not in _HOP_BY_HOP and name.lower() not in _OURS]
    if request.method == "HEAD" or response.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        bare = web.Response(status=response.status, reason=response.reason)
        bare.headers.extend(headers)
        return bare
    answer = web.StreamResponse(status=response.status, reason=response.reason)
    answer.headers.extend(headers)
    if "Content-Type" not in response.headers:
        # aiohttp would announce application/octet-stream; the Engine announced nothing.
        answer.headers.popall("Content-Type", None)
    # `docker run` waits for the head of /wait before it starts the container: it goes out before any of the body is there.
    await answer.prepare(request)
    try:
        async for chunk in response.content.iter_any():
            await answer.write(chunk)
    except aiohttp.ClientPayloadError as error:
        # The head is out: only a broken body tells the client that the Engine went away in the middle.
        log.warning("engine answer cut short path=%s error=%s", request.path, error)
        if request.transport is not None:
            request.transport.abort()
        return answer
    await answer.write_eof()
    return answer


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
    return int(first.split(" ", 2)[1]), headers


async def _plain_answer(status: int, headers: Mapping[str, str], reader: asyncio.StreamReader) -> web.Response:
    """The Engine refused to upgrade (no such container, not running, ...): its answer is an ordinary one."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = b""
    answer = web.Response(status=status, body=body)
    answer.headers["Content-Type"] = headers.get("content-type", "application/json")
    return answer


async def _carry(request: web.Request, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> web.StreamResponse:
    """Bytes both ways until the Engine's end of them, or until the client is gone."""
    loop = asyncio.get_running_loop()
    transport = request.transport
    http = request.protocol
    if transport is None:
        raise ConnectionResetError("the client is gone")
    client_in = asyncio.StreamReader(limit=_CHUNK_BYTES, loop=loop)
    ours = asyncio.StreamReaderProtocol(client_in, loop=loop)
    # From here the connection speaks no HTTP. A stream protocol keeps it half open when the client closes its direction.
    transport.set_protocol(ours)
    ours.connection_made(transport)
    client_out = asyncio.StreamWriter(transport, ours, client_in, loop)
    to_client = loop.create_task(_pump_out(head, reader, client_out))
    from_client = loop.create_task(_pump_in(client_in, writer, transport.get_extra_info("socket")))
    try:
        done, _ = await asyncio.wait({to_client, from_client}, return_when=asyncio.FIRST_COMPLETED)
        if to_client not in done and not from_client.result():
            await to_client
    finally:
        for pump in (to_client, from_client):
            pump.cancel()
        await asyncio.gather(to_client, from_client, return_exceptions=True)
        if transport.is_closing():
            # aiohttp was not told of the loss, as it was not the connection's protocol then; it must forget the connection.
            loop.call_soon(http.connection_lost, None)
        else:
            transport.set_protocol(http)
    return _Hijacked()


async def _pump_out(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(head)
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        await writer.drain()
    except ConnectionError:
        return


async def _pump_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sock: socket.socket) -> bool:
    """Returns True once the client is gone altogether. Its end of input alone is passed on as such."""
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()
        # A closed socket and one closed for writing read the same; only the hang-up tells them apart. Without it the Engine's
        # stream of a silent container would be kept for a client that was killed.
        poll = select.poll()
        poll.register(sock.fileno(), 0)
        while not poll.poll(0):
            await asyncio.sleep(_HANGUP_POLL_S)
    except (ConnectionError, OSError, ValueError):
        return True
    return True
