"""Reports of agents: every pair of states, exhaustively."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from orchestrator.control.status import advance
from orchestrator.model import STATE_ORDER, ContainerStatus, Task, TaskState, TaskStatus, terminal

T0 = datetime(2026, 1, 1, tzinfo=UTC)
T1 = T0 + timedelta(seconds=1)
LEADERS = {TaskState.NEW, TaskState.PENDING, TaskState.ASSIGNED, TaskState.REMOVE, TaskState.ORPHANED}


def task(state: TaskState) -> Task:
    return Task(id="t", node_id="n", status=TaskStatus(state=state, timestamp=T0))


@pytest.mark.parametrize(("had", "said"), list(itertools.product(TaskState, TaskState)))
def test_only_forward_and_only_what_an_agent_decides(had: TaskState, said: TaskState) -> None:
    after = advance(task(had), TaskStatus(state=said, timestamp=T1, message="m"))
    unknown_to_agents = STATE_ORDER[had] < STATE_ORDER[TaskState.ASSIGNED]
    if said in LEADERS or unknown_to_agents or terminal(had) or STATE_ORDER[said] < STATE_ORDER[had]:
        assert after is None
    else:
        assert after is not None
        assert after.status.state is said
        assert (after.mesh_running_since == T1) is (said is TaskState.RUNNING)


@pytest.mark.parametrize("state", [state for state in TaskState if state not in LEADERS and not terminal(state)])
def test_a_repeated_report_is_no_write(state: TaskState) -> None:
    before = advance(task(TaskState.ASSIGNED), TaskStatus(state=state, timestamp=T0, message="m"))
    assert before is not None
    assert advance(before, TaskStatus(state=state, timestamp=T1, message="m")) is None
    assert advance(before, TaskStatus(state=state, timestamp=T1, message="another")) is not None


def test_running_since_is_the_leaders_first_time_and_outlives_the_end() -> None:
    running = advance(task(TaskState.STARTING), TaskStatus(state=TaskState.RUNNING, timestamp=T0), now=T1)
    assert running is not None and running.mesh_running_since == T1 and running.updated_at == T1
    again = advance(running, TaskStatus(state=TaskState.RUNNING, timestamp=T1, message="healthy"), now=T1 + timedelta(seconds=5))
    assert again is not None and again.mesh_running_since == T1
    ended = advance(again, TaskStatus(state=TaskState.FAILED, timestamp=T1, err="exit 1"))
    assert ended is not None and ended.mesh_running_since == T1


def test_the_container_is_not_forgotten_when_a_report_leaves_it_out() -> None:
    container = ContainerStatus(container_id="c1", pid=7)
    running = msgspec.structs.replace(task(TaskState.RUNNING), status=TaskStatus(state=TaskState.RUNNING, container_status=container))
    ended = advance(running, TaskStatus(state=TaskState.FAILED, timestamp=T1))
    assert ended is not None and ended.status.container_status == container
