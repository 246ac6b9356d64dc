"""Takes all nodes with encrypted networks through the steps of a change of keys (`orchestrator.encryption`): twice a day, or when asked.

Pure: no I/O. A control loop. Nothing is replaced that somebody may still use: a step is taken when every node that is there shows the one
before. A node that doesn't answer holds the change up until it counts as down; then it goes on without it, and the node gets the new keys
when it comes back.
"""

from __future__ import annotations

from datetime import timedelta

from msgspec.structs import replace

from orchestrator.control.context import Context
from orchestrator.control.steps import Decision
from orchestrator.encryption import STEPS, epochs
from orchestrator.model import ZERO_TIME, Cluster, Network, Node
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot

# Swarm's
PERIOD = timedelta(hours=12)


def encryption(snapshot: Snapshot, context: Context) -> Decision:
    cluster = snapshot.cluster
    networks = {network.id for network in snapshot.all(Network) if network.mesh_encrypted}
    if cluster is None or not networks:
        return Decision()
    keys = cluster.mesh_keys
    if keys.since == ZERO_TIME:
        return _write(cluster, context, replace(keys, since=context.now))
    at_rest = keys.step % STEPS == 0
    due = keys.since + PERIOD
    if at_rest and not keys.wanted and context.now < due:
        return Decision(wakeup=due)
    if not all(_shows(node, keys.step) for node in snapshot.all(Node) if _concerned(node, networks)):
        return Decision()
    step = keys.step + 1
    if step % STEPS == 0:
        return _write(cluster, context, replace(keys, step=step, since=context.now, wanted=False))
    return _write(cluster, context, replace(keys, step=step))


def _concerned(node: Node, networks: set[str]) -> bool:
    is_there = node.status.state == "ready"
    own = node.description.mesh_encryption
    return is_there and own is not None and not own.unable and any(a.network_id in networks for a in node.mesh_attachments or ())


def _shows(node: Node, step: int) -> bool:
    """It is where the others are, and its keys for both epochs are published."""
    own = node.description.mesh_encryption
    return own is not None and own.step == step and all(str(epoch) in own.keys for epoch in epochs(step))


def _write(cluster: Cluster, context: Context, keys: object) -> Decision:
    return Decision(steps=[(Put(replace(cluster, mesh_keys=keys, updated_at=context.now)),)])
