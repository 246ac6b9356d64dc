"""TCP connections between nodes notice a peer that is gone without a word: a power cut, a pulled cable.

Edge: socket options. Source: tcp(7). The other side's kernel answers, however busy its process is. A user's stream has no TCP_USER_TIMEOUT:
it also ends connections whose peer merely doesn't read, and a client that is slow, or asleep, keeps its stream.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from typing import Any

# noticed after 5 + 3 * 2 seconds of silence
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
# after 2 seconds, whether something was under way or not
_IMPATIENT = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2000),
)


def keep_alive(connection: socket.socket) -> None:
    _set(connection, _OPTIONS)


def kept_alive(address: Any) -> socket.socket:
    """aiohttp's socket factory. address: as getaddrinfo gives it."""
    return _set(_made(address), _OPTIONS)


def impatient(address: Any) -> socket.socket:
    """The same for connections that are as good to somebody else: one given up too early costs next to nothing."""
    return _set(_made(address), _IMPATIENT)


def _made(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    return socket.socket(family, kind, protocol)


def _set(connection: socket.socket, options: Iterable[tuple[int, int, int]]) -> socket.socket:
    with contextlib.suppress(OSError):
        for level, option, value in options:
            connection.setsockopt(level, option, value)
    return connection
