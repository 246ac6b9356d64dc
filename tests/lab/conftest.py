"""One cluster of three nodes for all modules that leave it as they found it: one manager, two workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.lab.lab import Lab, wait_until
from tests.lab.cli import Cli, task_containers
from tests.lab.temporary import temporary_lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with temporary_lab("c") as lab:
        lab.up(3)
        yield lab


@pytest.fixture
def cli(lab: Lab) -> Iterator[Cli]:
    """The CLI at the first node; services, networks, secrets and configs made through it are removed afterwards."""
    cli = Cli(lab.nodes[0])
    try:
        yield cli
    finally:
        services = cli.ok("service", "ls", "-q").split()
        if services:
            cli.ok("service", "rm", *services)
        for node in lab.nodes:
            wait_until(lambda node=node: task_containers(node) == [], 30, f"no task is left on {node.name}")
        for network in cli.ok("network", "ls", "-q", "--filter", "scope=swarm", "--format", "{{.Name}}").split():
            if network != "ingress":
                cli.ok("network", "rm", network)
        for kind in ("secret", "config"):
            for name in cli.ok(kind, "ls", "-q").split():
                cli.ok(kind, "rm", name)


@pytest.fixture
def fleet(cli: Cli) -> Iterator[Cli]:
    """Containers, images, volumes and networks made through it are removed afterwards."""
    before = _things(cli)
    try:
        yield cli
    finally:
        for line in cli.ok("ps", "-a", "--format", '{{.ID}} {{.Label "com.docker.swarm.task.id"}}').splitlines():
            container, _, task = line.partition(" ")
            if not task:
                cli.ok("rm", "-f", container)
        for kind, removal in (("volume", ("volume", "rm")), ("image", ("rmi", "-f")), ("network", ("network", "rm"))):
            for name in sorted(_things(cli)[kind] - before[kind]):
                cli.ok(*removal, name)
        assert _things(cli) == before


def _things(cli: Cli) -> dict[str, set[str]]:
    return {
        "volume": set(cli.ok("volume", "ls", "-q").split()),
        "image": set(cli.ok("images", "--format", "{{.Repository}}:{{.Tag}}").split()) - {"<none>:<none>"},
        "network": set(cli.ok("network", "ls", "--filter", "scope=local", "--format", "{{.Name}}").split()),
    }
