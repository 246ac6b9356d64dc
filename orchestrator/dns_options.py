"""What a network says about names outside the cluster: the options of `docker network create --opt`.

Pure.

    meshd.dns.forward=false                      names outside don't exist, but for the domains below
    meshd.dns.upstreams=10.0.0.53,10.0.1.53      asked instead of the nodes' own resolvers
    meshd.dns.upstreams.corp.example=10.1.0.53   this domain and all below it is asked here; empty: of the nodes' own resolvers
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from dnsd.errors import ConfigError as DnsConfigError
from dnsd.model import RouteSpec
from dnsd.names import name_of
from dnsd.resolvers import parse_endpoint
from orchestrator.errors import ConfigError

_PREFIX = "meshd.dns."
_BOOLEANS = {"true": True, "false": False}


class DnsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """See `dnsd.policy` for what follows from them when a task is on several networks."""

    forward: bool = True
    upstreams: tuple[str, ...] = ()
    routes: tuple[RouteSpec, ...] = ()


def dns_options(options: Mapping[str, str]) -> DnsOptions:
    """Options of others are ignored. ConfigError: one of ours makes no sense; the sentence names it."""
    forward = True
    upstreams: tuple[str, ...] = ()
    routes: list[RouteSpec] = []
    for key in sorted(options):
        if not key.startswith(_PREFIX):
            continue
        value = options[key].strip()
        match key.removeprefix(_PREFIX).split(".", 1):
            case ["forward"]:
                if value not in _BOOLEANS:
                    raise ConfigError(f"option {key}: {value!r} is neither true nor false")
                forward = _BOOLEANS[value]
            case ["upstreams"]:
                upstreams = _servers(key, value)
                if not upstreams:
                    raise ConfigError(f"option {key} names no server: leave it out, or set meshd.dns.forward=false")
            case ["upstreams", domain]:
                if name_of(domain) is None:
                    raise ConfigError(f"option {key}: {domain!r} can't be a domain")
                routes.append(RouteSpec(domain=domain.lower().removesuffix("."), upstreams=_servers(key, value)))
            case _:
                raise ConfigError(f"unknown option {key}: expected {_PREFIX}forward, {_PREFIX}upstreams or {_PREFIX}upstreams.<domain>")
    return DnsOptions(forward=forward, upstreams=upstreams, routes=tuple(routes))


def _servers(key: str, value: str) -> tuple[str, ...]:
    servers = tuple(text.strip() for text in value.split(",") if text.strip())
    for server in servers:
        try:
            parse_endpoint(server)
        except DnsConfigError as error:
            raise ConfigError(f"option {key}: {error}") from error
    return servers
