"""Root certificates that follow each other: what a new one must be, the old one's signature on it, the way from one to the next.

Pure, but for serial numbers from the system's randomness; the time is an argument. PEM in, PEM out.
Source: SwarmKit ca/certificates.go (CrossSignCACertificate), manager/controlapi/ca_rotation.go (what a given root must be).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from orchestrator.errors import ConfigError, RemoteProtocolError
from orchestrator.security import ca

E = TypeVar("E", bound=x509.ExtensionType)

# SwarmKit's minRootExpiration
MIN_ROOT_LIFE = timedelta(days=365)


def checked(certificate: str, key: str, now: datetime) -> ca.RootCA:
    """A root that a user gives, made ours to use. ConfigError: why it can't be one. key "": another CA has it."""
    try:
        found = ca.load_chain(certificate)
    except RemoteProtocolError:
        raise ConfigError("could not parse the desired CA certificate") from None
    if len(found) != 1:
        raise ConfigError("the desired CA certificate cannot contain multiple certificates")
    [root] = found
    if not ca.signed(root, root):
        raise ConfigError("the desired CA certificate is not a root: it has to be signed by its own key")
    # What OpenSSL's strict verification, which all connections are under, demands of a root that signs another one.
    if not _extension(root, x509.SubjectKeyIdentifier):
        raise ConfigError("the desired CA certificate lacks a subject key identifier (openssl: subjectKeyIdentifier = hash)")
    constraints, usage = _extension(root, x509.BasicConstraints), _extension(root, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        raise ConfigError("the desired CA certificate is not a CA's: it must be allowed to sign certificates")
    if constraints.path_length == 0:
        raise ConfigError("the desired CA certificate has a path length of 0: it could not be rotated once more; 1 or none is needed")
    if root.not_valid_before_utc > now:
        raise ConfigError("the desired CA certificate is not valid yet")
    if root.not_valid_after_utc < now + MIN_ROOT_LIFE:
        raise ConfigError("CA certificate expires too soon")
    if key and ca.load_ca_key(key).public_key() != root.public_key():
        raise ConfigError("the desired CA certificate and the CA key don't belong together")
    return ca.RootCA(ca.certificate_pem(root), key)


def cross_signed(old: ca.RootCA, new_root: str, now: datetime) -> str:
    """The new root's name and key in a certificate that the old root has signed: who trusts the old one accepts what the new one signs."""
    issuer, new = ca.load_certificate(old.certificate), ca.load_certificate(new_root)
    not_after = min(issuer.not_valid_after_utc, new.not_valid_after_utc)
    certificate = (
        ca.builder(new.subject, issuer.subject, new.public_key(), now, not_after, path_length=0)
        .add_extension(new.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value, critical=False)
        .add_extension(ca.authority_key(issuer), critical=False)
        .sign(ca.load_ca_key(old.key), hashes.SHA256())
    )
    return ca.certificate_pem(certificate)


def leads(bridge: str, old_root: str, new_root: str) -> bool:
    """The bridge is the new root's name and key, signed by the old root."""
    signed, old, new = ca.load_certificate(bridge), ca.load_certificate(old_root), ca.load_certificate(new_root)
    return ca.signed(signed, old) and _same(signed, new)


def successor(trusted: str, root: str, bridges: Sequence[str], now: datetime) -> bool:
    """`root` follows `trusted`: each bridge signed by the root before it, oldest first, the last one for `root`; all valid now.

    RemoteProtocolError: something is no certificate.
    """
    reached, new = ca.load_certificate(trusted), ca.load_certificate(root)
    for bridge in map(ca.load_certificate, bridges):
        if ca.may_sign(bridge) and bridge.not_valid_before_utc <= now <= bridge.not_valid_after_utc and ca.signed(bridge, reached):
            reached = bridge
    return _same(reached, new) and ca.signed(new, new) and new.not_valid_before_utc <= now <= new.not_valid_after_utc


def _same(one: x509.Certificate, other: x509.Certificate) -> bool:
    return one.public_key() == other.public_key() and one.subject == other.subject


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, ValueError):
        return None
