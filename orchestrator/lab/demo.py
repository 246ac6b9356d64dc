"""`meshd demo`: the main job, played on a lab of three nodes with the stock docker CLI, and measured while it runs.

Edge. Probes ask from outside (every node's published port), and from a client task on every node (the VIP, DNS) all the time;
after each step the demo says how long every node took to follow and how many requests failed.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from docker import DockerClient
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.lab.image import DEMO_IMAGE, VERSIONS
from orchestrator.lab.lab import Lab, LabError, Node, wait_until
from orchestrator.lab.probe import Log, Probe, dns_addresses, http_get, in_network

PUBLISHED = 8080
V1, V2 = (f"{DEMO_IMAGE}:{version}" for version in VERSIONS)
# requests a second: through each node's published port, through the VIP from each node, DNS questions on each node
PORT_RATE, VIP_RATE, DNS_RATE = 30.0, 20.0, 40.0
# a dead backend makes a request hang until its timeout; several workers keep the cadence meanwhile
WORKERS = 3


@dataclass(slots=True)
class Step:
    """One line of the summary. balancer_ms / dns_ms: node -> time to follow, counted from `since`; empty = nothing to follow."""

    title: str
    brief: str
    since: str = ""
    requests: int = 0
    failed: int = 0
    balancer_ms: dict[str, float] = field(default_factory=dict)
    dns_ms: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class TaskView:
    """A running task. ready: when its node said that it runs, on time.monotonic()'s scale."""

    node: str
    address: str
    container: str
    ready: float


class Demo:
    """The story. Every step leaves a `Step` in `steps`; LabError if what must be seen isn't seen in time."""

    def __init__(self, lab: Lab, console: Console) -> None:
        self.lab, self._console = lab, console
        self.steps: list[Step] = []
        self.log = Log()
        self._probes: list[Probe] = []
        self._client: DockerClient | None = None
        self._vip: str | None = None

    # ---- small tools ---------------------------------------------------------------------------------------------------------

    @property
    def api(self) -> DockerClient:
        if self._client is None:
            self._client = self.lab.nodes[0].docker()
        return self._client

    def docker(self, *arguments: str) -> str:
        """Run the stock CLI against the first node's meshd, shown as a user would type it."""
        self._console.print(f"  [cyan]$ docker {' '.join(arguments)}[/]", highlight=False)
        command = ["docker", "-H", f"unix://{self.lab.nodes[0].layout.meshd_socket}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        if done.returncode != 0:
            raise LabError(f"`docker {' '.join(arguments)}` failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def running(self, service: str) -> dict[str, TaskView]:
        """The tasks that run and should, by id."""
        names = {node["ID"]: node["Description"]["Hostname"] for node in self.api.api.nodes()}
        found = {}
        for task in self.api.api.tasks(filters={"service": service, "desired-state": "running"}):
            if task["Status"]["State"] == "running":
                address = next(
                    (
                        a["Addresses"][0].split("/")[0]
                        for a in task.get("NetworksAttachments") or ()
                        if a["Network"]["Spec"]["Name"] == "demo"
                    ),
                    "",
                )
                container = task["Status"]["ContainerStatus"]["ContainerID"]
                since = datetime.fromisoformat(task["Status"]["Timestamp"]).timestamp()
                found[task["ID"]] = TaskView(names[task["NodeID"]], address, container, time.monotonic() - (time.time() - since))
        return found

    def wait_running(self, service: str, count: int, deadline_s: float = 60.0, version: str | None = None) -> dict[str, TaskView]:
        def enough() -> bool:
            if version is not None:
                image = f"{DEMO_IMAGE}:{version}"
                tasks = self.api.api.tasks(filters={"service": service, "desired-state": "running"})
                fresh = [t for t in tasks if t["Spec"]["ContainerSpec"]["Image"] == image and t["Status"]["State"] == "running"]
                return len(fresh) == count == len(tasks)
            return len(self.running(service)) == count

        wait_until(enough, deadline_s, f"{count} tasks of {service} run", every_s=0.02)
        return self.running(service)

    def hostnames(self, tasks: dict[str, TaskView]) -> set[str]:
        """What the tasks' servers call themselves (their containers' hostnames)."""
        names = set()
        for task in tasks.values():
            with closing(self.lab.node(task.node).engine()) as engine:
                names.add(engine.containers.get(task.container).attrs["Config"]["Hostname"])
        return names

    def client_netns(self, node: Node) -> str:
        with closing(node.engine()) as engine:
            found = engine.containers.list(filters={"label": "com.docker.swarm.service.name=client"})
            return f"/proc/{found[0].attrs['State']['Pid']}/ns/net"

    # ---- narration -------------------------------------------------------------------------------------------------------------

    def _table(self, start: float) -> RenderableType:
        table = Table("node", "through its port 8080", "through the VIP", "tasks.web in DNS", box=None, padding=(0, 2))
        recent = max(start, time.monotonic() - 1.0)
        for node in self.lab.nodes:
            cells = [node.name]
            for kind in ("port", "vip"):
                answers = [a for a in self.log.since(start, (kind,)) if a.node == node.name]
                failed = sum(not a.ok for a in answers)
                by = {a.by[0] for a in answers if a.ok and a.started >= recent}
                cells.append(
                    f"{len(answers):>4} requests, {'[red]' if failed else ''}{failed} failed{'[/]' if failed else ''}, by {len(by)} tasks"
                )
            dns = [a for a in self.log.since(recent, ("dns",)) if a.node == node.name]
            cells.append(f"{len(dns[-1].by)} addresses" if dns else "-")
            table.add_row(*cells)
        return Group(Text(), table)

    @contextlib.contextmanager
    def step(self, title: str, brief: str) -> Iterator[Step]:
        """One step of the story: shows a live table while it runs, then its result; counts the requests that failed.

        brief: its name in the summary.
        """
        number = len(self.steps) + 1
        self._console.print(f"\n[bold]{number}. {title}[/]")
        start = time.monotonic()
        step = Step(title, brief)
        if self._probes:
            with Live(get_renderable=lambda: self._table(start), console=self._console, refresh_per_second=4, transient=True):
                yield step
                # what was begun may still fail: let it end before the step is counted
                time.sleep(0.3)
        else:
            yield step
        step.requests, step.failed = self.log.count(start), len(self.log.failed(start))
        self.steps.append(step)
        for what, times in (("balancer", step.balancer_ms), ("DNS", step.dns_ms)):
            if times:
                shown = ", ".join(f"{node} {ms:.0f} ms" for node, ms in times.items())
                self._console.print(f"  {what} followed {step.since}: {shown}")
        if self._probes:
            color = "red" if step.failed else "green"
            self._console.print(f"  requests meanwhile: {step.requests}, failed: [{color}]{step.failed}[/]")
            for answer in self.log.failed(start)[:3]:
                self._console.print(
                    f"    [dim]{answer.node} {answer.kind} after {(answer.started - start) * 1000:.0f} ms: {answer.error}[/]"
                )
        if step.note:
            self._console.print(f"  {step.note}")

    def follow(self, step: Step, start: float, since: str, tasks: dict[str, TaskView], deadline_s: float = 20.0) -> None:
        """Wait until every node's balancer has answered through all tasks and its DNS names exactly them; note the times from `start`."""
        hosts, addresses = self.hostnames(tasks), {task.address for task in tasks.values()}
        step.since = f"(since {since})"

        def done() -> bool:
            return all(
                self.log.all_seen(node.name, kind, start, hosts) is not None for node in self.lab.nodes for kind in ("port", "vip")
            ) and all(self.log.dns_is(node.name, "dns", start, addresses) is not None for node in self.lab.nodes)

        wait_until(done, deadline_s, f"every node balances over {len(hosts)} tasks and resolves {sorted(addresses)}", every_s=0.02)
        for node in self.lab.nodes:
            seen = [self.log.all_seen(node.name, kind, start, hosts) or 0.0 for kind in ("port", "vip")]
            step.balancer_ms[node.name] = max(seen) * 1000
            step.dns_ms[node.name] = (self.log.dns_is(node.name, "dns", start, addresses) or 0.0) * 1000

    # ---- the story -------------------------------------------------------------------------------------------------------------

    def start_probes(self) -> None:
        switch = f"/run/netns/{self.lab.layout.switch}"
        for node in self.lab.nodes:
            inside = self.client_netns(node)

            def through_port(address: str = node.address) -> tuple[str, ...]:
                return http_get(address, PUBLISHED)

            for _ in range(WORKERS):
                self._probes.append(Probe(self.log, node.name, "port", switch, PORT_RATE / WORKERS, through_port))
                self._probes.append(Probe(self.log, node.name, "vip", inside, VIP_RATE / WORKERS, lambda: http_get(self.vip, 80)))
            self._probes.append(Probe(self.log, node.name, "dns", inside, DNS_RATE, lambda: dns_addresses("tasks.web")))

    def stop_probes(self) -> None:
        for probe in self._probes:
            probe.stop()
        self._probes.clear()

    @property
    def vip(self) -> str:
        if self._vip is None:
            service = self.api.api.inspect_service("web")
            network = self.api.api.inspect_network("demo")["Id"]
            self._vip = next(v["Addr"].split("/")[0] for v in service["Endpoint"]["VirtualIPs"] if v["NetworkID"] == network)
        return self._vip

    def play(self) -> None:
        with self.step("an overlay network and a service of 3 tasks, published on every node", "service web, 3 tasks") as step:
            self.docker("network", "create", "-d", "overlay", "demo")
            started = time.monotonic()
            self.docker(
                "service",
                "create",
                "-d",
                "--name",
                "web",
                "--replicas",
                "3",
                "--network",
                "demo",
                "-p",
                f"{PUBLISHED}:80",
                V1,
            )
            tasks = self.wait_running("web", 3)
            placed = ", ".join(sorted(task.node for task in tasks.values()))
            step.note = f"3 tasks run after {(time.monotonic() - started) * 1000:.0f} ms, on {placed}"
        with self.step(
            "a client task on every node; from each, `web` is the VIP and `tasks.web` the tasks", "names, from every node"
        ) as step:
            self.docker("service", "create", "-d", "--name", "client", "--mode", "global", "--network", "demo", V1, "idle")
            self.wait_running("client", len(self.lab.nodes))
            self._check_names(step)
        self.start_probes()
        with self.step(
            "every node's 8080, and the VIP from every node, reach all three tasks, local and remote", "port and VIP, every node"
        ) as step:
            tasks = self.running("web")
            self.follow(step, time.monotonic(), "the first request", tasks)
        with self.step("a second service with DNS round robin instead of a VIP: rotated addresses", "dnsrr service") as step:
            self._dnsrr(step)
        with self.step("scale web=5", "scale web=5") as step:
            start = time.monotonic()
            self.docker("service", "scale", "-d", "web=5")
            tasks = self.wait_running("web", 5)
            ready = max(task.ready for task in tasks.values())
            self.follow(step, ready, "the last task being ready", tasks)
            step.note = f"5 tasks run after {(ready - start) * 1000:.0f} ms"
        with self.step("scale web=3: tasks leave without a failed request", "scale web=3") as step:
            self._scale_in(step)
        with self.step("one container is killed by hand: gone everywhere, then replaced", "a container is killed") as step:
            self._kill_container(step)
        with self.step(f"meshd on {self.lab.nodes[1].name} is killed (SIGKILL) while requests flow", "meshd is killed") as step:
            self._kill_meshd(step)
        with self.step("a rolling update to v2", "rolling update") as step:
            start = time.monotonic()
            self.docker("service", "update", "-d", "--image", V2, "--no-resolve-image", "web")
            tasks = self.wait_running("web", 3, 90, version="v2")
            ready = max(task.ready for task in tasks.values())
            self.follow(step, ready, "the last new task being ready", tasks)
            wait_until(lambda: self.containers("web") == 3, 30, "the old containers are stopped")
            step.note = f"all tasks run v2 after {ready - start:.1f} s"
        self.stop_probes()

    def _scale_in(self, step: Step) -> None:
        before = self.running("web")
        start = time.monotonic()
        self.docker("service", "scale", "-d", "web=3")
        wait_until(lambda: len(self.running("web")) == 3, 30, "3 tasks are left", every_s=0.02)
        tasks = self.running("web")
        leaving = self.hostnames({id: task for id, task in before.items() if id not in tasks})
        self.follow(step, start, "the command", tasks)
        wait_until(lambda: self.containers("web") == 3, 30, "the containers of the others are stopped")
        step.note = f"the last container stopped after {(time.monotonic() - start) * 1000:.0f} ms"
        for node in self.lab.nodes:
            step.balancer_ms[node.name] = self.log.last_answer_by(node.name, leaving, start) * 1000

    def _addresses(self, service: str) -> set[str]:
        return {task.address for task in self.running(service).values()}

    def containers(self, service: str) -> int:
        count = 0
        for node in self.lab.nodes:
            with closing(node.engine()) as engine:
                count += len(engine.containers.list(filters={"label": f"com.docker.swarm.service.name={service}"}))
        return count

    def _check_names(self, step: Step) -> None:
        addresses = self._addresses("web")
        for node in self.lab.nodes:
            inside = self.client_netns(node)

            def right(inside: str = inside) -> bool:
                with contextlib.suppress(OSError, ValueError):
                    one, every = in_network(inside, lambda: dns_addresses("web")), in_network(inside, lambda: dns_addresses("tasks.web"))
                    return one == (self.vip,) and set(every) == addresses
                return False

            wait_until(right, 10, f"on {node.name} `web` resolves to {self.vip} and `tasks.web` to {sorted(addresses)}")
        step.note = f"web = {self.vip}; tasks.web = {', '.join(sorted(addresses))}; the same on every node"

    def _dnsrr(self, step: Step) -> None:
        self.docker(
            "service",
            "create",
            "-d",
            "--name",
            "rr",
            "--replicas",
            "3",
            "--endpoint-mode",
            "dnsrr",
            "--network",
            "demo",
            V1,
        )
        self.wait_running("rr", 3)
        addresses = self._addresses("rr")
        firsts: dict[str, set[str]] = {}
        for node in self.lab.nodes:
            inside = self.client_netns(node)

            def resolves(inside: str = inside) -> bool:
                with contextlib.suppress(OSError, ValueError):
                    return set(in_network(inside, lambda: dns_addresses("rr"))) == addresses
                return False

            wait_until(resolves, 10, f"on {node.name} `rr` resolves to {sorted(addresses)}")
            firsts[node.name] = {in_network(inside, lambda: dns_addresses("rr"))[0] for _ in range(12)}
            if firsts[node.name] != addresses:
                raise LabError(f"on {node.name} the answers for `rr` don't rotate: only {sorted(firsts[node.name])} came first")
        step.note = f"rr = {', '.join(sorted(addresses))}; each of them comes first in turn, on every node"

    def _kill_container(self, step: Step) -> None:
        before = self.running("web")
        victim = before[min(before)]
        with closing(self.lab.node(victim.node).engine()) as engine:
            container = engine.containers.get(victim.container)
            self._console.print(f"  [cyan]$ docker kill {container.short_id}[/]   (on {victim.node}, past meshd)")
            start = time.monotonic()
            container.kill()

        def without(node: Node) -> list[float]:
            answers = [a for a in self.log.since(start, ("dns",)) if a.node == node.name and a.ok]
            return [a.ended - start for a in answers if victim.address not in a.by]

        wait_until(lambda: all(without(node) for node in self.lab.nodes), 10, f"{victim.address} is gone from every DNS", every_s=0.01)
        tasks = self.wait_running("web", 3)
        new = next(task for id, task in tasks.items() if id not in before)
        self.follow(step, new.ready, "its replacement being ready", tasks)
        for node in self.lab.nodes:
            step.dns_ms[node.name] = min(without(node)) * 1000
            step.balancer_ms[node.name] = 1000 * max(self.log.last_failure(node.name, kind, start) for kind in ("port", "vip"))
        step.since = "(since the kill; balancer: when the last request that failed was begun)"
        step.note = f"replaced by {new.address} after {new.ready - start:.1f} s (the restart delay is 5 s)"

    def _kill_meshd(self, step: Step) -> None:
        node = self.lab.nodes[1]
        node.kill("meshd")
        start = time.monotonic()
        wait_until(lambda: bool(node.pid_of("meshd")), 15, f"meshd on {node.name} is started again")
        node.wait_ready(30)
        wait_until(lambda: self._node_state(node.name) == "ready", 30, f"{node.name} is ready again")
        step.note = (
            f"meshd is back, has adopted its tasks and is ready after {time.monotonic() - start:.1f} s; dnsd and containers never stopped"
        )

    def _node_state(self, name: str) -> str:
        return next(str(n["Status"]["State"]) for n in self.api.api.nodes() if n["Description"]["Hostname"] == name)

    def summary(self) -> Table:
        table = Table(title="what happened (times: the slowest of the nodes)")
        for heading in ("step", "balancers follow", "DNS follows", "requests", "failed", "remark"):
            table.add_column(heading, justify="left" if heading in ("step", "remark") else "right")
        for step in self.steps:
            slowest = [f"{max(times.values()):.0f} ms" if times else "-" for times in (step.balancer_ms, step.dns_ms)]
            failed = f"[red]{step.failed}[/]" if step.failed else "0"
            table.add_row(step.brief, *slowest, str(step.requests or "-"), failed if step.requests else "-", step.note)
        return table


@contextlib.contextmanager
def closing(client: DockerClient) -> Iterator[DockerClient]:
    try:
        yield client
    finally:
        client.close()
