"""A process that is killed between any two of its system calls that change files, played in this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


def crashing_at_every_step(prepare: Callable[[], Path], change: Callable[[Path], object]) -> Iterator[Path]:
    """Runs `change` on a fresh directory of `prepare`'s, killed before its first, second, ... change of a file, until one run gets through;
    yields each directory as it was left. A file's content that was written but not synced may be there or not: it is there."""
    survived = False
    step = 0
    while not survived:
        step += 1
        directory = prepare()
        try:
            _killed_before(step, lambda directory=directory: change(directory))
            survived = True
        except Killed:
            pass
        yield directory


def _killed_before(step: int, change: Callable[[], object]) -> None:
    left = step

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return real(*arguments, **options)

        return call

    with (
        patch("os.open", counted(os.open)),
        patch("os.fsync", counted(os.fsync)),
        patch("os.unlink", counted(os.unlink)),
        patch.object(Path, "replace", counted(Path.replace)),
        patch.object(Path, "unlink", counted(Path.unlink)),
        patch.object(Path, "rename", counted(Path.rename)),
    ):
        change()
