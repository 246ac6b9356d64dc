"""Figures of the store on real etcds: `python -m tests.orchestrator.store.measure [members]`. Prints; proves nothing.

Edge: processes, clock.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from orchestrator.model import Claim, NetworkAttachment, NetworkReference, Node, NodeStatus, Task
from orchestrator.store import Guard, Put, Store
from orchestrator.store.memory import MemoryStore
from tests.orchestrator.store.etcds import Etcds


def told(name: str, seconds: list[float], total_s: float) -> None:
    seconds = sorted(seconds)
    p50, p99 = seconds[len(seconds) // 2] * 1e3, seconds[int(len(seconds) * 0.99)] * 1e3
    print(f"{name:44} {len(seconds) / total_s:8.0f}/s   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms")


async def timed(store: Store, ids: list[str], seconds: list[float]) -> None:
    for id in ids:
        start = time.perf_counter()
        await store.commit([Guard("node", "leader"), Put(Claim(id=id, owner="x" * 200))])
        seconds.append(time.perf_counter() - start)


async def commits(store: Store, name: str, count: int, in_flight: int) -> None:
    seconds: list[float] = []
    start = time.perf_counter()
    await asyncio.gather(*(timed(store, [f"{name}/{lane}/{i}" for i in range(count // in_flight)], seconds) for lane in range(in_flight)))
    told(name, seconds, time.perf_counter() - start)


async def watch_latency(writer: Store, reader: Store, count: int) -> None:
    """From the call of commit on one manager to the event on another."""
    seconds: list[float] = []
    watch = reader.watch()
    begin = time.perf_counter()
    for i in range(count):
        start = time.perf_counter()
        writing = asyncio.create_task(writer.commit([Put(Claim(id=f"watched/{i}"))]))
        async for _, events in watch:
            if any(event.id == f"watched/{i}" for event in events):
                break
        seconds.append(time.perf_counter() - start)
        await writing
    told("commit here -> event on another manager", seconds, time.perf_counter() - begin)


def task(i: int) -> Task:
    attachments = [NetworkAttachment(network=NetworkReference(id="net"), addresses=[f"10.0.{i // 250}.{i % 250}/16"])]
    return Task(id=f"task{i:06}", service_id=f"s{i % 50}", node_id=f"n{i % 100}", slot=i, networks_attachments=attachments)


async def bulk(store: Store, count: int) -> None:
    start = time.perf_counter()
    for part in range(0, count, store.max_changes):
        await store.commit([Put(task(i)) for i in range(part, min(count, part + store.max_changes))])
    print(f"{count} tasks in transactions of {store.max_changes:5}       {count / (time.perf_counter() - start):8.0f} objects/s")


async def measure(members: int) -> None:
    memory = MemoryStore()
    await memory.commit([Put(Node(id="leader", status=NodeStatus(state="ready")))])
    await commits(memory, "memory: sequential", 5000, 1)
    with tempfile.TemporaryDirectory(prefix="store-measure-") as directory:
        etcds = Etcds(Path(directory), members)
        try:
            leader = await etcds.leader()
            store, other = await etcds.open(leader), await etcds.open((leader + 1) % members)
            await store.commit([Put(Node(id="leader"))])
            print(f"etcd: {members} member(s), mutual TLS, loopback; RSS {etcds.rss_bytes(leader) / 2**20:.0f} MB")
            for in_flight, count in ((1, 1000), (8, 2000), (64, 6400)):
                await commits(store, f"{in_flight} in flight, guard + 200 bytes", count, in_flight)
            await watch_latency(store, other, 500)
            await bulk(store, 20_000)
            start = time.perf_counter()
            third = await etcds.open(leader)
            print(f"open with {third.snapshot().revision} revisions, 20,000 tasks         {time.perf_counter() - start:8.2f} s")
            start = time.perf_counter()
            for _ in range(100_000):
                store.snapshot()
            print(f"snapshot()                                   {(time.perf_counter() - start) * 10:8.2f} us")
            print(f"RSS of etcd afterwards {etcds.rss_bytes(leader) / 2**20:.0f} MB")
            for one in (store, other, third):
                await one.close()
        finally:
            etcds.stop()


if __name__ == "__main__":
    uvloop.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
