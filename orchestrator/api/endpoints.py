"""Where the Docker API listens: `--host` as dockerd's, and what is demanded of who connects.

Pure: text in, endpoints out. Source: dockerd(8) --host, --tlsverify; moby opts/hosts.go (ports 2376 with TLS, 2375 without).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from orchestrator.errors import ConfigError

DEFAULT_DIRECTORY = "/etc/meshd/api"
_TLS_PORT, _PLAIN_PORT = 2376, 2375


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """tls: only clients with a certificate of the API's CA get in; False: anybody who reaches it is root of the cluster."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


Endpoint = UnixEndpoint | TcpEndpoint
Protection = Literal["none", "mutual-tls", "insecure"]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. ca: whose certificates clients must show; certificate, key: this server's own."""

    ca: Path
    certificate: Path
    key: Path


def protection(*, tlsverify: bool, insecure: bool) -> Protection:
    """Of TCP endpoints. ConfigError: both."""
    if tlsverify and insecure:
        raise ConfigError("--tlsverify and --insecure-plain-tcp exclude each other: choose --tlsverify")
    return "mutual-tls" if tlsverify else "insecure" if insecure else "none"


def endpoints(texts: Sequence[str], protected: Protection) -> tuple[Endpoint, ...]:
    """Each once, in their order. ConfigError, one sentence: not an endpoint, or a TCP one that nothing protects."""
    return tuple(dict.fromkeys(_endpoint(text, protected) for text in texts))


def _endpoint(text: str, protected: Protection) -> Endpoint:
    scheme, separator, rest = text.partition("://")
    if scheme == "unix" and rest.startswith("/"):
        return UnixEndpoint(rest)
    if scheme != "tcp" or not separator:
        raise ConfigError(f"--host {text}: not an endpoint; there are unix:///path and tcp://address:port")
    if protected == "none":
        raise ConfigError(
            f"--host {text}: the API is root on every node, so TCP needs --tlsverify (`meshd api-certs` makes the certificates); "
            "--insecure-plain-tcp serves it to everybody who can reach it"
        )
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "0.0.0.0", parts.port
        if parts.path or parts.query or parts.username is not None:
            raise ValueError(rest)
    except ValueError:
        raise ConfigError(f"--host {text}: not tcp://address:port") from None
    tls = protected == "mutual-tls"
    return TcpEndpoint(host, port or (_TLS_PORT if tls else _PLAIN_PORT), tls)
