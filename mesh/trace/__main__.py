"""`python -m mesh.trace watch|send|echo`: the process that captures or sends for a daemon, its orders one line of standard input.

Edge. A process of its own: scapy is big, and a daemon should not carry it for the few traces of its life; captures end with it whatever
happens. Answers are JSON lines: `{"ready": true}`, then sightings until a second line (or the end) of standard input, then `{"end": true}`;
`{"error": sentence}` and exit code 1 if it can't be done.
`send` and `echo` give one answer and end.
"""

from __future__ import annotations

import json
import os
import selectors
import sys
import time
from dataclasses import asdict
from typing import Any, Final

from mesh.errors import MeshError
from mesh.trace.capture import Watch, send
from mesh.trace.echo import Peer, Tunnel, ask, owners
from mesh.trace.model import Mark, Probe

_LONGEST_S: Final = 120.0
"""A watch whose daemon forgot it ends by itself."""


def main() -> int:
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command not in ("watch", "send", "echo"):
        print("usage: python -m mesh.trace watch|send|echo   (orders as one line of JSON on standard input)", file=sys.stderr)
        return 2
    try:
        orders = json.loads(_line())
        if command == "watch":
            _watch(orders)
        elif command == "echo":
            answered = ask(Tunnel(**orders["tunnel"]), [Peer(**peer) for peer in orders["peers"]]) if orders["tunnel"] else {}
            _say({"peers": answered, "owners": owners(orders["link"], orders["address"])})
        else:
            probe = Probe(orders["protocol"], orders["destination"], orders["port"], Mark(orders["mark"]), orders["count"])
            _say({"source": send(orders["namespace"], probe)})
    except (MeshError, OSError) as error:
        _say({"error": str(error)})
        return 1
    return 0


def _watch(orders: dict[str, Any]) -> None:
    with Watch(orders["places"], Mark(orders["mark"]), orders["vxlan_port"]) as watch, selectors.DefaultSelector() as selector:
        _say({"ready": True})
        selector.register(watch, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        end = time.monotonic() + _LONGEST_S
        asked_to_end = False
        while not asked_to_end and time.monotonic() < end:
            ready = {key.fd for key, _ in selector.select(end - time.monotonic())}
            # what came before the order to end is still told
            asked_to_end = 0 in ready
            for sighting in watch.drain():
                _say(asdict(sighting))
        _say({"end": True})


def _line() -> bytes:
    """One line of standard input, unbuffered: what follows must stay in the pipe, where the selector sees it."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return bytes(line)


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
