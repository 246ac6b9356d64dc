"""A node's identity on disk (certificate, key, root CA) and the TLS contexts made of it.

Edge: reads and writes the state directory. File names are Swarm's. Contexts get a renewed certificate in place: connections of the future
use it, those that exist stay. A context can't forget a root it trusts, so another root means new contexts: ask for them at each use.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import ConfigError, MeshdError
from orchestrator.local_state import sync_directory, write_private
from orchestrator.model import TLSInfo
from orchestrator.security import ca

CERT_FILE = "swarm-node.crt"
KEY_FILE = "swarm-node.key"
ROOT_FILE = "swarm-root-ca.crt"
ANY_MANAGER = "swarm-manager"


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """certificate, key, root_certificate: PEM. No `repr`: the key stays out of logs."""

    subject: ca.Subject
    certificate: str
    key: str
    root_certificate: str

    @classmethod
    def of(cls, certificate: str, key: str, root_certificate: str) -> Identity:
        """ConfigError: the certificate is not the key's."""
        if not ca.belongs(certificate, key):
            raise ConfigError("the node's certificate and its private key don't belong together")
        return cls(ca.subject(certificate), certificate, key, root_certificate)

    @property
    def node_id(self) -> str:
        return self.subject.node_id

    @property
    def role(self) -> ca.Role:
        return self.subject.role

    @property
    def cluster_id(self) -> str:
        return self.subject.cluster_id

    @property
    def leaf(self) -> str:
        """The node's own certificate, without what is shown behind it."""
        return ca.certificate_pem(ca.load_certificate(self.certificate))

    @property
    def tls_info(self) -> TLSInfo:
        """Whom the node trusts, who signed its certificate."""
        return ca.tls_info(self.root_certificate, self.certificate)

    @property
    def fingerprint(self) -> str:
        return ca.fingerprint(ca.load_key(self.key).public_key())

    def under(self, root_certificate: str, now: datetime) -> Identity:
        """The same, trusting another root. RemoteProtocolError: that root doesn't vouch for this certificate."""
        ca.verify(self.certificate, root_certificate, now)
        return Identity(self.subject, self.certificate, self.key, root_certificate)


class Credentials:
    """The identity in a state directory. `install` replaces it, on disk and in the contexts. renewing: held while one is asked for."""

    def __init__(self, directory: Path, identity: Identity, passphrase: bytes = b"") -> None:
        self._directory = directory
        self._passphrase = passphrase
        self._identity = identity
        self.renewing = asyncio.Lock()
        self._server: ssl.SSLContext | None = None
        self._clients: dict[str, ssl.SSLContext] = {}

    @classmethod
    def load(cls, directory: Path, passphrase: bytes = b"") -> Credentials | None:
        """None: this node has no identity. ConfigError: it has one that can't be used. passphrase: of the key on disk; b"": it has none."""
        directory = Path(directory)
        _finish_interrupted_install(directory, passphrase)
        paths = [directory / name for name in (CERT_FILE, KEY_FILE, ROOT_FILE)]
        if not any(path.exists() for path in paths[:2]):
            return None
        try:
            certificate, key, root = (path.read_text() for path in paths)
            return cls(directory, Identity.of(certificate, ca.pem_opened(key, passphrase), root), passphrase)
        except (OSError, MeshdError) as error:
            raise ConfigError(f"the node's identity in {directory} can't be used: {error}; leave the cluster and join again") from None

    @classmethod
    def create(cls, directory: Path, identity: Identity, passphrase: bytes = b"") -> Credentials:
        """Written to disk before it returns."""
        credentials = cls(Path(directory), identity, passphrase)
        credentials.install(identity)
        return credentials

    @property
    def identity(self) -> Identity:
        return self._identity

    def install(self, identity: Identity) -> None:
        """Key and certificate are two files: whatever the moment of a crash, `load` finds the old pair or the new one."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self._directory / ROOT_FILE, identity.root_certificate.encode())
        new_key, new_cert = self._directory / f"{KEY_FILE}.new", self._directory / f"{CERT_FILE}.new"
        write_private(new_cert, identity.certificate.encode())
        write_private(new_key, ca.pem_sealed(identity.key, self._passphrase).encode())
        new_key.rename(self._directory / KEY_FILE)
        new_cert.rename(self._directory / CERT_FILE)
        sync_directory(self._directory)
        if identity.root_certificate != self._identity.root_certificate:
            self._server, self._clients = None, {}
        self._identity = identity
        for context in [*self._clients.values(), *([self._server] if self._server else [])]:
            self.show_in(context)

    def erase(self) -> None:
        """Forget the identity (leave)."""
        for name in (CERT_FILE, KEY_FILE, ROOT_FILE, f"{CERT_FILE}.new", f"{KEY_FILE}.new"):
            (self._directory / name).unlink(missing_ok=True)

    @property
    def server_context(self) -> ssl.SSLContext:
        """A client certificate is not demanded, but one that is shown must be this cluster's and valid, else the handshake fails."""
        if self._server is None:
            self._server = _context(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._identity.root_certificate)
            self._server.verify_mode = ssl.CERT_OPTIONAL
            # Without tickets: nobody resumes, and a removed node shall not.
            self._server.num_tickets = 0
            self.show_in(self._server)
        return self._server

    def client_context(self, peer: str = ANY_MANAGER) -> ssl.SSLContext:
        """For connections to `peer` only: a node id, or ANY_MANAGER. Anyone else fails the handshake."""
        if peer not in self._clients:
            context = _peer_context(peer, self._identity.root_certificate)
            self.show_in(context)
            self._clients[peer] = context
        return self._clients[peer]

    def show_in(self, context: ssl.SSLContext) -> None:
        """Connections of this context show the node's certificate."""
        context.load_cert_chain(self._directory / CERT_FILE, self._directory / KEY_FILE, self._passphrase)


def joining_context(root_certificate: str) -> ssl.SSLContext:
    """For a node that has no certificate yet: any manager under this root, and nobody else."""
    return _peer_context(ANY_MANAGER, root_certificate)


def unverified_context() -> ssl.SSLContext:
    """For fetching the root certificate, which is then held against the token's digest. Nothing secret may be sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def renewal_due(subject: ca.Subject, random_: random.Random) -> datetime:
    """A random moment between 50 and 80 % of the certificate's life, so that a cluster made at once doesn't renew at once."""
    start = subject.not_before + ca.BACKDATE
    life: timedelta = subject.not_after - start
    return start + life * random_.uniform(0.5, 0.8)


class _PeerContext(ssl.SSLContext):
    """Verifies the peer under a fixed name, whatever address was dialled: nodes are known by their names, not by where they are."""

    peer: str = ""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: Any = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.peer, session)

    @classmethod
    def verifying(cls, peer: str) -> Self:
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.peer = peer
        return context


def _peer_context(peer: str, root_certificate: str) -> ssl.SSLContext:
    return _context(_PeerContext.verifying(peer), root_certificate)


def _context(context: ssl.SSLContext, root_certificate: str) -> ssl.SSLContext:
    # Both ends are always meshd: nothing older than TLS 1.3 is needed.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=root_certificate)
    return context


def _finish_interrupted_install(directory: Path, passphrase: bytes) -> None:
    cert, key = directory / CERT_FILE, directory / KEY_FILE
    new_cert, new_key = directory / f"{CERT_FILE}.new", directory / f"{KEY_FILE}.new"
    try:
        if (
            new_cert.exists()
            and key.exists()
            and not new_key.exists()
            and ca.belongs(new_cert.read_text(), ca.pem_opened(key.read_text(), passphrase))
        ):
            new_cert.rename(cert)
    except MeshdError:
        pass
    new_cert.unlink(missing_ok=True)
    new_key.unlink(missing_ok=True)
