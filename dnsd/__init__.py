"""An embedded DNS server for the names of container networks: services, tasks, containers; everything else is forwarded.

The asker's socket decides what it sees. Describe networks with `ZoneSpec`, who may ask with `ScopeSpec`, hand both to a
`Server`; or talk to a server process through `Client`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnsd.client import Client as Client
    from dnsd.errors import ConfigError as ConfigError
    from dnsd.errors import DnsError as DnsError
    from dnsd.errors import DnsUnavailable as DnsUnavailable
    from dnsd.model import Applied as Applied
    from dnsd.model import DnsState as DnsState
    from dnsd.model import PortName as PortName
    from dnsd.model import RouteSpec as RouteSpec
    from dnsd.model import ScopeSpec as ScopeSpec
    from dnsd.model import ScopeStatus as ScopeStatus
    from dnsd.model import ServiceName as ServiceName
    from dnsd.model import Status as Status
    from dnsd.model import TaskName as TaskName
    from dnsd.model import ZoneSpec as ZoneSpec
    from dnsd.model import ZoneStatus as ZoneStatus
    from dnsd.server import Server as Server
    from dnsd.version import VERSION as VERSION
    from dnsd.zone import Zone as Zone

# Where a name of this package is looked for when it is first used: a dnsd that was killed must not load all of it before it opens its
# sockets again.
_MODULES = ("model", "errors", "version", "zone", "client", "server")


def __getattr__(name: str) -> Any:
    if name[:1].isupper():
        for module in _MODULES:
            found = getattr(import_module(f"dnsd.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module 'dnsd' has no attribute {name!r}")
