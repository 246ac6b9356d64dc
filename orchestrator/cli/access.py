"""`meshd api-certs`: who may use the Docker API from elsewhere.

Edge: terminal in, files and terminal out.
"""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path

import click

from orchestrator.addresses import own_addresses
from orchestrator.api.endpoints import DEFAULT_DIRECTORY


@click.command("api-certs")
@click.argument("directory", default=DEFAULT_DIRECTORY, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--client", "clients", multiple=True, metavar="NAME", help="Also one for NAME, in DIRECTORY/NAME.  [default: client]  [repeatable]"
)
@click.option("--name", "names", multiple=True, metavar="HOST", help="Clients also dial this DNS name or IP address.  [repeatable]")
@click.option("--renew", is_flag=True, help="Make server's and clients' certificates anew, before they expire or for other names.")
def api_certs(directory: Path, clients: tuple[str, ...], names: tuple[str, ...], renew: bool) -> None:
    """Make the certificates for the Docker API over TCP: a CA, this server's, and one a client. What is there already stays.

    \b
    meshd api-certs --client alice
    meshd daemon --host tcp://0.0.0.0:2376 --tlsverify ...
    # DIRECTORY/alice goes to Alice's machine:
    docker context create mesh --docker "host=tcp://node-1:2376,ca=ca.pem,cert=cert.pem,key=key.pem"

    Each manager needs a certificate under the names it is dialled by: copy ca.pem and ca-key.pem there and run this again, or give
    all names at once. A client's certificate is root on every node, for 825 days; the name in it stands in `meshd audit`. To take one
    back, make a new CA (another directory). ca-key.pem is needed for making certificates only: keep it elsewhere if you can.
    """
    from orchestrator.security import api_certificates

    dialled = {"localhost", "127.0.0.1", "::1", socket.gethostname(), *own_addresses(), *names}
    written = api_certificates.make(directory, clients or ("client",), sorted(dialled), datetime.now(UTC), renew=renew)
    for path in written:
        click.echo(f"made {path}")
    if not written:
        click.echo(f"everything is there already in {directory}; --renew makes it anew")
