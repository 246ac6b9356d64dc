"""dnsd as a program: the node's DNS process (--control), or a plain little server of one zone file (--zone).

Edge: arguments, signals, exit codes. 0 = ended by SIGTERM or SIGINT, or the file is good; 2 = bad input or environment.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from dnsd import loop
from dnsd.control import Control
from dnsd.errors import ConfigError
from dnsd.resolvers import endpoint_text
from dnsd.server import Server
from dnsd.version import VERSION
from dnsd.zone_file import read_zone
from dnsd.zone_server import ZoneServer

_DEFAULT_LISTEN = "127.0.0.1:5353"
_EPILOG = """\
A zone file, in TOML or YAML:

  network = "shop"                      # every name also answers as <name>.shop
  upstreams = ["10.0.0.53"]             # without: the machine's own resolvers; forward = false: nobody is asked
  [hosts]
  db = "10.0.0.9"                       # or several: ["10.0.0.9", "fd00::9"]
  [[services]]
  name = "web"
  vips = ["10.0.0.2"]                   # without: the name resolves to its tasks, in turns
  ports = [{ name = "http", port = 80 }]
  tasks = [{ name = "web.1", slot = 1, addresses = ["10.0.0.3"] }]
  [[routes]]
  domain = "corp.example"               # this domain, and all below it, is asked of these servers
  upstreams = ["10.1.0.53"]

It is read again when it changes and on SIGHUP; a bad one is refused with a line in the log, and what was served stays.
"""


def main() -> int:
    arguments = _parsed()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        if arguments.check:
            zone = read_zone(arguments.zone)
            print(f"dnsd: {arguments.zone} is good: {len(zone.services)} services, {len(zone.containers)} hosts, network {zone.name}")
        elif arguments.control is not None:
            loop.run(_run_process(arguments.control, arguments.state_file))
        else:
            loop.run(_run_zone(arguments.zone, arguments.listen or [_DEFAULT_LISTEN], arguments.metrics))
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"dnsd: {line}", file=sys.stderr)
        return 2
    return 0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dnsd",
        description="The DNS server of container networks.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--control", type=Path, metavar="SOCK", help="serve what is sent to this unix socket")
    parser.add_argument("--state-file", type=Path, metavar="FILE", help="with --control: where the last state is kept")
    parser.add_argument("--zone", type=Path, metavar="FILE", help="serve this zone file (.toml, .yaml)")
    parser.add_argument(
        "--listen", action="append", metavar="ADDRESS:PORT", help=f"with --zone, any number of times (default: {_DEFAULT_LISTEN})"
    )
    parser.add_argument("--metrics", metavar="ADDRESS:PORT", help="with --zone: serve Prometheus metrics there, over HTTP")
    parser.add_argument("--check", action="store_true", help="with --zone: only say what is wrong with it; exit code 2 if anything is")
    parser.add_argument("--version", action="version", version=f"dnsd {VERSION}")
    arguments = parser.parse_args()
    if (arguments.control is None) == (arguments.zone is None):
        parser.error("give either --control SOCK or --zone FILE")
    if arguments.state_file is not None and arguments.control is None:
        parser.error("--state-file goes with --control")
    if arguments.zone is None and (arguments.check or arguments.listen or arguments.metrics):
        parser.error("--listen, --metrics and --check go with --zone")
    return arguments


async def _run_process(control_path: Path, state_path: Path | None) -> None:
    ended = _end_signal()
    # The terminal or the session that started us may go: we stay.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = Server()
    control = Control(server, control_path, state_path)
    try:
        await control.open()
        _settle()
        await ended.wait()
    finally:
        await control.close()
        await server.close()


async def _run_zone(zone_path: Path, listens: list[str], metrics_listen: str | None) -> None:
    ended = _end_signal()
    server = Server()
    zone = ZoneServer(server, zone_path, listens)
    _on_signal(signal.SIGHUP, zone.reload)
    try:
        endpoints = await zone.open()
        if metrics_listen is not None:
            # Its library costs memory that the node's process need not spend.
            from dnsd import metrics

            metrics.serve(server, metrics_listen)
        _settle()
        print(f"dnsd: serving {zone_path} on {', '.join(map(endpoint_text, endpoints))}", flush=True)
        watching = asyncio.create_task(zone.watch())
        await asyncio.wait({watching, asyncio.create_task(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        watching.cancel()
    finally:
        await server.close()


def _end_signal() -> asyncio.Event:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        _on_signal(number, ended.set)
    return ended


def _on_signal(number: signal.Signals, callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().add_signal_handler(number, callback)


def _settle() -> None:
    """What was imported and restored stays for good: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
