"""Backup and restore of the whole cluster: `/mesh/v1/backup`, `/mesh/v1/restore`.

Edge: routes over the store and the daemon.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from orchestrator.api import access
from orchestrator.errors import ApiError
from orchestrator.managers import backup
from orchestrator.security import keyring
from orchestrator.version import VERSION

# unpacked it is some twenty times as much
_MAX_BACKUP_BYTES = 512 * 1024 * 1024


async def make_backup(request: web.Request) -> web.Response:
    """The file. It holds the cluster's keys: only who may use this socket gets it."""
    snapshot = access.store_of(request).snapshot()
    packed = await asyncio.to_thread(backup.dump, snapshot, access.now(), VERSION)
    return web.Response(body=packed, content_type="application/gzip")


async def restore_backup(request: web.Request) -> web.Response:
    daemon = access.backend_of(request)
    if daemon.state != "inactive":
        raise ApiError(503, "this node is part of a cluster: a backup is restored at a node that is in none (docker swarm leave --force)")
    packed = bytearray()
    async for piece in request.content.iter_chunked(1 << 20):
        packed += piece
        if len(packed) > _MAX_BACKUP_BYTES:
            raise ApiError(413, f"a backup has at most {_MAX_BACKUP_BYTES} bytes")
    # in a header, not in the query, which may be logged on its way
    key = request.headers.get("X-Unlock-Key", "")
    loaded = await asyncio.to_thread(backup.load, bytes(packed), keyring.parsed(key) if key else b"")
    node_id = await asyncio.shield(daemon.restore(loaded, request.query.get("advertise-addr", "")))
    return access.answer({"NodeID": node_id, "ClusterID": loaded.header.cluster, "Objects": loaded.header.objects})


ROUTES = [
    web.get("/mesh/v1/backup", make_backup),
    web.post("/mesh/v1/restore", restore_backup),
]
