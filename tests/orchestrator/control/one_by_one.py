"""The scheduler's oracle: every task for itself, every node looked at, every rule as it is written down.

Pure. Knows spread and binpack, constraints, preferences, reservations, generic resources, host ports, replicas a node and priorities; not
addresses, affinities and failing nodes, which have tests of their own.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from orchestrator.control.constraints import node_matches
from orchestrator.control.demand import Demand, demand, host_ports
from orchestrator.control.eligibility import takes_tasks
from orchestrator.control.placement_labels import priority_of, strategy_of
from orchestrator.control.resources import capacity, reservation_of
from orchestrator.control.slots import wanted
from orchestrator.model import Node, Task, TaskState, terminal
from orchestrator.store.snapshot import Snapshot


class _Load:
    def __init__(self, node: Node) -> None:
        self.node = node
        total = capacity(node.description.resources, 0.0)
        self.total: Counter[str] = Counter({"cpu": total.nano_cpus, "memory": total.memory_bytes, **dict(total.generic)})
        self.used: Counter[str] = Counter()
        self.ports: set[tuple[str, int]] = set()
        self.replicas: Counter[str] = Counter()

    @property
    def active(self) -> int:
        return self.replicas.total()

    def hold(self, task: Task) -> None:
        held = reservation_of(task.spec, task.generic_resources)
        self.take(demand(task), _amounts(held.nano_cpus, held.memory_bytes, held.generic), task.service_id if wanted(task) else "")
        self.ports |= host_ports(task)

    def take(self, asked: Demand, amounts: dict[str, int], service_id: str) -> None:
        self.used.update(amounts)
        self.ports |= asked.host_ports
        if service_id:
            self.replicas[service_id] += 1

    def fits(self, asked: Demand, service_id: str) -> bool:
        return (
            all(self.total[kind] - self.used[kind] >= amount for kind, amount in wants(asked).items() if amount)
            and not self.ports & asked.host_ports
            and (not asked.max_replicas or self.replicas[service_id] < asked.max_replicas)
        )

    def fullness(self, asked: Demand) -> int:
        return sum((self.used[kind] + amount) * 10_000 // max(self.total[kind], 1) for kind, amount in wants(asked).items() if amount)


def wants(asked: Demand) -> dict[str, int]:
    return _amounts(asked.reserved.nano_cpus, asked.reserved.memory_bytes, asked.reserved.generic)


def _amounts(nano_cpus: int, memory_bytes: int, generic: tuple[tuple[str, int], ...]) -> dict[str, int]:
    return {"cpu": nano_cpus, "memory": memory_bytes, **dict(generic)}


def placements(snapshot: Snapshot) -> dict[str, str]:
    """Task id -> node id of all tasks that find a node now."""
    loads = [_Load(node) for node in sorted(snapshot.all(Node), key=lambda node: node.id)]
    by_id = {load.node.id: load for load in loads}
    waiting = []
    for task in snapshot.all(Task):
        if task.status.state is TaskState.PENDING and wanted(task):
            waiting.append(task)
        elif task.node_id in by_id and task.status.state is not TaskState.NEW and not terminal(task.status.state):
            by_id[task.node_id].hold(task)
    firsts: dict[str, Task] = {}
    for task in sorted(waiting, key=lambda task: (task.created_at, task.slot, task.id)):
        firsts.setdefault(task.service_id, task)

    def turn(task: Task) -> tuple[object, ...]:
        first = firsts[task.service_id]
        priority = priority_of(snapshot.service(task.service_id))
        return (-priority, first.created_at, first.slot, first.id, task.created_at, task.slot, task.id)

    found = {}
    for task in sorted(waiting, key=turn):
        load = _choice(snapshot, loads, task)
        if load is not None:
            asked = demand(task)
            load.take(asked, wants(asked), task.service_id)
            found[task.id] = load.node.id
    return found


def _choice(snapshot: Snapshot, loads: list[_Load], task: Task) -> _Load | None:
    asked, id = demand(task), task.service_id
    assert asked.constraints is not None
    fit = [load for load in loads if takes_tasks(load.node) and node_matches(asked.constraints, load.node) and load.fits(asked, id)]
    inside = loads
    for descriptor in asked.preferences:
        counts: dict[str, int] = defaultdict(int)
        for load in inside:
            counts[_label(load.node, descriptor)] += load.replicas[id]
        values = {_label(load.node, descriptor) for load in fit}
        if not values:
            return None
        chosen = min(values, key=lambda value: (counts[value], value))
        fit = [load for load in fit if _label(load.node, descriptor) == chosen]
        inside = [load for load in inside if _label(load.node, descriptor) == chosen]
    if strategy_of(snapshot.service(id), snapshot.cluster) == "binpack":
        return min(fit, key=lambda load: (-load.fullness(asked), -load.active, load.node.id), default=None)
    return min(fit, key=lambda load: (load.replicas[id], load.active, load.node.id), default=None)


def _label(node: Node, descriptor: str) -> str:
    return (node.spec.labels or {}).get(descriptor.removeprefix("node.labels."), "")
