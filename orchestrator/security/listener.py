"""The TLS listener of a node: accepts, shakes hands under a cap, hands connections to an aiohttp server.

Edge. asyncio's own TLS server starts every handshake the moment a connection arrives; when a thousand agents reconnect at once the
loop then stalls for seconds. Here a handshake needs one of `slots`; it holds it until done or for SLOT_HOLD_S, so that silent
peers delay others a little but can't lock them out. A connection that showed no certificate lives ANONYMOUS_LIFE_S at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable

from aiohttp import web

from orchestrator.errors import ConfigError
from orchestrator.keepalive import keep_alive
from orchestrator.security import half_closing
from orchestrator.security.admission import join_endpoint

log = logging.getLogger(__name__)

BACKLOG = 4096
# 32 in flight: measured to cut the loop's stall in a reconnect storm from seconds to 20 ms.
HANDSHAKE_SLOTS = 32
SLOT_HOLD_S = 0.5
HANDSHAKE_TIMEOUT_S = 10.0
_SHUTDOWN_TIMEOUT_S = 2.0
FIRST_BYTE_TIMEOUT_S = 5.0
MAX_PENDING = 2048
MAX_PENDING_PER_ADDRESS = 512
MAX_ANONYMOUS = 512
ANONYMOUS_LIFE_S = 30.0
_TIDY_LEAST = 64
_TLS_HANDSHAKE_RECORD = b"\x16"
_PLAIN_HTTP_ANSWER = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"Client sent an HTTP request to an HTTPS server.\n"
)


class TlsListener:
    """`address` is (ip, port) after `start`; port 0 asks for a free one. `context` is read at every handshake. half_closing: clients
    may end their own direction only (`half_closing`); it costs more memory and time than uvloop's TLS."""

    def __init__(
        self, runner: web.AppRunner, context: Callable[[], ssl.SSLContext], host: str, port: int, *, half_closing: bool = False
    ) -> None:
        self._runner = runner
        self._context = context
        self._half_closing = half_closing
        self._host, self._port = host, port
        self._sockets: list[socket.socket] = []
        self._acceptors: list[asyncio.Task[None]] = []
        self._pending: dict[asyncio.Task[None], str] = {}
        self._pending_by_address: Counter[str] = Counter()
        self._slots = asyncio.Semaphore(HANDSHAKE_SLOTS)
        self._anonymous: set[asyncio.BaseTransport] = set()
        self._certified: list[asyncio.BaseTransport] = []
        self._tidy_at = _TIDY_LEAST

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._sockets[0].getsockname()[:2]
        return host, port

    async def start(self) -> None:
        """ConfigError, one sentence: the address is taken or not this machine's."""
        try:
            listener = _listen(self._host, self._port)
        except OSError as error:
            reason = "another program listens there" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
            raise ConfigError(f"can't listen on {join_endpoint(self._host, self._port)}: {reason}") from None
        self._sockets.append(listener)
        self._acceptors.append(asyncio.create_task(self._accept(listener)))

    async def stop(self) -> None:
        """Stop accepting and drop handshakes; established connections are the runner's to close."""
        for listener in self._sockets:
            # else a connection accepted in this very turn of the loop belongs to nobody, and its client waits (asyncio of Python 3.11)
            asyncio.get_running_loop().remove_reader(listener)
        for task in [*self._acceptors, *self._pending]:
            task.cancel()
        await asyncio.gather(*self._acceptors, *self._pending, return_exceptions=True)
        for listener in self._sockets:
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listener)
            except OSError as error:
                # Out of file descriptors or a connection that was reset while queued: the next ones may do better.
                log.warning("accept failed error=%s", error)
                await asyncio.sleep(0.1)
                continue
            address = str(peer[0])
            if len(self._pending) >= MAX_PENDING or self._pending_by_address[address] >= MAX_PENDING_PER_ADDRESS:
                connection.close()
                continue
            task = asyncio.create_task(self._welcome(connection))
            self._pending[task] = address
            self._pending_by_address[address] += 1
            task.add_done_callback(self._welcomed)

    def _welcomed(self, task: asyncio.Task[None]) -> None:
        address = self._pending.pop(task)
        self._pending_by_address[address] -= 1
        if not self._pending_by_address[address]:
            del self._pending_by_address[address]
        if not task.cancelled() and (error := task.exception()):
            log.error("welcoming a connection failed address=%s", address, exc_info=error)

    async def _welcome(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(connection)
        try:
            if await self._first_byte(connection) != _TLS_HANDSHAKE_RECORD:
                with contextlib.suppress(OSError):
                    connection.send(_PLAIN_HTTP_ANSWER)
                    connection.shutdown(socket.SHUT_WR)
                connection.close()
                return
            await self._slots.acquire()
        except OSError:
            # TimeoutError is one too: silent for too long.
            connection.close()
            return
        except asyncio.CancelledError:
            connection.close()
            raise
        await self._shake_hands(connection)

    async def _shake_hands(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._slots.release()

        timer = loop.call_later(SLOT_HOLD_S, release)
        context = self._context()
        try:
            server = self._runner.server
            assert server is not None
            transport: asyncio.BaseTransport
            if self._half_closing:
                transport = await half_closing.accept(
                    connection, server(), context, handshake_timeout_s=HANDSHAKE_TIMEOUT_S, shutdown_timeout_s=_SHUTDOWN_TIMEOUT_S
                )
            else:
                transport, _ = await loop.connect_accepted_socket(
                    server,
                    connection,
                    ssl=context,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                    ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
                )
        except (OSError, EOFError) as error:
            # ssl.SSLError is an OSError. The text names the reason (expired, unknown CA), never key material.
            log.info("handshake refused reason=%s", _reason(error))
            connection.close()
            return
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            timer.cancel()
            release()
        if context is not self._context():
            # The root was replaced during the handshake: by the old one nobody is let in any more.
            _abort(transport)
        elif transport.get_extra_info("peercert"):
            self._remember(transport)
        else:
            self._bound_anonymous(transport)

    def _remember(self, transport: asyncio.BaseTransport) -> None:
        self._certified.append(transport)
        if len(self._certified) > self._tidy_at:
            self._certified = [known for known in self._certified if not known.is_closing()]
            self._tidy_at = 2 * len(self._certified) + _TIDY_LEAST

    def end_unless(self, good: Callable[[bytes], bool]) -> int:
        """End the connections of those whose certificate (DER) isn't good; how many."""
        ended = 0
        for transport in self._certified:
            if not transport.is_closing() and not good(transport.get_extra_info("ssl_object").getpeercert(binary_form=True)):
                _abort(transport)
                ended += 1
        return ended

    def _bound_anonymous(self, transport: asyncio.BaseTransport) -> None:
        self._anonymous = {known for known in self._anonymous if not known.is_closing()}
        if len(self._anonymous) >= MAX_ANONYMOUS:
            _abort(transport)
            return
        self._anonymous.add(transport)
        asyncio.get_running_loop().call_later(ANONYMOUS_LIFE_S, _abort, transport)

    @staticmethod
    async def _first_byte(connection: socket.socket) -> bytes:
        """Peeked, not read. b"" at end of stream."""
        with contextlib.suppress(BlockingIOError):
            return connection.recv(1, socket.MSG_PEEK)
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        descriptor = connection.fileno()
        loop.add_reader(descriptor, _resolve, readable)
        try:
            async with asyncio.timeout(FIRST_BYTE_TIMEOUT_S):
                await readable
        finally:
            loop.remove_reader(descriptor)
        return connection.recv(1, socket.MSG_PEEK)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" means both families, as it does for Docker.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__


def _abort(transport: asyncio.BaseTransport) -> None:
    # Transports of TLS connections have it in every loop; the base class doesn't promise it.
    transport.abort()  # type: ignore[attr-defined]
