"""What peers are known for, measured on the demo's cluster: create, fifty at once, kill, rolling update, memory.

Edge. Numbers of one machine at one moment: quote medians and say what else ran.
"""

from __future__ import annotations

import statistics
import time

from orchestrator.lab.demo import V1, V2, WORKERS, Demo, closing
from orchestrator.lab.lab import Node, wait_until
from orchestrator.lab.probe import Log, Probe, dns_addresses, http_get, in_network

# the project's own targets; Docker Swarm on the same kind of machine took 16 s, 40 s and 0.7 to 2.3 s
FIFTY_S, ROLLING_S, REPLACED_S = 9.0, 12.0, 0.7


def figures(demo: Demo) -> list[tuple[str, str, str]]:
    """(what, measured, target and whether it is met): what the peers' figures are known for. Needs the story's network and image."""
    results: list[tuple[str, str, str]] = []
    times = []
    for attempt in range(5):
        started = time.monotonic()
        name = f"one{attempt}"
        demo.docker("service", "create", "-d", "--name", name, "--network", "demo", V1)
        demo.wait_running(name, 1)
        times.append(time.monotonic() - started)
        demo.docker("service", "rm", name)
    results.append(("create 1 service on an overlay, docker CLI included -> running (median of 5)", f"{sorted(times)[2]:.2f} s", ""))
    started = time.monotonic()
    demo.docker("service", "create", "-d", "--name", "fifty", "--replicas", "50", "--network", "demo", V1)
    demo.wait_running("fifty", 50, 180)
    took = time.monotonic() - started
    results.append(("50 replicas on 3 nodes -> all running", f"{took:.1f} s", _verdict(took, FIFTY_S)))
    started = time.monotonic()
    demo.docker("service", "rm", "fifty")
    wait_until(lambda: demo.containers("fifty") == 0, 120, "the 50 containers are gone")
    results.append(("... removed, containers gone", f"{time.monotonic() - started:.1f} s", ""))
    demo.docker("service", "create", "-d", "--name", "ten", "--replicas", "10", "--network", "demo", V1)
    demo.wait_running("ten", 10)
    started = time.monotonic()
    demo.docker("service", "update", "-d", "--no-resolve-image", "--image", V2, "--update-parallelism", "1", "ten")
    demo.wait_running("ten", 10, 180, version="v2")
    took = time.monotonic() - started
    results.append(("rolling update of 10, parallelism 1", f"{took:.1f} s", _verdict(took, ROLLING_S)))
    demo.docker("service", "rm", "ten")
    results.extend(_kill_figures(demo))
    for unit in ("meshd", "etcd", "dnsd"):
        memory = [f"{node.report().rss_bytes[unit] / 2**20:.0f} MB" for node in demo.lab.nodes if unit in node.report().rss_bytes]
        results.append((f"resident memory of {unit}, by node", ", ".join(memory), ""))
    return results


def _verdict(measured_s: float, target_s: float) -> str:
    return f"<= {target_s:g} s: {'met' if measured_s <= target_s else 'missed'}"


def _kill_figures(demo: Demo, rounds: int = 5) -> list[tuple[str, str, str]]:
    """SIGKILL of a container, asked for by quicker probes than the story's, again and again."""
    demo.docker("service", "create", "-d", "--name", "victim", "--replicas", "3", "--restart-delay", "0s", "--network", "demo", V1)
    demo.wait_running("victim", 3)
    vip = in_network(demo.client_netns(demo.lab.nodes[0]), lambda: dns_addresses("victim"))[0]
    log, probes = Log(), []
    for node in demo.lab.nodes:
        inside = demo.client_netns(node)
        probes.append(Probe(log, node.name, "dns", inside, 100, lambda: dns_addresses("tasks.victim")))
        probes += [Probe(log, node.name, "vip", inside, 20, lambda: http_get(vip, 80, 1.0)) for _ in range(WORKERS)]
    try:
        times = [_kill_once(demo, log) for _ in range(rounds)]
    finally:
        for probe in probes:
            probe.stop()
    demo.docker("service", "rm", "victim")
    names = (
        ("container killed -> gone from the DNS of all nodes", None),
        ("container killed -> last request that failed was begun", None),
        ("container killed -> replacement runs (restart delay 0)", REPLACED_S),
    )
    results = []
    for (name, target_s), column in zip(names, zip(*times, strict=True), strict=True):
        median = statistics.median(column)
        verdict = _verdict(median, target_s) if target_s is not None else ""
        results.append((f"{name} (median of {rounds}, slowest node)", f"{1000 * median:.0f} ms", verdict))
    return results


def _kill_once(demo: Demo, log: Log) -> tuple[float, float, float]:
    """Seconds until: gone from every DNS; the last failed request was begun; the replacement ran."""
    before = demo.running("victim")
    victim = before[min(before)]
    with closing(demo.lab.node(victim.node).engine()) as engine:
        start = time.monotonic()
        engine.containers.get(victim.container).kill()

    def gone(node: Node) -> list[float]:
        answers = [a for a in log.since(start, ("dns",)) if a.node == node.name and a.ok and victim.address not in a.by]
        return [a.ended - start for a in answers]

    wait_until(lambda: all(gone(node) for node in demo.lab.nodes), 10, f"{victim.address} is gone from every DNS", every_s=0.01)
    wait_until(lambda: len(demo.running("victim")) == 3 and victim != demo.running("victim").get(min(before)), 20, "it is replaced")
    new = next(task for id, task in demo.running("victim").items() if id not in before)
    time.sleep(0.5)
    failed = max((a.started - start for a in log.since(start, ("vip",)) if not a.ok), default=0.0)
    return max(min(gone(node)) for node in demo.lab.nodes), failed, new.ready - start
