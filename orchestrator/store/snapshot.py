"""A consistent, immutable picture of the whole cluster, with the indexes that the control loops ask for.

Pure: no I/O. Built on `immutables.Map`, so the next snapshot shares almost everything with this one, and each remembers what was done to
the one before it (`History`), so that what is derived from snapshots can follow them by differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias, TypeVar, cast

import immutables
import msgspec

from orchestrator.model import (
    KIND_OF,
    Claim,
    Cluster,
    Config,
    Kind,
    Leadership,
    Network,
    Node,
    Object,
    Secret,
    Service,
    Task,
    TaskState,
    is_attachment,
)

T = TypeVar("T", bound=Object)
_EMPTY: immutables.Map[str, Any] = immutables.Map()
_WAITING = frozenset({TaskState.NEW, TaskState.PENDING})
# so many steps back a picture can be compared with an older one; it bounds what a chain keeps in memory
HISTORY_LENGTH = 1 << 15


_TaskIndex: TypeAlias = "immutables.Map[str, immutables.Map[str, Task]]"


class History(msgspec.Struct, frozen=True):
    """One change in the chain of changes that led to a snapshot. `before` None: the chain begins here."""

    length: int
    kind: Kind
    id: str
    before: History | None


class Snapshot(msgspec.Struct, frozen=True):
    """`revision`: the store revision this picture shows. Tables by kind, then id; tasks also by service, node and network, and those
    that wait for addresses or a node (NEW, PENDING) and the attachments."""

    revision: int = 0
    tables: immutables.Map[str, immutables.Map[str, Object]] = immutables.Map()
    tasks_by_service: _TaskIndex = immutables.Map()
    tasks_by_node: _TaskIndex = immutables.Map()
    tasks_by_network: _TaskIndex = immutables.Map()
    waiting: immutables.Map[str, Task] = immutables.Map()
    attachments: immutables.Map[str, Task] = immutables.Map()
    history: History | None = None

    def get(self, cls: type[T], id: str) -> T | None:
        return cast(T | None, self.tables.get(_kind(cls), _EMPTY).get(id))

    def all(self, cls: type[T]) -> Iterator[T]:
        """Every object of the kind, in no particular order."""
        return cast(Iterator[T], iter(self.tables.get(_kind(cls), _EMPTY).values()))

    def count(self, cls: type[Object]) -> int:
        return len(self.tables.get(_kind(cls), _EMPTY))

    def raw(self, kind: Kind, id: str) -> Object | None:
        return self.tables.get(kind, _EMPTY).get(id)

    @property
    def cluster(self) -> Cluster | None:
        return next(self.all(Cluster), None)

    @property
    def leader(self) -> Leadership | None:
        return self.get(Leadership, "leader")

    def node(self, id: str) -> Node | None:
        return self.get(Node, id)

    def service(self, id: str) -> Service | None:
        return self.get(Service, id)

    def task(self, id: str) -> Task | None:
        return self.get(Task, id)

    def network(self, id: str) -> Network | None:
        return self.get(Network, id)

    def secret(self, id: str) -> Secret | None:
        return self.get(Secret, id)

    def config(self, id: str) -> Config | None:
        return self.get(Config, id)

    def claim(self, id: str) -> Claim | None:
        return self.get(Claim, id)

    def tasks_of_service(self, service_id: str) -> list[Task]:
        return list(self.tasks_by_service.get(service_id, _EMPTY).values())

    def tasks_of_node(self, node_id: str) -> list[Task]:
        return list(self.tasks_by_node.get(node_id, _EMPTY).values())

    def tasks_of_network(self, network_id: str) -> list[Task]:
        return list(self.tasks_by_network.get(network_id, _EMPTY).values())

    def tasks_waiting(self) -> list[Task]:
        """NEW or PENDING: they wait for addresses or for a node."""
        return list(self.waiting.values())

    def tasks_attaching(self) -> list[Task]:
        """The attachments: containers started by hand on networks of the cluster."""
        return list(self.attachments.values())

    def with_object(self, obj: Object) -> Snapshot:
        """This picture with one object added or replaced (indexes too); the revision stays."""
        return self.with_changes([(KIND_OF[type(obj)], obj.id, obj)])

    def without_object(self, kind: Kind, id: str) -> Snapshot:
        return self.with_changes([(kind, id, None)])

    def with_changes(self, changes: Iterable[tuple[Kind, str, Object | None]]) -> Snapshot:
        """This picture after all of the changes, in their order (None: the object is gone); the revision stays."""
        edit = SnapshotEdit(self)
        for kind, id, obj in changes:
            edit.set(kind, id, obj)
        return edit.finish()

    def at(self, revision: int) -> Snapshot:
        return msgspec.structs.replace(self, revision=revision)


def differences(one: Snapshot, other: Snapshot) -> set[tuple[Kind, str]] | None:
    """The objects in which the pictures may differ, found by what was done since both parted; None when that is not known any more."""
    left, right = one.history, other.history
    found: set[tuple[Kind, str]] = set()
    while left is not right:
        if left is None or right is None:
            return None
        if left.length >= right.length:
            found.add((left.kind, left.id))
            left = left.before
        else:
            found.add((right.kind, right.id))
            right = right.before
    # two pictures made from nothing share an empty history, but nothing else
    return found if left is not None or one.tables is other.tables else None


class SnapshotEdit:
    """A snapshot being changed: tables are copied once, however many changes come."""

    def __init__(self, base: Snapshot) -> None:
        self._base = base
        self._tables: dict[Kind, Any] = {}
        self._service = _Index(base.tasks_by_service)
        self._node = _Index(base.tasks_by_node)
        self._network = _Index(base.tasks_by_network)
        self._waiting = _Selection(base.waiting)
        self._attachments = _Selection(base.attachments)
        self._history = base.history

    def raw(self, kind: Kind, id: str) -> Object | None:
        """As it is by now."""
        table = self._tables.get(kind)
        return cast(Object | None, table.get(id)) if table is not None else self._base.raw(kind, id)

    def set(self, kind: Kind, id: str, obj: Object | None) -> None:
        table = self._tables.get(kind)
        if table is None:
            table = self._tables[kind] = self._base.tables.get(kind, _EMPTY).mutate()
        old = table.get(id)
        if obj is not None:
            table[id] = obj
        elif old is None:
            return
        else:
            del table[id]
        before = self._history
        length = before.length + 1 if before is not None else 1
        self._history = History(length, kind, id, before if length % HISTORY_LENGTH else None)
        if kind == "task":
            self._reindex(id, cast(Task | None, old), cast(Task | None, obj))

    def _reindex(self, id: str, old: Task | None, new: Task | None) -> None:
        self._service.set(id, old.service_id if old else "", new.service_id if new else "", new)
        self._node.set(id, old.node_id if old else "", new.node_id if new else "", new)
        had, has = (old.networks_attachments if old else None) or (), (new.networks_attachments if new else None) or ()
        if had and had != has:
            for attachment in had:
                self._network.set(id, attachment.network.id, "", None)
        for attachment in has:
            self._network.set(id, "", attachment.network.id, new)
        self._waiting.set(id, _waits(old), _waits(new), new)
        self._attachments.set(id, _attaches(old), _attaches(new), new)

    def finish(self) -> Snapshot:
        tables = self._base.tables
        for kind, table in self._tables.items():
            tables = tables.set(kind, table.finish())
        return Snapshot(
            self._base.revision,
            tables,
            self._service.finish(),
            self._node.finish(),
            self._network.finish(),
            self._waiting.finish(),
            self._attachments.finish(),
            self._history,
        )


class _Index:
    """An index being changed: key -> id -> task; a key without tasks leaves it."""

    def __init__(self, base: _TaskIndex) -> None:
        self._base = base
        self._open: dict[str, Any] = {}

    def set(self, id: str, before: str, after: str, task: Task | None) -> None:
        if before and before != after:
            self._ids(before).pop(id, None)
        if after:
            self._ids(after)[id] = task

    def _ids(self, key: str) -> Any:
        ids = self._open.get(key)
        if ids is None:
            ids = self._open[key] = self._base.get(key, _EMPTY).mutate()
        return ids

    def finish(self) -> _TaskIndex:
        if not self._open:
            return self._base
        changed = self._base.mutate()
        for key, ids in self._open.items():
            if ids:
                changed[key] = ids.finish()
            else:
                changed.pop(key, None)
        return changed.finish()


class _Selection:
    """Some of the tasks, being changed."""

    def __init__(self, base: immutables.Map[str, Task]) -> None:
        self._base = base
        self._open: Any = None

    def set(self, id: str, before: bool, after: bool, task: Task | None) -> None:
        if not (before or after):
            return
        if self._open is None:
            self._open = self._base.mutate()
        if after:
            self._open[id] = task
        else:
            del self._open[id]

    def finish(self) -> immutables.Map[str, Task]:
        return self._base if self._open is None else cast("immutables.Map[str, Task]", self._open.finish())


def _waits(task: Task | None) -> bool:
    return task is not None and task.status.state in _WAITING


def _attaches(task: Task | None) -> bool:
    return task is not None and is_attachment(task)


def _kind(cls: type[Any]) -> Kind:
    return KIND_OF[cls]
