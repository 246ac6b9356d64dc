"""The cluster's state: one interface, two implementations (`memory`, `etcd`) under one contract suite."""

import os

from orchestrator.store.base import Change, Delete, Event, Guard, Put, Store
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.subscription import wait_for

__all__ = ["Change", "Delete", "Event", "Guard", "Put", "Snapshot", "Store", "wait_for"]

# Whatever meshd forks becomes another program at once. gRPC's care for forked children is of no use to those, and in one of some thousand
# forks it aborts the child before it gets that far (grpcio 1.85.3: "Check failed: next_worker->state == KICKED"). Read when gRPC is loaded.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
