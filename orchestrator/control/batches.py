"""Makes transactions of a pass's steps: several writes of one object become one, and no step is torn apart.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from orchestrator.control.steps import Step
from orchestrator.model import KIND_OF, Kind, Version
from orchestrator.store.base import Change, Delete, Guard, Put
from orchestrator.store.snapshot import Snapshot

_Key: TypeAlias = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Batch:
    """One transaction. `steps`: how many of the given steps it holds."""

    changes: tuple[Change, ...]
    steps: int


def batches(base: Snapshot, steps: Sequence[Step], limit: int) -> list[Batch]:
    """Transactions in the order of the steps, for a store that shows `base`.

    They hold the longest run of steps that can be committed one batch after the other without reading again: what comes after
    changes an object that an earlier batch has given a new version, so it has to be planned again. Never empty unless `steps` is.
    A single step of more than `limit` changes stays whole: the store says what it thinks of it.
    """
    result: list[Batch] = []
    done: set[_Key] = set()
    current: dict[_Key, Change] = {}
    count = 0
    for step in steps:
        keys = {_key(change) for change in step}
        # a step that meets what an earlier batch has written ends the run
        if keys & done:
            break
        if count and len(current) + sum(key not in current for key in keys) > limit:
            result.append(_batch(base, current, count))
            done |= current.keys()
            current, count = {}, 0
            if keys & done:
                break
        for change in step:
            key = _key(change)
            current[key] = _merged(base, current.get(key), change)
        count += 1
    if count:
        result.append(_batch(base, current, count))
    return result


def _batch(base: Snapshot, changes: dict[_Key, Change], steps: int) -> Batch:
    kept = [change for key, change in changes.items() if not (isinstance(change, Delete) and base.raw(*key) is None)]
    return Batch(tuple(kept), steps)


def _merged(base: Snapshot, before: Change | None, change: Change) -> Change:
    if before is None:
        return change
    if isinstance(change, Guard):
        return before
    existing = base.raw(*_key(change))
    index = existing.version.index if existing is not None else 0
    if isinstance(change, Delete):
        return Delete(change.kind, change.id, index)
    # taken away and made anew within the pass: in the store that is one replacement
    return change if change.obj.version.index == index else Put(msgspec.structs.replace(change.obj, version=Version(index=index)))


def _key(change: Change) -> _Key:
    match change:
        case Put(obj):
            return KIND_OF[type(obj)], obj.id
        case Delete(kind, id) | Guard(kind, id):
            return kind, id
