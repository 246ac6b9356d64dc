"""What a VIP costs the traffic through it: `make bench-mesh`, in the virtual machine, where IPVS is.

Two nodes, a client on one, servers on the other. The same client calls the server by its own address, by a VIP (direct routing) and by a
VIP that is built as Docker Swarm builds it (fwmark, IPVS by masquerading, source NAT to the LB address), in turns, in one run: only the
ratios mean anything, the guest is slow. Then all servers of a VIP are replaced one by one while it is called 200 times a second.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from statistics import median

from rich.console import Console
from rich.table import Table

from mesh import Backend
from mesh.linux import ipvs
from mesh.linux.namespace import inside
from mesh.linux.nftables import load
from mesh.table import IpvsDestination, IpvsService
from tests.mesh.bed import Bed, sh
from tests.mesh.pair import VIP, Pair
from tests.vm import machine

ROUNDS = 7
ROUND_S = 1.0
SWARM_VIP, SWARM_MARK = "10.9.1.150", 0x5357
SERVER = "10.9.1.21"
PORT, SINK_PORT = 81, 82
_CHUNK = b"\0" * (1 << 20)


def serve(path: str, ready: threading.Event) -> None:
    """One byte and the end for each connection; on the other port everything is swallowed."""
    with inside(path):
        quick = socket.create_server(("", PORT), backlog=512)
        sink = socket.create_server(("", SINK_PORT))
    threading.Thread(target=_swallow, args=(sink,), daemon=True).start()
    ready.set()
    while True:
        accepted = quick.accept()[0]
        accepted.send(b"!")
        accepted.close()


def _swallow(sink: socket.socket) -> None:
    while True:
        accepted = sink.accept()[0]
        # MSG_TRUNC: the kernel throws it away itself
        while accepted.recv(1 << 20, socket.MSG_TRUNC):
            pass
        accepted.close()


def connections(client: str, address: str) -> float:
    """A second."""
    count, end = 0, time.monotonic() + ROUND_S
    with inside(client):
        start = time.monotonic()
        while time.monotonic() < end:
            with socket.create_connection((address, PORT), timeout=10) as s:
                s.recv(1)
            count += 1
        return count / (time.monotonic() - start)


def bytes_sent(client: str, address: str) -> float:
    """A second."""
    with inside(client):
        s = socket.create_connection((address, SINK_PORT), timeout=30)
    with s:
        total, start = 0, time.monotonic()
        while (spent := time.monotonic() - start) < ROUND_S:
            total += s.send(_CHUNK)
        return total / spent


def as_swarm(namespace: str) -> None:
    """In the network's namespace of the client's node."""
    with inside(namespace):
        sh(f"ip netns exec {os.path.basename(namespace)} ip addr add {SWARM_VIP}/32 dev br0")  # noqa: PTH119
        load(
            "table ip swarm {\n"
            f"chain marking {{ type filter hook prerouting priority mangle; ip daddr {SWARM_VIP} meta mark set {SWARM_MARK}\n}}\n"
            f"chain source {{ type nat hook postrouting priority srcnat; meta mark {SWARM_MARK} snat to 10.9.1.2\n}}\n}}\n"
        )
        destination = IpvsDestination(SERVER, 0, 1, masqueraded=True)
        ipvs.Ipvs(ipvs.family_id()).put([(IpvsService(SWARM_MARK, 4, "rr", 0, frozenset({destination})), None)])


async def rolling(pair: Pair, rate: float = 200.0) -> dict[str, float]:
    """Each server drains, is idle, goes and comes back, while clients call at a steady rate. What failed, of how many."""
    bed, names = pair.bed, ("a1", "b1", "b2")
    address = {name: f"10.9.1.{pair.containers[name]}" for name in names}
    await pair.serve(*(Backend(a) for a in address.values()))
    answers: Counter[str] = Counter()
    ended = threading.Event()

    def call(offset: int, clients: int) -> None:
        begin = time.monotonic()
        number = offset
        while not ended.is_set():
            delay = begin + number / rate - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            try:
                answers[bed.ask("a2", VIP, timeout_s=10)] += 1
            except OSError as error:
                answers[repr(error)] += 1
            number += clients

    callers = [threading.Thread(target=call, args=(n, 4)) for n in range(4)]
    start = time.monotonic()
    for caller in callers:
        caller.start()
    for gone in names:
        others = [Backend(address[n]) for n in names if n != gone]
        await pair.serve(Backend(address[gone], 0), *others)
        open_now = {"n1": {address[gone]}}
        while any([(await m.open_connections(open_now))["n1", address[gone]] for m in pair.meshes.values()]):
            await asyncio.sleep(0.05)
        await pair.serve(*others)
        await pair.serve(Backend(address[gone]), *others)
    ended.set()
    for caller in callers:
        caller.join()
    total = sum(answers.values())
    failed = total - sum(answers[name] for name in names)
    return {"requests": total, "failed": failed, "a second": total / (time.monotonic() - start)}


async def measure(bed: Bed) -> dict[str, dict[str, float]]:
    servers: list[multiprocessing.Process] = []
    try:
        for name in ("a1", "a2", "b1", "b2"):
            bed.container(name)
        pair = Pair(bed, "ipvs")
        pair.published = ()
        await pair.serve(Backend(SERVER))
        as_swarm(f"/run/netns/{bed.prefix('a')}-n1")
        context = multiprocessing.get_context("fork")
        ready = context.Event()
        servers.append(context.Process(target=serve, args=(bed.path("b1"), ready), daemon=True))
        servers[0].start()
        assert ready.wait(30)
        ways = {"direct": SERVER, "vip": VIP, "swarm": SWARM_VIP}
        found: dict[str, dict[str, float]] = {}
        kinds: dict[str, Callable[[str, str], float]] = {"connections/s": connections, "bytes/s": bytes_sent}
        for kind, work in kinds.items():
            rates: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(ROUNDS + 1):
                # in another order each time; the first round warms up
                for way in (*ways, *ways)[number % 3 : number % 3 + 3]:
                    rate = work(bed.path("a2"), ways[way])
                    if number:
                        rates[way].append(rate)
            found[kind] = {way: median(values) for way, values in rates.items()}
        servers.pop().kill()
        found["rolling"] = await rolling(pair)
        return found
    finally:
        for server in servers:
            server.kill()


def main() -> None:
    if "MESHD_GUEST" in os.environ:
        sh("modprobe br_netfilter")
        bed = Bed("ab")
        try:
            print(json.dumps(asyncio.run(measure(bed))))
        finally:
            bed.close()
        return
    with machine.shared_directory() as share:
        try:
            done = machine.run([sys.executable, "-m", "tests.mesh.bench_traffic"], share, timeout_s=400)
        except machine.Unavailable as error:
            raise SystemExit(f"bench_traffic: {error}") from error
    if done.exit_code:
        sys.exit(done.output)
    found = json.loads(done.output.splitlines()[-1])
    shown = Table(title="Traffic through a VIP, in the virtual machine", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("", "direct", "VIP", "as Swarm", "VIP/direct", "target", "Swarm/direct"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for kind in ("connections/s", "bytes/s"):
        direct, vip, swarm = (found[kind][way] for way in ("direct", "vip", "swarm"))
        rates = (f"{rate:,.0f}" for rate in (direct, vip, swarm))
        shown.add_row(kind, *rates, f"{vip / direct:.2f}", "0.95", f"{swarm / direct:.2f}")
    Console(width=150).print(shown)
    rolling = found["rolling"]
    rate, failed, total = (f"{rolling[name]:.0f}" for name in ("a second", "failed", "requests"))
    print(f"All servers replaced at {rate} requests/s: {failed} of {total} failed (target 0).")


if __name__ == "__main__":
    main()
