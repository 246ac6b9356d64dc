"""An operation as one line for people.

Pure. The name of the operation and what it works on; rows that come by the hundred are counted.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import fields

from mesh.operations import ChangeElements, DeleteIpvs, LoadNft, Op, PutIpvs, PutPeers, PutWireGuard

SHOWN = 3
"""Rows that are named before the rest is counted."""


def describe(op: Op) -> str:
    return f"{op.namespace or 'host'}: {type(op).__name__} {_subject(op)}".rstrip()


def _subject(op: Op) -> str:
    match op:
        case LoadNft():
            table = op.desired or op.actual
            verb = "load" if op.desired else "delete"
            return f"{verb} {table.family} {table.name}, {op.text.count(chr(10))} statements" if table else ""
        case PutIpvs(_, services):
            return _value(tuple(f"{s.mark:#x}: {len(s.destinations)} destinations" for s, _ in services))
        case DeleteIpvs(_, gone):
            return _value(tuple(f"{s.mark:#x}" for s in gone))
        case ChangeElements(_, desired, _, changes):
            rows = [f"{c.name}: +{len(c.fresh)} -{len(c.gone)}" for c in changes]
            return f"{desired.family} {desired.name} {', '.join(rows)}"
        case PutWireGuard():
            return f"{op.name} port={op.device.port} mtu={op.device.mtu}"
        case PutPeers():
            return f"{op.device} {_value(tuple(key for key, _ in op.rows))}"
        case _:
            shown = [_value(getattr(op, f.name)) for f in fields(op) if f.name not in ("namespace", "actual", "replace")]
            return " ".join(filter(None, shown)) + (" (made anew)" if getattr(op, "replace", False) else "")


def _value(value: object) -> str:
    match value:
        case tuple() | frozenset():
            # a member that is itself a tuple is a row: key and value
            members = sorted("=".join(member) if isinstance(member, tuple) else _value(member) for member in value)
            rest = f" and {len(members) - SHOWN} more" if len(members) > SHOWN else ""
            return ", ".join(members[:SHOWN]) + rest
        case _ if hasattr(value, "__dataclass_fields__"):
            return _members(value)
    return str(value)


def _members(value: object) -> str:
    """The fields of a dataclass that say something; the name first."""
    found = []
    for field in fields(value):  # type: ignore[arg-type]
        member = getattr(value, field.name)
        if member is None or isinstance(member, bool) or (isinstance(member, Sized) and not len(member)):
            continue
        found.append(str(member) if field.name == "name" else f"{field.name}={_value(member)}")
    return " ".join(found)
