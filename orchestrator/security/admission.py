"""Who may become a node, and what it is told: the decision behind `POST /v1/join` and `POST /v1/renew`.

Pure: snapshot, request and time in; changes and answer out. Any manager can decide it: the CA's key is in the store, and the write
is guarded by the cluster object, so a token that is being rotated admits nobody once the rotation is stored.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta

import msgspec

from orchestrator.errors import MeshdError, RemoteProtocolError
from orchestrator.model import Cluster, JoinTokens, ManagerStatus, Node, NodeDescription, NodeSpec, NodeStatus
from orchestrator.security import ca, tokens
from orchestrator.store.base import Change, Guard, Put
from orchestrator.store.snapshot import Snapshot

DEFAULT_PORT = 2377
# Docker's text for a token of the right form that isn't ours.
WRONG_TOKEN = "A valid join token is necessary to join this cluster"


class Refused(MeshdError):
    """status: of the HTTP answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class JoinQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """csr: PEM; the node's id follows from its key. addr: "ip:port" at which a manager is reached, "" = where it calls from."""

    token: str
    csr: str
    hostname: str = ""
    addr: str = ""
    data_addr: str = ""
    availability: str = "active"

    def __repr__(self) -> str:
        return f"JoinQuestion(hostname={self.hostname!r}, addr={self.addr!r}, token=...)"


class JoinAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """managers: "ip:port", the leader first. bundle: what only a manager gets; its keys are the daemon's business."""

    node_id: str
    role: ca.Role
    cluster_id: str
    certificate: str
    root_certificate: str
    managers: tuple[str, ...] = ()
    bundle: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"JoinAnswer(node_id={self.node_id!r}, role={self.role!r}, managers={self.managers!r})"


class RenewQuestion(msgspec.Struct, frozen=True, kw_only=True):
    csr: str


class RenewAnswer(msgspec.Struct, frozen=True, kw_only=True):
    certificate: str
    root_certificate: str
    managers: tuple[str, ...] = ()


class PromoteQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """addr: "ip:port" at which the new manager is reached."""

    addr: str = ""


class PromoteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    bundle: dict[str, str]

    def __repr__(self) -> str:
        return "PromoteAnswer(bundle=...)"


def admit(snapshot: Snapshot, question: JoinQuestion, peer_address: str, now: datetime) -> tuple[list[Change], JoinAnswer]:
    """The write that makes the node, and its answer. Refused: 400 bad input, 403 wrong token, 409 already in with another role.

    The token is looked at first: who has none learns nothing else. A join that is repeated with the same key writes nothing new.
    """
    cluster = _cluster(snapshot)
    role = tokens.role_of(question.token, cluster.join_tokens or JoinTokens())
    if role is None:
        raise Refused(403, WRONG_TOKEN)
    if question.availability not in ("active", "pause", "drain"):
        raise Refused(400, f'invalid Availability: "{question.availability[:40]}"')
    if len(question.hostname) > 255:
        raise Refused(400, "the host name is longer than 255 characters")
    addr = _endpoint(question.addr, peer_address)
    try:
        node_id = ca.node_id_of(question.csr)
        certificate = ca.issue(
            _root(cluster), question.csr, node_id=node_id, role=role, cluster_id=cluster.id, now=now, life=node_life(cluster),
            addresses=_vouched(role, addr, peer_address),
        )  # fmt: skip
    except RemoteProtocolError as error:
        raise Refused(400, str(error)) from None
    known = snapshot.node(node_id)
    if known is not None and known.spec.role != role:
        raise Refused(409, f"this node is already part of the cluster as a {known.spec.role}: leave first")
    changes: list[Change] = [Guard("cluster", cluster.id, cluster.version.index)]
    if known is None:
        changes.append(Put(_node(question, node_id, role, addr, peer_address, now)))
    return changes, JoinAnswer(
        node_id=node_id,
        role=role,
        cluster_id=cluster.id,
        certificate=certificate,
        root_certificate=cluster.mesh_ca_cert,
        managers=managers_of(snapshot),
    )


def renew(snapshot: Snapshot, csr: str, node_id: str, peer_address: str, now: datetime) -> RenewAnswer:
    """A new certificate, in the role the store gives the node now. Refused: 403 the node was removed, 400 bad request."""
    cluster = _cluster(snapshot)
    node = snapshot.node(node_id)
    if node is None:
        raise Refused(403, f"node {node_id} is not part of this cluster any more")
    role: ca.Role = "manager" if node.spec.role == "manager" else "worker"
    addr = node.manager_status.addr if node.manager_status else ""
    try:
        certificate = ca.issue(
            _root(cluster), csr, node_id=node_id, role=role, cluster_id=cluster.id, now=now, life=node_life(cluster),
            addresses=_vouched(role, addr, peer_address),
        )  # fmt: skip
    except RemoteProtocolError as error:
        raise Refused(400, str(error)) from None
    return RenewAnswer(certificate=certificate, root_certificate=cluster.mesh_ca_cert, managers=managers_of(snapshot))


def promoted(node: Node, certified: ca.Role, question: PromoteQuestion, peer_address: str) -> str:
    """ "ip:port" of the node as a manager. Refused: 403 nobody made it one, or its certificate does not say so yet; 400 bad address."""
    if node.spec.role != "manager":
        raise Refused(403, f"node {node.id} is a worker: `docker node promote {node.id}` at a manager makes it one")
    if certified != "manager":
        raise Refused(403, f"node {node.id} shows a worker's certificate: it has to be renewed first")
    return _endpoint(question.addr, peer_address)


def managers_of(snapshot: Snapshot) -> tuple[str, ...]:
    """ "ip:port" of all managers, the leader first."""
    leader = snapshot.leader.addr if snapshot.leader else ""
    addresses = {node.manager_status.addr for node in snapshot.all(Node) if node.manager_status and node.manager_status.addr}
    return tuple(sorted(addresses | ({leader} - {""}), key=lambda addr: (addr != leader, addr)))


def node_life(cluster: Cluster) -> timedelta:
    expiry_ns = cluster.spec.ca_config.node_cert_expiry
    return timedelta(microseconds=expiry_ns / 1000) if expiry_ns > 0 else ca.NODE_LIFE


def split_endpoint(text: str) -> tuple[str, int]:
    """("10.0.0.1", 2377) of "10.0.0.1:2377", "10.0.0.1", "[fd00::1]:2377" or "fd00::1". ValueError: neither."""
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or not host:
        raise ValueError(text)
    return host, int(port)


def join_endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cluster(snapshot: Snapshot) -> Cluster:
    cluster = snapshot.cluster
    if cluster is None or not cluster.mesh_ca_key:
        raise Refused(503, "this manager has not read the cluster's state yet: try again")
    return cluster


def _root(cluster: Cluster) -> ca.RootCA:
    return ca.RootCA(cluster.mesh_ca_cert, cluster.mesh_ca_key)


def _endpoint(given: str, peer_address: str) -> str:
    if not given:
        return join_endpoint(peer_address, DEFAULT_PORT)
    try:
        host, port = split_endpoint(given)
        return join_endpoint(str(ipaddress.ip_address(host)), port)
    except ValueError:
        raise Refused(400, f'the advertised address "{given[:80]}" is not an IP address with an optional port') from None


def _vouched(role: ca.Role, addr: str, peer_address: str) -> list[str]:
    """Addresses for the certificate. A worker's word counts for nothing here: only the address it calls from."""
    hosts = {peer_address}
    if role == "manager" and addr:
        hosts.add(split_endpoint(addr)[0])
    return sorted(hosts - {""})


def _node(question: JoinQuestion, node_id: str, role: ca.Role, addr: str, peer_address: str, now: datetime) -> Node:
    host, _ = split_endpoint(addr)
    return Node(
        id=node_id,
        created_at=now,
        updated_at=now,
        spec=NodeSpec(role=role, availability=question.availability),
        description=NodeDescription(hostname=question.hostname, mesh_api_addr=addr, mesh_data_addr=_ip_or(question.data_addr, host)),
        status=NodeStatus(state="unknown", addr=peer_address),
        manager_status=ManagerStatus(addr=addr) if role == "manager" else None,
    )


def _ip_or(text: str, fallback: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return fallback
