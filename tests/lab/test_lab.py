"""The lab itself, with real namespaces and real Engines, and without meshd."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.lab import processes
from orchestrator.lab.lab import Lab, LabError, wait_until
from tests.lab.temporary import SUBNET, temporary_lab

pytestmark = pytest.mark.engine


@pytest.fixture
def lab() -> Iterator[Lab]:
    with temporary_lab("t") as lab:
        yield lab


def _leftovers(lab: Lab) -> list[str]:
    layout = lab.layout
    found = [f"process {pid}" for pid in processes.marked(layout.marker)]
    found += [f"cgroup {path}" for i in (1, 2) for path in processes.cgroup_directories(layout.node(i).cgroup)]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(layout.state_dir) in line]
    if layout.switch in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout:
        found.append("switch namespace")
    if layout.state_dir.exists():
        found.append("state directory")
    return found


def test_life_of_a_lab(lab: Lab) -> None:
    links_before = set(Path("/sys/class/net").iterdir())
    lab.up(2, meshd=False)
    one, two = lab.nodes
    assert [one.exec("hostname").strip(), two.exec("hostname").strip()] == ["node-1", "node-2"]
    assert set(Path("/sys/class/net").iterdir()) == links_before, "the machine's own namespace is not touched"

    def reaches(source: object, address: str) -> bool:
        script = f"import socket; socket.create_connection(('{address}', 9), timeout=1)"
        done = subprocess.run([*source.exec_prefix(), "python3", "-c", script], capture_output=True, text=True)  # type: ignore[attr-defined]
        return "ConnectionRefusedError" in done.stderr

    assert reaches(one, two.address)
    two.cut()
    assert two.report().cut
    assert not reaches(one, two.address)
    two.heal()
    wait_until(lambda: reaches(one, two.address), 10, "the healed node is reached")

    # again: nothing is started twice
    pids = [node.init_pid for node in lab.nodes]
    lab.up(2, meshd=False)
    assert [node.init_pid for node in lab.nodes] == pids

    # a container outlives its Engine, which comes back by itself
    engine = one.engine()
    container = engine.containers.run("meshd/demo:v1", ["sleep", "1000"], network_mode="none", detach=True)
    pid = container.attrs["State"]["Pid"] or engine.api.inspect_container(container.id)["State"]["Pid"]
    engine.close()
    before = one.pid_of("engine")
    one.kill("engine")
    wait_until(lambda: one.pid_of("engine") not in (0, before), 10, "the Engine is started again")
    one.wait_ready(30, meshd=False)
    assert processes.start_time(pid) is not None, "the container runs on"

    # a power cut takes everything of the node, containers too; `up` brings the node back
    one.kill("all")
    assert one.init_pid == 0
    assert processes.start_time(pid) is None
    assert two.init_pid != 0
    lab.up(2, meshd=False)
    assert one.init_pid != 0

    lab.down()
    assert _leftovers(lab) == []
    assert set(Path("/sys/class/net").iterdir()) == links_before


def test_down_cleans_up_after_a_crash_and_leaves_foreign_things(lab: Lab) -> None:
    bystander = subprocess.Popen(["sleep", "300"])
    try:
        lab.up(1, meshd=False)
        node = lab.nodes[0]
        os.kill(node.init_pid, signal.SIGKILL)
        wait_until(lambda: node.init_pid == 0, 5, "the node's init is dead")
        assert processes.marked(lab.layout.marker), "its Engine is orphaned now"
        (lab.layout.record_file).unlink()
        # another process that knows nothing but the directory
        Lab(lab.layout.state_dir, SUBNET).down()
        assert _leftovers(lab) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_errors_say_what_to_do(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="1 to 200"):
        lab.up(0)
    with pytest.raises(ConfigError, match="--managers"):
        lab.up(2, managers=3)
    with pytest.raises(ConfigError, match="no node"):
        lab.node("node-1")
    assert not lab.layout.state_dir.exists(), "nothing was made"
    start = time.monotonic()
    with pytest.raises(LabError, match="not within"):
        wait_until(lambda: False, 0.05, "never")
    assert time.monotonic() - start < 5
