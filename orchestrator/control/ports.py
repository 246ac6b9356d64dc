"""Published ports of the routing mesh: which service has which, held by claims in the store.

Pure: no I/O. Source: Docker's published ports (1-65535 by choice, 30000-32767 when the user leaves it open). The API claims the ports
that a user names, in the transaction that creates or updates the service; here dynamic ones are chosen and claimed, missing
claims are made good, and those nobody needs any more are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from orchestrator.errors import ConfigError
from orchestrator.model import Claim, PortConfig, Service, ServiceSpec
from orchestrator.store.snapshot import Snapshot

DYNAMIC_PORTS = range(30000, 32768)
_PREFIX = "port/"


def claim_id(port: PortConfig) -> str:
    return f"{_PREFIX}{port.protocol or 'tcp'}/{port.published_port}"


def publishes_ingress(spec: ServiceSpec) -> bool:
    endpoint = spec.endpoint_spec
    return any(is_ingress(port) for port in (endpoint.ports if endpoint else None) or ())


def is_of_port(claim_id: str) -> bool:
    return claim_id.startswith(_PREFIX)


class PortClaims:
    """The claims of a snapshot and those made in this pass."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._made: dict[str, Claim] = {}

    def allocate(self, service: Service) -> tuple[list[PortConfig], list[Claim]]:
        """(the endpoint's ports, claims to write). A dynamic port stays the same over updates. ConfigError: taken or exhausted."""
        spec = service.spec.endpoint_spec
        ports: list[PortConfig] = []
        claims: list[Claim] = []
        # a dynamic port must not be one that the spec names further down
        chosen = {claim_id(port) for port in (spec.ports if spec else None) or () if port.published_port}
        for port in (spec.ports if spec else None) or ():
            if not is_ingress(port):
                ports.append(port)
                continue
            if not port.published_port:
                port = self._dynamic(service, port, chosen)
                chosen.add(claim_id(port))
            ports.append(port)
            claim = self._claim(claim_id(port))
            if claim is not None and claim.owner == service.id:
                continue
            owner = self._snapshot.service(claim.owner) if claim else None
            if owner is not None:
                raise ConfigError(
                    f"port '{port.published_port}' is already in use by service '{owner.spec.name}' ({owner.id}) as an ingress port"
                )
            claims.append(msgspec.structs.replace(claim, owner=service.id) if claim else Claim(id=claim_id(port), owner=service.id))
        return ports, claims

    def accept(self, claims: Iterable[Claim]) -> None:
        self._made.update((claim.id, claim) for claim in claims)

    def orphans(self, stored: Iterable[str], find: Callable[[str], Service | None]) -> list[Claim]:
        """Of these claims those of services that are gone, and of ports their service no longer has; sorted by id."""
        claims = [claim for id in sorted(stored) if id not in self._made and (claim := self._snapshot.claim(id)) is not None]
        return [claim for claim in claims if not _needed(claim, find(claim.owner))]

    def _claim(self, id: str) -> Claim | None:
        return self._made.get(id) or self._snapshot.claim(id)

    def _dynamic(self, service: Service, port: PortConfig, chosen: set[str]) -> PortConfig:
        for had in service.endpoint.ports or ():
            same = msgspec.structs.replace(had, published_port=0) == port
            # what it had need not have been dynamic: a port the user named and now leaves open is kept as well
            if same and had.published_port and claim_id(had) not in chosen and self._is_free_for(service, claim_id(had)):
                return had
        for number in DYNAMIC_PORTS:
            candidate = msgspec.structs.replace(port, published_port=number)
            if claim_id(candidate) not in chosen and self._claim(claim_id(candidate)) is None:
                return candidate
        raise ConfigError(f"no free {port.protocol} port is left between {DYNAMIC_PORTS[0]} and {DYNAMIC_PORTS[-1]} to publish")

    def _is_free_for(self, service: Service, id: str) -> bool:
        claim = self._claim(id)
        return claim is None or claim.owner == service.id


def is_ingress(port: PortConfig) -> bool:
    return port.publish_mode in ("ingress", "")


def _needed(claim: Claim, service: Service | None) -> bool:
    if service is None:
        return False
    spec = service.spec.endpoint_spec
    ports = [*(service.endpoint.ports or ()), *((spec.ports if spec else None) or ())]
    return any(is_ingress(port) and claim_id(port) == claim.id for port in ports)
