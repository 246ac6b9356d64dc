"""What travels over the control socket: requests of a client, replies of dnsd, and how they are framed.

Pure but for reading from a stream. A frame is its length (4 bytes, big-endian) and a msgpack map with the field `type`. A zone
travels as its own encoded bytes, once: afterwards both sides call it by its digest.

    client                          dnsd
    Hello                 ->
                          <-        Welcome (version, digests of the zones it has)
    Apply                 ->
                          <-        Applied, or Missing (digests it no longer has: send Apply again with them), or Refused
    Ask                   ->
                          <-        Status
    Explain               ->
                          <-        Explained, or Refused
    Log                   ->        (switches it on or off, and reads it)
                          <-        Logged, or Refused
"""

from __future__ import annotations

import asyncio

import msgspec

from dnsd.errors import RemoteProtocolError
from dnsd.model import Applied, Explanation, QueryLogged, ScopeSpec, Status

# A zone of 100,000 tasks is some 15 MB.
MAX_FRAME_BYTES = 256 << 20


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    version: str


class Apply(msgspec.Struct, frozen=True, tag="apply"):
    """zones: digests of all zones wanted. bodies: those of them that dnsd doesn't have, encoded."""

    zones: tuple[str, ...]
    bodies: dict[str, bytes]
    scopes: tuple[ScopeSpec, ...]


class Ask(msgspec.Struct, frozen=True, tag="status"):
    """For the Status."""


class Explain(msgspec.Struct, frozen=True, tag="explain"):
    """asker: a task's name, the beginning of it, its service's name or its id. kind: the record type, as text."""

    asker: str
    name: str
    kind: str


class Log(msgspec.Struct, frozen=True, tag="log"):
    """Whether that asker's queries are to be remembered from now on; and give those with a number greater than `after`."""

    asker: str
    on: bool
    after: int = 0


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    version: str
    zones: tuple[str, ...]


class Missing(msgspec.Struct, frozen=True, tag="missing"):
    zones: tuple[str, ...]


class AppliedReply(msgspec.Struct, frozen=True, tag="applied"):
    applied: Applied


class StatusReply(msgspec.Struct, frozen=True, tag="status"):
    status: Status


class Explained(msgspec.Struct, frozen=True, tag="explained"):
    explanation: Explanation


class Logged(msgspec.Struct, frozen=True, tag="logged"):
    """asker: its full name. was_on: whether its queries were remembered before."""

    asker: str
    was_on: bool
    queries: tuple[QueryLogged, ...]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The request made no sense; nothing was changed."""

    reason: str


Request = Hello | Apply | Ask | Explain | Log
Reply = Welcome | Missing | AppliedReply | StatusReply | Explained | Logged | Refused

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)


def frame(message: Request | Reply) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(4) + body


async def read_request(reader: asyncio.StreamReader) -> Request:
    """IncompleteReadError: the client left. RemoteProtocolError: what it sent makes no sense."""
    try:
        request: Request = _requests.decode(await _read_frame(reader))
        return request
    except msgspec.DecodeError as error:
        raise RemoteProtocolError(f"the request can't be read: {error}") from error


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    try:
        reply: Reply = _replies.decode(await _read_frame(reader))
        return reply
    except msgspec.DecodeError as error:
        raise RemoteProtocolError(f"the reply of dnsd can't be read: {error}") from error


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await reader.readexactly(4))
    if size > MAX_FRAME_BYTES:
        raise RemoteProtocolError(f"a frame of {size} bytes is larger than {MAX_FRAME_BYTES}: this is no dnsd control socket")
    return await reader.readexactly(size)
