"""A client's connection that leaves HTTP behind (attach, exec, build sessions), joined to an Engine's.

Edge: the client's socket and a Duplex. Source: docker CLI hijack.go. Bytes are carried as they are, each direction closed on its own:
the end of stdin must reach the container while its output still flows.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from http import HTTPStatus

from aiohttp import web

from orchestrator.api.frames import SYSTEM_ERROR, frame
from orchestrator.engine_http import Answer, Duplex, Engine
from orchestrator.relay import whole

log = logging.getLogger(__name__)

_CHUNK_BYTES = 64 * 1024
_HANGUP_POLL_S = 1.0
_FRAME_BEGINNINGS = (b"\x00\x00\x00\x00", b"\x01\x00\x00\x00", b"\x02\x00\x00\x00")


def wants_upgrade(request: web.Request) -> bool:
    return "upgrade" in request.headers.get("Connection", "").lower() and bool(request.headers.get("Upgrade"))


async def upgrade(request: web.Request, engine: Engine, path: str, body: bytes) -> web.StreamResponse:
    """`body`: the request's own. Returns at the Engine's end of the connection, or when the client is gone."""
    connection = await engine.upgrade(request.method, path, request.headers, body)
    if isinstance(connection, Answer):
        return whole(connection)
    try:
        return await _carry(request, connection)
    finally:
        connection.close()


def last_words(beginning: bytes, text: str) -> bytes:
    """Ends a stream of a container that broke off: as a frame of the kind that clients report, or as a line where there are no frames."""
    if beginning and not beginning.startswith(_FRAME_BEGINNINGS):
        return f"\r\n{text}\r\n".encode()
    return frame(SYSTEM_ERROR, text.encode())


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


class _KeptOpen(asyncio.StreamReaderProtocol):
    """The end of the client's input is not the end of the connection, over TLS neither (`security.half_closing`)."""

    def eof_received(self) -> bool:
        super().eof_received()
        return True


async def _carry(request: web.Request, connection: Duplex) -> web.StreamResponse:
    loop = asyncio.get_running_loop()
    transport = request.transport
    http = request.protocol
    if transport is None:
        raise ConnectionResetError("the client is gone")
    client_in = asyncio.StreamReader(limit=_CHUNK_BYTES, loop=loop)
    ours = _KeptOpen(client_in, loop=loop)
    # From here the connection speaks no HTTP. A stream protocol keeps it half open when the client closes its direction.
    transport.set_protocol(ours)
    ours.connection_made(transport)
    client_out = asyncio.StreamWriter(transport, ours, client_in, loop)
    # a build's session is HTTP/2, where words would be a frame that nobody understands
    has_words = request.headers["Upgrade"].lower() == "tcp"
    to_client = loop.create_task(_pump_out(connection, client_out, has_words))
    from_client = loop.create_task(_pump_in(client_in, connection, transport.get_extra_info("socket")))
    try:
        await asyncio.wait({to_client, from_client}, return_when=asyncio.FIRST_COMPLETED)
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


async def _pump_out(connection: Duplex, writer: asyncio.StreamWriter, has_words: bool) -> None:
    """Until the Engine's end, or until it breaks off: then with words, where there is a place for them."""
    try:
        writer.write(connection.head)
        beginning = b""
        while True:
            try:
                chunk = await connection.read()
            except ConnectionError as error:
                log.warning("upgraded connection broke error=%s", error)
                if has_words:
                    writer.write(last_words(beginning, str(error)))
                break
            if not chunk:
                break
            beginning = beginning or chunk[:16]
            writer.write(chunk)
            await writer.drain()
        await writer.drain()
    except ConnectionError:
        return


async def _pump_in(reader: asyncio.StreamReader, connection: Duplex, sock: socket.socket) -> None:
    """Returns once the client is gone altogether. Its end of input alone is passed on as such."""
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            await connection.write(chunk)
        await connection.write_eof()
        # A closed socket and one closed for writing read the same; only the hang-up tells them apart. Without it the Engine's
        # stream of a silent container would be kept for a client that was killed.
        poll = select.poll()
        poll.register(sock.fileno(), 0)
        while not poll.poll(0):
            await asyncio.sleep(_HANGUP_POLL_S)
    except (ConnectionError, OSError, ValueError):
        return
