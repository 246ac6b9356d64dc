"""What a list of changes means: which are allowed together, whether they conflict with a snapshot, what they make of it.

Pure: no I/O. `memory` runs on it; `etcd` uses the shape check and lets etcd decide the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from orchestrator.errors import Conflict
from orchestrator.model import KIND_OF, Kind, Object, Version
from orchestrator.store.base import Change, Delete, Event, Guard, Put
from orchestrator.store.snapshot import Snapshot

MAX_CHANGES = 2_000


def key_of(change: Change) -> tuple[Kind, str]:
    match change:
        case Put(obj):
            return KIND_OF[type(obj)], obj.id
        case Delete(kind, id) | Guard(kind, id):
            return kind, id


def check_shape(changes: Sequence[Change], max_changes: int) -> None:
    """ValueError for what no store could ever commit: too many changes, a key written twice, an id that isn't one."""
    if len(changes) > max_changes:
        raise ValueError(f"a transaction holds at most {max_changes} changes, this one has {len(changes)}: split it")
    written: set[tuple[Kind, str]] = set()
    for change in changes:
        kind, id = key = key_of(change)
        if not id:
            raise ValueError(f"a {kind} needs an id to be stored")
        if isinstance(change, Guard):
            continue
        if key in written:
            raise ValueError(f"the {kind} {id} is written twice in one transaction")
        written.add(key)


def check_conflicts(snapshot: Snapshot, changes: Sequence[Change]) -> None:
    """Conflict if any condition fails, told for the first that does."""
    for change in changes:
        kind, id = key_of(change)
        existing = snapshot.raw(kind, id)
        found = existing.version.index if existing else 0
        match change:
            case Put(obj):
                if found != obj.version.index:
                    raise conflict(change, found)
            case Delete(_, _, index):
                if index and found != index:
                    raise conflict(change, found)
            case Guard(_, _, index):
                if (index > 0 and found != index) or (index == 0 and not found) or (index < 0 and found):
                    raise conflict(change, found)


def stored_at(snapshot: Snapshot, changes: Sequence[Change]) -> int:
    """The revision these very changes were stored at, 0 = they were not: for a write whose answer was lost.

    Objects carry the writer's time and ids, so equal contents at a newer version are this write and no other's. Changes that
    only delete are done when nothing is left.
    """
    revisions: set[int] = set()
    for change in changes:
        if isinstance(change, Guard):
            continue
        existing = snapshot.raw(*key_of(change))
        if isinstance(change, Delete):
            if existing is not None:
                return 0
            continue
        if existing is None or existing.version.index <= change.obj.version.index:
            return 0
        if msgspec.structs.replace(existing, version=change.obj.version) != change.obj:
            return 0
        revisions.add(existing.version.index)
    if any(isinstance(change, Delete) for change in changes) and not revisions:
        return snapshot.revision
    return revisions.pop() if len(revisions) == 1 else 0


def surely_not_stored(snapshot: Snapshot, changes: Sequence[Change]) -> bool:
    """What one of these changes replaces or deletes is still there as its author saw it. Otherwise they may have been stored, and
    overwritten since."""
    for change in changes:
        if isinstance(change, Guard):
            continue
        existing = snapshot.raw(*key_of(change))
        seen = change.index if isinstance(change, Delete) else change.obj.version.index
        if existing is not None and existing.version.index == seen:
            return True
    return False


def conflict(change: Change, found: int) -> Conflict:
    """found: the ModRevision that the key is at (0 = absent)."""
    kind, id = key_of(change)
    expected = change.obj.version.index if isinstance(change, Put) else change.index
    if isinstance(change, Guard) and expected <= 0:
        return Conflict(f"{kind} {id} {'does not exist' if expected == 0 else f'exists (version {found})'}")
    if expected == 0:
        return Conflict(f"{kind} {id} already exists (version {found})")
    now = f"is at version {found}" if found else "does not exist any more"
    return Conflict(f"{kind} {id} was changed by someone else: expected version {expected}, it {now}")


def apply(snapshot: Snapshot, changes: Sequence[Change]) -> tuple[Snapshot, list[Event]]:
    """The next snapshot and its events, in the order of the changes; one revision later if anything was written, else the same."""
    writes = [change for change in changes if isinstance(change, Put) or (isinstance(change, Delete) and _exists(snapshot, change))]
    if not writes:
        return snapshot, []
    version = Version(index=snapshot.revision + 1)
    events: list[Event] = []
    for change in writes:
        kind, id = key_of(change)
        old = snapshot.raw(kind, id)
        new: Object | None = None
        if isinstance(change, Put):
            new = msgspec.structs.replace(change.obj, version=version)
            snapshot = snapshot.with_object(new)
        else:
            snapshot = snapshot.without_object(kind, id)
        events.append(Event(kind=kind, id=id, revision=version.index, old=old, new=new))
    return snapshot.at(version.index), events


def _exists(snapshot: Snapshot, change: Delete) -> bool:
    return snapshot.raw(change.kind, change.id) is not None
