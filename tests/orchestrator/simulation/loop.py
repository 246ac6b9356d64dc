"""An asyncio event loop whose clock is virtual: nothing waits, and equal runs are equal to the last step.

Pure but for the self-pipe that asyncio makes and nobody writes to. Time moves only when nothing else can happen, to the next timer.
Tasks are hashed by the order of their making, so that sets of them are iterated alike in every run (strings need PYTHONHASHSEED).
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Coroutine
from typing import Any

# what a turn of the loop takes: without it, code that waits for the rest of a float's rounding would turn for ever
_TURN_S = 1e-6


class _NothingToWaitFor(selectors.SelectSelector):
    """Instead of waiting it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits for somebody, and no timer is set"
        self.turns += 1
        self.now_s += max(timeout, _TURN_S)
        return []


class _OrderedTask(asyncio.Task[Any]):
    _numbers = itertools.count(1)

    def __new__(cls, *args: Any, **options: Any) -> _OrderedTask:
        task = super().__new__(cls)
        task.number = next(cls._numbers)
        return task

    def __hash__(self) -> int:
        return int(self.number)  # type: ignore[attr-defined]


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _NothingToWaitFor()
        super().__init__(self._virtual)
        self.set_task_factory(_new_task)

    def time(self) -> float:
        return self._virtual.now_s

    @property
    def turns(self) -> int:
        """How often it has looked for something to do."""
        return self._virtual.turns

    def run_in_executor(self, *args: Any) -> Any:
        raise AssertionError("a simulation has no threads")


def _new_task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> _OrderedTask:
    return _OrderedTask(coroutine, loop=loop, **options)
