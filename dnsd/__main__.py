"""dnsd as a program: the node's DNS process (--control), or a plain little server of one zone file (--zone).

Edge: arguments, signals, exit codes. 0 = ended by SIGTERM or SIGINT, or the file is good; 2 = bad input or environment.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from pathlib import Path

from dnsd.errors import ConfigError
from dnsd.version import VERSION

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
    # Until all is loaded there is nothing to collect.
    gc.disable()
    try:
        if arguments.control is not None:
            _run_node(arguments.control, arguments.state_file)
        elif arguments.check:
            from dnsd.zone_file import read_zone

            zone = read_zone(arguments.zone)
            print(f"dnsd: {arguments.zone} is good: {len(zone.services)} services, {len(zone.containers)} hosts, network {zone.name}")
        else:
            from dnsd.process import run_zone

            run_zone(arguments.zone, arguments.listen or [_DEFAULT_LISTEN], arguments.metrics)
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"dnsd: {line}", file=sys.stderr)
        return 2
    return 0


def _run_node(control_path: Path, state_path: Path | None) -> None:
    """In this order: the sockets first, then all the rest of the program is loaded."""
    since = time.perf_counter()
    from dnsd.reopen import Reopened, reopen

    reopened = reopen(state_path) if state_path is not None else Reopened()
    if reopened.opened:
        logging.info("event=reopened scopes=%d took_ms=%.0f", len(reopened.opened), (time.perf_counter() - since) * 1e3)
    # Of TLS there is nothing here, and asyncio goes without: it saves 5 MB and a tenth of the time until the first answer.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    from dnsd.process import run_node

    run_node(control_path, state_path, reopened)


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


if __name__ == "__main__":
    sys.exit(main())
