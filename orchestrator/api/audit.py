"""The audit log's view of a request: whether it changes something, and what.

Pure but for `audited`, the middleware that writes. What a request names is looked up in the store before and after it, so
routes need not know of this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from orchestrator.api import access, references
from orchestrator.api.client import Client
from orchestrator.api.connection import Connection
from orchestrator.audit_log import AuditLog, Record
from orchestrator.errors import ApiError
from orchestrator.model import Cluster, Config, Network, Node, Secret, Service
from orchestrator.store.snapshot import Snapshot

AUDIT: web.AppKey[AuditLog] = web.AppKey("audit", AuditLog)

_KINDS = {
    "services": "service", "nodes": "node", "networks": "network", "secrets": "secret", "configs": "config", "tasks": "task",
    "containers": "container", "images": "image", "volumes": "volume", "plugins": "plugin",
}  # fmt: skip
_STORED: dict[str, type[Service] | type[Node] | type[Network] | type[Secret] | type[Config]] = {
    "service": Service, "node": Node, "network": Network, "secret": Secret, "config": Config,
}  # fmt: skip
# POST requests that change nothing
_READING = re.compile(r"/(containers/[^/]+/(wait|resize)|exec/[^/]+/resize|auth|session|grpc|mesh/v1/(trace|stacks/[^/]+/plan))")
# GET requests whose answer is the keys of the cluster
_REVEALING = re.compile(r"/(mesh/v1/backup|swarm/unlockkey)")
_COLLECTION_ACTIONS = frozenset({"create", "prune", "load", "pull"})
_MAX_PATH = 256


@dataclass(frozen=True, slots=True)
class Target:
    """reference: what the client calls the object, "" for one that is to be."""

    action: str
    kind: str
    reference: str = ""


class _Made(msgspec.Struct):
    ID: str = ""
    Id: str = ""
    Name: str = ""


def target(method: str, path: str) -> Target | None:
    """path: without version and query. None: it changes nothing and reveals no key."""
    if method in ("GET", "HEAD", "OPTIONS"):
        return Target("read", path.rpartition("/")[2]) if method == "GET" and _REVEALING.fullmatch(path) else None
    if method == "POST" and _READING.fullmatch(path):
        return None
    root, *rest = path.strip("/").split("/")
    if root == "mesh":
        return _own(method, rest[1:])
    if root == "swarm":
        return Target("/".join(rest), "cluster")
    kind = _KINDS.get(root, root)
    if method == "DELETE":
        return Target("remove", kind, "/".join(rest))
    if not rest:
        return Target(method.lower(), kind)
    if len(rest) == 1:
        return Target(rest[0], kind) if rest[0] in _COLLECTION_ACTIONS else Target(method.lower(), kind, rest[0])
    # names of images have slashes in them
    return Target(rest[-1], kind, "/".join(rest[:-1]))


def _own(method: str, parts: list[str]) -> Target:
    """Below /mesh/v1."""
    match parts:
        case ["stacks", name]:
            return Target("remove" if method == "DELETE" else "deploy", "stack", name)
        case ["stacks", name, action]:
            return Target(action, "stack", name)
        case _:
            return Target("/".join(parts), "cluster")


@web.middleware
async def audited(request: web.Request, handler: Handler) -> web.StreamResponse:
    version = request.match_info.get("api_version")
    changed = target(request.method, request.path.removeprefix(f"/v{version}") if version else request.path)
    if changed is None or AUDIT not in request.app:
        return await handler(request)
    before = _snapshot(request)
    status, made = 0, ""
    if request.headers.get("Upgrade"):
        # Such a connection may last for days; that it was opened is what counts.
        _write(request, changed, before, HTTPStatus.SWITCHING_PROTOCOLS, "")
        return await handler(request)
    try:
        response = await handler(request)
        status = response.status
        made = "" if changed.reference else _made(response)
        return response
    finally:
        _write(request, changed, before, status, made)


def _write(request: web.Request, changed: Target, before: Snapshot | None, status: int, made: str) -> None:
    client = request.protocol.client if isinstance(request.protocol, Connection) else Client("unix")
    old = _known(before, changed.kind, changed.reference)
    after = _snapshot(request)
    new = _known(after, changed.kind, old.id if old else made or changed.reference)
    found = new or old
    query = request.query
    image = ":".join(filter(None, (query.get("fromImage", ""), query.get("tag", ""))))
    request.app[AUDIT].write(
        Record(
            time=access.now(),
            transport=client.transport,
            who=client.name,
            detail=client.detail,
            address=client.address,
            method=request.method,
            path=request.rel_url.raw_path[:_MAX_PATH],
            action=changed.action,
            kind=changed.kind,
            id=found.id if found else made,
            name=references.name_of(found) if found else changed.reference or query.get("name", "") or image,
            from_version=old.version.index if old else 0,
            to_version=new.version.index if new else 0,
            status=status,
        )
    )


def _snapshot(request: web.Request) -> Snapshot | None:
    store = access.backend_of(request).store
    return store.snapshot() if store is not None else None


def _known(snapshot: Snapshot | None, kind: str, reference: str) -> Service | Node | Network | Secret | Config | Cluster | None:
    if snapshot is None:
        return None
    if kind == "cluster":
        return snapshot.cluster
    cls = _STORED.get(kind)
    if cls is None or not reference:
        return None
    try:
        return references.find(snapshot, cls, reference)  # type: ignore[type-var]
    except ApiError:
        return None


def _made(response: web.StreamResponse) -> str:
    """The id, or name, of what was created."""
    if not isinstance(response, web.Response) or not isinstance(response.body, bytes) or response.status >= HTTPStatus.BAD_REQUEST:
        return ""
    try:
        made = msgspec.json.decode(response.body, type=_Made)
    except msgspec.MsgspecError:
        return ""
    return made.ID or made.Id or made.Name
