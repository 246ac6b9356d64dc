"""Objects as etcd keeps them, changes as etcd's transactions.

Pure: no I/O. Source: etcd API v3 (rpc.proto, kv.proto). Key `/meshd/<kind>/<id>`, value the object's JSON, sealed (`sealing`); its
version is the key's ModRevision and is therefore not in the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aetcd import rpc

from orchestrator.model import KINDS, Kind, Object, Version
from orchestrator.store.base import Change, Delete, Guard, Put
from orchestrator.store.sealing import Open, Sealing
from orchestrator.store.transaction import key_of

PREFIX = b"/meshd/"
PREFIX_END = b"/meshd0"
# etcd is started with this bound (and a little more for what surrounds the values)
MAX_BYTES = 8 * 1024 * 1024

_DECODERS: dict[Kind, msgspec.json.Decoder[Object]] = {kind: msgspec.json.Decoder(cls) for kind, cls in KINDS.items()}
_ENCODER = msgspec.json.Encoder()
# omit_defaults leaves out what *is* the class's default, so that very object is put in before encoding
_NO_VERSION: dict[type[Object], Version] = {
    cls: next(field.default for field in msgspec.structs.fields(cls) if field.name == "version") for cls in KINDS.values()
}


def key(kind: Kind, id: str) -> bytes:
    return b"/meshd/%s/%s" % (kind.encode(), id.encode())


def parse_key(key: bytes) -> tuple[Kind, str] | None:
    """None for what this version knows nothing of (another program's key, a kind of a newer meshd)."""
    if not key.startswith(PREFIX):
        return None
    kind, _, id = key.removeprefix(PREFIX).decode(errors="replace").partition("/")
    return (kind, id) if kind in KINDS and id else None


def encode(obj: Object) -> bytes:
    return _ENCODER.encode(msgspec.structs.replace(obj, version=_NO_VERSION[type(obj)]))


def decode(kind: Kind, value: bytes, version: Version) -> Object:
    """msgspec.MsgspecError if the value isn't such an object."""
    return msgspec.structs.replace(_DECODERS[kind].decode(value), version=version)


def transaction(changes: Sequence[Change], sealing: Sealing = Open()) -> Any:
    """The TxnRequest: all conditions, all writes. ValueError if the values are more than a request may carry."""
    compares, writes, size_bytes = [], [], 0
    for change in changes:
        name = key(*key_of(change))
        match change:
            case Put(obj):
                value = sealing.seal(name, encode(obj))
                size_bytes += len(name) + len(value)
                compares.append(_at(name, obj.version.index))
                writes.append(rpc.RequestOp(request_put=rpc.PutRequest(key=name, value=value)))
            case Delete(_, _, index):
                if index:
                    compares.append(_at(name, index))
                writes.append(rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=name)))
            case Guard(_, _, index):
                if index == 0:
                    compares.append(rpc.Compare(result=rpc.Compare.GREATER, target=rpc.Compare.MOD, key=name, mod_revision=0))
                else:
                    compares.append(_at(name, max(index, 0)))
    if size_bytes > MAX_BYTES:
        raise ValueError(f"a transaction holds at most {MAX_BYTES} bytes, this one has {size_bytes}: split it")
    # A transaction without any operation counts as a serializable read: a member that lags behind would check the guards against its
    # own past. One linearizable read in it makes the member catch up first (etcd 3.4/3.5, isTxnSerializable).
    reads = [rpc.RequestOp(request_range=rpc.RangeRequest(key=PREFIX, keys_only=True))]
    return rpc.TxnRequest(compare=compares, success=writes or reads, failure=reads)


def _at(name: bytes, revision: int) -> Any:
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=name, mod_revision=revision)
