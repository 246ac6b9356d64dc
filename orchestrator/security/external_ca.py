"""A CA that is not the managers': certificates are asked for over its HTTPS interface.

Edge. The CA's server has to show a certificate of the very root it signs for; the manager shows its own. What comes back is checked
before it is used. Source: CloudFlare's cfssl, doc/api/endpoint_sign.txt; SwarmKit ca/external.go (hosts, subject, profile "CA").
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from datetime import datetime

import aiohttp
import msgspec
from cryptography import x509

from orchestrator.errors import ConfigError, RemoteProtocolError
from orchestrator.http_answer import read_whole
from orchestrator.security import ca, roots
from orchestrator.security.admission import Order
from orchestrator.security.identity import Credentials

log = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=10.0, sock_connect=5.0)
_MAX_ANSWER_BYTES = 64 * 1024
# The profile under which a cfssl server signs another CA, by SwarmKit's convention.
_CROSS_SIGN_PROFILE = "CA"


class _Name(msgspec.Struct, frozen=True, omit_defaults=True):
    OU: str = ""
    O: str = ""  # noqa: E741


class _Subject(msgspec.Struct, frozen=True):
    CN: str
    names: tuple[_Name, ...]


class _Extension(msgspec.Struct, frozen=True):
    """value: DER in hexadecimal digits."""

    id: str
    critical: bool
    value: str


class _Question(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    certificate_request: str
    hosts: tuple[str, ...] = ()
    subject: _Subject | None = None
    profile: str = ""
    extensions: tuple[_Extension, ...] = ()


class _Result(msgspec.Struct, frozen=True):
    certificate: str = ""


class _Failure(msgspec.Struct, frozen=True):
    message: str = ""


class _Answer(msgspec.Struct, frozen=True):
    success: bool = False
    result: _Result | None = None
    errors: tuple[_Failure, ...] = ()


# cfssl takes it from here, and not from the request for a certificate.
_AS_CA = _Extension("2.5.29.19", True, x509.BasicConstraints(ca=True, path_length=0).public_bytes().hex())


async def sign(urls: Sequence[str], root: ca.RootCA, order: Order, credentials: Credentials, now: datetime) -> str:
    """The node's certificate from the first CA that gives one, with the root's intermediate. ConfigError: none does; why, each."""
    subject = _Subject(order.node_id, (_Name(ca.OU_OF[order.role], order.cluster_id),))
    hosts = (order.node_id, ca.OU_OF[order.role], *order.addresses)
    question = _Question(certificate_request=order.csr, hosts=hosts, subject=subject)
    reasons = []
    for url in urls:
        try:
            certificate = _checked(await _ask(url, question, root.certificate, credentials), root.certificate, order, now)
            return certificate + root.intermediate
        except RemoteProtocolError as error:
            reasons.append(f"{url}: {error}")
    log.warning("external CA failed node=%s reasons=%s", order.node_id, "; ".join(reasons))
    raise ConfigError("no external CA issued the node's certificate: " + "; ".join(reasons))


async def cross_sign(urls: Sequence[str], old_root: str, new: ca.RootCA, credentials: Credentials) -> str:
    """The new root, signed by the external CA of the old one. ConfigError: none does it."""
    subject = ca.load_certificate(new.certificate).subject
    question = _Question(certificate_request=ca.csr_of(ca.load_ca_key(new.key), subject), profile=_CROSS_SIGN_PROFILE, extensions=(_AS_CA,))
    reasons = []
    for url in urls:
        try:
            bridge = ca.certificate_pem(ca.load_certificate(await _ask(url, question, old_root, credentials)))
            if roots.leads(bridge, old_root, new.certificate):
                return bridge
            reasons.append(f"{url}: it signed something else")
        except RemoteProtocolError as error:
            reasons.append(f"{url}: {error}")
    why = "; ".join(reasons) or "no external CA is known"
    raise ConfigError(f"unable to generate a cross-signed certificate for root rotation: {why}")


async def reachable(urls: Sequence[str], root: str, credentials: Credentials) -> bool:
    """One of them shakes hands as a CA of this root has to."""
    for url in urls:
        try:
            async with _session(root, credentials) as session, session.get(url):
                return True
        except (aiohttp.ClientError, OSError, ValueError) as error:
            log.warning("external CA unreachable url=%s reason=%s", url, error)
    return False


async def _ask(url: str, question: _Question, root: str, credentials: Credentials) -> str:
    """PEM as it came. RemoteProtocolError: none came, with the reason."""
    headers = {"Content-Type": "application/json"}
    try:
        async with _session(root, credentials) as session:
            async with session.post(url, data=msgspec.json.encode(question), headers=headers, allow_redirects=False) as response:
                raw = await read_whole(response, _MAX_ANSWER_BYTES)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise RemoteProtocolError(str(error) or type(error).__name__) from None
    try:
        answer = msgspec.json.decode(raw, type=_Answer)
    except msgspec.DecodeError:
        raise RemoteProtocolError(f"it answers with HTTP status {response.status}, and not as cfssl does") from None
    if not answer.success or answer.result is None:
        told = "; ".join(failure.message for failure in answer.errors)
        raise RemoteProtocolError(f"it refused: {told[:200] or f'HTTP status {response.status}'}")
    return answer.result.certificate


def _checked(pem: str, root: str, order: Order, now: datetime) -> str:
    """The leaf alone. RemoteProtocolError: it is not what was asked for."""
    certificate = ca.load_certificate(pem)
    text = ca.certificate_pem(certificate)
    subject = ca.verify(text, root, now)
    if (subject.node_id, subject.role, subject.cluster_id) != (order.node_id, order.role, order.cluster_id):
        raise RemoteProtocolError("its certificate names another node, role or cluster")
    if certificate.public_key() != ca.request_of(order.csr).public_key():
        raise RemoteProtocolError("its certificate is for another key")
    if not {order.node_id, ca.OU_OF[order.role]} <= ca.dns_names(certificate):
        raise RemoteProtocolError("its certificate lacks the names that were asked for")
    if ca.may_sign(certificate):
        raise RemoteProtocolError("its certificate is a CA's")
    return text


def _session(root: str, credentials: Credentials) -> aiohttp.ClientSession:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=root)
    credentials.show_in(context)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, force_close=True), timeout=_TIMEOUT, trust_env=False)
