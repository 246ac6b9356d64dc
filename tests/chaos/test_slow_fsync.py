"""A program started through it syncs as slowly as the file says at that moment, keeps its pid and passes its exit code on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from . import slow_fsync

_TIMES = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
for sync in (os.fsync, os.fdatasync):
    started = time.monotonic()
    sync(file)
    print(time.monotonic() - started)
print(os.getpid())
sys.exit(7)
"""


def test_every_sync_waits_as_long_as_the_file_says(tmp_path: Path) -> None:
    delay = tmp_path / "delay"
    for seconds in ("0.3", "0", ""):
        delay.write_text(seconds)
        command = [sys.executable, slow_fsync.__file__, str(delay), sys.executable, "-c", _TIMES, str(tmp_path / "file")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        output, _ = process.communicate(timeout=60)
        *waited, pid = output.split()
        assert (process.returncode, int(pid)) == (7, process.pid)
        assert all(float(time) >= float(seconds or 0) for time in waited)
