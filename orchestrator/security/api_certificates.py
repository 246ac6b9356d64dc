"""Certificates for the API over TCP: a CA of its own, the server's certificate, and one a client.

Edge: files below one directory; keys from the system's randomness. Apart from the cluster's CA on purpose: a node's certificate is
no operator's. File names are those that dockerd's and the docker CLI's documentation use.

    ca.pem ca-key.pem  server-cert.pem server-key.pem          for `meshd daemon --tlsverify`
    NAME/ca.pem cert.pem key.pem                               for DOCKER_CERT_PATH, or `docker context create`
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from orchestrator.errors import ConfigError, MeshdError
from orchestrator.local_state import write_private
from orchestrator.security import ca
from orchestrator.security.ca import key_pem, load_certificate, load_key

CA_FILE, CA_KEY_FILE, SERVER_FILE, SERVER_KEY_FILE = "ca.pem", "ca-key.pem", "server-cert.pem", "server-key.pem"
CLIENT_FILE, CLIENT_KEY_FILE = "cert.pem", "key.pem"
_CA_LIFE = timedelta(days=10 * 365)
# The longest that TLS libraries accept of a server without complaint.
LIFE = timedelta(days=825)


def make(directory: Path, clients: Sequence[str], names: Sequence[str], now: datetime, *, renew: bool = False) -> list[Path]:
    """What is missing below `directory`, and with `renew` all but the CA anew; returns the certificates written.

    names: DNS names and IP addresses that clients will dial. ConfigError: a CA that can't be used, a name that can't be one.
    """
    for client in clients:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", client):
            raise ConfigError(f"{client!r} can't name a client: use letters, digits and ._@-")
    written: list[Path] = []
    authority = _authority(directory, now, written)
    if renew or not _is_pair(directory / SERVER_FILE, directory / SERVER_KEY_FILE):
        sans = x509.SubjectAlternativeName([_general_name(name) for name in sorted(set(names))])
        certificate, key = _issue(authority, "meshd API", ExtendedKeyUsageOID.SERVER_AUTH, now, sans)
        _write_pair(directory / SERVER_FILE, certificate, directory / SERVER_KEY_FILE, key, written)
    for client in clients:
        home = directory / client
        if renew or not _is_pair(home / CLIENT_FILE, home / CLIENT_KEY_FILE):
            certificate, key = _issue(authority, client, ExtendedKeyUsageOID.CLIENT_AUTH, now)
            home.mkdir(mode=0o700, exist_ok=True)
            write_private(home / CA_FILE, authority.certificate.encode())
            _write_pair(home / CLIENT_FILE, certificate, home / CLIENT_KEY_FILE, key, written)
    return written


class ServerContext:
    """The TLS context of the API's server, read again when one of its files has changed: certificates are renewed without a restart."""

    def __init__(self, ca_file: Path, certificate: Path, key: Path) -> None:
        self._files = (ca_file, certificate, key)
        self._stamps = self._stamped()
        self._context = self._load()

    def __call__(self) -> ssl.SSLContext:
        stamps = self._stamped()
        if stamps != self._stamps:
            # Half a renewal may be on disk just now: then the old ones serve on, and the next handshake looks again.
            with contextlib.suppress(ConfigError):
                self._context, self._stamps = self._load(), stamps
        return self._context

    def _stamped(self) -> tuple[tuple[int, int], ...]:
        try:
            return tuple((stat.st_mtime_ns, stat.st_ino) for stat in (path.stat() for path in self._files))
        except OSError:
            return ()

    def _load(self) -> ssl.SSLContext:
        ca_file, certificate, key = self._files
        for path in self._files:
            if not path.is_file():
                raise ConfigError(f"{path} is missing: `meshd api-certs` makes it, or name another with --tlscacert, --tlscert, --tlskey")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Who shows none is told what to do instead of an alert that no client explains; `api.connection` lets nobody past without one.
        context.verify_mode = ssl.CERT_OPTIONAL
        context.num_tickets = 0
        try:
            context.load_verify_locations(ca_file)
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the certificates of the API can't be used ({certificate}, {key}, {ca_file}): {error}") from None
        return context


def _authority(directory: Path, now: datetime, written: list[Path]) -> ca.RootCA:
    certificate, key = directory / CA_FILE, directory / CA_KEY_FILE
    if _is_pair(certificate, key):
        return ca.RootCA(certificate.read_text(), key.read_text())
    if certificate.exists():
        raise ConfigError(f"{certificate} is there, but {key}, which signs for it, is not: bring it, or choose another directory")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meshd API CA")])
    signed = (
        ca.builder(name, name, own.public_key(), now, now + _CA_LIFE, path_length=0)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .sign(own, hashes.SHA256())
    )
    authority = ca.RootCA(ca.certificate_pem(signed), key_pem(own))
    _write_pair(certificate, authority.certificate, key, authority.key, written)
    return authority


def _issue(
    authority: ca.RootCA, common: str, usage: ObjectIdentifier, now: datetime, sans: x509.SubjectAlternativeName | None = None
) -> tuple[str, str]:
    own = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    builder = (
        ca.builder(name, load_certificate(authority.certificate).subject, own.public_key(), now, now + LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    if sans is not None:
        builder = builder.add_extension(sans, critical=False)
    return ca.certificate_pem(builder.sign(load_key(authority.key), hashes.SHA256())), key_pem(own)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return ca.general_name(name)
    except ValueError:
        raise ConfigError(f"{name!r} is neither a DNS name nor an IP address") from None


def _is_pair(certificate_file: Path, key_file: Path) -> bool:
    try:
        return ca.belongs(certificate_file.read_text(), key_file.read_text())
    except (OSError, MeshdError):
        return False


def _write_pair(certificate_file: Path, certificate: str, key_file: Path, key: str, written: list[Path]) -> None:
    write_private(key_file, key.encode())
    write_private(certificate_file, certificate.encode())
    written.append(certificate_file)
