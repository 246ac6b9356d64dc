"""JSON of requests and answers: Go's habits in, Docker's bytes out.

Pure: no I/O. Source: moby api/server/httputils (ReadJSON), encoding/json. Go clients send `null` for what they leave out, so nulls
are dropped before msgspec looks; unknown fields are ignored by the structs.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from orchestrator.errors import ApiError

T = TypeVar("T")


def without_nulls(value: Any) -> Any:
    """The same JSON value with every null member of an object left out, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [without_nulls(member) for member in value]
    return value


def parse(body: bytes) -> Any:
    """JSON, nulls dropped; ApiError(400) with the words of Go's decoder where they are known."""
    if not body.strip():
        raise ApiError(400, "EOF")
    try:
        value = without_nulls(msgspec.json.decode(body))
    except msgspec.DecodeError as error:
        if "truncated" in str(error):
            raise ApiError(400, "unexpected EOF") from None
        raise ApiError(400, f"invalid JSON: {error}") from None
    except RecursionError:
        raise ApiError(400, "invalid JSON: nested too deeply") from None
    _in_64_bits(value)
    return value


def _in_64_bits(value: Any) -> None:
    """Python's integers have no end, Go's do: one stored beyond it would make every list that shows it unreadable to the CLI."""
    if isinstance(value, dict):
        for member in value.values():
            _in_64_bits(member)
    elif isinstance(value, list):
        for member in value:
            _in_64_bits(member)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ApiError(400, f"json: cannot unmarshal number {value} into a field of 64 bits")


def decode(body: bytes, cls: type[T]) -> T:
    """`null` is what Go makes of nothing sent: a struct of zero values."""
    value = parse(body)
    return convert({} if value is None else value, cls)


def convert(value: Any, cls: type[T]) -> T:
    try:
        return msgspec.convert(_in_our_case(value, _type_info(cast(Any, cls))), cls)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"invalid request: {error}") from None


@functools.cache
def _type_info(cls: Hashable) -> inspect.Type:
    return inspect.type_info(cls)


@functools.cache
def _members(cls: Hashable) -> dict[str, tuple[str, inspect.Type]]:
    """Lower-case member name -> the name as we write it, and its type."""
    info = _type_info(cls)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name.lower(): (field.encode_name, field.type) for field in info.fields}


def _in_our_case(value: Any, info: inspect.Type) -> Any:
    """Go matches member names whatever their case, and docker-py counts on it: it sends {"Mode": {"replicated": ...}}. Keys of maps
    (labels, options) are the user's and stay as they are."""
    if isinstance(info, inspect.UnionType):
        for member in info.types:
            if isinstance(value, dict) and isinstance(member, inspect.StructType | inspect.DictType):
                return _in_our_case(value, member)
            if isinstance(value, list) and isinstance(member, inspect.ListType):
                return _in_our_case(value, member)
        return value
    if isinstance(info, inspect.ListType) and isinstance(value, list):
        return [_in_our_case(item, info.item_type) for item in value]
    if isinstance(info, inspect.StructType) and isinstance(value, dict):
        members = _members(info.cls)
        fitted: dict[str, Any] = {}
        for key, item in value.items():
            name, type = members.get(key.lower(), (key, None))
            if name == key or name not in value:
                fitted[name] = item if type is None else _in_our_case(item, type)
        return fitted
    return value


def encode(value: Any) -> bytes:
    """With the newline that Go's encoder ends on."""
    return msgspec.json.encode(value) + b"\n"
