"""The node's TLS server (port 2377): what it answers, and to whom.

Edge: aiohttp routes over the listener. Everyone may fetch the root certificates; a join token opens `join`, the key of a known node
`readmit`; a certificate of a node that is still in the store opens `renew`, `dispatcher` and, if the node is to be a manager,
`promote`; the certificate of one that is a manager now opens `relay`, the node's Engine and its traces. On workers, which have no store,
only the root certificate and what managers ask of a node are served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from cryptography import x509

from orchestrator.diagnose.node_side import NodeTracing
from orchestrator.dispatcher.connection import AGENTS, RELAY
from orchestrator.dispatcher.engine_proxy import EngineProxy
from orchestrator.dispatcher.gateway import Gateway
from orchestrator.errors import MeshdError, StoreUnavailable
from orchestrator.formation.door import PATH as FORMATION_PATH
from orchestrator.model import Node
from orchestrator.security import admission, ca
from orchestrator.security.admission import JoinQuestion, PromoteAnswer, PromoteQuestion, ReadmitQuestion, RenewQuestion
from orchestrator.security.identity import Credentials
from orchestrator.security.listener import TlsListener
from orchestrator.security.managers_only import NOT_TOLD, ManagersOnly
from orchestrator.security.peer import Peer, key_of, peer_of
from orchestrator.security.rate import RateLimit
from orchestrator.security.registrar import Registrar
from orchestrator.store.base import Store

log = logging.getLogger(__name__)
A = TypeVar("A")

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_S = 10.0
JOIN_TIMEOUT_S = 15.0
# etcd takes one learner at a time and wants rest between two changes
PROMOTE_TIMEOUT_S = 40.0
_CERTIFICATE_NEEDED = "a certificate of a node of this cluster is needed"
_WORKER = "this node is not a manager of the cluster: ask one of its managers"


@dataclass(frozen=True, slots=True)
class ManagerSide:
    """What a manager serves besides. bundle(node id, "ip:port"): what only a joining manager gets, such as etcd's CA.
    record(node id, "ip:port"): a node of the cluster has become a manager."""

    store: Store
    gateway: Gateway
    bundle: Callable[[str, str], Awaitable[dict[str, str]]]
    record: Callable[[str, str], Awaitable[None]]


class NodeServer:
    """The server on its port. `manager()` is asked at every request: None while this node is a worker. formation(request, the certificate
    this server shows): answers machines that look for a cluster."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        engine_socket: str,
        manager: Callable[[], ManagerSide | None],
        host: str = "0.0.0.0",
        port: int = admission.DEFAULT_PORT,
        tracing: NodeTracing | None = None,
        formation: Callable[[web.Request, str], Awaitable[web.Response]] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._credentials = credentials
        self._manager = manager
        self._now = now
        self._engine = EngineProxy(engine_socket)
        self.managers_only = ManagersOnly()
        # A person types a join, a script of fifty nodes behind one address waits a little.
        self._joins = RateLimit(per_s=5.0, burst=30)
        # A whole cluster comes back at once after a long night, behind one address too.
        self._readmissions = RateLimit(per_s=20.0, burst=100)
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_json])
        app.router.add_get("/v1/ca", self._root_certificate)
        app.router.add_post("/v1/join", self._join)
        app.router.add_get("/v1/roots", self._roots)
        app.router.add_post("/v1/renew", self._renew)
        app.router.add_post("/v1/readmit", self._readmit)
        app.router.add_post("/v1/promote", self._promote)
        app.router.add_get(AGENTS, self._dispatch)
        app.router.add_get(RELAY, self._for_managers(self._relay))
        app.router.add_route("*", "/v1/engine/{path:.*}", self._for_managers(self._engine_request))
        if formation is not None:
            app.router.add_post(FORMATION_PATH, lambda request: formation(request, credentials.identity.leaf))
        if tracing is not None:
            app.router.add_get("/v1/trace", self._for_managers(tracing.watch))
            app.router.add_post("/v1/trace/send", self._for_managers(tracing.send))
        # A client that hangs up ends its request here too: a followed log would else be read for ever.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, keepalive_timeout=75.0, shutdown_timeout=2.0)
        self._listener = TlsListener(self._runner, lambda: credentials.server_context, host, port)

    @property
    def address(self) -> tuple[str, int]:
        return self._listener.address

    async def start(self) -> None:
        """ConfigError: the port is taken."""
        await self._runner.setup()
        try:
            await self._listener.start()
        except MeshdError:
            await self._runner.cleanup()
            raise

    async def stop(self) -> None:
        await self._listener.stop()
        await self._runner.cleanup()
        await self._engine.close()

    def end_old_root(self) -> None:
        """The root was replaced: what was opened with certificates of another ends, whoever has made them."""
        root = ca.load_certificate(self._credentials.identity.root_certificate)
        ended = self._listener.end_unless(lambda der: ca.signed(x509.load_der_x509_certificate(der), root))
        log.info("connections under the old root ended count=%d", ended)

    def _peer(self, request: web.Request) -> Peer | None:
        return peer_of(request.transport, self._credentials.identity.cluster_id)

    def _manager_side(self) -> ManagerSide:
        side = self._manager()
        if side is None:
            raise web.HTTPServiceUnavailable(text=_WORKER)
        return side

    def _member(self, request: web.Request, side: ManagerSide) -> tuple[Peer, Node]:
        peer = self._peer(request)
        if peer is None:
            raise web.HTTPForbidden(text=_CERTIFICATE_NEEDED)
        node = side.store.snapshot().node(peer.node_id)
        if node is None:
            log.warning("removed node refused node=%s address=%s", peer.node_id, peer.address)
            raise web.HTTPForbidden(text=f"node {peer.node_id} is not part of this cluster any more")
        return peer, node

    def _registrar(self, side: ManagerSide) -> Registrar:
        return Registrar(side.store, self._credentials, self._now)

    async def _root_certificate(self, request: web.Request) -> web.Response:
        """The one that join tokens name; on a worker, the one it trusts."""
        side = self._manager()
        root = self._registrar(side).root_certificate if side is not None else ""
        return web.Response(text=root or self._credentials.identity.root_certificate, content_type="application/x-pem-file")

    async def _roots(self, request: web.Request) -> web.Response:
        cluster = self._manager_side().store.snapshot().cluster
        if cluster is None:
            raise web.HTTPServiceUnavailable(text="this manager has not read the cluster's state yet: try again")
        return _json(admission.roots_of(cluster))

    async def _join(self, request: web.Request) -> web.Response:
        side = self._manager_side()
        address = self._within(self._joins, request)
        question = await _body(request, JoinQuestion)
        async with asyncio.timeout(JOIN_TIMEOUT_S):
            answer = await self._registrar(side).join(question, address)
            if answer.role == "manager":
                answer = msgspec.structs.replace(answer, bundle=await side.bundle(answer.node_id, _advertised(question, address)))
        log.info("node joined node=%s role=%s address=%s hostname=%r", answer.node_id, answer.role, address, question.hostname)
        return _json(answer)

    async def _renew(self, request: web.Request) -> web.Response:
        side = self._manager_side()
        peer, _ = self._member(request, side)
        question = await _body(request, RenewQuestion)
        async with asyncio.timeout(JOIN_TIMEOUT_S):
            return _json(await self._registrar(side).renew(question.csr, peer.node_id, key_of(request.transport), peer.address))

    async def _readmit(self, request: web.Request) -> web.Response:
        side = self._manager_side()
        address = self._within(self._readmissions, request)
        question = await _body(request, ReadmitQuestion)
        async with asyncio.timeout(JOIN_TIMEOUT_S):
            answer = await self._registrar(side).readmit(question, address)
        log.info("node readmitted node=%s address=%s", question.node_id, address)
        return _json(answer)

    @staticmethod
    def _within(limit: RateLimit, request: web.Request) -> str:
        """The address that asks. HTTP 429: too often."""
        address = request.remote or ""
        if not limit.allows(address, asyncio.get_running_loop().time()):
            raise web.HTTPTooManyRequests(text="too many join requests from this address: wait a second")
        return address

    async def _promote(self, request: web.Request) -> web.Response:
        """A node that was told to be a manager asks for its place among them."""
        side = self._manager_side()
        peer, node = self._member(request, side)
        question = await _body(request, PromoteQuestion)
        addr = admission.promoted(node, peer.role, question, peer.address)
        async with asyncio.timeout(PROMOTE_TIMEOUT_S):
            bundle = await side.bundle(node.id, addr)
            await side.record(node.id, addr)
        log.info("node promoted node=%s address=%s", node.id, addr)
        return _json(PromoteAnswer(bundle=bundle))

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        side = self._manager_side()
        peer, _ = self._member(request, side)
        return await side.gateway.serve(request, peer)

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        side = self._manager_side()
        peer, _ = self._member(request, side)
        return await side.gateway.serve_relay(request, peer)

    async def _engine_request(self, request: web.Request) -> web.StreamResponse:
        return await self._engine.forward(request, request.rel_url.raw_path.removeprefix("/v1/engine"))

    def _for_managers(self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Handler:
        async def checked(request: web.Request) -> web.StreamResponse:
            peer, transport = self._using_manager(request), request.transport
            assert transport is not None
            with self.managers_only.using(peer, transport.abort):
                return await handler(request)

        return checked

    def _using_manager(self, request: web.Request) -> Peer:
        """HTTP 403 unless a manager asks; 503 as long as this node can't know."""
        peer = self._peer(request)
        if peer is None:
            raise web.HTTPForbidden(text=_CERTIFICATE_NEEDED)
        side = self._manager()
        if side is not None:
            # sooner than by its own session, and without one
            self.managers_only.told(admission.trust_of(side.store.snapshot()).managers)
        refusal = self.managers_only.refusal(peer)
        if not refusal:
            return peer
        log.warning("not a manager path=%r node=%s role=%s address=%s", request.path, peer.node_id, peer.role, peer.address)
        raise web.HTTPServiceUnavailable(text=refusal) if refusal == NOT_TOLD else web.HTTPForbidden(text=refusal)


async def _body(request: web.Request, form: type[A]) -> A:
    """HTTP 413, 408 or 400 when it is too long, too slow or not the JSON asked for."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the request's body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    try:
        return msgspec.json.decode(raw, type=form)
    except msgspec.DecodeError as error:
        raise web.HTTPBadRequest(text=f"the request's body is not what this path takes: {error}") from None


def _advertised(question: JoinQuestion, address: str) -> str:
    host, port = admission.split_endpoint(question.addr) if question.addr else (address, admission.DEFAULT_PORT)
    return admission.join_endpoint(host, port)


@web.middleware
async def _errors_as_json(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Every failure becomes `{"message": sentence}`; what is not foreseen is logged, and its text stays here."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return _error(413, f"the request's body is larger than {MAX_BODY_BYTES} bytes")
    except web.HTTPException as error:
        return _error(error.status, error.text or error.reason)
    except admission.Refused as error:
        log.warning("refused path=%r address=%s reason=%s", request.path, request.remote, error)
        return _error(error.status, str(error))
    except (StoreUnavailable, TimeoutError):
        return _error(503, "the cluster's store doesn't answer just now: try again")
    except MeshdError as error:
        return _error(500, str(error))
    except ConnectionError:
        raise
    except Exception:
        log.exception("request failed path=%r address=%s", request.path, request.remote)
        return _error(500, "internal error: the manager's log has more")


def _error(status: int, message: str) -> web.Response:
    return _json({"message": message}, status)


def _json(answer: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(answer), content_type="application/json")
