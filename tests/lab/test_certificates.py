"""The cluster's certificates under the stock CLI: the root is replaced while a service is under load."""

from __future__ import annotations

import pytest

from orchestrator.lab.lab import Lab
from orchestrator.lab.probe import Log, Probe, http_get
from orchestrator.security import ca, tokens
from tests.lab.asking import switch
from tests.lab.cli import Cli

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_the_root_is_rotated_and_nobody_notices(lab: Lab, cli: Cli) -> None:
    cli.create("web", "-p", "8080:80", "--replicas", "3")
    tasks = cli.ok("service", "ps", "web", "--no-trunc", "--format", "{{.ID}} {{.Node}}")
    before, old_tokens = cli.ok("swarm", "ca"), {role: cli.ok("swarm", "join-token", "-q", role) for role in ("worker", "manager")}
    assert ca.digest(before) == tokens.parse(old_tokens["worker"]).digest
    log = Log()
    probes = [Probe(log, node.name, "port", switch(lab), 10, lambda: http_get(lab.nodes[2].address, 8080))
              for node in lab.nodes]  # fmt: skip
    try:
        # it shows progress until all nodes have new certificates and trust the new root, and ends by itself
        shown = cli.ok("swarm", "ca", "--rotate")
    finally:
        for probe in probes:
            probe.stop()
    assert [answer.error for answer in log.failed(0)] == []
    assert log.count(0) > 0
    after = cli.ok("swarm", "ca")
    assert after in shown
    assert after != before
    for role, old in old_tokens.items():
        token = cli.ok("swarm", "join-token", "-q", role)
        assert token != old
        assert tokens.parse(token).digest == ca.digest(after)
    assert {line.strip() for line in cli.ok("node", "ls", "--format", "{{.TLSStatus}}").splitlines()} == {"Ready"}
    assert cli.ok("service", "ps", "web", "--no-trunc", "--format", "{{.ID}} {{.Node}}") == tasks
    # a manager uses the Engines of all nodes as before, each side now under the new root alone
    assert cli.run("service", "logs", "web").returncode == 0
    for node in lab.nodes:
        assert (node.layout.meshd_dir / "certificates" / "swarm-root-ca.crt").read_text().strip() == after
