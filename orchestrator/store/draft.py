"""Several plans made one upon the other, committed as one.

Pure: no I/O. Each plan sees what those before it would have written. Only the last state of a key is written, against the version that
was stored when the draft began; so nothing of it is there unless all of it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from orchestrator.model import Kind, Version
from orchestrator.store.base import Change, Delete, Guard, Put
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.transaction import apply, check_conflicts, key_of


class Draft:
    """snapshot: what the cluster will be. Conflict: a plan was not made from `snapshot`."""

    def __init__(self, base: Snapshot) -> None:
        self._base = base
        self.snapshot = base
        # in the order they were first touched
        self._touched: dict[tuple[Kind, str], None] = {}
        self._guards: dict[tuple[Kind, str], Guard] = {}

    def add(self, changes: Sequence[Change]) -> None:
        check_conflicts(self.snapshot, changes)
        self.snapshot, _ = apply(self.snapshot, changes)
        for change in changes:
            key = key_of(change)
            if isinstance(change, Guard):
                self._guards.setdefault(key, change)
            else:
                self._touched[key] = None

    def changes(self) -> list[Change]:
        """What has to be committed for the base to become `snapshot`."""
        written: list[Change] = []
        for kind, id in self._touched:
            before, after = self._base.raw(kind, id), self.snapshot.raw(kind, id)
            if after is not None:
                put = replace(after, version=before.version if before is not None else Version())
                # what came back to what it was is not written, but must still be so
                written.append(Put(put) if put != before else Guard(kind, id, put.version.index))
            elif before is not None:
                written.append(Delete(kind, id, before.version.index))
        # what the draft itself makes can't be required to be there before
        guards = [guard for key, guard in self._guards.items() if key not in self._touched]
        return [*written, *guards]
