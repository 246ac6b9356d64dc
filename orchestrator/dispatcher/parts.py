"""The assignment in parts: what is shared between agents is built and encoded once, and compared by identity.

Pure: no I/O. A part is a table of encoded rows that never changes: one for each network (the same object for all its nodes) and one
for each node (its own tasks, secrets, configs). An agent's assignment is the union of its parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.dispatcher.assignment import Decrypt, affected_networks, diff, encode, network_scope_rows, own_rows
from orchestrator.dispatcher.messages import Row
from orchestrator.errors import MeshdError
from orchestrator.model import Config, Network, Node, Secret, Service, Task
from orchestrator.store.base import Event
from orchestrator.store.snapshot import Snapshot

Part = Mapping[str, bytes]
Parts = Mapping[str, Part]
Change = tuple[dict[str, bytes], tuple[str, ...]]
_EMPTY: Part = {}


class AssignmentParts:
    """The parts at one snapshot. `follow` moves it on; parts that didn't change stay the same objects."""

    def __init__(self, snapshot: Snapshot, decrypt: Decrypt) -> None:
        self._decrypt = decrypt
        self._snapshot = snapshot
        self._networks: dict[str, Part] = {}
        self._own: dict[str, Part] = {}
        self.unreadable_secrets: frozenset[str] = frozenset()

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    def follow(self, snapshot: Snapshot, events: Iterable[Event]) -> None:
        """`events` lead from the present snapshot to `snapshot`. Built again only when somebody asks for it."""
        events = list(events)
        self._snapshot = snapshot
        for network_id in affected_networks(snapshot, events):
            if network_id in self._networks:
                self._networks[network_id] = _kept(self._networks[network_id], network_scope_rows(snapshot, network_id))
        if any(isinstance(event.new or event.old, Secret | Config) for event in events):
            stale = set(self._own)
        else:
            tasks = [obj for event in events for obj in (event.old, event.new) if isinstance(obj, Task)]
            tasks += [task for event in events if _other_registry_auth(event) for task in snapshot.tasks_of_service(event.id)]
            stale = {task.node_id for task in tasks} & self._own.keys()
        for node_id in stale:
            self._own[node_id] = _kept(self._own[node_id], self._own_rows(node_id))
        self._forget(events)

    def of(self, node_id: str) -> dict[str, Part]:
        """The parts of one node; none for a node that is not in the store."""
        node = self._snapshot.node(node_id)
        if node is None:
            return {}
        parts = {f"own/{node_id}": self._own_part(node_id)}
        for attachment in node.mesh_attachments or ():
            parts[f"network/{attachment.network_id}"] = self._network_part(attachment.network_id)
        return parts

    def _own_rows(self, node_id: str) -> dict[str, Row]:
        """Without the secrets that can't be opened: their tasks wait, everything else of the node goes on."""

        def opened(secret: Secret) -> bytes | None:
            try:
                return self._decrypt(secret)
            except MeshdError:
                self.unreadable_secrets |= {secret.id}
                return None

        return own_rows(self._snapshot, node_id, opened)

    def _own_part(self, node_id: str) -> Part:
        if node_id not in self._own:
            self._own[node_id] = _kept(_EMPTY, self._own_rows(node_id))
        return self._own[node_id]

    def _network_part(self, network_id: str) -> Part:
        if network_id not in self._networks:
            self._networks[network_id] = _kept(_EMPTY, network_scope_rows(self._snapshot, network_id))
        return self._networks[network_id]

    def _forget(self, events: Iterable[Event]) -> None:
        for event in events:
            match event.old:
                case Network() if event.new is None:
                    self._networks.pop(event.id, None)
                case Node() if event.new is None:
                    self._own.pop(event.id, None)


class Differences:
    """`between` for one fan-out: what two tables of a network differ in is computed once for all agents that go from one to the other."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[Part, Part, Change]] = {}

    def between(self, old: Parts, new: Parts) -> Change:
        """(rows to put, keys removed) that lead from the union of `old` to the union of `new`."""
        put: dict[str, bytes] = {}
        removed: set[str] = set()
        for name in old.keys() | new.keys():
            before, after = old.get(name, _EMPTY), new.get(name, _EMPTY)
            if before is after:
                continue
            changed, gone = self._one(before, after)
            put.update(changed)
            removed.update(gone)
        # A row (a node's) may be in several parts: it is gone only when it is in none.
        return put, tuple(sorted(key for key in removed if not any(key in part for part in new.values())))

    def _one(self, before: Part, after: Part) -> Change:
        key = (id(before), id(after))
        if key not in self._known:
            # The tables are kept beside the result, so their ids can't be taken by others meanwhile.
            self._known[key] = (before, after, diff(before, after))
        return self._known[key][2]


def _other_registry_auth(event: Event) -> bool:
    match (event.old, event.new):
        case (Service() as old, Service() as new):
            return old.mesh_registry_auth != new.mesh_registry_auth
    return False


def _kept(old: Part, rows: Mapping[str, Row]) -> Part:
    """The rows encoded; the old table itself if they say the same."""
    new = {key: encode(row) for key, row in rows.items()}
    return old if new == old else new
