"""Volumes of all nodes: made everywhere under one name, listed once, removed everywhere.

Edge: routes over the Engines. A volume of the local driver is a directory of its node: the same name is another directory on each. So
`node/name` is accepted wherever a volume is named, and made there only; lists and `docker volume inspect` say in the label com.meshd.node
where a volume is. Source: Docker Engine API 1.44 /volumes; classicswarm api/handlers.go (postVolumesCreate, deleteVolumes).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

from aiohttp import web

from orchestrator.api import access, broadcast, codec, newer_requests, versions
from orchestrator.api.broadcast import NODE_FILTER, NODE_LABEL, chosen, members_of, of_all_nodes
from orchestrator.api.engines import CHANGE, LIST, Member, asked_path, engines_of
from orchestrator.api.queries import with_filters
from orchestrator.engine_http import Answer
from orchestrator.errors import ApiError

Json = dict[str, Any]


@of_all_nodes
async def list_volumes(request: web.Request) -> web.StreamResponse:
    replies = await broadcast.filtered(request, "GET", "/volumes", patience=LIST)
    replies.require_one()
    answers = [(member.name, answer) for member, answer in replies.values()]
    warnings = [text for _, answer in answers for text in answer.get("Warnings") or ()]
    if missing := replies.missing("their volumes are not shown"):
        warnings.append(missing)
    response = access.answer(
        {"Volumes": merged([(name, answer.get("Volumes") or ()) for name, answer in answers]), "Warnings": warnings or None}
    )
    replies.warn(response, "their volumes are not shown")
    return response


def merged(lists: Sequence[tuple[str, Sequence[Json]]]) -> list[Json]:
    """Pure: each name of a driver once."""
    found: dict[tuple[str, str], Json] = {}
    places: dict[tuple[str, str], list[str]] = {}
    for node, volumes in lists:
        for volume in volumes:
            key = (volume["Name"], volume["Driver"])
            found.setdefault(key, volume)
            places.setdefault(key, []).append(node)
    return [{**found[key], "Labels": {**(found[key].get("Labels") or {}), NODE_LABEL: ",".join(places[key])}} for key in sorted(found)]


@of_all_nodes
async def inspect_volume(request: web.Request) -> web.StreamResponse:
    """Of several nodes that have it: this one's, else the first's."""
    name, members = _named(request)
    replies = await broadcast.ask(request, "GET", f"/volumes/{quote(name, safe='')}", members=members, patience=LIST)
    replies.require_one()
    having = sorted(replies.values(), key=lambda one: not one[0].local)
    places = sorted(member.name for member, _ in having)
    volume = having[0][1]
    response = access.answer({**volume, "Labels": {**(volume.get("Labels") or {}), NODE_LABEL: ",".join(places)}})
    replies.warn(response, "they may have it, too")
    return response


@of_all_nodes
async def create_volume(request: web.Request) -> web.StreamResponse:
    raw = await access.body(request)
    sent = codec.parse(raw) if raw else {}
    if not isinstance(sent, dict):
        raise ApiError(400, "invalid request: expected an object")
    if sent.get("ClusterVolumeSpec"):
        raise ApiError(501, "cluster volumes (CSI) are not supported: use a driver that every node has")
    called = sent.get("Name") or ""
    if not isinstance(called, str):
        raise ApiError(400, "invalid request: Name: expected a string")
    node, name = broadcast.split(called)
    members = chosen(engines_of(request), [node]) if node else members_of(request)
    if not name:
        # the Engines would each make up another one
        sent = {**sent, "Name": secrets.token_hex(32)}
        if not versions.before(access.api_version(request), newer_requests.ANONYMOUS_SINCE):
            sent["Labels"] = {**(sent.get("Labels") or {}), newer_requests.ANONYMOUS_LABEL: ""}
    else:
        sent = {**sent, "Name": name}
    body = codec.encode(sent)
    replies = await broadcast.ask(request, "POST", "/volumes/create", members=members, body=body)
    made = broadcast.outcome(replies, "created on")
    response = access.answer(made[0][1], status=201)
    replies.warn(response, "it is made there when a container first asks for it")
    return response


@of_all_nodes
async def remove_volume(request: web.Request) -> web.StreamResponse:
    """Where it is in use somewhere it stays everywhere: the node with its user refuses."""
    name, members = _named(request)
    query = "?force=1" if access.flag(request, "force") else ""
    members = [member for member, volume in await _in_use(request, members) if volume["Name"] == name] or members
    replies = await broadcast.ask(request, "DELETE", f"/volumes/{quote(name, safe='')}{query}", members=members)
    broadcast.outcome(replies, "removed from")
    response = web.Response(status=204)
    replies.warn(response, "what they have of it stays")
    return response


@of_all_nodes
async def prune_volumes(request: web.Request) -> web.StreamResponse:
    wanted = access.any_filters_of(request)
    path = asked_path(request, f"/volumes/prune{with_filters(request, wanted, without=NODE_FILTER)}")
    engines = engines_of(request)
    # in use on any node: unused where it is not, but the same volume to whoever asks here
    in_use = {volume["Name"] for _, volume in await _in_use(request, engines.members())}

    async def ask(member: Member) -> Answer:
        engine = engines.engine(member)
        return await (newer_requests.prune_volumes(engine, path, in_use) if in_use else newer_requests.ask(engine, "POST", path))

    replies = await engines.each(ask, members_of(request, wanted.get(NODE_FILTER)), CHANGE)
    return broadcast.pruned(replies, "VolumesDeleted", "their volumes")


async def _in_use(request: web.Request, members: Sequence[Member]) -> list[tuple[Member, Json]]:
    filters = quote(codec.encode({"dangling": ["false"]}).decode().strip(), safe="")
    replies = await broadcast.ask(request, "GET", f"/volumes?filters={filters}", members=members, patience=LIST)
    return [(member, volume) for member, answer in replies.values() for volume in answer.get("Volumes") or ()]


def _named(request: web.Request) -> tuple[str, list[Member]]:
    """The name, and where it is meant."""
    node, name = broadcast.split(unquote(request.match_info["name"]))
    return name, chosen(engines_of(request), [node]) if node else members_of(request)


ROUTES = [
    web.get("/volumes", list_volumes),
    web.post("/volumes/create", create_volume),
    web.post("/volumes/prune", prune_volumes),
    web.get("/volumes/{name:.+}", inspect_volume),
    web.delete("/volumes/{name:.+}", remove_volume),
]
