"""Joining a cluster, renewing a certificate, coming back with one that has expired: the side that asks.

Edge: HTTPS requests to managers. Trust runs both ways before anything secret is sent: the root certificate is fetched without
trust, held against the token's digest, and only to a manager that this root has signed is the token shown.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import aiohttp
import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.errors import ApiError, ConfigError, MeshdError, RemoteProtocolError
from orchestrator.http_answer import read_whole
from orchestrator.security import ca, roots, tokens
from orchestrator.security.admission import (
    JoinAnswer,
    JoinQuestion,
    PromoteAnswer,
    PromoteQuestion,
    ReadmitQuestion,
    RenewAnswer,
    RenewQuestion,
    RootsAnswer,
    join_endpoint,
    readmission_text,
    split_endpoint,
)
from orchestrator.security.identity import Credentials, Identity, joining_context, unverified_context

log = logging.getLogger(__name__)
A = TypeVar("A")

_MAX_ANSWER_BYTES = 1 << 20
_CONNECT_TIMEOUT_S = 5.0
_REQUEST_TIMEOUT_S = 15.0
_PROMOTION_TIMEOUT_S = 45.0
_ROUND_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class JoinResult:
    """identity: not on disk yet (`Credentials.create`). managers: "ip:port". bundle: for managers only."""

    identity: Identity
    managers: tuple[str, ...]
    bundle: dict[str, str] = field(repr=False)


class _TryAgain(Exception):
    """This manager can't say just now; the text is why."""


async def join(
    remote_addrs: Sequence[str],
    token: str,
    *,
    addr: str = "",
    data_addr: str = "",
    hostname: str = "",
    availability: str = "active",
    timeout_s: float = 20.0,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> JoinResult:
    """Ask the managers in turn until one decides or the time is over. addr: "ip:port" others reach this node at ("" = as seen).

    ApiError, with the text Docker's users know where there is one: a malformed or wrong token, a CA that isn't the token's,
    nobody reachable (every address with its reason).
    """
    try:
        parsed = tokens.parse(token)
    except tokens.InvalidToken as error:
        raise ApiError(500, str(error)) from None
    if not remote_addrs:
        raise ApiError(400, "at least one remote address of a manager is needed to join")
    endpoints = [_endpoint(remote) for remote in remote_addrs]
    key, csr = ca.new_key_and_csr()
    question = JoinQuestion(token=token, csr=csr, hostname=hostname, addr=addr, data_addr=data_addr, availability=availability)
    reasons: dict[str, str] = {}
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while True:
        for endpoint in endpoints:
            try:
                async with asyncio.timeout_at(deadline_s):
                    root = await _root_certificate(endpoint, parsed)
                    answer = await _ask(endpoint, "/v1/join", question, JoinAnswer, joining_context(root))
                return JoinResult(_checked(answer.certificate, key, root, now()), answer.managers, answer.bundle)
            except _TryAgain as error:
                reasons[endpoint] = str(error)
            except TimeoutError:
                reasons.setdefault(endpoint, "no answer in time")
        if asyncio.get_running_loop().time() + _ROUND_PAUSE_S >= deadline_s:
            listed = "; ".join(f"{endpoint}: {reason}" for endpoint, reason in sorted(reasons.items()))
            raise ApiError(503, f"could not join the cluster, no manager answered within {timeout_s:g} s: {listed}")
        await asyncio.sleep(_ROUND_PAUSE_S)


async def renew(credentials: Credentials, managers: Sequence[str], *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Identity:
    """Get a new certificate for a new key and install it. The role in it is the one the store gives the node now.

    ConfigError: no manager did it, each with its reason; the old certificate stays. ApiError(403): the node was removed.
    """

    async def ask(endpoint: str, csr: str) -> RenewAnswer:
        return await _ask(endpoint, "/v1/renew", RenewQuestion(csr=csr), RenewAnswer, credentials.client_context())

    return await _renewed(credentials, managers, ask, now)


async def readmit(
    credentials: Credentials, managers: Sequence[str], *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Identity:
    """Get a new certificate where TLS doesn't accept the old one: it has expired, or the root was replaced while this node was away.

    The key proves who asks. Whom the node trusts follows from the root it knows: the present one is that, or signed by way of it.
    ConfigError: no manager did it, each with its reason. ApiError(403): not with this key, or the node was removed.
    """

    async def ask(endpoint: str, csr: str) -> RenewAnswer:
        root = await _present_root(endpoint, credentials.identity.root_certificate, now())
        if accepted(credentials.identity, root, now()):
            raise _TryAgain("there is nothing wrong with the certificate")
        question = readmit_question(credentials.identity, csr)
        return await _ask(endpoint, "/v1/readmit", question, RenewAnswer, joining_context(root))

    return await _renewed(credentials, managers, ask, now)


def accepted(identity: Identity, root: str, now: datetime) -> bool:
    """Who trusts this root lets the node's certificate in."""
    try:
        ca.verify(identity.certificate, root, now)
    except RemoteProtocolError:
        return False
    return True


def readmit_question(identity: Identity, csr: str) -> ReadmitQuestion:
    """Signed with the key of the identity."""
    key = ca.load_key(identity.key)
    signature = key.sign(readmission_text(identity.cluster_id, identity.node_id, csr), ec.ECDSA(hashes.SHA256()))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return ReadmitQuestion(node_id=identity.node_id, csr=csr, key=public.decode(), signature=base64.b64encode(signature).decode())


async def _renewed(
    credentials: Credentials,
    managers: Sequence[str],
    ask: Callable[[str, str], Awaitable[RenewAnswer]],
    now: Callable[[], datetime],
) -> Identity:
    """One at a time: what is installed last has to be what the managers know."""
    async with credentials.renewing:
        key, csr = ca.new_key_and_csr()
        reasons = []
        for endpoint in managers:
            try:
                return install_renewed(credentials, await ask(endpoint, csr), key, now())
            except _TryAgain as error:
                reasons.append(f"{endpoint}: {error}")
        raise ConfigError("the node's certificate could not be renewed: " + ("; ".join(reasons) or "no manager is known"))


def install_renewed(credentials: Credentials, answer: RenewAnswer, key: str, now: datetime) -> Identity:
    """ApiError: the answer's certificate can't be used. The manager was verified: the root it names is the one to trust from now on."""
    identity = _checked(answer.certificate, key, answer.root_certificate, now)
    if (identity.node_id, identity.cluster_id) != (credentials.identity.node_id, credentials.identity.cluster_id):
        raise RemoteProtocolError("the manager answered with another node's certificate")
    credentials.install(identity)
    log.info("certificate renewed node=%s role=%s until=%s", identity.node_id, identity.role, identity.subject.not_after.isoformat())
    return identity


async def ask_for_promotion(credentials: Credentials, managers: Sequence[str], addr: str) -> dict[str, str]:
    """What this node needs for its etcd; it is a learner of the cluster from here on. addr: "ip:port" of this node.

    ConfigError: no manager did it, each with its reason. ApiError(403): nobody made this node a manager.
    """
    reasons = []
    for endpoint in managers:
        if endpoint == addr:
            continue
        try:
            question = PromoteQuestion(addr=addr)
            answer = await _ask(
                endpoint, "/v1/promote", question, PromoteAnswer, credentials.client_context(), timeout_s=_PROMOTION_TIMEOUT_S
            )  # fmt: skip
            return answer.bundle
        except _TryAgain as error:
            reasons.append(f"{endpoint}: {error}")
    raise ConfigError("this node could not become a manager: " + ("; ".join(reasons) or "no other manager is known"))


def _endpoint(text: str) -> str:
    try:
        return join_endpoint(*split_endpoint(text.strip()))
    except ValueError:
        raise ApiError(400, f'invalid remote address "{text[:80]}": expected "ip" or "ip:port"') from None


async def _root_certificate(endpoint: str, token: tokens.Token) -> str:
    status, body = await _fetch("GET", endpoint, "/v1/ca", None, unverified_context())
    if status != 200:
        raise _TryAgain(_message(status, body))
    try:
        root = body.decode()
        found = ca.digest(root)
    except (UnicodeDecodeError, RemoteProtocolError):
        raise _TryAgain("it doesn't answer as a manager of meshd does") from None
    if found != token.digest:
        expected = f"{int(token.digest, 36):064x}"
        raise ApiError(400, f"remote CA does not match fingerprint. Expected: {expected}")
    return root


async def _present_root(endpoint: str, trusted: str, now: datetime) -> str:
    """The root that managers are under now, if it is the trusted one or follows from it."""
    status, body = await _fetch("GET", endpoint, "/v1/roots", None, unverified_context())
    if status != 200:
        raise _TryAgain(_message(status, body))
    try:
        answer = msgspec.json.decode(body, type=RootsAnswer)
        follows = roots.successor(trusted, answer.root_certificate, answer.bridges, now)
    except (msgspec.DecodeError, RemoteProtocolError):
        raise _TryAgain("it doesn't answer as a manager of meshd does") from None
    if not follows:
        raise _TryAgain("its root certificate doesn't follow from the one this node knows; if this is the cluster, leave it and join again")
    return answer.root_certificate


async def _ask(
    endpoint: str, path: str, question: msgspec.Struct, answer: type[A], context: ssl.SSLContext, *, timeout_s: float = _REQUEST_TIMEOUT_S
) -> A:
    status, body = await _fetch("POST", endpoint, path, msgspec.json.encode(question), context, timeout_s)
    if status == 403:
        text = _message(status, body)
        # Docker's daemon passes the manager's gRPC error on, prefix included.
        raise ApiError(400, f"rpc error: code = InvalidArgument desc = {text}") if path == "/v1/join" else ApiError(403, text)
    if status in (400, 409, 413):
        raise ApiError(status, _message(status, body))
    if status != 200:
        raise _TryAgain(_message(status, body))
    try:
        return msgspec.json.decode(body, type=answer)
    except msgspec.DecodeError:
        raise _TryAgain("its answer can't be read; does it run another version of meshd?") from None


async def _fetch(
    method: str, endpoint: str, path: str, body: bytes | None, context: ssl.SSLContext, timeout_s: float = _REQUEST_TIMEOUT_S
) -> tuple[int, bytes]:
    """_TryAgain: no connection, no valid peer, no answer; the reason in a few words."""
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
    connector = aiohttp.TCPConnector(ssl=context, force_close=True)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            async with session.request(method, f"https://{endpoint}{path}", data=body, headers=headers) as response:
                return response.status, await read_whole(response, _MAX_ANSWER_BYTES)
    except RemoteProtocolError as error:
        raise _TryAgain(str(error)) from None
    except aiohttp.ClientConnectorCertificateError as error:
        raise _TryAgain(f"it is not a manager of this cluster ({error.certificate_error})") from None
    except aiohttp.ClientConnectorError as error:
        raise _TryAgain(dial_failure(error)) from None
    except (aiohttp.ClientError, OSError) as error:
        raise _TryAgain("no answer in time" if isinstance(error, TimeoutError) else f"connection failed ({type(error).__name__})") from None


def dial_failure(error: aiohttp.ClientConnectorError) -> str:
    """Why no connection came about, in a few words. The event loops put their own texts around the system's: asked by number."""
    number = error.os_error.errno
    return os.strerror(number).lower() if number else str(error.os_error) or "no answer in time"


def _message(status: int, body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body, type=dict[str, str])["message"])[:500]
    except (msgspec.DecodeError, KeyError):
        return f"HTTP status {status}"


def _checked(certificate: str, key: str, root: str, now: datetime) -> Identity:
    """The answer's certificate is for our key, from this root, valid by our clock."""
    try:
        ca.verify(certificate, root, now)
        return Identity.of(certificate, key, root)
    except MeshdError as error:
        raise ApiError(500, f"the certificate the manager sent can't be used: {error}") from None
