"""One run: load, a seed's faults, healing, convergence, judgement.

Edge.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from orchestrator.lab.lab import Lab, LabError, Node
from orchestrator.lab.probe import Answer, Log, Probe, dns_addresses, http_get
from tests.lab.asking import switch
from tests.lab.cli import Cli

from .checker import Violation, check
from .clients import IMAGE, Clients
from .converged import Convergence, client_netns
from .faults import Faults
from .history import Op, Term
from .leaders import terms_since
from .picture import Bar, Story
from .schedule import Fault, schedule

PORT, NETWORK, WEB, CLIENT = 8080, "front", "web", "client"
_PROBE_RATE, _HTTP_TIMEOUT_S, _DNS_TIMEOUT_S = 4.0, 10.0, 10.0
_LEADER_POLL_S = 0.3
# the store forgets what is 10,000 revisions old
_TERMS_EVERY_S = 60.0
_THREADS = 32
_BUGS = ("agent crashed", "bug in the API", "state=crashed", "store=etcd state=broken", "Check failed")


@dataclass(slots=True)
class Report:
    """calm_failures: requests and questions that failed while the network, the power and DNS were left alone. converged_s: None: never.
    bugs: what meshd's logs say it has survived; told, not judged."""

    violations: list[Violation]
    lacks: list[str]
    calm_failures: list[Answer]
    bugs: list[str]
    converged_s: float | None
    story: Story
    lines: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.violations or self.lacks or self.calm_failures)


class Run:
    """`play()` once, on a lab that is up; it stays up. While it plays, the public attributes show how far it is."""

    def __init__(
        self, lab: Lab, managers: int, seed: int, duration_s: float, *, converges_within_s: float, tell: Callable[[str], None]
    ) -> None:
        names = [node.name for node in lab.nodes]
        self._lab, self._tell = lab, tell
        self._managers, self._seed = names[:managers], seed
        self._converges_within_s = converges_within_s
        self.duration_s = duration_s
        self.faults = schedule(seed, duration_s, self._managers, names[managers:])
        self.clients = Clients(seed, {name: lab.node(name).layout.meshd_socket for name in self._managers})
        self.log = Log()
        self.leaders: list[tuple[float, str]] = []
        self.active: set[Fault] = set()
        self.skipped = 0
        self._bars: list[Bar] = []
        self._leader_kills: list[float] = []
        self._terms: list[Term] = []
        self._reading_terms = threading.Lock()
        self._probes: dict[str, list[Probe]] = {}
        self._netns: dict[str, str] = {}
        self._started = 0.0
        self._doing = Faults(lab, lambda: self.leader)
        self._convergence = Convergence(lab, self._managers, network=NETWORK, web=WEB, client=CLIENT, port=PORT)

    @property
    def leader(self) -> str:
        return self.leaders[-1][1] if self.leaders else ""

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started if self._started else 0.0

    async def play(self) -> Report:
        # a node that is started again takes a while, and the others' faults don't wait for it
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        vip = await asyncio.to_thread(self._furnish)
        # replicas run a moment before all nodes offer them
        if lacks := await self._until_nothing(self._convergence.lacks):
            raise LabError(f"the cluster was not well before anything was done to it: {'; '.join(lacks)}")
        self._started = time.monotonic()
        background = [asyncio.create_task(part) for part in (self._watch_leader(), self._keep_probes(vip), self._keep_terms())]
        load = asyncio.create_task(self.clients.run())
        try:
            await asyncio.gather(*(self._play(fault) for fault in self.faults), self._until(self.duration_s))
            self._raise_if_ended(load, *background)
            await asyncio.to_thread(self._doing.heal)
            healed_s = self.elapsed_s
            self._tell("healed; waiting for it to converge")
            await _cancelled(load)
            lacks = await self._until_nothing(self._convergence.lacks)
            converged_s = None if lacks else self.elapsed_s - healed_s
            lacks += await self._until_nothing(self._convergence.complaints)
            await self.clients.finish()
            await asyncio.to_thread(self._read_terms)
        finally:
            await _cancelled(load, *background)
            await asyncio.to_thread(self._stop_probes)
            await self.clients.close()
        return self._report(lacks, healed_s, converged_s)

    # ---- what is asked all the time -------------------------------------------------------------------------------------------------

    def _furnish(self) -> str:
        """A network, a service that answers on every node and has a task for each of them, a client everywhere; the service's VIP."""
        cli = Cli(self._lab.nodes[0])
        count = len(self._lab.nodes)
        cli.ok("network", "create", "-d", "overlay", NETWORK)
        common = ("service", "create", "-d", "--network", NETWORK)
        cli.ok(*common, "--name", WEB, "--replicas", str(count), "-p", f"{PORT}:80", IMAGE)
        cli.ok(*common, "--name", CLIENT, "--mode", "global", IMAGE, "idle")
        for name in (WEB, CLIENT):
            cli.wait_replicas(name, f"{count}/{count}", deadline_s=120)
        network = cli.ok("network", "inspect", "--format", "{{.ID}}", NETWORK)
        vips = cli.ok("service", "inspect", "--format", "{{range .Endpoint.VirtualIPs}}{{.NetworkID}} {{.Addr}}\n{{end}}", WEB)
        return next(line.split()[1].split("/")[0] for line in vips.splitlines() if line.startswith(network))

    async def _keep_probes(self, vip: str) -> None:
        """A container that was replaced is another namespace."""
        for node in self._lab.nodes:
            outside = switch(self._lab)
            self._probes[f"{node.name} port"] = [Probe(self.log, node.name, "port", outside, _PROBE_RATE, _asks_http(node.address, PORT))]
        while True:
            await asyncio.gather(*(asyncio.to_thread(self._probe_inside, node, vip) for node in self._lab.nodes))
            await asyncio.sleep(1.0)

    def _probe_inside(self, node: Node, vip: str) -> None:
        try:
            netns = client_netns(node, CLIENT)
        except LabError:
            # its Engine doesn't answer just now
            return
        if netns == self._netns.get(node.name):
            return
        self._stop_inside(node.name)
        self._netns[node.name] = netns
        self._probes[f"{node.name} inside"] = [
            Probe(self.log, node.name, "vip", netns, _PROBE_RATE, _asks_http(vip, 80)),
            Probe(self.log, node.name, "dns", netns, _PROBE_RATE, _asks_dns),
        ]

    def _stop_inside(self, node: str) -> None:
        for probe in self._probes.pop(f"{node} inside", ()):
            probe.stop()

    def _stop_probes(self) -> None:
        for probes in self._probes.values():
            for probe in probes:
                probe.stop()

    async def _watch_leader(self) -> None:
        while True:
            name = await self.clients.leader()
            if name and name != self.leader:
                self.leaders.append((self.elapsed_s, name))
            await asyncio.sleep(_LEADER_POLL_S)

    async def _keep_terms(self) -> None:
        while True:
            await asyncio.sleep(_TERMS_EVERY_S)
            try:
                await asyncio.to_thread(self._read_terms)
            except LabError as error:
                self._tell(f"the store's history can't be read just now: {str(error)[-200:]}")

    def _read_terms(self) -> None:
        # one after the other: a reading whose task was cancelled goes on in its thread
        with self._reading_terms:
            first = self._terms[-1].revision + 1 if self._terms else 1
            self._terms += terms_since(self._lab, self._managers, first)

    # ---- what goes wrong --------------------------------------------------------------------------------------------------------------

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self.elapsed_s))

    async def _play(self, fault: Fault) -> None:
        await self._until(fault.at_s)
        nodes = self._doing.nodes_of(fault)
        if fault.kind == "power":
            # who has no power asks nothing
            await asyncio.to_thread(self._stop_inside, nodes[0])
        started_s = self.elapsed_s
        try:
            await asyncio.to_thread(self._doing.begin, fault)
        except LabError as error:
            # what is not running can't be killed
            self.skipped += 1
            self._tell(f"skipped: {fault} ({error})")
            return
        self._tell(f"{fault}{'' if nodes == fault.nodes else f' ({nodes[0]})'}")
        if fault.kind == "kill" and fault.unit in ("meshd", "etcd") and nodes[0] == self.leader:
            self._leader_kills.append(started_s)
        self.active.add(fault)
        await asyncio.sleep(fault.for_s)
        if fault.for_s:
            await asyncio.to_thread(self._doing.end, fault)
        self.active.discard(fault)
        hit = nodes[:1] if fault.kind == "one_way" else nodes
        self._bars += [Bar(node, started_s, self.elapsed_s if fault.for_s else started_s, fault.kind, str(fault)) for node in hit]

    def _raise_if_ended(self, *tasks: asyncio.Task[None]) -> None:
        """Load that has stopped by a bug of ours proves nothing."""
        for task in tasks:
            if task.done():
                task.result()

    async def _until_nothing(self, lacks: Callable[[], list[str]]) -> list[str]:
        """What it lacks at the deadline; [] as soon as it lacks nothing."""
        end = time.monotonic() + self._converges_within_s
        told = ""
        while True:
            found = await asyncio.to_thread(lacks)
            if not found or time.monotonic() > end:
                return found
            if found[0] != told:
                told = found[0]
                self._tell(f"not yet: {told}")
            await asyncio.sleep(0.5)

    # ---- judgement --------------------------------------------------------------------------------------------------------------------

    def _report(self, lacks: list[str], healed_s: float, converged_s: float | None) -> Report:
        ops = self.clients.ops
        calm_until = self._started + self.duration_s / 2
        calm = [answer for answer in self.log.answers if answer.started < calm_until]
        calm_failures = [answer for answer in calm if not answer.ok]
        violations = check(ops, self._terms)
        writes = [op for op in ops if op.kind != "read"]
        acknowledged = sorted((op for op in writes if op.outcome == "ok"), key=lambda op: op.started)
        gaps = [gap for at_s in self._leader_kills if (gap := _next_write_s(acknowledged, self._started + at_s)) is not None]
        outcomes = Counter(op.outcome for op in writes)
        reads = [op for op in ops if op.kind == "read"]
        failures = [answer for answer in self.log.answers if not answer.ok]
        failed = Counter(answer.kind for answer in failures)
        taken = [term for term in self._terms if term.taken]
        story = Story(
            title=f"meshd, chaos with seed {self._seed}: {len(self._managers)} managers of {len(self._lab.nodes)} nodes",
            nodes=[node.name for node in self._lab.nodes],
            duration_s=self.elapsed_s,
            bars=self._bars,
            leaders=self.leaders,
            writes=[op.ended - self._started for op in acknowledged],
            failures=[(answer.started - self._started, answer.kind) for answer in failures],
            calm_until_s=self.duration_s / 2,
            healed_s=healed_s,
            converged_s=healed_s + converged_s if converged_s is not None else None,
        )
        lines = [
            f"{len(self.faults) - self.skipped} faults in {self.duration_s:.0f} s, {len(taken)} terms of leadership ({self.skipped} faults "
            "found nothing to hit)",
            f"{len(writes)} writes: {outcomes['ok']} acknowledged, {outcomes['refused']} refused, {outcomes['maybe']} without an answer; "
            f"{len(reads)} reads, {sum(op.fresh for op in reads)} of them fresh; {len(violations)} untrue",
            f"leader killed -> next write begun that was acknowledged: {_spread(gaps)}",
            f"requests and DNS questions: {len(self.log.answers)}, failed {dict(failed) or 0}; "
            f"{len(calm)} while network, power and DNS were left alone, failed {len(calm_failures)}",
            f"converged {converged_s:.1f} s after healing" if converged_s is not None else f"NOT converged: {'; '.join(lacks)}",
        ]
        bugs = self._bugs()
        lines.append(f"meshd speaks of {len(bugs)} bugs of its own in its logs")
        story.summary = lines
        return Report(violations, lacks, calm_failures, bugs, converged_s, story, lines)

    def _bugs(self) -> list[str]:
        """What meshd survived and calls a bug."""
        found = []
        for node in self._lab.nodes:
            for line in (node.layout.log_dir / "meshd.log").read_text(errors="replace").splitlines():
                if any(words in line for words in _BUGS):
                    found.append(f"{node.name}: {line}")
        return found


def _asks_http(address: str, port: int) -> Callable[[], tuple[str, ...]]:
    return lambda: http_get(address, port, _HTTP_TIMEOUT_S)


def _asks_dns() -> tuple[str, ...]:
    """ValueError: it has no address."""
    found = dns_addresses(f"tasks.{WEB}", timeout_s=_DNS_TIMEOUT_S)
    if not found:
        raise ValueError("no such name")
    return found


def _next_write_s(acknowledged: list[Op], killed: float) -> float | None:
    return next((op.ended - killed for op in acknowledged if op.started >= killed), None)


def _spread(values: list[float]) -> str:
    if not values:
        return "no leader was killed"
    return f"{min(values):.2f} to {max(values):.2f} s, median {statistics.median(values):.2f} s ({len(values)} times)"


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
