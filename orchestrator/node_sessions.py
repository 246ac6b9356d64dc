"""A manager's connections to the other nodes' own APIs, one pool a node, as long as the node is in the cluster.

Edge. Each pool verifies that it is that very node which answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import weakref

import aiohttp
from aiohttp.connector import AddrInfoType

from orchestrator.errors import ApiError, StoreError
from orchestrator.keepalive import kept_alive
from orchestrator.security.identity import Credentials
from orchestrator.store.base import Store
from orchestrator.store.snapshot import Snapshot

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5
_NOTICE_S = 0.5
# a handshake costs more than the request that follows; the node itself parts from an idle connection after 75 s
_KEEPALIVE_S = 60.0


class _Pool:
    """Connections to one node."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        connector = aiohttp.TCPConnector(ssl=context, limit=0, socket_factory=self._socket, keepalive_timeout=_KEEPALIVE_S)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        self.session = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)

    def _socket(self, address: AddrInfoType) -> socket.socket:
        made = kept_alive(address)
        self._sockets.add(made)
        return made

    async def cut(self) -> None:
        """Whoever reads from them is told so. Closing the session alone, as of aiohttp 3.14, would leave readers waiting."""
        for open_socket in [*self._sockets]:
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        await asyncio.sleep(_NOTICE_S)
        await self.session.close()


class NodeSessions:
    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._pools: dict[str, _Pool] = {}
        self._cutting: set[asyncio.Task[None]] = set()

    def to(self, snapshot: Snapshot, node_id: str) -> tuple[aiohttp.ClientSession, str]:
        """HTTP to a node's own API; it stays ours. ApiError(500) for a node that has no address."""
        node = snapshot.node(node_id)
        if node is None or not node.description.mesh_api_addr:
            raise ApiError(500, f"node {node_id} is not known to this cluster any more")
        context = self._credentials.client_context(node_id)
        if node_id in self._pools and self._pools[node_id].context is not context:
            # The root was replaced, and with it goes what was opened under the old one.
            self._part(node_id)
        if node_id not in self._pools:
            self._pools[node_id] = _Pool(context)
        return self._pools[node_id].session, f"https://{node.description.mesh_api_addr}/v1"

    async def follow(self, store: Store) -> None:
        """What is relayed from a node (logs, events, a terminal) ends when the node is removed. Returns when the store can't be watched."""
        with contextlib.suppress(StoreError):
            watch = store.watch()
            self._part_from_removed(store.snapshot())
            async for snapshot, _ in watch:
                self._part_from_removed(snapshot)

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.session.close()
        self._pools.clear()
        await asyncio.gather(*self._cutting, return_exceptions=True)

    def _part_from_removed(self, snapshot: Snapshot) -> None:
        for node_id in [node_id for node_id in self._pools if snapshot.node(node_id) is None]:
            log.info("connections to a removed node end node=%s", node_id)
            self._part(node_id)

    def _part(self, node_id: str) -> None:
        task = asyncio.create_task(self._pools.pop(node_id).cut())
        self._cutting.add(task)
        task.add_done_callback(self._cutting.discard)
