"""Gives networks, services, tasks and nodes what must be unique: VNI and subnet, VIPs, published ports, addresses.

Pure: no I/O. A control loop; everything is committed before anybody can see or use it. Source: SwarmKit manager/allocator for the
outcome (ingress VIP, dynamic ports 30000-32767, tasks NEW -> PENDING); in place of its bitmaps in memory, what is in use is read from
the snapshot each time something has to be given, so a new leader needs no warm-up and nothing can leak.

What can't be had now is told in the task's status and tried again in every pass: an address becomes free by a change of the store,
and each change starts a pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from orchestrator.control.addresses import NetworkPool, Pools
from orchestrator.control.attention import attention
from orchestrator.control.context import Context
from orchestrator.control.endpoints import NO_INGRESS, ingress_of, networks_with_vip, overlay, requested
from orchestrator.control.ports import PortClaims, publishes_ingress
from orchestrator.control.slots import wanted
from orchestrator.control.steps import Decision, Step, earliest
from orchestrator.control.subnets import allocated, is_allocated
from orchestrator.errors import ConfigError
from orchestrator.model import (
    STATE_ORDER,
    Endpoint,
    EndpointSpec,
    Network,
    NetworkAttachment,
    NetworkAttachmentConfig,
    NetworkReference,
    Node,
    NodeAttachment,
    Service,
    Task,
    TaskState,
    VirtualIP,
    terminal,
)
from orchestrator.store.base import Change, Delete, Put
from orchestrator.store.snapshot import Snapshot

# A node keeps its address for a while after its last task of a network ended: a restarted task finds the network still set up
LINGER = timedelta(seconds=30)
_ASSIGNED = STATE_ORDER[TaskState.ASSIGNED]
_RUNNING = STATE_ORDER[TaskState.RUNNING]


def allocate(snapshot: Snapshot, ctx: Context) -> Decision:
    """Networks first, then the nodes' own addresses, services, tasks: each needs what the one before it was given."""
    return _Pass(snapshot, ctx).run()


class _Pass:
    """One pass: what was decided so far, on top of the snapshot."""

    def __init__(self, snapshot: Snapshot, ctx: Context) -> None:
        self._snapshot = snapshot
        self._now = ctx.now
        self._steps: list[Step] = []
        self._wakeup: datetime | None = None
        self._networks = {network.id: network for network in snapshot.all(Network)}
        # those that this pass changes, as they will be
        self._services: dict[str, Service] = {}
        # why an object has not got what it needs; the tasks that wait for it say so
        self._refused_networks: dict[str, str] = {}
        self._refused_services: dict[str, str] = {}
        self._ports = PortClaims(snapshot)
        self._pools = Pools(snapshot)
        self._attention = attention(snapshot)
        self._ingress: Network | None = None

    def run(self) -> Decision:
        self._allocate_networks()
        self._ingress = ingress_of(self._networks.values())
        new_tasks, used = self._read_tasks()
        self._allocate_nodes(used)
        for service in sorted(self._attention.unsettled(), key=lambda service: (service.created_at, service.id)):
            self._allocate_service(service)
        for task in sorted(new_tasks, key=lambda task: (task.created_at, task.slot, task.id)):
            self._allocate_task(task)
        for task in sorted(self._snapshot.tasks_attaching(), key=lambda task: (task.created_at, task.id)):
            self._follow_attachment(task)
        orphans = self._ports.orphans(self._attention.port_claims, self._service)
        self._steps += [(Delete("claim", claim.id, claim.version.index),) for claim in orphans]
        return Decision(self._steps, self._wakeup)

    # ---- networks --------------------------------------------------------------------------------------------------------------

    def _allocate_networks(self) -> None:
        for network in sorted(self._networks.values(), key=lambda network: (network.created_at, network.id)):
            if network.driver not in ("overlay", "") or is_allocated(network):
                continue
            try:
                new = allocated(network, self._snapshot.cluster, self._networks.values(), self._snapshot.all(Node))
            except ConfigError as error:
                self._refused_networks[network.id] = str(error)
                continue
            self._put_network(msgspec.structs.replace(new, updated_at=self._now))

    def _put_network(self, network: Network) -> None:
        self._networks[network.id] = network
        self._steps.append((Put(network),))

    # ---- nodes -----------------------------------------------------------------------------------------------------------------

    def _read_tasks(self) -> tuple[list[Task], dict[str, set[str]]]:
        """(tasks to allocate, node id -> networks its tasks need), in one walk over all tasks."""
        new: list[Task] = []
        used: dict[str, set[str]] = defaultdict(set)
        for task in self._snapshot.all(Task):
            state = task.status.state
            if state is TaskState.NEW:
                if STATE_ORDER[task.desired_state] <= _RUNNING:
                    new.append(task)
            elif task.node_id and task.networks_attachments and STATE_ORDER[state] >= _ASSIGNED and self._needs_networks(task):
                used[task.node_id].update(attachment.network.id for attachment in task.networks_attachments)
        return new, used

    def _needs_networks(self, task: Task) -> bool:
        if not terminal(task.status.state):
            return True
        ended = task.status.timestamp
        # the agent's clock said when it ended: one that is ahead of ours must not keep the address for ever
        if not self._now - LINGER < ended <= self._now:
            return False
        self._wakeup = earliest(self._wakeup, ended + LINGER)
        return True

    def _allocate_nodes(self, used: dict[str, set[str]]) -> None:
        ingress = self._ingress
        for node in sorted(self._snapshot.all(Node), key=lambda node: node.id):
            wanted = used.get(node.id, set()) | ({ingress.id} if ingress else set())
            attachments = [attachment for attachment in node.mesh_attachments or () if attachment.network_id in wanted]
            for network_id in sorted(wanted - {attachment.network_id for attachment in attachments}):
                network = self._networks.get(network_id)
                if network and is_allocated(network) and (address := self._pools.of(network).take_for_node()):
                    attachments.append(NodeAttachment(network_id=network_id, addr=address))
            if attachments != (node.mesh_attachments or []):
                self._steps.append((Put(msgspec.structs.replace(node, mesh_attachments=attachments, updated_at=self._now)),))

    # ---- services --------------------------------------------------------------------------------------------------------------

    def _allocate_service(self, service: Service) -> None:
        """Endpoint, VIPs and claims as the spec wants them: all in one step, or none with the reason kept for its tasks."""
        spec = service.spec.endpoint_spec or EndpointSpec()
        try:
            ports, claims = self._ports.allocate(service)
            vips = self._vips(service)
        except ConfigError as error:
            self._refused_services[service.id] = str(error)
            return
        endpoint = Endpoint(spec=spec, ports=ports or None, virtual_ips=vips or None)
        changes: list[Change] = [Put(claim) for claim in claims]
        if endpoint != service.endpoint:
            new = msgspec.structs.replace(service, endpoint=endpoint, updated_at=self._now)
            self._services[service.id] = new
            changes.append(Put(new))
        if changes:
            self._steps.append(tuple(changes))
        self._ports.accept(claims)

    def _vips(self, service: Service) -> list[VirtualIP]:
        """Those it has and still needs, then new ones."""
        wanted = networks_with_vip(service.spec, self._network, self._ingress)
        had = service.endpoint.virtual_ips or []
        kept = [vip for vip in had if any(vip.network_id == network.id for network in wanted)]
        pools = [self._pools.of(network) for network in wanted if not any(vip.network_id == network.id for vip in kept)]
        # ask all before taking from one: a service that has to wait must not cost others their addresses
        for pool in pools:
            if not pool.has_room_for_service():
                raise ConfigError(pool.exhausted())
        return kept + [VirtualIP(network_id=pool.network.id, addr=address) for pool in pools for address in pool.take_for_service()]

    def _network(self, target: str) -> Network | None:
        """`overlay`, with the reason why it is not allocated."""
        if target in self._refused_networks:
            raise ConfigError(self._refused_networks[target])
        return overlay(self._networks.get, target)

    def _service(self, id: str) -> Service | None:
        return self._services.get(id) or self._snapshot.service(id)

    # ---- tasks -----------------------------------------------------------------------------------------------------------------

    def _allocate_task(self, task: Task) -> None:
        service = self._service(task.service_id)
        if task.service_id and service is None:
            # removed meanwhile: the task follows
            return
        try:
            if service is not None and service.id in self._refused_services:
                raise ConfigError(self._refused_services[service.id])
            attachments = self._attachments(task, service)
        except ConfigError as error:
            sentence = str(error)
            if task.status.err != sentence:
                self._put_task(task, msgspec.structs.replace(task.status, err=sentence, timestamp=self._now))
            return
        status = msgspec.structs.replace(
            task.status, state=TaskState.PENDING, message="pending task scheduling", err="", timestamp=self._now
        )
        self._put_task(
            task,
            status,
            networks_attachments=attachments or None,
            mesh_endpoint_ports=service.endpoint.ports if service else task.mesh_endpoint_ports,
        )

    def _follow_attachment(self, task: Task) -> None:
        """Networks that a container was connected to or disconnected from since; what can't be had is told in its status."""
        if task.status.state is TaskState.NEW or terminal(task.status.state) or not wanted(task):
            return
        had = {attachment.network.id: attachment for attachment in task.networks_attachments or ()}
        asked = list(task.spec.networks or ())
        error = ""
        try:
            joined = {attachment.network.id: attachment for attachment in self._join([c for c in asked if c.target not in had])}
        except ConfigError as reason:
            joined, error = {}, str(reason)
        attachments = [found for config in asked if (found := had.get(config.target) or joined.get(config.target))]
        if attachments != (task.networks_attachments or []) or error != task.status.err:
            self._put_task(task, msgspec.structs.replace(task.status, err=error), networks_attachments=attachments or None)

    def _put_task(self, task: Task, status: object, **fields: object) -> None:
        self._steps.append((Put(msgspec.structs.replace(task, status=status, updated_at=self._now, **fields)),))

    def _attachments(self, task: Task, service: Service | None) -> list[NetworkAttachment]:
        """An address of every network the task takes part in: all of them or ConfigError (then none is taken)."""
        ingress: list[NetworkAttachmentConfig] = []
        if service is not None and publishes_ingress(service.spec):
            if self._ingress is None:
                raise ConfigError(NO_INGRESS)
            ingress = [NetworkAttachmentConfig(target=self._ingress.id)]
        return self._join([*ingress, *requested(task.spec.networks, service.spec.networks if service else None)])

    def _join(self, configs: Iterable[NetworkAttachmentConfig]) -> list[NetworkAttachment]:
        """The same for these networks, without those of the node itself."""
        wanted: dict[str, tuple[NetworkPool, list[str]]] = {}
        for config in configs:
            network = self._network(config.target)
            if network is not None:
                wanted.setdefault(network.id, (self._pools.of(network), config.mesh_addresses or []))
        for pool, chosen in wanted.values():
            if not pool.has_room_for_task():
                raise ConfigError(pool.exhausted())
            pool.check(chosen)
        return [
            NetworkAttachment(network=_reference(pool.network), addresses=pool.take_for_task(chosen)) for pool, chosen in wanted.values()
        ]


def _reference(network: Network) -> NetworkReference:
    return NetworkReference(id=network.id, mesh_encrypted=network.mesh_encrypted)
