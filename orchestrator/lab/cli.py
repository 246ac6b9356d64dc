"""`meshd lab ...`: the lab as a tool.

Edge: terminal in, terminal out.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from orchestrator.lab.lab import KILLABLE, Lab
from orchestrator.lab.layout import DEFAULT_STATE_DIR, DEFAULT_SUBNET

console = Console()


def _lab(context: click.Context) -> Lab:
    return Lab(Path(context.obj["state_dir"]), context.obj["subnet"], progress=lambda text: console.print(f"[dim]·[/] {text}"))


@click.group()
@click.option(
    "--state-dir", default=str(DEFAULT_STATE_DIR), show_default=True, envvar="MESHD_LAB_STATE_DIR", help="Everything of the lab is here."
)
@click.option("--subnet", default=None, help=f"The nodes' network.  [default: {DEFAULT_SUBNET}]")
@click.pass_context
def lab(context: click.Context, state_dir: str, subnet: str | None) -> None:
    """A whole cluster on this machine, as kind and k3d are for Kubernetes.

    Every node is a set of namespaces with its own Docker Engine and its own meshd, on one bridge.

    \b
    meshd lab up --nodes 3
    docker -H unix:///var/lib/meshd-lab/node-1/meshd.sock node ls
    meshd lab kill node-2 --what meshd      it comes back, nothing is lost
    meshd lab cut node-3                    pull its network plug
    meshd lab down                          nothing is left
    """
    context.obj = {"state_dir": state_dir, "subnet": subnet}


@lab.command()
@click.option("--nodes", default=3, show_default=True, help="How many nodes.")
@click.option("--managers", default=1, show_default=True, help="How many of them are managers.")
@click.option("--cluster/--no-cluster", default=True, help="Form the cluster (swarm init and join) or leave that to you.")
@click.option("--meshd/--no-meshd", "with_meshd", default=True, help="Start meshd, or only the Engines.")
@click.pass_context
def up(context: click.Context, nodes: int, managers: int, cluster: bool, with_meshd: bool) -> None:
    """Bring up the lab; run again to bring back what died."""
    the_lab = _lab(context)
    the_lab.up(nodes, managers=managers, cluster=cluster, meshd=with_meshd)
    _show(the_lab)
    first = the_lab.nodes[0].layout.meshd_socket if with_meshd else the_lab.nodes[0].layout.engine_socket
    console.print(f"\nUse it:  [bold]export DOCKER_HOST=unix://{first}[/]")


@lab.command()
@click.pass_context
def status(context: click.Context) -> None:
    """Nodes, what runs on them, memory, sockets."""
    _show(_lab(context))


def _show(the_lab: Lab) -> None:
    if not the_lab.count:
        console.print(f"No lab in {the_lab.layout.state_dir}; `meshd lab up` makes one.")
        return
    table = Table(title=f"lab {the_lab.layout.name}: {the_lab.count} nodes on {the_lab.layout.subnet}")
    for heading in ("node", "address", "state", "meshd", "etcd", "dnsd", "engine", "restarts", "docker -H"):
        table.add_column(heading, justify="right" if heading in ("meshd", "etcd", "dnsd", "engine") else "left")
    for node in the_lab.nodes:
        report = node.report()
        state = "[red]down[/]" if not report.up else "[yellow]cut off[/]" if report.cut else "[green]up[/]"
        memory = [
            f"{report.rss_bytes[unit] / 2**20:.0f} MB" if unit in report.rss_bytes else "-" for unit in ("meshd", "etcd", "dnsd", "engine")
        ]
        restarts = " ".join(f"{unit}:{n}" for unit, n in report.restarts.items() if n) or "-"
        table.add_row(report.name, report.address, state, *memory, restarts, f"unix://{report.socket}")
    console.print(table)


@lab.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(context: click.Context, node: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on NODE (in its namespaces): meshd lab exec node-1 -- ip route"""
    prefix = _lab(context).node(node).exec_prefix()
    os.execvp(prefix[0], [*prefix, *command])


@lab.command()
@click.argument("node")
@click.option("--what", type=click.Choice(KILLABLE), default="all", show_default=True, help="One program (SIGKILL), or the whole node.")
@click.pass_context
def kill(context: click.Context, node: str, what: str) -> None:
    """Kill NODE like a power cut, or one of its programs. `meshd lab up` brings a killed node back; programs come back by themselves."""
    _lab(context).node(node).kill(what)
    console.print(f"killed: {what if what != 'all' else 'everything'} on {node}")


@lab.command()
@click.argument("node")
@click.pass_context
def cut(context: click.Context, node: str) -> None:
    """Cut NODE off the network; it runs on."""
    _lab(context).node(node).cut()
    console.print(f"{node} is cut off; `meshd lab heal {node}` plugs it in again")


@lab.command()
@click.argument("node")
@click.pass_context
def heal(context: click.Context, node: str) -> None:
    """Plug NODE in again."""
    _lab(context).node(node).heal()
    console.print(f"{node} is connected")


@lab.command()
@click.pass_context
def down(context: click.Context) -> None:
    """End and remove everything of the lab."""
    _lab(context).down()
    console.print("nothing is left of the lab")
