"""`meshd stack`: compose files as stacks of the cluster, with a plan first and a way back.

Edge: terminal in, terminal out; the daemon does the work. `docker stack` sees the same services.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.ask import DEFAULT_SOCKET
from orchestrator.errors import ConfigError
from orchestrator.stacks.compose import needs_of
from orchestrator.stacks.fields import env_file
from orchestrator.stacks.interpolate import interpolate
from orchestrator.stacks.messages import ObjectChange, StackAnswer, StackRequest, StackState

if TYPE_CHECKING:
    from orchestrator.client import Mesh

_SOCKET = click.option("--socket", default=DEFAULT_SOCKET, show_default=True, help="The socket of a manager's meshd.")
_FILE = click.option(
    "-c", "--compose-file", "file", default="compose.yml", show_default=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
_COLOURS = {"create": "green", "update": "yellow", "remove": "red"}
_SIGNS = {"create": "+", "update": "~", "remove": "-"}
_STATES = {"converged": "green", "updating": "yellow", "paused": "red", "degraded": "red", "empty": "dim"}


@click.group()
def stack() -> None:
    """Compose files as stacks the cluster knows: planned, deployed whole or not at all, rolled back.

    \b
    meshd stack plan shop             what would compose.yml change?
    meshd stack deploy shop           make it so
    meshd stack ls                    all stacks, those of `docker stack` too
    meshd stack show shop             its services, and what somebody changed by hand
    meshd stack rollback shop         the previous revision again
    meshd stack rm shop

    Variables in the file come from the environment, then from .env beside it. Secrets and configs with new content get a new name, so that
    services are updated to them and the old ones are there to go back to.
    """


@stack.command()
@click.argument("name")
@_FILE
@_JSON
@_SOCKET
def plan(name: str, file: Path, as_json: bool, socket: str) -> None:
    """What would deploying this file change? Changes nothing. Exit code 1: something, 0: nothing."""
    answer = _mesh(socket).plan_stack(name, request_of(file))
    _print(answer, "nothing is changed yet", as_json)
    sys.exit(1 if answer.changes else 0)


@stack.command()
@click.argument("name")
@_FILE
@_JSON
@_SOCKET
def deploy(name: str, file: Path, as_json: bool, socket: str) -> None:
    """Make the stack what the file says: all of it, or nothing. Tasks follow at the pace of each service's update_config."""
    _print(_mesh(socket).deploy_stack(name, request_of(file)), "done", as_json)


@stack.command()
@click.argument("name")
@_JSON
@_SOCKET
def rollback(name: str, as_json: bool, socket: str) -> None:
    """The previous revision again, as a new one: services, secrets and configs; a second time goes forward again."""
    _print(_mesh(socket).roll_back_stack(name), "done", as_json)


@stack.command()
@click.argument("name")
@_JSON
@_SOCKET
def rm(name: str, as_json: bool, socket: str) -> None:
    """Remove the stack with its services, networks, secrets and configs; volumes stay."""
    _print(_mesh(socket).remove_stack(name), "done", as_json)


@stack.command()
@_JSON
@_SOCKET
def ls(as_json: bool, socket: str) -> None:
    """All stacks and how they are."""
    found = _mesh(socket).list_stacks()
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    table = Table("stack", "revision", "state", "services", "tasks", box=None)
    for state in found:
        running, desired = (sum(getattr(service, what) for service in state.services) for what in ("running", "desired"))
        table.add_row(state.name, str(state.revision or "-"), _coloured(state), str(len(state.services)), f"{running}/{desired}")
    _console().print(table)


@stack.command()
@click.argument("name")
@_JSON
@_SOCKET
def show(name: str, as_json: bool, socket: str) -> None:
    """Services of a stack, and what differs from its compose file."""
    state = _mesh(socket).stack(name)
    if as_json:
        click.echo(msgspec.json.encode(state))
        return
    console = _console()
    console.print(f"stack {state.name}, revision {state.revision or '-'}: {_coloured(state)}")
    table = Table("service", "tasks", "image", "update", box=None)
    for service in state.services:
        table.add_row(service.name, f"{service.running}/{service.desired}", service.image, service.update)
    console.print(table)
    if state.drift:
        console.print("\ndiffers from its compose file (deploy it to mend that):")
        _print_changes(console, state.drift)


def _mesh(socket: str) -> Mesh:
    # it knows the whole API, and the data plane's types with it: too much for `meshd --help`
    from orchestrator.client import Mesh

    return Mesh(socket)


def request_of(file: Path) -> StackRequest:
    """The file with all it needs from here. ConfigError: a file it names is not there."""
    text = file.read_text()
    variables = {**_dot_env(file.parent / ".env"), **os.environ}
    needs = needs_of(text)
    files: dict[str, str] = {}
    for path in {*needs.env_files, *needs.contents}:
        written = interpolate(path, variables, set())
        source = file.parent / Path(written).expanduser()
        if source.is_file():
            files[written] = base64.b64encode(source.read_bytes()).decode()
        elif path in needs.contents:
            raise ConfigError(f"{file} names {path}, which is not there ({source})")
    # of the environment only what the file asks for leaves this machine
    given = {name: value for name, value in variables.items() if name in needs.variables}
    return StackRequest(compose=text, variables=given, files=files, directory=str(file.parent.absolute()))


def _dot_env(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    return {name: value for name, value in env_file(str(path), path.read_bytes()).items() if value is not None}


def _print(answer: StackAnswer, what: str, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(answer))
        return
    console = _console()
    for warning in answer.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}")
    _print_changes(console, answer.changes)
    if answer.changes:
        counts = {action: sum(change.action == action for change in answer.changes) for action in _SIGNS}
        said = ", ".join(f"{count} to {action}" for action, count in counts.items() if count)
        console.print(f"stack {answer.name}, revision {answer.revision}: {said}; {what}")
    else:
        console.print(f"stack {answer.name}: nothing differs")


def _print_changes(console: Console, changes: list[ObjectChange]) -> None:
    for change in changes:
        console.print(f"[{_COLOURS[change.action]}]{_SIGNS[change.action]} {change.kind} {escape(change.name)}[/]")
        for field in change.fields:
            if field.before:
                console.print(f"    [red]- {escape(field.field)}: {escape(field.before)}[/]")
            if field.after:
                console.print(f"    [green]+ {escape(field.field)}: {escape(field.after)}[/]")


def _coloured(state: StackState) -> str:
    return f"[{_STATES[state.state]}]{state.state}[/]"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True) if sys.stdout.isatty() else Console(highlight=False, width=200)
