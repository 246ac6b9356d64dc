"""Containers of all nodes, as if they were on one: lists from every Engine, a container's requests to the one that has it.

Edge: routes over the Engines. Source: Docker Engine API 1.44 /containers, /commit; classicswarm api/handlers.go. A node that is no
manager speaks for its own Engine only. Creating is in `container_creation`, exec instances are in `execs`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import quote, unquote, urlencode

from aiohttp import web

from orchestrator.api import access, attached_views, attachments, broadcast, codec
from orchestrator.api.broadcast import of_all_nodes
from orchestrator.api.container_names import held
from orchestrator.api.container_views import FULL_ID, Found, Listing, choose, created_s, inspected, name_taken, split_path
from orchestrator.api.engines import CHANGE, Member, Replies, asked_path, engines_of
from orchestrator.api.proxy import PROXY, forward
from orchestrator.api.queries import at
from orchestrator.errors import ApiError

_REMEMBERED = 16_384
_NOT_SHOWN = "their containers are not shown"


class NoContainer(ApiError):
    """No node that could be asked has it. missing: a sentence that names those that could not, or ""."""

    def __init__(self, reference: str, missing: str) -> None:
        super().__init__(404, f"No such container: {reference}" + (f" ({missing})" if missing else ""))
        self.reference = reference
        self.missing = missing


class Owners:
    """id -> node, as far as this process has seen it. A container never moves, so what is remembered is never wrong. Also in which order
    it made containers: lists say that only by the second, and of each node's clock."""

    def __init__(self) -> None:
        self._nodes: OrderedDict[str, str] = OrderedDict()
        self._made: OrderedDict[str, int] = OrderedDict()
        self._count = 0

    def learn(self, id: str, node_id: str) -> None:
        self._nodes[id] = node_id
        self._nodes.move_to_end(id)
        if len(self._nodes) > _REMEMBERED:
            self._nodes.popitem(last=False)

    def made(self, id: str, node_id: str) -> None:
        self.learn(id, node_id)
        self._count += 1
        self._made[id] = self._count
        if len(self._made) > _REMEMBERED:
            self._made.popitem(last=False)

    def order(self, id: str) -> int:
        """0 before all that this process made."""
        return self._made.get(id, 0)

    def node_of(self, id: str) -> str | None:
        return self._nodes.get(id)


OWNERS: web.AppKey[Owners] = web.AppKey("owners", Owners)


async def list_containers(request: web.Request) -> web.StreamResponse:
    engines = engines_of(request)
    snapshot = engines.snapshot()
    if snapshot is None:
        return await request.app[PROXY].forward(request)
    try:
        listing = await _listing(request)
    except NoContainer as error:
        return await _refused(request, error)
    members = [member for member in engines.members() if listing.wants(member)]
    replies = await engines.ask_all("GET", lambda member: asked_path(request, listing.query(member)), members=members)
    for _, refusal in replies.refusals():
        # a filter that one Engine refuses is refused by all; the rest of them may have their troubles
        if refusal.status == 400:
            raise ApiError(refusal.status, refusal.message())
    if members:
        replies.require_one()
    shown_as = attached_views.Attachments(snapshot)
    lists = [(member, [shown_as.listed(entry) for entry in entries]) for member, entries in replies.values() if isinstance(entries, list)]
    for member, entries in lists:
        for entry in entries:
            request.app[OWNERS].learn(entry["Id"], member.node_id)
    response = access.answer(listing.merged(lists, request.app[OWNERS].order))
    replies.warn(response, _NOT_SHOWN)
    return response


@of_all_nodes
async def to_owner(request: web.Request) -> web.StreamResponse:
    """Everything below /containers/{id}."""
    reference, rest = split_path(unquote(_below_containers(request)))
    if not reference:
        raise ApiError(404, "page not found")
    try:
        found = await owner_of(request, reference)
    except NoContainer as error:
        return await _refused(request, error)
    if rest == "/json" and request.method == "GET":
        return await _inspect(request, found)
    if rest == "/rename" and request.method == "POST":
        return await _rename(request, found)
    answer = await forward(request, engines_of(request).engine(found.member), path=at(request, f"/containers/{_name(reference)}{rest}"))
    if request.method == "DELETE" and not rest and answer.status == HTTPStatus.NO_CONTENT and not access.flag(request, "link"):
        await attachments.container_removed(access.store_of(request), found.id)
    return answer


async def commit(request: web.Request) -> web.StreamResponse:
    """An image of a container, on the container's node."""
    engines = engines_of(request)
    reference = request.query.get("container", "")
    if engines.snapshot() is None or not reference:
        return await request.app[PROXY].forward(request)
    found = await inspected_owner_of(request, reference)
    query = urlencode([(key, found.id if key == "container" else value) for key, value in request.query.items()])
    path = asked_path(request, f"/commit?{query}")
    raw = await access.body(request)
    body = attached_views.committed(found.shown, codec.parse(raw) if raw.strip() else None)
    return await forward(request, engines.engine(found.member), path=path, body=raw if body is None else codec.encode(body))


@of_all_nodes
async def prune(request: web.Request) -> web.StreamResponse:
    return await broadcast.prune(request, "/containers/prune", "ContainersDeleted", "their containers")


ROUTES = [
    web.get("/containers/json", list_containers),
    web.post("/containers/prune", prune),
    web.post("/commit", commit),
    web.route("*", "/containers/{path:.+}", to_owner),
]


async def owner_of(request: web.Request, reference: str) -> Found:
    """The container that answers to an id, a name, `node/name` or the beginning of an id. An id that is known has no inspection with it.
    NoContainer; ApiError(400): several do; EngineAway: its node is away."""
    engines = engines_of(request)
    owners = request.app[OWNERS]
    node, slash, name = reference.strip("/").partition("/")
    try:
        members = [engines.find(node)] if slash else engines.members()
    except ApiError:
        raise NoContainer(reference, "") from None
    name = name if slash else node
    if FULL_ID.fullmatch(name) and (node_id := owners.node_of(name)) is not None:
        for member in members:
            if member.node_id == node_id:
                return Found(member, {"Id": name})
    found, replies = await _called(request, name, members)
    chosen = choose(name, found)
    if chosen is not None:
        owners.learn(chosen.id, chosen.member.node_id)
        return chosen
    for _, refusal in replies.refusals():
        if refusal.status != 404:
            # the Engine's own: several ids of its begin so
            raise ApiError(refusal.status, refusal.message())
    raise NoContainer(reference, replies.missing())


async def _refused(request: web.Request, error: NoContainer) -> web.StreamResponse:
    """In the words that an Engine has for this very request, about a container that is nowhere; ours if that isn't sure."""
    if error.missing or "/" in error.reference.strip("/"):
        raise error
    return await request.app[PROXY].forward(request)


async def _listing(request: web.Request) -> Listing:
    wanted = access.any_filters_of(request)
    cuts = {}
    for key in ("before", "since"):
        reference = (*wanted.get(key), request.query.get(key, ""))[0]
        if reference:
            found = await owner_of(request, reference)
            cuts[key] = found if created_s(found.shown) else await _inspection(request, found)
    limit = request.query.get("limit", "")
    if limit and not limit.lstrip("-").isdigit():
        raise ApiError(400, f'strconv.Atoi: parsing "{limit}": invalid syntax')
    return Listing(
        all=access.flag(request, "all"),
        limit=int(limit or 0),
        size=access.flag(request, "size"),
        filters=wanted,
        before=cuts.get("before"),
        since=cuts.get("since"),
    )


async def inspected_owner_of(request: web.Request, reference: str) -> Found:
    """The same with its inspection."""
    found = await owner_of(request, reference)
    return found if found.name else await _inspection(request, found)


async def _inspection(request: web.Request, found: Found, query: str = "") -> Found:
    path = asked_path(request, f"/containers/{found.id}/json" + (f"?{query}" if query else ""))
    answer = await engines_of(request).engine(found.member).ask("GET", path, timeout_s=CHANGE.most_s)
    if not answer.ok:
        raise ApiError(answer.status, answer.message())
    return Found(found.member, answer.json())


async def _inspect(request: web.Request, found: Found) -> web.StreamResponse:
    query = request.rel_url.raw_query_string
    if query or not found.name:
        found = await _inspection(request, found, query)
    snapshot = engines_of(request).snapshot()
    node = snapshot.node(found.member.node_id) if snapshot is not None else None
    shown = attached_views.Attachments(snapshot).inspected(found.shown) if snapshot is not None else found.shown
    return access.answer(inspected(shown, found.member, node))


async def _rename(request: web.Request, found: Found) -> web.StreamResponse:
    """Names are unique in the cluster."""
    engines = engines_of(request)
    name = request.query.get("name", "").lstrip("/")
    if not name:
        raise ApiError(400, "Neither old nor new names may be empty")
    async with held(access.store_of(request), name):
        others, _ = await _called(request, name, engines.members())
        if holder := next((one for one in others if one.name == name and one.id != found.id), None):
            refusal = name_taken(name, holder.id)
            raise ApiError(refusal.status, f"Error when allocating new name: {refusal.message}")
        answer = await forward(request, engines.engine(found.member), path=at(request, f"/containers/{found.id}/rename"))
        if answer.status == HTTPStatus.NO_CONTENT:
            await attachments.rename(access.store_of(request), found.id, name)
        return answer


async def _called(request: web.Request, reference: str, members: Sequence[Member]) -> tuple[list[Found], Replies]:
    """What each Engine knows by this name or id."""
    path = asked_path(request, f"/containers/{quote(reference, safe='')}/json")
    replies = await engines_of(request).ask_all("GET", path, members=members)
    return [Found(member, shown) for member, shown in replies.values() if isinstance(shown, dict)], replies


def _below_containers(request: web.Request) -> str:
    """Percent-encoded."""
    return request.rel_url.raw_path.partition("/containers/")[2]


def _name(reference: str) -> str:
    """As its own node's Engine knows it."""
    return quote(reference.strip("/").rpartition("/")[2], safe="")
