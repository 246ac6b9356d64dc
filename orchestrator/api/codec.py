"""JSON of requests and answers: Go's habits in, Docker's bytes out.

Pure: no I/O. Source: moby api/server/httputils (ReadJSON), encoding/json. Go clients send `null` for what they leave out, so nulls
are dropped before msgspec looks; unknown fields are ignored by the structs.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

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
        return without_nulls(msgspec.json.decode(body))
    except msgspec.DecodeError as error:
        if "truncated" in str(error):
            raise ApiError(400, "unexpected EOF") from None
        raise ApiError(400, f"invalid JSON: {error}") from None


def decode(body: bytes, cls: type[T]) -> T:
    return convert(parse(body), cls)


def convert(value: Any, cls: type[T]) -> T:
    try:
        return msgspec.convert(value, cls)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"invalid request: {error}") from None


def encode(value: Any) -> bytes:
    """With the newline that Go's encoder ends on."""
    return msgspec.json.encode(value) + b"\n"
