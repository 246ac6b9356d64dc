"""The agent among fakes: whole lives of tasks, and what happens when anything around it goes away."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from orchestrator.agent.keyring import Keyring
from orchestrator.dispatcher.messages import NetworkRow
from orchestrator.model import HealthConfig, NetworkAttachment, NetworkReference, SecretReference, Task, TaskState

from .bed import AgentBed
from .fake_runtime import FakeRuntime
from .wait import until

S = TaskState


@pytest_asyncio.fixture
async def bed() -> AsyncIterator[AgentBed]:
    bed = AgentBed()
    yield bed
    await bed.kill()


async def reaches(bed: AgentBed, id: str, state: TaskState) -> None:
    await until(lambda: bed.managers.state(id) is state, f"{id} {state}, is {bed.managers.history.get(id)}")


async def settled(bed: AgentBed) -> None:
    """Until the newest revision is acknowledged."""
    await until(lambda: bed.managers.applied_ and bed.managers.applied_[-1][0] == bed.managers.revision, "acknowledged")


async def test_life_of_a_task(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1")
    await reaches(bed, "t1", S.RUNNING)
    assert bed.managers.history["t1"] == [S.ACCEPTED, S.PREPARING, S.READY, S.STARTING, S.RUNNING]
    await until(lambda: bed.backends() == {"10.0.1.20": 1}, "offered")
    # network and DNS are there before the first line of the application
    calls = bed.engine.calls
    order = [calls.index(("start_held", "t1")), calls.index(("mesh", "t1")), calls.index(("names", "t1")), calls.index(("release", "t1"))]
    assert order[0] < min(order[1:3])
    assert max(order[1:3]) < order[3]
    status = bed.managers.tasks["t1"].status
    assert status.container_status is not None
    assert status.container_status.container_id == "c-t1"
    await settled(bed)


async def test_drain_then_stop(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1")
    await reaches(bed, "t1", S.RUNNING)
    bed.mesh.open["10.0.1.20"] = 3
    bed.managers.change("t1", desired_state=S.SHUTDOWN)
    since = bed.managers.revision
    await until(lambda: bed.backends() == {"10.0.1.20": 0}, "weight 0")
    await until(lambda: (since, {"t1": 3}) in bed.managers.applied_, "connections counted")
    assert all(revision < since or counts == {"t1": 3} for revision, counts in bed.managers.applied_)
    bed.mesh.open.clear()
    await until(lambda: bed.managers.applied_[-1] == (since, {"t1": 0}), "they have gone")
    assert bed.managers.state("t1") is S.RUNNING
    assert ("stop", "t1") not in bed.engine.calls
    bed.managers.change("t1", mesh_released=True)
    await reaches(bed, "t1", S.SHUTDOWN)
    # its logs stay until the row goes
    assert "t1" in bed.engine.boxes
    bed.managers.delete("t1")
    await until(lambda: not bed.engine.boxes, "removed")


async def test_ready_waits_for_its_turn(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1", desired=S.READY)
    await reaches(bed, "t1", S.READY)
    await settled(bed)
    assert bed.engine.boxes["t1"].container.state == "created"
    due = datetime.now(UTC) + timedelta(seconds=0.15)
    bed.managers.change("t1", desired_state=S.RUNNING, mesh_run_at=due)
    await reaches(bed, "t1", S.RUNNING)
    assert datetime.now(UTC) >= due


@pytest.mark.parametrize("desired", [S.SHUTDOWN, S.REMOVE])
async def test_ended_before_it_ran(bed: AgentBed, desired: TaskState) -> None:
    await bed.start()
    bed.managers.add("t1", desired=S.READY)
    await reaches(bed, "t1", S.READY)
    bed.managers.change("t1", desired_state=desired)
    await reaches(bed, "t1", S.SHUTDOWN)
    await until(lambda: not bed.engine.boxes, "nothing is left of what never ran")
    assert ("start_held", "t1") not in bed.engine.calls


async def test_remove_stops_and_removes(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1")
    await reaches(bed, "t1", S.RUNNING)
    bed.managers.change("t1", desired_state=S.REMOVE)
    await reaches(bed, "t1", S.SHUTDOWN)
    await until(lambda: not bed.engine.boxes, "removed")


@pytest.mark.parametrize(
    ("argv", "state", "err"),
    [
        (("sh", "-c", "exit 0"), S.COMPLETE, ""),
        (("sh", "-c", "exit 3"), S.FAILED, "task: non-zero exit (3)"),
        (("nosuch",), S.FAILED, 'exec: "nosuch": executable file not found in $PATH'),
    ],
)
async def test_ends_by_itself(bed: AgentBed, argv: tuple[str, ...], state: TaskState, err: str) -> None:
    await bed.start()
    bed.managers.add("t1", *argv)
    await reaches(bed, "t1", state)
    assert bed.managers.tasks["t1"].status.err == err


async def test_image_missing(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1", image="nosuch")
    await reaches(bed, "t1", S.REJECTED)
    assert bed.managers.tasks["t1"].status.err == "No such image: nosuch:latest"
    assert bed.managers.history["t1"] == [S.ACCEPTED, S.PREPARING, S.REJECTED]


async def test_secret_missing(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1", secrets=[SecretReference(secret_id="s", secret_name="pw")])
    await reaches(bed, "t1", S.REJECTED)
    assert bed.managers.tasks["t1"].status.err == "secret pw is not known to this node"


async def test_killed_container_is_out_at_once(bed: AgentBed) -> None:
    await bed.start()
    for id in ("t1", "t2"):
        bed.managers.add(id)
        await reaches(bed, id, S.RUNNING)
    await until(lambda: bed.backends() == {"10.0.1.20": 1, "10.0.1.21": 1}, "both offered")
    began = time.monotonic()
    bed.engine.kill(bed.engine.boxes["t1"].container.pid)
    await until(lambda: bed.backends() == {"10.0.1.21": 1}, "out of the balancer")
    await reaches(bed, "t1", S.FAILED)
    assert time.monotonic() - began < 0.25
    assert bed.managers.tasks["t1"].status.err == "task: non-zero exit (137)"


async def test_container_removed_by_somebody(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1")
    await reaches(bed, "t1", S.RUNNING)
    bed.engine.destroy("t1")
    await reaches(bed, "t1", S.FAILED)


async def test_waits_for_its_ports(bed: AgentBed) -> None:
    bed.engine.images["bb:1"] = (80,)
    await bed.start()
    bed.managers.add("t1")
    await until(lambda: ("release", "t1") in bed.engine.calls, "released")
    await settled(bed)
    assert bed.managers.state("t1") is S.STARTING
    assert bed.backends() == {}
    bed.listening[bed.engine.boxes["t1"].container.pid] = frozenset({80})
    await reaches(bed, "t1", S.RUNNING)


async def test_waits_thirty_seconds_at_most(bed: AgentBed) -> None:
    bed.engine.images["bb:1"] = (80,)
    bed.engine.now = lambda: datetime.now(UTC) - timedelta(seconds=29.9)
    await bed.start()
    bed.managers.add("t1")
    await until(lambda: ("release", "t1") in bed.engine.calls, "released")
    assert bed.managers.state("t1") is S.STARTING
    await reaches(bed, "t1", S.RUNNING)


async def test_health(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1", healthcheck=HealthConfig(test=["CMD", "true"]))
    await until(lambda: ("release", "t1") in bed.engine.calls, "released")
    await settled(bed)
    assert bed.managers.state("t1") is S.STARTING
    bed.engine.set_health("t1", "healthy")
    await reaches(bed, "t1", S.RUNNING)
    await until(lambda: bed.backends() == {"10.0.1.20": 1}, "offered")
    bed.engine.set_health("t1", "unhealthy")
    await reaches(bed, "t1", S.FAILED)
    assert bed.managers.tasks["t1"].status.err == "unhealthy container"
    assert ("stop", "t1") in bed.engine.calls


# ---- restarts ------------------------------------------------------------------------------------------------------------------


async def test_a_fresh_agent_adopts_and_disturbs_nothing(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1")
    bed.managers.add("t2", desired=S.READY)
    await reaches(bed, "t1", S.RUNNING)
    await reaches(bed, "t2", S.READY)
    await settled(bed)
    before = dict(bed.engine.boxes)
    state = bed.mesh.states[-1]
    await bed.kill()
    bed.engine.calls.clear()
    await bed.start()
    await settled(bed)
    assert bed.engine.boxes == before
    assert bed.mesh.states[-1] == state
    assert {call for call, _ in bed.engine.calls} <= {"mesh", "names"}


@pytest.mark.parametrize("calls", range(1, 12))
async def test_killed_after_any_call_the_next_one_finishes(bed: AgentBed, calls: int) -> None:
    """The agent dies after the n-th thing it did; its successor brings the task to RUNNING, with one container started once."""
    await bed.start()
    bed.managers.add("t1")
    await until(lambda: len(bed.engine.calls) >= calls or bed.managers.state("t1") is S.RUNNING, "so far")
    await bed.kill()
    await bed.start()
    await reaches(bed, "t1", S.RUNNING)
    await until(lambda: bed.backends() == {"10.0.1.20": 1}, "offered")
    assert [call for call, _ in bed.engine.calls if call in ("prepare", "start_held", "release", "stop", "remove")] == [
        "prepare", "start_held", "release",
    ]  # fmt: skip


async def test_nothing_is_stopped_before_the_first_complete(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1")
    await reaches(bed, "t1", S.RUNNING)
    await settled(bed)
    await bed.kill()
    bed.engine.calls.clear()
    agent = await bed.start(complete=False)
    await until(lambda: agent.engine_available, "the containers are known")
    # a delta without its beginning says nothing
    await agent.on_rows(9, [], ["task/t1"], False)
    await asyncio.sleep(0.05)
    assert bed.engine.calls == []
    # the task is gone from the cluster: only now it may go
    bed.managers.tasks.clear()
    await bed.managers.complete()
    await until(lambda: not bed.engine.boxes, "the orphan is removed")
    assert [call for call, _ in bed.engine.calls if call in ("stop", "remove")] == ["stop", "remove"]


async def test_without_managers_everything_goes_on(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1")
    bed.managers.add("t2")
    for id in ("t1", "t2"):
        await reaches(bed, id, S.RUNNING)
    await until(lambda: len(bed.backends()) == 2, "offered")
    bed.managers.connected = False
    bed.engine.kill(bed.engine.boxes["t1"].container.pid)
    # what dies meanwhile is not offered any more, on this node
    await until(lambda: bed.backends() == {"10.0.1.21": 1}, "out")
    assert bed.engine.boxes["t2"].container.state == "running"


async def test_reconnecting_is_acknowledged_even_if_nothing_changed(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1")
    await reaches(bed, "t1", S.RUNNING)
    await settled(bed)
    applies = len(bed.mesh.states)
    await bed.managers.complete()
    await settled(bed)
    assert len(bed.mesh.states) == applies


# ---- things go away ------------------------------------------------------------------------------------------------------------


async def test_engine_down_and_up(bed: AgentBed) -> None:
    agent = await bed.start()
    for id in ("t1", "t2"):
        bed.managers.add(id)
        await reaches(bed, id, S.RUNNING)
    await until(lambda: len(bed.backends()) == 2, "offered")
    bed.engine.up = False
    bed.managers.add("t3")
    agent.resync()
    await until(lambda: not agent.engine_available, "noticed")
    assert bed.managers.state("t1") is S.RUNNING
    # a death that the Engine can't tell of
    bed.engine.kill(bed.engine.boxes["t1"].container.pid)
    await until(lambda: bed.backends() == {"10.0.1.21": 1}, "out of the balancer")
    assert bed.managers.state("t1") is S.RUNNING
    bed.engine.up = True
    await reaches(bed, "t1", S.FAILED)
    await reaches(bed, "t3", S.RUNNING)
    assert bed.managers.state("t2") is S.RUNNING
    assert ("stop", "t2") not in bed.engine.calls


async def test_no_start_without_network_or_dns(bed: AgentBed) -> None:
    bed.mesh.broken = True
    bed.names.failed = {"t1": "no socket"}
    await bed.start()
    bed.managers.add("t1")
    await until(lambda: ("start_held", "t1") in bed.engine.calls, "held")
    await asyncio.sleep(0.05)
    assert ("release", "t1") not in bed.engine.calls
    assert bed.managers.applied_ == []
    bed.mesh.broken = False
    await until(lambda: bed.mesh.states, "applied")
    await asyncio.sleep(0.05)
    assert ("release", "t1") not in bed.engine.calls
    bed.names.failed = {}
    await reaches(bed, "t1", S.RUNNING)
    assert bed.mesh.resyncs >= 1


async def test_a_list_that_was_long_on_its_way_overrules_nothing(bed: AgentBed) -> None:
    agent = await bed.start()
    await settled(bed)
    await until(lambda: bed.engine.lists >= 1, "listed once")
    gate = bed.engine.list_gate = asyncio.Event()
    lists = bed.engine.lists
    agent.resync()
    await until(lambda: bed.engine.lists > lists, "a list without t1 is on its way")
    bed.managers.add("t1")
    await reaches(bed, "t1", S.RUNNING)
    bed.engine.list_gate = None
    gate.set()
    await until(lambda: bed.engine.lists > lists + 1, "listed again")
    await settled(bed)
    assert bed.managers.state("t1") is S.RUNNING
    assert "t1" in agent.containers


@pytest.mark.parametrize("how", ["hangs", "refuses"])
async def test_it_tells_for_how_long_the_engine_owes_an_answer(bed: AgentBed, how: str) -> None:
    agent = await bed.start()
    await until(lambda: bed.engine.lists and agent.engine_silent_s == 0, "it answers")
    gate = bed.engine.list_gate = asyncio.Event()
    bed.engine.up = how == "hangs"
    agent.resync()
    await until(lambda: agent.engine_silent_s > 0.05, "it owes an answer")
    bed.engine.up, bed.engine.list_gate = True, None
    gate.set()
    await until(lambda: agent.engine_silent_s == 0, "it has answered")


async def test_an_end_during_a_step_is_not_overlooked(bed: AgentBed) -> None:
    gate = bed.engine.release_gate = asyncio.Event()
    agent = await bed.start()
    bed.managers.add("t1", "sh", "-c", "exit 3")
    await until(lambda: ("release", "t1") in bed.engine.calls, "released, and over at once")
    lists = bed.engine.lists
    agent.resync()
    await until(lambda: bed.engine.lists > lists, "listed while the release is under way")
    gate.set()
    await reaches(bed, "t1", S.FAILED)


async def test_what_the_nodes_owner_does_not_permit_is_rejected_with_a_sentence(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1", labels={"com.meshd.run.privileged": "true"})
    await reaches(bed, "t1", S.REJECTED)
    assert bed.managers.tasks["t1"].status.err == (
        "this node does not permit containers to be privileged: its owner can, with `meshd daemon --permit privileged`"
    )
    assert not bed.engine.boxes


async def test_a_node_that_can_not_encrypt_rejects_tasks_of_encrypted_networks(bed: AgentBed) -> None:
    bed.unable_to_encrypt = "this node's kernel has no WireGuard"
    bed.managers.add("t1")
    attachment = NetworkAttachment(network=NetworkReference(id="app", mesh_encrypted=True), addresses=["10.0.1.20/24"])
    bed.managers.add("t2")
    bed.managers.change("t2", networks_attachments=[attachment])
    await bed.start()
    await reaches(bed, "t2", S.REJECTED)
    assert bed.managers.tasks["t2"].status.err == "one of its networks is encrypted: this node's kernel has no WireGuard"
    await reaches(bed, "t1", S.RUNNING)


async def test_keys_are_on_disk_before_the_kernel_has_them_and_shown_when_it_has(bed: AgentBed, tmp_path: Path) -> None:
    bed.keyring = Keyring(tmp_path / "keys.json")
    agent = await bed.start()
    first = bed.keyring.private

    async def told(step: int) -> None:
        bed.managers.revision += 1
        row = NetworkRow(
            id="app", name="shop", vni=4097, subnets=("10.0.1.0/24",), lb_addresses={"n1": "10.0.1.2"}, keys_step=step, keys={"n1": {}}
        )
        await agent.on_rows(bed.managers.revision, [row], [], False)

    await told(2)
    await until(lambda: agent.keys_step == 2, "the kernel sends by the newer keys")
    sent = bed.mesh.states[-1].encryption
    assert sent is not None and sent.keys == (first[0], first[1]) and sent.active == 1
    bed.mesh.errors = {"namespace:mesh-+encryption": "UDP port 51871 is in use"}
    await told(3)
    await until(lambda: bed.keyring is not None and Keyring(tmp_path / "keys.json").step == 3, "new keys are on disk")
    await until(lambda: agent.keys_step is None, "what the kernel does not show is not said")
    sent = bed.mesh.states[-1].encryption
    assert sent is not None and sent.keys == (bed.keyring.private[2], first[1])
    bed.mesh.errors = {}
    await until(lambda: agent.keys_step == 3, "it is shown once it is so")


async def test_one_broken_sandbox_keeps_nobody_else_waiting(bed: AgentBed) -> None:
    bed.mesh.errors = {"sandbox:t1": "no gateway"}
    await bed.start()
    bed.managers.add("t1")
    bed.managers.add("t2")
    await reaches(bed, "t2", S.RUNNING)
    assert bed.managers.state("t1") is S.STARTING


async def test_what_others_changed_is_looked_at_at_once(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1")
    await reaches(bed, "t1", S.RUNNING)
    await until(lambda: bed.mesh.on_change is not None, "listening")
    before = bed.mesh.resyncs
    assert bed.mesh.on_change is not None
    bed.mesh.on_change()
    await until(lambda: bed.mesh.resyncs > before, "resync")


@pytest.mark.parametrize(
    ("error", "behind"),
    [
        ("sandbox:t1", set()),
        ("endpoint:app/t1-1", set()),
        ("host_port:80/tcp", set()),
        ("network:app", {"app"}),
        ("namespace:mesh-app", {"app"}),
    ],
)
async def test_what_can_not_be_put_into_place_holds_no_drain_of_others(bed: AgentBed, error: str, behind: set[str]) -> None:
    """The managers are told how far the node is all the same, and which networks' balancers are not."""
    await bed.start()
    bed.managers.add("t1")
    bed.managers.add("t2")
    await reaches(bed, "t2", S.RUNNING)
    bed.mesh.errors = {error: "no"}
    bed.managers.change("t2", desired_state=S.SHUTDOWN)
    since = bed.managers.revision
    await until(lambda: (since, {"t2": 0}) in bed.managers.applied_, "told")
    assert bed.managers.behind == behind


async def test_a_slow_pull_blocks_no_stop_and_can_be_given_up(bed: AgentBed) -> None:
    never = asyncio.Event()

    def gate(task: Task) -> asyncio.Event | None:
        return never if task.id.startswith("slow") else None

    bed.engine.prepare_gate = gate
    await bed.start()
    bed.managers.add("t1")
    await reaches(bed, "t1", S.RUNNING)
    for number in range(40):
        bed.managers.add(f"slow{number}")
    await reaches(bed, "slow39", S.PREPARING)
    bed.managers.add("t2")
    await reaches(bed, "t2", S.RUNNING)
    bed.managers.change("t1", desired_state=S.REMOVE)
    await reaches(bed, "t1", S.SHUTDOWN)
    bed.managers.change("slow7", desired_state=S.REMOVE)
    await reaches(bed, "slow7", S.SHUTDOWN)


async def test_changes_gather_while_an_apply_runs(bed: AgentBed) -> None:
    await bed.start()
    await settled(bed)
    bed.mesh.gate = asyncio.Event()
    applies = len(bed.mesh.states)
    for number in range(30):
        bed.managers.add(f"t{number}")
    await until(lambda: sum(call == "start_held" for call, _ in bed.engine.calls) == 30, "all held")
    gate, bed.mesh.gate = bed.mesh.gate, None
    gate.set()
    for number in range(30):
        await reaches(bed, f"t{number}", S.RUNNING)
    await until(lambda: len(bed.backends()) == 30, "all offered")
    assert len(bed.mesh.states) - applies < 20


# ---- fencing --------------------------------------------------------------------------------------------------------------------


async def unheard(bed: AgentBed, seconds: float) -> None:
    """Time passes without a leader's proof; the agent looks at its clock."""
    bed.now_s += seconds
    assert bed.agent is not None
    bed.agent.resync()


async def test_a_fenced_task_is_stopped_when_no_leader_is_heard_of_and_says_so(bed: AgentBed) -> None:
    await bed.start()
    bed.lease.heard(0.0)
    bed.managers.add("t1", fence_s=30)
    bed.managers.add("t2")
    await reaches(bed, "t1", S.RUNNING)
    await reaches(bed, "t2", S.RUNNING)
    await unheard(bed, 29)
    await until(lambda: bed.engine.lists > 3, "it has looked")
    assert ("stop", "t1") not in bed.engine.calls
    await unheard(bed, 2)
    await reaches(bed, "t1", S.SHUTDOWN)
    assert bed.engine.boxes["t1"].container.state == "exited"
    assert bed.engine.boxes["t2"].container.state == "running", "others go on"
    assert "no manager could be reached" in bed.managers.tasks["t1"].status.err


async def test_a_fresh_agent_that_reaches_no_manager_stops_what_its_predecessor_would_have_stopped(bed: AgentBed, tmp_path: Path) -> None:
    bed.lease_file = tmp_path / "lease.json"
    await bed.start()
    bed.lease.heard(0.0)
    bed.managers.add("t1", fence_s=30)
    await reaches(bed, "t1", S.RUNNING)
    await bed.kill()
    bed.now_s += 29
    await bed.start(complete=False)
    await until(lambda: bed.agent is not None and "t1" in bed.agent.containers, "found")
    assert bed.engine.boxes["t1"].container.state == "running"
    await unheard(bed, 2)
    await until(lambda: bed.engine.boxes["t1"].container.state == "exited", "stopped without any row")
    await bed.kill()
    await bed.start()
    await reaches(bed, "t1", S.SHUTDOWN)


async def test_a_fenced_task_is_not_started_while_no_leader_is_heard_of(bed: AgentBed) -> None:
    await bed.start()
    bed.managers.add("t1", fence_s=30, desired=S.READY)
    await reaches(bed, "t1", S.READY)
    bed.managers.change("t1", desired_state=S.RUNNING)
    await settled(bed)
    assert bed.managers.state("t1") is S.READY
    bed.lease.heard(0.0)
    bed.managers.send("t1")
    await reaches(bed, "t1", S.RUNNING)


def test_a_wait_of_nothing_ends_no_agent_under_uvloop() -> None:
    """Its call_at returns a handle without a time then."""

    async def wait() -> None:
        bed = AgentBed()
        agent = await bed.start()
        for delay_s in (0.0, 0.0001, 1.0, 0.0, 0.0):
            agent._wake_in(delay_s)
        await bed.kill()

    uvloop.run(wait())


async def test_a_full_disk_is_no_bug_and_the_step_is_tried_again(
    bed: AgentBed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepare = FakeRuntime.prepare
    full = [True, True]

    async def prepare_later(self: FakeRuntime, *arguments: Any) -> Any:
        if full:
            full.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        return await prepare(self, *arguments)

    monkeypatch.setattr(FakeRuntime, "prepare", prepare_later)
    await bed.start()
    bed.managers.add("t1")
    await reaches(bed, "t1", S.RUNNING)
    assert "No space left on device" in caplog.text and "Traceback" not in caplog.text
