"""One performance of the demo: bring up a lab, play, measure, say what happened, take it down.

Edge: terminal, lab.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.errors import ConfigError
from orchestrator.lab.demo import PUBLISHED, Demo, Step
from orchestrator.lab.figures import figures
from orchestrator.lab.lab import Lab


def play(state_dir: Path, *, keep: bool, with_figures: bool, console: Console, nodes: int = 3) -> list[Step]:
    """Bring up a lab, play, take it down (unless `keep`). ConfigError if a lab is already there: it may be somebody's."""
    lab = Lab(state_dir, progress=lambda text: console.print(f"  [dim]· {text}[/]"))
    if lab.count:
        raise ConfigError(f"there is already a lab in {state_dir}; take it down with `meshd lab down`, then run the demo again")
    started = time.monotonic()
    console.print("[bold]meshd: three nodes on this machine[/], each with its own Docker Engine, meshd and DNS server")
    demo = Demo(lab, console)
    finished = False
    try:
        lab.up(nodes)
        console.print(f"  cluster of {nodes} ready after {time.monotonic() - started:.1f} s")
        demo.play()
        measured = figures(demo) if with_figures else []
        finished = True
        console.print()
        console.print(demo.summary())
        if measured:
            table = Table("figure", "measured", "target", title="figures")
            for row in measured:
                table.add_row(*row)
            console.print(table)
    finally:
        demo.stop_probes()
        if not (keep and finished):
            console.print("\ncleaning up")
            lab.down()
    if keep:
        socket = lab.nodes[0].layout.meshd_socket
        console.print(
            f"\nThe cluster is up. Use it:\n  export DOCKER_HOST=unix://{socket}\n  docker node ls; docker service ps web\n"
            f"  .venv/bin/meshd lab exec node-2 -- curl -s localhost:{PUBLISHED}\nTake it down:\n  .venv/bin/meshd lab down"
        )
    console.print(
        f"\n{len(demo.steps)} steps in {time.monotonic() - started:.0f} s" + ("" if keep else "; nothing is left on this machine")
    )
    return demo.steps
