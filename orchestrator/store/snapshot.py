"""A consistent, immutable picture of the whole cluster, with the indexes that the control loops ask for.

Pure: no I/O. Built on `immutables.Map`, so the next snapshot shares almost everything with this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

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
)

T = TypeVar("T", bound=Object)
_EMPTY: immutables.Map[str, Any] = immutables.Map()


class Snapshot(msgspec.Struct, frozen=True):
    """`revision`: the store revision this picture shows. Tables by kind, then id; tasks also by service, node and network."""

    revision: int = 0
    tables: immutables.Map[str, immutables.Map[str, Object]] = immutables.Map()
    tasks_by_service: immutables.Map[str, immutables.Map[str, None]] = immutables.Map()
    tasks_by_node: immutables.Map[str, immutables.Map[str, None]] = immutables.Map()
    tasks_by_network: immutables.Map[str, immutables.Map[str, None]] = immutables.Map()

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
        return self._tasks(self.tasks_by_service, service_id)

    def tasks_of_node(self, node_id: str) -> list[Task]:
        return self._tasks(self.tasks_by_node, node_id)

    def tasks_of_network(self, network_id: str) -> list[Task]:
        return self._tasks(self.tasks_by_network, network_id)

    def _tasks(self, index: immutables.Map[str, immutables.Map[str, None]], key: str) -> list[Task]:
        table = self.tables.get("task", _EMPTY)
        return [cast(Task, table[id]) for id in index.get(key, _EMPTY)]

    def with_object(self, obj: Object) -> Snapshot:
        """This picture with one object added or replaced (indexes too); the revision stays."""
        kind = KIND_OF[type(obj)]
        table = self.tables.get(kind, immutables.Map())
        changed = msgspec.structs.replace(self, tables=self.tables.set(kind, table.set(obj.id, obj)))
        if isinstance(obj, Task):
            old = cast(Task | None, table.get(obj.id))
            return changed._reindexed(obj.id, old, obj)
        return changed

    def without_object(self, kind: Kind, id: str) -> Snapshot:
        table = self.tables.get(kind, immutables.Map())
        if id not in table:
            return self
        changed = msgspec.structs.replace(self, tables=self.tables.set(kind, table.delete(id)))
        return changed._reindexed(id, cast(Task, table[id]), None) if kind == "task" else changed

    def at(self, revision: int) -> Snapshot:
        return msgspec.structs.replace(self, revision=revision)

    def _reindexed(self, id: str, old: Task | None, new: Task | None) -> Snapshot:
        def moved(index: immutables.Map[str, immutables.Map[str, None]], before: set[str], after: set[str]) -> Any:
            for key in before - after:
                rest = index[key].delete(id)
                index = index.set(key, rest) if rest else index.delete(key)
            for key in after - before:
                index = index.set(key, index.get(key, immutables.Map()).set(id, None))
            return index

        def networks(task: Task | None) -> set[str]:
            return {a.network.id for a in task.networks_attachments or ()} if task else set()

        return msgspec.structs.replace(
            self,
            tasks_by_service=moved(self.tasks_by_service, _key(old, "service_id"), _key(new, "service_id")),
            tasks_by_node=moved(self.tasks_by_node, _key(old, "node_id"), _key(new, "node_id")),
            tasks_by_network=moved(self.tasks_by_network, networks(old), networks(new)),
        )


def _kind(cls: type[Any]) -> Kind:
    return KIND_OF[cls]


def _key(task: Task | None, field: str) -> set[str]:
    value = getattr(task, field) if task else ""
    return {value} if value else set()
