"""`meshd doctor`: this machine, and, if meshd runs on it, its way to the other nodes.

Edge: terminal out; `host` and the daemon look.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.ask import NoDaemon, ask
from orchestrator.diagnose.finding import Finding, is_well
from orchestrator.diagnose.host import Machine, examine
from orchestrator.errors import ConfigError

_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]!![/]", "bad": "[red]x[/]"}


def main(engine: str, socket: str, state_dir: Path, *, as_json: bool) -> int:
    """Print every finding; 0 if nothing is bad."""
    if os.geteuid() != 0:
        findings = [Finding("bad", "root", "not root: meshd makes network namespaces and devices", "run it with sudo")]
    else:
        running, said = _asked(socket)
        findings = [*examine(Machine(engine, state_dir, running)), *said]
    if as_json:
        click.echo(msgspec.json.encode(findings))
    else:
        _show(findings)
    return 0 if is_well(findings) else 1


def _asked(socket: str) -> tuple[bool, list[Finding]]:
    """(meshd runs, what it found)."""
    try:
        return True, msgspec.json.decode(ask(socket, "GET", "/mesh/v1/doctor", timeout_s=100.0), type=list[Finding])
    except NoDaemon:
        note = Finding("note", "cluster", f"meshd doesn't answer on {socket}: the way to other nodes was not looked at", "meshd daemon")
        return False, [note]
    except ConfigError as error:
        return True, [Finding("bad", "cluster", f"meshd could not examine itself: {error}", "see its log")]


def _show(findings: Sequence[Finding]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check, group in groupby(findings, key=lambda finding: finding.check):
        for index, finding in enumerate(group):
            do = f"\n[bold]{escape(finding.do)}[/]" if finding.do else ""
            table.add_row(_MARKS[finding.level], check if index == 0 else "", escape(finding.what) + do)
    console.print(table, highlight=False)
    bad = sum(finding.level == "bad" for finding in findings)
    console.print("[green]nothing to fix[/]" if not bad else f"[red]{bad} to fix[/]")
