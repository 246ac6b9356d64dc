"""Some seeds of the simulation in every run of the tests (`make simulate` has more), and whether it can fail at all."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from msgspec.structs import replace

from orchestrator.agent import agent
from orchestrator.agent.tasks import NOTHING, plan_task
from orchestrator.control import drain
from orchestrator.dispatcher import server
from tests.orchestrator.simulation import script
from tests.orchestrator.simulation.cluster import SimCluster
from tests.orchestrator.simulation.loop import VirtualLoop

pytestmark = pytest.mark.timeout(900)
SEEDS = 12


def test_laws_hold_and_clusters_come_to_rest() -> None:
    """In a process of its own: a run is its seed's only with the hashes that `make simulate` uses."""
    command = [sys.executable, "-m", "tests.orchestrator.simulation", "--seeds", str(SEEDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_seed_is_one_run() -> None:
    one, other = script.run("3"), script.run("3")
    assert (one.trace, one.history, one.failure) == (other.trace, other.history, other.failure)


def test_a_machine_that_hears_of_no_manager_rests() -> None:
    loop = VirtualLoop()
    cluster = SimCluster("alone", managers=1, workers=1)

    async def alone() -> None:
        await cluster.start()
        await asyncio.sleep(5)
        await cluster.machines["n1"].power_off()
        await cluster.machines["n2"].kill()
        cluster.start_machine(cluster.machines["n2"])
        await asyncio.sleep(100)

    loop.run_until_complete(alone())
    turns = loop.turns
    loop.run_until_complete(asyncio.sleep(1000))
    assert loop.turns - turns < 20_000
    loop.run_until_complete(cluster.stop())
    loop.close()


@pytest.mark.parametrize("broken", ["was released while", "was not released", "has containers of no task", "not converged"])
def test_what_breaks_a_law_is_found(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    match broken:
        case "was released while":
            # the leader doesn't wait for the nodes
            monkeypatch.setattr(drain, "everyone_shows", lambda snapshot, acks, task: True)
        case "was not released":
            # the agent doesn't wait for the leader
            monkeypatch.setattr(agent, "plan_task", lambda task, *rest: plan_task(replace(task, mesh_released=True), *rest))
        case "has containers of no task":
            # the agent doesn't tidy up
            monkeypatch.setattr(agent, "plan_orphan", lambda container: NOTHING)
        case _:
            # a leader believes that agents that come back lack nothing
            monkeypatch.setattr(server, "stale_buckets", lambda token, summaries: ((), {}))
    failures = (script.run(str(seed)).failure for seed in range(1, 61))
    assert any(broken in failure for failure in failures)
