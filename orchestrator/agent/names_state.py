"""Rows and local containers as the desired state of this node's DNS server.

Pure. The ingress network carries traffic from outside only: nobody asks for names on it.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnsd.model import DnsState, PortName, ScopeSpec, ServiceName, TaskName, ZoneSpec
from orchestrator.agent.rows import LocalTask, Rows, bare, is_alive, local_tasks
from orchestrator.agent.runtime import Container
from orchestrator.dispatcher.messages import EndpointRow, NetworkRow
from orchestrator.model import PortConfig

_STACK_LABEL = "com.docker.stack.namespace"


def dns_state(rows: Rows, containers: Mapping[str, Container], *, node_id: str) -> DnsState:
    networks = [rows.networks[id] for id in sorted(rows.networks) if not rows.networks[id].ingress]
    ports = {service.id: service.ports for service in rows.sorted_services() if service.ports}
    stacks = {service.id: service.stack for service in rows.sorted_services() if service.stack}
    endpoints: dict[str, list[EndpointRow]] = {}
    for endpoint in rows.sorted_endpoints():
        endpoints.setdefault(endpoint.network_id, []).append(endpoint)
    return DnsState(
        zones=tuple(_zone(network, endpoints.get(network.id, []), rows, ports, node_id, containers) for network in networks),
        scopes=tuple(_scope(one, rows, stacks) for one in local_tasks(rows, containers)),
    )


def _zone(
    network: NetworkRow,
    endpoints: list[EndpointRow],
    rows: Rows,
    ports: Mapping[str, tuple[PortConfig, ...]],
    node_id: str,
    containers: Mapping[str, Container],
) -> ZoneSpec:
    services = [service for service in rows.sorted_services() if service.network_id == network.id]
    named = {service.id for service in services}
    tasks: dict[str, list[TaskName]] = {}
    containers_alone = []
    for endpoint in endpoints:
        # aliases belong to the service; only what has no service answers to them itself
        task = _task(endpoint, node_id, containers, () if endpoint.service_id in named else endpoint.aliases)
        if endpoint.service_id in named:
            tasks.setdefault(endpoint.service_id, []).append(task)
        else:
            containers_alone.append(task)
    return ZoneSpec(
        network=network.id,
        name=network.name,
        services=tuple(
            ServiceName(
                id=service.id,
                name=service.name,
                aliases=service.aliases,
                vips=tuple(bare(vip) for vip in service.vips),
                tasks=tuple(tasks.get(service.id, ())),
                ports=tuple(
                    PortName(name=port.name or str(port.target_port), protocol=port.protocol, port=port.target_port)
                    for port in ports.get(service.id, ())
                ),
            )
            for service in services
        ),
        containers=tuple(containers_alone),
        forward=network.dns.forward,
        upstreams=network.dns.upstreams,
        routes=network.dns.routes,
    )


def _task(endpoint: EndpointRow, node_id: str, containers: Mapping[str, Container], aliases: tuple[str, ...]) -> TaskName:
    """A row says neither serving nor draining before its task runs. What died on this node is neither, whatever the row says."""
    container = containers.get(endpoint.task_id)
    lost = endpoint.node_id == node_id and not is_alive(container)
    sick = endpoint.node_id == node_id and container is not None and container.health == "unhealthy"
    return TaskName(
        id=endpoint.task_id,
        name=endpoint.name,
        slot=endpoint.slot,
        addresses=tuple(bare(address) for address in endpoint.addresses),
        aliases=aliases,
        serving=endpoint.serving and not endpoint.draining and not lost and not sick,
        running=(endpoint.serving or endpoint.draining) and not lost,
        left_out=_left_out(endpoint, lost=lost, sick=sick),
    )


def _left_out(endpoint: EndpointRow, *, lost: bool, sick: bool) -> str:
    if lost or not (endpoint.serving or endpoint.draining):
        return "not running"
    if endpoint.draining:
        return "draining"
    return "unhealthy" if sick else ""


def _scope(one: LocalTask, rows: Rows, stacks: Mapping[str, str]) -> ScopeSpec:
    task, spec = one.task, one.task.spec.container_spec
    networks = [a.network.id for a in one.attachments if a.network.id in rows.networks and not rows.networks[a.network.id].ingress]
    labels = (spec.labels if spec else None) or {}
    dns = spec.dns_config if spec else None
    return ScopeSpec(
        id=task.id,
        netns=one.netns,
        networks=tuple(networks),
        stack=stacks.get(task.service_id) or labels.get(_STACK_LABEL, ""),
        upstreams=tuple((dns.nameservers if dns else None) or ()),
        forward=not networks or any(not rows.networks[id].internal for id in networks),
    )
