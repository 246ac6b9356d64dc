"""A service's tasks by slot: which is live, which is stopping, which have ended, and whether they are what the service asks for.

Pure: no I/O. A slot is a number (replicated services) or a node id (global ones). Source: SwarmKit orchestrator/slot.go,
orchestrator/task.go (IsTaskDirty), restart.go (UpdatableTasksInSlot).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from orchestrator.control.defaults import restart_rule
from orchestrator.control.labels import STATEFUL, stateful_rule
from orchestrator.model import SECOND, STATE_ORDER, PortConfig, Service, Task, TaskSpec, TaskState, terminal

SlotKey = int | str
STABLE_HOSTNAME = "{{.Service.Name}}-{{.Task.Slot}}"
# of `UpdateStatus`
ACTIVE = ("updating", "rollback_started")
_WANTED = frozenset(state for state in TaskState if STATE_ORDER[state] <= STATE_ORDER[TaskState.RUNNING])
_BY_ITSELF = frozenset({TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED})


def mode_of(service: Service) -> Literal["replicated", "global", "job"]:
    mode = service.spec.mode
    if mode.replicated_job is not None or mode.global_job is not None:
        return "job"
    return "global" if mode.global_ is not None else "replicated"


def is_updating(service: Service) -> bool:
    """An update or a rollback is under way, and not paused."""
    return service.update_status is not None and service.update_status.state in ACTIVE


def wanted(task: Task) -> bool:
    """The orchestrator wants it to run, now or when its time has come."""
    return task.desired_state in _WANTED


def live(task: Task) -> bool:
    """Wanted and not ended."""
    return wanted(task) and not terminal(task.status.state)


def running(task: Task) -> bool:
    return task.status.state is TaskState.RUNNING and task.desired_state is TaskState.RUNNING


def surplus(task: Task) -> bool:
    """Replaced while its node was lost, and not asked to drain yet: should the node return, it serves until its successor does."""
    return (
        task.mesh_lost_since is not None
        and task.mesh_draining_since is None
        and not task.mesh_released
        and task.status.state is TaskState.RUNNING
    )


def ended_by_itself(task: Task) -> bool:
    """It completed or failed; nobody had asked it to stop."""
    return task.status.state in _BY_ITSELF and task.mesh_draining_since is None and task.mesh_lost_since is None


def age_key(task: Task) -> tuple[Any, str]:
    return (task.created_at, task.id)


def is_job_task(task: Task) -> bool:
    return task.job_iteration is not None


def slot_key(task: Task) -> SlotKey:
    """Tasks of global services have slot 0 and a node from the start."""
    return task.slot or task.node_id


@dataclass(frozen=True, slots=True)
class Slot:
    """`tasks`: oldest first, never empty; those on their way out of the store (desired REMOVE) are left out."""

    key: SlotKey
    tasks: tuple[Task, ...]

    @property
    def live(self) -> list[Task]:
        return [task for task in self.tasks if live(task)]

    @property
    def stopping(self) -> list[Task]:
        return [task for task in self.tasks if not wanted(task) and not terminal(task.status.state)]

    @property
    def newest(self) -> Task:
        return self.tasks[-1]

    def finished(self) -> bool:
        """Nothing lives here and the restart policy says that this is right: the slot counts as filled."""
        return not any(wanted(task) for task in self.tasks) and ended_by_itself(self.newest) and not may_restart(self.newest, self.tasks)

    @property
    def wanted(self) -> list[Task]:
        """Live, or ended and not yet dealt with."""
        return [task for task in self.tasks if wanted(task)]

    def filled(self) -> bool:
        return any(wanted(task) for task in self.tasks) or self.finished()

    def current(self) -> list[Task]:
        """The tasks that a rolling update has to look at: the live ones, else those whose restart is due later, else the last one
        of a finished slot."""
        return self.live or self.wanted or ([self.newest] if self.finished() else [])


def slots_of(tasks: Iterable[Task]) -> dict[SlotKey, Slot]:
    """The tasks of one service by slot, in the slots' order."""
    grouped: dict[SlotKey, list[Task]] = {}
    for task in tasks:
        if task.desired_state is not TaskState.REMOVE:
            grouped.setdefault(slot_key(task), []).append(task)
    return {key: Slot(key, tuple(sorted(grouped[key], key=age_key))) for key in sorted(grouped, key=lambda key: (str(type(key)), key))}


# ---- restart policy -------------------------------------------------------------------------------------------------------------


def may_restart(task: Task, slot_tasks: Iterable[Task]) -> bool:
    """May an ended task be replaced? A task that did not end by itself (orphaned, stopped by us) always may.

    The answer depends on stored tasks only and doesn't change with time: attempts are the earlier tasks of this slot with the same
    spec that ended by themselves, within `window` before this one's end if the policy has a window.
    """
    if not ended_by_itself(task):
        return True
    rule = restart_rule(task.spec)
    if rule.condition == "none" or (rule.condition == "on-failure" and task.status.state is TaskState.COMPLETE):
        return False
    if not rule.max_attempts:
        return True
    since = task.status.timestamp - rule.window if rule.window else None
    attempts = sum(
        1
        for other in slot_tasks
        if age_key(other) < age_key(task)
        and ended_by_itself(other)
        and (since is None or other.status.timestamp > since)
        and same_spec(other.spec, task.spec)
    )
    return attempts < rule.max_attempts


# ---- dirty ----------------------------------------------------------------------------------------------------------------------


def wanted_spec(service: Service) -> TaskSpec:
    """The spec of the service's tasks. Networks given at the service (the older place in Docker's API) move into it; slots of stateful
    services have a host name of their own."""
    template = service.spec.task_template
    if service.spec.networks and not template.networks:
        template = msgspec.structs.replace(template, networks=service.spec.networks)
    container = template.container_spec
    if wanted_fence(service) is not None and container is not None and not container.hostname:
        template = msgspec.structs.replace(template, container_spec=msgspec.structs.replace(container, hostname=STABLE_HOSTNAME))
    return template


def wanted_fence(service: Service) -> int | None:
    """`mesh_fence` of the service's tasks."""
    # the frequent case, told fast
    if STATEFUL not in (service.spec.labels or ()):
        return None
    rule = stateful_rule(service.spec)
    return None if rule is None else round(rule.fence.total_seconds() * SECOND)


def wanted_ports(service: Service) -> list[PortConfig] | None:
    endpoint = service.spec.endpoint_spec
    return list(endpoint.ports) if endpoint is not None and endpoint.ports else None


def dirty(task: Task, service: Service) -> bool:
    """The task is not what the service asks for now: its spec or its host ports differ, or it lacks the ingress network.

    A changed ingress port needs no new task: only the nodes' tables know it.
    """
    ports, had = wanted_ports(service) or [], task.mesh_endpoint_ports or []
    if ports != had and (_host_ports(ports) != _host_ports(had) or (_has_ingress(ports) and not _has_ingress(had))):
        return True
    return task.mesh_fence != wanted_fence(service) or not same_spec(task.spec, wanted_spec(service))


def same_spec(one: TaskSpec, other: TaskSpec) -> bool:
    """Equal in meaning: clients write `{}`, `null`, an empty list or nothing for the same thing."""
    return one is other or one == other or _canonical(msgspec.json.encode(one)) == _canonical(msgspec.json.encode(other))


# A cluster has few different specs and asks about each of them at every pass.
@functools.lru_cache(maxsize=4096)
def _canonical(spec: bytes) -> bytes:
    return msgspec.json.encode(_pruned(msgspec.json.decode(spec)), order="sorted")


def _host_ports(ports: list[PortConfig]) -> list[tuple[str, int, int]]:
    return sorted((port.protocol, port.target_port, port.published_port) for port in ports if port.publish_mode == "host")


def _has_ingress(ports: list[PortConfig]) -> bool:
    return any(port.publish_mode != "host" for port in ports)


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _pruned(item) for key, item in value.items()}
        # the Docker CLI fills Runtime in on update, and only there
        return {key: item for key, item in kept.items() if item not in (None, {}, []) and (key, item) != ("Runtime", "container")}
    if isinstance(value, list):
        return [_pruned(item) for item in value]
    return value
