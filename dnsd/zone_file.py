"""A zone written by hand, in TOML or YAML, for dnsd as a plain little server.

`parse_zone` is pure; edge: `read_zone` reads the file. Unknown fields are errors, so that a typing mistake doesn't go unnoticed; every
error names the field, all of them are told at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from dnsd.errors import ConfigError
from dnsd.model import PortName, RouteSpec, ServiceName, TaskName, ZoneSpec
from dnsd.names import name_of, packed_address
from dnsd.resolvers import parse_endpoint

SUFFIXES = (".toml", ".yaml", ".yml")

_Ttl = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a file may hold."""


class _Task(_Strict, frozen=True):
    name: str
    addresses: tuple[str, ...] = ()
    slot: Annotated[int, msgspec.Meta(ge=0)] = 0
    aliases: tuple[str, ...] = ()
    serving: bool = True


class _Port(_Strict, frozen=True):
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    name: str = ""


class _Service(_Strict, frozen=True):
    name: str
    vips: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    tasks: tuple[_Task, ...] = ()
    ports: tuple[_Port, ...] = ()


class _Route(_Strict, frozen=True):
    domain: str
    upstreams: tuple[str, ...] = ()


class _File(_Strict, frozen=True):
    """hosts: name -> address or addresses. forward, upstreams, routes: whom to ask about names that aren't here."""

    network: str = "local"
    forward: bool = True
    upstreams: tuple[str, ...] = ()
    routes: tuple[_Route, ...] = ()
    vip_ttl_s: _Ttl = 5
    task_ttl_s: _Ttl = 0
    hosts: dict[str, str | tuple[str, ...]] = {}
    services: tuple[_Service, ...] = ()
    containers: tuple[_Task, ...] = ()


def read_zone(path: Path) -> ZoneSpec:
    """ConfigError: it can't be read or makes no sense; the sentences say where."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"the zone file {path} must end in .toml, .yaml or .yml")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the zone file {path} can't be read: {error.strerror}") from error
    return parse_zone(content, yaml=path.suffix != ".toml", name=str(path))


def parse_zone(content: bytes, *, yaml: bool, name: str) -> ZoneSpec:
    """ConfigError: a line for each problem, `<name>: <field>: <what is wrong>`."""
    try:
        file = msgspec.yaml.decode(content or b"{}", type=_File) if yaml else msgspec.toml.decode(content, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {_located(error)}") from error
    problems = list(_problems(file))
    if problems:
        raise ConfigError("\n".join(f"{name}: {problem}" for problem in problems))
    hosts = tuple(
        TaskName(id=host, name=host, addresses=(addresses,) if isinstance(addresses, str) else addresses)
        for host, addresses in file.hosts.items()
    )
    return ZoneSpec(
        network="file",
        name=file.network,
        services=tuple(_service(service) for service in file.services),
        containers=hosts + tuple(_task(task) for task in file.containers),
        vip_ttl_s=file.vip_ttl_s,
        task_ttl_s=file.task_ttl_s,
        forward=file.forward,
        upstreams=file.upstreams,
        routes=tuple(RouteSpec(domain=route.domain, upstreams=route.upstreams) for route in file.routes),
    )


def _located(error: Exception) -> str:
    """msgspec's sentence with the field in front; a syntax error has its line and column."""
    sentence = " ".join(str(error).split())
    found = re.fullmatch(r"(.*) - at `(?:key in )?\$\.?(.*)`", sentence)
    return f"{found[2]}: {found[1]}" if found and found[2] else sentence.removesuffix(" - at `$`")


def _problems(file: _File) -> Iterator[str]:
    """What the types can't say."""
    yield from _bad_names((("network", file.network),))
    yield from _bad_upstreams("upstreams", file.upstreams)
    for index, route in enumerate(file.routes):
        yield from _bad_names(((f"routes[{index}].domain", route.domain),))
        yield from _bad_upstreams(f"routes[{index}].upstreams", route.upstreams)
    for host, addresses in file.hosts.items():
        yield from _bad_names(((f"hosts.{host}", host),))
        if isinstance(addresses, str):
            yield from _bad_addresses(((f"hosts.{host}", addresses),))
        else:
            yield from _bad_addresses(_numbered(f"hosts.{host}", addresses))
    first: dict[str, int] = {}
    for index, service in enumerate(file.services):
        where = f"services[{index}]"
        earlier = first.setdefault(service.name.lower(), index)
        if earlier != index:
            yield f"{where}.name: services[{earlier}] already has the name {service.name!r}"
        yield from _bad_names(((f"{where}.name", service.name), *_numbered(f"{where}.aliases", service.aliases)))
        yield from _bad_addresses(_numbered(f"{where}.vips", service.vips))
        for number, task in enumerate(service.tasks):
            yield from _task_problems(f"{where}.tasks[{number}]", task)
    for index, task in enumerate(file.containers):
        yield from _task_problems(f"containers[{index}]", task)


def _task_problems(where: str, task: _Task) -> Iterator[str]:
    yield from _bad_names(((f"{where}.name", task.name), *_numbered(f"{where}.aliases", task.aliases)))
    yield from _bad_addresses(_numbered(f"{where}.addresses", task.addresses))


def _numbered(where: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    return [(f"{where}[{index}]", text) for index, text in enumerate(texts)]


def _bad_names(fields: Iterable[tuple[str, str]]) -> Iterator[str]:
    for where, text in fields:
        if name_of(text) is None:
            yield f"{where}: {text!r} is no name: expected labels of 1 to 63 bytes between dots, 253 in all"


def _bad_addresses(fields: Iterable[tuple[str, str]]) -> Iterator[str]:
    for where, text in fields:
        if packed_address(text) is None:
            yield f"{where}: {text!r} is no address: expected one such as 10.0.0.2 or fd00::2"


def _bad_upstreams(where: str, texts: Iterable[str]) -> Iterator[str]:
    for field, text in _numbered(where, texts):
        try:
            parse_endpoint(text)
        except ConfigError as error:
            yield f"{field}: {error}"


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
