"""The fake keeps the contract too."""

from __future__ import annotations

import pytest

from orchestrator.agent.errors import EngineUnavailable
from orchestrator.agent.leaving import remove_all

from .fake_runtime import FakeEngine, FakeRuntime
from .runtime_contract import RuntimeContract, make_task, run


class FakeBed:
    def __init__(self) -> None:
        self.engine = FakeEngine()

    def runtime(self) -> FakeRuntime:
        return FakeRuntime(self.engine)

    def kill(self, pid: int) -> None:
        self.engine.kill(pid)


class TestFakeRuntime(RuntimeContract):
    @pytest.fixture
    def bed(self) -> FakeBed:
        return FakeBed()


async def test_leaving_removes_all_and_says_what_it_could_not() -> None:
    bed = FakeBed()
    runtime = bed.runtime()
    tasks = [make_task() for _ in range(20)]
    for task in tasks[:10]:
        await run(runtime, task)
    for task in tasks[10:]:
        await runtime.prepare(task, {})
    assert await remove_all(runtime) == 20
    assert bed.engine.boxes == {}

    class Stuck(FakeRuntime):
        async def stop(self, task_id: str, grace_s: float, signal: str) -> None:
            if task_id == tasks[0].id:
                raise EngineUnavailable("stuck")
            await super().stop(task_id, grace_s, signal)

    for task in tasks[:3]:
        await run(runtime, task)
    with pytest.raises(ExceptionGroup) as caught:
        await remove_all(Stuck(bed.engine))
    assert [str(error) for error in caught.value.exceptions] == ["stuck"]
    assert list(bed.engine.boxes) == [tasks[0].id]
