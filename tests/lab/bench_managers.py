"""Managers that are lost and restarted, in a real cluster under load: `python -m tests.lab.bench_managers`. Prints; proves nothing.

Three managers and a worker. How long agents are without a manager is read from their logs: from the kill to the next session.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from orchestrator.lab.lab import Lab, Node, wait_until
from orchestrator.lab.probe import Log, Probe, dns_addresses, http_get
from tests.lab.asking import netns_of, resolves, switch
from tests.lab.cli import Cli
from tests.lab.members import leader_seen_by, managers
from tests.lab.temporary import temporary_lab

ROUNDS = 5
_OPENED = re.compile(r"^(\S+ \S+) INFO \S+ session opened manager=(\S+) ")


def sessions(node: Node) -> list[tuple[float, str]]:
    """When (Unix time) the node's agent had a session, and through which manager, in order."""
    lines = (node.layout.log_dir / "meshd.log").read_text().splitlines()
    found = (match for line in lines if (match := _OPENED.match(line)))
    return [(datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp(), match[2]) for match in found]


def ready(lab: Lab, asked: Node) -> bool:
    """All managers are there, and every node is ready, as `asked` shows it."""
    done = Cli(asked).run("node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}")
    lines = [line.strip() for line in done.stdout.splitlines()]
    return done.returncode == 0 and sorted(lines) == ["Ready", "Ready Leader", "Ready Reachable", "Ready Reachable"]


def settled(lab: Lab) -> str:
    """The leader's name, once everybody agrees and every agent has had its session for a while."""
    wait_until(lambda: all(ready(lab, node) for node in lab.nodes[:3]), 90, "three managers, four nodes")
    wait_until(lambda: all(sessions(node)[-1][0] < time.time() - 2 for node in lab.nodes), 60, "sessions last")
    return leader_seen_by(lab.nodes[0])


def attached(lab: Lab, manager: Node) -> list[Node]:
    """The other nodes whose agents have their session through it."""
    return [node for node in lab.nodes if node.name != manager.name and sessions(node)[-1][1] == f"{manager.address}:2377"]


def killed(lab: Lab, victim: Node, *, everybody: bool) -> list[float]:
    """SIGKILL of its meshd; how long the other nodes' agents were away. everybody: also those attached elsewhere begin again."""
    concerned = [node for node in lab.nodes if node.name != victim.name] if everybody else attached(lab, victim)
    killed_s = time.time()
    victim.kill("meshd")
    wait_until(lambda: all(sessions(node)[-1][0] > killed_s for node in concerned), 60, "agents are back")
    return [min(at_s for at_s, _ in sessions(node) if at_s > killed_s) - killed_s for node in concerned]


@contextmanager
def load(lab: Lab) -> Iterator[list[Log]]:
    """Through a published port, through a VIP and for a name, from inside the network."""
    inside = netns_of(lab.nodes[3], "client")
    (vip,) = resolves(inside, "web")

    def named() -> tuple[str, ...]:
        if (found := dns_addresses("web", timeout_s=3.0)) != (vip,):
            raise ValueError(f"web is {found}")
        return found

    logs = [Log(), Log(), Log()]
    probes = [
        Probe(logs[0], "x", "port", switch(lab), 50, lambda: http_get(lab.nodes[3].address, 8080)),
        Probe(logs[1], "x", "port", inside, 50, lambda: http_get(vip, 80)),
        Probe(logs[2], "x", "port", inside, 50, named),
    ]
    try:
        yield logs
    finally:
        for probe in probes:
            probe.stop()


def told(what: str, logs: list[Log]) -> None:
    counts = ", ".join(
        f"{log.count(0)} {name} ({len(log.failed(0))} failed)" for log, name in zip(logs, ("port", "VIP", "DNS"), strict=True)
    )
    print(f"{what}: {counts}", flush=True)
    for log in logs:
        for answer in log.failed(0)[:3]:
            print(f"  {answer.error}")


def restarted(nodes: list[Node], number: signal.Signals) -> None:
    pids = {node.name: node.pid_of("meshd") for node in nodes}
    for pid in pids.values():
        os.kill(pid, number)
    for node in nodes:
        wait_until(lambda node=node: node.pid_of("meshd") not in (0, pids[node.name]), 60, f"meshd of {node.name} is back")
        node.wait_ready(60)


def measure(lab: Lab) -> None:
    cli = Cli(lab.nodes[0])
    cli.ok("network", "create", "-d", "overlay", "front")
    cli.create("web", "--replicas", "4", "--network", "front", "-p", "8080:80", replicas="4/4")
    cli.create("client", "--mode", "global", "--network", "front", replicas="4/4", command=("idle",))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with load(lab) as logs:
        for what, leads in (("a manager that doesn't lead", False), ("the leader", True)):
            away: list[float] = []
            for _ in range(ROUNDS):
                leader = settled(lab)
                candidates = [node for node in lab.nodes[:3] if (node.name == leader) is leads]
                victim = max(candidates, key=lambda node: len(attached(lab, node)))
                away += killed(lab, victim, everybody=leads)
            if away:
                print(
                    f"{what} killed, {len(away)} agents: back after {statistics.median(away):.2f} s, at most {max(away):.2f} s", flush=True
                )
    told("meanwhile", logs)
    settled(lab)
    with load(lab) as logs:
        for node in lab.nodes:
            restarted([node], signal.SIGTERM)
            wait_until(lambda: all(ready(lab, one) for one in lab.nodes[:3]), 90, "the cluster is whole")
    told("every meshd restarted, one by one", logs)
    with load(lab) as logs:
        restarted(lab.nodes, signal.SIGKILL)
        wait_until(lambda: all(ready(lab, one) for one in lab.nodes[:3]), 90, "the cluster is whole")
    told("every meshd killed at once", logs)
    print("managers:", managers(lab.nodes[0]))


if __name__ == "__main__":
    with temporary_lab("r") as made:
        made.up(4, managers=3)
        measure(made)
