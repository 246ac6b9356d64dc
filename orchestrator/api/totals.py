"""`docker info` and `docker system df` of all nodes: what they have together.

Edge: routes' parts over the Engines; `summed` is pure. Counts, CPUs and memory are sums; everything else stays this node's own, as the
nodes needn't agree on it. Source: classicswarm api/handlers.go (getInfo), cluster/swarm/cluster.go (Info: its rows of the nodes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from orchestrator.api import access, broadcast
from orchestrator.api.broadcast import NODE_LABEL, of_all_nodes
from orchestrator.api.engines import CHANGE, LIST, Member, Replies, asked_path, engines_of
from orchestrator.api.proxy import PROXY, forward
from orchestrator.api.queries import same, same_path
from orchestrator.errors import ApiError

Json = dict[str, Any]
_SUMMED = ("Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped", "Images", "NCPU", "MemTotal")
_GIB = 1 << 30


async def info_of_all(request: web.Request) -> tuple[Json, Replies]:
    """This node's answer with the sums in it. ApiError: its own Engine can't be asked."""
    replies = await engines_of(request).ask_all("GET", asked_path(request, "/info"), patience=LIST)
    infos = [(member, shown) for member, shown in replies.values() if isinstance(shown, dict)]
    own = next((shown for member, shown in infos if member.local), None)
    if own is None:
        raise ApiError(
            503, next((reason for member, reason in replies.away if member.local), "the Docker Engine of this node gave no answer")
        )
    return summed(own, infos, replies.away), replies


def summed(own: Json, infos: Sequence[tuple[Member, Json]], away: Sequence[tuple[Member, str]]) -> Json:
    totals = {key: sum(int(shown.get(key) or 0) for _, shown in infos) for key in _SUMMED}
    rows = [["Nodes", str(len(infos) + len(away))]]
    for member, shown in infos:
        rows += _rows(member, "Healthy", shown)
    for member, reason in away:
        rows += _rows(member, f"Disconnected ({reason})", {})
    # where the CLI prints pairs; classic Swarm had its nodes there, too
    return {**own, **totals, "DriverStatus": [*(own.get("DriverStatus") or ()), *rows]}


def _rows(member: Member, status: str, shown: Json) -> list[list[str]]:
    rows = [[f" {member.name}", member.addr], ["  Status", status]]
    if shown:
        running, paused, stopped = (shown.get(f"Containers{state}", 0) for state in ("Running", "Paused", "Stopped"))
        rows += [
            ["  Containers", f"{shown.get('Containers', 0)} ({running} Running, {paused} Paused, {stopped} Stopped)"],
            ["  CPUs", str(shown.get("NCPU", 0))],
            ["  Memory", f"{(shown.get('MemTotal') or 0) / _GIB:.1f} GiB"],
            ["  Server Version", str(shown.get("ServerVersion", ""))],
        ]
    return rows


@of_all_nodes
async def disk_usage(request: web.Request) -> web.StreamResponse:
    replies = await broadcast.ask(request, "GET", same(request), patience=CHANGE)
    broadcast.outcome(replies, "asked")
    response = access.answer(used([(member.name, shown) for member, shown in replies.values()]))
    replies.warn(response, "what they use is not shown")
    return response


def used(answers: Sequence[tuple[str, Json]]) -> Json:
    """Pure. What several nodes have takes room on each: nothing is merged."""
    total: Json = {}
    for node, shown in answers:
        for key, value in shown.items():
            if isinstance(value, list):
                total[key] = [*(total.get(key) or ()), *(_labelled(entry, node) for entry in value)]
            elif isinstance(value, int):
                total[key] = (total.get(key) or 0) + value
            else:
                total.setdefault(key, value)
    return total


def _labelled(entry: Json, node: str) -> Json:
    return {**entry, "Labels": {**(entry.get("Labels") or {}), NODE_LABEL: node}} if "Labels" in entry else entry


@of_all_nodes
async def prune_build_cache(request: web.Request) -> web.StreamResponse:
    return await broadcast.prune(request, "/build/prune", "CachesDeleted", "their caches")


async def to_builder(request: web.Request) -> web.StreamResponse:
    """A build and the session that feeds it, at one node: the chosen one, else this. Both requests of a client must meet there."""
    members = broadcast.members_of(request)
    engines = engines_of(request)
    if not broadcast.is_whole(request) or len(members) == len(engines.members()):
        return await request.app[PROXY].forward(request)
    if len(members) != 1:
        raise ApiError(400, f"a build runs on one node, not on {len(members)}: choose one")
    return await forward(request, engines.engine(members[0]), path=same_path(request))


ROUTES = [
    web.get("/system/df", disk_usage),
    web.post("/build/prune", prune_build_cache),
    web.post("/build", to_builder),
    web.post("/build/cancel", to_builder),
    web.post("/session", to_builder),
    web.post("/grpc", to_builder),
]
