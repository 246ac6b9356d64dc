"""A backup: all objects of a cluster at one revision, as one file that can prove it is whole; and what a cluster made of one starts with.

Pure: bytes in, bytes out. Not etcd's own snapshot: it can be read with zcat, doesn't depend on etcd's version, and leaves out what
belongs to the machines (members, revisions). It holds the cluster's keys: keep it as you keep those. With autolock it is sealed with the
unlock key of its time, which `load` then wants; what it is a backup of can be read without.

    gzip of lines:  {"format": 1, "cluster": ..., "revision": ..., "created_at": ..., "objects": N}
                    {"kind": "service", "object": {...}}            N times
                    {"sha256": "of all lines before"}
    sealed:         {"sealed": "which unlock key", "header": its first line}, a line feed, AES-256-GCM of that
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from datetime import datetime

import msgspec
from msgspec.structs import replace

from orchestrator.errors import ConfigError
from orchestrator.model import KINDS, Cluster, Kind, Leadership, ManagerStatus, Node, NodeStatus, Object, Version
from orchestrator.security import secretbox
from orchestrator.store.base import Change, Delete, Put
from orchestrator.store.snapshot import Snapshot

FORMAT = 1
_MAX_HEADER_BYTES = 4096


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """objects: how many lines follow. revision: of the store when it was made."""

    format: int
    cluster: str
    revision: int
    created_at: datetime
    meshd: str
    objects: int


class _Line(msgspec.Struct, frozen=True):
    kind: Kind
    object: msgspec.Raw


class _End(msgspec.Struct, frozen=True):
    sha256: str


class _Seal(msgspec.Struct, frozen=True):
    """sealed: the beginning of the unlock key's hash, to tell it from others."""

    sealed: str
    header: Header


class SealedBackup(ConfigError):
    """Another unlock key is needed, or one at all."""


@dataclass(frozen=True, slots=True, repr=False)
class Backup:
    """objects: with versions of 0, as if never stored."""

    header: Header
    objects: tuple[Object, ...]

    @property
    def cluster(self) -> Cluster:
        return next(obj for obj in self.objects if isinstance(obj, Cluster))


def dump(snapshot: Snapshot, now: datetime, meshd: str) -> bytes:
    """Sealed if the cluster has an unlock key. Whatever leads just now is left out: it is true of running managers only.

    ConfigError: the snapshot holds no cluster."""
    if snapshot.cluster is None:
        raise ConfigError("there is no cluster to back up")
    objects = [
        (kind, obj) for kind in sorted(KINDS) if KINDS[kind] is not Leadership for _, obj in sorted(snapshot.tables.get(kind, {}).items())
    ]
    first = Header(
        format=FORMAT, cluster=snapshot.cluster.id, revision=snapshot.revision, created_at=now, meshd=meshd, objects=len(objects)
    )
    lines = [msgspec.json.encode(first)]
    lines += [b'{"kind":"%s","object":%s}' % (kind.encode(), msgspec.json.encode(replace(obj, version=Version()))) for kind, obj in objects]
    body = b"".join(line + b"\n" for line in lines)
    end = msgspec.json.encode(_End(hashlib.sha256(body).hexdigest()))
    return _sealed(gzip.compress(body + end + b"\n", compresslevel=6, mtime=0), first, snapshot.cluster.mesh_unlock_key)


def resealed(packed: bytes, old: bytes, new: bytes) -> bytes | None:
    """Under the unlock key `new` instead of `old` (b"": open); None: it is already. SealedBackup: under neither. ConfigError as `load`."""
    seal = _seal(packed)
    if (seal.sealed if seal else "") == _name(new):
        return None
    return _sealed(_unsealed(packed, old), header(packed), new)


def header(packed: bytes) -> Header:
    """What it is a backup of, without its key; nothing else is checked. ConfigError: it is none."""
    seal = _seal(packed)
    if seal is not None:
        return seal.header
    try:
        return msgspec.json.decode(zlib.decompressobj(wbits=31).decompress(packed, _MAX_HEADER_BYTES).partition(b"\n")[0], type=Header)
    except (zlib.error, msgspec.MsgspecError):
        raise ConfigError("this is no backup of meshd, or it is cut off") from None


def sealed(packed: bytes) -> bool:
    return _seal(packed) is not None


def _name(unlock_key: bytes) -> str:
    return hashlib.sha256(b"meshd unlock key" + unlock_key).hexdigest()[:16] if unlock_key else ""


def _seal(packed: bytes) -> _Seal | None:
    """None: it is open."""
    if not packed.startswith(b"{"):
        return None
    try:
        return msgspec.json.decode(packed.partition(b"\n")[0], type=_Seal)
    except msgspec.MsgspecError:
        raise ConfigError("this is no backup of meshd, or it is cut off") from None


def _sealed(packed: bytes, header: Header, unlock_key: bytes) -> bytes:
    if not unlock_key:
        return packed
    return msgspec.json.encode(_Seal(_name(unlock_key), header)) + b"\n" + secretbox.encrypt(unlock_key, packed)


def _unsealed(packed: bytes, unlock_key: bytes) -> bytes:
    seal = _seal(packed)
    if seal is None:
        return packed
    if not unlock_key:
        raise SealedBackup("the backup is sealed: give the unlock key of its time (docker swarm unlock-key)")
    if seal.sealed != _name(unlock_key):
        raise SealedBackup("the backup is sealed with another unlock key: give the one of its time")
    try:
        return secretbox.decrypt(unlock_key, packed.partition(b"\n")[2])
    except ConfigError:
        raise ConfigError("the backup is damaged: its seal is broken") from None


def load(packed: bytes, unlock_key: bytes = b"") -> Backup:
    """SealedBackup; ConfigError, one sentence: not a backup, damaged, cut off, or of a newer meshd."""
    packed = _unsealed(packed, unlock_key)
    try:
        body, _, end = gzip.decompress(packed).rstrip(b"\n").rpartition(b"\n")
    except (OSError, EOFError, zlib.error):
        raise ConfigError("this is no backup of meshd, or it is cut off") from None
    body += b"\n"
    try:
        expected = msgspec.json.decode(end, type=_End).sha256
        header = msgspec.json.decode(body.partition(b"\n")[0], type=Header)
    except msgspec.MsgspecError:
        raise ConfigError("this is no backup of meshd, or it is cut off") from None
    if hashlib.sha256(body).hexdigest() != expected:
        raise ConfigError("the backup is damaged: its checksum is not that of its contents")
    if header.format != FORMAT:
        raise ConfigError(f"the backup has format {header.format}, this meshd reads format {FORMAT}: restore it with meshd {header.meshd}")
    objects = []
    for number, line in enumerate(body.splitlines()[1:], start=2):
        try:
            read = msgspec.json.decode(line, type=_Line)
            objects.append(msgspec.json.decode(read.object, type=KINDS[read.kind]))
        except msgspec.MsgspecError as error:
            raise ConfigError(f"line {number} of the backup can't be read by this meshd: {error}") from None
    if len(objects) != header.objects or not any(isinstance(obj, Cluster) for obj in objects):
        raise ConfigError(f"the backup should hold {header.objects} objects with a cluster, but holds {len(objects)}")
    return Backup(header, tuple(objects))


def sole_manager(snapshot: Snapshot, own_node_id: str, now: datetime) -> list[Change]:
    """After a quorum was lost for good: this manager is the only one, those that were become workers if they ever come back."""
    changes: list[Change] = []
    for node in sorted(snapshot.all(Node), key=lambda node: node.id):
        if node.id != own_node_id and (node.spec.role == "manager" or node.manager_status is not None):
            changes.append(Put(_as_worker(node, now)))
    if snapshot.leader is not None:
        changes.append(Delete("leader", "leader", snapshot.leader.version.index))
    return changes


def first_objects(backup: Backup, me: Node, now: datetime) -> list[Change]:
    """What the store of a cluster restored at node `me` starts with; the cluster's own object last: a part of it is no cluster."""
    changes: list[Change] = [Put(me)]
    for obj in backup.objects:
        match obj:
            case Node(id=id) if id == me.id:
                continue
            case Node():
                obj = _as_worker(obj, now)
                if obj.description.mesh_api_addr == me.description.mesh_api_addr:
                    # the machine's former self: its tasks are gone with it
                    status = NodeStatus(state="down", message=f"restored as node {me.id}", addr=obj.status.addr)
                    obj = replace(obj, status=status, mesh_disconnected_since=now)
            case Leadership():
                continue
            case _:
                pass
        changes.append(Put(obj))
    return sorted(changes, key=lambda change: isinstance(change, Put) and isinstance(change.obj, Cluster))


def manager_node(backup: Backup, node_id: str, hostname: str, addr: str, data_addr: str, now: datetime) -> Node:
    """The node a backup is restored at: itself if the backup knows it, else a new one."""
    known = next((obj for obj in backup.objects if isinstance(obj, Node) and obj.id == node_id), None)
    node = known or Node(id=node_id, created_at=now)
    description = replace(node.description, hostname=hostname, mesh_api_addr=addr, mesh_data_addr=data_addr)
    status = ManagerStatus(leader=True, reachability="reachable", addr=addr)
    return replace(node, spec=replace(node.spec, role="manager"), description=description, manager_status=status, updated_at=now)


def _as_worker(node: Node, now: datetime) -> Node:
    return replace(node, spec=replace(node.spec, role="worker"), manager_status=None, updated_at=now)
