"""The `filters` query parameter: both JSON forms, unknown keys refused, how values match.

Pure: no I/O. Source: moby api/types/filters, daemon/cluster/filters.go. Go clients send {"name":{"web":true}}, others {"name":["web"]}.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from orchestrator.errors import ApiError
from orchestrator.model import TaskState

SERVICE_KEYS = frozenset({"name", "id", "label", "mode", "runtime"})
TASK_KEYS = frozenset({"name", "id", "label", "service", "node", "desired-state", "runtime", "_up-to-date"})
NODE_KEYS = frozenset({"id", "label", "node.label", "name", "role", "membership"})
NODE_ROLES = frozenset({"worker", "manager"})
MEMBERSHIPS = frozenset({"accepted", "pending"})
# all that a task can be; Docker takes each as a desired state, though only some ever are one
TASK_STATES = frozenset(state.value for state in TaskState)
SECRET_KEYS = frozenset({"id", "name", "names", "label"})
NETWORK_KEYS = frozenset({"driver", "type", "name", "id", "label", "scope", "dangling"})
NETWORK_PRUNE_KEYS = frozenset({"label", "label!", "until"})


@dataclass(frozen=True, slots=True)
class Filters:
    """Absent key = everything matches. Several values of a key: any of them; of `label`: all of them."""

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def get(self, key: str) -> tuple[str, ...]:
        return self.values.get(key, ())

    def exact(self, key: str, *candidates: str) -> bool:
        wanted = self.values.get(key)
        return not wanted or any(value in candidates for value in wanted)

    def prefix(self, key: str, *candidates: str) -> bool:
        wanted = self.values.get(key)
        # asked of every object of a list, and without a generator it takes a third of the time
        if not wanted:
            return True
        for candidate in candidates:  # noqa: SIM110
            if candidate.startswith(wanted):
                return True
        return False

    def contains(self, key: str, candidate: str) -> bool:
        """Local networks match a name anywhere in it."""
        wanted = self.values.get(key)
        return not wanted or any(value in candidate for value in wanted)

    def labels(self, labels: Mapping[str, str] | None, key: str = "label") -> bool:
        for wanted in self.get(key):
            name, equals, value = wanted.partition("=")
            if name not in (labels or {}) or (equals and (labels or {})[name] != value):
                return False
        return True

    def flag(self, key: str) -> bool | None:
        """A key that takes true or false; None = not given."""
        values = self.get(key)
        if not values:
            return None
        if values[0].lower() in ("true", "1"):
            return True
        if values[0].lower() in ("false", "0"):
            return False
        raise ApiError(400, f'invalid value for filter \'{key}\', must be "true" (or "1"), or "false" (or "0")')

    def one_of(self, key: str, allowed: Collection[str]) -> None:
        """ApiError(400) if a value of `key` is none that Docker knows."""
        for value in self.get(key):
            if value.lower() not in allowed:
                raise ApiError(400, f"Invalid {key} filter: '{value}'")


def parse(text: str, allowed: Collection[str] | None) -> Filters:
    """`allowed` None: any key (for what is passed on). ApiError(400) for anything malformed."""
    if not text:
        return Filters()
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(400, f"invalid filters: {error}") from None
    if not isinstance(raw, dict):
        raise ApiError(400, "invalid filters: must be a JSON object of lists")
    values: dict[str, tuple[str, ...]] = {}
    for key, members in raw.items():
        if allowed is not None and key not in allowed:
            raise ApiError(400, f"Invalid filter '{key}'")
        if members is None:
            continue
        if not isinstance(members, dict | list) or not all(isinstance(member, str) for member in members):
            raise ApiError(400, f"invalid filters: the value of '{key}' must be a list of strings")
        values[key] = tuple(members)
    return Filters(values)
