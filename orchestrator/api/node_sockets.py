"""A unix socket for each node's Engine, beside the API's own: `docker -H unix:///run/meshd/meshd.nodes/node-2.sock ps`.

Edge: listens, watches the cluster's nodes. Only at managers. What arrives there is that Engine's, /info and /version included
(`node_scope`); this node's own among them, for a tool that wants one machine and no cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

from aiohttp import web

from orchestrator.api.engines import ENGINES, Engines, Member
from orchestrator.errors import MeshdError

log = logging.getLogger(__name__)

# nodes come and go at a person's pace
_POLL_S = 1.0
_MAX_PATH_BYTES = 107
Listen = Callable[[str], Awaitable[web.BaseSite]]


class NodeSockets:
    """Nothing is listened to before `start`."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._sites: dict[str, web.BaseSite] = {}
        self._node_ids: dict[str, str] = {}
        self._refused: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def node_of(self, request: web.Request) -> str | None:
        """Whose socket the request came by: a node's id."""
        name = request.transport.get_extra_info("sockname") if request.transport is not None else None
        return self._node_ids.get(name) if isinstance(name, str) else None

    def start(self, socket: Path, listen: Listen) -> None:
        """socket: the API's own; listen: opens one more with its permissions. Files that a killed process left are removed."""
        directory = socket.with_suffix(".nodes")
        if directory.is_dir():
            for left in directory.glob("*.sock"):
                left.unlink(missing_ok=True)
        self._task = asyncio.create_task(self._keep(directory, listen), name="node-sockets")

    async def stop(self) -> None:
        """The sites are the runner's to end; their files go."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for path in self._sites:
            Path(path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                Path(path).parent.rmdir()

    async def _keep(self, directory: Path, listen: Listen) -> None:
        while True:
            members = self._engines.members() if self._engines.snapshot() is not None else []
            paths = wanted(directory, members)
            for path in self._sites.keys() - paths.keys():
                await self._sites.pop(path).stop()
                Path(path).unlink(missing_ok=True)
            for path in sorted(paths.keys() - self._sites.keys() - self._refused):
                try:
                    self._sites[path] = await listen(path)
                except (MeshdError, OSError) as error:
                    self._refused.add(path)
                    log.warning("no socket of its own for a node path=%s error=%s", path, error)
            self._node_ids = paths
            await asyncio.sleep(_POLL_S)


NODE_SOCKETS: web.AppKey[NodeSockets] = web.AppKey("node-sockets", NodeSockets)


async def while_served(app: web.Application) -> AsyncIterator[None]:
    """A context of the application."""
    app[NODE_SOCKETS] = NodeSockets(app[ENGINES])
    yield
    await app[NODE_SOCKETS].stop()


def wanted(directory: Path, members: Iterable[Member]) -> dict[str, str]:
    """Pure: path -> node id. A name that two nodes have, or that makes no file name, gives way to the id; a path that is too long for a
    socket is left out."""
    named = list(members)
    counts = [member.name for member in named]
    paths = {}
    for member in named:
        plain = member.name not in ("", ".", "..") and "/" not in member.name and counts.count(member.name) == 1
        path = str(directory / f"{member.name if plain else member.node_id}.sock")
        if len(path.encode()) <= _MAX_PATH_BYTES:
            paths[path] = member.node_id
    return paths
