"""Rows and local containers as the desired state of this node's data plane.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from mesh.model import (
    Backend,
    Balancer,
    HostPort,
    LocalEndpoint,
    Network,
    NodeState,
    Protocol,
    PublishedPort,
    RemoteEndpoint,
    Sandbox,
    VirtualService,
)
from orchestrator.agent.encryption_state import encryption
from orchestrator.agent.rows import LocalTask, Rows, bare, local_tasks, weight
from orchestrator.agent.runtime import Container
from orchestrator.dispatcher.messages import EndpointRow, NetworkRow, ServiceRow
from orchestrator.encryption import tunnel_address

# for a node on no network yet: IANA's
DEFAULT_VXLAN_PORT = 4789
R = TypeVar("R", EndpointRow, ServiceRow)
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}


def node_state(
    rows: Rows,
    containers: Mapping[str, Container],
    *,
    node_id: str,
    data_addr: str,
    balancer: Balancer = "nftables",
    cluster_id: str = "",
    private_keys: Mapping[int, str] | None = None,
) -> NodeState:
    """Networks on which this node has no address yet are left out: there is nothing of ours to attach. private_keys: by epoch, for those
    that are encrypted; without them these can't be made, and the data plane says so."""
    local = local_tasks(rows, containers)
    endpoints = _by_network(rows.sorted_endpoints())
    services = _by_network(rows.sorted_services())
    backends = {network_id: _backends(network_endpoints, node_id, containers) for network_id, network_endpoints in endpoints.items()}
    here = [rows.networks[id] for id in sorted(rows.networks) if rows.networks[id].lb_addresses.get(node_id)]
    ingress = next((network.id for network in here if network.ingress), "")
    underlays = {node.id: node.data_addr for node in rows.nodes.values()}
    tunnels = {id: tunnel_address(cluster_id, id) for id in rows.nodes} if any(network.keys is not None for network in here) else {}
    return NodeState(
        underlay=data_addr,
        networks=tuple(
            Network(
                id=network.id,
                vni=network.vni,
                subnets=network.subnets,
                lb_address=bare(network.lb_addresses[node_id]),
                mtu=network.mtu,
                ingress=network.ingress,
                local=_local_endpoints(network.id, local),
                remote=_remote_endpoints(network, endpoints.get(network.id, ()), underlays if network.keys is None else tunnels, node_id),
                encrypted=network.keys is not None,
                services=tuple(
                    VirtualService(vip=bare(vip), backends=backends.get(network.id, {}).get(service.id, ()))
                    for service in services.get(network.id, ())
                    for vip in service.vips
                ),
            )
            for network in here
        ),
        sandboxes=tuple(Sandbox(id=one.task.id, netns=one.netns, gateway=_has_way_out(one, rows)) for one in local),
        published=_published(services.get(ingress, ()), backends.get(ingress, {})),
        host_ports=_host_ports(local),
        balancer=balancer,
        encryption=encryption(rows, private_keys or {}, cluster_id=cluster_id, node_id=node_id),
        # one port a cluster
        vxlan_port=here[0].vxlan_port if here else DEFAULT_VXLAN_PORT,
    )


def draining_addresses(rows: Rows) -> dict[tuple[str, str], str]:
    """(network id, address) -> task id, of every endpoint whose open connections the managers want to know."""
    return {
        (endpoint.network_id, bare(address)): endpoint.task_id
        for endpoint in rows.sorted_endpoints()
        if endpoint.draining
        for address in endpoint.addresses
    }


def _by_network(entries: Iterable[R]) -> dict[str, list[R]]:
    grouped: dict[str, list[R]] = {}
    for entry in entries:
        grouped.setdefault(entry.network_id, []).append(entry)
    return grouped


def _backends(endpoints: Iterable[EndpointRow], node_id: str, containers: Mapping[str, Container]) -> dict[str, tuple[Backend, ...]]:
    """Service id -> its backends on this network."""
    found: dict[str, list[Backend]] = {}
    for endpoint in endpoints:
        share = weight(endpoint, node_id, containers)
        if share is not None:
            found.setdefault(endpoint.service_id, []).extend(Backend(bare(address), share) for address in endpoint.addresses)
    return {service_id: tuple(backends) for service_id, backends in found.items()}


def _local_endpoints(network_id: str, local: Iterable[LocalTask]) -> tuple[LocalEndpoint, ...]:
    """The first address of an attachment has the task's id; a second one (the other family) an id of its own."""
    return tuple(
        LocalEndpoint(id=one.task.id if number == 0 else f"{one.task.id}-{number}", address=bare(address), netns=one.netns)
        for one in local
        for attachment in one.attachments
        if attachment.network.id == network_id
        for number, address in enumerate(attachment.addresses or ())
    )


def _remote_endpoints(
    network: NetworkRow, endpoints: Iterable[EndpointRow], vteps: Mapping[str, str], node_id: str
) -> tuple[RemoteEndpoint, ...]:
    """Tasks and LB addresses of other nodes. A node that hasn't said where its tunnels end can't be reached yet. vteps: by node."""
    behind = [(bare(address), e.node_id, False) for e in endpoints if e.node_id != node_id for address in e.addresses]
    behind += [(bare(address), other, True) for other, address in sorted(network.lb_addresses.items()) if other != node_id]
    return tuple(RemoteEndpoint(a, vteps[other], balancer) for a, other, balancer in behind if other in vteps)


def _published(services: Iterable[ServiceRow], backends: Mapping[str, tuple[Backend, ...]]) -> tuple[PublishedPort, ...]:
    return tuple(
        PublishedPort(
            protocol=_PROTOCOLS[port.protocol],
            published=port.published_port,
            target=port.target_port,
            backends=backends.get(service.id, ()),
        )
        for service in services
        for port in service.ports
        if port.published_port and port.protocol in _PROTOCOLS
    )


def _host_ports(local: Iterable[LocalTask]) -> tuple[HostPort, ...]:
    return tuple(
        HostPort(protocol=_PROTOCOLS[port.protocol], published=port.published_port, target=port.target_port, sandbox=one.task.id)
        for one in local
        for port in one.task.mesh_endpoint_ports or ()
        if port.publish_mode == "host" and port.published_port and port.protocol in _PROTOCOLS
    )


def _has_way_out(one: LocalTask, rows: Rows) -> bool:
    """A task that joined internal networks only has none; one without networks has. A container on a network of its Engine has the
    Engine's."""
    if one.own_network:
        return False
    joined = [rows.networks[a.network.id] for a in one.attachments if a.network.id in rows.networks]
    return not joined or any(not network.internal for network in joined)
