"""The cluster's state: one interface, two implementations (`memory`, `etcd`) under one contract suite."""

from orchestrator.store.base import Change, Delete, Event, Guard, Put, Store
from orchestrator.store.snapshot import Snapshot

__all__ = ["Change", "Delete", "Event", "Guard", "Put", "Snapshot", "Store"]
