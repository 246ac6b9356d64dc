"""Placement constraints: `node.labels.disk==ssd`, as text and as a question asked of a node.

Pure: no I/O. Source: SwarmKit manager/constraint (syntax, case-insensitive keys and values, case-sensitive label names, error
texts). Two things differ on purpose: a key or an address that could never match is refused when it is parsed, instead of leaving
a task pending for ever; and `node.platform.arch` knows that amd64 is x86_64 and arm64 is aarch64.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.errors import ConfigError
from orchestrator.model import Node

_KEY = re.compile(r"[a-z_][a-z0-9\-_.]+", re.IGNORECASE | re.ASCII)
_VALUE = re.compile(r"[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+", re.IGNORECASE | re.ASCII)
_OPERATORS = ("==", "!=")
_PLAIN_KEYS = ("node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch")
_NODE_LABEL = "node.labels."
_ENGINE_LABEL = "engine.labels."
# uname's names and Go's names of the same machine
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386", "armv7l": "arm", "armv6l": "arm"}


@dataclass(frozen=True, slots=True)
class Constraint:
    """`key` in lower case up to the label's name, which keeps its case; `equal` False is `!=`."""

    key: str
    equal: bool
    value: str

    def __str__(self) -> str:
        return f"{self.key}{'==' if self.equal else '!='}{self.value}"


def parse(expressions: Iterable[str]) -> list[Constraint]:
    """Raises ConfigError with the sentence Docker's users know."""
    return [_parse_one(expression) for expression in expressions]


def node_matches(constraints: Iterable[Constraint], node: Node) -> bool:
    return all(matches(constraint, node) for constraint in constraints)


def unmet(constraints: Iterable[Constraint], node: Node) -> list[Constraint]:
    """The constraints that `node` does not satisfy, in their order."""
    return [constraint for constraint in constraints if not matches(constraint, node)]


def matches(constraint: Constraint, node: Node) -> bool:
    """A label that the node doesn't have is an empty value: `==` fails, `!=` holds."""
    return accepts(constraint, actual(constraint.key, node))


def accepts(constraint: Constraint, value: str) -> bool:
    """`value`: a node's `actual` one."""
    if constraint.key == "node.ip":
        return _address_matches(constraint.value, value) is constraint.equal
    return (comparable(constraint.key, constraint.value) == value) is constraint.equal


def canonical_architecture(name: str) -> str:
    """Go's name of an architecture (`amd64`), whichever name it came under."""
    name = name.lower()
    return _ARCHITECTURES.get(name, name)


def _parse_one(expression: str) -> Constraint:
    # SwarmKit tries "==" first, wherever it stands
    operator = next((operator for operator in _OPERATORS if operator in expression), None)
    if operator is None:
        raise ConfigError(f"constraint expected one operator from {', '.join(_OPERATORS)}")
    key, value = (part.strip() for part in expression.split(operator, 1))
    if not _KEY.fullmatch(key):
        raise ConfigError(f"key '{key}' is invalid")
    if not _VALUE.fullmatch(value):
        raise ConfigError(f"value '{value}' is invalid")
    known = _known_key(key)
    if known is None:
        raise ConfigError(f"key '{key}' is invalid: expected one of {', '.join(_PLAIN_KEYS)}, {_NODE_LABEL}<label>, {_ENGINE_LABEL}<label>")
    if known == "node.ip" and _network(value) is None:
        raise ConfigError(f"value '{value}' is invalid: expected an IP address or a subnet")
    return Constraint(known, operator == "==", value)


def _known_key(key: str) -> str | None:
    lower = key.lower()
    if lower in _PLAIN_KEYS:
        return lower
    for prefix in (_NODE_LABEL, _ENGINE_LABEL):
        if lower.startswith(prefix) and len(key) > len(prefix):
            return prefix + key[len(prefix) :]
    return None


def actual(key: str, node: Node) -> str:
    """The node's value of the key, in the form in which values are compared."""
    return node.status.addr if key == "node.ip" else comparable(key, _value(key, node))


def comparable(key: str, value: str) -> str:
    return canonical_architecture(value) if key == "node.platform.arch" else value.lower()


def _value(key: str, node: Node) -> str:
    description = node.description
    if key.startswith(_NODE_LABEL):
        return (node.spec.labels or {}).get(key[len(_NODE_LABEL) :], "")
    if key.startswith(_ENGINE_LABEL):
        return (description.engine.labels or {}).get(key[len(_ENGINE_LABEL) :], "")
    match key:
        case "node.id":
            return node.id
        case "node.hostname":
            return description.hostname
        case "node.role":
            return node.spec.role
        case "node.platform.os":
            return description.platform.os
        case "node.platform.arch":
            return description.platform.architecture
    raise AssertionError(f"constraint key {key} was not parsed by this module")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _address_matches(wanted: str, actual: str) -> bool:
    network = _network(wanted)
    try:
        address = ipaddress.ip_address(actual)
    except ValueError:
        return False
    return network is not None and network.version == address.version and address in network
