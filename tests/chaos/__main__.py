"""`python -m tests.chaos`: one seed's chaos on a lab of its own, shown while it goes on, told and drawn at the end.

Edge: terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from orchestrator.lab.lab import Lab

from . import faults
from .picture import svg
from .run import Report, Run

SUBNET = "198.51.100.0/24"


@click.command()
@click.option("--seed", type=int, default=None, help="The same faults at the same times as then.  [default: a new one]")
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--managers", default=5, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--subnet", default=SUBNET, show_default=True)
@click.option("--picture", type=click.Path(path_type=Path), default=Path("chaos.svg"), show_default=True, help="Where the timeline goes.")
@click.option("--keep", type=click.Path(path_type=Path), default=None, help="Leave there the nodes' logs and all that was asked and told.")
def main(seed: int | None, minutes: float, managers: int, workers: int, subnet: str, picture: Path, keep: Path | None) -> None:
    """Kill, stop, cut off and starve a cluster of this machine's own for MINUTES, and check every word it said meanwhile."""
    console = Console()
    seed = random.randrange(10_000) if seed is None else seed
    console.print(f"[bold]chaos, seed {seed}[/]: {managers} managers and {workers} workers for {minutes:g} minutes")
    with tempfile.TemporaryDirectory(prefix="lab-") as directory:
        lab = Lab(
            Path(directory) / "chaos",
            subnet,
            lambda text: console.print(f"  [dim]· {text}[/]"),
            environment=faults.environment,
        )
        try:
            faults.prepare(lab, managers + workers)
            lab.up(managers + workers, managers=managers)

            def tell(text: str) -> None:
                console.print(f"[dim]{run.elapsed_s:7.1f} s[/]  {escape(text)}", highlight=False, soft_wrap=True)

            run = Run(lab, managers, seed, minutes * 60, converges_within_s=180.0, tell=tell)
            with (
                Live(console=console, get_renderable=lambda: _progress(run), refresh_per_second=1)
                if console.is_terminal
                else contextlib.nullcontext()
            ):
                report = asyncio.run(run.play())
            picture.write_text(svg(report.story))
            if keep is not None:
                faults.copy_logs(lab, keep)
                record = [*run.clients.ops, *run.log.answers]
                (keep / "record.jsonl").write_bytes(b"".join(msgspec.json.encode(entry) + b"\n" for entry in record))
        finally:
            console.print("cleaning up")
            lab.down()
    _tell(console, report, picture, seed)
    sys.exit(0 if report.good else 1)


def _progress(run: Run) -> Table:
    told = Counter((op.kind == "read", op.outcome) for op in run.clients.ops)
    answers = run.log.answers
    table = Table(
        "time", "leader", "writes acknowledged", "refused", "unanswered", "reads", "requests failed", "wrong now", box=None, padding=(0, 2)
    )
    table.add_row(
        f"{run.elapsed_s:.0f} of {run.duration_s:.0f} s",
        run.leader or "-",
        *(str(told[False, outcome]) for outcome in ("ok", "refused", "maybe")),
        str(told[True, "ok"]),
        f"{sum(not answer.ok for answer in answers)} of {len(answers)}",
        ", ".join(sorted(str(fault) for fault in tuple(run.active))) or "nothing",
    )
    return table


def _tell(console: Console, report: Report, picture: Path, seed: int) -> None:
    console.print()
    for line in report.lines:
        console.print(line, highlight=False, soft_wrap=True)
    for violation in report.violations[:20]:
        console.print(f"[red]{escape(str(violation))}[/]", highlight=False, soft_wrap=True)
    for answer in report.calm_failures[:20]:
        console.print(f"[red]failed for no reason:[/] {escape(str(answer))}", highlight=False, soft_wrap=True)
    console.print(
        f"{'[green]nothing is wrong[/]' if report.good else '[red]something is wrong[/]'}; the picture: {picture}; again: SEED={seed}"
    )


if __name__ == "__main__":
    main()
