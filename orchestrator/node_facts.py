"""What this node says of itself in `docker info`, beyond what its Engine says.

Pure.
"""

from __future__ import annotations

from mesh.model import Balancer
from orchestrator.api.backend import NodeFacts
from orchestrator.daemon_config import DaemonConfig
from orchestrator.local_state import LocalState
from orchestrator.model import Node
from orchestrator.store.snapshot import Snapshot
from orchestrator.version import VERSION


def facts_of(
    config: DaemonConfig,
    balancer: Balancer,
    local: LocalState | None,
    *,
    forming: str,
    snapshot: Snapshot | None,
    has_majority: bool,
    error: str,
) -> NodeFacts:
    """forming: why it is in no cluster yet, of a node that comes into one by itself. snapshot: None unless a manager."""
    warnings = []
    if balancer == "nftables":
        warnings.append("balancer is nftables because this kernel has no ip_vs: servers see the node's address, not the client's")
    # dockerd's words
    warnings += [
        f"API is accessible on {host} without encryption: access to it is equivalent to root access on every node of the cluster"
        for host in config.plain_tcp
    ]
    if forming:
        warnings.append(f"this node comes into a cluster by itself: {forming}")
    if not has_majority:
        warnings.append("no majority of the managers can be reached: what is shown is as old as that, and nothing can be changed")
    known: list[tuple[str, str]] = [("", addr) for addr in local.managers] if local else []
    if snapshot is not None:
        known = [(node.id, node.manager_status.addr) for node in snapshot.all(Node) if node.manager_status]
    return NodeFacts(
        node_addr=local.advertise_addr if local else "",
        data_path_addr=local.data_addr if local else "",
        managers=sorted(known),
        balancer=balancer,
        meshd_version=VERSION,
        error=error,
        warnings=warnings,
    )
