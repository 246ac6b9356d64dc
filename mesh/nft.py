"""Write nft scripts that turn one table into another, and read back what `nft -j list table` prints.

Pure: text in, text out. Source: nft(8), libnftables-json(5), 1.0.6. A rule carries the hash of its text as its comment, so that
comparing needs neither nft's spelling of a rule nor a handle; a rule that somebody changed or added has no such comment and compares
unequal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mesh.errors import KernelError
from mesh.table import NftChain, NftMap, NftRule, NftTable
from mesh.versioned import difference

CHUNK = 500
"""Elements of one `add element` statement; only readability of a failed script depends on it."""


@dataclass(frozen=True, slots=True)
class MapChange:
    """Elements of one map: keys that go, and (key, value)s that come; one that gets another value does both."""

    name: str
    key_type: str
    value_type: str
    gone: tuple[str, ...]
    fresh: tuple[tuple[str, str], ...]


def rule(text: str) -> NftRule:
    return NftRule(tag="m:" + hashlib.sha256(text.encode()).hexdigest()[:12], text=text)


def rules(*texts: str) -> tuple[NftRule, ...]:
    return tuple(rule(text) for text in texts)


def script(desired: NftTable | None, actual: NftTable | None) -> str:
    """One transaction that makes `actual` equal to `desired`; "" when it is."""
    if desired is actual or desired == actual:
        return ""
    if desired is None:
        assert actual is not None
        return f"delete table {actual.family} {actual.name}\n"
    family, name = desired.family, desired.name
    lines = [f"add table {family} {name}"]
    if actual is None or _needs_rebuild(desired, actual):
        # "add" first so that "delete" can't fail: one script for "there is none" and "there is a wrong one"
        lines.append(f"delete table {family} {name}")
        lines.append(f"add table {family} {name}")
        actual = NftTable(name, family=family)
    for chain_name, chain in sorted(desired.chains.items()):
        if chain_name not in actual.chains:
            hook = f" {{ {chain.hook} }}" if chain.hook else ""
            lines.append(f"add chain {family} {name} {chain_name}{hook}")
    for map_name, wanted in sorted(desired.maps.items()):
        if map_name not in actual.maps:
            lines.append(f"add map {family} {name} {map_name} {{ type {wanted.key_type} : {wanted.value_type}; }}")
    empty = NftChain()
    for chain_name, chain in sorted(desired.chains.items()):
        old = actual.chains.get(chain_name, empty)
        if old.rules != chain.rules:
            if old.rules:
                lines.append(f"flush chain {family} {name} {chain_name}")
            lines += [f'add rule {family} {name} {chain_name} {r.text} comment "{r.tag}"' for r in chain.rules]
    for map_name, wanted in sorted(desired.maps.items()):
        present = actual.maps[map_name].elements if map_name in actual.maps else {}
        lines += _element_lines(f"{family} {name}", map_name, wanted, present)
    gone_chains = sorted(actual.chains.keys() - desired.chains.keys())
    gone_maps = sorted(actual.maps.keys() - desired.maps.keys())
    # a chain goes only after every element and rule that leads to it
    lines += [f"flush chain {family} {name} {c}" for c in gone_chains]
    lines += [f"delete map {family} {name} {m}" for m in gone_maps]
    lines += [f"delete chain {family} {name} {c}" for c in gone_chains]
    return "\n".join(lines) + "\n"


def _needs_rebuild(desired: NftTable, actual: NftTable) -> bool:
    """Types of maps and hooks of chains can't be changed in place; the table is then replaced, still in one transaction."""
    if actual.dormant or any(not m.value_type for m in actual.maps.values()):
        return True  # a set: we have none, and `delete map` would not take it
    maps = any(
        (m.key_type, m.value_type) != (actual.maps[n].key_type, actual.maps[n].value_type)
        for n, m in desired.maps.items()
        if n in actual.maps
    )
    return maps or any(c.hook != actual.chains[n].hook for n, c in desired.chains.items() if n in actual.chains)


def element_changes(desired: NftTable | None, actual: NftTable | None) -> tuple[MapChange, ...] | None:
    """What to change when only elements differ; None when something else does."""
    if desired is None or actual is None or (desired.name, desired.family) != (actual.name, actual.family):
        return None
    if desired.maps.keys() != actual.maps.keys() or desired.chains != actual.chains or _needs_rebuild(desired, actual):
        return None
    changes = (map_change(name, wanted, actual.maps[name].elements) for name, wanted in sorted(desired.maps.items()))
    return tuple(change for change in changes if change.gone or change.fresh)


def map_change(name: str, desired: NftMap, actual: Mapping[str, str]) -> MapChange:
    changed, gone = difference(desired.elements, actual)
    stale = sorted([*gone, *(key for key in changed if key in actual)])
    fresh = tuple((key, desired.elements[key]) for key in sorted(changed))
    return MapChange(name, desired.key_type, desired.value_type, tuple(stale), fresh)


def without_elements(table: NftTable) -> NftTable:
    return replace(table, maps={name: NftMap(m.key_type, m.value_type) for name, m in table.maps.items()})


def _element_lines(table: str, name: str, desired: NftMap, actual: Mapping[str, str]) -> list[str]:
    change = map_change(name, desired, actual)
    lines = [f"delete element {table} {name} {{ {', '.join(part)} }}" for part in _chunks(list(change.gone))]
    fresh = [f"{key} : {value}" for key, value in change.fresh]
    return lines + [f"add element {table} {name} {{ {', '.join(part)} }}" for part in _chunks(fresh)]


def _chunks(items: list[str]) -> Iterable[list[str]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def parse(listing: str, name: str, family: str = "inet") -> NftTable:
    """The table in the JSON that `nft -j -n list table` printed. Raises KernelError when it isn't such a listing."""
    try:
        items = json.loads(listing)["nftables"]
        return _table(items, name, family)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise KernelError(f"read nft table {name}", 0, f"nft printed something unexpected: {error!r}") from error


def _table(items: list[dict[str, Any]], name: str, family: str) -> NftTable:
    maps: dict[str, NftMap] = {}
    hooks: dict[str, str] = {}
    chain_rules: dict[str, list[NftRule]] = {}
    for item in items:
        for kind, value in item.items():
            if kind in ("map", "set"):
                elements = {}
                for element in value.get("elem", ()):
                    if kind == "map":
                        elements[_text(element[0])] = _text(element[1])
                    else:
                        elements[_text(element)] = ""
                # a set under a map's name compares unequal by its missing value type
                maps[value["name"]] = NftMap(_type(value["type"]), _type(value.get("map", "")), elements)
            elif kind == "chain":
                hooks[value["name"]] = ""
                if "hook" in value:
                    hooks[value["name"]] = hook(value["type"], value["hook"], value["prio"], value.get("policy", "accept"))
                chain_rules.setdefault(value["name"], [])
            elif kind == "rule":
                chain_rules.setdefault(value["chain"], []).append(NftRule(tag=value.get("comment", "foreign")))
    return NftTable(name, maps, {n: NftChain(hooks[n], tuple(chain_rules[n])) for n in hooks}, family)


def hook(kind: str, point: str, priority: int, policy: str = "accept") -> str:
    return f"type {kind} hook {point} priority {priority}; policy {policy};"


def _type(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " . ".join(value)


def _text(value: Any) -> str:
    """An element or its datum: text, number, {"concat": [...]} or a verdict."""
    if isinstance(value, dict):
        if "concat" in value:
            return " . ".join(_text(part) for part in value["concat"])
        if "elem" in value:
            return _text(value["elem"]["val"])
        ((verdict, target),) = value.items()
        return f"{verdict} {target['target']}" if target else str(verdict)
    return str(value)
