"""Which nodes can take a task, and the sentence that says why the others can't.

Pure: no I/O. Source: SwarmKit manager/scheduler/filter.go (filters, their order, the words of their explanations). A filter answers for all
nodes at once. Each node is charged to the first filter that refuses it, so the counts of a sentence add up to the number of nodes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from orchestrator.control import constraints
from orchestrator.control.columns import Columns, Mask
from orchestrator.control.demand import Demand
from orchestrator.control.eligibility import can_encrypt
from orchestrator.control.expressions import Expression, node_values
from orchestrator.model import Node, Platform


class Refusal(enum.Enum):
    """Why a node can't take a task; the value is the explanation for the given number of nodes."""

    NOT_READY = "{nodes} not available for new tasks"
    CONSTRAINTS = "scheduling constraints not satisfied on {nodes}"
    PLATFORM = "unsupported platform on {nodes}"
    PLUGIN = "missing plugin on {nodes}"
    PERMISSION = "not permitted on {nodes}"
    ENCRYPTION = "encrypted networks not possible on {nodes}"
    AFFINITY = "affinity not satisfied on {nodes}"
    HOST_PORT = "host-mode port already in use on {nodes}"
    MAX_REPLICAS = "max replicas per node limit exceed on {nodes}"
    RESOURCES = "insufficient resources on {nodes}"
    ADDRESSES = "no address left for {nodes} on its networks"


_ORDER = list(Refusal)


@dataclass(frozen=True, slots=True)
class Filter:
    """`passes`: the nodes it lets pass. one, many: what is said of one refused node, or of several; "" = the refusal says all."""

    refusal: Refusal
    passes: Mask
    one: str = ""
    many: str = ""


def lacking(refusal: Refusal, passes: Mask, what: str) -> Filter:
    return Filter(refusal, passes, f"lacks {what}", f"lack {what}")


def lasting_filters(columns: Columns, wanted: Demand) -> list[Filter]:
    """Those whose answer placing tasks doesn't change."""
    if wanted.constraints is None:
        return [Filter(Refusal.CONSTRAINTS, columns.where("never", "nothing", lambda node: "", lambda value: False))]
    filters = [_mismatch(_matching(columns, one), str(one)) for one in wanted.constraints]
    filters += [_mismatch(_classic(columns, one), str(one)) for one in wanted.expressions if one.kind == "constraint" and not one.soft]
    if wanted.platforms:
        passes = columns.where(
            ("platform", wanted.platforms),
            "platform",
            lambda node: node.description.platform,
            lambda own: _platform_fits(own, wanted.platforms),
        )
        names = " or ".join(f"{platform.os or 'any'}/{platform.architecture or 'any'}" for platform in wanted.platforms)
        filters.append(Filter(Refusal.PLATFORM, passes, f"is not {names}", f"are not {names}"))
    for kind, drivers in (("Volume", wanted.volume_drivers), ("Log", frozenset({wanted.log_driver} - {""}))):
        for driver in sorted(drivers):
            filters.append(lacking(Refusal.PLUGIN, _having(columns, kind, driver), f"the {kind.lower()} driver {driver}"))
    for permission in sorted(wanted.permissions):
        passes = _permitting(columns, permission)
        filters.append(Filter(Refusal.PERMISSION, passes, f"does not permit {permission}", f"do not permit {permission}"))
    if wanted.encrypted:
        filters.append(lacking(Refusal.ENCRYPTION, _encrypting(columns), "WireGuard"))
    return filters


def lasting_mask(columns: Columns, wanted: Demand) -> Mask:
    """The nodes that pass all of them, whatever their state."""
    key = (
        "lasting",
        wanted.constraints,
        wanted.expressions,
        wanted.platforms,
        wanted.volume_drivers,
        wanted.log_driver,
        wanted.permissions,
        wanted.encrypted,
    )
    mask = columns.kept(key)
    if mask is None:
        mask = np.ones(columns.count, dtype=bool)
        for one in lasting_filters(columns, wanted):
            mask &= one.passes
        columns.keep(key, mask)
    return mask


def soft_constraints(columns: Columns, wanted: Demand) -> list[Mask]:
    return [_classic(columns, one) for one in wanted.expressions if one.kind == "constraint" and one.soft]


def explained(count: int, filters: Iterable[Filter]) -> str:
    """Why none of `count` nodes will do, most frequent reason first; every node must be refused by one of the filters."""
    left = np.ones(count, dtype=bool)
    details: dict[Refusal, list[tuple[int, Filter]]] = {}
    for one in filters:
        charged = int(np.count_nonzero(left & ~one.passes))
        if charged:
            details.setdefault(one.refusal, []).append((charged, one))
            left &= one.passes
    assert not left.any(), "a node was passed over without reason"
    if not details:
        return "no suitable node"
    counts = {refusal: sum(charged for charged, _ in found) for refusal, found in details.items()}
    reasons = sorted(details, key=lambda refusal: (-counts[refusal], _ORDER.index(refusal)))
    return f"no suitable node ({'; '.join(_reason(refusal, counts[refusal], details[refusal]) for refusal in reasons)})"


def _reason(refusal: Refusal, count: int, details: list[tuple[int, Filter]]) -> str:
    nodes = f"{count} node{'' if count == 1 else 's'}"
    told = [f"{charged} {one.one if charged == 1 else one.many}" for charged, one in sorted(details, key=lambda pair: -pair[0]) if one.one]
    return refusal.value.format(nodes=nodes) + (f": {', '.join(told)}" if told else "")


def _mismatch(passes: Mask, text: str) -> Filter:
    return Filter(Refusal.CONSTRAINTS, passes, f"does not match {text}", f"do not match {text}")


def _matching(columns: Columns, one: constraints.Constraint) -> Mask:
    def value_of(node: Node) -> str:
        return constraints.actual(one.key, node)

    if one.key == "node.ip":
        return columns.where(one, one.key, value_of, lambda value: constraints.accepts(one, value))
    equal = columns.equal(one.key, value_of, constraints.comparable(one.key, one.value))
    return equal if one.equal else ~equal


def _having(columns: Columns, kind: str, plugin: str) -> Mask:
    """The nodes with the plugin, and those that list none of its type: they have not said which they have."""
    return columns.where(
        ("plugin", kind, plugin), f"{kind} plugins", lambda node: _plugins(node, kind), lambda has: not has or plugin in has
    )


def _permitting(columns: Columns, permission: str) -> Mask:
    """The nodes that permit it, and those that have not said what they permit: their agents will."""
    return columns.where(
        ("permission", permission),
        "permissions",
        lambda node: None if node.description.mesh_permits is None else tuple(node.description.mesh_permits),
        lambda permits: permits is None or permission in permits,
    )


def _encrypting(columns: Columns) -> Mask:
    """The nodes that say they can; one that says nothing would carry them plain."""
    return columns.where("encryption", "encryption", can_encrypt, bool)


def _classic(columns: Columns, one: Expression) -> Mask:
    return columns.where(one, f"classic {one.key}", lambda node: node_values(node, one.key), one.holds)


def _platform_fits(own: Platform, platforms: tuple[Platform, ...]) -> bool:
    """An empty field matches everything."""
    return any(
        (not wanted.os or wanted.os.lower() == own.os.lower())
        and (
            not wanted.architecture
            or constraints.canonical_architecture(wanted.architecture) == constraints.canonical_architecture(own.architecture)
        )
        for wanted in platforms
    )


def _plugins(node: Node, kind: str) -> frozenset[str]:
    names: set[str] = set()
    for plugin in node.description.engine.plugins or ():
        if plugin.type == kind:
            # "rexray:latest" is asked for as "rexray" too
            names.update((plugin.name, plugin.name.removesuffix(":latest")))
    return frozenset(names)
