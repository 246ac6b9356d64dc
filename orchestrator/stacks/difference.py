"""What differs between two objects, field by field, as a person reads it.

Pure. Fields have Docker's names, the path joined with dots; lists of `name=value` are taken apart.
"""

from __future__ import annotations

from typing import Any

import msgspec

_LONGEST = 200


class FieldChange(msgspec.Struct, frozen=True, rename="pascal"):
    """before "" = it was not there; after "" = it goes."""

    field: str
    before: str = ""
    after: str = ""


def differences(old: msgspec.Struct, new: msgspec.Struct) -> list[FieldChange]:
    before, after = _flat(old), _flat(new)
    return [
        FieldChange(field, _short(before.get(field, "")), _short(after.get(field, "")))
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
    ]


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, msgspec.Struct):
        # not to_builtins: which defaults it leaves out depends on where the value came from
        value = dict(zip(value.__struct_encode_fields__, (getattr(value, name) for name in value.__struct_fields__), strict=True))
    if isinstance(value, dict):
        flat: dict[str, str] = {}
        for key, member in value.items():
            flat.update(_flat(member, f"{path}.{key}" if path else str(key)))
        return flat
    if isinstance(value, list):
        if all(isinstance(item, str) and "=" in item for item in value):
            pairs = (item.partition("=") for item in value)
            return {f"{path}.{name}": content for name, _, content in pairs}
        return {path: " ".join(item if isinstance(item, str) else _compact(item) for item in value)} if value else {}
    if value is None or value == "" or value is False:
        return {}
    return {path: str(value)}


def _compact(value: Any) -> str:
    return ",".join(f"{field}={text}" for field, text in sorted(_flat(value).items())) or "-"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
