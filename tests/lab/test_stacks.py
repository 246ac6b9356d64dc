"""A compose file by `meshd stack` on a cluster: planned, deployed, changed, rolled back; its secret reaches the task each time."""

from __future__ import annotations

import contextlib
from pathlib import Path

import docker.errors
import pytest

from orchestrator.lab.lab import Lab, LabError, wait_until
from tests.lab.cli import Cli, meshd, task_containers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

COMPOSE = """
services:
  web:
    image: meshd/demo:v1
    ports: ["8085:80"]
    secrets: [key]
    deploy: {replicas: 2}
secrets: {key: {file: key.txt}}
"""


def test_a_stack_goes_forth_and_back(lab: Lab, cli: Cli, tmp_path: Path) -> None:
    node = lab.nodes[0]
    file, key = tmp_path / "compose.yml", tmp_path / "key.txt"
    file.write_text(COMPOSE)
    key.write_text("one")

    def stack(*arguments: str) -> str:
        return meshd(node, "stack", *arguments)

    def secrets() -> set[str]:
        found = set()
        for other in lab.nodes:
            engine = other.engine()
            try:
                for id in task_containers(other, "shop_web"):
                    # one that an update stops meanwhile
                    with contextlib.suppress(docker.errors.APIError):
                        found.add(engine.containers.get(id).exec_run(["cat", "/run/secrets/key"]).output.decode())
            finally:
                engine.close()
        return found

    with pytest.raises(LabError, match=r"\+ service shop_web"):
        # exit code 1: there is something to do
        stack("plan", "shop", "-c", str(file))
    assert cli.ok("service", "ls", "-q") == ""
    assert "revision 1" in stack("deploy", "shop", "-c", str(file))
    cli.wait_replicas("shop_web", "2/2")
    assert cli.ok("stack", "ls", "--format", "{{.Name}} {{.Services}}") == "shop 1"
    assert secrets() == {"one"}
    key.write_text("two")
    stack("deploy", "shop", "-c", str(file))
    wait_until(lambda: secrets() == {"two"}, 60, "the tasks have the new secret")
    wait_until(lambda: "converged" in stack("show", "shop"), 60, "the update is over")
    stack("rollback", "shop")
    wait_until(lambda: secrets() == {"one"}, 60, "the tasks have the old secret again")
    stack("rm", "shop")
    assert cli.ok("service", "ls", "-q") == "" and cli.ok("secret", "ls", "-q") == ""
