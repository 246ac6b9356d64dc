"""Opt-in rebalancing: tasks move to nodes that joined or came back, the new one running before the old one stops.

Pure: no I/O. A control loop; Swarm never moves a running task. A service that asks for it (by label, or by that of the swarm) is looked at
when all its slots are quiet. The youngest task of the fullest branch or node gets a successor if the scheduler would put it where the
service is then spread more evenly; since every move makes it so, moves come to an end. One of a service at a time, and few in the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import msgspec
import numpy as np

from orchestrator.control.attention import attention
from orchestrator.control.columns import Ints
from orchestrator.control.context import Context
from orchestrator.control.demand import demand
from orchestrator.control.enforcement import moves_by_overlap
from orchestrator.control.ledger import ledger_of
from orchestrator.control.placement_labels import REBALANCE, labels_of, rebalanced, strategy_of
from orchestrator.control.scheduler import node_for, preferred
from orchestrator.control.slots import age_key, dirty, mode_of, running, slots_of
from orchestrator.control.steps import Decision, earliest
from orchestrator.control.transitions import successor
from orchestrator.model import Cluster, Node, Service, Task, TaskState
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot

# A task that has just come is not moved: nodes that join one after the other would make it travel.
SETTLED = timedelta(seconds=30)
# so many services move a task at the same time, at least one: a share of the nodes
_SHARE_OF_NODES = 0.1
_UPDATING = frozenset({"updating", "rollback_started", "paused", "rollback_paused"})


def rebalance(snapshot: Snapshot, ctx: Context) -> Decision:
    cluster = snapshot.cluster
    # the services' own labels let none be settled, the swarm's does
    asked = snapshot.all(Service) if REBALANCE in labels_of(cluster) else attention(snapshot).unsettled()
    opted = sorted((service for service in asked if _asks_for_it(service, cluster)), key=lambda service: service.id)
    if not opted:
        return Decision()
    budget = max(1, int(snapshot.count(Node) * _SHARE_OF_NODES)) - sum(_is_moving(snapshot, service) for service in opted)
    decision = Decision()
    wakeup: datetime | None = None
    for service in opted:
        if budget <= 0:
            break
        successor, when = _move(snapshot, ctx, service, _quiet(snapshot, service))
        wakeup = earliest(wakeup, when)
        if successor is not None:
            decision.steps.append((Put(successor),))
            budget -= 1
    return Decision(decision.steps, wakeup)


def _asks_for_it(service: Service, cluster: Cluster | None) -> bool:
    return (
        rebalanced(service, cluster)
        and mode_of(service) == "replicated"
        and strategy_of(service, cluster) == "spread"
        and moves_by_overlap(service)
    )


def _quiet(snapshot: Snapshot, service: Service) -> list[Task]:
    """Its tasks, one running in each slot and nothing else going on; [] while anything is."""
    status = service.update_status
    if status is not None and status.state in _UPDATING:
        return []
    tasks = []
    for slot in slots_of(snapshot.tasks_of_service(service.id)).values():
        live = slot.live
        if len(live) != 1 or slot.stopping or not running(live[0]) or dirty(live[0], service):
            return []
        tasks.append(live[0])
    return tasks


def _is_moving(snapshot: Snapshot, service: Service) -> bool:
    """A slot of it is being handed over."""
    return any(len(slot.live) > 1 for slot in slots_of(snapshot.tasks_of_service(service.id)).values())


def _move(snapshot: Snapshot, ctx: Context, service: Service, tasks: list[Task]) -> tuple[Task | None, datetime | None]:
    """(the successor of the task that is to move, or when one may)."""
    ledger = ledger_of(snapshot)
    tasks = [task for task in tasks if task.node_id in ledger.index]
    if not tasks:
        return None, None
    nodes = np.array([ledger.index[task.node_id] for task in tasks], dtype=np.int64)
    preferences = demand(tasks[0]).preferences
    levels = [branches.of_node for branches in ledger.columns.branches(preferences, preferred)] if preferences else []
    levels.append(np.arange(len(ledger.nodes), dtype=np.int64))
    wakeup: datetime | None = None
    for source in _sources(levels, nodes):
        task = max((task for task, index in zip(tasks, nodes, strict=True) if index in source), key=age_key)
        target = _target(snapshot, ctx, service, task)
        if target is None or not _is_better(levels, nodes, ledger.index[task.node_id], target):
            continue
        settled = (task.mesh_running_since or task.status.timestamp) + SETTLED
        if settled <= ctx.now:
            return successor(service, ctx, task, desired=TaskState.RUNNING), None
        wakeup = earliest(wakeup, settled)
    return None, wakeup


def _sources(levels: list[Ints], nodes: Ints) -> Iterator[set[int]]:
    """The nodes of branches that have two tasks more than a sibling, level by level from the root: the fullest of each family."""
    above = np.zeros(len(levels[0]), dtype=np.int64)
    for level in levels:
        counts = np.bincount(level[nodes], minlength=int(level.max()) + 1)
        for family in np.unique(above[nodes]).tolist():
            members = np.unique(level[above == family])
            fullest = members[counts[members].argmax()]
            if counts[fullest] - counts[members].min() >= 2:
                yield set(np.flatnonzero(level == fullest).tolist())
        above = level


def _target(snapshot: Snapshot, ctx: Context, service: Service, task: Task) -> int | None:
    """Where the scheduler would put the task's successor now."""
    heir = successor(service, ctx, task, desired=TaskState.RUNNING)
    status = msgspec.structs.replace(heir.status, state=TaskState.PENDING)
    heir = msgspec.structs.replace(heir, status=status, networks_attachments=task.networks_attachments)
    return node_for(snapshot, ctx, heir)


def _is_better(levels: list[Ints], nodes: Ints, source: int, target: int) -> bool:
    """The first level on which source and target are different branches becomes more even."""
    for level in levels:
        if level[source] != level[target]:
            counts = np.bincount(level[nodes], minlength=int(level.max()) + 1)
            return bool(counts[level[source]] - counts[level[target]] >= 2)
    return False
