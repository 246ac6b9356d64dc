"""TLS of which a client may end its own direction: `echo x | docker --tlsverify run -i busybox cat` ends its input and waits for output.

Edge. Source: RFC 8446, 6.1 (close_notify ends one direction only); CPython 3.11 Lib/asyncio/sslproto.py, whose servers, like uvloop's, end
both. That is changed here, in two methods: a protocol whose `eof_received` says so keeps the connection for writing.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio import sslproto
from typing import Any


class HalfClosing(sslproto.SSLProtocol):
    """asyncio's TLS, but for the client's close_notify."""

    # of asyncio's 256 KiB a connection
    max_size = 64 * 1024
    _app_state: sslproto.AppProtocolState
    _app_protocol: Any
    _app_transport: Any
    _kept_open = False

    def _call_eof_received(self) -> None:
        if self._app_state == sslproto.AppProtocolState.STATE_CON_MADE:
            self._app_state = sslproto.AppProtocolState.STATE_EOF
            self._kept_open = bool(self._app_protocol.eof_received())

    def _start_shutdown(self) -> None:
        """Called when the transport is closed, and after the client's close_notify."""
        if self._kept_open and self._app_transport is not None and not self._app_transport.is_closing():
            return
        super()._start_shutdown()


async def accept(
    connection: socket.socket,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    *,
    handshake_timeout_s: float,
    shutdown_timeout_s: float,
) -> asyncio.BaseTransport:
    """As `loop.connect_accepted_socket` does it. OSError, EOFError: the handshake failed; the connection is closed."""
    loop: Any = asyncio.get_running_loop()
    waiter: asyncio.Future[Any] = loop.create_future()
    timeouts: dict[str, Any] = {"ssl_handshake_timeout": handshake_timeout_s, "ssl_shutdown_timeout": shutdown_timeout_s}
    tls: Any = HalfClosing(loop, protocol, context, waiter, server_side=True, **timeouts)
    transport, _ = await loop.connect_accepted_socket(lambda: tls, connection)
    try:
        await waiter
    except BaseException:
        transport.close()
        raise
    shown: asyncio.BaseTransport = tls._get_app_transport()
    return shown
