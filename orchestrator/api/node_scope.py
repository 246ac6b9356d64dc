"""One node's Engine and nothing else: `?node=NAME` on any request that Engines answer, and everything below `/mesh/v1/nodes/NAME/engine`
(`docker -H tcp://manager:2376/mesh/v1/nodes/NAME/engine ps`) or sent to that node's socket (`node_sockets`).

Edge: a middleware and a route. What is scoped reaches that Engine as it was sent, and comes back as it was answered.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from orchestrator.api.engines import engines_of
from orchestrator.api.node_sockets import NODE_SOCKETS
from orchestrator.api.proxy import forward, path_of

PREFIX = "/mesh/v1/nodes/{node}/engine"
# what the cluster answers itself, whatever the query says
_CLUSTERS = frozenset({"swarm", "services", "tasks", "nodes", "secrets", "configs", "mesh"})


@web.middleware
async def scoped(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Exactly one `node`: several are for those routes that send to chosen nodes."""
    engines = engines_of(request)
    if (node_id := request.app[NODE_SOCKETS].node_of(request)) is not None:
        return await forward(request, engines.engine(engines.find(node_id)))
    named = request.query.getall("node", [])
    if len(named) != 1 or not named[0] or root_of(request.rel_url.raw_path) in _CLUSTERS:
        return await handler(request)
    return await forward(request, engines.engine(engines.find(named[0])), path=without_node(path_of(request)))


async def below_prefix(request: web.Request) -> web.StreamResponse:
    engines = engines_of(request)
    member = engines.find(request.match_info["node"])
    _, _, rest = path_of(request).partition("/engine/")
    return await forward(request, engines.engine(member), path=f"/{rest}")


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
