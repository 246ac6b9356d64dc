"""Who is at the other end of a TLS connection.

Edge: asks the transport. The handshake has already verified signature and validity; here the names are read.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from orchestrator.security.ca import ROLE_OF, Role, fingerprint


@dataclass(frozen=True, slots=True)
class Peer:
    """address: IP it connects from. expires_unix_s: end of its certificate."""

    node_id: str
    role: Role
    cluster_id: str
    address: str
    expires_unix_s: float


def key_of(transport: asyncio.BaseTransport | None) -> str:
    """Fingerprint of the key that the other end has proved to have; "": it showed no certificate."""
    tls = transport.get_extra_info("ssl_object") if transport is not None else None
    certificate = tls.getpeercert(binary_form=True) if tls is not None else None
    return fingerprint(x509.load_der_x509_certificate(certificate).public_key()) if certificate else ""


def peer_of(transport: asyncio.BaseTransport | None, cluster_id: str) -> Peer | None:
    """None: it showed no certificate, or one that isn't a node's of this cluster."""
    if transport is None:
        return None
    tls = transport.get_extra_info("ssl_object")
    certificate: dict[str, Any] | None = tls.getpeercert() if tls is not None else None
    if not certificate:
        return None
    names: dict[str, list[str]] = {}
    for attributes in certificate.get("subject", ()):
        for name, value in attributes:
            names.setdefault(name, []).append(value)
    node, unit, organization = (names.get(name, []) for name in ("commonName", "organizationalUnitName", "organizationName"))
    if len(node) != 1 or len(unit) != 1 or organization != [cluster_id] or unit[0] not in ROLE_OF:
        return None
    address = transport.get_extra_info("peername")
    return Peer(
        node[0], ROLE_OF[unit[0]], cluster_id, str(address[0]) if address else "", ssl.cert_time_to_seconds(certificate["notAfter"])
    )
