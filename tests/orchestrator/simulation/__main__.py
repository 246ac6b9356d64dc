"""`python -m tests.orchestrator.simulation --seeds 1000 [--first 1]`, or `--seed 17` for one, told in full."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
import time

from .cluster import STORY
from .script import run


class VirtualTime(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        with contextlib.suppress(RuntimeError):
            return f"{asyncio.get_running_loop().time():9.3f} {super().format(record)}"
        return super().format(record)


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulated clusters under a virtual clock, one a seed.")
    parser.add_argument("--seeds", type=int, default=40, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--seed", help="only this one; its story and its log are printed")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # sets of strings are iterated by their hashes: runs are equal only if those are
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.orchestrator.simulation", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    if options.seed is not None:
        printing = logging.StreamHandler(sys.stdout)
        printing.setFormatter(VirtualTime("%(name)s %(message)s"))
        for logger in ("orchestrator", STORY):
            logging.getLogger(logger).addHandler(printing)
            logging.getLogger(logger).setLevel(logging.INFO)
        outcome = run(options.seed)
        print(outcome.trace)
        print(f"failed: {outcome.failure}" if outcome.failure else "all laws held")
        return 1 if outcome.failure else 0
    logging.getLogger("orchestrator").setLevel(logging.ERROR)
    failed, began = 0, time.monotonic()
    for number in range(options.first, options.first + options.seeds):
        outcome = run(str(number))
        if outcome.failure:
            failed += 1
            print(f"seed {number}: {outcome.failure}\n  replay: make simulate SEED={number}", flush=True)
    print(f"{options.seeds} seeds, {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


sys.exit(main())
