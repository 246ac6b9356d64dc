"""Ask the daemon of this machine: what the command line and the client of our own API have in common.

Edge: HTTP over its unix socket.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

import msgspec

from orchestrator.errors import ConfigError

DEFAULT_SOCKET = "/run/meshd/meshd.sock"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("meshd", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class NoDaemon(ConfigError):
    """Nobody answers on the socket."""


def ask(
    path: str, method: str, target: str, body: object = None, *, timeout_s: float = 60.0, headers: Mapping[str, str] | None = None
) -> bytes:
    """The answer's body. body: bytes as they are, else as JSON. NoDaemon: start it; ConfigError: what the daemon said against it."""
    connection = _UnixConnection(path, timeout_s)
    try:
        sent = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        connection.request(method, target, sent, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NoDaemon(f"meshd doesn't answer on {path} ({reason.lower()}): start it, or say where it is with --socket") from None
    finally:
        connection.close()
    if response.status >= 400:
        raise ConfigError(_message(content) or f"meshd answered {response.status} {response.reason}")
    return content


def _message(content: bytes) -> str:
    try:
        parsed: Any = json.loads(content)
        return str(parsed["message"])
    except (ValueError, KeyError, TypeError):
        return ""
