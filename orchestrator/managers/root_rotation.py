"""Rotations of the root: ordered at any manager, brought to their end by the leader, once all connected nodes have new certificates.

Edge: external CAs, and the leader's loop over the store; what is to be done is decided in `security.rotation`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from msgspec.structs import replace

from orchestrator.errors import ConfigError, Conflict, StoreUnavailable
from orchestrator.model import Cluster, ClusterSpec, Node
from orchestrator.security import ca, external_ca, rotation
from orchestrator.security.identity import Credentials
from orchestrator.store.base import Guard, Put, Store
from orchestrator.store.subscription import at_changes

log = logging.getLogger(__name__)


async def ordered(cluster: Cluster, spec: ClusterSpec, credentials: Credentials, now: datetime) -> Cluster:
    """The cluster with that spec and what it asks of the CA. Only computed, external CAs asked. ConfigError: why it can't be."""
    config = rotation.normalized(cluster, spec.ca_config)
    root = rotation.wanted(cluster, config, now)
    bridge = ""
    if root is not None and rotation.needs_signature_of_old_ca(cluster, root):
        if not root.key:
            raise ConfigError("rotating from one external CA to a different external CA is not supported")
        urls = rotation.external_urls(config, cluster.mesh_ca_cert)
        bridge = await external_ca.cross_sign(urls, cluster.mesh_ca_cert, root, credentials)
    changed = rotation.ordered(replace(cluster, spec=spec), config, root, now, bridge)
    if changed.spec.ca_config != cluster.spec.ca_config or root is not None:
        for which, certificate in rotation.without_key(changed).items():
            urls = rotation.external_urls(config, certificate)
            if not await external_ca.reachable(urls, certificate, credentials):
                raise ConfigError(rotation.no_external(which))
    return changed


class RootRotation:
    """`lead()` while this manager leads. fence(): the guard of the present leadership."""

    def __init__(self, store: Store, *, fence: Callable[[], Guard | None], now: Callable[[], datetime]) -> None:
        self._store, self._fence, self._now = store, fence, now
        self._awaited = -1

    async def lead(self) -> None:
        """Until cancelled. StoreUnavailable: the store was closed."""
        await at_changes(self._store, {"cluster", "node"}, self._step)

    async def _step(self) -> None:
        while True:
            snapshot = self._store.snapshot()
            cluster = snapshot.cluster
            if cluster is None or cluster.mesh_root_rotation is None:
                self._awaited = -1
                return
            nodes = list(snapshot.all(Node))
            finished = rotation.finished(cluster, nodes)
            if finished is None:
                self._tell(len(rotation.awaited(cluster, nodes)))
                return
            fence = self._fence()
            if fence is None:
                raise StoreUnavailable("this manager doesn't lead any more")
            try:
                await self._store.commit([fence, Put(replace(finished, updated_at=self._now()))])
            except Conflict:
                continue
            log.info("root certificate rotated digest=%s", ca.digest(finished.mesh_ca_cert))

    def _tell(self, awaited: int) -> None:
        if awaited != self._awaited:
            log.info("root certificate being rotated nodes_awaited=%d", awaited)
            self._awaited = awaited
