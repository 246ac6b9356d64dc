"""The fake keeps the contract too."""

from __future__ import annotations

import pytest

from .fake_runtime import FakeEngine, FakeRuntime
from .runtime_contract import RuntimeContract


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
