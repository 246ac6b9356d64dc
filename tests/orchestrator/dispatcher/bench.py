"""Measures the dispatcher: `python -m tests.orchestrator.dispatcher.bench [sessions]`. One manager, agents in a process of their own.

Prints CPU of the manager for a full handshake, the time from commit to the agents' callbacks, and memory a session.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
import tempfile
import time
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from orchestrator.dispatcher.connection import over_tls
from orchestrator.dispatcher.messages import Row, TaskRow
from orchestrator.dispatcher.session import AgentSession
from orchestrator.model import Node, NodeAttachment, NodeDescription, TaskState, TaskStatus
from orchestrator.security.identity import Credentials
from orchestrator.store.base import Put
from orchestrator.store.memory import MemoryStore

from .lab import Lab, new_task, until

TASKS = 1000
ROUNDS = 40


def agents(directory: str, addr: str, pipe: Connection) -> None:
    """Child process: reports ("connected") and then, for each change, the slowest and the median delay in seconds."""

    async def run() -> None:
        delays: list[float] = []
        connected = 0

        async def on_rows(revision: int, put: list[Row], removed: list[str], complete: bool) -> None:
            nonlocal connected
            connected += complete
            now_s = time.monotonic()
            for row in put:
                if isinstance(row, TaskRow) and not complete and (sent := (row.task.labels or {}).get("sent")):
                    delays.append(now_s - float(sent))

        running = []
        for path in sorted(Path(directory).iterdir()):
            credentials = Credentials.load(path)
            assert credentials is not None
            session = AgentSession(over_tls(credentials), [addr], NodeDescription(hostname=path.name), on_rows)
            running.append(asyncio.create_task(session.run()))
        await until(lambda: connected == len(running), deadline_s=60)
        pipe.send("connected")
        while (command := await asyncio.to_thread(pipe.recv)) != "end":
            expected = int(command)
            await until(lambda expected=expected: len(delays) >= expected, deadline_s=20)  # type: ignore[misc]
            pipe.send((statistics.median(delays), max(delays)))
            delays.clear()
        for task in running:
            task.cancel()

    uvloop.run(run())


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss_kb() -> int:
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])


async def measure(count: int, directory: Path) -> None:
    (directory / "agents").mkdir()
    (directory / "managers").mkdir()
    lab = Lab(directory / "managers", MemoryStore(max_changes=count + 2))
    await lab.start()
    manager = await lab.manager(heartbeat_s=5.0)
    await lab.network()
    names = [f"w{number:04}" for number in range(count)]
    for number, name in enumerate(names):
        Credentials.create(directory / "agents" / name, lab.cluster.identity(name))
        attached = [NodeAttachment(network_id="net1", addr=f"10.2.{number // 250}.{number % 250 + 1}/8")]
        await lab.put(Node(id=name, mesh_attachments=attached))
    for start in range(0, TASKS, 100):
        tasks = [new_task(f"t{n}", names[n % count], addr=f"10.3.{n // 250}.{n % 250 + 1}/8") for n in range(start, start + 100)]
        await lab.store.commit([Put(task) for task in tasks])
    await asyncio.sleep(0.1)
    parent, child = Pipe()
    process = Process(target=agents, args=(str(directory / "agents"), manager.addr, child))
    before_cpu, before_rss, before = cpu_s(), rss_kb(), time.monotonic()
    process.start()

    async def told() -> Any:
        return await asyncio.to_thread(parent.recv)

    await told()
    took = time.monotonic() - before
    cpu = (cpu_s() - before_cpu) / count
    print(f"{count} agents in sync (a network of {TASKS} tasks each) after {took:.2f} s, manager's CPU {cpu * 1000:.2f} ms each")
    print(f"memory {(rss_kb() - before_rss) / count:.1f} KB a session")
    await until(lambda: all(node.status.state == "ready" for node in lab.store.snapshot().all(Node) if node.id != "m1"))
    one = []
    for _ in range(ROUNDS):
        parent.send("1")
        await lab.change("t0", labels={"sent": repr(time.monotonic())})
        one.append((await told())[0])
        await asyncio.sleep(0.03)
    print(f"own task changed -> its agent's callback: p50 {statistics.median(one) * 1000:.1f} ms, max {max(one) * 1000:.1f} ms")
    medians, slowest, cpu = [], [], cpu_s()
    for _ in range(ROUNDS // 2):
        states = [TaskState.RUNNING, TaskState.ASSIGNED]
        parent.send(str(count))
        sent = repr(time.monotonic())
        # Every agent's first task, and with them the network's endpoints: one delta to all.
        changed = [
            msgspec.structs.replace(lab.task(f"t{n}"), labels={"sent": sent}, status=TaskStatus(state=states[len(medians) % 2]))
            for n in range(count)
        ]  # fmt: skip
        await lab.retried(lambda changed=changed: lab.store.commit([Put(task) for task in changed]))  # type: ignore[misc]
        median, last = await told()
        medians.append(median)
        slowest.append(last)
        await asyncio.sleep(0.05)
    cpu = (cpu_s() - cpu) / (ROUNDS // 2)
    print(f"{count} tasks changed at once -> all {count} agents ({count + 1} rows each): p50 {statistics.median(medians) * 1000:.0f} ms, "
          f"last {statistics.median(slowest) * 1000:.0f} ms, manager's CPU {cpu * 1000:.0f} ms")  # fmt: skip
    parent.send("end")
    process.join(10)
    await lab.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="dispatcher-bench-") as name:
        uvloop.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 200, Path(name)))
