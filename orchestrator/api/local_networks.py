"""Networks that are a node's own (bridge, macvlan, ...), of all nodes.

Edge: routes' parts over the Engines; `merged` is pure. Those that every Engine has from the start (bridge, host, none) are shown once.
Others are shown by their name, and as `node/name` where several nodes have one called so; both are understood, as are ids. One is made on
the node that is asked, or on the one that its name begins with. Source: classicswarm api/handlers.go (getNetworks, postNetworksCreate).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from aiohttp import web

from orchestrator.api import access, broadcast, codec
from orchestrator.api.broadcast import NODE_LABEL, chosen, members_of
from orchestrator.api.containers import owner_of
from orchestrator.api.engines import LIST, Member, Replies, engines_of
from orchestrator.api.proxy import forward
from orchestrator.api.queries import at
from orchestrator.api.validate import PREDEFINED_NETWORKS
from orchestrator.errors import ApiError

Json = dict[str, Any]


async def listed(request: web.Request) -> tuple[list[Json], Replies]:
    """Of all nodes; ApiError: no Engine could be asked."""
    replies = await broadcast.filtered(request, "GET", "/networks", patience=LIST)
    replies.require_one()
    return merged([(member.name, networks) for member, networks in sorted(replies.values(), key=lambda one: not one[0].local)]), replies


def merged(lists: Sequence[tuple[str, Sequence[Json]]]) -> list[Json]:
    """The node whose predefined networks are shown comes first."""
    shown: list[Json] = []
    own: set[str] = set()
    counts = Counter(network["Name"] for _, networks in lists for network in networks)
    for node, networks in lists:
        for network in networks:
            name = network["Name"]
            if name in PREDEFINED_NETWORKS:
                if name not in own:
                    own.add(name)
                    shown.append(network)
                continue
            labels = {**(network.get("Labels") or {}), NODE_LABEL: node}
            shown.append({**network, "Name": f"{node}/{name}" if counts[name] > 1 else name, "Labels": labels})
    return shown


async def holder(request: web.Request, reference: str) -> tuple[Member, str]:
    """The node with this network, and what its Engine calls it. Predefined ones are this node's. ApiError(404, 400)."""
    engines = engines_of(request)
    node, name = broadcast.split(reference)
    if not node and name in PREDEFINED_NETWORKS:
        return engines.local(), name
    members = chosen(engines, [node]) if node else members_of(request)
    replies = await broadcast.ask(request, "GET", f"/networks/{quote(name, safe='')}", members=members, patience=LIST)
    found = [(member, network) for member, network in replies.values() if isinstance(network, dict)]
    exact = [(member, network) for member, network in found if name in (network["Name"], network["Id"])] or found
    if len(exact) > 1:
        places = ", ".join(f"{member.name}/{network['Name']}" for member, network in exact)
        raise ApiError(400, f"network {reference} is ambiguous ({len(exact)} matches found: {places})")
    if not exact:
        missing = replies.missing()
        raise ApiError(404, f"network {reference} not found" + (f" ({missing})" if missing else ""))
    return exact[0][0], str(exact[0][1]["Id"])


async def connection(request: web.Request, reference: str, rest: str) -> web.StreamResponse:
    """A container to or from a network of its node; rest: "/connect" or "/disconnect". Of networks with one name its node's is meant.
    ApiError(403): the network is another node's."""
    engines = engines_of(request)
    raw = await access.body(request)
    try:
        sent = codec.parse(raw)
        asked = codec.convert(sent, _Connection)
        if not asked.container:
            raise ApiError(400, "no container is named")
        owner = (await owner_of(request, asked.container)).member
    except ApiError:
        # malformed, or no such container: the Engine says how
        member, id = await holder(request, reference)
        return await forward(request, engines.engine(member), path=_path(request, id, rest), body=raw)
    node, name = broadcast.split(reference)
    if name in PREDEFINED_NETWORKS and not node:
        member, id = owner, name
    else:
        shown = await broadcast.ask(request, "GET", f"/networks/{quote(name, safe='')}", members=[owner], patience=LIST)
        own = [network["Id"] for _, network in shown.values() if isinstance(network, dict) and node in ("", owner.name, owner.node_id)]
        member, id = (owner, str(own[0])) if own else await holder(request, reference)
    if member.node_id != owner.node_id:
        raise ApiError(
            403,
            f"network {reference} is node {member.name}'s and container {asked.container} is on node {owner.name}: what is to reach "
            "both is a network of the cluster (docker network create -d overlay --attachable)",
        )
    # the Engine knows it without its node
    body = {**{key: value for key, value in sent.items() if key.lower() != "container"}, "Container": asked.container.rpartition("/")[2]}
    return await forward(request, engines.engine(member), path=_path(request, id, rest), body=codec.encode(body))


class _Connection(msgspec.Struct, rename="pascal"):
    container: str = ""


def _path(request: web.Request, id: str, rest: str) -> str:
    return at(request, f"/networks/{quote(id, safe='')}{rest}")


def place_of(request: web.Request, reference: str) -> tuple[Member, str]:
    """Where a new one is made, and under which name."""
    engines = engines_of(request)
    node, name = broadcast.split(reference)
    named = chosen(engines, [node]) if node else []
    return (named[0] if named else engines.local()), name
