"""The cluster's certificate authority: root certificate, node certificates, their digest and verification.

Pure, but for the key and serial numbers drawn from the system's randomness; the time is an argument. PEM in, PEM out. A node's
certificate is one PEM, or two while the root is being rotated (`roots`): its own, and the new root as the old one has signed it.
Source: SwarmKit ca/ (P-256, root 20 years, node certificates 90 days, backdated an hour; CN = node id, OU = role, O = cluster id).

A node's names (subject alternative names) are chosen here, never taken from the request: its id and its role's name. So TLS's own
host name check can demand "a manager of this cluster" (`swarm-manager`) or "this very node" (its id) before a byte is sent.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.errors import ConfigError, RemoteProtocolError
from orchestrator.ids import base36
from orchestrator.model import TLSInfo

Role = Literal["worker", "manager"]
CAKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
OU_OF: dict[str, str] = {"worker": "swarm-worker", "manager": "swarm-manager"}
ROLE_OF: dict[str, Role] = {"swarm-worker": "worker", "swarm-manager": "manager"}

ROOT_LIFE = timedelta(days=20 * 365)
NODE_LIFE = timedelta(days=90)
# SwarmKit's CertBackdate and MinNodeCertExpiration. A clock that is a little behind must accept a certificate made by one that is ahead.
BACKDATE = timedelta(hours=1)
MIN_NODE_LIFE = timedelta(hours=1)
_MAX_CSR_BYTES = 8192


@dataclass(frozen=True, slots=True)
class RootCA:
    """PEM. The key never leaves the managers; "": another CA has it. intermediate: this root, signed by the one that nodes trust still."""

    certificate: str
    key: str = field(repr=False)
    intermediate: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who a certificate says its owner is."""

    node_id: str
    role: Role
    cluster_id: str
    not_before: datetime
    not_after: datetime


def new_root(cluster_id: str, now: datetime) -> RootCA:
    """A self-signed root. Its path length of 1 leaves room for its cross-signed successor (`roots`)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "swarm-ca"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id)],
    )
    certificate = (
        builder(name, name, key.public_key(), now, now + ROOT_LIFE, path_length=1)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return RootCA(certificate_pem(certificate), key_pem(key))


def new_key_and_csr() -> tuple[str, str]:
    """(private key PEM, signing request PEM) of a node that joins. The request carries only the public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key_pem(key), csr_of(key)


def csr_of(key: CAKey, subject: x509.Name | None = None) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def node_id_of(csr: str) -> str:
    """The id a joining node gets: 25 base-36 digits of its public key's hash, so a join that is repeated is the same node.

    RemoteProtocolError: not a signing request, not self-signed, or not a P-256 key.
    """
    return base36(int.from_bytes(hashlib.sha256(spki(request_of(csr).public_key())).digest()[:16], "big"), 25)


def issue(
    root: RootCA,
    csr: str,
    *,
    node_id: str,
    role: Role,
    cluster_id: str,
    now: datetime,
    life: timedelta = NODE_LIFE,
    addresses: Sequence[str] = (),
) -> str:
    """A certificate for the request's key, PEM, with the root's intermediate behind it. Of the request nothing but the key is used.

    addresses: IP addresses the caller vouches for. RemoteProtocolError as `node_id_of`; ConfigError: the CA can't sign.
    """
    request = request_of(csr)
    ca = load_certificate(root.certificate)
    ca_key = load_ca_key(root.key)
    public_key = request.public_key()
    names: list[x509.GeneralName] = [x509.DNSName(node_id), x509.DNSName(OU_OF[role])]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in sorted(set(addresses))]
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, OU_OF[role]),
            x509.NameAttribute(NameOID.COMMON_NAME, node_id),
        ],
    )
    not_after = min(now + max(life, MIN_NODE_LIFE), ca.not_valid_after_utc)
    certificate = (
        builder(name, ca.subject, public_key, now, not_after)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(authority_key(ca), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return certificate_pem(certificate) + root.intermediate


def builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificatePublicKeyTypes,
    now: datetime,
    not_after: datetime,
    *,
    path_length: int | None = None,
) -> x509.CertificateBuilder:
    """What all certificates that are made here have; the rest is the caller's to add. path_length: of a CA's; None: it is none."""
    is_ca = path_length is not None
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=True)
        .add_extension(key_usage(ca=is_ca), critical=True)
    )


def general_name(text: str) -> x509.GeneralName:
    """An IP address or a DNS name. ValueError: neither."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def subject(certificate: str) -> Subject:
    """What the certificate says, without asking who signed it. RemoteProtocolError: not a node's certificate."""
    parsed = load_certificate(certificate)

    def one(oid: x509.ObjectIdentifier) -> str:
        found = parsed.subject.get_attributes_for_oid(oid)
        if len(found) != 1:
            raise RemoteProtocolError("this is not a node's certificate: its subject lacks organization, unit or common name")
        return str(found[0].value)

    unit = one(NameOID.ORGANIZATIONAL_UNIT_NAME)
    role = ROLE_OF.get(unit)
    if role is None:
        raise RemoteProtocolError(f'this is not a node\'s certificate: its organizational unit is "{unit}"')
    return Subject(one(NameOID.COMMON_NAME), role, one(NameOID.ORGANIZATION_NAME), parsed.not_valid_before_utc, parsed.not_valid_after_utc)


def verify(certificate: str, root_certificate: str, now: datetime) -> Subject:
    """The certificate's subject, if the root signed it, or signed who signed it, and it is valid now; else RemoteProtocolError, why."""
    issuer = _signed_by(certificate, root_certificate)
    if issuer is None:
        raise RemoteProtocolError("the certificate was not signed by this cluster's CA")
    found = subject(certificate)
    not_after = min(found.not_after, issuer.not_valid_after_utc)
    if now > not_after:
        raise RemoteProtocolError(f"the certificate expired on {not_after:%Y-%m-%d %H:%M:%S} UTC")
    if now < found.not_before:
        raise RemoteProtocolError(f"the certificate is not valid before {found.not_before:%Y-%m-%d %H:%M:%S} UTC; is this clock right?")
    return found


def signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Signature and names only."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def dns_names(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return set(names.get_values_for_type(x509.DNSName))


def may_sign(certificate: x509.Certificate) -> bool:
    """It is a CA's."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _signed_by(certificate: str, root_certificate: str) -> x509.Certificate | None:
    """Whose key signed a node's certificate: the root's, or that of the intermediate behind it, if the root signed that."""
    leaf, *intermediates = load_chain(certificate)
    root = load_certificate(root_certificate)
    issuers = [root, *(intermediate for intermediate in intermediates if signed(intermediate, root))]
    return next((issuer for issuer in issuers if signed(leaf, issuer)), None)


def digest(root_certificate: str) -> str:
    """The part of a join token that names the root: sha256 of its PEM, 50 base-36 digits. However the PEM was wrapped."""
    return base36(int(hashlib.sha256(certificate_pem(load_certificate(root_certificate)).encode()).hexdigest(), 16), 50)


def tls_info(root_certificate: str, certificate: str = "") -> TLSInfo:
    """What `docker info` and `docker node inspect` show: the root that is trusted and who signed `certificate` ("": that same root)."""
    issuer = (_signed_by(certificate, root_certificate) if certificate else None) or load_certificate(root_certificate)
    return TLSInfo(
        trust_root=certificate_pem(load_certificate(root_certificate)),
        cert_issuer_subject=base64.b64encode(issuer.subject.public_bytes()).decode(),
        cert_issuer_public_key=base64.b64encode(spki(issuer.public_key())).decode(),
    )


def fingerprint(key: PublicKeyTypes) -> str:
    """Names a public key: what the store keeps of a node's."""
    return hashlib.sha256(spki(key)).hexdigest()


def spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def belongs(certificate: str, key: str) -> bool:
    """The private key is the certificate's."""
    return load_certificate(certificate).public_key() == load_key(key).public_key()


def load_certificate(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        raise RemoteProtocolError("this is not a PEM certificate") from None


def load_chain(pem: str) -> list[x509.Certificate]:
    """All certificates of a PEM text, at least one."""
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise RemoteProtocolError("this is not a PEM certificate") from None


def load_ca_key(pem: str) -> CAKey:
    """A CA's key may be another tool's: RSA too. ConfigError."""
    try:
        key = serialization.load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError):
        raise ConfigError("this is not a PEM private key without a passphrase") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError("the CA's private key is neither an elliptic-curve nor an RSA key")
    return key


def load_key(pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError):
        raise ConfigError("this is not a PEM private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the private key is not an elliptic-curve key")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()  # fmt: skip


def request_of(csr: str) -> x509.CertificateSigningRequest:
    if len(csr) > _MAX_CSR_BYTES:
        raise RemoteProtocolError(f"the certificate signing request is longer than {_MAX_CSR_BYTES} bytes")
    try:
        request = x509.load_pem_x509_csr(csr.encode())
        key = request.public_key()
        signed = request.is_signature_valid
    except Exception:  # cryptography raises ValueError, UnsupportedAlgorithm and others here: all mean the same
        raise RemoteProtocolError("this is not a PEM certificate signing request") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RemoteProtocolError("the certificate signing request's key is not a P-256 key")
    if not signed:
        raise RemoteProtocolError("the certificate signing request is not signed by its own key")
    return request


def authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """As the issuer names its own key."""
    try:
        named = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(named)


def pem_sealed(key: str, passphrase: bytes) -> str:
    """The private key under a passphrase (PKCS #8, PBES2); b"": as it is."""
    if not passphrase:
        return key
    sealed = serialization.BestAvailableEncryption(passphrase)
    return load_key(key).private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed).decode()


def pem_opened(key: str, passphrase: bytes) -> str:
    """The private key without its passphrase. ConfigError: it has another one."""
    if "ENCRYPTED" not in key:
        return key
    try:
        opened = serialization.load_pem_private_key(key.encode(), passphrase or None)
    except (ValueError, TypeError):
        raise ConfigError("the private key can't be opened with this node's passphrase") from None
    assert isinstance(opened, ec.EllipticCurvePrivateKey), "only such keys are sealed"
    return key_pem(opened)


def key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
