"""Classic Swarm's expressions in environment variables and labels: `constraint:storage==ssd`, `affinity:image!=~redis*`.

Pure: no I/O. Source: classicswarm scheduler/filter/expression.go (grammar), cluster/config.go (where they are written): env entries
`constraint:...` and `affinity:...`, container labels com.docker.swarm.constraints and com.docker.swarm.affinities (JSON lists). A value is
text with `*`, or /a regular expression/; `~` before it makes the expression soft: wanted, not demanded.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from orchestrator.errors import ConfigError
from orchestrator.model import ContainerSpec, Node

Kind = Literal["constraint", "affinity"]
_KEY = re.compile(r"[a-z_][a-z0-9\-_.]+", re.IGNORECASE | re.ASCII)
_LABELS: dict[Kind, str] = {"constraint": "com.docker.swarm.constraints", "affinity": "com.docker.swarm.affinities"}
# what classic Swarm took out of the environment before the container saw it
_PREFIXES = ("constraint:", "affinity:", "reschedule:", "whitelist:")
# users' patterns run in the leader's loop
_MAX_VALUE = 256


@dataclass(frozen=True, slots=True)
class Expression:
    """`equal` False is `!=`; `soft`: as many as possible, never at the price of not running."""

    kind: Kind
    key: str
    equal: bool
    soft: bool
    pattern: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.key}{'==' if self.equal else '!='}{'~' if self.soft else ''}{self.pattern}"

    def accepts(self, value: str) -> bool:
        """Does the pattern match the value, whatever the operator?"""
        return _compiled(self.pattern).search(value) is not None

    def holds(self, values: Iterable[str]) -> bool:
        """`==`: the pattern matches one of the values; `!=`: none."""
        return any(self.accepts(value) for value in values) is self.equal


def expressions_of(container: ContainerSpec | None) -> tuple[Expression, ...]:
    """All of a container's, those of the environment first. ConfigError: one can't be read."""
    if container is None:
        return ()
    return tuple(_parse(kind, text) for kind, text in _texts(container))


def node_values(node: Node, key: str) -> tuple[str, ...]:
    """What a constraint's key means on the node: `node` its id or name, the rest what the Engine says of its machine, else a label of the
    node or of its Engine. What it doesn't have is empty."""
    if key == "node":
        return (node.id, node.description.hostname)
    if key == "ostype":
        return (node.description.platform.os,)
    for labels in (node.description.mesh_facts, node.spec.labels, node.description.engine.labels):
        if labels and key in labels:
            return (labels[key],)
    return ("",)


def without_expressions(environment: Iterable[str]) -> list[str]:
    """The environment that the container is to see."""
    return [entry for entry in environment if not entry.startswith(_PREFIXES)]


def _texts(container: ContainerSpec) -> Iterator[tuple[Kind, str]]:
    for kind, label in _LABELS.items():
        for entry in container.env or ():
            if entry.startswith(f"{kind}:"):
                yield kind, entry.partition(":")[2]
        listed = (container.labels or {}).get(label)
        if listed is not None:
            try:
                texts = msgspec.json.decode(listed, type=list[str])
            except msgspec.MsgspecError:
                raise ConfigError(f'label {label}: expected a JSON list of expressions, such as ["storage==ssd"]') from None
            for text in texts:
                yield kind, text


def _parse(kind: Kind, text: str) -> Expression:
    operator = next((operator for operator in ("==", "!=") if operator in text), None)
    if operator is None:
        raise ConfigError(f"{kind} '{text}' is invalid: expected <key>==<value> or <key>!=<value>")
    key, value = text.split(operator, 1)
    if not _KEY.fullmatch(key):
        raise ConfigError(f"{kind} '{text}' is invalid: '{key}' is no key")
    soft = value.startswith("~")
    pattern = value[1:] if soft else value
    if not pattern or len(pattern) > _MAX_VALUE:
        raise ConfigError(f"{kind} '{text}' is invalid: expected a value of 1 to {_MAX_VALUE} characters")
    try:
        _compiled(pattern)
    except re.error as error:
        raise ConfigError(f"{kind} '{text}' is invalid: {error}") from None
    return Expression(kind, key, operator == "==", soft, pattern)


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    if len(pattern) > 1 and pattern[0] == pattern[-1] == "/":
        return re.compile(pattern[1:-1])
    return re.compile(rf"\A{'.*'.join(re.escape(part) for part in pattern.split('*'))}\Z", re.DOTALL)
