"""A zone as it travels and is kept: encoded, and read back piece by piece.

Pure. A zone of a hundred thousand names is five megabytes of msgpack; as objects it would be forty, and making them all at once
would take longer than an asker should wait.
"""

from __future__ import annotations

import hashlib
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
    return hashlib.blake2b(body, digest_size=16).hexdigest()


class EncodedZone:
    """body: a ZoneSpec in msgpack. msgspec.DecodeError, from here or from reading on: it is none."""

    __slots__ = ("body", "settings")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.settings: ZoneSpec = msgspec.structs.replace(_settings.decode(body), services=(), containers=())

    @property
    def network(self) -> str:
        return self.settings.network

    def services(self) -> Iterator[tuple[ServiceHead, Iterator[TaskName]]]:
        for raw in _parts.decode(self.body).services:
            head = _service.decode(raw)
            yield head, map(_task.decode, head.tasks)

    def containers(self) -> Iterator[TaskName]:
        return map(_task.decode, _parts.decode(self.body).containers)

    def decode(self) -> ZoneSpec:
        return _zone.decode(self.body)
