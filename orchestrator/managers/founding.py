"""A cluster that begins at this node: made new, or made again from a backup. Certificate, etcd's CA, first objects.

Pure but for the keys it makes. Nothing is written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec

from orchestrator.api.backend import InitRequest
from orchestrator.errors import ConfigError
from orchestrator.ids import new_id
from orchestrator.local_state import LocalState
from orchestrator.managers import backup as backups
from orchestrator.managers.backup import Backup
from orchestrator.managers.genesis import FirstNode, Keys, first_objects
from orchestrator.model import EncryptionConfig
from orchestrator.security import ca, keyring, secretbox, tokens
from orchestrator.security.admission import first_certificate, reached_at
from orchestrator.security.identity import Identity
from orchestrator.store import etcd_tls
from orchestrator.store.base import Change


@dataclass(frozen=True, slots=True)
class Place:
    """Where it begins. advertise, data_addr: IP addresses; listen: "ip:port"."""

    hostname: str
    advertise: str
    listen: str
    data_addr: str

    @property
    def addr(self) -> str:
        """ "ip:port" others reach this node at."""
        return reached_at(self.advertise, self.listen)


@dataclass(frozen=True, slots=True, repr=False)
class Founding:
    """What the first manager starts with. No `repr`: keys stay out of logs."""

    local: LocalState
    identity: Identity
    etcd_ca: etcd_tls.KeyPair
    changes: list[Change]
    unlock_key: bytes


def found(request: InitRequest, place: Place, now: datetime) -> Founding:
    """`swarm init`."""
    cluster_id = new_id()
    autolock = request.auto_lock_managers or request.spec.encryption_config.auto_lock_managers
    spec = msgspec.structs.replace(request.spec, encryption_config=EncryptionConfig(auto_lock_managers=autolock))
    root = ca.new_root(cluster_id, now)
    identity = _identity(root, cluster_id, place, now)
    etcd_ca = etcd_tls.create_ca(f"meshd etcd {cluster_id}", now)
    keys = Keys(
        ca_cert=root.certificate,
        ca_key=root.key,
        etcd_ca_cert=etcd_ca.cert,
        etcd_ca_key=etcd_ca.key,
        secret_key=secretbox.new_key(),
        tokens=tokens.make_both(root.certificate),
        tls_info=ca.tls_info(root.certificate),
        unlock_key=keyring.new_unlock_key() if autolock else b"",
    )
    pool = tuple(request.default_addr_pool)
    changes = first_objects(
        cluster_id,
        new_id(),
        spec,
        keys,
        FirstNode(
            identity.node_id,
            place.hostname,
            place.addr,
            place.data_addr,
            request.availability,
            first_certificate(identity.certificate),
        ),
        now,
        address_pool=pool,
        # the CLI always sends /24; it is the user's word only beside a pool of his own
        subnet_size=request.subnet_size if pool else 0,
        data_path_port=request.data_path_port,
    )
    return Founding(_local(identity, place), identity, etcd_ca, changes, keys.unlock_key)


def refound(backup: Backup, place: Place, now: datetime) -> Founding:
    """`meshd restore`: the same cluster, CA and objects, with a node of a new identity as its only manager."""
    cluster = backup.cluster
    if not cluster.mesh_ca_key:
        raise ConfigError(
            "the backup holds no key of the CA, which is an external one: only backups with a CA of the managers' can be restored"
        )
    identity = _identity(ca.RootCA(cluster.mesh_ca_cert, cluster.mesh_ca_key), cluster.id, place, now)
    me = backups.manager_node(backup, identity.node_id, place.hostname, place.addr, place.data_addr, now)
    etcd_ca = etcd_tls.KeyPair(cluster.mesh_etcd_ca_cert, cluster.mesh_etcd_ca_key)
    return Founding(_local(identity, place), identity, etcd_ca, backups.first_objects(backup, me, now), cluster.mesh_unlock_key)


def _identity(root: ca.RootCA, cluster_id: str, place: Place, now: datetime) -> Identity:
    key, csr = ca.new_key_and_csr()
    node_id = ca.node_id_of(csr)
    certificate = ca.issue(root, csr, node_id=node_id, role="manager", cluster_id=cluster_id, now=now, addresses=[place.advertise])
    return Identity.of(certificate, key, root.certificate)


def _local(identity: Identity, place: Place) -> LocalState:
    return LocalState(
        cluster_id=identity.cluster_id,
        node_id=identity.node_id,
        advertise_addr=place.advertise,
        data_addr=place.data_addr,
        listen=place.listen,
        managers=(place.addr,),
    )
