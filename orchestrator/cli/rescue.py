"""`meshd backup`, `meshd restore`, `meshd recover`: what an operator needs on the worst day.

Edge: terminal in, terminal out.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from orchestrator.ask import DEFAULT_SOCKET, ask
from orchestrator.local_state import write_private
from orchestrator.managers.backup import SealedBackup, header, load, sealed
from orchestrator.security.keyring import parsed

_SOCKET = click.option("--socket", default=DEFAULT_SOCKET, show_default=True, help="The meshd of this machine.")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_SOCKET
def backup(file: Path, socket: str) -> None:
    """Write the whole cluster to FILE: services, tasks, networks, secrets, nodes, keys.

    Ask any manager. FILE is checked after it is written; it holds the cluster's keys, so it is readable by its owner only.
    Managers also keep backups by themselves (`meshd daemon --backup-every`), in backups/ of their state directory.
    """
    packed = ask(socket, "GET", "/mesh/v1/backup", timeout_s=600)
    written = header(packed)
    try:
        load(packed)
        state = "checked"
    except SealedBackup:
        state = "sealed with the unlock key, which you need to restore it: docker swarm unlock-key"
    write_private(file, packed)
    click.echo(f"{file}: cluster {written.cluster}, {written.objects} objects at revision {written.revision}, {len(packed)} bytes, {state}")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--advertise-addr", default="", help="Address other nodes reach this one at; chosen when there is only one.")
@click.option(
    "--unlock-key", default="", envvar="MESHD_UNLOCK_KEY", help="Of a sealed backup; asked for otherwise.  [env: MESHD_UNLOCK_KEY]"
)
@click.option("--check", is_flag=True, help="Only say what is in FILE.")
@_SOCKET
def restore(file: Path, advertise_addr: str, unlock_key: str, check: bool, socket: str) -> None:
    """Make the cluster in FILE again, with this node as its only manager.

    The node must be in no cluster. Workers come back by themselves if this manager has the address of an old one; others join anew.
    Tasks that still run on them go on.
    """
    packed = file.read_bytes()
    told = header(packed)
    click.echo(f"{file}: cluster {told.cluster} of {told.created_at:%Y-%m-%d %H:%M:%S} UTC, {told.objects} objects")
    if sealed(packed) and not unlock_key:
        unlock_key = click.prompt("Unlock key of its time", hide_input=True)
    load(packed, parsed(unlock_key) if unlock_key else b"")
    if check:
        return
    answer = msgspec.json.decode(
        ask(
            socket, "POST", f"/mesh/v1/restore?advertise-addr={advertise_addr}", packed, timeout_s=600, headers={"X-Unlock-Key": unlock_key}
        )
    )
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
