"""`meshd backup`, `meshd restore`, `meshd recover`: what an operator needs on the worst day.

Edge: terminal in, terminal out.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from orchestrator.cli.ask import ask
from orchestrator.local_state import write_private
from orchestrator.managers.backup import load

_SOCKET = click.option("--socket", default="/run/meshd/meshd.sock", show_default=True, help="The meshd of this machine.")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_SOCKET
def backup(file: Path, socket: str) -> None:
    """Write the whole cluster to FILE: services, tasks, networks, secrets, nodes, keys.

    Ask any manager. FILE is checked after it is written; it holds the cluster's keys, so it is readable by its owner only.
    Managers also keep backups by themselves (`meshd daemon --backup-every`), in backups/ of their state directory.
    """
    packed = ask(socket, "GET", "/mesh/v1/backup", timeout_s=600)
    header = load(packed).header
    write_private(file, packed)
    click.echo(f"{file}: cluster {header.cluster}, {header.objects} objects at revision {header.revision}, {len(packed)} bytes, checked")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--advertise-addr", default="", help="Address other nodes reach this one at; chosen when there is only one.")
@click.option("--check", is_flag=True, help="Only say what is in FILE.")
@_SOCKET
def restore(file: Path, advertise_addr: str, check: bool, socket: str) -> None:
    """Make the cluster in FILE again, with this node as its only manager.

    The node must be in no cluster. Workers come back by themselves if this manager has the address of an old one; others join anew.
    Tasks that still run on them go on.
    """
    packed = file.read_bytes()
    header = load(packed).header
    click.echo(f"{file}: cluster {header.cluster} of {header.created_at:%Y-%m-%d %H:%M:%S} UTC, {header.objects} objects")
    if check:
        return
    answer = msgspec.json.decode(ask(socket, "POST", f"/mesh/v1/restore?advertise-addr={advertise_addr}", packed, timeout_s=600))
    click.echo(f"restored: this node ({answer['NodeID']}) is the manager; add others with `docker swarm join-token manager`")


@click.command()
@click.option("--yes", is_flag=True, help="Don't ask.")
@_SOCKET
def recover(yes: bool, socket: str) -> None:
    """Go on as the only manager after a majority of the managers is lost for good.

    \b
    Run it at the manager that lost last. The other managers become workers when they come back.
    If they are alive and only cut off, don't: there would be two clusters.
    The same as `docker swarm init --force-new-cluster`.
    """
    if not yes:
        click.confirm("Are the other managers really lost?", abort=True)
    node_id = msgspec.json.decode(ask(socket, "POST", "/swarm/init", {"ForceNewCluster": True}, timeout_s=120))
    click.echo(f"this node ({node_id}) is the only manager now; add others: docker node promote NODE, or docker swarm join-token manager")
