"""The orchestrator's figures against their targets: `make bench-orchestrator`. Prints; proves nothing.

Edge: processes, clock. One machine at one moment: what others do on it meanwhile is in the numbers. Targets are the project's; peers'
numbers (Docker Swarm on one manager without replication) were measured on the same kind of machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from tests.orchestrator.bench_manager import Bench, manager
from tests.orchestrator.control.bench import bench_cluster, one_task_s, placing_s

_UNSCHEDULABLE = 1_000
_IDLE_S = 30.0


@dataclass(frozen=True)
class Figure:
    """`target`: not more than that, or not less where `more` is better."""

    name: str
    measured: float
    target: float
    unit: str
    more: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.target if self.more else self.measured <= self.target


def scheduling() -> list[Figure]:
    return [
        Figure(
            "100,000 tasks of 1,000 services placed on 1,000 nodes (CPU, best of 5)",
            placing_s(bench_cluster(1_000, 1_000, 100_000), 5),
            0.5,
            "s",
        ),
        Figure("... on 10,000 nodes (CPU, best of 5)", placing_s(bench_cluster(10_000, 1_000, 100_000), 5), 1.0, "s"),
        Figure("one task on 10,000 nodes (CPU, median of 50)", one_task_s(10_000) * 1000, 1.0, "ms"),
    ]


async def unschedulable(directory: Path) -> list[Figure]:
    """From the API call until all are stored as PENDING with their reason."""
    async with manager(directory) as bench:
        times = []
        for attempt in range(1, 4):
            mode = {"Replicated": {"Replicas": _UNSCHEDULABLE}}
            template = {"Placement": {"Constraints": ["node.labels.no==where"]}, "ContainerSpec": {"Image": "app:1"}}
            start = time.monotonic()
            assert await bench.create(f"big{attempt}", Mode=mode, TaskTemplate=template) == 201
            times.append(await bench.refused_at(attempt * _UNSCHEDULABLE) - start)
        return [Figure("1,000 unschedulable tasks, API call -> all stored as PENDING (best of 3)", min(times), 0.2, "s")]


async def creates(directory: Path) -> list[Figure]:
    """Services without tasks, through etcd with fsync."""
    async with manager(directory) as bench:
        await _created(bench, "warm", 50, 1)
        sequential = max([await _created(bench, f"one{attempt}", 300, 1) for attempt in range(3)])
        parallel = max([await _created(bench, f"many{attempt}", 1_280, 64) for attempt in range(3)])
        return [
            Figure("creates of empty services, one after the other (best of 3)", sequential, 300, "/s", more=True),
            Figure("... 64 in flight (best of 3)", parallel, 1_500, "/s", more=True),
        ]


async def _created(bench: Bench, prefix: str, count: int, in_flight: int) -> float:
    async def lane(number: int) -> None:
        for index in range(count // in_flight):
            assert await bench.create(f"{prefix}-{number}-{index}", Mode={"Replicated": {"Replicas": 0}}) == 201

    start = time.perf_counter()
    await asyncio.gather(*(lane(number) for number in range(in_flight)))
    return count / (time.perf_counter() - start)


async def idle(directory: Path) -> list[Figure]:
    async with manager(directory, services=1_000, replicas=10, agents=100) as bench:
        # what the start brings has been dealt with
        await asyncio.sleep(10)
        before, start = bench.cpu_s(), time.perf_counter()
        await asyncio.sleep(_IDLE_S)
        share = (bench.cpu_s() - before) / (time.perf_counter() - start)
        return [
            Figure("leader idle with 1,000 services, 10,000 tasks, 100 nodes: CPU of a core", share * 100, 2.0, "%"),
            Figure("... resident memory", bench.rss_bytes() / 1e6, 300, "MB"),
        ]


async def _inside(measure: Callable[[Path], Awaitable[list[Figure]]]) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        return await measure(Path(name))


def main() -> None:
    parts: dict[str, Callable[[], list[Figure]]] = {
        "scheduling": scheduling,
        "unschedulable": lambda: uvloop.run(_inside(unschedulable)),
        "creates": lambda: uvloop.run(_inside(creates)),
        "idle": lambda: uvloop.run(_inside(idle)),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], help="only these; all of them if none is named")
    chosen = parser.parse_args().parts or list(parts)
    console = Console(width=120)
    table = Table("figure", "measured", "target", "met", title=f"orchestrator (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
    for name in chosen:
        console.print(f"[dim]· {name}[/]")
        for figure in parts[name]():
            sign = ">=" if figure.more else "<="
            digits = 0 if figure.measured >= 100 else 2
            measured = f"{figure.measured:.{digits}f} {figure.unit}"
            table.add_row(figure.name, measured, f"{sign} {figure.target:g} {figure.unit}", "yes" if figure.met else "no")
    console.print(table)


if __name__ == "__main__":
    main()
