"""What each node may know: the store's objects as the rows of one node's assignment.

Pure: no I/O; the function that opens secrets is an argument. A node's assignment is made of its own rows (tasks, secrets, configs) and
of the scopes of the networks it takes part in (network, member nodes, endpoints, services): a scope is the same for all its members,
so it is built and encoded once for all of them. What a node may not know never enters its rows: that is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from orchestrator.control.slots import surplus
from orchestrator.dispatcher.file_rows import Open, file_rows, registry_row
from orchestrator.dispatcher.messages import EndpointRow, NetworkRow, NodeRow, Row, ServiceRow, TaskRow
from orchestrator.dns_options import DnsOptions, dns_options
from orchestrator.errors import ConfigError, TaskError
from orchestrator.managers.genesis import DEFAULT_DATA_PATH_PORT
from orchestrator.model import (
    STATE_ORDER,
    Cluster,
    Network,
    NetworkAttachmentConfig,
    Node,
    Object,
    Secret,
    Service,
    Task,
    TaskState,
    is_attachment,
    terminal,
)
from orchestrator.store.base import Event
from orchestrator.store.snapshot import Snapshot
from orchestrator.templates import is_template, render, task_name

Decrypt = Callable[[Secret], bytes]

_ASSIGNED = STATE_ORDER[TaskState.ASSIGNED]
_STACK_LABEL = "com.docker.stack.namespace"
_MTU_OPTION = "com.docker.network.driver.mtu"

_encoder = msgspec.msgpack.Encoder()


def encode(row: Row) -> bytes:
    return _encoder.encode(row)


def diff(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """(rows to put, keys removed): `old` with these applied is `new`. Sorted by key."""
    put = {key: new[key] for key in sorted(new) if old.get(key) != new[key]}
    return put, tuple(sorted(old.keys() - new.keys()))


# ---- from nothing --------------------------------------------------------------------------------------------------------------


def assignment(snapshot: Snapshot, node_id: str, decrypt: Decrypt) -> dict[str, Row]:
    """Everything `node_id` may know. A node that is not in the store may know nothing."""
    node = snapshot.node(node_id)
    if node is None:
        return {}
    rows = own_rows(snapshot, node_id, decrypt)
    for attachment in node.mesh_attachments or ():
        rows.update(network_scope_rows(snapshot, attachment.network_id))
    return rows


def own_rows(snapshot: Snapshot, node_id: str, open_secret: Open) -> dict[str, Row]:
    """The node's tasks from ASSIGNED on, and the secrets and configs that those not yet ended name."""
    rows: dict[str, Row] = {}
    node = snapshot.node(node_id)
    for task in snapshot.tasks_of_node(node_id):
        if STATE_ORDER[task.status.state] < _ASSIGNED:
            continue
        rendered = _rendered(snapshot, task)
        _add(rows, TaskRow(task=rendered))
        if node is not None and not terminal(task.status.state):
            for row in file_rows(snapshot, rendered, node, open_secret):
                _add(rows, row)
            if registry := registry_row(snapshot, task, open_secret):
                _add(rows, registry)
    return rows


def network_scope_rows(snapshot: Snapshot, network_id: str) -> dict[str, Row]:
    """What every node of the network may know of it; {} before it is allocated."""
    network = snapshot.network(network_id)
    if network is None or not network.mesh_vni:
        return {}
    rows: dict[str, Row] = {}
    members = [(node, address) for node in snapshot.all(Node) if (address := lb_address(node, network_id))]
    _add(rows, _network_row(network, members, snapshot.cluster))
    for node, _ in members:
        if row := node_row(node):
            _add(rows, row)
    for task in snapshot.tasks_of_network(network_id):
        if endpoint := endpoint_row(snapshot, task, network):
            _add(rows, endpoint)
    for service in snapshot.all(Service):
        if service_on_network := service_row(service, network):
            _add(rows, service_on_network)
    return rows


def affected_networks(snapshot: Snapshot, events: Iterable[Event]) -> set[str]:
    """The networks whose scope the events may have changed; `snapshot` is the one after them."""
    ingress = [network.id for network in snapshot.all(Network) if network.ingress]
    affected: set[str] = set()
    for event in events:
        if event.kind == "network":
            affected.add(event.id)
        elif event.kind == "cluster" and _keys_step(event.old) != _keys_step(event.new):
            affected.update(network.id for network in snapshot.all(Network))
        elif _shown(event.old) != _shown(event.new):
            for obj in (event.old, event.new):
                affected.update(_networks_of(obj, ingress))
    return affected


def _shown(obj: Object | None) -> object:
    """All of an object that scopes are made from: equal before and after means that no scope changed."""
    match obj:
        case Task():
            state = (obj.status.state, obj.desired_state, surplus(obj), runs(obj))
            return (state, obj.name, obj.node_id, obj.networks_attachments, obj.spec.networks)
        case Service():
            spec = obj.spec
            return (spec.name, spec.labels, spec.networks, spec.task_template.networks, spec.endpoint_spec, obj.endpoint)
        case Node():
            description = obj.description
            published = description.mesh_encryption.keys if description.mesh_encryption else None
            return (
                *(obj.mesh_attachments, description.hostname, description.mesh_data_addr, published),
                *(obj.status.addr, obj.status.state == "down"),
            )
    return None


def _keys_step(obj: Object | None) -> int:
    return obj.mesh_keys.step if isinstance(obj, Cluster) else 0


def _networks_of(obj: Object | None, ingress: list[str]) -> Iterable[str]:
    match obj:
        case Task():
            return [attachment.network.id for attachment in obj.networks_attachments or ()]
        case Service():
            # in the old place too: the aliases of tasks come from there
            configs = [*service_networks(obj), *(obj.spec.networks or ())]
            vips = [vip.network_id for vip in obj.endpoint.virtual_ips or ()]
            return [*vips, *(config.target for config in configs), *(ingress if obj.endpoint.ports else ())]
        case Node():
            return [attachment.network_id for attachment in obj.mesh_attachments or ()]
    return ()


# ---- one row -------------------------------------------------------------------------------------------------------------------


def node_row(node: Node) -> NodeRow | None:
    """None until the node has said where its tunnels end."""
    data_addr = node.description.mesh_data_addr or node.status.addr
    return NodeRow(id=node.id, hostname=node.description.hostname, data_addr=data_addr) if data_addr else None


def lb_address(node: Node, network_id: str) -> str:
    """The node's own address on the network without prefix length, or ""."""
    for attachment in node.mesh_attachments or ():
        if attachment.network_id == network_id:
            return _bare(attachment.addr)
    return ""


def endpoint_row(snapshot: Snapshot, task: Task, network: Network) -> EndpointRow | None:
    """None before the task has a node and after it has ended."""
    state = task.status.state
    node = snapshot.node(task.node_id) if task.node_id else None
    if node is None or STATE_ORDER[state] < _ASSIGNED or terminal(state):
        return None
    attachment = next((a for a in task.networks_attachments or () if a.network.id == network.id), None)
    if attachment is None or not attachment.addresses:
        return None
    running = runs(task)
    serving = running and (task.desired_state is TaskState.RUNNING or surplus(task)) and node.status.state != "down"
    return EndpointRow(
        task_id=task.id,
        network_id=network.id,
        service_id=task.service_id,
        node_id=task.node_id,
        name=task_name(task),
        slot=task.slot,
        addresses=tuple(_bare(address) for address in attachment.addresses),
        aliases=_task_aliases(snapshot, task, network.id),
        serving=serving,
        # also on a node that is lost: if only the managers have lost it, what is connected stays connected
        draining=running and not serving,
    )


def runs(task: Task) -> bool:
    """A container that was started by hand may be stopped and started again."""
    container = task.status.container_status
    return task.status.state is TaskState.RUNNING and (not is_attachment(task) or (container is not None and container.pid != 0))


def service_row(service: Service, network: Network) -> ServiceRow | None:
    """None if the service is not on the network, or is to have a VIP there that is not allocated yet."""
    configs = [config for config in service_networks(service) if config.target == network.id]
    vips = tuple(_bare(vip.addr) for vip in service.endpoint.virtual_ips or () if vip.network_id == network.id)
    ports = tuple(port for port in service.endpoint.ports or () if port.publish_mode == "ingress" and port.published_port)
    if not configs and not vips and not (network.ingress and ports):
        return None
    if not vips and (service.spec.endpoint_spec is None or service.spec.endpoint_spec.mode != "dnsrr"):
        return None
    return ServiceRow(
        id=service.id,
        network_id=network.id,
        name=service.spec.name,
        aliases=tuple(sorted({alias for config in configs for alias in config.aliases or ()})),
        stack=(service.spec.labels or {}).get(_STACK_LABEL, ""),
        vips=vips,
        ports=ports if network.ingress else (),
    )


def service_networks(service: Service) -> list[NetworkAttachmentConfig]:
    """The networks the service asks for; those of the task template win over the old place, `spec.networks`, as in Swarm."""
    return list(service.spec.task_template.networks or service.spec.networks or ())


def _network_row(network: Network, members: list[tuple[Node, str]], cluster: Cluster | None) -> NetworkRow:
    mtu = (network.options or {}).get(_MTU_OPTION, "")
    return NetworkRow(
        id=network.id,
        name=network.name,
        vni=network.mesh_vni,
        subnets=tuple(config.subnet for config in network.ipam.config or ()),
        ingress=network.ingress,
        internal=network.internal,
        mtu=int(mtu) if mtu.isdigit() else None,
        vxlan_port=cluster.data_path_port if cluster is not None and cluster.data_path_port else DEFAULT_DATA_PATH_PORT,
        lb_addresses={node.id: address for node, address in sorted(members, key=lambda member: member[0].id)},
        dns=_dns_options(network),
        keys_step=cluster.mesh_keys.step if cluster is not None else 0,
        keys={node.id: own.keys for node, _ in members if (own := node.description.mesh_encryption)} if network.mesh_encrypted else None,
    )


def _dns_options(network: Network) -> DnsOptions:
    """The API has refused what makes no sense; should it be there all the same, nobody outside is asked."""
    try:
        return dns_options(network.options or {})
    except ConfigError:
        return DnsOptions(forward=False)


def _task_aliases(snapshot: Snapshot, task: Task, network_id: str) -> tuple[str, ...]:
    configs = task.spec.networks
    if configs is None:
        service = snapshot.service(task.service_id)
        configs = service.spec.networks if service else None
    return tuple(sorted({alias for config in configs or () if config.target == network_id for alias in config.aliases or ()}))


def _rendered(snapshot: Snapshot, task: Task) -> Task:
    """The task with its templates expanded. The scheduler has refused templates that can't be; one that still can't stays as it is."""
    node = snapshot.node(task.node_id)
    if node is None or not is_template(task.spec):
        return task
    try:
        spec = render(task.spec, task, snapshot.service(task.service_id), node)
    except TaskError:
        return task
    return msgspec.structs.replace(task, spec=spec)


def _bare(cidr: str) -> str:
    return cidr.partition("/")[0]


def _add(rows: dict[str, Row], row: Row) -> None:
    rows[row.key] = row
