"""Containers started by hand: every combination of what may be, then whole lives among fakes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from orchestrator.agent.attachments import UNUSED_BOUND, plan_attachment, plan_foreign
from orchestrator.agent.engine_requests import ask_engine_again, ask_mesh
from orchestrator.agent.runtime import Container
from orchestrator.agent.tasks import ATTACH_BOUND, NOTHING, Facts, Step, further
from orchestrator.model import STATE_ORDER, ContainerStatus, NetworkAttachmentSpec, Task, TaskSpec, TaskState, TaskStatus, terminal

from .bed import AgentBed
from .test_agent import reaches
from .test_tasks import CONTAINERS, DESIRED, NOW
from .wait import until

S = TaskState
STATES = [state for state in TaskState if STATE_ORDER[state] >= STATE_ORDER[S.ASSIGNED]]


def make(desired: TaskState, state: TaskState, container_id: str = "") -> Task:
    spec = TaskSpec(network_attachment_spec=NetworkAttachmentSpec(container_id=container_id))
    return Task(id="t", node_id="n", desired_state=desired, status=TaskStatus(state=state, timestamp=NOW), spec=spec)


def test_every_combination_keeps_the_rules() -> None:
    """Only the agent's own steps; nothing backwards; and whatever is done, with nothing else changing, it comes to rest."""
    pids, bools = (0, 7, 8), (False, True)
    count = 0
    for desired, state, name, attached, error, prepared, released, said in itertools.product(
        DESIRED, STATES, CONTAINERS, bools, ("", "broken"), bools, pids, pids
    ):
        count += 1
        task, container = make(desired, state), CONTAINERS[name]
        facts = Facts(
            state, attached=attached, attach_error=error, prepared=prepared, looked_for=True, released_pid=released, said_pid=said
        )
        now = NOW + ATTACH_BOUND + UNUSED_BOUND
        for _ in range(6):
            where = (desired, state, name, facts)
            decision = plan_attachment(task, container, facts, now)
            assert decision.step in (None, Step.PREPARE, Step.RELEASE, Step.STOP), where
            if decision.said is not None:
                assert not terminal(facts.state), where
                assert STATE_ORDER[decision.said.state] >= STATE_ORDER[facts.state], where
                pid = container.pid if container is not None else 0
                assert (decision.said.state, pid) != (facts.state, facts.said_pid), f"nothing new: {where}"
                facts = replace(facts, state=further(facts.state, decision.said.state), said_pid=pid)
            elif decision.step is Step.PREPARE:
                assert container is None or facts.state is S.PREPARING, where
                facts = replace(facts, prepared=True)
            elif decision.step is Step.RELEASE:
                assert facts.attached and container is not None and container.pid, where
                facts, container = replace(facts, released_pid=container.pid), replace(container, state="running")
            elif decision.step is Step.STOP:
                # somebody's application is never stopped: this one has not begun
                assert container is not None and container.state == "held" and facts.attach_error, where
                container = replace(container, state="exited", pid=0)
            else:
                break
        else:
            pytest.fail(f"never at rest: {where}")
        alive = container is not None and container.state == "running" and container.pid
        if alive and attached and not terminal(facts.state) and STATE_ORDER[desired] <= STATE_ORDER[S.COMPLETE]:
            assert (facts.state, facts.said_pid) == (S.RUNNING, 7)
        if container is None and not terminal(state):
            assert facts.state is S.SHUTDOWN, "what has no container gives its addresses back"
    assert count == 5 * 12 * 7 * 2 * 2 * 2 * 3 * 3


def test_a_container_that_is_about_to_be_made_is_waited_for() -> None:
    task = make(S.RUNNING, S.READY)
    facts = Facts(S.READY, prepared=True)
    assert plan_attachment(task, None, facts, NOW).wake_at == NOW + UNUSED_BOUND
    just_before = plan_attachment(task, None, facts, NOW + UNUSED_BOUND - timedelta(seconds=1))
    assert (just_before.said, just_before.step) == (None, None)
    named = make(S.RUNNING, S.READY, container_id="c")
    assert plan_attachment(named, None, facts, NOW) == NOTHING, "nobody has looked for it yet"
    for known in (named, msgspec.structs.replace(task, status=_with_container(task))):
        ended = plan_attachment(known, None, replace(facts, looked_for=True), NOW).said
        assert ended is not None and ended.state is S.SHUTDOWN


def _with_container(task: Task) -> TaskStatus:
    return msgspec.structs.replace(task.status, container_status=ContainerStatus(container_id="c"))


def test_without_an_attachment_only_what_would_wait_for_ever_is_stopped() -> None:
    for name, container in CONTAINERS.items():
        if container is not None:
            assert plan_foreign(container).step is (Step.STOP if name == "held" else None)
    assert plan_foreign(Container("c", "t", "n", "running", pid=1, attachment=True)) == NOTHING


# ---- lives -----------------------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def bed() -> AsyncIterator[AgentBed]:
    bed = AgentBed()
    yield bed
    await bed.kill()


def shown_pid(bed: AgentBed) -> int:
    status = bed.managers.tasks["a"].status.container_status
    return status.pid if status is not None else 0


def offered(bed: AgentBed) -> list[str]:
    """Names of containers without service that the DNS server answers for."""
    zones = bed.names.states[-1].zones if bed.names.states else ()
    return [task.name for zone in zones for task in zone.containers if task.serving]


async def test_a_life(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.attach("a")
    await reaches(bed, "a", S.READY)
    bed.engine.make_by_hand("a")
    first = bed.engine.start_by_hand("a")
    await until(lambda: shown_pid(bed) == first, "attached")
    await until(lambda: offered(bed) == ["db"], "its name is known")
    calls = bed.engine.calls
    assert max(calls.index(("mesh", "a")), calls.index(("names", "a"))) < calls.index(("release", "a"))
    bed.engine.exit("a", 0)
    await until(lambda: shown_pid(bed) == 0 and offered(bed) == [], "stopped: nobody is sent to it")
    assert bed.managers.state("a") is S.RUNNING
    second = bed.engine.start_by_hand("a")
    await until(lambda: shown_pid(bed) == second and offered(bed) == ["db"], "there again")
    assert calls.count(("release", "a")) == 2
    bed.engine.destroy("a")
    await reaches(bed, "a", S.SHUTDOWN)
    bed.managers.delete("a")
    await until(lambda: not bed.engine.gates, "nothing is left of it")
    assert {step for step, id in calls if id == "a"} == {"mesh", "names", "release"}


async def test_an_agent_that_is_killed_goes_on(bed: AgentBed) -> None:
    """At every moment of the life above; while it is away the container is started, restarted or removed."""
    await bed.start()
    bed.managers.attach("a")
    await reaches(bed, "a", S.READY)
    await bed.kill()
    bed.engine.make_by_hand("a")
    pid = bed.engine.start_by_hand("a")
    await bed.start()
    await until(lambda: shown_pid(bed) == pid, "attached")
    await bed.kill()
    bed.engine.exit("a", 1)
    pid = bed.engine.start_by_hand("a")
    await bed.start()
    await until(lambda: shown_pid(bed) == pid and offered(bed) == ["db"], "attached again")
    await bed.kill()
    bed.engine.destroy("a")
    await bed.start()
    await reaches(bed, "a", S.SHUTDOWN)


async def test_detached_while_it_runs(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.attach("a")
    await reaches(bed, "a", S.READY)
    bed.engine.make_by_hand("a")
    pid = bed.engine.start_by_hand("a")
    await until(lambda: shown_pid(bed) == pid, "attached")
    bed.managers.change("a", desired_state=S.REMOVE)
    await reaches(bed, "a", S.SHUTDOWN)
    bed.managers.delete("a")
    await until(lambda: not bed.mesh.states[-1].sandboxes, "no network")
    # its owner's container goes on; started anew it would wait for ever, so that is stopped
    assert bed.engine.boxes["a"].container.pid == pid
    bed.engine.exit("a", 0)
    bed.engine.start_by_hand("a")
    await until(lambda: bed.engine.boxes["a"].container.state == "exited", "not left waiting")
    assert ("remove", "a") not in bed.engine.calls


async def test_a_container_that_is_connected_later(bed: AgentBed) -> None:
    """It is found by its id, has no gate, and is left as it is when it leaves."""
    pid = next(bed.engine.pids)
    bed.engine.others["old"] = Container("old", "", "old", "running", pid=pid, attachment=True, own_network=True)
    await bed.start()
    bed.managers.attach("a", container_id="old")
    await until(lambda: shown_pid(bed) == pid and offered(bed) == ["db"], "attached")
    (sandbox,) = bed.mesh.states[-1].sandboxes
    assert not sandbox.gateway, "its Engine has given it a way out"
    bed.managers.change("a", desired_state=S.REMOVE)
    await reaches(bed, "a", S.SHUTDOWN)
    bed.managers.delete("a")
    await until(lambda: not bed.mesh.states[-1].sandboxes and not bed.engine.gates, "detached")
    assert bed.engine.others["old"].pid == pid


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 30])
async def test_a_container_that_is_connected_again_at_once(bed: AgentBed, turns: int) -> None:
    """Its attachment has the id of the one that ended a moment before, of which this node still knows."""
    pid = next(bed.engine.pids)
    bed.engine.others["old"] = Container("old", "", "old", "running", pid=pid, attachment=True, own_network=True)
    await bed.start()
    bed.managers.attach("a", container_id="old")
    await until(lambda: shown_pid(bed) == pid, "attached")
    bed.managers.change("a", desired_state=S.REMOVE)
    await reaches(bed, "a", S.SHUTDOWN)
    bed.managers.delete("a")
    for _ in range(turns):
        await asyncio.sleep(0)
    bed.managers.attach("a", container_id="old")
    await until(lambda: bed.managers.state("a") is S.RUNNING and shown_pid(bed) == pid, "attached again")


async def test_a_look_that_came_by_while_the_gate_was_made(bed: AgentBed) -> None:
    """It said that the container is there, and was not listened to: that doesn't mean that it is gone."""
    pid = next(bed.engine.pids)
    bed.engine.others["old"] = Container("old", "", "old", "running", pid=pid, attachment=True)
    making, made, first, second = (asyncio.Event() for _ in range(4))

    def making_it(task: Task) -> asyncio.Event:
        making.set()
        return made

    bed.engine.prepare_gate = making_it
    await bed.start()
    await until(lambda: bed.engine.answered_lists, "looked once")
    bed.engine.list_gate = first
    bed.managers.attach("a", container_id="old")
    await making.wait()
    answered, bed.engine.list_gate = bed.engine.answered_lists, second
    first.set()
    await until(lambda: bed.engine.answered_lists > answered, "looked while the gate is made")
    made.set()
    await reaches(bed, "a", S.READY)
    second.set()
    await until(lambda: shown_pid(bed) == pid, "attached")
    assert S.SHUTDOWN not in bed.managers.history["a"]


async def test_a_container_that_is_gone_before_anybody_looks(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.attach("a", container_id="old")
    await reaches(bed, "a", S.SHUTDOWN)


# ---- names -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    [
        "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch lan\n",
        "search lan\noptions ndots:2\n",
        "",
        "nameserver 127.0.0.11\noptions ndots:0\n",
    ],
)
def test_a_connected_container_asks_us_and_later_whom_it_asked_before(tmp_path: Path, before: str) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(before)
    details = {"ResolvConfPath": str(file)}
    was_ours = "nameserver 127.0.0.11" in before
    for _ in range(2):
        assert ask_mesh(details) == (None if was_ours else file)
        lines = file.read_text().splitlines()
        assert [line for line in lines if line.startswith("nameserver")] == ["nameserver 127.0.0.11"]
        assert [line for line in lines if line.startswith(("search", "options"))] == [
            line for line in before.splitlines() if not line.startswith("nameserver")
        ]
    if not was_ours:
        ask_engine_again(file)
    assert file.read_text().strip() == before.strip()
    # a container that has just gone is no error
    assert ask_mesh({"ResolvConfPath": str(tmp_path / "gone")}) is None
    ask_engine_again(tmp_path / "gone")
