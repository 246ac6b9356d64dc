"""Images of all nodes: pulled, loaded and removed everywhere, inspected and saved wherever they are.

Edge: routes over the Engines. Source: Docker Engine API 1.44 /images; classicswarm api/primary.go for what goes to all. Differs: an import
is made on one node and brought to the others, so it is one image and not one a node; a push goes out from one node.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import quote, unquote

import aiohttp
from aiohttp import web

from orchestrator.api import access, broadcast, codec, newer_requests, progress
from orchestrator.api.broadcast import NODE_LABEL, members_of, of_all_nodes
from orchestrator.api.engines import CHANGE, LIST, Engines, Member, asked_path, engines_of
from orchestrator.api.progress import Fan, Json
from orchestrator.api.proxy import PROXY, forward
from orchestrator.api.queries import same, same_path
from orchestrator.engine_http import CHUNK_BYTES, Answer, Engine, end_to_end
from orchestrator.errors import ApiError

_ACTIONS = ("json", "history", "get", "push", "tag")


@of_all_nodes
async def list_images(request: web.Request) -> web.StreamResponse:
    replies = await broadcast.filtered(request, "GET", "/images/json", patience=LIST)
    replies.require_one()
    response = access.answer(merged([(member.name, images) for member, images in replies.values()]))
    replies.warn(response, "their images are not shown")
    return response


def merged(lists: Sequence[tuple[str, Sequence[Json]]]) -> list[Json]:
    """Pure: the images of the nodes, each once; its label says where it is."""
    found: dict[str, Json] = {}
    places: dict[str, list[str]] = {}
    for node, images in lists:
        for image in images:
            known = found.setdefault(image["Id"], {**image, "RepoTags": [], "RepoDigests": [], "Containers": 0})
            places.setdefault(image["Id"], []).append(node)
            for key in ("RepoTags", "RepoDigests"):
                known[key] += [name for name in image.get(key) or () if name not in known[key]]
            counted = image.get("Containers", -1)
            known["Containers"] = -1 if counted < 0 else known["Containers"] + counted
    for id, image in found.items():
        # a name that only some nodes know hides that others know none
        named = [tag for tag in image["RepoTags"] if tag != "<none>:<none>"]
        image["RepoTags"] = named or image["RepoTags"]
        image["Labels"] = {**(image.get("Labels") or {}), NODE_LABEL: ",".join(places[id])}
    return sorted(found.values(), key=lambda image: (-image.get("Created", 0), image["Id"]))


# ---- everywhere ------------------------------------------------------------------------------------------------------------------


@of_all_nodes
async def create_image(request: web.Request) -> web.StreamResponse:
    """`docker pull`, `docker import`."""
    members = members_of(request)
    if request.query.get("fromSrc"):
        return await _import(request, members)
    path, headers = same_path(request), end_to_end(request.headers)

    @asynccontextmanager
    async def pull(member: Member, engine: Engine) -> AsyncIterator[aiohttp.ClientResponse]:
        async with engine.request("POST", await engine.path(path), headers=headers) as response:
            yield response

    return await progress.together(request, engines_of(request), members, pull, "pulled on")


@of_all_nodes
async def load_images(request: web.Request) -> web.StreamResponse:
    return await _load(request, members_of(request), progress.body_of(request), same_path(request), "loaded on")


async def _load(request: web.Request, members: Sequence[Member], source: AsyncIterator[bytes], path: str, done: str) -> web.StreamResponse:
    """An archive into every Engine."""
    fan = Fan(source)
    feeds = {member.node_id: fan.feed() for member in members if not member.away}

    @asynccontextmanager
    async def load(member: Member, engine: Engine) -> AsyncIterator[aiohttp.ClientResponse]:
        feed = feeds[member.node_id]
        try:
            headers = {"Content-Type": "application/x-tar"}
            async with engine.request("POST", await engine.path(path), headers=headers, data=feed.chunks()) as response:
                yield response
        finally:
            feed.close()

    async with fan.running():
        return await progress.together(request, engines_of(request), members, load, done)


async def _import(request: web.Request, members: Sequence[Member]) -> web.StreamResponse:
    """Made by the first Engine; the others load what it made."""
    engines = engines_of(request)
    there = sorted((member for member in members if not member.away), key=lambda member: (not member.local, member.name))
    if not there:
        raise ApiError(503, "no node of the cluster has an Engine that can be asked")
    first, *others = there
    if not others:
        return await forward(request, engines.engine(first), path=same_path(request))
    engine = engines.engine(first)
    data = progress.body_of(request) if request.body_exists else None
    said: list[Json] = []
    async with engine.request("POST", await engine.path(same_path(request)), headers=end_to_end(request.headers), data=data) as response:
        if response.status >= HTTPStatus.BAD_REQUEST:
            return web.Response(status=response.status, body=await response.read(), content_type="application/json")
        try:
            async for line in progress.lines(response.content):
                said.append(line)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ApiError(502, f"{engine.name} broke the import off ({type(error).__name__})") from None
    last = said[-1] if said else {}
    if "status" not in last:
        text = str(last.get("error") or "the import gave no image")
        return access.answer({"message": text}, status=500)
    id = str(last["status"])
    repository, tag = request.query.get("repo", ""), request.query.get("tag", "")
    name = f"{repository}:{tag or 'latest'}" if repository and ":" not in repository.rpartition("/")[2] else repository
    async with engine.request("GET", await engine.path(f"/images/{name or id}/get")) as archive:
        if archive.status >= HTTPStatus.BAD_REQUEST:
            raise ApiError(502, f"{engine.name} imported {id}, but does not give it to the other nodes ({archive.status})")
        away = [member for member in members if member.away]
        source = archive.content.iter_chunked(CHUNK_BYTES)
        return await _distributed(request, engines, id, first, [*others, *away], source)


async def _distributed(
    request: web.Request, engines: Engines, id: str, first: Member, members: Sequence[Member], source: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Loaded by the others; to the client it is one import: its last line is the image's id, unless some node failed."""
    fan = Fan(source)
    feeds = {member.node_id: fan.feed() for member in members if not member.away}

    async def load(member: Member) -> tuple[str, str]:
        feed = feeds[member.node_id]
        try:
            engine = engines.engine(member)
            path = await engine.path(asked_path(request, "/images/load?quiet=1"))
            async with engine.request("POST", path, headers={"Content-Type": "application/x-tar"}, data=feed.chunks()) as response:
                text = (await response.read()).decode(errors="replace")
                failed = response.status >= HTTPStatus.BAD_REQUEST or '"errorDetail"' in text
                return member.name, text.strip() if failed else ""
        except (ApiError, aiohttp.ClientError, OSError) as error:
            return member.name, str(error) or type(error).__name__
        finally:
            feed.close()

    async with fan.running():
        outcomes = await asyncio.gather(*(load(member) for member in members if not member.away))
    failures = [(name, reason) for name, reason in outcomes if reason]
    if failures:
        did = [first.name, *(name for name, reason in outcomes if not reason)]
        raise ApiError(500, broadcast.sentence(failures, did, f"{id} is there on"))
    lines = [{"status": f"{member.name} is away ({member.away}) and is left out"} for member in members if member.away]
    return access.answer_lines([*lines, {"status": id}])


@of_all_nodes
async def remove_image(request: web.Request) -> web.StreamResponse:
    engines = engines_of(request)
    path = asked_path(request, same(request))

    async def remove(member: Member) -> Answer:
        return await newer_requests.ask(engines.engine(member), "DELETE", path)

    replies = await engines.each(remove, members_of(request), CHANGE)
    gone: list[Json] = []
    for _, lines in broadcast.outcome(replies, "removed from"):
        gone += [line for line in lines if line not in gone]
    response = access.answer(gone)
    replies.warn(response, "what they have of it stays")
    return response


@of_all_nodes
async def prune_images(request: web.Request) -> web.StreamResponse:
    return await broadcast.prune(request, "/images/prune", "ImagesDeleted", "their images")


# ---- wherever it is --------------------------------------------------------------------------------------------------------------


@of_all_nodes
async def of_image(request: web.Request) -> web.StreamResponse:
    """/images/{name}/json, history, get, push, tag; names contain slashes."""
    name, _, action = unquote(request.match_info["rest"]).rpartition("/")
    if action not in _ACTIONS:
        raise ApiError(404, "page not found")
    if action == "tag":
        replies = await broadcast.ask(request, "POST", same(request))
        broadcast.outcome(replies, "tagged on")
        tagged = web.Response(status=201)
        replies.warn(tagged, "not tagged there")
        return tagged
    member = await _holder(request, [f"{name}:{request.query['tag']}" if action == "push" and request.query.get("tag") else name])
    return await forward(request, engines_of(request).engine(member), path=same_path(request))


@of_all_nodes
async def save_images(request: web.Request) -> web.StreamResponse:
    """`docker save`: from a node that has them all. A repository without tag means all of its images."""
    member = await _holder(request, request.query.getall("names", []), repositories=True)
    return await forward(request, engines_of(request).engine(member), path=same_path(request))


async def _holder(request: web.Request, names: Sequence[str], *, repositories: bool = False) -> Member:
    """A node that has all of these images, this one if it can be. Where one is on no node at all, some node, which then says so in its
    Engine's words for the request; ApiError(404) if that can't be sure."""
    members = members_of(request)
    there: list[list[Member]] = []
    # the others needn't be asked when this one has them
    for asked in ([member for member in members if member.local], members):
        there = [await _having(request, name, asked, repositories) for name in names]
        for member in asked:
            if not member.away and all(member in having for having in there):
                return member
    nowhere = [name for name, having in zip(names, there, strict=True) if not having]
    away = [f"{member.name} ({member.away})" for member in members if member.away]
    if nowhere and not away:
        return min(members, key=lambda member: not member.local)
    also = f" ({', '.join(away)} could not be asked)" if away else ""
    if nowhere:
        raise ApiError(404, f"No such image: {nowhere[0]}{also}")
    raise ApiError(404, f"No node has all of these images: {', '.join(names)}{also}")


async def _having(request: web.Request, name: str, members: Sequence[Member], repositories: bool) -> list[Member]:
    replies = await broadcast.ask(request, "GET", f"/images/{quote(name, safe='')}/json", members=members, patience=LIST)
    there = [member for member, _ in replies.values()]
    if there or not repositories:
        return there
    named = quote(codec.encode({"reference": [name]}).decode().strip(), safe="")
    replies = await broadcast.ask(request, "GET", f"/images/json?filters={named}", members=members, patience=LIST)
    return [member for member, images in replies.values() if images]


async def search_images(request: web.Request) -> web.StreamResponse:
    """Any Engine may ask the registry."""
    return await request.app[PROXY].forward(request)


ROUTES = [
    web.get("/images/json", list_images),
    web.post("/images/create", create_image),
    web.post("/images/load", load_images),
    web.post("/images/prune", prune_images),
    web.get("/images/get", save_images),
    web.get("/images/search", search_images),
    web.delete("/images/{rest:.+}", remove_image),
    web.get("/images/{rest:.+}", of_image),
    web.post("/images/{rest:.+}", of_image),
]
