"""A new cluster: the objects its store starts with.

Pure: identity, keys and time come in. Source: Docker's defaults of `swarm init` (swarmkit's default cluster spec).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec

from orchestrator.model import (
    SECOND,
    Claim,
    Cluster,
    ClusterSpec,
    DispatcherConfig,
    JoinTokens,
    ManagerStatus,
    Network,
    Node,
    NodeCertificate,
    NodeDescription,
    NodeSpec,
    NodeStatus,
    OrchestrationConfig,
    RaftConfig,
    TLSInfo,
)
from orchestrator.store.base import Change, Put

# swarmkit: 90 days
NODE_CERTIFICATE_LIFE_NS = 90 * 24 * 3600 * SECOND
# Docker's /24 runs out of addresses at 250 tasks, its users' oldest complaint about overlays; a /20 holds 4,000
DEFAULT_SUBNET_SIZE = 20
DEFAULT_ADDRESS_POOL = ("10.0.0.0/8",)
DEFAULT_DATA_PATH_PORT = 4789


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """Made once for a cluster; PEM but secret_key and unlock_key (b"" without autolock). No `repr`: keys stay out of logs."""

    ca_cert: str
    ca_key: str
    etcd_ca_cert: str
    etcd_ca_key: str
    secret_key: bytes
    tokens: JoinTokens
    tls_info: TLSInfo
    unlock_key: bytes = b""


@dataclass(frozen=True, slots=True)
class FirstNode:
    """The node that says `swarm init`. addr: "ip:port" of its TLS server; data_addr: its VXLAN address."""

    id: str
    hostname: str
    addr: str
    data_addr: str
    availability: str = "active"
    certificate: NodeCertificate | None = None


def with_defaults(spec: ClusterSpec) -> ClusterSpec:
    """The spec as `docker swarm inspect` shows it: what the user left out is Docker's default."""
    orchestration, raft, dispatcher, ca = spec.orchestration, spec.raft, spec.dispatcher, spec.ca_config
    limit = orchestration.task_history_retention_limit
    return msgspec.structs.replace(
        spec,
        name=spec.name or "default",
        labels=spec.labels or {},
        orchestration=OrchestrationConfig(task_history_retention_limit=5 if limit is None else limit),
        raft=RaftConfig(
            snapshot_interval=raft.snapshot_interval or 10_000,
            keep_old_snapshots=raft.keep_old_snapshots or 0,
            log_entries_for_slow_followers=raft.log_entries_for_slow_followers or 500,
            election_tick=raft.election_tick or 10,
            heartbeat_tick=raft.heartbeat_tick or 1,
        ),
        dispatcher=DispatcherConfig(heartbeat_period=dispatcher.heartbeat_period or 5 * SECOND),
        ca_config=msgspec.structs.replace(ca, node_cert_expiry=ca.node_cert_expiry or NODE_CERTIFICATE_LIFE_NS),
    )


def first_objects(
    cluster_id: str,
    ingress_id: str,
    spec: ClusterSpec,
    keys: Keys,
    node: FirstNode,
    now: datetime,
    *,
    address_pool: tuple[str, ...] = (),
    subnet_size: int = 0,
    data_path_port: int = 0,
) -> list[Change]:
    """Cluster, its first node and the ingress network, as one transaction. Addresses are the allocator's business."""
    cluster = Cluster(
        id=cluster_id,
        created_at=now,
        updated_at=now,
        spec=with_defaults(spec),
        default_addr_pool=list(address_pool or DEFAULT_ADDRESS_POOL),
        subnet_size=subnet_size or DEFAULT_SUBNET_SIZE,
        data_path_port=data_path_port or DEFAULT_DATA_PATH_PORT,
        tls_info=keys.tls_info,
        join_tokens=keys.tokens,
        mesh_ca_cert=keys.ca_cert,
        mesh_ca_key=keys.ca_key,
        mesh_etcd_ca_cert=keys.etcd_ca_cert,
        mesh_etcd_ca_key=keys.etcd_ca_key,
        mesh_secret_key=keys.secret_key,
        mesh_unlock_key=keys.unlock_key,
    )
    manager = Node(
        id=node.id,
        created_at=now,
        updated_at=now,
        spec=NodeSpec(role="manager", availability=node.availability or "active"),
        description=NodeDescription(hostname=node.hostname, mesh_api_addr=node.addr, mesh_data_addr=node.data_addr),
        status=NodeStatus(state="unknown", addr=node.addr.rpartition(":")[0].strip("[]")),
        manager_status=ManagerStatus(leader=True, reachability="reachable", addr=node.addr),
        mesh_certificate=node.certificate,
    )
    ingress = Network(id=ingress_id, created_at=now, updated_at=now, name="ingress", ingress=True)
    return [Put(cluster), Put(manager), Put(ingress), Put(Claim(id="network/ingress", owner=ingress_id))]
