"""etcd's own certificates: a CA of its own and one certificate a member, which serves clients and peers and logs in to both.

Edge: makes keys (randomness), writes files. Apart from the cluster's CA on purpose: a worker's certificate must not open etcd.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.errors import ConfigError
from orchestrator.local_state import write_private
from orchestrator.security.ca import builder, certificate_pem, general_name, key_pem, pem_opened, pem_sealed

# The name clients check, whatever address they dial: every member's certificate carries it.
SERVER_NAME = "localhost"
# Peers cross-check nothing but the CA, and etcd keeps connections for months: what expires earlier only stops clusters.
LIFETIME = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """PEM texts."""

    cert: str
    key: str


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Where etcd and its clients read CA, certificate and key."""

    ca: Path
    cert: Path
    key: Path


def create_ca(common_name: str, now: datetime) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        builder(name, name, key.public_key(), now, now + LIFETIME, path_length=0)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate, key)


def issue(ca: KeyPair, common_name: str, sans: Sequence[str], now: datetime) -> KeyPair:
    """A member's certificate: server and client in one. sans: addresses and names it is reached by, besides SERVER_NAME and loopback."""
    try:
        ca_certificate = x509.load_pem_x509_certificate(ca.cert.encode())
        ca_key = serialization.load_pem_private_key(ca.key.encode(), password=None)
    except ValueError as error:
        raise ConfigError(f"etcd's CA is not readable PEM: {error}") from error
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ConfigError("etcd's CA key is not an elliptic curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    names = [general_name(san) for san in dict.fromkeys([SERVER_NAME, "127.0.0.1", "::1", *sans])]
    certificate = (
        builder(name, ca_certificate.subject, key.public_key(), now, now + LIFETIME)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _pem(certificate, key)


def write_files(directory: Path, ca_cert: str, pair: KeyPair, passphrase: bytes = b"") -> TLSFiles:
    """Written whole or not at all; the key is readable by its owner only, and with the passphrase, if there is one (`opened`)."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = TLSFiles(ca=directory / "ca.crt", cert=directory / "etcd.crt", key=directory / "etcd.key")
    for path, text in ((files.ca, ca_cert), (files.cert, pair.cert), (files.key, pem_sealed(pair.key, passphrase))):
        write_private(path, text.encode())
    return files


def opened(files: TLSFiles, passphrase: bytes) -> tuple[TLSFiles, int]:
    """The files as etcd can read them: the key without its passphrase, in memory, at a path that is good in this process and in children
    that inherit the descriptor. The descriptor is the caller's to close. ConfigError: the key can't be opened."""
    try:
        key = pem_opened(files.key.read_text(encoding="ascii"), passphrase)
    except OSError as error:
        raise ConfigError(f"etcd's key {files.key} can't be read: {error.strerror}") from None
    descriptor = os.memfd_create("etcd.key", os.MFD_CLOEXEC)
    os.write(descriptor, key.encode("ascii"))
    return replace(files, key=Path(f"/proc/self/fd/{descriptor}")), descriptor


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(cert=certificate_pem(certificate), key=key_pem(key))
