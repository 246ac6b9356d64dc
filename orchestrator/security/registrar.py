"""Gives certificates: decides by the store (`admission`), writes it there, has the CA sign.

Edge: at a manager. The write comes first, so nobody has a certificate that the store doesn't know of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.errors import Conflict, RemoteProtocolError
from orchestrator.model import Cluster
from orchestrator.security import admission, ca, external_ca, rotation
from orchestrator.security.admission import Decision, JoinAnswer, JoinQuestion, Order, ReadmitQuestion, RenewAnswer
from orchestrator.security.identity import Credentials
from orchestrator.store.base import Store
from orchestrator.store.snapshot import Snapshot

_TRIES = 8
_RETRY_S = 0.02


@dataclass(frozen=True, slots=True)
class Registrar:
    """credentials: this manager's own, shown to external CAs. Methods raise `admission.Refused`, ConfigError (the CA can't sign) and
    StoreUnavailable."""

    store: Store
    credentials: Credentials
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def root_certificate(self) -> str:
        """That nodes are to trust; "" while the store has none."""
        cluster = self.store.snapshot().cluster
        return cluster.mesh_ca_cert if cluster is not None else ""

    async def join(self, question: JoinQuestion, address: str) -> JoinAnswer:
        decided = await self._written(lambda snapshot: admission.admit(snapshot, question, address, self.now()))
        order, cluster = decided.order, decided.cluster
        return JoinAnswer(
            node_id=order.node_id,
            role=order.role,
            cluster_id=cluster.id,
            certificate=await self._signed(order, cluster),
            root_certificate=cluster.mesh_ca_cert,
            managers=decided.managers,
        )

    async def renew(self, csr: str, node_id: str, proven_key: str, address: str) -> RenewAnswer:
        """proven_key: fingerprint of the key that the caller has shown to have."""
        return await self._renewed(lambda snapshot: admission.renew(snapshot, csr, node_id, proven_key, address, self.now()))

    async def readmit(self, question: ReadmitQuestion, address: str) -> RenewAnswer:
        return await self._renewed(lambda snapshot: admission.readmit(snapshot, question, address, self.now()))

    async def _renewed(self, decide: Callable[[Snapshot], Decision]) -> RenewAnswer:
        decided = await self._written(decide)
        return RenewAnswer(
            certificate=await self._signed(decided.order, decided.cluster),
            root_certificate=decided.cluster.mesh_ca_cert,
            managers=decided.managers,
        )

    async def _written(self, decide: Callable[[Snapshot], Decision]) -> Decision:
        for attempt in range(_TRIES):
            decided = decide(self.store.snapshot())
            try:
                await self.store.commit(decided.changes)
                return decided
            except Conflict:
                # Something it was decided by has changed (tokens? the node's state?), or the same request runs twice: decide again.
                await asyncio.sleep(_RETRY_S * (attempt + 1))
        raise admission.Refused(503, "the cluster's settings keep changing: try again")

    async def _signed(self, order: Order, cluster: Cluster) -> str:
        root = rotation.issuing(cluster)
        urls = rotation.external_urls(cluster.spec.ca_config, root.certificate)
        try:
            if urls:
                return await external_ca.sign(urls, root, order, self.credentials, self.now())
            return ca.issue(
                root,
                order.csr,
                node_id=order.node_id,
                role=order.role,
                cluster_id=order.cluster_id,
                now=self.now(),
                life=order.life,
                addresses=order.addresses,
            )
        except RemoteProtocolError as error:
            raise admission.Refused(400, str(error)) from None
