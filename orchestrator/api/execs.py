"""Exec instances: made in a container, asked for by an id that does not say on which node.

Edge: routes over the Engines. Source: Docker Engine API 1.44 /containers/{id}/exec, /exec/{id}. The node is remembered when the instance is
made; an id from before a restart, or from another manager, is looked for on all nodes.
"""

from __future__ import annotations

from urllib.parse import quote

from aiohttp import web

from orchestrator.api import access
from orchestrator.api.broadcast import of_all_nodes
from orchestrator.api.containers import OWNERS, owner_of
from orchestrator.api.engines import CHANGE, Member, asked_path, engines_of
from orchestrator.api.proxy import PROXY, forward
from orchestrator.errors import ApiError
from orchestrator.relay import whole


async def create_exec(request: web.Request) -> web.StreamResponse:
    engines = engines_of(request)
    raw = await access.body(request)
    if engines.snapshot() is None:
        return await request.app[PROXY].forward(request, raw)
    reference = request.match_info["id"]
    found = await owner_of(request, reference)
    path = asked_path(request, f"/containers/{quote(found.id if '/' in reference else reference, safe='')}/exec")
    answer = await engines.engine(found.member).ask("POST", path, body=raw, timeout_s=CHANGE.most_s)
    made = answer.json()
    if answer.ok and isinstance(made, dict) and isinstance(made.get("Id"), str):
        request.app[OWNERS].learn(made["Id"], found.member.node_id)
    return whole(answer)


@of_all_nodes
async def to_exec(request: web.Request) -> web.StreamResponse:
    return await forward(request, engines_of(request).engine(await _owner(request, request.match_info["id"])))


ROUTES = [
    web.post("/containers/{id:.+}/exec", create_exec),
    web.route("*", "/exec/{id}/{action}", to_exec),
]


async def _owner(request: web.Request, id: str) -> Member:
    engines = engines_of(request)
    node_id = request.app[OWNERS].node_of(id)
    members = engines.members()
    for member in members:
        if member.node_id == node_id:
            return member
    replies = await engines.ask_all("GET", asked_path(request, f"/exec/{quote(id, safe='')}/json"), members=members)
    for member, _ in replies.values():
        request.app[OWNERS].learn(id, member.node_id)
        return member
    missing = replies.missing()
    raise ApiError(404, f"No such exec instance: {id}" + (f" ({missing})" if missing else ""))
