"""What a user calls an object: its id, its name, or the beginning of its id if only one begins so.

Pure: no I/O. Source: moby daemon/cluster/helpers.go (getService, getNode, ...): id first, then name, then id prefix.
"""

from __future__ import annotations

from typing import TypeVar, cast

from orchestrator.errors import ApiError
from orchestrator.model import KIND_OF, Config, Network, Node, Object, Secret, Service, Task
from orchestrator.store.snapshot import Snapshot

T = TypeVar("T", Service, Task, Node, Network, Secret, Config)


def name_of(obj: Object) -> str:
    """The name users see; of a task "web.1" (of an attachment its container's), of a node its hostname unless it was given a name."""
    match obj:
        case Service() | Secret() | Config():
            return obj.spec.name
        case Network():
            return obj.name
        case Node():
            return obj.spec.name or obj.description.hostname
        case Task():
            return obj.name or f"{obj.mesh_service_name}.{obj.slot or obj.node_id}"
        case _:
            return ""


def find(snapshot: Snapshot, cls: type[T], reference: str) -> T:
    """ApiError(404) `service x not found`; ApiError(400) when several objects answer to it."""
    kind = KIND_OF[cast(type[Object], cls)]
    exact = snapshot.get(cls, reference)
    if exact is not None:
        return exact
    # where names are claimed, the claim says at once whose it is
    claim = snapshot.claim(f"{kind}/{reference}")
    owner = snapshot.get(cls, claim.owner) if claim is not None else None
    if owner is not None and name_of(owner) == reference:
        return owner
    objects = list(snapshot.all(cls))
    found = [obj for obj in objects if name_of(obj) == reference]
    if not found and reference:
        found = [obj for obj in objects if obj.id.startswith(reference)]
    if not found:
        raise ApiError(404, f"{kind} {reference} not found")
    if len(found) > 1:
        raise ApiError(400, f"{kind} {reference} is ambiguous ({len(found)} matches found)")
    return found[0]
