"""`meshd dns`: what this node's DNS server answers a task, and why; what a task asks; its figures.

Edge: terminal in, terminal out, the control socket of dnsd between.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dnsd.client import Client
from dnsd.errors import DnsError, DnsUnavailable
from dnsd.model import Explanation, QueryLogged
from dnsd.names import packed_address, reverse_name, text_of
from orchestrator.errors import ConfigError

# A question to silent upstreams takes four seconds.
_TIMEOUT_S = 8.0
_FOLLOW_S = 0.3

_T = TypeVar("_T")


@click.group()
@click.option(
    "--state-dir", default="/var/lib/meshd", show_default=True, envvar="MESHD_STATE_DIR", help="meshd's; in a lab <lab>/<node>/meshd."
)
@click.pass_context
def dns(context: click.Context, state_dir: str) -> None:
    """What this node's DNS server tells the node's tasks, and why.

    \b
    meshd dns query web --as client.1       the answer that task gets, explained
    meshd dns query 10.0.1.7 --as client    whose address is that
    meshd dns log --task client.1           what does it ask, as it asks
    """
    context.obj = Path(state_dir) / "dnsd.sock"


@dns.command()
@click.argument("name")
@click.argument("kind", metavar="[TYPE]", default="")
@click.option("--as", "asker", required=True, metavar="TASK", help="Who asks: a task of this node by name, the beginning of it, or id.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def query(control: Path, name: str, kind: str, asker: str, as_json: bool) -> None:
    """Ask for NAME as TASK would, and explain the answer: which networks, which rule, which tasks are left out and why.

    TYPE is A unless given; an address is looked up in reverse. To be run on the node of the task.
    """
    packed = packed_address(name)
    if packed is not None and not kind:
        name, kind = text_of(reverse_name(packed)), "PTR"
    explanation = _talk(control, lambda client: client.explain(asker, name, kind or "A"))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(explanation), indent=2))
    else:
        _show(explanation, _console())


@dns.command()
@click.option("--task", "asker", required=True, metavar="TASK", help="A task of this node by name, the beginning of it, or id.")
@click.option("--off", is_flag=True, help="Stop remembering; shows what was still there.")
@click.option("--follow/--no-follow", default=True, help="Wait for further queries, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one object a line.")
@click.pass_obj
def log(control: Path, asker: str, off: bool, follow: bool, as_json: bool) -> None:
    """Show the queries of TASK, the last thousand since this was first called for it.

    They are remembered, in memory only, until --off or until dnsd starts anew.
    """
    console = _console()
    told = Console(stderr=True)

    async def read(client: Client) -> None:
        logged = await client.log(asker, on=not off)
        if off:
            told.print(f"Queries of {logged.asker} {'are no longer' if logged.was_on else 'were not'} remembered.")
        elif not logged.was_on:
            told.print(f"From now on the queries of {logged.asker} are remembered; {_off(asker)}", soft_wrap=True)
        latest = 0
        while True:
            for one in logged.queries:
                latest = one.number
                if as_json:
                    click.echo(msgspec.json.encode(one))
                else:
                    console.print(_line(one), highlight=False, soft_wrap=True)
            if off or not follow:
                return
            await asyncio.sleep(_FOLLOW_S)
            logged = await client.log(asker, after=latest)
            if not logged.was_on:
                # Started anew, or switched off elsewhere: what is asked from now on has new numbers.
                latest = 0

    try:
        _talk(control, read)
    except KeyboardInterrupt:
        told.print(f"\nStill remembered; {_off(asker)}", soft_wrap=True)


def _off(asker: str) -> str:
    return f"`meshd dns log --task {asker} --off` ends it."


@dns.command()
@click.pass_obj
def metrics(control: Path) -> None:
    """The DNS server's figures in Prometheus' text format (for node_exporter's textfile collector, or to read)."""
    from dnsd.metrics import exposition

    click.echo(exposition(_talk(control, Client.status)), nl=False)


def _talk(control: Path, converse: Callable[[Client], Awaitable[_T]]) -> _T:
    if not control.exists():
        raise ConfigError(f"no DNS server here: there is no {control}. Is this node in a cluster? Else say where meshd is: --state-dir")

    async def run() -> _T:
        client = Client(control, timeout_s=_TIMEOUT_S)
        try:
            return await converse(client)
        finally:
            await client.close()

    try:
        return asyncio.run(run())
    except DnsUnavailable as error:
        raise ConfigError(f"{error}. Is meshd running here?") from error
    except DnsError as error:
        raise ConfigError(str(error)) from error


def _console() -> Console:
    # A pipe is no reason to fold lines at 80 columns.
    return Console() if sys.stdout.isatty() else Console(width=200)


def _show(explanation: Explanation, console: Console) -> None:
    networks = ", ".join(explanation.networks) or "none"
    stack = f", stack {explanation.stack}" if explanation.stack else ""
    console.print(
        f"[bold]{escape(explanation.name)}[/] {explanation.type}, asked by [bold]{escape(explanation.asker)}[/] "
        f"(scope {explanation.scope}; networks {escape(networks)}{escape(stack)})",
        highlight=False,
    )
    colour = "green" if explanation.rcode == "NOERROR" and explanation.records else "yellow" if explanation.rcode == "NOERROR" else "red"
    empty = "" if explanation.records or explanation.rcode != "NOERROR" else f", no {explanation.type} record"
    console.print(f"[{colour}]{explanation.rcode}{empty}[/]{_origin(explanation)}", highlight=False)
    for record in explanation.records:
        console.print(f"  {escape(record)}", highlight=False)
    console.print(f"why: {escape(explanation.rule)}", highlight=False)
    for note in explanation.notes:
        console.print(f"     {escape(note)}", highlight=False)
    if explanation.tasks:
        table = Table(show_edge=False, pad_edge=False)
        for heading in ("task", "addresses", "state", "offered"):
            table.add_column(heading)
        for task in explanation.tasks:
            state = f"[green]{task.state}[/]" if task.state == "serving" else f"[yellow]{escape(task.state)}[/]"
            table.add_row(escape(task.name), ", ".join(task.addresses), state, "yes" if task.offered else "left out")
        console.print(table)


def _origin(explanation: Explanation) -> str:
    match explanation.origin:
        case "zone":
            return f", from network {escape(explanation.network)}" if explanation.network else ""
        case "cache":
            return f", from the cache (servers: {', '.join(explanation.upstreams)})"
        case "upstream":
            return f", asked: {', '.join(explanation.upstreams)}"
    return ": there is no server to ask"


def _line(one: QueryLogged) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(one.at)) + f".{int(one.at % 1 * 1000):03d}"
    colour = {"NOERROR": "green", "NXDOMAIN": "yellow"}.get(one.rcode, "red")
    values = ", ".join(record.split(" ", 4)[-1] for record in one.records)
    return f"{clock}  {escape(one.name)} {one.type}  [{colour}]{one.rcode or 'not answered'}[/]  {escape(values)}"
