"""Where scopes listen: one place a scope, one scope a place.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dnsd.errors import ConfigError
from dnsd.model import ScopeSpec
from dnsd.resolvers import Endpoint, endpoint_text, parse_endpoint

# Namespace, address and port; the scope's id if the kernel is to choose the port.
Place = tuple[str, str, str]


class Wanted(msgspec.Struct, frozen=True):
    """A scope that could be open, and where it listens."""

    scope: ScopeSpec
    place: Place
    listen: Endpoint


def places_of(scopes: Sequence[ScopeSpec]) -> tuple[dict[Place, Wanted], dict[str, str]]:
    """Where scopes are to listen; and which of them can't, and why."""
    wanted: dict[Place, Wanted] = {}
    failed: dict[str, str] = {}
    for scope in scopes:
        try:
            listen = parse_endpoint(scope.listen)
        except ConfigError as error:
            failed[scope.id] = str(error)
            continue
        place = (scope.netns, endpoint_text(listen), scope.id if listen[1] == 0 else "")
        if place in wanted:
            failed[scope.id] = f"{scope.listen} in {scope.netns or 'our own namespace'} already serves scope {wanted[place].scope.id!r}"
        else:
            wanted[place] = Wanted(scope, place, listen)
    return wanted, failed
