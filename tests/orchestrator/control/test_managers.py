from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orchestrator.control.context import Context
from orchestrator.control.managers import managers
from orchestrator.control.steps import applied
from orchestrator.model import Leadership, ManagerStatus, Node, NodeStatus
from orchestrator.store.snapshot import Snapshot

CONTEXT = Context(now=datetime(2026, 1, 1, tzinfo=UTC), new_id=lambda: "id")


@pytest.mark.parametrize(
    ("state", "leader", "reachability"),
    [
        ("ready", "m", "reachable"),
        ("ready", "other", "reachable"),
        ("unknown", "m", "reachable"),
        ("unknown", "other", "unreachable"),
        ("down", "other", "unreachable"),
        ("disconnected", "other", "unreachable"),
    ],
)
def test_reachability(state: str, leader: str, reachability: str) -> None:
    node = Node(id="m", status=NodeStatus(state=state), manager_status=ManagerStatus(addr="192.0.2.1:2377"))
    snapshot = Snapshot().with_object(node).with_object(Leadership(node_id=leader))
    after = applied(snapshot, managers(snapshot, CONTEXT).steps)
    shown = after.node("m")
    assert shown is not None and shown.manager_status is not None
    assert (shown.manager_status.reachability, shown.manager_status.leader) == (reachability, leader == "m")
    assert managers(after, CONTEXT).steps == [], "nothing more to say"


def test_workers_are_left_alone() -> None:
    snapshot = Snapshot().with_object(Node(id="w", status=NodeStatus(state="down")))
    assert managers(snapshot, CONTEXT).steps == []
