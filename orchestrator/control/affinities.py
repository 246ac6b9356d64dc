"""Which nodes hold what an affinity speaks of: `affinity:image==redis`, `affinity:service!=web`, `affinity:tier==front`.

Pure: no I/O. Source: classicswarm scheduler/filter/affinity.go. Keys: `container` (a task's id or name, or its service's name), `service`
(name or id), `image` (with or without tag), anything else a label of the container or of its service. Differs: only tasks that have not
ended count (classic Swarm counted stopped containers too), and those placed in the same pass count at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from orchestrator.control.columns import Mask
from orchestrator.control.expressions import Expression
from orchestrator.control.slots import wanted
from orchestrator.model import STATE_ORDER, Task, TaskState, terminal
from orchestrator.store.snapshot import Snapshot
from orchestrator.templates import task_name

_ASSIGNED = STATE_ORDER[TaskState.ASSIGNED]


class Company:
    """The tasks on the nodes, those placed meanwhile included. `index`: node id -> its place in masks."""

    def __init__(self, snapshot: Snapshot, index: Mapping[str, int]) -> None:
        self._snapshot = snapshot
        self._index = index
        self._placed: list[Task] = []
        self._nodes: dict[Expression, tuple[Mask, int]] = {}

    def add(self, tasks: Iterable[Task]) -> None:
        """Placed just now."""
        self._placed.extend(tasks)

    def nodes(self, one: Expression) -> Mask:
        """The nodes that hold a task the pattern matches, whatever the operator. Must not be changed."""
        mask, seen = self._nodes.get(one, (None, 0))
        if mask is None:
            mask = np.zeros(len(self._index), dtype=bool)
            for task in self._snapshot.all(Task):
                if task.node_id and _is_there(task):
                    self._mark(mask, one, task)
        for task in self._placed[seen:]:
            self._mark(mask, one, task)
        self._nodes[one] = (mask, len(self._placed))
        return mask

    def passes(self, one: Expression) -> Mask:
        """The nodes that satisfy the expression."""
        nodes = self.nodes(one)
        return nodes if one.equal else ~nodes

    def matches(self, one: Expression, task: Task) -> bool:
        """The pattern matches the task itself."""
        return any(one.accepts(value) for value in self._values(one.key, task))

    def _mark(self, mask: Mask, one: Expression, task: Task) -> None:
        index = self._index.get(task.node_id)
        if index is not None and not mask[index] and self.matches(one, task):
            mask[index] = True

    def _values(self, key: str, task: Task) -> Iterator[str]:
        container = task.spec.container_spec
        match key:
            case "container":
                yield from (task.id, task_name(task), f"{task.mesh_service_name}.{task.slot or task.node_id}", task.mesh_service_name)
            case "service":
                yield from (task.mesh_service_name, task.service_id)
            case "image":
                yield from image_names(container.image if container else "")
            case _:
                service = self._snapshot.service(task.service_id)
                for labels in (container.labels if container else None, service.spec.labels if service else None):
                    if labels and key in labels:
                        yield labels[key]


def image_names(image: str) -> Iterator[str]:
    """As it was asked for, without its digest, and without its tag."""
    yield image
    tagged = image.partition("@")[0]
    repository, colon, tag = tagged.rpartition(":")
    # in "registry:5000/app" the colon belongs to the port
    repository = repository if colon and "/" not in tag else tagged
    for name in (tagged, repository):
        if name != image:
            yield name


def _is_there(task: Task) -> bool:
    return wanted(task) and STATE_ORDER[task.status.state] >= _ASSIGNED and not terminal(task.status.state)
