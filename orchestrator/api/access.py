"""What every route of the API asks of its request: the daemon, the store of a manager, the body, query flags, and the answer.

Edge: aiohttp requests and responses. Source: moby daemon/cluster (errNoSwarm, errNotManager), httputils/form.go.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from aiohttp import web

from orchestrator.api import codec, filters
from orchestrator.api.backend import Backend
from orchestrator.api.versions import API_VERSION
from orchestrator.errors import ApiError, Conflict
from orchestrator.model import Cluster, Config, Node, Secret, Service
from orchestrator.store.base import Change, Store
from orchestrator.store.snapshot import Snapshot

BACKEND: web.AppKey[Backend] = web.AppKey("backend", Backend)
T = TypeVar("T")

NO_SWARM = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'
NOT_MANAGER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "
    "Please run this command on a manager node or promote the current node to a manager."
)
LOCKED = 'Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.'

# A conflict means that another writer got through, so a retry nearly always meets a newer picture; eight waits sum up to 1.3 s.
_RETRIES = 8
_FIRST_RETRY_S = 0.005
# Bodies that are read whole have at most 8 MiB. Those that are streamed to an Engine (build, load, cp) come as fast as they come.
BODY_TIMEOUT_S = 30.0


def backend_of(request: web.Request) -> Backend:
    return request.app[BACKEND]


def store_of(request: web.Request) -> Store:
    """The manager's store, or Docker's 503."""
    backend = backend_of(request)
    if backend.state == "manager" and backend.store is not None:
        return backend.store
    if backend.state == "worker":
        raise ApiError(503, NOT_MANAGER)
    raise ApiError(503, LOCKED if backend.state == "locked" else NO_SWARM)


def now() -> datetime:
    return datetime.now(UTC)


async def body(request: web.Request) -> bytes:
    """All of it. ApiError(408): it came too slowly; the application's bound of its size is aiohttp's to keep (413)."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise ApiError(408, f"the request's body did not arrive within {BODY_TIMEOUT_S:g} s: send it again") from None


async def body_as(request: web.Request, cls: type[T]) -> T:
    return codec.decode(await body(request), cls)


def flag(request: web.Request, name: str) -> bool:
    """A query parameter as Go's BoolValue reads it: present and not "", "0", "no", "false", "none"."""
    return request.query.get(name, "").strip().lower() not in ("", "0", "no", "false", "none")


def boolean(request: web.Request, name: str) -> bool:
    """A query parameter as Go's strconv.ParseBool reads it, or false if it is not there."""
    text = request.query.get(name, "")
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("", "0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ApiError(400, f'invalid value for {name}: {text}: strconv.ParseBool: parsing "{text}": invalid syntax')


def filters_of(request: web.Request, allowed: frozenset[str]) -> filters.Filters:
    return filters.parse(request.query.get("filters", ""), allowed)


def any_filters_of(request: web.Request) -> filters.Filters:
    """Those that the Engines are to judge."""
    return filters.parse(request.query.get("filters", ""), None)


def version_of(request: web.Request, kind: str) -> int:
    """`?version=`, which every update must carry."""
    text = request.query.get("version", "")
    if not re.fullmatch(r"[0-9]+", text):
        if kind in ("secret", "config"):
            raise ApiError(400, f"invalid {kind} version")
        raise ApiError(400, f"invalid {kind} version '{text}': strconv.ParseUint: parsing \"{text}\": invalid syntax")
    return int(text)


def api_version(request: web.Request) -> str:
    """What the client speaks; a path without a version means the newest."""
    return request.match_info.get("api_version") or API_VERSION


def in_sequence(obj: Service | Node | Secret | Config | Cluster, seen: int) -> None:
    """The writer must have read the newest spec. What the cluster itself wrote to the object since (addresses, states) is no reason
    to refuse: `docker service create && docker service update` would fail by chance."""
    newest = obj.version.index
    since = newest - 1
    if isinstance(obj, Service | Node):
        # a restored cluster counts its versions anew
        since = min(since, obj.mesh_spec_since)
    if not since < seen <= newest:
        raise ApiError(500, "rpc error: code = Unknown desc = update out of sequence")


def answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=codec.encode(value), status=status, content_type="application/json")


def answer_lines(values: Iterable[Any]) -> web.Response:
    """One JSON object a line, as streams of progress are."""
    return web.Response(body=b"".join(codec.encode(value) for value in values), content_type="application/json")


async def commit(store: Store, plan: Callable[[Snapshot], Sequence[Change]]) -> int:
    """Commit what `plan` makes of the newest picture; planned again when somebody was faster. `plan` raises ApiError to refuse."""
    for attempt in range(_RETRIES):
        try:
            snapshot = store.snapshot()
            changes = plan(snapshot)
            return await store.commit(changes) if changes else snapshot.revision
        except Conflict:
            await asyncio.sleep(_FIRST_RETRY_S * 2**attempt)
    raise ApiError(500, "rpc error: code = Unknown desc = update out of sequence")
