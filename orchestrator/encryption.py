"""Encrypted networks: how they are asked for, nodes' tunnel addresses, and the steps in which all nodes change their keys together.

Pure. A node has a key for each epoch and uses two at a time, one for each of its two WireGuard devices (`mesh.encryption`). A step is
taken by all before the next one:

    3e      packets go by the keys of epoch e; each node makes its key for e + 1, in place of that for e - 1, and publishes it
    3e + 1  all keys for e + 1 are published: each node makes them known to its kernel
    3e + 2  all kernels know them: packets go by the keys of epoch e + 1
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from ipaddress import IPv6Address

from orchestrator.errors import ConfigError

OPTION = "encrypted"
STEPS = 3
_TRUE, _FALSE = ("", "1", "true"), ("0", "false")


def wants_encryption(options: Mapping[str, str] | None) -> bool:
    """Of a network's options: `--opt encrypted` has no value. ConfigError: it has one that says neither yes nor no."""
    value = (options or {}).get(OPTION)
    if value is None:
        return False
    if value.lower() not in _TRUE + _FALSE:
        raise ConfigError(f"invalid value {value!r} of the option {OPTION}: leave it out, or give true or false")
    return value.lower() in _TRUE


def epochs(step: int) -> tuple[int, int]:
    """Those a node needs keys for, the older one first."""
    return step // STEPS, step // STEPS + 1


def sending_epoch(step: int) -> int:
    return (step + 1) // STEPS


def device(epoch: int) -> int:
    """0 or 1: which of the two devices has the keys of this epoch."""
    return epoch % 2


def tunnel_address(cluster_id: str, node_id: str) -> str:
    """RFC 4193: 40 bits of the cluster's, 64 of the node's; nobody has to hand it out."""
    prefix = b"\xfd" + hashlib.sha256(f"meshd tunnels {cluster_id}".encode()).digest()[:5]
    return str(IPv6Address(prefix + b"\0\0" + hashlib.sha256(f"{cluster_id} {node_id}".encode()).digest()[:8]))
