"""Joining a cluster and renewing a certificate: the side that asks.

Edge: HTTPS requests to managers. Trust runs both ways before anything secret is sent: the root certificate is fetched without
trust, held against the token's digest, and only to a manager that this root has signed is the token shown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import aiohttp
import msgspec

from orchestrator.errors import ApiError, ConfigError, MeshdError, RemoteProtocolError
from orchestrator.security import ca, tokens
from orchestrator.security.admission import (
    JoinAnswer,
    JoinQuestion,
    PromoteAnswer,
    PromoteQuestion,
    RenewAnswer,
    RenewQuestion,
    join_endpoint,
    split_endpoint,
)
from orchestrator.security.identity import Credentials, Identity, joining_context, renewal_due, unverified_context

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
    key, csr = ca.new_key_and_csr()
    reasons = []
    for endpoint in managers:
        try:
            answer = await _ask(endpoint, "/v1/renew", RenewQuestion(csr=csr), RenewAnswer, credentials.client_context())
        except _TryAgain as error:
            reasons.append(f"{endpoint}: {error}")
            continue
        identity = _checked(answer.certificate, key, credentials.identity.root_certificate, now())
        if identity.node_id != credentials.identity.node_id:
            raise RemoteProtocolError(f"the manager {endpoint} answered with another node's certificate")
        credentials.install(identity)
        log.info("certificate renewed node=%s role=%s until=%s", identity.node_id, identity.role, identity.subject.not_after.isoformat())
        return identity
    raise ConfigError("the node's certificate could not be renewed: " + ("; ".join(reasons) or "no manager is known"))


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


async def renew_forever(
    credentials: Credentials,
    managers: Callable[[], Sequence[str]],
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    random_: random.Random | None = None,
) -> None:
    """Renew at a random 50-80 % of each certificate's life; retried from 10 s up to 5 min apart. Runs until cancelled."""
    random_ = random_ or random.SystemRandom()
    due, pause_s = renewal_due(credentials.identity.subject, random_), 10.0
    while True:
        # In pieces, as a machine that slept or had its clock set must not be late.
        wait_s = (due - now()).total_seconds()
        if wait_s > 0:
            await asyncio.sleep(min(wait_s, 600.0))
            continue
        try:
            await renew(credentials, managers(), now=now)
            due, pause_s = renewal_due(credentials.identity.subject, random_), 10.0
        except MeshdError as error:
            log.warning("renewal failed reason=%s next_try_s=%d", error, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 300.0)


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
                answer = await response.content.read(_MAX_ANSWER_BYTES + 1)
                while not response.content.at_eof() and len(answer) <= _MAX_ANSWER_BYTES:
                    answer += await response.content.read(_MAX_ANSWER_BYTES + 1 - len(answer))
    except aiohttp.ClientConnectorCertificateError as error:
        raise _TryAgain(f"it is not a manager of this cluster ({error.certificate_error})") from None
    except aiohttp.ClientConnectorError as error:
        raise _TryAgain(dial_failure(error)) from None
    except (aiohttp.ClientError, OSError) as error:
        raise _TryAgain("no answer in time" if isinstance(error, TimeoutError) else f"connection failed ({type(error).__name__})") from None
    if len(answer) > _MAX_ANSWER_BYTES:
        raise _TryAgain("its answer is too long")
    return response.status, answer


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
