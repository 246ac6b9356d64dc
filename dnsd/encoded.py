"""A zone as it travels and is kept: encoded, and read back piece by piece.

Pure. A zone of a hundred thousand names is five megabytes of msgpack; as objects it would be forty, and making them all at once
would take longer than an asker should wait.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import msgspec

from dnsd.model import PortName, TaskName, ZoneSpec


class ServiceHead(msgspec.Struct, frozen=True, kw_only=True):
    """A ServiceName whose tasks were not read yet."""

    name: str
    aliases: tuple[str, ...] = ()
    vips: tuple[str, ...] = ()
    ports: tuple[PortName, ...] = ()
    tasks: tuple[msgspec.Raw, ...] = ()


class _Parts(msgspec.Struct, frozen=True, kw_only=True):
    services: tuple[msgspec.Raw, ...] = ()
    containers: tuple[msgspec.Raw, ...] = ()


class _Settings(ZoneSpec, frozen=True, kw_only=True):
    """What is left of a ZoneSpec when its names are skipped."""

    services: msgspec.Raw = msgspec.Raw()  # type: ignore[assignment]
    containers: msgspec.Raw = msgspec.Raw()  # type: ignore[assignment]


_zone = msgspec.msgpack.Decoder(ZoneSpec)
_settings = msgspec.msgpack.Decoder(_Settings)
_parts = msgspec.msgpack.Decoder(_Parts)
_service = msgspec.msgpack.Decoder(ServiceHead)
_task = msgspec.msgpack.Decoder(TaskName)
encode = msgspec.msgpack.Encoder().encode


def digest_of(body: bytes) -> str:
    # Loaded when it is needed: it takes OpenSSL along.
    import hashlib

    return hashlib.blake2b(body, digest_size=16).hexdigest()


class EncodedZone:
    """settings: all but the names. packed: the whole, compressed. msgspec.DecodeError, from here or from reading on: it is no zone."""

    __slots__ = ("packed", "settings")

    def __init__(self, body: bytes) -> None:
        """body: a ZoneSpec in msgpack."""
        self.settings: ZoneSpec = msgspec.structs.replace(_settings.decode(body), services=(), containers=())
        self.packed = zlib.compress(body, 1)

    @classmethod
    def unpacked(cls, packed: bytes) -> EncodedZone:
        zone = cls.__new__(cls)
        try:
            zone.settings = msgspec.structs.replace(_settings.decode(zlib.decompress(packed)), services=(), containers=())
        except zlib.error as error:
            raise msgspec.DecodeError(f"it can't be decompressed: {error}") from error
        zone.packed = packed
        return zone

    @property
    def network(self) -> str:
        return self.settings.network

    def parts(self) -> tuple[Iterator[tuple[ServiceHead, Iterator[TaskName]]], Iterator[TaskName]]:
        """Services with their tasks, and containers; each is made when it is its turn."""
        parts = _parts.decode(zlib.decompress(self.packed))
        heads = map(_service.decode, parts.services)
        return ((head, map(_task.decode, head.tasks)) for head in heads), map(_task.decode, parts.containers)

    def decode(self) -> ZoneSpec:
        return _zone.decode(zlib.decompress(self.packed))
