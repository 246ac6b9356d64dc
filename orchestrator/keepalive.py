"""TCP connections between nodes notice a peer that is gone without a word: a power cut, a pulled cable.

Edge: socket options. Source: tcp(7). No TCP_USER_TIMEOUT: it also ends connections whose peer merely doesn't read, and a client that is
slow, or asleep, keeps its stream.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

# noticed after 5 + 3 * 2 seconds of silence
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


def keep_alive(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for level, option, value in _OPTIONS:
            connection.setsockopt(level, option, value)


def kept_alive(address: Any) -> socket.socket:
    """aiohttp's socket factory. address: as getaddrinfo gives it."""
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    keep_alive(connection)
    return connection
