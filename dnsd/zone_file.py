"""A zone written by hand, in TOML or YAML, for dnsd as a plain little server.

`parse_zone` is pure; edge: `read_zone` reads the file. Unknown fields are errors, so that a typing mistake doesn't go unnoticed.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from dnsd.errors import ConfigError
from dnsd.model import PortName, ServiceName, TaskName, ZoneSpec
from dnsd.resolvers import parse_endpoint
from dnsd.zone import Zone


class _Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    addresses: tuple[str, ...] = ()
    slot: int = 0
    aliases: tuple[str, ...] = ()
    serving: bool = True


class _Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    port: int
    protocol: str = "tcp"
    name: str = ""


class _Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    vips: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    tasks: tuple[_Task, ...] = ()
    ports: tuple[_Port, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """forward: ask others about names that aren't here; upstreams: whom, instead of the node's own resolvers."""

    network: str = "local"
    forward: bool = True
    upstreams: tuple[str, ...] = ()
    vip_ttl_s: int = 5
    task_ttl_s: int = 0
    services: tuple[_Service, ...] = ()
    containers: tuple[_Task, ...] = ()


class ZoneFile(msgspec.Struct, frozen=True):
    zone: ZoneSpec
    forward: bool
    upstreams: tuple[str, ...]


def read_zone(path: Path) -> ZoneFile:
    """ConfigError: it can't be read or makes no sense; the sentence says where."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the zone file {path} can't be read: {error.strerror}") from error
    if path.suffix not in (".toml", ".yaml", ".yml"):
        raise ConfigError(f"the zone file {path} must end in .toml, .yaml or .yml")
    return parse_zone(content, yaml=path.suffix != ".toml", name=str(path))


def parse_zone(content: bytes, *, yaml: bool, name: str) -> ZoneFile:
    try:
        file = msgspec.yaml.decode(content, type=_File) if yaml else msgspec.toml.decode(content, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {error}") from error
    for upstream in file.upstreams:
        parse_endpoint(upstream)
    zone = ZoneSpec(
        network="file",
        name=file.network,
        services=tuple(_service(service) for service in file.services),
        containers=tuple(_task(task) for task in file.containers),
        vip_ttl_s=file.vip_ttl_s,
        task_ttl_s=file.task_ttl_s,
    )
    problems = Zone(zone).problems
    if problems:
        raise ConfigError(f"{name}: {problems[0]}")
    return ZoneFile(zone=zone, forward=file.forward, upstreams=file.upstreams)


def _service(service: _Service) -> ServiceName:
    return ServiceName(
        id=service.name,
        name=service.name,
        aliases=service.aliases,
        vips=service.vips,
        tasks=tuple(_task(task) for task in service.tasks),
        ports=tuple(PortName(name=port.name, protocol=port.protocol, port=port.port) for port in service.ports),
    )


def _task(task: _Task) -> TaskName:
    return TaskName(id=task.name, name=task.name, slot=task.slot, addresses=task.addresses, aliases=task.aliases, serving=task.serving)
