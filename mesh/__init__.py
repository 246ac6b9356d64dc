"""The data plane of one node as a library: desired state in, kernel tables out.

Edge: importing is free of side effects, `NodeMesh.apply` is not.
"""

from __future__ import annotations

from mesh.drift import Difference
from mesh.errors import ConfigError, KernelError, KernelUnsupported, MeshError, NamespaceGone
from mesh.linux.check import check_kernel, detect_balancer, unable_to_encrypt
from mesh.model import (
    Backend,
    Balancer,
    Encryption,
    EncryptionPeer,
    HostPort,
    IpvsScheduler,
    LocalEndpoint,
    Network,
    NodeState,
    Protocol,
    PublishedPort,
    RemoteEndpoint,
    Sandbox,
    VirtualService,
)
from mesh.node import Comparison, NodeMesh, Report, Totals

__all__ = [
    "Backend",
    "Balancer",
    "Comparison",
    "ConfigError",
    "Difference",
    "Encryption",
    "EncryptionPeer",
    "HostPort",
    "IpvsScheduler",
    "KernelError",
    "KernelUnsupported",
    "LocalEndpoint",
    "MeshError",
    "NamespaceGone",
    "Network",
    "NodeMesh",
    "NodeState",
    "Protocol",
    "PublishedPort",
    "RemoteEndpoint",
    "Report",
    "Sandbox",
    "Totals",
    "VirtualService",
    "check_kernel",
    "detect_balancer",
    "unable_to_encrypt",
]
