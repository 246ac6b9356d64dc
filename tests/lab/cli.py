"""The stock docker CLI against one node of a lab."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec

from orchestrator.diagnose.finding import Finding
from orchestrator.lab.lab import Node, wait_until

IMAGE = "meshd/demo:v1"


class Cli:
    def __init__(self, node: Node) -> None:
        self.node = node

    def command(self, *arguments: str) -> list[str]:
        return ["docker", "-H", f"unix://{self.node.layout.meshd_socket}", *arguments]

    def run(self, *arguments: str, input: str | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, input=input, timeout=timeout)

    def ok(self, *arguments: str, input: str | None = None) -> str:
        done = self.run(*arguments, input=input)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def fails(self, *arguments: str, input: str | None = None) -> str:
        done = self.run(*arguments, input=input)
        assert done.returncode != 0, f"docker {' '.join(arguments)} was accepted: {done.stdout}"
        return done.stderr.strip()

    def json(self, *arguments: str) -> list[dict[str, object]]:
        parsed: list[dict[str, object]] = json.loads(self.ok(*arguments))
        return parsed

    def _replicas(self, service: str) -> str:
        return self.ok("service", "ls", "--filter", f"name={service}", "--format", "{{.Replicas}}")

    def create(self, name: str, *options: str, replicas: str = "3/3", command: tuple[str, ...] = ()) -> None:
        """A service whose tasks run when this returns; quicker than the CLI, which watches another 5 s whether they stay."""
        self.ok("service", "create", "-d", "--name", name, *options, IMAGE, *command)
        self.wait_replicas(name, replicas)

    def wait_replicas(self, service: str, replicas: str, deadline_s: float = 40) -> None:
        wait_until(lambda: self._replicas(service).split(" ")[0] == replicas, deadline_s, f"{service} has {replicas} replicas")


def task_containers(node: Node, service: str = "") -> list[str]:
    engine = node.engine()
    try:
        label = f"com.docker.swarm.service.name={service}" if service else "com.docker.swarm.task"
        # the list alone: docker-py would ask for each container, and one may be gone by then
        return [str(found["Id"]) for found in engine.api.containers(filters={"label": label})]
    finally:
        engine.close()


def meshd(node: Node, *arguments: str) -> str:
    """meshd's own command line on the node."""
    return node.exec(sys.executable, "-m", "orchestrator.cli", *arguments, "--socket", str(node.layout.meshd_socket))


def examined(node: Node) -> list[Finding]:
    """What `meshd doctor` finds on the node."""
    spec = node.layout
    flags = {"--engine": f"unix://{spec.engine_socket}", "--socket": str(spec.meshd_socket), "--state-dir": str(spec.meshd_dir)}
    command = [sys.executable, "-m", "orchestrator.cli", "doctor", "--json", *(word for flag in flags.items() for word in flag)]
    return msgspec.json.decode(node.exec(*command, check=False), type=list[Finding])
