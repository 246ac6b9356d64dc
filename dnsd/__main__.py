"""dnsd as a program: the node's DNS process (--control), or a plain little server of one zone file (--zone).

Edge: arguments, signals, exit codes. 0 = ended by SIGTERM or SIGINT, 2 = bad input or environment.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from pathlib import Path

from dnsd.control import Control
from dnsd.errors import ConfigError
from dnsd.model import DnsState, ScopeSpec
from dnsd.resolvers import endpoint_text, parse_endpoint
from dnsd.server import Server
from dnsd.version import VERSION
from dnsd.zone_file import read_zone

_EPILOG = """\
A zone file, in TOML or YAML:

  network = "shop"                      # web also answers as web.shop
  [[services]]
  name = "web"
  vips = ["10.0.0.2"]                   # without: the name resolves to its tasks, in turns
  ports = [{ name = "http", port = 80 }]
  tasks = [{ name = "web.1", slot = 1, addresses = ["10.0.0.3"] }]

Whatever isn't in it is asked of the node's resolvers, unless forward = false or upstreams = ["10.0.0.53"] are given.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dnsd",
        description="The DNS server of container networks.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--control", type=Path, metavar="SOCK", help="serve what is sent to this unix socket")
    parser.add_argument("--state-file", type=Path, metavar="FILE", help="with --control: where the last state is kept")
    parser.add_argument("--zone", type=Path, metavar="FILE", help="serve this zone file (.toml, .yaml)")
    parser.add_argument("--listen", default="127.0.0.1:5353", metavar="ADDRESS:PORT", help="with --zone (default: %(default)s)")
    parser.add_argument("--version", action="version", version=f"dnsd {VERSION}")
    arguments = parser.parse_args()
    if (arguments.control is None) == (arguments.zone is None):
        parser.error("give either --control SOCK or --zone FILE")
    if arguments.state_file is not None and arguments.control is None:
        parser.error("--state-file goes with --control")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        if arguments.control is not None:
            asyncio.run(_run_process(arguments.control, arguments.state_file))
        else:
            asyncio.run(_run_zone(arguments.zone, arguments.listen))
    except ConfigError as error:
        print(f"dnsd: {error}", file=sys.stderr)
        return 2
    return 0


async def _run_process(control_path: Path, state_path: Path | None) -> None:
    ended = _end_signal()
    server = Server()
    control = Control(server, control_path, state_path)
    try:
        await control.open()
        _settle()
        await ended.wait()
    finally:
        await control.close()
        await server.close()


async def _run_zone(zone_path: Path, listen: str) -> None:
    parse_endpoint(listen)
    file = read_zone(zone_path)
    ended = _end_signal()
    server = Server()
    scope = ScopeSpec(id="listen", netns="", networks=(file.zone.network,), listen=listen, upstreams=file.upstreams, forward=file.forward)
    try:
        applied = await server.apply(DnsState(zones=(file.zone,), scopes=(scope,)))
        if applied.failed:
            raise ConfigError(applied.failed["listen"])
        _settle()
        print(f"dnsd: serving {zone_path} on {endpoint_text(server.address('listen'))}", flush=True)
        await ended.wait()
    finally:
        await server.close()


def _end_signal() -> asyncio.Event:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    # The terminal or the session that started us may go: we stay.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return ended


def _settle() -> None:
    """What was imported and restored stays for good: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
