"""The cluster's state: one interface, two implementations (`memory`, `etcd`) under one contract suite."""

from orchestrator.store.base import Change, Delete, Event, Guard, Put, Store
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.subscription import wait_for

__all__ = ["Change", "Delete", "Event", "Guard", "Put", "Snapshot", "Store", "wait_for"]
