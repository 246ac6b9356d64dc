"""Which events a client of `docker events` wants to see.

Pure: no I/O. Source: moby daemon/events/filter.go. One rule for the Engines' events and the cluster's, for the past and for what comes:
what is filtered here is filtered alike, whoever told of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.api.filters import Filters

# Their action goes on after a colon ("exec_start: sh -c ..."); named without it, all of them are meant.
_WITH_ARGUMENTS = frozenset({"health_status", "exec_create", "exec_start"})
_NAMED = ("daemon", "container", "plugin", "volume", "network", "service", "secret", "config")
# Types and scope of what no Engine outside swarm mode tells of: a thousand watchers of services are no connection to any Engine.
_THE_CLUSTERS = frozenset({"service", "node", "secret", "config"})
_CLUSTER_SCOPE = frozenset({"swarm"})


@dataclass(frozen=True, slots=True)
class Described:
    """What filters look at. labels: of the object, None = its attributes, as Docker has it."""

    type: str
    action: str
    id: str
    scope: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] | None = None


def passes(wanted: Filters, event: Described) -> bool:
    """All but `node`, which means a node's own events or the Engine they come from."""
    if not wanted.values:
        return True
    name = event.attributes.get("name", "")
    matches_action = wanted.exact if _WITH_ARGUMENTS.isdisjoint(wanted.get("event")) else wanted.prefix
    return (
        matches_action("event", event.action)
        and wanted.exact("type", event.type)
        and wanted.exact("scope", event.scope)
        and all(wanted.prefix(key, event.id, name) for key in _NAMED)
        and _image(wanted, event)
        and wanted.labels(event.attributes if event.labels is None else event.labels)
    )


def asks_engines(wanted: Filters) -> bool:
    """Whether an Engine's event could pass."""
    types, scopes = wanted.get("type"), wanted.get("scope")
    return not ((types and _THE_CLUSTERS.issuperset(types)) or (scopes and _CLUSTER_SCOPE.issuperset(scopes)))


def _image(wanted: Filters, event: Described) -> bool:
    image = event.attributes.get("name" if event.type == "image" else "image", "")
    return wanted.exact("image", event.id, image, _familiar(event.id), _familiar(image))


def _familiar(image: str) -> str:
    """An image's name without tag and digest, as people write it (distribution/reference.FamiliarName)."""
    name = image.partition("@")[0]
    directory, slash, last = name.rpartition("/")
    name = directory + slash + last.partition(":")[0]
    return name.removeprefix("docker.io/").removeprefix("library/")
