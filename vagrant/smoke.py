#!/usr/bin/env python3
"""Shows on the machines of `vagrant up` what the cluster is for: VIP, DNS round robin, routing mesh, scaling, loss of a node.

Edge: ssh to the machines, HTTP to their published ports from here. Needs nothing but Python and vagrant. Each line is one thing seen to
work; the first that isn't ends it with exit code 1. `--keep`: leave the services up. `--no-loss`: don't take a machine down.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
NODES = int(os.environ.get("NODES", "3"))
NAMES = [f"node-{number}" for number in range(1, NODES + 1)]
ADDRESS = {name: f"192.168.56.{10 + number}" for number, name in enumerate(NAMES, 1)}
IMAGE = "meshd/demo:v1"
PORT = 8080
SOCKET = "unix:///run/meshd/meshd.sock"
# machines without hardware virtualisation are ten times slower
REQUEST_TIMEOUT_S, PATIENCE_S, COMMAND_TIMEOUT_S = 10.0, 240.0, 300.0


class Failed(Exception):
    """What was not seen, as a sentence."""


class Machines:
    """Commands on the machines, over one ssh configuration."""

    def __init__(self) -> None:
        self._config = tempfile.NamedTemporaryFile("w", suffix=".ssh")  # noqa: SIM115
        self._config.write(vagrant("ssh-config"))
        self._config.write("\nHost *\n  ControlMaster auto\n  ControlPersist 60\n")
        self._config.write(f"  ControlPath {tempfile.gettempdir()}/meshd-smoke-{os.getpid()}-%h-%p\n")
        self._config.flush()

    def run(self, name: str, *command: str) -> str:
        done = subprocess.run(
            ["ssh", "-F", self._config.name, name, shlex.join(command)], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
        if done.returncode:
            raise Failed(f"`{shlex.join(command)}` on {name}: {(done.stderr or done.stdout).strip()}")
        return done.stdout.strip()

    def docker(self, *command: str) -> str:
        """The stock CLI at the first node's meshd, as a user would."""
        return self.run(NAMES[0], "sudo", "docker", "-H", SOCKET, *command)

    def in_task(self, name: str, service: str, script: str) -> str:
        """A shell script in the container of the service on that node."""
        return self.run(name, "sudo", "docker", "exec", self._container(name, service), "sh", "-c", script)

    def as_task(self, name: str, service: str, *command: str) -> str:
        """One of the machine's own programs in that container's network. (A static program looks no name up in an image without libc.)"""
        container = self._container(name, service)
        pid = self.run(name, "sudo", "docker", "inspect", "--format", "{{.State.Pid}}", container)
        return self.run(name, "sudo", "nsenter", "-t", pid, "--net", "--", *command)

    def _container(self, name: str, service: str) -> str:
        label = f"label=com.docker.swarm.service.name={service}"
        found = self.run(name, "sudo", "docker", "ps", "-q", "--filter", label).split()
        if not found:
            raise Failed(f"no container of {service} on {name}")
        return found[0]


def vagrant(*arguments: str) -> str:
    done = subprocess.run(["vagrant", *arguments], cwd=HERE, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Failed(f"`vagrant {' '.join(arguments)}`: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def fetch(name: str, path: str = "/") -> list[str]:
    """The words of the answer of the published port of that machine. OSError: none."""
    with urllib.request.urlopen(f"http://{ADDRESS[name]}:{PORT}{path}", timeout=REQUEST_TIMEOUT_S) as answer:
        words: list[str] = answer.read().decode().split()
    return words


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> float:
    """Seconds until it was so."""
    begun = time.monotonic()
    while True:
        try:
            if condition():
                return time.monotonic() - begun
        except OSError:
            pass
        if time.monotonic() - begun > patience_s:
            raise Failed(f"{what}: not within {patience_s:.0f} s")
        time.sleep(0.5)


def until_all_seen(count: int, ask: Callable[[], list[str]], what: str) -> None:
    seen: set[str] = set()

    def asked() -> bool:
        seen.update(ask())
        return len(seen) >= count

    until(asked, what)


class Load:
    """Asks the published port of one machine again and again, in the background."""

    def __init__(self, name: str) -> None:
        self.answered, self.failed = 0, 0
        self._name = name
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(0.1):
            try:
                fetch(self._name)
                self.answered += 1
            except OSError:
                self.failed += 1

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(REQUEST_TIMEOUT_S + 1)


def say(text: str) -> None:
    print(f"ok  {text}", flush=True)


def running(machines: Machines, service: str) -> Counter[str]:
    """Running tasks by node."""
    lines = machines.docker("service", "ps", service, "--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}")
    return Counter(line.split()[0] for line in lines.splitlines() if " Running" in line)


def create(machines: Machines, name: str, tasks: int, *options: str, command: tuple[str, ...] = ()) -> None:
    machines.docker("service", "create", "-d", "--name", name, *options, IMAGE, *command)
    until(lambda: running(machines, name).total() == tasks, f"{name} runs {tasks} tasks")


# ---- what is shown -------------------------------------------------------------------------------------------------------------


def cluster(machines: Machines) -> str:
    nodes = machines.docker("node", "ls", "--format", "{{.Hostname}} {{.Status}}").splitlines()
    if sorted(nodes) != [f"{name} Ready" for name in NAMES]:
        raise Failed(f"`docker node ls` shows {nodes}")
    kernel = machines.run(NAMES[0], "uname", "-r")
    say(f"{NODES} nodes are ready (Linux {kernel})")
    try:
        report = machines.run(NAMES[0], "sudo", "meshd", "doctor", "--json")
    except Failed as failed:
        raise Failed(f"meshd doctor: {failed}") from None
    findings = json.loads(report)
    balancer = next(finding["what"] for finding in findings if finding["check"] == "balancer")
    say(f"meshd doctor: nothing to fix; balancer: {balancer}")
    for finding in findings:
        if finding["level"] == "note":
            print(f"!!  {finding['what']}", flush=True)
    return str(balancer)


def vip(machines: Machines) -> None:
    machines.docker("network", "create", "-d", "overlay", "front")
    create(machines, "web", 3, "--replicas", "3", "--network", "front", "-p", f"{PORT}:80")
    create(machines, "client", NODES, "--mode", "global", "--network", "front", command=("idle",))
    (address,) = looked_up(machines, NAMES[0], "web")
    ask = ("curl", "-s", "-m", "10", f"http://{address}/?[1-10]")
    for name in NAMES:
        # each answer is a hostname and a version
        until_all_seen(3, lambda name=name: machines.as_task(name, "client", *ask).split()[::2], f"{name} sees 3 tasks by the VIP")
    say(f"VIP: `web` is {address}, and leads from every node to all three tasks")


def looked_up(machines: Machines, name: str, what: str) -> list[str]:
    """Addresses, in the order of the answer, as a task on that node gets them."""
    answer = machines.in_task(name, "client", f"nslookup {what} 127.0.0.11")
    return re.findall(r"^Address(?: \d+)?:\s+([\d.]+)$", answer, re.MULTILINE)


def dnsrr(machines: Machines) -> None:
    create(machines, "rr", 3, "--replicas", "3", "--network", "front", "--endpoint-mode", "dnsrr")
    answers = [looked_up(machines, NAMES[0], "rr") for _ in range(12)]
    if any(len(set(answer)) != 3 for answer in answers):
        raise Failed(f"`rr` resolves to {answers[0]}, not to three tasks")
    if len({answer[0] for answer in answers}) < 2:
        raise Failed(f"the first answer for `rr` is always {answers[0][0]}")
    say(f"dnsrr: `rr` resolves to its three tasks, in turn: {', '.join(sorted(set(answers[0])))}")


def routing_mesh(machines: Machines, balancer: str) -> None:
    kept = set()
    for name in NAMES:
        until_all_seen(3, lambda name=name: fetch(name)[:1], f"three tasks answer on {name}:{PORT}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.connect((ADDRESS[name], PORT))
            own = asker.getsockname()[0]
        # httpd has it as [::ffff:1.2.3.4]
        kept |= {fetch(name, "/cgi-bin/client")[2].strip("[]").removeprefix("::ffff:") == own for _ in range(6)}
    say(f"routing mesh: port {PORT} of every node leads to all three tasks")
    if kept == {True}:
        say("routing mesh: servers see the address of their client, through any node")
    elif balancer.startswith("IPVS"):
        raise Failed("servers don't see the address of their client, though the balancer is IPVS")
    else:
        print("!!  routing mesh: servers see a node's address, not their client's (nftables mode)", flush=True)


def trace(machines: Machines) -> None:
    report = json.loads(machines.run(NAMES[0], "sudo", "meshd", "trace", "web", "--json"))
    verdicts = Counter(path["verdict"] for path in report["paths"])
    say(f"meshd trace: {'; '.join(verdicts)}")


def scale(machines: Machines) -> None:
    with Load(NAMES[0]) as load:
        for count in (5, 2, 3):
            machines.docker("service", "scale", "-d", f"web={count}")
            until(lambda count=count: running(machines, "web").total() == count, f"web runs {count} tasks")
        until(lambda: load.answered >= 20, "twenty requests are answered meanwhile")
    if load.failed:
        raise Failed(f"{load.failed} of {load.failed + load.answered} requests failed while scaling")
    say(f"scale: 3 -> 5 -> 2 -> 3 tasks, none of {load.answered} requests failed")


def loss(machines: Machines) -> None:
    lost = NAMES[-1]
    with Load(NAMES[0]) as load:
        vagrant("halt", "--force", lost)
        down_s = until(lambda: f"{lost} Down" in machines.docker("node", "ls", "--format", "{{.Hostname}} {{.Status}}"), f"{lost} is down")
        alive_s = until(lambda: (now := running(machines, "web")).total() == 3 and lost not in now, "the other nodes run three tasks")
        before = load.failed
        until(lambda: len({fetch(NAMES[0])[0] for _ in range(20)}) == 3, "all three tasks answer")
        settled = load.failed
    if settled > before:
        raise Failed(f"{settled - before} requests failed after the tasks were replaced")
    asked = load.failed + load.answered
    say(f"loss of {lost}: down after {down_s:.0f} s, replaced {alive_s:.0f} s later; {load.failed} of {asked} requests failed meanwhile")
    vagrant("up", lost)
    until(lambda: f"{lost} Ready" in machines.docker("node", "ls", "--format", "{{.Hostname}} {{.Status}}"), f"{lost} is ready again")
    say(f"{lost} is back")


def removed(machines: Machines, network: str) -> bool:
    """A network stays as long as a task on it does."""
    try:
        machines.docker("network", "rm", network)
    except Failed:
        return False
    return True


def clean(machines: Machines) -> None:
    for service in machines.docker("service", "ls", "--format", "{{.Name}}").split():
        if service in ("web", "client", "rr"):
            machines.docker("service", "rm", service)
    if "front" in machines.docker("network", "ls", "--format", "{{.Name}}").split():
        until(lambda: removed(machines, "front"), "the network is unused")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the services up")
    parser.add_argument("--no-loss", action="store_true", help="don't take a machine down")
    options = parser.parse_args()
    try:
        machines = Machines()
        clean(machines)
        balancer = cluster(machines)
        vip(machines)
        dnsrr(machines)
        routing_mesh(machines, balancer)
        trace(machines)
        scale(machines)
        if not options.no_loss:
            loss(machines)
        if not options.keep:
            clean(machines)
    except (Failed, subprocess.TimeoutExpired) as failed:
        print(f"x   {failed}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
