"""What an agent's report makes of a task: states only move forward, and the end is the end.

Pure: no I/O.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from orchestrator.model import STATE_ORDER, Task, TaskState, TaskStatus, terminal

# what only the leader says about a task
_NOT_AN_AGENTS_WORD = frozenset({TaskState.NEW, TaskState.PENDING, TaskState.ASSIGNED, TaskState.REMOVE, TaskState.ORPHANED})


def advance(task: Task, status: TaskStatus, now: datetime | None = None) -> Task | None:
    """The task after the report; None when the report says nothing new: older, repeated, or about an ended task.

    `now`: the leader's time, for `updated_at` and `mesh_running_since`; without it the report's own time is taken.
    Within one state a report may still change the text, the container or the ports.
    """
    had = task.status
    if status.state in _NOT_AN_AGENTS_WORD or terminal(had.state) or STATE_ORDER[status.state] < STATE_ORDER[had.state]:
        return None
    if STATE_ORDER[had.state] < STATE_ORDER[TaskState.ASSIGNED]:
        return None
    if status.state is had.state and msgspec.structs.replace(status, timestamp=had.timestamp) == had:
        return None
    container = status.container_status or had.container_status
    time = now if now is not None else status.timestamp
    return msgspec.structs.replace(
        task,
        status=msgspec.structs.replace(status, container_status=container),
        updated_at=time,
        mesh_running_since=task.mesh_running_since or (time if status.state is TaskState.RUNNING else None),
    )
