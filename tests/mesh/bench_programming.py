"""How fast the kernel follows: `make bench-mesh`, as root. Everything happens in namespaces of its own that are gone afterwards.

Each line: measured, the target it was built for, and how much of it is used (below 1 is better). Of repeated measurements it is the best:
what else the machine does only adds. CPU is this process's and its children's, the kernel's work in their system calls included. Where this
kernel has no ip_vs, its lines come from the virtual machine of tests/vm, whose absolute figures are those of a machine ten times slower.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from mesh import Backend, Balancer, Network, NodeMesh, NodeState, RemoteEndpoint, VirtualService, detect_balancer
from mesh.facts import Facts
from mesh.linux import elements, ipvs, nftables
from mesh.linux.namespace import inside
from mesh.network import render_network
from mesh.nft import element_changes, script, without_elements
from mesh.table import NftTable
from tests.mesh.bed import sh

BACKENDS = 5
FACTS = Facts(underlay_mtu=1500, host_id=1, netns={})


@dataclass(frozen=True, slots=True)
class Line:
    what: str
    measured: float
    target: float
    unit: str
    remark: str = ""

    @property
    def share(self) -> float:
        """Of the target that is used up; the other way round for rates."""
        return self.target / self.measured if self.unit.endswith("/s") or self.unit == "x" else self.measured / self.target


LINES: list[Line] = []


def address(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def service(number: int, first_backend: int | None = None) -> VirtualService:
    backends = [256 + number * BACKENDS + k for k in range(BACKENDS)]
    if first_backend is not None:
        backends[0] = first_backend
    return VirtualService(address((64 << 16) + number), tuple(Backend(address(b)) for b in backends))


def node(services: tuple[VirtualService, ...], remote: tuple[RemoteEndpoint, ...] = (), balancer: Balancer = "nftables") -> NodeState:
    network = Network("n", 5, ("10.0.0.0/8",), "10.255.0.2", services=services, remote=remote)
    return NodeState("192.0.2.1", (network,), balancer=balancer)


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


@contextmanager
def space(name: str) -> Iterator[str]:
    full = f"bench{os.getpid()}{name}"
    sh(f"ip netns add {full} && ip -n {full} link set lo up && ip -n {full} addr add 192.0.2.1/24 dev lo")
    try:
        yield f"/run/netns/{full}"
    finally:
        sh(f"ip netns del {full}", check=False)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def kernel_alone(count: int = 20_000, repeat: int = 9) -> None:
    """One service more, one backend swapped among many: the transaction alone, and the same by the nft tool."""
    services = tuple(service(i) for i in range(count))
    before = render_network(node(services).networks[0], node(services), FACTS, {})

    def table(rendered: object) -> NftTable:
        assert isinstance(rendered, type(before)) and rendered.table.nft is not None
        return rendered.table.nft

    times: dict[str, list[float]] = {"add": [], "swap": [], "tool": []}
    with space("k") as path, inside(path):
        frame = without_elements(table(before))
        nftables.load(script(frame, None))
        elements.change("inet", "meshd", element_changes(table(before), frame) or ())
        for n in range(repeat):
            for kind in times:
                changed = list(services)
                if kind == "add":
                    changed.append(service(count + n))
                else:
                    changed[7] = service(7, 256 + count * BACKENDS + 2 * n + (kind == "tool"))
                state = node(tuple(changed))
                after = render_network(state.networks[0], state, FACTS, {}, before)
                text, changes = script(table(after), table(before)), element_changes(table(after), table(before))
                assert changes
                work = (lambda t=text: nftables.load(t)) if kind == "tool" else (lambda c=changes: elements.change("inet", "meshd", c))  # type: ignore[misc]
                times[kind].append(timed(work))
                services, before = tuple(changed), after
    LINES.append(best(f"one service more among {count:,}, in the kernel", times["add"], 7))
    LINES.append(best(f"one backend swapped among {count:,} services, in the kernel", times["swap"], 16))
    LINES.append(best("  by the nft tool", times["tool"], 16))


def best(what: str, times_s: list[float], target_ms: float, cpu_s: list[float] | None = None) -> Line:
    remark = f"median {1e3 * median(times_s):.1f} ms" + (f"; CPU {1e3 * min(cpu_s):.1f} ms" if cpu_s else "")
    return Line(what, 1e3 * min(times_s), target_ms, "ms", remark)


async def whole_applies(balancer: Balancer, count: int = 5_000, repeat: int = 9) -> None:
    services = tuple(service(i) for i in range(count))
    remote = tuple(RemoteEndpoint(address(256 + i), "192.0.2.2") for i in range(count * BACKENDS + repeat))
    with space("w") as path:
        mesh = NodeMesh(f"b{os.getpid() % 10**7}", host_netns=path)
        try:
            began, used = time.perf_counter(), cpu_s()
            assert not (await mesh.apply(node(services, remote, balancer))).errors
            wall, cpu = time.perf_counter() - began, cpu_s() - used
            LINES.append(Line(f"{balancer}: {count:,} services x {BACKENDS} backends from nothing", wall, 5, "s", f"{cpu:.1f} s CPU"))
            walls, cpus = [], []
            for n in range(repeat):
                services = (*services[:7], service(7, 256 + count * BACKENDS + n), *services[8:])
                state = node(services, remote, balancer)
                gc.collect()
                began, used = time.perf_counter(), cpu_s()
                report = await mesh.apply(state)
                walls.append(time.perf_counter() - began)
                cpus.append(cpu_s() - used)
                assert report.ops and not report.errors
            LINES.append(best(f"{balancer}: one backend swapped among them, whole apply", walls, 20, cpus))
        finally:
            await mesh.flush()
            await mesh.close()


async def resyncs(balancer: Balancer, count: int = 1_000, repeat: int = 5) -> None:
    services = tuple(service(i) for i in range(count))
    remote = tuple(RemoteEndpoint(address(256 + i), "192.0.2.2") for i in range(count * BACKENDS))
    state = node(services, remote, balancer)
    with space("r") as path:
        mesh = NodeMesh(f"b{os.getpid() % 10**7}", host_netns=path)
        try:
            for _ in range(2):
                await mesh.apply(state, resync=True)
            cpus, walls = [], []
            for _ in range(repeat):
                began, used = time.perf_counter(), cpu_s()
                assert (await mesh.apply(state, resync=True)).ops == ()
                walls.append(time.perf_counter() - began)
                cpus.append(cpu_s() - used)
            remark = f"wall {1e3 * min(walls):.0f} ms; {len(remote):,} remote endpoints"
            LINES.append(Line(f"{balancer}: resync of {count:,} services, nothing to do: CPU", 1e3 * min(cpus), 100, "ms", remark))
        finally:
            await mesh.flush()
            await mesh.close()


def memory(balancer: Balancer, count: int = 5_000) -> None:
    services = tuple(service(i) for i in range(count))
    remote = tuple(RemoteEndpoint(address(256 + i), "192.0.2.2") for i in range(count * BACKENDS))
    state = node(services, remote, balancer)
    gc.collect()
    tracemalloc.start()
    rendered = render_network(state.networks[0], state, FACTS, {})
    gc.collect()
    size_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    objects = count * (1 + BACKENDS) + len(remote)
    assert rendered.table.addresses
    LINES.append(Line(f"{balancer}: memory of the tables per service, backend or remote endpoint", size_bytes / objects, 1024, "B"))


def ipvs_objects(count: int = 2_000, repeat: int = 3) -> None:
    """Services and destinations put into an empty namespace: ours, and ipvsadm fed with the same."""
    rendered = render_network(node((), balancer="ipvs").networks[0], node((), balancer="ipvs"), FACTS, {})
    state = node(tuple(service(i) for i in range(count)), balancer="ipvs")
    services = list(render_network(state.networks[0], state, FACTS, {}, rendered).table.ipvs.values())
    lines: list[str] = []
    for s in services:
        lines.append(f"-A -f {s.mark} -s {s.scheduler}")
        lines += [f"-a -f {s.mark} -r {d.address}:{d.port} {'-m' if d.masqueraded else '-g'} -w {d.weight}" for d in s.destinations]
    family = ipvs.family_id()

    def ours() -> None:
        ipvs.Ipvs(family).put((s, None) for s in services)

    def theirs() -> None:
        subprocess.run(["ipvsadm", "-R"], input="\n".join(lines) + "\n", text=True, check=True, capture_output=True)

    rates: dict[str, list[float]] = {"ours": [], "ipvsadm": []}
    for n in range(repeat):
        for name, work in (("ours", ours), ("ipvsadm", theirs)):
            if name == "ipvsadm" and shutil.which("ipvsadm") is None:
                continue
            with space(f"i{n}{name[0]}") as path, inside(path):
                rates[name].append(len(lines) / timed(work))
                assert ipvs.Ipvs(family).read() == {s.mark: s for s in services}
    remark = f"median {median(rates['ours']):,.0f}/s; {len(lines):,} objects"
    LINES.append(Line("ipvs: services and destinations put into the kernel", max(rates["ours"]), 10_000, "/s", remark))
    if rates["ipvsadm"]:
        ratio = median(a / b for a, b in zip(rates["ours"], rates["ipvsadm"], strict=True))
        LINES.append(Line("  beside ipvsadm -R, in the same run", ratio, 3, "x", f"ipvsadm: {max(rates['ipvsadm']):,.0f}/s"))


def in_guest() -> str:
    """The IPVS lines, as the virtual machine printed them; the reason why there are none."""
    from tests.vm import machine

    try:
        with machine.shared_directory() as share:
            done = machine.run([sys.executable, "-m", "tests.mesh.bench_programming", "ipvs"], share, timeout_s=540)
            return done.output
    except (machine.Unavailable, machine.GuestFailed) as error:
        return f"no IPVS lines: {error}"


def measure(balancer: Balancer) -> None:
    if balancer == "nftables":
        kernel_alone()
    else:
        ipvs_objects()
    asyncio.run(whole_applies(balancer))
    asyncio.run(resyncs(balancer))
    memory(balancer)


def main() -> None:
    balancers: list[Balancer] = ["ipvs"] if "ipvs" in sys.argv else ["nftables"]
    has_ipvs = detect_balancer() == "ipvs"
    if has_ipvs and "ipvs" not in balancers:
        balancers.append("ipvs")
    for balancer in balancers:
        measure(balancer)
    shown = Table(title="Programming the kernel", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("", "measured", "target", "share", ""):
        shown.add_column(heading, justify="left" if not heading else "right")
    for line in LINES:
        shown.add_row(line.what, f"{line.measured:,.4g} {line.unit}", f"{line.target:,.6g} {line.unit}", f"{line.share:.2f}", line.remark)
    Console(width=150).print(shown)
    if not has_ipvs:
        print("\nIn the virtual machine, which interprets every instruction:\n" + in_guest())


if __name__ == "__main__":
    main()
