"""Tasks: list and inspect.

Edge: routes over the store. Source: Docker Engine API 1.44 /tasks; `_up-to-date` is what the docker CLI's progress display asks by.
"""

from __future__ import annotations

from aiohttp import web
from msgspec.structs import replace

from orchestrator.api import access, filters, references, views
from orchestrator.control.slots import dirty, is_job_task
from orchestrator.model import Node, Service, Task, is_attachment
from orchestrator.store.snapshot import Snapshot


async def list_tasks(request: web.Request) -> web.Response:
    snapshot = access.store_of(request).snapshot()
    wanted = access.filters_of(request, filters.TASK_KEYS)
    wanted.one_of("desired-state", filters.TASK_STATES)
    found = [task for task in _candidates(snapshot, wanted) if _matches(snapshot, task, wanted)]
    found.sort(key=lambda task: (task.service_id, task.slot, task.node_id, task.created_at, task.id))
    if wanted.get("_up-to-date"):
        found = [_as_counted(task) for task in found]
    return access.answer([views.task(snapshot, task) for task in found])


async def inspect_task(request: web.Request) -> web.Response:
    snapshot = access.store_of(request).snapshot()
    return access.answer(views.task(snapshot, references.find(snapshot, Task, request.match_info["id"])))


ROUTES = [
    web.get("/tasks", list_tasks),
    web.get("/tasks/{id}", inspect_task),
]


def _as_counted(task: Task) -> Task:
    """The docker CLI's progress counts the slots of jobs from 0, as Swarm does. Everything else names them as they are, from 1."""
    return replace(task, slot=task.slot - 1) if is_job_task(task) and task.slot else task


def _candidates(snapshot: Snapshot, wanted: filters.Filters) -> list[Task]:
    """By index where a service or node is named; a service or node that doesn't exist is the asker's error, as in Docker."""
    by_service = by_node = None
    if wanted.get("service"):
        services = {references.find(snapshot, Service, reference).id for reference in wanted.get("service")}
        by_service = {task.id: task for id in services for task in snapshot.tasks_of_service(id)}
    if wanted.get("node"):
        nodes = {references.find(snapshot, Node, reference).id for reference in wanted.get("node")}
        by_node = {task.id: task for id in nodes for task in snapshot.tasks_of_node(id)}
    if by_service is not None and by_node is not None:
        return [task for id, task in by_service.items() if id in by_node]
    if by_service is not None:
        return list(by_service.values())
    return list(by_node.values()) if by_node is not None else list(snapshot.all(Task))


def _matches(snapshot: Snapshot, task: Task, wanted: filters.Filters) -> bool:
    service = snapshot.service(task.service_id)
    labels = {**((service.spec.labels if service else None) or {}), **(task.labels or {})}
    # whatever its value: Docker only asks whether it is there
    if wanted.get("_up-to-date") and service is not None and dirty(task, service):
        return False
    return (
        wanted.prefix("id", task.id)
        and wanted.prefix("name", references.name_of(task), views.container_name(task))
        and wanted.labels(labels)
        and wanted.exact("desired-state", views.shown_desired_state(task).value)
        and (wanted.exact("runtime", task.spec.runtime or "container") if wanted.get("runtime") else not is_attachment(task))
    )
