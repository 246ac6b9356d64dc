"""The running program: its event loop, its signals, what it keeps of memory.

Edge. Ends by SIGTERM or SIGINT. ConfigError: it can't start; nothing is left behind.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from dnsd import loop
from dnsd.control import Control
from dnsd.reopen import Reopened
from dnsd.resolvers import endpoint_text
from dnsd.server import Server

# mallopt(3). Buffers of this size and more are given back to the system when they are freed; by default the limit rises with use.
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_BYTES = 64 << 10
# Threads that save and hash must not keep the event loop waiting for Python's lock; the default is 5 ms.
_SWITCH_S = 0.0002


def run_node(control_path: Path, state_path: Path | None, reopened: Reopened) -> None:
    """The node's DNS process."""
    _prepare()
    loop.run(_run_node(control_path, state_path, reopened))


def run_zone(zone_path: Path, listens: list[str], metrics_listen: str | None) -> None:
    """The server of one zone file."""
    _prepare()
    loop.run(_run_zone(zone_path, listens, metrics_listen))


async def _run_node(control_path: Path, state_path: Path | None, reopened: Reopened) -> None:
    ended = _end_signal()
    # The terminal or the session that started us may go: we stay.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = Server()
    control = Control(server, control_path, state_path)
    try:
        await control.open(reopened)
        _settle()
        await ended.wait()
    finally:
        await control.close()
        await server.close()


async def _run_zone(zone_path: Path, listens: list[str], metrics_listen: str | None) -> None:
    from dnsd.zone_server import ZoneServer

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


def _prepare() -> None:
    sys.setswitchinterval(_SWITCH_S)
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    # Two sockets a sandbox: a thousand of them are more than the usual soft limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _settle() -> None:
    """What was imported and restored stays for good: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.enable()
