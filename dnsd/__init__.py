"""An embedded DNS server for the names of container networks: services, tasks, containers; everything else is forwarded.

The asker's socket decides what it sees. Describe networks with `ZoneSpec`, who may ask with `ScopeSpec`, hand both to a
`Server`; or talk to a server process through `Client`.
"""

from dnsd.client import Client
from dnsd.errors import ConfigError, DnsError, DnsUnavailable
from dnsd.model import Applied, DnsState, PortName, RouteSpec, ScopeSpec, ScopeStatus, ServiceName, Status, TaskName, ZoneSpec, ZoneStatus
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
