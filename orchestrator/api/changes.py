"""What a change of a stored object is called in `docker events`.

Pure: no I/O. Source: moby daemon/cluster (logNodeEvent, logServiceEvent, ...). Writes that only the cluster's own loops make (addresses
allocated, heartbeats) are no events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.api import event_filters, references
from orchestrator.api.event_filters import Described
from orchestrator.api.filters import Filters
from orchestrator.model import Config, Network, Node, Object, Secret, Service
from orchestrator.store.base import Event

KINDS = ("service", "node", "network", "secret", "config")


@dataclass(frozen=True, slots=True)
class SwarmEvent:
    """`time`: when the change reached this manager. labels: the object's, for filters."""

    kind: str
    action: str
    id: str
    time: datetime
    attributes: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def time_ns(self) -> int:
        return int(self.time.timestamp()) * 1_000_000_000 + self.time.microsecond * 1000

    def shown(self) -> dict[str, object]:
        return {
            "Type": self.kind,
            "Action": self.action,
            "Actor": {"ID": self.id, "Attributes": self.attributes},
            "scope": "swarm",
            "time": self.time_ns // 1_000_000_000,
            "timeNano": self.time_ns,
        }

    def passes(self, wanted: Filters) -> bool:
        if not wanted.prefix("node", self.id, self.attributes.get("name", "")):
            return False
        return event_filters.passes(wanted, Described(self.kind, self.action, self.id, "swarm", self.attributes, self.labels))


def described(event: Event, now: datetime) -> SwarmEvent | None:
    """None for what users don't see."""
    obj = event.new if event.new is not None else event.old
    if event.kind not in KINDS or obj is None:
        return None
    attributes = {"name": references.name_of(obj)}
    if event.old is None or event.new is None:
        return SwarmEvent(event.kind, "create" if event.old is None else "remove", event.id, now, attributes, _labels(obj))
    differences = _differences(event.old, event.new)
    if differences is None:
        return None
    return SwarmEvent(event.kind, "update", event.id, now, {**attributes, **differences}, _labels(obj))


def _differences(old: Object, new: Object) -> dict[str, str] | None:
    """Attributes that tell what changed; None when nothing did that users set or see as a state."""
    match old, new:
        case Service(), Service():
            states = (old.update_status.state if old.update_status else "", new.update_status.state if new.update_status else "")
            if old.spec == new.spec and states[0] == states[1]:
                return None
            return {
                **_pair("replicas", _replicas(old), _replicas(new)),
                **_pair("image", _image(old), _image(new)),
                **_pair("updatestate", *states),
            }
        case Node(), Node():
            found = {
                **_pair("state", old.status.state, new.status.state),
                **_pair("availability", old.spec.availability, new.spec.availability),
                **_pair("role", old.spec.role, new.spec.role),
                **_pair("reachability", _reachability(old), _reachability(new)),
            }
            return found if found or old.spec != new.spec else None
        case Secret(), Secret():
            return {} if old.spec != new.spec else None
        case Config(), Config():
            return {} if old.spec != new.spec else None
        case _:
            return None


def _pair(name: str, old: str, new: str) -> dict[str, str]:
    if old == new:
        return {}
    return {f"{name}.{age}": value for age, value in (("new", new), ("old", old)) if value}


def _replicas(service: Service) -> str:
    replicated = service.spec.mode.replicated
    return "" if replicated is None or replicated.replicas is None else str(replicated.replicas)


def _image(service: Service) -> str:
    container = service.spec.task_template.container_spec
    return container.image if container is not None else ""


def _reachability(node: Node) -> str:
    return node.manager_status.reachability if node.manager_status is not None else ""


def _labels(obj: Object) -> dict[str, str]:
    match obj:
        case Service() | Secret() | Config() | Node():
            return obj.spec.labels or {}
        case Network():
            return obj.labels or {}
        case _:
            return {}
