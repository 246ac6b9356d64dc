"""Path and query of a request as they are passed on to Engines.

Pure: no I/O.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

from aiohttp import web

from orchestrator.api import codec
from orchestrator.api.engines import asked_path
from orchestrator.api.filters import Filters
from orchestrator.api.node_scope import without_node
from orchestrator.api.proxy import path_of


def same_path(request: web.Request) -> str:
    """What was asked for, version and query included, without the nodes that it was asked of."""
    return without_node(path_of(request))


def same(request: web.Request) -> str:
    """The same without version."""
    version = request.match_info.get("api_version")
    return same_path(request).removeprefix(f"/v{version}") if version else same_path(request)


def at(request: web.Request, path: str) -> str:
    """`path` with the version and the query that were asked for."""
    query = same_path(request).partition("?")[2]
    return asked_path(request, path) + (f"?{query}" if query else "")


def with_filters(request: web.Request, filters: Filters, *, without: str) -> str:
    """The request's own, with its filters but one; "" or "?...". Chosen nodes are no business of an Engine."""
    kept = [(key, value) for key, value in request.query.items() if key not in ("filters", "node")]
    values = {key: list(given) for key, given in filters.values.items() if key != without}
    if values:
        kept.append(("filters", codec.encode(values).decode().strip()))
    return f"?{urlencode(kept, quote_via=quote)}" if kept else ""
