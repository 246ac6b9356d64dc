"""`docker compose` against the mesh: a project on bridges of its own lives on one node, one on an overlay on all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.lab.lab import Lab, wait_until
from tests.lab import programs
from tests.lab.asking import answers, switch
from tests.lab.cli import IMAGE, Cli

pytestmark = [pytest.mark.root, pytest.mark.engine, pytest.mark.cluster, pytest.mark.timeout(300)]

DEADLINE_S = 30
_BRIDGED = f"""
services:
  data:
    image: {IMAGE}
    volumes: [store:/store]
    command: ["sh", "-c", "echo began >> /store/log; exec serve"]
    healthcheck: {{test: ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/"], interval: 1s, timeout: 20s, retries: 30}}
  web:
    image: {IMAGE}
    depends_on: {{data: {{condition: service_healthy}}}}
    command: ["sh", "-c", "wget -q -O - http://data/ && exec serve"]
    ports: ["8094:80"]
  worker:
    build: .
    image: shop-worker
    networks: [default, back]
networks: {{back: {{}}}}
volumes: {{store: {{}}}}
"""
_OVERLAID = f"""
services:
  web: {{image: "{IMAGE}", scale: 3}}
  front: {{image: "{IMAGE}", command: ["idle"], ports: ["8094:80"]}}
networks: {{default: {{driver: overlay, attachable: true}}}}
"""
Compose = Callable[..., str]


@pytest.fixture
def compose(fleet: Cli, tmp_path: Path) -> Iterator[Compose]:
    """In a project directory of its own, with Debian's newest compose; the project is taken down afterwards."""
    program = programs.newest(tmp_path / "config", "docker-compose")
    files = ("compose", "--project-directory", str(tmp_path / "shop"), "-f", str(tmp_path / "shop" / "compose.yml"))
    (tmp_path / "shop").mkdir()

    def run(*arguments: str) -> str:
        return program.ok(fleet.node.layout.meshd_socket, *files, *arguments)

    yield run
    run("down", "-v", "-t", "0")


def shown(compose: Compose) -> dict[str, tuple[str, str]]:
    """Of each container of the project: state and health."""
    listed = [json.loads(line) for line in compose("ps", "-a", "--format", "json").splitlines()]
    return {one["Name"]: (one["State"], one["Health"]) for one in listed}


def places(fleet: Cli) -> set[str]:
    label = "label=com.docker.compose.project"
    return set(fleet.ok("ps", "-a", "--filter", label, "--format", '{{.Label "com.meshd.node"}}').splitlines())


def test_a_project_with_bridges_volumes_and_health(lab: Lab, fleet: Cli, compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "shop" / "compose.yml").write_text(_BRIDGED)
    (tmp_path / "shop" / "Dockerfile").write_text(f'FROM {IMAGE}\nENV BUILT=here\nCMD ["idle"]\n')
    # elsewhere there is more room: its networks hold it together all the same
    fleet.ok("run", "-d", "-e", "constraint:node==node-1", IMAGE)
    compose("up", "-d")
    assert shown(compose) == {"shop-data-1": ("running", "healthy"), "shop-web-1": ("running", ""), "shop-worker-1": ("running", "")}
    assert len(places(fleet)) == 1
    # what it depends on was healthy when it began
    wait_until(lambda: compose("logs", "--no-log-prefix", "web") != "", DEADLINE_S, "web has said what data told it")
    assert compose("port", "web", "80") == "0.0.0.0:8094"
    address = next(node.address for node in lab.nodes if {node.name} == places(fleet))
    wait_until(lambda: answers(switch(lab), address, 8094), DEADLINE_S, "its port answers")
    # on both of its networks
    assert compose("exec", "-T", "worker", "sh", "-c", "echo $BUILT; wget -q -O - http://data/ | wc -l").split() == ["here", "1"]
    assert set(json.loads(fleet.ok("inspect", "--format", "{{json .NetworkSettings.Networks}}", "shop-worker-1"))) == {
        "shop_default",
        "shop_back",
    }
    compose("up", "-d", "--scale", "worker=3", "--no-recreate")
    assert [name for name in sorted(shown(compose)) if "worker" in name] == ["shop-worker-1", "shop-worker-2", "shop-worker-3"]
    assert len(places(fleet)) == 1
    assert compose("run", "--rm", "-T", "worker", "wget", "-q", "-O", "-", "http://web/").endswith(" v1")
    # while the old one still has the port
    compose("up", "-d", "--force-recreate", "--no-deps", "-t", "0", "web")
    wait_until(lambda: answers(switch(lab), address, 8094), DEADLINE_S, "its port answers again")
    # its data outlives it
    compose("down", "-t", "0")
    assert shown(compose) == {}
    compose("up", "-d", "data")
    assert compose("exec", "-T", "data", "cat", "/store/log").split() == ["began", "began"]
    compose("down", "-v", "-t", "0")
    assert fleet.ok("volume", "ls", "-q", "--filter", "name=shop") == ""
    assert fleet.ok("network", "ls", "-q", "--filter", "name=shop") == ""


def test_a_project_on_an_overlay_is_on_all_nodes(lab: Lab, fleet: Cli, compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "shop" / "compose.yml").write_text(_OVERLAID)
    compose("up", "-d")
    assert places(fleet) == {node.name for node in lab.nodes}
    assert compose("exec", "-T", "front", "wget", "-q", "-O", "-", "http://web/").endswith(" v1")
    # nothing of it is on its network any more when compose looks
    compose("down", "-t", "0")
    assert fleet.ok("network", "ls", "-q", "--filter", "name=shop") == ""
