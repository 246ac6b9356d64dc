"""etcd's own certificates: a CA of its own and one certificate a member, which serves clients and peers and logs in to both.

Edge: makes keys (randomness), writes files. Apart from the cluster's CA on purpose: a worker's certificate must not open etcd.
"""

from __future__ import annotations

import ipaddress
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
from orchestrator.security.ca import pem_opened, pem_sealed

# The name clients check, whatever address they dial: every member's certificate carries it.
SERVER_NAME = "localhost"
# Peers cross-check nothing but the CA, and etcd keeps connections for months: what expires earlier only stops clusters.
LIFETIME = timedelta(days=3650)
# A member whose clock is a little behind must accept a certificate made by one that is ahead.
CLOCK_SKEW = timedelta(hours=1)


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
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, name, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
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
    names = [_general_name(san) for san in dict.fromkeys([SERVER_NAME, "127.0.0.1", "::1", *sans])]
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, ca_certificate.subject, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
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
        fresh = path.with_suffix(path.suffix + ".new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(text)
        fresh.replace(path)
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


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
    )


def _general_name(san: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(san))
    except ValueError:
        return x509.DNSName(san)


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        cert=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key=key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(),
    )
