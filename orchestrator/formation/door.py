"""Asking and being asked who has a cluster: `POST /v1/formation` on the node's TLS port, before and after there is a cluster.

Edge. Both sides prove that they know the join secret (`proof`); who doesn't learns nothing but that. In a cluster the node's own TLS
server serves it (`Door.serve`), before that a server that has nothing else (`Door.open`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web

from orchestrator.errors import MeshdError, RemoteProtocolError
from orchestrator.formation import proof
from orchestrator.formation.decision import Answer, Question
from orchestrator.http_answer import read_whole
from orchestrator.ids import new_id
from orchestrator.security import ca
from orchestrator.security.admission import split_endpoint
from orchestrator.security.identity import Credentials, Identity, unverified_context
from orchestrator.security.listener import TlsListener
from orchestrator.security.rate import RateLimit

log = logging.getLogger(__name__)

PATH = "/v1/formation"
_MAX_BODY_BYTES = 64 * 1024
_TIMEOUT_S = 5.0
_WRONG_SECRET = "the join secret is another one there"


class Door:
    """answer(question): what this node says; called for those who know the secret only."""

    def __init__(self, secret: bytes, answer: Callable[[Question], Answer]) -> None:
        self._secret = secret
        self._answer = answer
        # a machine asks once a second; it may be one of several behind one address
        self._limit = RateLimit(per_s=20.0, burst=60)
        self._runner: web.AppRunner | None = None
        self._listener: TlsListener | None = None

    async def serve(self, request: web.Request, certificate: str) -> web.Response:
        """certificate: PEM, the one this server shows."""
        if not self._limit.allows(request.remote or "", asyncio.get_running_loop().time()):
            raise web.HTTPTooManyRequests(text="too many questions from this address: wait a second")
        shown = ssl.PEM_cert_to_DER_cert(certificate)
        async with asyncio.timeout(_TIMEOUT_S):
            asked = await request.read()
        if not proof.holds(request.headers.get(proof.HEADER, ""), proof.of_question(self._secret, shown, asked)):
            log.warning("formation question refused address=%s reason=wrong-proof", request.remote)
            raise web.HTTPForbidden(text=_WRONG_SECRET)
        try:
            question = msgspec.json.decode(asked, type=Question)
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=f"the question can't be read: {error}") from None
        said = msgspec.json.encode(self._answer(question))
        headers = {proof.HEADER: proof.of_answer(self._secret, shown, asked, said)}
        return web.Response(body=said, content_type="application/json", headers=headers)

    async def open(self, host: str, port: int) -> None:
        """Until `close`; open already: nothing happens. ConfigError: the port is taken."""
        if self._listener is not None:
            return
        identity = _passing_identity()
        context = _server_context(identity)

        async def serve(request: web.Request) -> web.Response:
            return await self.serve(request, identity.certificate)

        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_post(PATH, serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        listener = TlsListener(runner, lambda: context, host, port)
        try:
            await listener.start()
        except MeshdError:
            await runner.cleanup()
            raise
        self._runner, self._listener = runner, listener

    @property
    def address(self) -> tuple[str, int]:
        assert self._listener is not None, "the door is closed"
        return self._listener.address

    async def close(self) -> None:
        listener, self._listener = self._listener, None
        runner, self._runner = self._runner, None
        if listener is not None and runner is not None:
            await listener.stop()
            await runner.cleanup()


async def ask(endpoint: str, question: Question, secret: bytes) -> Answer | str:
    """Text: why there is no answer. Nothing secret is sent, and nothing believed that doesn't come with a proof."""
    asked = msgspec.json.encode(question)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            certificate = await _certificate_of(endpoint)
            pinned = aiohttp.TCPConnector(ssl=aiohttp.Fingerprint(proof.fingerprint(certificate)), force_close=True)
            headers = {proof.HEADER: proof.of_question(secret, certificate, asked), "Content-Type": "application/json"}
            async with aiohttp.ClientSession(connector=pinned, trust_env=False) as session:
                async with session.post(f"https://{endpoint}{PATH}", data=asked, headers=headers) as response:
                    said = await read_whole(response, _MAX_BODY_BYTES)
                    given = response.headers.get(proof.HEADER, "")
    except RemoteProtocolError as error:
        return str(error)
    except TimeoutError:
        return "no answer in time"
    except (aiohttp.ClientError, OSError) as error:
        # the event loops put their own texts around the system's: asked by number
        number = getattr(error, "errno", None)
        return os.strerror(number).lower() if number and number > 0 else f"connection failed ({type(error).__name__})"
    if response.status == 403:
        return _WRONG_SECRET
    if response.status != 200:
        return f"it does not answer such questions (HTTP status {response.status})"
    if not proof.holds(given, proof.of_answer(secret, certificate, asked, said)):
        return "it does not know the join secret"
    try:
        return msgspec.json.decode(said, type=Answer)
    except msgspec.DecodeError:
        return "its answer can't be read; does it run another version of meshd?"


async def _certificate_of(endpoint: str) -> bytes:
    """DER. Nothing is sent but the handshake."""
    host, port = split_endpoint(endpoint)
    _, writer = await asyncio.open_connection(host, port, ssl=unverified_context())
    try:
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(certificate, bytes)
        return certificate
    finally:
        writer.transport.abort()


def _passing_identity() -> Identity:
    """Of this process, signed by nobody who matters: the proofs are tied to it, that is all it is for."""
    now, nobody = datetime.now(UTC), new_id()
    root = ca.new_root(nobody, now)
    key, csr = ca.new_key_and_csr()
    return Identity.of(ca.issue(root, csr, node_id=nobody, role="worker", cluster_id=nobody, now=now), key, root.certificate)


def _server_context(identity: Identity) -> ssl.SSLContext:
    # OpenSSL takes keys by file name only
    with tempfile.TemporaryDirectory(prefix="meshd-") as directory:
        return Credentials.create(Path(directory), identity).server_context
