"""Mappings and sets that never change and know what they were made from: comparing a version with the one before costs what changed,
not what is there.

Pure. `difference` works for any two mappings; only its speed depends on a shared history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class _Gone:
    __slots__ = ()


GONE: Final = _Gone()
"""As the new value of a key: it has none any more."""


class Versioned(Mapping[K, V], Generic[K, V]):
    """Made from a mapping, or from a former version and the changes since. Nothing of the former version is kept but its identity."""

    __slots__ = ("_origin", "_rows", "_token", "_touched")

    def __init__(self, rows: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._rows: dict[K, V] = dict(rows)
        self._token = object()
        self._origin: object = None
        self._touched: frozenset[K] = frozenset()

    def changed(self, changes: Mapping[K, V | _Gone]) -> Versioned[K, V]:
        """The next version; this very object when `changes` change nothing. A dictionary is copied whole: that is a memory copy."""
        real = {k: v for k, v in changes.items() if (old := self._rows.get(k, GONE)) is not v and old != v}
        if not real:
            return self
        version: Versioned[K, V] = Versioned()
        version._rows = self._rows.copy()
        for key, value in real.items():
            if isinstance(value, _Gone):
                del version._rows[key]
            else:
                version._rows[key] = value
        version._origin, version._touched = self._token, frozenset(real)
        return version

    def touched_since(self, other: Versioned[K, V]) -> frozenset[K] | None:
        """The keys in which this version may differ from `other`; None: unknown, compare everything."""
        return self._touched if self._origin is other._token else None

    def __getitem__(self, key: K) -> V:
        return self._rows[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        if isinstance(other, Versioned) and (self._origin is other._token or other._origin is self._token):
            return False  # a version differs from its origin, or it would be its origin
        return self._rows == _rows(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._rows)


class VersionedSet(Set[K]):
    """The same for sets."""

    __slots__ = ("rows",)

    def __init__(self, members: Iterable[K] | Versioned[K, None] = ()) -> None:
        self.rows: Versioned[K, None] = members if isinstance(members, Versioned) else Versioned(dict.fromkeys(members))

    def changed(self, changes: Mapping[K, _Gone | None]) -> VersionedSet[K]:
        rows = self.rows.changed(changes)
        return self if rows is self.rows else VersionedSet(rows)

    @classmethod
    def _from_iterable(cls, members: Iterable[Any]) -> Set[Any]:
        return frozenset(members)

    def __contains__(self, member: object) -> bool:
        return member in self.rows

    def __iter__(self) -> Iterator[K]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, VersionedSet):
            return self.rows == other.rows
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(set(self.rows))


def difference(desired: Mapping[K, V], actual: Mapping[K, V]) -> tuple[list[K], list[K]]:
    """The keys whose value in `desired` is new or another one, and the keys that `desired` lacks."""
    if desired is actual:
        return [], []
    if isinstance(desired, Versioned) and isinstance(actual, Versioned) and (touched := desired.touched_since(actual)) is not None:
        return [k for k in touched if k in desired], [k for k in touched if k not in desired]
    wanted, present = _rows(desired), _rows(actual)
    if wanted == present:
        return [], []
    # the same object is not compared: comparing dataclasses takes longer than all the rest
    fresh = [k for k, v in wanted.items() if (old := present.get(k, GONE)) is not v and old != v]
    return fresh, [k for k in present if k not in wanted]


def set_difference(desired: Set[K], actual: Set[K]) -> tuple[list[K], list[K]]:
    """The members of `desired` only, and those of `actual` only."""
    if desired is actual:
        return [], []
    if isinstance(desired, VersionedSet) and isinstance(actual, VersionedSet):
        return difference(desired.rows, actual.rows)
    return [m for m in desired if m not in actual], [m for m in actual if m not in desired]


def _rows(mapping: Mapping[K, V]) -> dict[K, V]:
    if isinstance(mapping, Versioned):
        return mapping._rows
    return mapping if isinstance(mapping, dict) else dict(mapping)
