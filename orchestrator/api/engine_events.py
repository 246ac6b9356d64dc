"""What the Engines of all nodes tell of, as lines of one stream, each with its node.

Edge: one connection a node, made again when it breaks and when a node joins; nothing is told twice. Source: Docker Engine API 1.44 /events;
classicswarm cluster/engine.go and event.go for the attributes node.name, node.id and node.ip.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp import web

from orchestrator.api import broadcast, codec, progress
from orchestrator.api.engines import Member, asked_path, engines_of
from orchestrator.api.filters import Filters
from orchestrator.errors import ApiError

log = logging.getLogger(__name__)

_RETRY_S = 1.0
# what no Engine outside swarm mode tells of: a thousand watchers of services are no connection to any Engine
_THE_CLUSTERS = frozenset({"service", "node", "secret", "config"})


async def engine_lines(request: web.Request, lines: asyncio.Queue[bytes | None], wanted: Filters, until: datetime | None) -> None:
    """Until cancelled, or, with `until`, until the Engines have told it all; None in `lines` then says so. `wanted`: node=... chooses whose
    events these are; everything else the Engines filter themselves."""
    if wanted.get("type") and _THE_CLUSTERS.issuperset(wanted.get("type")):
        await lines.put(None)
        return
    following: dict[str, asyncio.Task[None]] = {}
    query = {key: value for key, value in request.query.items() if key in ("since", "until")}
    kept = {key: list(values) for key, values in wanted.values.items() if key != broadcast.NODE_FILTER}
    if kept:
        query["filters"] = codec.encode(kept).decode().strip()
    try:
        while True:
            for member in _members(request, wanted):
                if not member.away and member.node_id not in following:
                    follow = _follow(request, member, dict(query), lines, ends=until is not None)
                    following[member.node_id] = asyncio.create_task(follow)
            if until is not None:
                # they end by themselves; who joins now has nothing to tell of before
                await asyncio.gather(*following.values())
                break
            await asyncio.sleep(_RETRY_S)
            following = {id: task for id, task in following.items() if not task.done()}
    finally:
        for task in following.values():
            task.cancel()
        await asyncio.gather(*following.values(), return_exceptions=True)
    await lines.put(None)


def _members(request: web.Request, wanted: Filters) -> list[Member]:
    """Those of nodes that exist: `docker events --filter node=x` is no error if there is no x."""
    named = wanted.get(broadcast.NODE_FILTER)
    members = engines_of(request).members()
    return [member for member in members if not named or member.name in named or member.node_id in named]


async def _follow(request: web.Request, member: Member, query: dict[str, str], lines: asyncio.Queue[bytes | None], *, ends: bool) -> None:
    while True:
        try:
            engine = engines_of(request).engine(member)
            path = asked_path(request, "/events") + (f"?{urlencode(query)}" if query else "")
            async with engine.request("GET", await engine.path(path)) as response:
                if response.status != 200:
                    return
                async for event in progress.lines(response.content, None):
                    await lines.put(codec.encode(told_by(member, event)))
                    if moment := event.get("timeNano"):
                        # a connection that is made again goes on here
                        query["since"] = f"{moment // 10**9}.{moment % 10**9 + 1:09d}"
        except (aiohttp.ClientError, OSError, ApiError) as error:
            log.info("events without node=%s error=%s", member.name, error)
        if ends:
            return
        await asyncio.sleep(_RETRY_S)


def told_by(member: Member, event: dict[str, Any]) -> dict[str, Any]:
    """Pure."""
    actor = event.get("Actor") or {}
    named = {"node.name": member.name, "node.id": member.node_id, "node.ip": member.addr}
    attributes = {**(actor.get("Attributes") or {}), **{key: value for key, value in named.items() if value}}
    return {**event, "Actor": {**actor, "Attributes": attributes}}
