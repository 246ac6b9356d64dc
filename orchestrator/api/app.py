"""The Docker API as one aiohttp application: routes with and without version, errors as JSON, the headers of every answer.

Edge: serves on unix sockets and TCP. Source: Docker Engine API 1.44; moby api/server.
"""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import platform
import socket
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from orchestrator.api import (
    access,
    audit,
    backups,
    container_creation,
    containers,
    diagnosis,
    engines,
    events,
    execs,
    images,
    logs,
    network_keys,
    networks,
    node_scope,
    node_sockets,
    nodes,
    proxy,
    secrets,
    services,
    stacks,
    swarm,
    system,
    tasks,
    totals,
    volumes,
)
from orchestrator.api.backend import Backend
from orchestrator.api.connection import Connection, LimitedRunner, Limits
from orchestrator.api.endpoints import Endpoint, TcpEndpoint, TlsFiles, UnixEndpoint
from orchestrator.api.versions import API_VERSION, MIN_API_VERSION, before
from orchestrator.audit_log import AuditLog
from orchestrator.errors import ApiError, ConfigError, Conflict, MeshdError, StoreUnavailable
from orchestrator.security.api_certificates import ServerContext
from orchestrator.security.listener import TlsListener
from orchestrator.version import VERSION

log = logging.getLogger(__name__)

_NO_LEADER = (
    "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online. "
    "Make sure more than half of the managers are online."
)
# A config of 1000 KiB is base64 in JSON; what goes to the Engine is streamed and has no bound.
_MAX_BODY_BYTES = 8 * 1024 * 1024
# what is answered from the store, not by this node's Engine
_CLUSTER_PATHS = frozenset({"swarm", "nodes", "services", "tasks", "secrets", "configs", "networks", "info"})
_REVISION: web.RequestKey[int] = web.RequestKey("revision", int)
_SERVER = f"meshd/{VERSION} ({platform.system().lower()})"


def make_app(backend: Backend, audit_log: AuditLog | None = None) -> web.Application:
    """Everything a client of dockerd asks, answered for `backend`."""
    app = web.Application(
        middlewares=[counted, audit.audited, errors_as_json, negotiated_version, as_fresh_as_asked, node_scope.scoped],
        client_max_size=_MAX_BODY_BYTES,
    )
    app[access.BACKEND] = backend
    if audit_log is not None:
        app[audit.AUDIT] = audit_log
    app[proxy.PROXY] = proxy.EngineProxy(backend.engine_socket)
    app[engines.ENGINES] = engines.Engines(backend, app[proxy.PROXY])
    app[containers.OWNERS] = containers.Owners()
    app[container_creation.UNDERWAY] = container_creation.Underway()
    app.on_cleanup.append(_close_proxy)
    events.prepare(app)
    app.cleanup_ctx.append(node_sockets.while_served)
    app.on_response_prepare.append(announce)
    routes = [
        *system.ROUTES, *swarm.ROUTES, *nodes.ROUTES, *services.ROUTES, *tasks.ROUTES, *logs.ROUTES, *networks.ROUTES,
        *network_keys.ROUTES,
        *container_creation.ROUTES, *execs.ROUTES, *containers.ROUTES, *images.ROUTES, *volumes.ROUTES, *totals.ROUTES,
        *secrets.ROUTES, *events.ROUTES, *backups.ROUTES, *diagnosis.ROUTES, *node_scope.ROUTES, *stacks.ROUTES, *proxy.ROUTES,
    ]  # fmt: skip
    for route in routes:
        # The versioned form first: the last route takes every path.
        for path in (f"/v{{api_version:[0-9]+\\.[0-9]+}}{route.path}", route.path):
            if route.method == "GET":
                app.router.add_get(path, route.handler)
            else:
                app.router.add_route(route.method, path, route.handler)
    return app


async def serve_unix(backend: Backend, path: str) -> web.AppRunner:
    """Only there: `serve`."""
    return await serve(backend, [UnixEndpoint(path)])


async def serve(
    backend: Backend,
    endpoints: Sequence[Endpoint],
    *,
    group: str = "",
    tls: TlsFiles | None = None,
    limits: Limits = Limits(),
    audit_log: AuditLog | None = None,
) -> web.AppRunner:
    """Listen on all endpoints until the runner's `cleanup()`. group: of the unix sockets, if it exists; tls: for the TCP endpoints with it.

    ConfigError: one that can't be listened on; nothing is served then. A socket file left by a killed process is replaced.
    """
    # A client that goes away ends its request: streams of logs and events would otherwise live until their next write.
    runner = LimitedRunner(make_app(backend, audit_log), limits, handler_cancellation=True, access_log=None, shutdown_timeout=2)
    await runner.setup()
    try:
        for endpoint in endpoints:
            match endpoint:
                case UnixEndpoint(path):
                    await _listen_unix(runner, path, group)
                case TcpEndpoint(host, port, tls=True):
                    assert tls is not None, "an endpoint with TLS comes with its certificates"
                    listener = TlsListener(runner, ServerContext(tls.ca, tls.certificate, tls.key), host, port, half_closing=True)
                    await listener.start()
                    runner.listeners.append(listener)
                case TcpEndpoint(host, port):
                    log.warning("api=%s anybody who can reach it is root on every node of the cluster", endpoint)
                    await _listen(web.TCPSite(runner, host, port), endpoint)
    except BaseException:
        await runner.cleanup()
        raise
    for endpoint in endpoints:
        if isinstance(endpoint, UnixEndpoint):
            runner.app[node_sockets.NODE_SOCKETS].start(Path(endpoint.path), lambda path: _listen_unix(runner, path, group))
            break
    return runner


async def _listen_unix(runner: web.AppRunner, path: str, group: str) -> web.BaseSite:
    _refuse_served(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # The window between bind and chmod must not be open to others.
    mask = os.umask(0o177)
    site = web.UnixSite(runner, path)
    try:
        await _listen(site, UnixEndpoint(path))
    finally:
        os.umask(mask)
    with contextlib.suppress(KeyError):
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    Path(path).chmod(0o660)
    return site


async def _listen(site: web.BaseSite, endpoint: Endpoint) -> None:
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(f"cannot listen on {endpoint}: {error.strerror or error}") from None


@web.middleware
async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the connection must know of its requests. The outermost: it sees every request, and its whole life."""
    connection = request.protocol
    if not isinstance(connection, Connection):
        return await handler(request)
    try:
        connection.begins()
    except ApiError as error:
        return _error(error.status, error.message)
    try:
        return await handler(request)
    finally:
        connection.ends()


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return _error(error.status, error.message)
    except StoreUnavailable as error:
        log.warning("store unavailable path=%s error=%s", request.path, error)
        return _error(503, _NO_LEADER)
    except Conflict:
        return _error(500, "rpc error: code = Unknown desc = update out of sequence")
    except ConfigError as error:
        return _error(400, str(error))
    except web.HTTPNotFound:
        return _error(404, "page not found")
    except web.HTTPRequestEntityTooLarge:
        return _error(413, f"the request's body is larger than {_MAX_BODY_BYTES} bytes: send less at once")
    except web.HTTPException as error:
        return _error(error.status, error.reason or "")
    except ConnectionError:
        # The client is gone: nobody to answer.
        raise
    except MeshdError as error:
        log.warning("request failed method=%s path=%s error=%s", request.method, request.path, error)
        return _error(500, str(error))
    except Exception as error:
        log.exception("bug in the API method=%s path=%s", request.method, request.path)
        return _error(500, f"{type(error).__name__}: {error}")


@web.middleware
async def negotiated_version(request: web.Request, handler: Handler) -> web.StreamResponse:
    asked = request.match_info.get("api_version")
    if asked is not None:
        if before(API_VERSION, asked):
            raise ApiError(400, f"client version {asked} is too new. Maximum supported API version is {API_VERSION}")
        if before(asked, MIN_API_VERSION):
            raise ApiError(
                400,
                f"client version {asked} is too old. Minimum supported API version is {MIN_API_VERSION}, "
                "please upgrade your client to a newer version",
            )
    return await handler(request)


@web.middleware
async def as_fresh_as_asked(request: web.Request, handler: Handler) -> web.StreamResponse:
    """`Cache-Control: no-cache` as HTTP means it (RFC 9111, 5.2.1.4): the copy of the cluster is confirmed before it is shown."""
    store = request.app[access.BACKEND].store
    if store is not None and node_scope.root_of(request.path) in _CLUSTER_PATHS:
        version = request.query.get("version", "")
        # a version from another manager, which this one has not heard of yet: it would be refused as out of sequence, and is not
        unheard = version.isdecimal() and len(version) < 20 and int(version) > store.snapshot().revision
        if unheard or "no-cache" in request.headers.get("Cache-Control", ""):
            await store.sync()
        # what the handler shows is this or newer
        request[_REVISION] = store.snapshot().revision
    return await handler(request)


async def announce(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every answer: clients choose their version and refuse commands by them."""
    response.headers["Api-Version"] = API_VERSION
    response.headers["Docker-Experimental"] = "false"
    response.headers["Ostype"] = "linux"
    response.headers["Server"] = _SERVER
    if isinstance(request.protocol, Connection):
        request.protocol.streaming = not isinstance(response, web.Response)
    if _REVISION in request and (store := request.app[access.BACKEND].store) is not None:
        response.headers["X-Meshd-Revision"] = str(request[_REVISION])
        if not store.available:
            response.headers["X-Meshd-Stale"] = "true"


def _error(status: int, message: str) -> web.Response:
    return access.answer({"message": message}, status=status)


async def _close_proxy(app: web.Application) -> None:
    await app[proxy.PROXY].close()


def _refuse_served(path: str) -> None:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(probe):
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            # aiohttp's site replaces the file.
            return
        except OSError as error:
            raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from None
    raise ConfigError(f"another process serves {path}: stop it first")
