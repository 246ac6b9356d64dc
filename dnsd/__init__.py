"""An embedded DNS server for the names of container networks: services, tasks, containers; everything else is forwarded.

The asker's socket decides what it sees. Describe networks with `ZoneSpec`, who may ask with `ScopeSpec`, hand both to a
`Server`; or talk to a server process through `Client`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnsd.client import Client
    from dnsd.errors import ConfigError, DnsError, DnsUnavailable
    from dnsd.model import (
        Applied,
        DnsState,
        PortName,
        RouteSpec,
        ScopeSpec,
        ScopeStatus,
        ServiceName,
        Status,
        TaskName,
        ZoneSpec,
        ZoneStatus,
    )
    from dnsd.server import Server
    from dnsd.version import VERSION
    from dnsd.zone import Zone

__all__ = [
    "VERSION",
    "Applied",
    "Client",
    "ConfigError",
    "DnsError",
    "DnsState",
    "DnsUnavailable",
    "PortName",
    "RouteSpec",
    "ScopeSpec",
    "ScopeStatus",
    "Server",
    "ServiceName",
    "Status",
    "TaskName",
    "Zone",
    "ZoneSpec",
    "ZoneStatus",
]

# Where a name of this package is looked for when it is first used: a dnsd that was killed must not load all of it before it opens its
# sockets again.
_MODULES = ("model", "errors", "version", "zone", "client", "server")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f"dnsd.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module 'dnsd' has no attribute {name!r}")
