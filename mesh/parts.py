"""A network's tables are a frame and the parts of its members: virtual services, remote endpoints, published ports.

Pure. Every row belongs to one member, so a changed member costs its own rows, whatever else is there. Chains alone are shared: they are
counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from mesh.table import Flow, IpvsService, NamespaceTable, NftChain, NftMap, NftTable
from mesh.versioned import GONE, Versioned, VersionedSet

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one member. elements: (map, key, value). chains: by name; a name always means the same chain."""

    addresses: tuple[str, ...] = ()
    tunnels: tuple[tuple[str, str], ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()
    elements: tuple[tuple[str, str, str], ...] = ()
    chains: tuple[tuple[str, NftChain], ...] = ()
    ipvs: tuple[IpvsService, ...] = ()
    flows: tuple[Flow, ...] = ()


class Collision(Exception):
    """Two members claim one row: `kind` is the field of the table, `key` the row's key."""

    def __init__(self, kind: str, key: object) -> None:
        super().__init__(f"{kind} {key} belongs to two members")
        self.kind, self.key = kind, key


@dataclass(frozen=True, slots=True)
class Assembly:
    """A table and how many members use each of the chains that are not the frame's."""

    table: NamespaceTable
    chains: Mapping[str, int]


_FIELDS: Final = ("addresses", "tunnels", "neighbours", "ipvs", "flows")


def assemble(frame: Assembly, gone: Iterable[Part], fresh: Iterable[Part]) -> Assembly:
    """`frame` without the rows of `gone` and with those of `fresh`; what does not change stays the very object. Raises Collision."""
    changes: dict[str, dict[Any, Any]] = {name: {} for name in _FIELDS}
    elements: dict[str, dict[str, Any]] = {}
    used = Counter(frame.chains)
    chains: dict[str, NftChain] = {}
    for part in gone:
        for name, rows in _rows(part):
            changes[name].update((key, GONE) for key, _ in rows)
        for map_name, key, _value in part.elements:
            elements.setdefault(map_name, {})[key] = GONE
        used.subtract(name for name, _ in part.chains)
    table = frame.table
    for part in fresh:
        for name, rows in _rows(part):
            present, changed = getattr(table, name), changes[name]
            for key, value in rows:
                if changed.get(key, GONE) is not GONE or (key not in changed and key in present):
                    raise Collision(name, key)
                changed[key] = value
        for map_name, key, text in part.elements:
            elements.setdefault(map_name, {})[key] = text
        used.update(name for name, _ in part.chains)
        chains.update(part.chains)
    nft = _with_elements(table.nft, elements, chains, frame.chains, used) if table.nft else None
    table = replace(table, nft=nft, **{name: _changed(getattr(table, name), changes[name]) for name in _FIELDS})
    return Assembly(table, {name: count for name, count in used.items() if count})


def _rows(part: Part) -> Iterable[tuple[str, Iterable[tuple[Any, Any]]]]:
    yield "addresses", ((a, None) for a in part.addresses)
    yield "tunnels", part.tunnels
    yield "neighbours", part.neighbours
    yield "ipvs", ((s.mark, s) for s in part.ipvs)
    yield "flows", ((f, None) for f in part.flows)


def _changed(rows: Any, changes: Mapping[Any, Any]) -> Any:
    if not changes:
        return rows
    if not isinstance(rows, (Versioned, VersionedSet)):
        rows = Versioned(rows) if isinstance(rows, Mapping) else VersionedSet(rows)
    return rows.changed(changes)


def _with_elements(
    table: NftTable,
    elements: Mapping[str, Mapping[str, Any]],
    fresh: Mapping[str, NftChain],
    before: Mapping[str, int],
    used: Mapping[str, int],
) -> NftTable:
    maps: dict[str, NftMap] = {}
    for name, changes in elements.items():
        present = table.maps[name]
        if (rows := _changed(present.elements, changes)) is not present.elements:
            maps[name] = NftMap(present.key_type, present.value_type, rows)
    unused = {name for name in before if not used[name]}
    new = {name: chain for name, chain in fresh.items() if name not in table.chains}
    if not (maps or unused or new):
        return table
    chains = {name: c for name, c in table.chains.items() if name not in unused} | new if unused or new else table.chains
    return replace(table, maps={**table.maps, **maps}, chains=chains)
