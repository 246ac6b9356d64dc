"""What a store is: consistent snapshots, guarded commits, a watch.

Pure: types only. Optimistic concurrency lives in the objects: `obj.version.index` is the ModRevision the writer has seen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from orchestrator.model import Kind, Object
from orchestrator.store.snapshot import Snapshot


class Put(msgspec.Struct, frozen=True, gc=False):
    """Create (`obj.version.index == 0`: the key must not exist) or replace (the key must still be at that ModRevision)."""

    obj: Object


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Remove; the key must still be at ModRevision `index` (0 = whatever it is, also if absent)."""

    kind: Kind
    id: str
    index: int = 0


class Guard(msgspec.Struct, frozen=True, gc=False):
    """Write nothing, but require: the key is at ModRevision `index`; index 0 = it must exist; index -1 = it must not exist."""

    kind: Kind
    id: str
    index: int = 0


Change = Put | Delete | Guard


class Event(msgspec.Struct, frozen=True, gc=False):
    """One object as it now is (`new` None = deleted). `old` None = it did not exist before."""

    kind: Kind
    id: str
    revision: int
    old: Object | None
    new: Object | None


class Store(Protocol):
    """All or nothing, linearizable writes; reads from a local copy.

    `snapshot()` costs about a microsecond and never moves under the reader. `commit` returns the revision of the write after the
    local copy has reached it (read your writes); raises Conflict (nothing written), StoreUnavailable (unknown outcome). The
    stored object's `version.index`, and `updated_at`, are set by the store's callers resp. the store: version by the store,
    times by the caller. Committing only Guards checks them and returns the current revision.
    More changes than one transaction may hold raise ValueError (max_changes).
    `sync()` returns when the local copy holds everything that was acknowledged anywhere before the call; StoreUnavailable: nobody can
    say. `available` False: the copy is known not to follow the cluster any more.
    `watch()` yields (snapshot after, events) for every revision from the moment of the call on; batches may merge revisions;
    never skips one. It ends with Compacted if the reader fell behind what is kept.
    """

    max_changes: int

    @property
    def available(self) -> bool: ...

    def snapshot(self) -> Snapshot: ...

    async def sync(self) -> None: ...

    async def commit(self, changes: Sequence[Change]) -> int: ...

    def watch(self) -> AsyncIterator[tuple[Snapshot, list[Event]]]: ...

    async def close(self) -> None: ...
