"""`meshd rotate-network-keys`: new keys for encrypted networks.

Edge: terminal in, terminal out.
"""

from __future__ import annotations

import time

import click

from orchestrator.ask import DEFAULT_SOCKET
from orchestrator.errors import ConfigError

_POLL_S = 0.5


@click.command("rotate-network-keys")
@click.option("--timeout", default=120.0, show_default=True, help="How long to wait for all nodes, in seconds.")
@click.option("--socket", default=DEFAULT_SOCKET, show_default=True, help="The socket of a manager's meshd.")
def rotate_network_keys(timeout: float, socket: str) -> None:
    """New keys on all nodes with encrypted networks, now. Without a lost packet; the managers do it twice a day by themselves."""
    from orchestrator.client import Mesh

    mesh = Mesh(socket)
    mesh.rotate_network_keys()
    end = time.monotonic() + timeout
    while mesh.network_keys().under_way:
        if time.monotonic() > end:
            raise ConfigError(f"not all nodes have their new keys within {timeout:g} s: it goes on when they answer (docker node ls)")
        time.sleep(_POLL_S)
    click.echo("all nodes with encrypted networks use new keys")
