"""Who is at the other end of a connection to the API.

Edge: asks the transport. Source: unix(7) SO_PEERCRED; the TLS handshake has verified a certificate before its names are read here.
"""

from __future__ import annotations

import asyncio
import contextlib
import pwd
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Client:
    """name: the user's, or the certificate's common name; "" for plain TCP. detail: the program's pid and name, or the whole subject.
    address: "" on a unix socket."""

    transport: Literal["unix", "tls", "tcp"]
    name: str = ""
    detail: str = ""
    address: str = ""

    @property
    def anonymous(self) -> bool:
        """Speaks TLS and has shown no certificate. (One that isn't the CA's, or isn't valid, fails the handshake.)"""
        return self.transport == "tls" and not self.detail

    @property
    def key(self) -> str:
        """What shares one rate limit and one allowance of connections."""
        return f"{self.transport} {self.name or self.address}"


def client_of(transport: asyncio.BaseTransport) -> Client:
    tls = transport.get_extra_info("ssl_object")
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        return _local(sock)
    peer = transport.get_extra_info("peername")
    address = str(peer[0]) if peer else ""
    if tls is None:
        return Client("tcp", address=address)
    certificate: dict[str, Any] = tls.getpeercert() or {}
    names = [(name, value) for attributes in certificate.get("subject", ()) for name, value in attributes]
    common = next((value for name, value in names if name == "commonName"), "")
    return Client("tls", common, ", ".join(f"{name}={value}" for name, value in names), address)


def _local(sock: socket.socket) -> Client:
    try:
        pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError:
        return Client("unix")
    program = ""
    with contextlib.suppress(OSError):
        program = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    name = str(uid)
    with contextlib.suppress(KeyError):
        name = pwd.getpwuid(uid).pw_name
    return Client("unix", name, f"uid={uid} pid={pid} {program}".rstrip())
