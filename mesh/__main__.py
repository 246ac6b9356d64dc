"""A static mesh without any daemon: `python -m mesh show|apply FILE|verify FILE|flush`.

Edge: terminal in, terminal out. Exit code 0: all is so; 1: something differs or failed; 2: the file or the machine is at fault.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from mesh.describe import describe
from mesh.errors import MeshError
from mesh.linux.check import detect_balancer
from mesh.model import NodeState
from mesh.node import NodeMesh
from mesh.static import read_file
from mesh.table import NamespaceTable, NftTable

T = TypeVar("T")


class _Fault(click.ClickException):
    exit_code = 2


FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--prefix", default="mesh", show_default=True, help="What the names of everything of ours begin with.")
@click.option(
    "--netns",
    type=click.Path(exists=True, dir_okay=False),
    help="Path of the network namespace to take for the host's.  [default: the one this runs in]",
)
@click.pass_context
def main(context: click.Context, prefix: str, netns: str | None) -> None:
    """The data plane of this node from a file: VXLAN networks, virtual IPs, published ports. Needs root.

    What was applied stays until it is flushed or the machine restarts; applying again changes only what differs.
    """
    context.obj = lambda: NodeMesh(prefix, host_netns=netns)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
@click.pass_obj
def show(make: Callable[[], NodeMesh], as_json: bool) -> None:
    """What is in the kernel, of ours."""
    tables = _with_mesh(make, lambda mesh: mesh.read())
    if as_json:
        click.echo(json.dumps({name or "host": _plain(table) for name, table in tables.items()}, indent=2, sort_keys=True))
        return
    console = Console()
    for name, table in sorted(tables.items()):
        rows = list(_summary(table))
        if not rows:
            continue
        shown = Table(title=name or "host", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for row in rows:
            shown.add_row(*row)
        console.print(shown)


@main.command()
@FILE
@click.option("--dry-run", is_flag=True, help="Print the operations and change nothing.")
@click.pass_obj
def apply(make: Callable[[], NodeMesh], file: Path, dry_run: bool) -> None:
    """Make the kernel as FILE (TOML or YAML) says."""
    state = _state(file)
    if dry_run:
        comparison = _with_mesh(make, lambda mesh: mesh.compare(state))
        ops, errors = comparison.ops, comparison.errors
    else:
        report = _with_mesh(make, lambda mesh: mesh.apply(state))
        ops, errors = report.ops, report.errors
    for op in ops:
        click.echo(describe(op))
    if not ops:
        click.echo("nothing to do")
    _complain(errors)


@main.command()
@FILE
@click.pass_obj
def verify(make: Callable[[], NodeMesh], file: Path) -> None:
    """What differs from FILE; exit code 1 if anything does."""
    state = _state(file)
    comparison = _with_mesh(make, lambda mesh: mesh.compare(state))
    # tracked connections are in no table of objects: what is to be done about them is told as such
    for line in map(str, comparison.differences) if comparison.differences else map(describe, comparison.ops):
        click.echo(line)
    _complain(comparison.errors)
    if comparison.ops:
        sys.exit(1)
    click.echo("nothing differs")


@main.command()
@click.pass_obj
def flush(make: Callable[[], NodeMesh]) -> None:
    """Remove all of ours, and nothing else."""
    report = _with_mesh(make, lambda mesh: mesh.flush())
    for op in report.ops:
        click.echo(describe(op))
    _complain(report.errors)


def _state(file: Path) -> NodeState:
    try:
        return read_file(file, balancer=detect_balancer())
    except MeshError as error:
        raise _Fault(str(error)) from error


def _with_mesh(make: Callable[[], NodeMesh], work: Callable[[NodeMesh], Awaitable[T]]) -> T:
    async def run() -> T:
        mesh = make()
        try:
            return await work(mesh)
        finally:
            await mesh.close()

    if os.geteuid() != 0:
        raise _Fault("the data plane needs root: run this as root")
    try:
        return asyncio.run(run())
    except (MeshError, OSError) as error:
        raise _Fault(str(error)) from error


def _complain(errors: Mapping[str, MeshError]) -> None:
    for name, error in sorted(errors.items()):
        click.secho(f"{name}: {error}", fg="red", err=True)
    if errors:
        sys.exit(1)


def _summary(table: NamespaceTable) -> Iterable[tuple[str, str]]:
    """Label and text; what is said by the thousand is counted in `show`, and whole in --json."""
    if table.bridge:
        yield "bridge", f"{table.bridge.name}, MTU {table.bridge.mtu}" + ("" if table.bridge.up else ", down")
    if table.tunnel:
        where = f"VNI {table.tunnel.vni} from {table.tunnel.local}, UDP {table.tunnel.port}"
        yield "tunnel", f"{where}; {len(table.tunnels)} remote endpoints behind {len(set(table.tunnels.values()))} nodes"
    if table.addresses:
        yield "addresses", " ".join(sorted(table.addresses))
    for name, link in sorted(table.attachments.items()):
        yield "link", f"{name}" + ("" if link.up else ", down")
    for address, via in sorted(table.host_routes.items()):
        yield "route", f"{address} by {via}"
    for name, device in sorted(table.wireguards.items()):
        peers = sum(of == name for of, _ in table.peers)
        yield "WireGuard", f"{name}, UDP {device.port}, MTU {device.mtu}; {peers} peers" + ("" if device.up else ", down")
    for mark, service in sorted(table.ipvs.items()):
        backends = " ".join(f"{d.address}{f':{d.port}' if d.port else ''}({d.weight})" for d in sorted(service.destinations))
        yield "IPVS", f"mark {mark:#x} {service.scheduler}: {backends or 'nobody'}"
    for nft in (table.nft, table.frames):
        if nft is not None:
            yield from _nft_summary(nft)


def _nft_summary(table: NftTable) -> Iterable[tuple[str, str]]:
    yield "nft", f"table {table.family} {table.name}: {sum(len(c.rules) for c in table.chains.values())} rules"
    for name, m in sorted(table.maps.items()):
        shown = [f"{key} -> {value}" for key, value in sorted(m.elements.items())[:8]]
        rest = f" and {len(m.elements) - len(shown)} more" if len(m.elements) > len(shown) else ""
        if shown:
            yield f"  {name}", ", ".join(shown) + rest


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # what isn't in a repr is secret, or too long for people
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, Set)):
        return [_plain(v) for v in (sorted(value, key=repr) if isinstance(value, Set) else value)]
    return value


if __name__ == "__main__":
    main(prog_name="python -m mesh")
