"""`python -m tests.orchestrator.simulation --seeds 1000 [--first 1]`, or `--seed 17` for one, told in full."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time

from .script import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulated clusters under a virtual clock, one a seed.")
    parser.add_argument("--seeds", type=int, default=40, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--seed", help="only this one; its history and its log are printed")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # sets of strings are iterated by their hashes: runs are equal only if those are
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.orchestrator.simulation", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    if options.seed is not None:
        logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s", stream=sys.stdout)
        outcome = run(options.seed)
        print(*outcome.history, outcome.trace, sep="\n")
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
