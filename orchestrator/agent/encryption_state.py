"""Rows and own keys as what the data plane is to encrypt with.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from mesh.model import Encryption, EncryptionPeer
from orchestrator.agent.rows import Rows
from orchestrator.encryption import device, epochs, sending_epoch, tunnel_address


def step_of(rows: Rows) -> int | None:
    """Of the change of keys, as the managers say it; None: they have said nothing yet."""
    return max((network.keys_step for network in rows.networks.values()), default=None)


def encryption(rows: Rows, private: Mapping[int, str], *, cluster_id: str, node_id: str) -> Encryption | None:
    """None where no network of this node is encrypted. private: this node's keys by epoch."""
    encrypted = [network for network in rows.networks.values() if network.keys is not None and node_id in network.lb_addresses]
    step = step_of(rows)
    if not encrypted or step is None or not all(epoch in private for epoch in epochs(step)):
        return None
    published: dict[str, Mapping[str, str]] = {}
    for network in encrypted:
        published.update(network.keys or {})
    peers = tuple(
        EncryptionPeer(tunnel_address(cluster_id, other), rows.nodes[other].data_addr, _by_device(keys, step))
        for other, keys in sorted(published.items())
        if other != node_id and other in rows.nodes
    )
    active: Literal[0, 1] = 1 if device(sending_epoch(step)) else 0
    own = {str(epoch): private[epoch] for epoch in epochs(step)}
    return Encryption(tunnel_address(cluster_id, node_id), _by_device(own, step), active, peers)


def _by_device(keys: Mapping[str, str], step: int) -> tuple[str, str]:
    found = {device(epoch): keys.get(str(epoch), "") for epoch in epochs(step)}
    return found[0], found[1]
