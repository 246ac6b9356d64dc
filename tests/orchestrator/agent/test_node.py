"""A whole node but for the managers: agent, Docker Engine, data plane and dnsd, all real."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dnsd.client import Client
from mesh import NodeMesh
from orchestrator.agent.agent import Agent
from orchestrator.agent.dnsd_process import DnsdProcess
from orchestrator.model import TaskState

from .bed import Managers
from .conftest import DockerBed, Engine
from .wait import until

pytestmark = [pytest.mark.engine, pytest.mark.root]
S = TaskState
# the static busybox's own wget needs a C library's modules and crashes in an image without them
ASK = """
import sys, urllib.request
for _ in range(12):
    try:
        print(urllib.request.urlopen(f"http://{sys.argv[1]}/", timeout=2).read().decode().strip())
    except OSError as error:
        print("error:" + str(error).replace(" ", "_"))
"""
WEB = ("sh", "-c", "mkdir /tmp/w; hostname >/tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w")


class Node:
    def __init__(self, engine: Engine, directory: Path) -> None:
        self.docker = DockerBed(engine)
        self.managers = Managers()
        self.directory = directory
        self.dnsd = DnsdProcess(control=directory / "dnsd.sock", state_file=directory / "dnsd.state", log_file=directory / "dnsd.log")
        self.mesh = self._new_mesh()
        self._runs: list[asyncio.Task[None]] = []

    def _new_mesh(self) -> NodeMesh:
        return NodeMesh("agt", host_netns=f"/proc/{self.docker.engine.pid}/ns/net")

    async def start(self) -> Agent:
        names = Client(self.directory / "dnsd.sock")
        agent = Agent(
            node_id="n1", data_addr="192.0.2.1", runtime=self.docker.runtime(), mesh=self.mesh, names=names, session=self.managers
        )
        self.managers.agent = agent
        self._runs = [asyncio.create_task(agent.run()), asyncio.create_task(self.dnsd.run())]
        await self.managers.complete()
        return agent

    async def kill(self) -> None:
        for run in self._runs:
            assert not run.done(), run
            run.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)
        await self.mesh.close()
        self.mesh = self._new_mesh()

    async def ask(self, task_id: str, *command: str, namespaces: str = "-nm") -> str:
        """Run a program in namespaces of the task's container."""
        assert self.managers.agent is not None
        inside = ["nsenter", "-t", str(self.managers.agent.containers[task_id].pid), *(f"-{kind}" for kind in namespaces[1:]), "--"]
        done = await asyncio.to_thread(subprocess.run, [*inside, *command], capture_output=True, text=True, timeout=30, check=False)
        return done.stdout + done.stderr

    async def reaches(self, id: str, state: TaskState) -> None:
        await until(lambda: self.managers.state(id) is state, f"{id} {state}: {self.managers.tasks[id].status}", 20)


@pytest_asyncio.fixture
async def node(engine: Engine, tmp_path: Path) -> AsyncIterator[Node]:
    for command in (["link", "set", "lo", "up"], ["link", "add", "under0", "type", "bridge"], ["link", "set", "under0", "up"],
                    ["address", "add", "192.0.2.1/24", "dev", "under0"]):  # fmt: skip
        inside = ["nsenter", "-t", str(engine.pid), "-n", "--", "ip", *command]
        await asyncio.to_thread(subprocess.run, inside, check=False, capture_output=True)
    node = Node(engine, tmp_path)
    try:
        yield node
    finally:
        await node.kill()
        await node.dnsd.stop()
        await node.docker.close()
        await node.mesh.flush()
        await node.mesh.close()
    assert not list(Path("/run/netns").glob("agt-*"))


async def test_vip_and_names_from_the_first_line_on(node: Node) -> None:
    await node.start()
    node.managers.add("t1", *WEB, hostname="one")
    node.managers.add("t2", *WEB, hostname="two")
    # its very first program asks for a name: no retry, no waiting
    node.managers.add("t3", "sh", "-c", "nslookup -type=a web 127.0.0.11 | grep -q 10.0.1.10 && exec sleep 1000", image="client:1")
    for id in ("t1", "t2", "t3"):
        await node.reaches(id, S.RUNNING)

    async def answers() -> set[str]:
        """What twelve requests to the service's name bring, asked for and made from inside t3."""
        found = re.findall(r"Address: (10[0-9.]+)", await node.ask("t3", "/bin/busybox", "nslookup", "-type=a", "web", "127.0.0.11"))
        return set((await node.ask("t3", sys.executable, "-c", ASK, *found[:1], namespaces="-n")).split())

    async def become(wanted: set[str], what: str) -> float:
        began = time.monotonic()
        while (found := await answers()) != wanted:
            assert time.monotonic() - began < 10, (what, found)
        return time.monotonic() - began

    # t3 is a task of the service too, and refuses: only the first two serve
    node.managers.change("t3", service_id="client")
    await become({"one", "two"}, "balanced over both")

    # the agent dies: nothing is disturbed; its successor adopts
    pids = {id: c.pid for id, c in node.managers.agent.containers.items()} if node.managers.agent else {}
    await node.kill()
    restarted = await node.start()
    await until(lambda: {id: c.pid for id, c in restarted.containers.items()} == pids, "adopted")
    await become({"one", "two"}, "still balanced")

    # a container is killed
    os.kill(pids["t1"], 9)
    await node.reaches("t1", S.FAILED)
    await become({"two"}, "the dead one is out")
    assert "10.0.1.20" not in await node.ask("t3", "/bin/busybox", "nslookup", "-type=a", "tasks.web", "127.0.0.11")

    # dnsd is killed
    dead = node.dnsd.pid
    os.kill(dead, 9)
    await until(lambda: node.dnsd.pid not in (0, dead) and node.dnsd.up.is_set(), "dnsd is back", 10)
    await become({"two"}, "names are back")
