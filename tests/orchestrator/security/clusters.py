"""A cluster for tests: its root CA, its store with one cluster object, identities of its nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from orchestrator.model import Cluster, JoinTokens, ManagerStatus, Node, NodeSpec
from orchestrator.security import ca, tokens
from orchestrator.security.identity import Credentials, Identity
from orchestrator.store.base import Put
from orchestrator.store.memory import MemoryStore

CLUSTER_ID = "clusterxxxxxxxxxxxxxxxxxx"


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@dataclass
class TestCluster:
    __test__ = False

    directory: Path
    root: ca.RootCA = field(default_factory=lambda: ca.new_root(CLUSTER_ID, now()))
    store: MemoryStore = field(default_factory=MemoryStore)

    async def start(self) -> Cluster:
        cluster = Cluster(
            id=CLUSTER_ID,
            join_tokens=tokens.make_both(self.root.certificate),
            mesh_ca_cert=self.root.certificate,
            mesh_ca_key=self.root.key,
            tls_info=ca.tls_info(self.root.certificate),
        )
        await self.store.commit([Put(cluster)])
        return self.cluster

    @property
    def cluster(self) -> Cluster:
        cluster = self.store.snapshot().cluster
        assert cluster is not None
        return cluster

    @property
    def tokens(self) -> JoinTokens:
        assert self.cluster.join_tokens is not None
        return self.cluster.join_tokens

    def identity(
        self,
        node_id: str,
        role: ca.Role = "worker",
        *,
        cluster_id: str = CLUSTER_ID,
        root: ca.RootCA | None = None,
        at: datetime | None = None,
    ) -> Identity:
        """`at`: when it was issued; it lives for an hour."""
        root = root or self.root
        key, csr = ca.new_key_and_csr()
        certificate = ca.issue(
            root, csr, node_id=node_id, role=role, cluster_id=cluster_id, now=at or now(), life=timedelta(hours=1), addresses=["127.0.0.1"]
        )  # fmt: skip
        return Identity.of(certificate, key, root.certificate)

    def credentials(self, node_id: str, role: ca.Role = "worker") -> Credentials:
        return self.installed(self.identity(node_id, role))

    def installed(self, identity: Identity) -> Credentials:
        """On disk in a directory of its own."""
        number = sum(1 for _ in self.directory.iterdir())
        return Credentials.create(self.directory / f"{identity.node_id}-{number}", identity)

    async def node(self, node_id: str, role: ca.Role = "worker", *, addr: str = "") -> Credentials:
        """In the store, with credentials."""
        status = ManagerStatus(addr=addr) if role == "manager" else None
        await self.store.commit([Put(Node(id=node_id, spec=NodeSpec(role=role), manager_status=status))])
        return self.credentials(node_id, role)

    async def change_tokens(self, changed: JoinTokens) -> None:
        await self.store.commit([Put(msgspec.structs.replace(self.cluster, join_tokens=changed))])
