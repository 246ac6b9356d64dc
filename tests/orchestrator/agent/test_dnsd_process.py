"""dnsd beside the agent: started, adopted, started again, replaced; it outlives its keeper."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dnsd.client import Client
from dnsd.model import DnsState
from orchestrator.agent.dnsd_process import DnsdProcess, ended

from .wait import until


class Bed:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.starts = 0
        self._runs: list[asyncio.Task[None]] = []
        self.kept: list[DnsdProcess] = []

    def keep(self, version: str | None = None) -> DnsdProcess:
        def started() -> None:
            self.starts += 1

        more = {"version": version} if version else {}
        process = DnsdProcess(
            control=self.directory / "dnsd.sock", state_file=self.directory / "dnsd.state", log_file=self.directory / "dnsd.log",
            on_start=started, **more,
        )  # fmt: skip
        self._runs.append(asyncio.create_task(process.run()))
        self.kept.append(process)
        return process

    async def let_go(self) -> None:
        for run in self._runs:
            run.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)
        self._runs.clear()


@pytest_asyncio.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    bed = Bed(tmp_path)
    yield bed
    await bed.let_go()
    for process in bed.kept:
        await process.stop()


async def test_started_adopted_restarted_replaced(bed: Bed) -> None:
    first = bed.keep()
    async with asyncio.timeout(10):
        await first.up.wait()
    assert bed.starts == 1
    assert os.getsid(first.pid) == first.pid, "in a session of its own"
    pid = first.pid
    await bed.let_go()

    second = bed.keep()
    async with asyncio.timeout(10):
        await second.up.wait()
    assert (second.pid, bed.starts) == (pid, 1)

    os.kill(pid, signal.SIGKILL)
    await until(lambda: second.pid not in (0, pid) and second.up.is_set(), "started again", 10)
    assert bed.starts == 2
    client = Client(bed.directory / "dnsd.sock")
    await client.apply(DnsState())
    assert (await client.status()).pid == second.pid
    await client.close()
    await bed.let_go()

    third = bed.keep(version="another")
    before = second.pid
    await until(lambda: third.pid not in (0, before), "replaced", 10)
    async with asyncio.timeout(5):
        await ended(before)


async def test_a_program_that_ends_at_once_is_tried_again_slowly(bed: Bed) -> None:
    blocked = bed.directory / "file"
    blocked.write_text("")
    process = DnsdProcess(
        control=bed.directory / "dnsd.sock", state_file=bed.directory / "s", log_file=bed.directory / "log", command=("false",)
    )
    run = asyncio.create_task(process.run())
    try:
        await until(lambda: process.starts >= 3, "three starts", 10)
        assert not process.up.is_set()
        assert process.pid == 0
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def test_after_a_death_it_does_not_look_for_another(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    adopt = DnsdProcess._adopt

    async def counted(self: DnsdProcess) -> int:
        nonlocal looked
        looked += 1
        return await adopt(self)

    monkeypatch.setattr(DnsdProcess, "_adopt", counted)
    kept = bed.keep()
    async with asyncio.timeout(10):
        await kept.up.wait()
    pid = kept.pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: kept.pid not in (0, pid) and kept.up.is_set(), "started again", 10)
    assert (looked, bed.starts) == (1, 2)
