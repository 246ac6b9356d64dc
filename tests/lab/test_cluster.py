"""A whole cluster, driven as a user drives it: the stock docker CLI against the nodes' sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from dnsd.model import Explanation
from mesh import unable_to_encrypt
from orchestrator.diagnose.finding import is_well
from orchestrator.diagnose.report import TraceReport
from orchestrator.lab.lab import Lab, Node, run, wait_until
from orchestrator.lab.probe import Log, Probe, dns_addresses, http_get, in_network
from tests.lab.asking import netns_of, resolves, switch
from tests.lab.cli import IMAGE, Cli, examined, task_containers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def answerers(where: str, address: str, port: int, expected: int, times: int = 90) -> set[str]:
    """Hostnames that answered requests made inside the namespace, until there are `expected` of them or `times` were made.

    The balancer draws: of three backends one is missed by 12 requests in 2 % of the runs, by 90 never (3e-16).
    """
    found: set[str] = set()
    for _ in range(times):
        with contextlib.suppress(OSError, ValueError):
            found.add(in_network(where, lambda: http_get(address, port, 1.0))[0])
        if len(found) >= expected:
            break
    return found


@contextlib.contextmanager
def load(log: Log, netns: str, target: Callable[[], tuple[str, ...]], rate: float = 60) -> Iterator[None]:
    probes = [Probe(log, "x", "port", netns, rate / 3, target) for _ in range(3)]
    try:
        yield
    finally:
        for probe in probes:
            probe.stop()


@contextlib.contextmanager
def followed_logs(cli: Cli, service: str) -> Iterator[list[str]]:
    """The lines that `docker service logs -f` has printed so far."""
    seen: list[str] = []
    follower = subprocess.Popen(cli.command("service", "logs", "-f", service), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert follower.stdout is not None
    reader = threading.Thread(target=seen.extend, args=(follower.stdout,), daemon=True)
    reader.start()
    try:
        yield seen
    finally:
        follower.kill()
        follower.wait()
        reader.join(10)


def test_nodes_and_swarm(lab: Lab, cli: Cli) -> None:
    names = cli.ok("node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}}").splitlines()
    assert sorted(line.strip() for line in names) == ["node-1 Ready Active Leader", "node-2 Ready Active", "node-3 Ready Active"]
    assert cli.ok("node", "inspect", "self", "--format", "{{.Description.Hostname}}") == "node-1"
    info = cli.ok("info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}} {{.Swarm.Nodes}} {{.Swarm.Managers}}")
    assert info == "active true 3 1"
    assert "Server" in cli.ok("version")
    assert cli.ok("swarm", "join-token", "-q", "worker").startswith("SWMTKN-1-")
    worker = Cli(lab.nodes[1])
    assert "Worker nodes can't be used to view or modify cluster state" in worker.fails("node", "ls")
    assert worker.ok("info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}") == "active false"


def test_a_published_service_is_reached_through_every_node_and_by_its_vip(lab: Lab, cli: Cli) -> None:
    cli.ok("network", "create", "-d", "overlay", "front")
    created = cli.ok("service", "create", "--name", "web", "--replicas", "3", "--network", "front", "-p", "8080:80", IMAGE)
    assert "verify: Service" in created or "converged" in created
    cli.create("client", "--mode", "global", "--network", "front", command=("idle",))
    for node in lab.nodes:
        assert len(answerers(switch(lab), node.address, 8080, 3)) == 3, node.name
        inside = netns_of(node, "client")
        vip = resolves(inside, "web")
        assert len(vip) == 1
        assert len(resolves(inside, "tasks.web")) == 3
        assert vip.isdisjoint(resolves(inside, "tasks.web"))
        assert len(answerers(inside, vip.pop(), 80, 3)) == 3, node.name
        assert len(answerers(f"/proc/{node.init_pid}/ns/net", "127.0.0.1", 8080, 3)) == 3, "from the node itself"
    assert cli.ok("service", "inspect", "web", "--format", "{{range .Endpoint.Ports}}{{.PublishedPort}}{{end}}") == "8080"
    logs = cli.ok("service", "logs", "--raw", "web")
    assert logs == ""


def traced(node: Node, *arguments: str) -> TraceReport:
    command = [sys.executable, "-m", "orchestrator.cli", "trace", *arguments, "--json", "--socket", str(node.layout.meshd_socket)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    report = msgspec.json.decode(done.stdout, type=TraceReport)
    assert (done.returncode == 0) == report.good
    return report


def test_trace_follows_a_packet_there_and_back_and_says_where_it_is_lost(lab: Lab, cli: Cli) -> None:
    cli.ok("network", "create", "-d", "overlay", "front")
    cli.create("web", "--mode", "global", "--network", "front", "-p", "8086:80")
    vip = traced(lab.nodes[0], "web", "--from", "node-1", "--count", "4")
    assert vip.good, vip
    assert (vip.kind, vip.nodes[vip.client_node], len(vip.expected)) == ("VIP", "node-1", 3)
    for path in vip.paths:
        assert path.outcome == "answered"
        assert [path.there[0].sighting.place, path.back[-1].sighting.place] == [vip.client_place] * 2
        assert path.backend_node == path.there[-1].node
        tunnelled = {hop.node for hop in path.there if hop.sighting.packet.capsule}
        assert tunnelled == (set() if path.backend_node == vip.client_node else {vip.client_node, path.backend_node})
    remote = next(route for route in vip.expected if vip.nodes[route.node] == "node-2")
    firewall = lab.nodes[1]
    firewall.exec(
        "nft", "add table inet fw; add chain inet fw in { type filter hook input priority 0; }; add rule inet fw in udp dport 4789 drop"
    )
    try:
        lost = traced(lab.nodes[0], remote.address, "--from", "node-1", "--count", "1")
    finally:
        firewall.exec("nft", "delete", "table", "inet", "fw")
    assert (lost.good, lost.paths[0].outcome) == (False, "lost")
    assert "arrived on node-2's eth0 in its VXLAN capsule and never came out of the tunnel" in lost.paths[0].verdict
    port = traced(lab.nodes[0], "node-2:8086", "--from", "node-1", "--count", "1")
    assert (port.kind, port.nodes[port.entry], port.paths[0].outcome) == ("published port", "node-2", "answered"), port


def test_doctor_finds_nothing_on_a_healthy_node_and_what_the_network_between_nodes_lacks(lab: Lab) -> None:
    # a worker, that knows its peers from its assignment alone
    healthy = examined(lab.nodes[1])
    assert is_well(healthy), healthy
    peers = {other.name: f"full-size packets reach {other.name} ({other.address}) and come back" for other in (lab.nodes[0], lab.nodes[2])}
    assert [f.what for f in healthy if f.check == "tunnels"] == list(peers.values())
    # to node-3 less than its links promise; the tunnel to node-1 is closed
    first, _, third = lab.nodes
    run("ip", "-n", lab.layout.switch, "link", "set", third.layout.port, "mtu", "1000")
    first.exec(
        "nft", "add table inet fw; add chain inet fw in { type filter hook input priority 0; }; add rule inet fw in udp dport 4789 drop"
    )
    try:
        found = examined(lab.nodes[1])
    finally:
        first.exec("nft", "delete", "table", "inet", "fw")
        run("ip", "-n", lab.layout.switch, "link", "set", third.layout.port, "mtu", "1500")
    closed, narrow = [f for f in found if f.check == "tunnels"]
    assert (closed.level, narrow.level) == ("bad", "bad")
    assert "node-1" in closed.what and "nothing comes through the tunnel" in closed.what and "open UDP 4789" in closed.do
    assert "small packets reach node-3" in narrow.what and "full-size ones don't" in narrow.what


def test_dnsrr_rotates_over_the_tasks(lab: Lab, cli: Cli) -> None:
    cli.ok("network", "create", "-d", "overlay", "back")
    cli.create("rr", "--replicas", "3", "--endpoint-mode", "dnsrr", "--network", "back")
    cli.create("client", "--mode", "global", "--network", "back", command=("idle",))
    for node in lab.nodes:
        inside = netns_of(node, "client")
        wait_until(lambda inside=inside: len(resolves(inside, "rr")) == 3, 10, "rr resolves to its three tasks")
        firsts = {in_network(inside, lambda: dns_addresses("rr"))[0] for _ in range(12)}
        assert firsts == resolves(inside, "rr")
        explanation = explained(node, "rr", "--as", "client")
        assert {address for task in explanation.tasks if task.offered for address in task.addresses} == firsts
        assert (explanation.networks, explanation.network, len(explanation.records)) == (("back",), "back", 3)


def explained(node: Node, *arguments: str) -> Explanation:
    command = [sys.executable, "-m", "orchestrator.cli", "dns", "--state-dir", str(node.layout.meshd_dir), "query", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=Explanation)


def test_scale_kill_update_and_remove_under_load(lab: Lab, cli: Cli) -> None:
    cli.create("web", "--replicas", "3", "-p", "8081:80")
    log = Log()
    with load(log, switch(lab), lambda: http_get(lab.nodes[2].address, 8081)):
        cli.ok("service", "scale", "web=5")
        cli.ok("service", "scale", "web=2")
        cli.wait_replicas("web", "2/2")
        cli.ok("service", "update", "--image", "meshd/demo:v2", "--no-resolve-image", "web")
        versions = {answer.by[1] for answer in log.answers[-20:] if answer.ok}
    assert versions == {"v2"}
    assert [a.error for a in log.failed(0)] == []
    assert log.count(0) > 100
    cli.ok("service", "rollback", "web")
    assert cli.ok("service", "inspect", "web", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Image}}") == IMAGE
    cli.ok("service", "rm", "web")
    wait_until(lambda: all(task_containers(node, "web") == [] for node in lab.nodes), 30, "the containers are gone")
    with pytest.raises(OSError):
        in_network(switch(lab), lambda: http_get(lab.nodes[0].address, 8081, 1.0))


def test_a_late_listener_and_slow_requests_lose_nothing(lab: Lab, cli: Cli) -> None:
    """No health check: new tasks are offered when they listen, 2 s late; old ones go when their requests of 5 s are answered."""
    slow = r"""printf '#!/bin/sh\nsleep 5\nprintf "Content-Type: text/plain\\r\\n\\r\\n"\nhostname\n'"""
    prepare = f"mkdir -p /tmp/www/cgi-bin; {slow} > /tmp/www/cgi-bin/slow; chmod +x /tmp/www/cgi-bin/slow"
    options = ["--replicas", "2", "--update-monitor", "1s", "-p", "8087:80"]
    cli.create("late", *options, replicas="2/2", command=("sh", "-c", f"{prepare}; sleep 2; exec serve"))
    quick, long = Log(), Log()
    with load(quick, switch(lab), lambda: http_get(lab.nodes[1].address, 8087)):
        answer = lambda: http_get(lab.nodes[2].address, 8087, 15.0, "/cgi-bin/slow")  # noqa: E731
        with load(long, switch(lab), answer), load(long, switch(lab), answer):
            before = set(cli.ok("service", "ps", "-q", "late").split())
            cli.ok("service", "update", "-d", "--force", "late")
            wait_until(lambda: "completed" in cli.ok("service", "inspect", "late", "--format", "{{.UpdateStatus.State}}"), 90, "updated")
            cli.wait_replicas("late", "2/2")
            cli.ok("service", "scale", "-d", "late=1")
            wait_until(lambda: sum(len(task_containers(node, "late")) for node in lab.nodes) == 1, 40, "one is left")
    assert len(set(cli.ok("service", "ps", "-q", "late").split()) - before) >= 1
    assert [a.error for a in [*quick.failed(0), *long.failed(0)]] == []
    assert quick.count(0) > 100 and long.count(0) >= 10


def test_a_killed_container_is_replaced(lab: Lab, cli: Cli) -> None:
    cli.create("web", "--replicas", "2", "--restart-delay", "100ms", replicas="2/2")
    node = next(node for node in lab.nodes if task_containers(node, "web"))
    engine = node.engine()
    engine.containers.get(task_containers(node, "web")[0]).kill()
    engine.close()
    wait_until(lambda: "Failed" in cli.ok("service", "ps", "web", "--format", "{{.CurrentState}}"), 10, "the failure is shown")
    cli.wait_replicas("web", "2/2")
    assert "non-zero exit (137)" in cli.ok("service", "ps", "web", "--no-trunc", "--format", "{{.Error}}")


@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_dnsd_comes_back_and_nobody_notices(lab: Lab, cli: Cli, index: int) -> None:
    cli.create("web", "--replicas", "3", "-p", "8082:80")
    before = {node.name: task_containers(node) for node in lab.nodes}
    victim = lab.nodes[index]
    pid = victim.pid_of("dnsd")
    log = Log()
    with load(log, switch(lab), lambda: http_get(victim.address, 8082)):
        victim.kill("dnsd")
        wait_until(lambda: victim.pid_of("dnsd") not in (0, pid), 20, "dnsd is back")
        victim.wait_ready(20)
        wait_until(lambda: _ready(cli, victim.name), 30, f"{victim.name} is ready")
    assert [a.error for a in log.failed(0)] == []
    assert {node.name: task_containers(node) for node in lab.nodes} == before
    cli.ok("service", "scale", "-d", "web=4")
    cli.wait_replicas("web", "4/4")


def test_meshd_is_restarted_everywhere_one_by_one_and_at_once_and_nobody_notices(lab: Lab, cli: Cli) -> None:
    """Through a published port, through a VIP from inside the network, and names: no connection and no answer fails."""
    cli.ok("network", "create", "-d", "overlay", "front")
    cli.create("web", "--replicas", "3", "--network", "front", "-p", "8092:80")
    cli.create("client", "--mode", "global", "--network", "front", command=("idle",))
    before = {node.name: sorted(task_containers(node)) for node in lab.nodes}
    inside = netns_of(lab.nodes[2], "client")
    (vip,) = resolves(inside, "web")

    def named() -> tuple[str, ...]:
        if (found := dns_addresses("web", timeout_s=3.0)) != (vip,):
            raise ValueError(f"web is {found}")
        return found

    def restarted(nodes: Iterable[Node], number: signal.Signals) -> None:
        pids = {node: node.pid_of("meshd") for node in nodes}
        for pid in pids.values():
            os.kill(pid, number)
        for node, pid in pids.items():
            wait_until(lambda node=node, pid=pid: node.pid_of("meshd") not in (0, pid), 30, f"meshd of {node.name} is back")
            node.wait_ready(30)
        wait_until(lambda: all(_ready(cli, node.name) for node in lab.nodes), 30, "every node is ready")

    logs = [Log(), Log(), Log()]
    with (
        load(logs[0], switch(lab), lambda: http_get(lab.nodes[1].address, 8092)),
        load(logs[1], inside, lambda: http_get(vip, 80)),
        load(logs[2], inside, named),
    ):
        for node, number in zip(lab.nodes, (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM), strict=True):
            restarted([node], number)
        restarted(lab.nodes, signal.SIGKILL)
    assert [answer.error for log in logs for answer in log.failed(0)] == []
    assert all(log.count(0) > 0 for log in logs)
    assert {node.name: sorted(task_containers(node)) for node in lab.nodes} == before
    cli.ok("service", "scale", "-d", "web=4")
    cli.wait_replicas("web", "4/4")


def _ready(cli: Cli, name: str) -> bool:
    done = cli.run("node", "ls", "--format", "{{.Hostname}} {{.Status}}")
    return done.returncode == 0 and f"{name} Ready" in done.stdout


def test_a_killed_etcd_comes_back(lab: Lab, cli: Cli) -> None:
    cli.ok("service", "create", "-d", "--name", "before", "--replicas", "0", IMAGE)
    lab.nodes[0].kill("etcd")
    wait_until(lambda: cli.run("service", "create", "-d", "--name", "after", "--replicas", "1", IMAGE).returncode == 0, 40, "writes go on")
    assert {"before", "after"} <= set(cli.ok("service", "ls", "--format", "{{.Name}}").split())
    cli.wait_replicas("after", "1/1")


def test_templated_configs_and_secrets_that_are_replaced(lab: Lab, cli: Cli) -> None:
    cli.ok("secret", "create", "pw1", "-", input="first")
    cli.ok("secret", "create", "pw2", "-", input="second")
    template = '{{.Service.Name}}.{{.Task.Slot}} on {{.Node.Hostname}}: {{env "MODE"}} {{secret "pw"}}\n'
    cli.ok("config", "create", "--template-driver", "golang", "conf", "-", input=template)
    assert "unclosed action" in cli.fails("config", "create", "--template-driver", "golang", "bad", "-", input="{{")
    cli.create(
        "web", "--replicas", "2", "--env", "MODE=m-{{.Task.Slot}}", "--secret", "source=pw1,target=pw,mode=0400",
        "--config", "source=conf,target=/etc/conf", replicas="2/2", command=("sh", "-c", "cat /etc/conf; exec idle"),
    )  # fmt: skip

    def told(password: str) -> bool:
        lines = set(cli.ok("service", "logs", "--raw", "web").splitlines())
        nodes = [node.name for node in lab.nodes]
        return all(any(f"web.{slot} on {name}: m-{slot} {password}" in lines for name in nodes) for slot in (1, 2))

    wait_until(lambda: told("first"), 15, "both tasks have read what is theirs")
    assert "secret 'pw1' is in use by the following service: web" in cli.fails("secret", "rm", "pw1")
    cli.ok("service", "update", "-d", "--secret-rm", "pw1", "--secret-add", "source=pw2,target=pw", "--update-parallelism", "2", "web")
    wait_until(lambda: told("second"), 30, "both tasks have the other secret")
    cli.ok("secret", "rm", "pw1")


def test_what_a_nodes_owner_permits(lab: Lab, cli: Cli) -> None:
    cli.create("near", "--network", "host", "--mode", "global", command=("sh", "-c", "readlink /proc/self/ns/net; exec idle"))
    spaces = {str(Path(f"/proc/{node.init_pid}/ns/net").readlink()) for node in lab.nodes}
    wait_until(lambda: set(cli.ok("service", "logs", "--raw", "near").split()) == spaces, 15, "every task is in its node's network")
    cli.create("roomy", "--container-label", "com.meshd.run.shm-size=3m", replicas="1/1", command=("sh", "-c", "df -k /dev/shm; exec idle"))
    wait_until(lambda: " 3072 " in cli.ok("service", "logs", "--raw", "roomy"), 15, "it has its shared memory")
    cli.ok("service", "create", "-d", "--name", "mighty", "--container-label", "com.meshd.run.privileged=true", IMAGE)
    sentence = "not permitted on 3 nodes: 3 do not permit privileged"
    wait_until(lambda: sentence in cli.ok("service", "ps", "mighty", "--no-trunc", "--format", "{{.Error}}"), 15, "it is said why not")
    assert "com.meshd.run.pid=me: expected host" in cli.fails("service", "create", "--container-label", "com.meshd.run.pid=me", IMAGE)


def test_a_node_whose_engine_hangs_is_not_down(lab: Lab, cli: Cli) -> None:
    cli.create("web", "--replicas", "3")
    before = {node.name: task_containers(node) for node in lab.nodes}
    pid = lab.nodes[2].pid_of("engine")
    os.kill(pid, signal.SIGSTOP)
    try:
        status = ("node", "inspect", "node-3", "--format", "{{.Status.State}} {{.Status.Message}}")
        silent = "ready it gets no new tasks: its Docker Engine does not answer"
        wait_until(lambda: cli.ok(*status) == silent, 30, "the silence is noticed")
        cli.ok("service", "scale", "-d", "web=9")
        cli.wait_replicas("web", "9/9")
        assert cli.ok(*status) == silent
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: cli.ok(*status).strip() == "ready", 30, "the node takes tasks again")
    counts = [len(task_containers(node, "web")) for node in lab.nodes]
    assert counts == [4, 4, 1] and task_containers(lab.nodes[2]) == before["node-3"]


def test_a_killed_engine_comes_back_with_its_tasks(lab: Lab, cli: Cli) -> None:
    cli.create("web", "--replicas", "3")
    cli.create("ticks", "--mode", "global", command=("sh", "-c", "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.1; done"))
    victim = lab.nodes[2]
    before = task_containers(victim)
    with followed_logs(cli, "ticks") as seen:

        def ticks() -> dict[str, list[int]]:
            """By task."""
            found: dict[str, list[int]] = {}
            for who, _, what in (line.partition("| ") for line in list(seen)):
                if what.startswith("tick "):
                    found.setdefault(who, []).append(int(what.split()[1]))
            return found

        wait_until(lambda: len(ticks()) == 3 and all(len(numbers) > 5 for numbers in ticks().values()), 20, "all tasks are followed")
        victim.kill("engine")
        wait_until(lambda: victim.pid_of("engine") != 0, 20, "the Engine is back")
        victim.wait_ready(30)
        assert task_containers(victim) == before
        at_least = {who: len(numbers) + 20 for who, numbers in ticks().items()}
        wait_until(lambda: all(len(ticks()[who]) > count for who, count in at_least.items()), 30, "all tasks are followed again")
        for who, numbers in ticks().items():
            assert numbers == list(range(len(numbers))), f"{who}: each line once, though its Engine was killed"
    cli.ok("service", "scale", "-d", "web=6")
    cli.wait_replicas("web", "6/6")


def test_tasks_of_a_dead_node_are_replaced_elsewhere(lab: Lab, cli: Cli) -> None:
    cli.create("web", "--replicas", "3")
    victim = lab.nodes[2]
    victim.kill("all")
    try:
        wait_until(lambda: "node-3 Down" in cli.ok("node", "ls", "--format", "{{.Hostname}} {{.Status}}"), 60, "node-3 is down")
        wait_until(lambda: sum(len(task_containers(node, "web")) for node in lab.nodes[:2]) == 3, 30, "the other nodes run three tasks")
    finally:
        lab.up(3)
    wait_until(lambda: _ready(cli, "node-3"), 30, "node-3 is ready again")
    wait_until(lambda: sum(len(task_containers(node, "web")) for node in lab.nodes) == 3, 30, "no task runs twice")


def test_drain_and_activate(lab: Lab, cli: Cli) -> None:
    cli.create("web", "--replicas", "3", "-p", "8083:80")
    log = Log()
    with load(log, switch(lab), lambda: http_get(lab.nodes[0].address, 8083)):
        cli.ok("node", "update", "--availability", "drain", "node-2")
        wait_until(lambda: task_containers(lab.nodes[1]) == [], 40, "the drained node is empty")
        cli.wait_replicas("web", "3/3")
    assert [a.error for a in log.failed(0)] == []
    cli.ok("node", "update", "--availability", "active", "node-2")


def test_constraints_limits_env_labels_mounts(lab: Lab, cli: Cli) -> None:
    cli.ok("node", "update", "--label-add", "disk=ssd", "node-3")
    options = ["--constraint", "node.labels.disk==ssd", "--replicas", "2", "--env", "A=B", "--label", "x=y", "--container-label", "c=d"]
    options += ["--limit-memory", "64m", "--reserve-cpu", "0.1", "--mount", "type=volume,source=v1,target=/data"]
    cli.create("picky", *options, replicas="2/2", command=("sh", "-c", "echo A is $A; touch /data/here; exec idle"))
    assert set(cli.ok("service", "ps", "picky", "--format", "{{.Node}}").split()) == {"node-3"}
    assert "A is B" in cli.ok("service", "logs", "picky")
    engine = lab.nodes[2].engine()
    container = engine.api.inspect_container(task_containers(lab.nodes[2], "picky")[0])
    engine.close()
    assert container["HostConfig"]["Memory"] == 64 << 20
    assert container["Config"]["Labels"]["c"] == "d"
    assert cli.json("service", "inspect", "picky")[0]["Spec"]["Labels"] == {"x": "y"}  # type: ignore[index]
    cli.ok("service", "create", "-d", "--name", "nowhere", "--constraint", "node.labels.disk==tape", IMAGE)
    wait_until(
        lambda: "no suitable node" in cli.ok("service", "ps", "nowhere", "--no-trunc", "--format", "{{.Error}}"), 10, "the reason is shown"
    )


def test_jobs_and_cron(lab: Lab, cli: Cli) -> None:
    """The CLI's own progress display waits for a job's completions; a schedule runs by itself."""
    script = "echo slot $SLOT; test -e /data/tried || { touch /data/tried; exit 3; }"
    options = ["--env", "SLOT={{.Task.Slot}}", "--restart-delay", "100ms", "--mount", "type=volume,source=job-{{.Task.Slot}},target=/data"]
    replicated = ["--mode", "replicated-job", "--replicas", "3", "--max-concurrent", "2", "--constraint", "node.hostname==node-2"]
    created = cli.ok("service", "create", "--name", "sums", *replicated, *options, IMAGE, "sh", "-c", script)
    assert "job complete" in created
    assert cli.ok("service", "ls", "--filter", "mode=replicated-job", "--format", "{{.Name}} {{.Replicas}}") == "sums 0/2 (3/3 completed)"
    shown = cli.ok("service", "ps", "--no-trunc", "sums", "--format", "{{.Name}} {{.DesiredState}} {{.CurrentState}} {{.Error}}")
    assert sorted(line.split()[0] for line in shown.splitlines() if " Complete Complete " in line) == ["sums.1", "sums.2", "sums.3"]
    assert shown.count("non-zero exit (3)") == 3
    assert cli.ok("service", "logs", "--raw", "sums").splitlines().count("slot 2") == 2
    cli.ok("service", "create", "--name", "everywhere", "--mode", "global-job", IMAGE, "true")
    assert cli.ok("service", "ls", "--filter", "mode=global-job", "--format", "{{.Replicas}}") == "0/0 (3/3 completed)"
    cli.ok("service", "update", "--force", "everywhere")
    assert len(cli.ok("service", "ps", "-q", "everywhere").split()) == 6
    refused = cli.fails("service", "create", "--mode", "replicated-job", "--label", "com.meshd.cron.schedule=0 25 * * *", IMAGE)
    assert "bad schedule '0 25 * * *': bad hour" in refused
    scheduled = ["--label", "com.meshd.cron.schedule=*/2 * * * * *", "--label", "com.meshd.cron.concurrency=forbid"]
    cli.ok("service", "create", "--name", "tick", "--mode", "replicated-job", *scheduled, IMAGE, "true")
    wait_until(lambda: cli.ok("service", "ps", "tick", "--format", "{{.CurrentState}}").count("Complete") >= 2, 60, "it ran twice")
    assert "next run" in cli.ok("service", "inspect", "--pretty", "tick")


def test_stateful_slots_keep_name_node_and_volume_and_never_run_twice(lab: Lab, cli: Cli) -> None:
    """One slot's node is cut off: its agent stops it by itself, and only then it runs elsewhere; the slot with a volume waits."""
    stateful = ["--label", "com.meshd.stateful=true", "--label", "com.meshd.stateful.fence=20s", "--stop-grace-period", "1s"]
    volume = ["--label", "com.meshd.stateful.order=ordered", "--mount", "type=volume,source=data-{{.Task.Slot}},target=/data"]
    keeps = ("sh", "-c", "hostname >> /data/log; exec idle")
    cli.create("db", *stateful, *volume, "--update-monitor", "1s", "--replicas", "3", command=keeps)
    homes = _places(cli, "db")
    assert sorted(homes.values()) == ["node-1", "node-2", "node-3"]
    cli.ok("service", "update", "-d", "--force", "db")
    wait_until(lambda: "completed" in cli.ok("service", "inspect", "db", "--format", "{{.UpdateStatus.State}}"), 60, "the update is done")
    assert _places(cli, "db") == homes
    for slot, name in homes.items():
        engine = lab.node(name).engine()
        container = engine.containers.get(task_containers(lab.node(name), "db")[0])
        assert container.exec_run(["cat", "/data/log"]).output.decode().split() == [f"db-{slot}"] * 2
        engine.close()
    cli.create("lock", *stateful, "--replicas", "3", command=("idle",))
    slot = next(slot for slot, name in _places(cli, "lock").items() if name == "node-3")
    old = task_containers(lab.nodes[2], "lock")[0]
    lab.nodes[2].cut()
    try:
        wait_until(lambda: _places(cli, "lock").get(slot) in ("node-1", "node-2"), 120, "the slot runs elsewhere")
        waiting = cli.ok("service", "ps", "db", "--filter", "desired-state=running", "--format", "{{.Node}}").split()
        assert sorted(waiting) == ["node-1", "node-2", "node-3"]
        began = min(
            state["StartedAt"] for node in lab.nodes[:2] for state in _states(node, "lock") if state["Name"].startswith(f"/lock.{slot}.")
        )
        engine = lab.nodes[2].engine()
        stopped = engine.api.inspect_container(old)["State"]
        engine.close()
        assert not stopped["Running"] and stopped["FinishedAt"] < began, "there were two writers"
    finally:
        lab.nodes[2].heal()
    wait_until(lambda: _ready(cli, "node-3"), 60, "node-3 is ready again")
    cli.wait_replicas("db", "3/3")
    assert _places(cli, "db") == homes
    assert "no manager could be reached" in cli.ok("service", "ps", "--no-trunc", "db", "--format", "{{.Error}}")


def _places(cli: Cli, service: str) -> dict[int, str]:
    """Slot -> node, of the tasks that run."""
    lines = cli.ok("service", "ps", service, "--format", "{{.Name}} {{.Node}} {{.CurrentState}}", "--filter", "desired-state=running")
    rows = [line.split() for line in lines.splitlines()]
    return {int(name.rpartition(".")[2]): node for name, node, state, *_ in rows if state == "Running"}


def _states(node: Node, service: str) -> list[dict[str, str]]:
    engine = node.engine()
    try:
        found = [engine.api.inspect_container(id) for id in task_containers(node, service)]
        return [{"Name": details["Name"], **details["State"]} for details in found]
    finally:
        engine.close()


def test_stack_deploy(lab: Lab, cli: Cli, tmp_path: Path) -> None:
    compose = tmp_path / "compose.yml"
    compose.write_text(
        f"""
version: "3.8"
services:
  web:
    image: {IMAGE}
    ports: ["8084:80"]
    networks: [inside]
    deploy: {{replicas: 2}}
    configs: [{{source: motd, target: /etc/motd}}]
    secrets: [key]
  client:
    image: {IMAGE}
    command: idle
    networks: [inside]
networks:
  inside: {{driver: overlay}}
configs:
  motd: {{file: ./motd}}
secrets:
  key: {{file: ./key}}
"""
    )
    (tmp_path / "motd").write_text("hello")
    (tmp_path / "key").write_text("s3cret")
    cli.ok("stack", "deploy", "--resolve-image", "never", "-c", str(compose), "shop")
    cli.wait_replicas("shop_web", "2/2")
    cli.wait_replicas("shop_client", "1/1")
    node = next(node for node in lab.nodes if task_containers(node, "shop_client"))
    inside = netns_of(node, "shop_client")
    assert len(resolves(inside, "web")) == 1
    assert resolves(inside, "shop_web") == resolves(inside, "web")
    server = next(node for node in lab.nodes if task_containers(node, "shop_web"))
    engine = server.engine()
    container = engine.containers.get(task_containers(server, "shop_web")[0])
    assert container.exec_run(["cat", "/etc/motd", "/run/secrets/key"]).output == b"hellos3cret"
    engine.close()
    assert "s3cret" not in json.dumps(cli.json("secret", "inspect", "shop_key"))
    assert cli.ok("stack", "ls", "--format", "{{.Name}} {{.Services}}") == "shop 2"
    cli.ok("stack", "rm", "shop")
    wait_until(lambda: all(task_containers(node) == [] for node in lab.nodes), 30, "the stack's tasks are gone")


def test_bad_input_is_refused_with_the_words_docker_users_know(lab: Lab, cli: Cli) -> None:
    cli.ok("service", "create", "-d", "--name", "web", "--replicas", "0", "-p", "8085:80", IMAGE)
    before = cli.ok("service", "ls", "-q")
    assert "network nope not found" in cli.fails("service", "create", "--network", "nope", IMAGE)
    port = cli.fails("service", "create", "--name", "other", "-p", "8085:80", IMAGE)
    assert "port '8085' is already in use by service 'web'" in port and "as an ingress port" in port
    assert "name conflicts with an existing object" in cli.fails("service", "create", "--name", "web", IMAGE)
    assert "constraint expected one operator from ==, !=" in cli.fails("service", "create", "--constraint", "node.role=worker", IMAGE)
    assert "already part of a swarm" in cli.fails("swarm", "init")
    assert "no such service: ghost" in cli.fails("service", "inspect", "ghost").lower()
    assert cli.ok("service", "ls", "-q") == before, "nothing was half-created"
    socket = str(lab.nodes[0].layout.meshd_socket)
    for body in ("{", '{"Name": 7}', "[]", ""):
        answer = subprocess.run(
            ["curl", "-s", "-w", "%{http_code}", "--unix-socket", socket, "-H", "Content-Type: application/json", "-d", body, "http://x/services/create"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert answer.endswith("400"), answer


def test_worker_leaves_and_joins_again(lab: Lab, cli: Cli) -> None:
    worker = Cli(lab.nodes[1])
    first = lab.nodes[0].address
    token = cli.ok("swarm", "join-token", "-q", "worker")
    assert "already part of a swarm" in worker.fails("swarm", "join", "--token", token, f"{first}:2377")
    worker.ok("swarm", "leave")
    assert worker.ok("info", "--format", "{{.Swarm.LocalNodeState}}") == "inactive"
    assert "not a swarm manager" in worker.fails("node", "ls")
    assert "invalid join token" in worker.fails("swarm", "join", "--token", "SWMTKN-1-bad-bad", f"{first}:2377")
    wrong = token[:-5] + "aaaaa"
    assert "valid join token is necessary" in worker.fails("swarm", "join", "--token", wrong, f"{first}:2377")
    worker.ok("swarm", "join", "--token", token, "--advertise-addr", lab.nodes[1].address, f"{first}:2377")
    wait_until(lambda: _ready(cli, "node-2"), 30, "node-2 is ready")
    wait_until(lambda: "node-2 Down" in cli.ok("node", "ls", "--format", "{{.Hostname}} {{.Status}}"), 3, "its former self is down at once")
    gone = [line.split()[0] for line in cli.ok("node", "ls", "--format", "{{.ID}} {{.Status}}").splitlines() if "Down" in line]
    for node_id in gone:
        cli.ok("node", "rm", node_id)
    assert len(cli.ok("node", "ls", "-q").split()) == 3


def test_a_foreign_container_is_never_touched(lab: Lab, cli: Cli) -> None:
    engine = lab.nodes[1].engine()
    foreign = engine.containers.run(IMAGE, ["sleep", "10000"], detach=True, network_mode="none", name="foreign")
    try:
        cli.create("web", "--mode", "global")
        cli.ok("service", "rm", "web")
        wait_until(lambda: task_containers(lab.nodes[1]) == [], 30, "the task is gone")
        foreign.reload()
        assert foreign.status == "running"
    finally:
        foreign.remove(force=True)
        engine.close()


def test_many_clients_at_once(lab: Lab) -> None:
    """docker-py, several at a time: every create is either whole or refused; all names are unique."""
    outcomes: list[str] = []

    def create(number: int) -> None:
        client = lab.nodes[0].docker()
        try:
            client.services.create(IMAGE, name=f"same-{number % 5}", mode={"Replicated": {"Replicas": 0}})
            outcomes.append("created")
        except Exception as error:
            outcomes.append(type(error).__name__)
        finally:
            client.close()

    threads = [threading.Thread(target=create, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("created") == 5
    assert set(outcomes) == {"created", "APIError"}
    cli = Cli(lab.nodes[0])
    cli.ok("service", "rm", *cli.ok("service", "ls", "-q").split())


def test_an_encrypted_network_is_encrypted_or_refused(cli: Cli) -> None:
    """By the kernel that all nodes of the lab share."""
    unable = unable_to_encrypt()
    if unable:
        assert unable in cli.fails("network", "create", "-d", "overlay", "--opt", "encrypted", "secret")
        assert "secret" not in cli.ok("network", "ls", "--format", "{{.Name}}")
        return
    cli.ok("network", "create", "-d", "overlay", "--opt", "encrypted", "secret")
    cli.create("web", "--network", "secret", "--replicas", "3")
    there = netns_of(cli.node, "web")
    (vip,) = resolves(there, "web")
    assert len(answerers(there, vip, 80, 3)) == 3
