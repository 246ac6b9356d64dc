"""Whom to ask about names that are not ours, as an asker's networks and the asker itself say.

Pure. The asker's own upstreams go before those of its networks, the first network that names some before the others. A route sends
a domain and all below it to servers of its own; the longest domain wins. One network that forbids forwarding is enough: then only
routes are left.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dnsd.errors import ConfigError
from dnsd.model import ScopeSpec, ZoneSpec
from dnsd.names import name_of
from dnsd.resolvers import Endpoint, parse_endpoint

# None: the node's own resolvers, whatever they are at that moment. Empty: nobody.
Upstreams = tuple[Endpoint, ...] | None


class Policy(msgspec.Struct, frozen=True):
    """upstreams: for what no route covers. routes: domain as a wire name -> upstreams, longest first. forward False: routes only."""

    forward: bool = True
    upstreams: Upstreams = None
    routes: tuple[tuple[bytes, Upstreams], ...] = ()

    def route_of(self, name: bytes) -> bytes | None:
        """The domain whose servers know the name."""
        return next((domain for domain, _ in self.routes if _is_below(name, domain)), None)

    def upstreams_of(self, name: bytes) -> Upstreams:
        for domain, upstreams in self.routes:
            if _is_below(name, domain):
                return upstreams
        return self.upstreams if self.forward else ()


def policy_of(scope: ScopeSpec, zones: Iterable[ZoneSpec]) -> tuple[Policy, list[str]]:
    """zones: those the scope sees, in its order. Also sentences about upstreams and domains that make no sense; whatever is left
    of them is used, so that nobody is asked who was not meant to be."""
    problems: list[str] = []
    forward = scope.forward
    upstreams = _endpoints(scope.upstreams, f"scope {scope.id!r}", problems) if scope.upstreams else None
    routes: dict[bytes, Upstreams] = {}
    for zone in zones:
        who = f"network {zone.name!r}"
        forward = forward and zone.forward
        if upstreams is None and zone.upstreams:
            upstreams = _endpoints(zone.upstreams, who, problems)
        for route in zone.routes:
            domain = name_of(route.domain)
            if domain is None:
                problems.append(f"{who}: route left out: {route.domain!r} can't be a domain")
                continue
            routes.setdefault(domain, _endpoints(route.upstreams, who, problems) if route.upstreams else None)
    ordered = tuple(sorted(routes.items(), key=lambda route: (-len(route[0]), route[0])))
    return Policy(forward, upstreams, ordered), problems


def _endpoints(texts: Iterable[str], who: str, problems: list[str]) -> tuple[Endpoint, ...]:
    endpoints: dict[Endpoint, None] = {}
    for text in texts:
        try:
            endpoints[parse_endpoint(text)] = None
        except ConfigError as error:
            problems.append(f"{who}: upstream left out: {error}")
    return tuple(endpoints)


def _is_below(name: bytes, domain: bytes) -> bool:
    """Whether `name` is `domain` or a name below it. Both are lower-case wire names."""
    at = len(name) - len(domain)
    if at < 0 or not name.endswith(domain):
        return False
    # The same bytes may also lie within a label: only where a label starts they are the domain.
    start = 0
    while start < at:
        start += 1 + name[start]
    return start == at
