"""The command line of meshd.

Edge: terminal in, terminal out. Heavy imports wait until a command needs them, so `--help` is instant.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from orchestrator import permissions
from orchestrator.api.endpoints import DEFAULT_DIRECTORY as API_DIRECTORY
from orchestrator.ask import DEFAULT_SOCKET
from orchestrator.errors import MeshdError
from orchestrator.lab.layout import DEFAULT_STATE_DIR
from orchestrator.version import VERSION

_PERMITTED = (
    f"Permitted anyway: {', '.join(sorted(permissions.DEFAULT))}. To be permitted: "
    f"{', '.join(sorted(permissions.PERMISSIONS.keys() - permissions.DEFAULT))}, all."
)


class _Sentences(click.Group):
    """Turns our own errors into one sentence and exit code 2 instead of a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MeshdError as error:
            click.secho(f"meshd: {error}", fg="red", err=True)
            sys.exit(2)


@click.group(cls=_Sentences, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="meshd")
def main() -> None:
    """A routing mesh, service discovery and an orchestrator, driven by the stock docker CLI.

    \b
    meshd daemon                 run on every node, beside its Docker Engine
    docker -H unix:///run/meshd/meshd.sock swarm init
    meshd lab up                 a whole cluster on this machine, to try it
    meshd demo                   watch the main job, measured
    meshd doctor                 is this machine ready to be a node, and does it reach the others?
    meshd trace web              where does a packet to that service go, link by link?
    meshd stack plan shop        what would this compose file change? then: deploy, show, rollback
    meshd dns query web --as client.1    what this node's task is answered, and why
    meshd backup, restore        the whole cluster as one file, and back
    meshd recover                go on after most managers are lost for good
    meshd rotate-network-keys    new keys for encrypted networks
    meshd api-certs              certificates for the docker CLI over TCP
    meshd audit                  who changed what
    """


@main.command()
@click.option("--state-dir", default="/var/lib/meshd", show_default=True, help="Identity, etcd's data, dnsd's state.")
@click.option("--socket", default=DEFAULT_SOCKET, show_default=True, help="The Docker API for root and the group of --group.")
@click.option("--group", default="docker", show_default=True, help="Group that may use --socket (ignored if it doesn't exist).")
@click.option(
    "--host", "-H", multiple=True, metavar="URL", help="Serve the Docker API there, too: tcp://0.0.0.0:2376, unix:///path.  [repeatable]"
)
@click.option("--tlsverify", is_flag=True, help="TCP only for clients with a certificate of --tlscacert (see `meshd api-certs`).")
@click.option("--tlscacert", default=f"{API_DIRECTORY}/ca.pem", show_default=True, help="CA of the clients' certificates.")
@click.option("--tlscert", default=f"{API_DIRECTORY}/server-cert.pem", show_default=True, help="The API's certificate.")
@click.option("--tlskey", default=f"{API_DIRECTORY}/server-key.pem", show_default=True, help="Its key.")
@click.option("--insecure-plain-tcp", is_flag=True, help="TCP without TLS: whoever reaches it is root on every node.")
@click.option(
    "--api-rate", default=100.0, show_default=True, type=click.FloatRange(min=0), help="Requests/s of one client over TCP; 0: any."
)
@click.option("--engine", default="unix:///var/run/docker.sock", show_default=True, help="This node's Docker Engine.")
@click.option("--advertise-addr", default="", help="Address other nodes reach this one at; chosen when there is only one.")
@click.option("--listen-addr", default="", help="ip:port of the cluster's TLS server.  [default: 0.0.0.0:2377]")
@click.option("--retry-join", multiple=True, metavar="IP[:PORT],...", help="Come into the cluster of these machines by itself.")
@click.option("--bootstrap-expect", default=0, metavar="N", help="Begin it when these N machines are all there; they are its managers.")
@click.option("--join-secret-file", default="", metavar="FILE", help="What all its machines know: `openssl rand -hex 32`.")
@click.option("--join-token-file", default="", metavar="FILE", help="Or a join token of a cluster that exists.")
@click.option("--hostname", default="", help="Name of this node.  [default: the machine's]")
@click.option("--netns-prefix", default="mesh", show_default=True, help="Prefix of the network namespaces meshd makes.")
@click.option("--etcd-client-port", default=2379, show_default=True, help="etcd's port for meshd, on loopback (managers).")
@click.option("--etcd-peer-port", default=2380, show_default=True, help="etcd's port for other managers.")
@click.option("--backup-every", default=60, show_default=True, help="Managers write a backup into backups/ every so many minutes; 0: no.")
@click.option("--backup-keep", default=24, show_default=True, type=click.IntRange(min=1), help="How many backups are kept.")
@click.option("--metrics", default="", metavar="IP:PORT", help="Serve this node's figures to Prometheus there, over HTTP.")
@click.option("--audit-log", default="", metavar="PATH", help="Who changed what; `none`: nobody asks.  [default: audit.log in --state-dir]")
@click.option("--permit", multiple=True, metavar="WHAT", help=f"What containers may besides. {_PERMITTED}  [repeatable]")
@click.option("--forbid", multiple=True, metavar="WHAT", help="What containers may not.  [repeatable]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
def daemon(**options: object) -> None:
    """Run this node: agent always, manager after `swarm init` or a join with a manager token.

    Or without either, the same on every machine, started in any order:

    \b
    meshd daemon --bootstrap-expect 3 --retry-join 10.0.0.1,10.0.0.2,10.0.0.3 --join-secret-file FILE

    The three become managers of one cluster, any other machine a worker.

    Stopping or killing it disturbs no container, no connection and no DNS answer; the next start adopts everything.
    """
    from orchestrator import daemon as process
    from orchestrator.daemon_config import DaemonConfig

    process.run(DaemonConfig.from_options(options))


@main.command()
@click.option("--engine", default="unix:///var/run/docker.sock", show_default=True, help="The Docker Engine to check.")
@click.option("--socket", default=DEFAULT_SOCKET, show_default=True, help="The socket of this machine's meshd, if it runs.")
@click.option("--state-dir", default="/var/lib/meshd", show_default=True, help="meshd's.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(engine: str, socket: str, state_dir: str, as_json: bool) -> None:
    """Is this machine ready to be a node, and does it reach the others? Says what is wrong, and what to do about it.

    Looks at programs, kernel, limits, the Engine, addresses, firewalls, ports, clock and disk; while meshd runs also at the tunnels to the
    other nodes (full-size packets there and back), their clocks, etcd and the kernel's tables. Exit code 1 if there is something to fix.
    """
    from orchestrator.diagnose import doctor as checks

    sys.exit(checks.main(engine, socket, Path(state_dir), as_json=as_json))


@main.command()
@click.argument("target")
@click.option(
    "--from", "start", default="", metavar="NODE", help="Start in a task on NODE (a port: on NODE itself).  [default: a near one]"
)
@click.option("--from-task", "start_task", default="", metavar="TASK", help="Start in this task: web.1, or an id.")
@click.option("--via", "entry", default="", metavar="NODE", help="Call the published port of NODE.  [default: the node it starts on]")
@click.option("--network", default="", help="The network to use, for a service on several.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port to call.  [default: the service's first, or 80]")
@click.option("--protocol", default="", type=click.Choice(["", "tcp", "udp", "icmp"]), show_choices=True, help="[default: the port's]")
@click.option("--count", default=3, show_default=True, type=click.IntRange(1, 16), help="Probes to send; each is balanced anew.")
@click.option("--json", "as_json", is_flag=True, help="Everything that was seen, for programs.")
@click.option("--socket", default=DEFAULT_SOCKET, show_default=True, help="The socket of a manager's meshd.")
def trace(socket: str, as_json: bool, **request: object) -> None:
    """Where does a packet to TARGET go? A service, a VIP, a task's address, or a published port: :8080, node-2:8080, :53/udp.

    Sends marked probes (TCP SYN, UDP, ICMP) and watches every link of every node they pass, in and out of the tunnels: from the client to
    the balancer, to a task, and back; says where one got lost. It opens no connection. Exit code 0: all arrived; 1: not all; 2: can't be
    traced.
    """
    from rich.console import Console

    from orchestrator.ask import ask
    from orchestrator.diagnose.picture import picture
    from orchestrator.diagnose.report import TraceReport

    answer = ask(socket, "POST", "/mesh/v1/trace", request, timeout_s=200.0)
    report = msgspec.json.decode(answer, type=TraceReport)
    if as_json:
        click.echo(answer)
    else:
        console = Console() if sys.stdout.isatty() else Console(width=200)
        console.print(picture(report), highlight=False, soft_wrap=True)
    sys.exit(0 if report.good else 1)


@main.command()
@click.option("--keep", is_flag=True, help="Leave the cluster up afterwards and say how to use it.")
@click.option("--figures", is_flag=True, help="Also measure create, 50 replicas, a rolling update of 10, memory.")
@click.option("--state-dir", default=str(DEFAULT_STATE_DIR), show_default=True, help="Where the demo's lab lives.")
def demo(keep: bool, figures: bool, state_dir: str) -> None:
    """Three nodes on this machine play the main job: publish, balance, resolve, scale, kill, update. Measured; leaves nothing behind."""
    from rich.console import Console

    from orchestrator.lab.performance import play

    # a log file or a pipe is no reason to fold the summary at 80 columns
    console = Console() if sys.stdout.isatty() else Console(width=150)
    play(Path(state_dir), keep=keep, with_figures=figures, console=console)


def _add_groups() -> None:
    from orchestrator.cli.access import api_certs
    from orchestrator.cli.audit import audit
    from orchestrator.cli.dns import dns
    from orchestrator.cli.network_keys import rotate_network_keys
    from orchestrator.cli.rescue import backup, recover, restore
    from orchestrator.cli.stack import stack
    from orchestrator.lab.cli import lab

    for command in (dns, stack, lab, backup, restore, recover, api_certs, audit, rotate_network_keys):
        main.add_command(command)


_add_groups()
