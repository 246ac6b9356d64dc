"""Machines that are all started with the same command become one cluster, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.lab.lab import Lab, LabError, Node, wait_until
from tests.lab.cli import Cli
from tests.lab.members import members, three_managers_agree
from tests.lab.temporary import temporary_lab

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    secret = tmp_path / "secret"
    secret.write_text(secrets.token_hex(32))
    secret.chmod(0o600)
    peers = ",".join(f"198.51.100.{number}" for number in (1, 2, 3))
    options = ["--bootstrap-expect=3", f"--retry-join={peers}", f"--join-secret-file={secret}"]
    with temporary_lab("f", daemon_options=options) as lab:
        yield lab


def info(node: Node) -> str:
    done = Cli(node).run("info")
    return done.stdout + done.stderr


def test_three_machines_and_a_later_one(lab: Lab) -> None:
    lab.up(2, cluster=False)
    first, second = lab.nodes
    waits = "a cluster begins when all 3 are there: 198.51.100.3:2377: "
    wait_until(lambda: waits in info(first), 30, "the first says whom it waits for")
    wait_until(lambda: "has promised to join" in Cli(second).run("swarm", "init").stderr, 30, "the second has promised to follow")
    assert "Swarm: inactive" in info(first) and "Swarm: inactive" in info(second)
    for node in (second, first):
        node.kill("meshd")
    lab.up(3, cluster=False)
    third = lab.nodes[2]
    with contextlib.suppress(LabError):
        # wherever it is by now
        first.kill("meshd")

    wait_until(lambda: three_managers_agree((first, second, third)), 120, "three managers of one cluster")
    lab.up(4, cluster=False)
    wait_until(lambda: members(first).get("node-4") == "", 40, "the later one is a worker")
    assert len(members(first)) == 4, "nobody came twice"
    Cli(first).create("web", "--replicas", "4", "-p", "8080:80", replicas="4/4")
