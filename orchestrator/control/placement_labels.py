"""What labels say about placement: strategy, priority, rebalancing, overcommit.

Pure: no I/O. Docker's objects have no fields for these, so they are labels: of a service (`docker service create --label`), of a node
(`docker node update --label-add`), and of the swarm itself for what holds where neither says anything. Read where they are needed,
never copied into tasks: a changed label restarts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar, cast, get_args

from orchestrator.errors import ConfigError
from orchestrator.model import Cluster, Node, Service

PREFIX = "com.meshd.placement."
STRATEGY = PREFIX + "strategy"
PRIORITY = PREFIX + "priority"
REBALANCE = PREFIX + "rebalance"
OVERCOMMIT = PREFIX + "overcommit"

T = TypeVar("T")
Strategy = Literal["spread", "binpack", "random"]
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_PRIORITIES = range(-1_000_000, 1_000_001)
_MAX_OVERCOMMIT = 100.0


def check_service(labels: Mapping[str, str] | None) -> None:
    """ConfigError: one of our labels has a value that means nothing."""
    _check(labels, {STRATEGY: _strategy, PRIORITY: _priority, REBALANCE: _boolean}, "a service")


def check_node(labels: Mapping[str, str] | None) -> None:
    _check(labels, {OVERCOMMIT: _overcommit}, "a node")


def check_cluster(labels: Mapping[str, str] | None) -> None:
    _check(labels, {STRATEGY: _strategy, REBALANCE: _boolean, OVERCOMMIT: _overcommit}, "the swarm")


def labels_of(cluster: Cluster | None) -> dict[str, str]:
    return (cluster.spec.labels if cluster is not None else None) or {}


def strategy_of(service: Service | None, cluster: Cluster | None) -> Strategy:
    return _read(STRATEGY, _strategy, "spread", service, cluster)


def priority_of(service: Service | None) -> int:
    """Tasks without service, and services that say nothing, have priority 0."""
    return _read(PRIORITY, _priority, 0, service, None)


def rebalanced(service: Service, cluster: Cluster | None) -> bool:
    return _read(REBALANCE, _boolean, False, service, cluster)


def overcommit_of(node: Node, cluster: Cluster | None) -> float:
    """0.05: tasks may reserve 5 % more than the node has; -0.1: a tenth is kept free."""
    return _read(OVERCOMMIT, _overcommit, 0.0, node, cluster)


def _read(label: str, parse: Callable[[str], T], default: T, *holders: Service | Node | Cluster | None) -> T:
    """The first holder's that has the label; one that means nothing (written before it was checked) is no label."""
    for holder in holders:
        labels = holder.spec.labels if holder is not None else None
        if labels and label in labels:
            try:
                return parse(labels[label])
            except ConfigError:
                continue
    return default


def _check(labels: Mapping[str, str] | None, known: Mapping[str, Callable[[str], object]], holder: str) -> None:
    for label, value in (labels or {}).items():
        if not label.startswith(PREFIX):
            continue
        parse = known.get(label)
        if parse is None:
            raise ConfigError(f"label {label} means nothing on {holder}: expected one of {', '.join(sorted(known))}")
        try:
            parse(value)
        except ConfigError as error:
            raise ConfigError(f"label {label}: {error}") from None


def _strategy(value: str) -> Strategy:
    if value not in get_args(Strategy):
        raise ConfigError(f"'{value}' is no strategy: expected one of {', '.join(get_args(Strategy))}")
    return cast(Strategy, value)


def _priority(value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = _PRIORITIES.stop
    if number not in _PRIORITIES:
        raise ConfigError(f"'{value}' is no priority: expected a whole number from {_PRIORITIES[0]} to {_PRIORITIES[-1]}")
    return number


def _boolean(value: str) -> bool:
    if value.lower() not in _BOOLEANS:
        raise ConfigError(f"'{value}' is neither true nor false")
    return _BOOLEANS[value.lower()]


def _overcommit(value: str) -> float:
    try:
        ratio = float(value)
    except ValueError:
        ratio = -1.0
    if not -1 < ratio <= _MAX_OVERCOMMIT:
        raise ConfigError(f"'{value}' is no overcommit ratio: expected a number above -1, such as 0.05 for 5 % more than the node has")
    return ratio
