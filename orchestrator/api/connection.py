"""One client's connection to the API: what it may cost this process in time, memory and number.

Edge: aiohttp's connection with clocks. aiohttp bounds a head's size and stops reading when nobody takes the body; it waits for ever
for a head that never ends, and for a client that never reads its answer. Streams (logs, events, attach) have no clock: theirs is
a bounded buffer, and a slow reader slows down their source.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import msgspec
from aiohttp import web

from orchestrator.api.client import Client, client_of
from orchestrator.errors import ApiError
from orchestrator.security.listener import TlsListener
from orchestrator.security.rate import RateLimit

log = logging.getLogger(__name__)

# The credentials of all registries travel in one header with `docker build`.
_MAX_LINE_BYTES = 64 * 1024
_CERTIFICATE_NEEDED = (
    "this API is for clients with a certificate of its CA only: `meshd api-certs` makes one; give it to docker with --tlsverify, "
    "--tlscert and --tlskey, or in DOCKER_CERT_PATH"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """connections: of everybody together; of one client over TCP. requests_per_s: of one client over TCP, 0 = any; ten seconds' worth
    may come at once. answer_s: a client that reads nothing of an answer that is no stream for so long is cut off."""

    connections: int = 4096
    connections_per_client: int = 256
    requests_per_s: float = 100.0
    head_s: float = 15.0
    answer_s: float = 60.0


class Gate:
    """Counts connections and requests of all listeners together."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._by_client: Counter[str] = Counter()
        self._rate = RateLimit(limits.requests_per_s, max(1, int(limits.requests_per_s * 10)))

    def enter(self, client: Client) -> str:
        """ "" and one more is counted, until `leave`; or the sentence that refuses it."""
        limits = self.limits
        if self._by_client.total() >= limits.connections:
            return f"this node serves {limits.connections} connections to its API already: close some and try again"
        if client.transport != "unix" and self._by_client[client.key] >= limits.connections_per_client:
            return f"you have {limits.connections_per_client} connections to this API already: close some and try again"
        self._by_client[client.key] += 1
        return ""

    def leave(self, client: Client) -> None:
        self._by_client[client.key] -= 1
        if not self._by_client[client.key]:
            del self._by_client[client.key]

    def pace(self, client: Client, now_s: float) -> None:
        """ApiError(429) for one request too many. Who has this node's own socket is root here already, and isn't limited."""
        if client.transport != "unix" and self.limits.requests_per_s and not self._rate.allows(client.key, now_s):
            raise ApiError(
                429,
                f"more than {self.limits.requests_per_s:g} requests a second from {client.name or client.address}: "
                "wait a second and try again, or raise `meshd daemon --api-rate`",
            )


class Connection(web.RequestHandler):
    """`client` is who is at the other end."""

    __slots__ = ("_answer_timer", "_gate", "_head_timer", "_refused", "_serving", "client", "streaming")

    def __init__(self, server: web.Server, gate: Gate, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop=loop, access_log=None, max_line_size=_MAX_LINE_BYTES, max_field_size=_MAX_LINE_BYTES)  # type: ignore[arg-type]
        self._gate = gate
        self._refused = False
        self._serving = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self.client = Client("unix")
        self.streaming = False

    # ---- what a request tells ---------------------------------------------------------------------------------------------------

    def begins(self) -> None:
        """A request's head is complete. ApiError(429)."""
        self._serving, self.streaming = True, False
        self._stop_head_timer()
        self._gate.pace(self.client, self._loop.time())

    def ends(self) -> None:
        self._serving = False

    # ---- what the transport tells -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes
        transport = cast(asyncio.Transport, transport)
        self.client = client_of(transport)
        if self.client.anonymous:
            self._refuse(transport, HTTPStatus.FORBIDDEN, _CERTIFICATE_NEEDED)
            return
        if refusal := self._gate.enter(self.client):
            self._refuse(transport, HTTPStatus.SERVICE_UNAVAILABLE, refusal)
            return
        super().connection_made(transport)
        self._start_head_timer()

    def _refuse(self, transport: asyncio.Transport, status: HTTPStatus, sentence: str) -> None:
        """aiohttp never hears of this connection."""
        self._refused = True
        log.warning("connection refused client=%r address=%s reason=%s", self.client.name, self.client.address, sentence)
        transport.write(_answer(status, sentence))
        transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._refused:
            return
        self._stop_head_timer()
        self._stop_answer_timer()
        if self.client is not _GONE:
            self._gate.leave(self.client)
            self.client = _GONE
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._serving and self._head_timer is None:
            self._start_head_timer()
        super().data_received(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self.streaming and self._answer_timer is None:
            self._answer_timer = self._loop.call_later(self._gate.limits.answer_s, self._unread)

    def resume_writing(self) -> None:
        self._stop_answer_timer()
        super().resume_writing()

    # ---- clocks -----------------------------------------------------------------------------------------------------------------

    def _start_head_timer(self) -> None:
        self._head_timer = self._loop.call_later(self._gate.limits.head_s, self._headless)

    def _headless(self) -> None:
        self._head_timer = None
        transport = self.transport
        if self._serving or transport is None:
            return
        if transport.get_write_buffer_size():
            # The answer before it is still on its way: nothing may be written into it.
            self._start_head_timer()
            return
        log.info("head incomplete client=%r address=%s after_s=%g", self.client.name, self.client.address, self._gate.limits.head_s)
        transport.write(
            _answer(HTTPStatus.REQUEST_TIMEOUT, f"the request's head did not arrive within {self._gate.limits.head_s:g} s: send it again")
        )
        self.force_close()

    def _unread(self) -> None:
        self._answer_timer = None
        if self.transport is not None and not self.streaming:
            log.info("answer unread client=%r address=%s after_s=%g", self.client.name, self.client.address, self._gate.limits.answer_s)
            self.transport.abort()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_answer_timer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None


class _Server(web.Server):
    def __init__(self, plain: web.Server, gate: Gate) -> None:
        super().__init__(plain.request_handler, request_factory=plain.request_factory, handler_cancellation=plain.handler_cancellation)
        self._gate = gate

    def __call__(self) -> Connection:
        return Connection(self, self._gate, loop=self._loop)


class LimitedRunner(web.AppRunner):
    """aiohttp's runner, whose connections are ours. listeners: what accepts for it besides its sites, ended with it."""

    def __init__(self, app: web.Application, limits: Limits, **options: Any) -> None:
        super().__init__(app, **options)
        self._gate = Gate(limits)
        self.listeners: list[TlsListener] = []

    async def cleanup(self) -> None:
        for listener in self.listeners:
            await listener.stop()
        await super().cleanup()

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._gate)


# A connection that is no longer counted: aiohttp may be told twice of one that was carried (`upgrade`).
_GONE = Client("unix", "gone")


def _answer(status: HTTPStatus, message: str) -> bytes:
    """For a client with which aiohttp has nothing to do yet."""
    body = msgspec.json.encode({"message": message}) + b"\n"
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
