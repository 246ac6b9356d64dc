"""One request for many Engines: which nodes, and what their answers come to.

Edge: asks Engines; `outcome` is pure. Every reachable node is asked, or those that the client names: `?node=a&node=b`, or the header
`X-Meshd-Nodes: a,b`, which the docker CLI sends when its config.json says so (`HttpHeaders`). What one node refuses is an error that
names it and says where it is done all the same: nothing is undone, and to ask again does no harm. A node that is away is named in the
answer's `Warning`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from orchestrator.api import access
from orchestrator.api.engines import CHANGE, Engines, Member, Patience, Replies, asked_path, engines_of
from orchestrator.api.proxy import PROXY
from orchestrator.api.queries import with_filters
from orchestrator.errors import ApiError

NODES_HEADER = "X-Meshd-Nodes"
# of images and volumes in lists: where they are
NODE_LABEL = "com.meshd.node"
NODE_FILTER = "node"


def is_whole(request: web.Request) -> bool:
    """Whether this node speaks for all of them; else it speaks for its own Engine only."""
    return engines_of(request).snapshot() is not None


def of_all_nodes(handler: Handler) -> Handler:
    """A route that speaks for all nodes, where this one does; elsewhere its Engine answers alone."""

    @functools.wraps(handler)
    async def route(request: web.Request) -> web.StreamResponse:
        return await handler(request) if is_whole(request) else await request.app[PROXY].forward(request)

    return route


def members_of(request: web.Request, also: Sequence[str] = ()) -> list[Member]:
    """Those that the client chose, in its request or by `also`; all if it chose none. ApiError(404): there is no such node."""
    engines = engines_of(request)
    header = request.headers.get(NODES_HEADER, "")
    named = [*request.query.getall("node", []), *(name.strip() for name in header.split(",")), *also]
    return chosen(engines, [name for name in named if name])


def chosen(engines: Engines, names: Sequence[str]) -> list[Member]:
    found = {member.node_id: member for member in (engines.find(name) for name in names)}
    return sorted(found.values(), key=lambda member: member.name) if names else engines.members()


async def ask(
    request: web.Request,
    method: str,
    path: str,
    *,
    members: Sequence[Member] | None = None,
    body: bytes | None = None,
    patience: Patience = CHANGE,
) -> Replies:
    """`path` without version."""
    wanted = members_of(request) if members is None else members
    return await engines_of(request).ask_all(method, asked_path(request, path), members=wanted, body=body, patience=patience)


async def filtered(request: web.Request, method: str, path: str, *, patience: Patience = CHANGE) -> Replies:
    """With the request's query and filters; the filter `node` chooses whom to ask."""
    wanted = access.any_filters_of(request)
    members = members_of(request, wanted.get(NODE_FILTER))
    query = with_filters(request, wanted, without=NODE_FILTER)
    return await ask(request, method, f"{path}{query}", members=members, patience=patience)


def outcome(replies: Replies, done: str) -> list[tuple[Member, Any]]:
    """What those that did it answered. `done`: as in "`done` node-1, node-2". A node that has no such thing has nothing to do, unless
    none has. ApiError: one refused, or nobody could be asked."""
    replies.require_one()
    did = list(replies.values())
    refused = [(member, answer) for member, answer in replies.refusals() if answer.status != HTTPStatus.NOT_FOUND]
    if refused:
        status = refused[0][1].status
        raise ApiError(status, sentence([(member.name, answer.message()) for member, answer in refused], [m.name for m, _ in did], done))
    return did


async def prune(request: web.Request, path: str, deleted: str, whose: str) -> web.StreamResponse:
    """POST `path`; `deleted`: the answer's list of what is gone; whose: "their volumes"."""
    return pruned(await filtered(request, "POST", path), deleted, whose)


def pruned(replies: Replies, deleted: str, whose: str) -> web.Response:
    answers = outcome(replies, "pruned on")
    gone: list[Any] = []
    for _, answer in answers:
        gone += [one for one in answer.get(deleted) or () if one not in gone]
    reclaimed = sum(answer.get("SpaceReclaimed") or 0 for _, answer in answers)
    # an Engine that pruned nothing says null of some things and [] of others
    nothing: list[Any] | None = None if all(answer.get(deleted) is None for _, answer in answers) else []
    response = access.answer({deleted: gone or nothing, "SpaceReclaimed": reclaimed})
    replies.warn(response, f"{whose} were not pruned")
    return response


def sentence(failures: Sequence[tuple[str, str]], did: Sequence[str], done: str) -> str:
    """ "node-2: why; `done` node-1"; who says the same is named together; where all do, what they say is enough."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in failures:
        by_reason.setdefault(reason, []).append(name)
    if not did and len(by_reason) == 1:
        return next(iter(by_reason))
    text = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
    return f"{text}; {done} {', '.join(did)}" if did else text


def split(reference: str) -> tuple[str, str]:
    """(node, name) of `node/name`; node "" where none is named."""
    node, slash, name = reference.partition("/")
    return (node, name) if slash else ("", reference)
