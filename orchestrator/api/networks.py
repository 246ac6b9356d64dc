"""Networks: overlays are the cluster's, all others a node's (`local_networks`); lists show both.

Edge: routes over the store and the Engine. Source: Docker Engine API 1.44 /networks; moby daemon/cluster/networks.go, swarmkit
manager/controlapi/network.go.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from aiohttp import web
from msgspec.structs import replace

from orchestrator.api import access, broadcast, codec, filters, local_networks, network_connect, references, validate, views
from orchestrator.api.attachments import find_overlay
from orchestrator.api.broadcast import NODE_FILTER
from orchestrator.api.engines import engines_of
from orchestrator.api.proxy import PROXY, forward
from orchestrator.api.queries import at, same_path
from orchestrator.control.eligibility import can_encrypt
from orchestrator.dns_options import dns_options
from orchestrator.encryption import wants_encryption
from orchestrator.errors import ApiError, ConfigError
from orchestrator.ids import new_id
from orchestrator.model import IPAM, Claim, Network, Node, Service, is_attachment, terminal
from orchestrator.store.base import Change, Delete, Put, Store
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.subscription import wait_for

# The leader's allocator answers within milliseconds; without a leader the network is there all the same, only not yet allocated.
_ALLOCATION_WAIT_S = 2.0


async def list_networks(request: web.Request) -> web.StreamResponse:
    snapshot = engines_of(request).snapshot()
    if snapshot is None:
        # of the cluster's networks this node knows nothing
        return await request.app[PROXY].forward(request)
    wanted = access.filters_of(request, filters.NETWORK_KEYS | {NODE_FILTER})
    shown: list[dict[str, Any]] = []
    if not wanted.get(NODE_FILTER):
        found = sorted(
            (network for network in snapshot.all(Network) if _matches(snapshot, network, wanted)), key=lambda network: network.name
        )
        shown = [views.network(network) for network in found]
    try:
        local, replies = await local_networks.listed(request)
    except ApiError as error:
        if error.status < 500:
            raise
        # the cluster's networks can be shown without any Engine
        return access.answer(shown)
    response = access.answer([*shown, *local])
    replies.warn(response, "their own networks are not shown")
    return response


async def inspect_network(request: web.Request) -> web.StreamResponse:
    snapshot = engines_of(request).snapshot()
    reference = request.match_info["id"]
    scope = request.query.get("scope", "")
    if snapshot is not None and scope in ("", "swarm", "global"):
        network = find_overlay(snapshot, reference)
        if network is not None:
            verbose = access.boolean(request, "verbose")
            return access.answer(views.network_detail(snapshot, network, access.backend_of(request).node_id, verbose=verbose))
    if scope in ("swarm", "global"):
        if snapshot is not None and reference == "host":
            # the CLI asks for it before it creates a service on the node's own network
            return access.answer(views.network(Network(id="host", name="host", driver="host")))
        raise ApiError(404, f"network {reference} not found")
    return await _at_holder(request, reference)


async def create_network(request: web.Request) -> web.StreamResponse:
    raw = await access.body(request)
    sent = codec.parse(raw)
    if not isinstance(sent, dict):
        raise ApiError(400, "invalid request: expected an object")
    driver = sent.get("Driver") or "bridge"
    # a configuration-only network is this node's, whatever will be made from it
    if driver != "overlay" or sent.get("ConfigOnly"):
        if sent.get("Scope") == "swarm":
            raise ApiError(400, f"swarm-scoped networks of driver {driver} are not supported: use the overlay driver")
        # Clients of API 1.44 leave it out, and an Engine before that would then make a second network of one name.
        if sent.get("Name"):
            sent["CheckDuplicate"] = True
        if engines_of(request).snapshot() is None:
            return await request.app[PROXY].forward(request, codec.encode(sent))
        member, sent["Name"] = local_networks.place_of(request, str(sent.get("Name") or ""))
        return await forward(request, engines_of(request).engine(member), path=same_path(request), body=codec.encode(sent))
    if access.backend_of(request).state == "worker":
        raise ApiError(403, "Cannot create a multi-host network from a worker node. Please create the network from a manager node.")
    store = access.store_of(request)
    network = checked(sent)
    await access.commit(store, lambda snapshot: creation(snapshot, network))
    await _allocated(store, network.id)
    warning = _unencrypted_nodes(store.snapshot()) if network.mesh_encrypted else ""
    return access.answer({"Id": network.id, "Warning": warning}, status=201)


async def remove_network(request: web.Request) -> web.StreamResponse:
    snapshot = engines_of(request).snapshot()
    reference = request.match_info["id"]
    found = find_overlay(snapshot, reference) if snapshot is not None else None
    if found is None:
        if reference in validate.PREDEFINED_NETWORKS - {"default"}:
            raise ApiError(403, f"{reference} is a pre-defined network and cannot be removed")
        return await _at_holder(request, reference)
    await network_connect.wait_for_removed(request, found)

    def plan(snapshot: Snapshot) -> Sequence[Change]:
        return removal(snapshot, references.find(snapshot, Network, found.id))

    await access.commit(access.store_of(request), plan)
    return web.Response(status=204)


async def connect_network(request: web.Request) -> web.StreamResponse:
    return await network_connect.connect(request) or await _connection(request, "/connect")


async def disconnect_network(request: web.Request) -> web.StreamResponse:
    return await network_connect.disconnect(request) or await _connection(request, "/disconnect")


async def _connection(request: web.Request, rest: str) -> web.StreamResponse:
    if engines_of(request).snapshot() is None:
        return await request.app[PROXY].forward(request)
    return await local_networks.connection(request, request.match_info["id"], rest)


async def _at_holder(request: web.Request, reference: str) -> web.StreamResponse:
    """A network of one node, at that node's Engine."""
    if engines_of(request).snapshot() is None:
        return await request.app[PROXY].forward(request)
    member, id = await local_networks.holder(request, reference)
    return await forward(request, engines_of(request).engine(member), path=at(request, f"/networks/{quote(id, safe='')}"))


async def prune_networks(request: web.Request) -> web.StreamResponse:
    """The Engines' unused networks and, on a manager, the cluster's: as Docker does."""
    snapshot = engines_of(request).snapshot()
    if snapshot is None:
        return await request.app[PROXY].forward(request)
    wanted = access.filters_of(request, filters.NETWORK_PRUNE_KEYS | {NODE_FILTER})
    replies = await broadcast.filtered(request, "POST", "/networks/prune")
    if replies.refusals():
        # a filter's value that can't be read is refused by all
        replies.require_one()
    deleted: list[str] = sorted({name for _, pruned in replies.values() for name in pruned.get("NetworksDeleted") or ()})
    if not wanted.get("until") and not wanted.get(NODE_FILTER):
        store = access.store_of(request)
        for network in sorted(snapshot.all(Network), key=lambda network: network.name):
            if network.ingress or _users(snapshot, network) or not wanted.labels(network.labels):
                continue
            if any(wanted_not and filters.Filters({"label": (wanted_not,)}).labels(network.labels) for wanted_not in wanted.get("label!")):
                continue
            await access.commit(store, lambda snapshot, id=network.id: _prune_one(snapshot, id))  # type: ignore[misc]
            deleted.append(network.name)
    response = access.answer({"NetworksDeleted": deleted or None})
    replies.warn(response, "their own networks were not pruned")
    return response


ROUTES = [
    web.get("/networks", list_networks),
    web.post("/networks/create", create_network),
    web.post("/networks/prune", prune_networks),
    web.get("/networks/{id:.+}", inspect_network),
    web.delete("/networks/{id:.+}", remove_network),
    web.post("/networks/{id:.+}/connect", connect_network),
    web.post("/networks/{id:.+}/disconnect", disconnect_network),
]


def _matches(snapshot: Snapshot, network: Network, wanted: filters.Filters) -> bool:
    for kind in wanted.get("type"):
        if kind not in ("custom", "builtin"):
            raise ApiError(400, f"invalid filter: 'type'='{kind}'")
    dangling = wanted.flag("dangling")
    return (
        wanted.exact("driver", network.driver)
        and wanted.exact("scope", network.scope)
        and wanted.prefix("id", network.id)
        and wanted.contains("name", network.name)
        and wanted.labels(network.labels)
        and wanted.exact("type", "custom")
        and (dangling is None or dangling == (not _users(snapshot, network)))
    )


def creation(snapshot: Snapshot, network: Network) -> list[Change]:
    """ApiError: its name or its addresses are taken."""
    if network.name in validate.PREDEFINED_NETWORKS or any(other.name == network.name for other in snapshot.all(Network)):
        raise ApiError(409, f"network with name {network.name} already exists")
    if network.ingress:
        for other in snapshot.all(Network):
            if other.ingress:
                raise validate.already_exists(f"ingress network ({other.id}) is already present")
    _refuse_overlap(snapshot, network)
    if network.mesh_encrypted:
        _refuse_unencrypted(snapshot, network)
    return [Put(network), Put(Claim(id=f"network/{network.name}", owner=network.id))]


def checked(sent: dict[str, Any]) -> Network:
    """The network that the body of a request asks for; ApiError: Docker's refusals."""
    source = sent.get("ConfigFrom")
    if source.get("Network") if isinstance(source, dict) else source:
        raise ApiError(400, "overlay networks can't be made from configuration networks: say what the network should have")
    if sent.get("Scope") not in (None, "", "swarm"):
        raise ApiError(400, "cannot downgrade network scope for overlay networks")
    if sent.get("EnableIPv4") is False:
        raise ApiError(400, "IPv4 cannot be disabled in a Swarm scoped network")
    moment = access.now()
    network = codec.convert(
        {
            **{key: value for key, value in sent.items() if key in _SENT_FIELDS},
            "Id": new_id(),
            "Driver": "overlay",
            "Scope": "swarm",
        },
        Network,
    )
    if not network.name.strip():
        raise ApiError(400, f"invalid name: {network.name}")
    validate.object_name(network.name)
    try:
        dns_options(network.options or {})
        encrypted = wants_encryption(network.options)
    except ConfigError as error:
        raise validate.invalid(str(error)) from error
    if network.ipam.driver not in ("", "default"):
        raise validate.invalid(f"invalid IPAM driver {network.ipam.driver}: only default is supported")
    validate.subnets(network.ipam.config or (), ipv6=network.enable_ipv6)
    ipam = IPAM(driver="default", options=network.ipam.options or None, config=network.ipam.config or None)
    return replace(
        network,
        ipam=ipam,
        created_at=moment,
        updated_at=moment,
        options=network.options or None,
        labels=network.labels or None,
        mesh_encrypted=encrypted,
    )


_SENT_FIELDS = frozenset({"Name", "EnableIPv6", "IPAM", "Internal", "Attachable", "Ingress", "Options", "Labels"})


def _refuse_unencrypted(snapshot: Snapshot, network: Network) -> None:
    """Never silently plain: who asks for this doesn't trust the wire."""
    if network.ingress:
        raise validate.unsupported("the ingress network can't be encrypted: every node takes part in it, also those that can't encrypt")
    nodes = [node for node in snapshot.all(Node) if node.status.state != "down"]
    if not any(can_encrypt(node) for node in nodes):
        said = {node.description.mesh_encryption.unable for node in nodes if node.description.mesh_encryption} - {""}
        why = f" ({sorted(said)[0]})" if said else ""
        raise validate.unsupported(f"no node of this cluster can have encrypted networks{why}")


def _unencrypted_nodes(snapshot: Snapshot) -> str:
    unable = sorted(node.description.hostname for node in snapshot.all(Node) if node.status.state != "down" and not can_encrypt(node))
    return f"{', '.join(unable)} can't have encrypted networks: no task of this network is placed there" if unable else ""


def _refuse_overlap(snapshot: Snapshot, network: Network) -> None:
    chosen = [ipaddress.ip_network(config.subnet, strict=False) for config in network.ipam.config or ()]
    if not chosen:
        return
    for other in sorted(snapshot.all(Network), key=lambda other: other.name):
        for config in other.ipam.config or ():
            if not config.subnet:
                continue
            taken = ipaddress.ip_network(config.subnet, strict=False)
            for subnet in chosen:
                if subnet.overlaps(taken):
                    raise ApiError(
                        403, f"Pool overlaps with other one on this address space: {subnet} with {taken} of network {other.name}"
                    )


async def _allocated(store: Store, id: str) -> None:
    """`docker network inspect` right after the creation shows the subnet, as it does with Docker."""

    def is_there(snapshot: Snapshot) -> bool:
        network = snapshot.network(id)
        return network is None or bool(network.mesh_vni and network.ipam.config)

    with contextlib.suppress(TimeoutError):
        await wait_for(store, is_there, _ALLOCATION_WAIT_S)


def _users(snapshot: Snapshot, network: Network) -> list[str]:
    """What keeps the network from being removed: "service x", then "task y". Tasks whose service is gone are on their way out."""
    services = sorted(
        service.id
        for service in snapshot.all(Service)
        if any(attachment.target == network.id for attachment in service.spec.task_template.networks or ())
    )
    tasks = sorted(
        task.id
        for task in snapshot.tasks_of_network(network.id)
        if not terminal(task.desired_state)
        and not terminal(task.status.state)
        and (is_attachment(task) or snapshot.service(task.service_id) is not None)
    )
    return [*(f"service {id}" for id in services), *(f"task {id}" for id in tasks)]


def _refuse_in_use(snapshot: Snapshot, network: Network) -> None:
    if network.ingress and any(
        port.publish_mode == "ingress"
        for service in snapshot.all(Service)
        for port in (service.spec.endpoint_spec.ports if service.spec.endpoint_spec else None) or ()
    ):
        raise validate.precondition("ingress network cannot be removed because there are services that depend on it")
    for user in _users(snapshot, network):
        raise validate.precondition(f"network {network.id} is in use by {user}")


def removal(snapshot: Snapshot, network: Network) -> list[Change]:
    """ApiError: somebody uses it."""
    _refuse_in_use(snapshot, network)
    changes: list[Change] = [Delete("network", network.id, network.version.index)]
    claim = snapshot.claim(f"network/{network.name}")
    if claim is not None and claim.owner == network.id:
        changes.append(Delete("claim", claim.id, claim.version.index))
    return changes


def _prune_one(snapshot: Snapshot, id: str) -> list[Change]:
    network = snapshot.network(id)
    return [] if network is None or _users(snapshot, network) else removal(snapshot, network)
