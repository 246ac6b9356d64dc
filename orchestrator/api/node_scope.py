"""One node's Engine and nothing else: `?node=NAME` on any request that Engines answer, and everything below `/mesh/v1/nodes/NAME/engine`
(`docker -H tcp://manager:2376/mesh/v1/nodes/NAME/engine ps`) or sent to that node's socket (`node_sockets`).

Edge: a middleware and a route. What is scoped reaches that Engine as it was sent, and comes back as it was answered.
"""

from __future__ import annotations

import re

from aiohttp import web
from aiohttp.typedefs import Handler

from orchestrator.api import access, older_engines
from orchestrator.api.engines import Member, engines_of
from orchestrator.api.node_sockets import NODE_SOCKETS
from orchestrator.api.proxy import forward, path_of
from orchestrator.relay import whole

PREFIX = "/mesh/v1/nodes/{node}/engine"
_CREATION = re.compile(r"(/v[0-9.]+)?/containers/create")
# what the cluster answers itself, whatever the query says
_CLUSTERS = frozenset({"swarm", "services", "tasks", "nodes", "secrets", "configs", "mesh"})


@web.middleware
async def scoped(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Exactly one `node`: several are for those routes that send to chosen nodes."""
    engines = engines_of(request)
    if (node_id := request.app[NODE_SOCKETS].node_of(request)) is not None:
        return await _to_one(request, engines.find(node_id), path_of(request))
    named = request.query.getall("node", [])
    if len(named) != 1 or not named[0] or root_of(request.rel_url.raw_path) in _CLUSTERS:
        return await handler(request)
    return await _to_one(request, engines.find(named[0]), without_node(path_of(request)))


async def below_prefix(request: web.Request) -> web.StreamResponse:
    engines = engines_of(request)
    member = engines.find(request.match_info["node"])
    _, _, rest = path_of(request).partition("/engine/")
    return await _to_one(request, member, f"/{rest}")


async def _to_one(request: web.Request, member: Member, path: str) -> web.StreamResponse:
    engine = engines_of(request).engine(member)
    if request.method == "POST" and _CREATION.fullmatch(path.partition("?")[0]):
        # the client takes the version that we announce for the Engine's
        return whole(await older_engines.create(engine, path, await access.body(request)))
    return await forward(request, engine, path=path)


ROUTES = [web.route("*", PREFIX + "/{path:.*}", below_prefix)]


def root_of(path: str) -> str:
    """The first part of a path after its version."""
    parts = path.split("/")[1:]
    return parts[1] if len(parts) > 1 and parts[0][:1] == "v" and parts[0][1:2].isdigit() else parts[0]


def without_node(path: str) -> str:
    """The path, percent-encoded, without its parameter `node`."""
    head, _, query = path.partition("?")
    kept = [part for part in query.split("&") if part and part.partition("=")[0] != "node"]
    return f"{head}?{'&'.join(kept)}" if kept else head
