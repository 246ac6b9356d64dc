"""What `meshd daemon` was told on its command line.

Pure: checked, no I/O but the machine's host name, and whether and with what secret it comes into a cluster.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import local_state, permissions
from orchestrator.addresses import metrics_endpoint
from orchestrator.api.endpoints import Endpoint, TcpEndpoint, TlsFiles, UnixEndpoint, endpoints, protection
from orchestrator.errors import ConfigError
from orchestrator.formation import order
from orchestrator.formation.order import Order
from orchestrator.security.admission import split_endpoint


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """engine: "unix:///path". listen_addr, metrics: "ip:port" or "". backup_every: minutes, 0 = never. hosts: where the API is served
    besides `socket`. api_rate: requests a second of one client over TCP, 0 = any. audit_log: None = none is kept."""

    state_dir: Path
    socket: Path
    group: str
    engine: str
    advertise_addr: str
    listen_addr: str
    hostname: str
    netns_prefix: str
    etcd_client_port: int
    etcd_peer_port: int
    backup_every: int
    backup_keep: int
    metrics: str
    log_level: str
    permits: frozenset[str] = permissions.DEFAULT
    hosts: tuple[Endpoint, ...] = ()
    tls: TlsFiles | None = None
    api_rate: float = 100.0
    formation: Order | None = None
    audit_log: Path | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> DaemonConfig:
        engine = str(options["engine"])
        if not engine.startswith("unix:///"):
            raise ConfigError(f"--engine {engine}: meshd drives the Engine of its own node through a unix socket: unix:///path")
        options = dict(options)
        permits = permissions.permitted(options.pop("permit", ()), options.pop("forbid", ()))
        for flag in ("advertise_addr", "listen_addr"):
            if options[flag]:
                try:
                    ipaddress.ip_address(split_endpoint(str(options[flag]))[0])
                except ValueError:
                    raise ConfigError(f"--{flag.replace('_', '-')} {options[flag]}: not an IP address") from None
        if options["metrics"]:
            metrics_endpoint(str(options["metrics"]))
        protected = protection(tlsverify=options.pop("tlsverify"), insecure=options.pop("insecure_plain_tcp"))
        hosts = endpoints(options.pop("host"), protected)
        files = TlsFiles(*(Path(options.pop(name)).absolute() for name in ("tlscacert", "tlscert", "tlskey")))
        state_dir = Path(options["state_dir"]).absolute()
        formation = order.read(
            options.pop("retry_join", ()),
            options.pop("bootstrap_expect", 0),
            options.pop("join_secret_file", ""),
            options.pop("join_token_file", ""),
            member=local_state.load(state_dir) is not None,
        )
        audit_log = str(options["audit_log"] or state_dir / "audit.log")
        return cls(
            **{
                **options,
                "state_dir": state_dir,
                "formation": formation,
                "socket": Path(options["socket"]).absolute(),
                "hostname": options["hostname"] or socket.gethostname(),
                "permits": permits,
                "hosts": hosts,
                "audit_log": None if audit_log == "none" else Path(audit_log).absolute(),
                "tls": files if protected == "mutual-tls" else None,
            }
        )

    @property
    def engine_socket(self) -> str:
        return self.engine.removeprefix("unix://")

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where the Docker API is served, each once."""
        return tuple(dict.fromkeys((UnixEndpoint(str(self.socket)), *self.hosts)))

    @property
    def plain_tcp(self) -> tuple[Endpoint, ...]:
        return tuple(host for host in self.hosts if isinstance(host, TcpEndpoint) and not host.tls)
