"""Who gets a certificate, and what for: the decisions behind `POST /v1/join`, `/v1/renew` and `/v1/readmit`.

Pure: snapshot, request and time in; changes and the certificate to issue out (`registrar` does it). Any manager can decide: the write is
guarded, by the cluster object for a join, so a token that is being rotated admits nobody once that is stored; by the node's for a
renewal, so a node that is being removed gets none.
"""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from orchestrator.errors import MeshdError, RemoteProtocolError
from orchestrator.model import Cluster, JoinTokens, ManagerStatus, Node, NodeCertificate, NodeDescription, NodeSpec, NodeStatus
from orchestrator.security import ca, tokens
from orchestrator.store.base import Change, Guard, Put
from orchestrator.store.snapshot import Snapshot

DEFAULT_PORT = 2377
MIN_AWAY = timedelta(days=7)
_MAX_KEY_CHARACTERS = 1024
# Docker's text for a token of the right form that isn't ours.
WRONG_TOKEN = "A valid join token is necessary to join this cluster"


class Refused(MeshdError):
    """status: of the HTTP answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """What managers tell every node: the root to trust, PEM; the public key that signs certificates now, as in `TLSInfo`; how long they
    live; the ids of the nodes that are managers."""

    root_certificate: str = ""
    issuer: str = ""
    life_s: int = 0
    managers: tuple[str, ...] = ()


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


class ReadmitQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Of a node whose certificate TLS doesn't accept any more. key: the public key it was certified for, PEM; signature: by that key, of
    `readmission_text`, base64."""

    node_id: str
    csr: str
    key: str
    signature: str


class RenewAnswer(msgspec.Struct, frozen=True, kw_only=True):
    certificate: str
    root_certificate: str
    managers: tuple[str, ...] = ()


class RootsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The root, and how it followed those before it (`roots.successor`)."""

    root_certificate: str
    bridges: tuple[str, ...] = ()


class PromoteQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """addr: "ip:port" at which the new manager is reached."""

    addr: str = ""


class PromoteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    bundle: dict[str, str]

    def __repr__(self) -> str:
        return "PromoteAnswer(bundle=...)"


@dataclass(frozen=True, slots=True)
class Order:
    """A certificate that is to be issued. Of csr only the key counts."""

    csr: str
    node_id: str
    role: ca.Role
    cluster_id: str
    life: timedelta
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes: issue `order`, and write `changes` first. cluster, managers ("ip:port", the leader first): as it was decided under."""

    order: Order
    changes: list[Change]
    cluster: Cluster
    managers: tuple[str, ...]


def admit(snapshot: Snapshot, question: JoinQuestion, peer_address: str, now: datetime) -> Decision:
    """A node joins. Refused: 400 bad input, 403 wrong token, 409 already in with another role.

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
    key = _key_of(question.csr)
    node_id = ca.node_id_of(question.csr)
    known = snapshot.node(node_id)
    if known is not None and known.spec.role != role:
        raise Refused(409, f"this node is already part of the cluster as a {known.spec.role}: leave first")
    order = Order(question.csr, node_id, role, cluster.id, node_life(cluster), _vouched(role, addr, peer_address))
    changes: list[Change] = [Guard("cluster", cluster.id, cluster.version.index)]
    if known is None:
        changes.append(Put(replace(_node(question, node_id, role, addr, peer_address, now), mesh_certificate=_record((key,), order, now))))
    return Decision(order, changes, cluster, managers_of(snapshot))


def renew(snapshot: Snapshot, csr: str, node_id: str, proven_key: str, peer_address: str, now: datetime) -> Decision:
    """A new certificate, in the role the store gives the node now. Refused: 403 the node was removed, 400 bad request.

    proven_key: fingerprint of the key it has shown to have, by TLS or by a signature. That and the new one are what the store keeps: one
    of them is the node's, also when this answer gets lost.
    """
    cluster = _cluster(snapshot)
    node = snapshot.node(node_id)
    if node is None:
        raise Refused(403, f"node {node_id} is not part of this cluster any more")
    role: ca.Role = "manager" if node.spec.role == "manager" else "worker"
    addr = node.manager_status.addr if node.manager_status else ""
    order = Order(csr, node_id, role, cluster.id, node_life(cluster), _vouched(role, addr, peer_address))
    record = _record((proven_key, _key_of(csr)), order, now)
    return Decision(order, [Put(replace(node, mesh_certificate=record, updated_at=now))], cluster, managers_of(snapshot))


def readmit(snapshot: Snapshot, question: ReadmitQuestion, peer_address: str, now: datetime) -> Decision:
    """A new certificate for a node whose old one has expired, or is of a root that is gone. Refused: 403 with the reason, 400 bad request.

    No certificate counts here, as an old root may be in wrong hands: the node is in the store, and signs with the key the store knows it
    by. For as long again as its certificate lived (MIN_AWAY at least): a disk that turns up after years is no node.
    """
    cluster = _cluster(snapshot)
    node = snapshot.node(question.node_id)
    if node is None:
        raise Refused(403, f"node {question.node_id[:64]} is not part of this cluster any more")
    record = node.mesh_certificate or NodeCertificate()
    key = _signer_of(question, cluster.id)
    if key not in (record.keys or ()):
        raise Refused(403, f"this is not the key that node {node.id} was last certified for: leave the cluster and join again")
    if now > record.not_after + max(node_life(cluster), MIN_AWAY):
        raise Refused(
            403, f"the certificate of node {node.id} expired on {record.not_after:%Y-%m-%d}, too long ago: leave the cluster and join again"
        )
    return renew(snapshot, question.csr, node.id, key, peer_address, now)


def readmission_text(cluster_id: str, node_id: str, csr: str) -> bytes:
    """What a node that comes back signs. It names all that is asked for, so it serves for nothing else and nobody else's key."""
    return "\0".join(("meshd readmission 1", cluster_id, node_id, csr)).encode()


def first_certificate(certificate: str) -> NodeCertificate:
    """What the store keeps of the certificate a cluster's first node makes itself."""
    [leaf, *_] = ca.load_chain(certificate)
    return NodeCertificate(keys=[ca.fingerprint(leaf.public_key())], not_after=leaf.not_valid_after_utc)


def promoted(node: Node, certified: ca.Role, question: PromoteQuestion, peer_address: str) -> str:
    """ "ip:port" of the node as a manager. Refused: 403 nobody made it one, or its certificate does not say so yet; 400 bad address."""
    if node.spec.role != "manager":
        raise Refused(403, f"node {node.id} is a worker: `docker node promote {node.id}` at a manager makes it one")
    if certified != "manager":
        raise Refused(403, f"node {node.id} shows a worker's certificate: it has to be renewed first")
    return _endpoint(question.addr, peer_address)


def roots_of(cluster: Cluster) -> RootsAnswer:
    return RootsAnswer(root_certificate=cluster.mesh_ca_cert, bridges=tuple(cluster.mesh_bridges or ()))


def trust_of(snapshot: Snapshot) -> Trust:
    """What every node is to know: whom to trust, who signs, who manages."""
    cluster = snapshot.cluster
    managers = tuple(sorted(node.id for node in snapshot.all(Node) if node.spec.role == "manager"))
    if cluster is None or cluster.tls_info is None:
        return Trust(managers=managers)
    return Trust(
        root_certificate=cluster.mesh_ca_cert,
        issuer=cluster.tls_info.cert_issuer_public_key,
        life_s=int(node_life(cluster).total_seconds()),
        managers=managers,
    )


def managers_of(snapshot: Snapshot) -> tuple[str, ...]:
    """ "ip:port" of all managers, the leader first."""
    leader = snapshot.leader.addr if snapshot.leader else ""
    addresses = {node.manager_status.addr for node in snapshot.all(Node) if node.manager_status and node.manager_status.addr}
    return tuple(sorted(addresses | ({leader} - {""}), key=lambda addr: (addr != leader, addr)))


def node_life(cluster: Cluster) -> timedelta:
    expiry_ns = cluster.spec.ca_config.node_cert_expiry
    return max(timedelta(microseconds=expiry_ns / 1000), ca.MIN_NODE_LIFE) if expiry_ns > 0 else ca.NODE_LIFE


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


def reached_at(advertise: str, listen: str) -> str:
    """ "ip:port" for others of a node that advertises an address and listens at "ip:port"."""
    return join_endpoint(advertise, split_endpoint(listen)[1])


def _cluster(snapshot: Snapshot) -> Cluster:
    cluster = snapshot.cluster
    if cluster is None or not cluster.mesh_ca_cert:
        raise Refused(503, "this manager has not read the cluster's state yet: try again")
    return cluster


def _key_of(csr: str) -> str:
    """Fingerprint of the key that is to be certified."""
    try:
        return ca.fingerprint(ca.request_of(csr).public_key())
    except RemoteProtocolError as error:
        raise Refused(400, str(error)) from None


def _record(keys: tuple[str, ...], order: Order, now: datetime) -> NodeCertificate:
    return NodeCertificate(keys=list(dict.fromkeys(keys)), not_after=now + order.life)


def _signer_of(question: ReadmitQuestion, cluster_id: str) -> str:
    """Fingerprint of the key that has signed the question. Refused: 400 it is none, 403 it has not."""
    if len(question.key) > _MAX_KEY_CHARACTERS or len(question.signature) > _MAX_KEY_CHARACTERS:
        raise Refused(400, "the key or the signature is too long")
    try:
        key = serialization.load_pem_public_key(question.key.encode())
        signature = base64.b64decode(question.signature, validate=True)
    except Exception:  # of several kinds, as in `ca.request_of`
        raise Refused(400, "the key or the signature can't be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Refused(400, "the key is not an elliptic-curve key")
    try:
        key.verify(signature, readmission_text(cluster_id, question.node_id, question.csr), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Refused(403, "the request is not signed by the node's key") from None
    return ca.fingerprint(key)


def _endpoint(given: str, peer_address: str) -> str:
    if not given:
        return join_endpoint(peer_address, DEFAULT_PORT)
    try:
        host, port = split_endpoint(given)
        return join_endpoint(str(ipaddress.ip_address(host)), port)
    except ValueError:
        raise Refused(400, f'the advertised address "{given[:80]}" is not an IP address with an optional port') from None


def _vouched(role: ca.Role, addr: str, peer_address: str) -> tuple[str, ...]:
    """Addresses for the certificate. A worker's word counts for nothing here: only the address it calls from."""
    hosts = {peer_address}
    if role == "manager" and addr:
        hosts.add(split_endpoint(addr)[0])
    return tuple(sorted(hosts - {""}))


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
