"""The API over TCP: a free port, its certificates, a client's context."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from orchestrator.api.endpoints import TlsFiles


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def files(directory: Path) -> TlsFiles:
    return TlsFiles(directory / "ca.pem", directory / "server-cert.pem", directory / "server-key.pem")


def client_context(directory: Path, name: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    if name:
        context.load_cert_chain(directory / name / "cert.pem", directory / name / "key.pem")
    return context
