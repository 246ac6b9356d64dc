"""The stock docker CLI and docker-py against the API, with control loops that run everything at once."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import docker
import pytest
from docker.types import EndpointSpec, NetworkAttachmentConfig, ServiceMode

from orchestrator.api.frames import frame
from orchestrator.model import Service, Task, TaskState
from tests.orchestrator.api.fakes import Setup

# Debian's CLI (20.10) and, where one is installed beside it, a newer one: they ask differently.
CLIS = sorted({path for path in (shutil.which("docker"), "/usr/bin/docker") if path and Path(path).exists()})
needs_cli = pytest.mark.skipif(not CLIS, reason="needs the docker CLI: apt-get install docker.io")


class Cli:
    def __init__(self, url: str, home: Path, program: str = "docker") -> None:
        self.program = program
        self.environment = {**os.environ, "DOCKER_CONFIG": str(home), "DOCKER_HOST": url}

    async def __call__(self, *arguments: str, stdin: str = "", fails: bool = False, timeout_s: float = 20) -> str:
        process = await asyncio.create_subprocess_exec(
            self.program,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
        )
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await process.communicate(stdin.encode())
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        if fails:
            assert process.returncode != 0, out
            return err.decode().strip()
        assert process.returncode == 0, err
        return out.decode().strip()

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self(*arguments))


@pytest.fixture(params=CLIS)
def cli(request: pytest.FixtureRequest, cluster: Setup, tmp_path: Path) -> Cli:
    return Cli(cluster.url, tmp_path, request.param)


@needs_cli
async def test_cli_swarm_and_nodes(node: Setup, tmp_path: Path) -> None:
    cli = Cli(node.url, tmp_path)
    assert "This node is not a swarm manager." in await cli("node", "ls", fails=True)
    assert "docker swarm join --token SWMTKN-1-x-worker0 10.0.0.1:2377" in await cli("swarm", "init", "--advertise-addr", "10.0.0.1")
    assert "already part of a swarm" in await cli("swarm", "init", fails=True)
    assert await cli("swarm", "join-token", "-q", "worker") == "SWMTKN-1-x-worker0"
    assert "SWMTKN-1-x-worker01" in await cli("swarm", "join-token", "--rotate", "worker")
    assert "SWMTKN-1-x-manager0" in await cli("swarm", "join-token", "manager")
    await cli("swarm", "update", "--task-history-limit", "3", "--dispatcher-heartbeat", "6s")
    assert node.store.snapshot().cluster.spec.orchestration.task_history_retention_limit == 3  # type: ignore[union-attr]
    assert "node-a" in await cli("node", "ls")
    assert "Leader" in await cli("node", "ls", "--filter", "role=manager")
    await cli("node", "update", "--label-add", "disk=ssd", "--availability", "drain", "node-a")
    shown = await cli("node", "inspect", "self", "--pretty")
    assert "disk=ssd" in shown
    assert "Drain" in shown
    assert "attempting to demote the last manager" in await cli("node", "demote", "node-a", fails=True)
    assert "must be demoted" in await cli("node", "rm", "node-a", fails=True)
    assert "1.50" in await cli("version")
    info = await cli("info")
    assert "Is Manager: true" in info
    assert "meshd.balancer=nftables" in info
    assert "participating as a manager" in await cli("swarm", "leave", fails=True)
    assert "Node left the swarm" in await cli("swarm", "leave", "--force")


@needs_cli
async def test_cli_life_of_a_service(cluster: Setup, cli: Cli) -> None:
    await cli("network", "create", "-d", "overlay", "--attachable", "--subnet", "10.55.0.0/24", "ov1")
    await cli("network", "create", "-d", "overlay", "ov2")
    assert "network with name ov1 already exists" in await cli("network", "create", "-d", "overlay", "ov1", fails=True)
    assert [line.split()[1] for line in (await cli("network", "ls")).splitlines()[1:]] == ["bridge", "ov1", "ov2"]
    assert (await cli.json("network", "inspect", "ov1"))[0]["IPAM"]["Config"] == [{"Subnet": "10.55.0.0/24"}]
    await cli("config", "create", "--label", "a=b", "cfg1", "-", stdin="cfgdata")
    await cli("secret", "create", "sec1", "-", stdin="secdata")
    assert "cfgdata" in await cli("config", "inspect", "--pretty", "cfg1")
    output = await cli(
        "service", "create", "--name", "web", "--replicas", "2", "--network", "ov1", "-p", "8080:80", "--config", "cfg1",
        "--secret", "sec1",
        "--constraint", "node.platform.os==linux", "--limit-cpu", "0.5", "--limit-memory", "64M", "--reserve-memory", "16M",
        "--update-parallelism", "1", "--update-delay", "1s", "--update-monitor", "100ms", "--update-order", "start-first", "--env", "A=B",
        "--label", "l=v", "--container-label", "cl=v", "--restart-condition", "any", "--stop-grace-period", "2s", "--health-cmd", "true",
        "--mount", "type=volume,source=v1,target=/data", "--no-resolve-image", "busybox", "httpd", "-f",
    )  # fmt: skip
    assert "verify: Service" in output
    assert "2/2" in await cli("service", "ls")
    assert "*:8080->80/tcp" in await cli("service", "ls", "--filter", "name=web", "--filter", "mode=replicated")
    rows = (await cli("service", "ps", "--format", "{{.Name}} {{.Node}} {{.DesiredState}} {{.CurrentState}}", "web")).splitlines()
    assert [row.split()[:3] for row in rows] == [["web.1", "node-a", "Running"], ["web.2", "node-a", "Running"]]
    pretty = await cli("service", "inspect", "--pretty", "web")
    assert "Networks: ov1" in pretty
    assert "PublishedPort = 8080" in pretty
    assert "A=B" in pretty

    await cli("service", "scale", "web=4")
    assert "4/4" in await cli("service", "ls")
    await cli("service", "update", "--env-add", "C=D", "--no-resolve-image", "web")
    shown = (await cli.json("service", "inspect", "web"))[0]
    # the CLI writes variables in any order
    assert sorted(shown["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"]) == ["A=B", "C=D"]
    assert shown["PreviousSpec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=B"]
    await cli("service", "rollback", "web")
    shown = (await cli.json("service", "inspect", "web"))[0]
    assert shown["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=B"]
    await cli("service", "update", "--publish-add", "8085:80", "--publish-rm", "80", "--network-add", "ov2", "--detach", "web")
    shown = (await cli.json("service", "inspect", "web"))[0]
    assert [port["PublishedPort"] for port in shown["Spec"]["EndpointSpec"]["Ports"]] == [8085]
    assert len(shown["Spec"]["TaskTemplate"]["Networks"]) == 2
    assert "web.1" in await cli("node", "ps", "self")
    assert "in use by service" in await cli("network", "rm", "ov1", fails=True)
    assert "is in use by the following service: web" in await cli("secret", "rm", "sec1", fails=True)
    assert await cli("service", "rm", "web") == "web"
    for kind, name in (("network", "ov1"), ("network", "ov2"), ("secret", "sec1"), ("config", "cfg1")):
        assert await cli(kind, "rm", name) == name
    assert cluster.store.snapshot().count(Service) == 0


@needs_cli
async def test_cli_refusals(cluster: Setup, cli: Cli) -> None:
    create = ("service", "create", "-d", "--no-resolve-image")
    await cli(*create, "--name", "p1", "-p", "7777:80", "busybox", "sleep", "100")
    assert "port '7777' is already in use by service 'p1' (" in await cli(*create, "--name", "p2", "-p", "7777:80", "busybox", fails=True)
    assert await cli(*create, "--network", "nosuch", "busybox", fails=True) in (
        "Error response from daemon: network nosuch not found",
        "Error: No such network: nosuch",
    )
    assert await cli(*create, "--secret", "nosuch", "busybox", fails=True) == "secret not found: nosuch"
    assert "name conflicts with an existing object: service p1 already exists" in await cli(*create, "--name", "p1", "busybox", fails=True)
    assert "must be valid as a DNS name component" in await cli(*create, "--name", "bad name", "busybox", fails=True)
    assert "InvalidArgument" in await cli(*create, "--constraint", "node.shoe==42", "busybox", fails=True)
    # the CLI of 20.10 has its own words for a 404
    assert await cli("service", "rm", "nosuch", fails=True) in (
        "Error response from daemon: service nosuch not found",
        "Error: No such service: nosuch",
    )
    assert "no such service: nosuch" in await cli("service", "ps", "nosuch", fails=True)
    assert "no such service: nosuch" in (await cli("service", "inspect", "nosuch", fails=True))
    assert cluster.store.snapshot().count(Service) == 1


@needs_cli
async def test_cli_stack(cluster: Setup, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "s1.txt").write_text("s1")
    compose = tmp_path / "st.yml"
    compose.write_text(
        """
version: "3.9"
services:
  a:
    image: busybox:latest
    command: sleep 1000
    ports: ["8090:80"]
    networks: [n1]
    volumes: ["vol1:/data"]
    secrets: [s1]
    configs: [c1]
    deploy:
      replicas: 2
      resources: {limits: {memory: 64M}}
      placement: {constraints: [node.role == manager]}
      update_config: {order: start-first}
  b:
    image: busybox:latest
    networks: {n1: {aliases: [bee]}}
networks: {n1: {driver: overlay, attachable: true}}
volumes: {vol1: {}}
secrets: {s1: {file: ./s1.txt}}
configs: {c1: {file: ./s1.txt}}
"""
    )
    deploy = ("stack", "deploy", "--resolve-image", "never", "-c", str(compose))
    await cli(*deploy, "st")
    assert (await cli("stack", "ls")).splitlines()[1].split()[:2] == ["st", "2"]
    rows = (await cli("stack", "services", "--format", "{{.Name}} {{.Replicas}} {{.Ports}}", "st")).splitlines()
    assert sorted(rows) == ["st_a 2/2 *:8090->80/tcp", "st_b 1/1"]
    assert len((await cli("stack", "ps", "-q", "st")).splitlines()) == 3
    compose.write_text(compose.read_text().replace("replicas: 2", "replicas: 3"))
    await cli(*deploy, "--prune", "st")
    assert "3/3" in await cli("stack", "services", "st")
    await cli("stack", "rm", "st")
    assert await cli("stack", "ls", "--format", "{{.Name}}") == ""
    assert await cli("network", "ls", "-q", "--filter", "label=com.docker.stack.namespace=st", "--filter", "driver=overlay") in (
        "",
        "b" * 12,
    )


@needs_cli
async def test_cli_logs(cluster: Setup, cli: Cli) -> None:
    await cli("service", "create", "-d", "--no-resolve-image", "--name", "logger", "busybox")
    await eventually(lambda: cluster.store.snapshot().count(Task) == 1)
    task = next(cluster.store.snapshot().all(Task))
    assert task.status.container_status is not None
    line = frame(1, b"2026-01-01T00:00:01.000000000Z hello\n")
    cluster.engine.logs.logs[task.status.container_status.container_id] = line
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(cluster.backend.engine_socket)) as session:
        cluster.backend.engines[cluster.backend.node_id] = (session, "http://engine")
        shown = await cli("service", "logs", "logger")
        assert shown.split() == [f"logger.1.{task.id[:12]}@node-a", "|", "hello"]
        assert await cli("service", "logs", "--raw", "-t", task.id) == "2026-01-01T00:00:01.000000000Z hello"


@needs_cli
async def test_cli_events_end_at_until(cluster: Setup, cli: Cli) -> None:
    await cli("config", "create", "c1", "-", stdin="x")
    shown = await cli(
        "events", "--since", "10m", "--until", f"{time.time() + 0.3:.9f}", "--filter", "type=config", "--format", "{{.Type}} {{.Action}}"
    )
    assert shown == "config create"


# ---- docker-py -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def client(cluster: Setup) -> AsyncIterator[docker.DockerClient]:
    client = await asyncio.to_thread(docker.DockerClient, base_url=cluster.url, version="auto", timeout=10)
    yield client
    client.close()


async def eventually(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_docker_py(cluster: Setup, client: docker.DockerClient) -> None:
    def play() -> None:
        assert client.api._version == "1.50"
        assert client.swarm.attrs["JoinTokens"]["Worker"] == "SWMTKN-1-x-worker0"
        client.swarm.update(rotate_worker_token=True, task_history_retention_limit=7)
        client.swarm.reload()
        assert client.swarm.attrs["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"] == 7
        assert [node.attrs["Description"]["Hostname"] for node in client.nodes.list(filters={"role": "manager"})] == ["node-a"]
        node = client.nodes.list()[0]
        node.update({**node.attrs["Spec"], "Availability": "active", "Labels": {"x": "y"}})

        network = client.networks.create("ov1", driver="overlay", attachable=True, labels={"k": "v"})
        assert client.networks.get(network.id).attrs["Driver"] == "overlay"
        assert client.networks.list(names=["ov1"], filters={"driver": "overlay"})[0].name == "ov1"
        secret = client.secrets.create(name="s", data=b"secret", labels={})
        assert client.secrets.get(secret.id).name == "s"
        config = client.configs.create(name="c", data=b"config")
        assert client.configs.get(config.id).attrs["Spec"]["Name"] == "c"

        service = client.services.create(
            "busybox:latest",
            ["sleep", "1000"],
            name="web",
            mode=ServiceMode("replicated", replicas=2),
            endpoint_spec=EndpointSpec(ports={8080: 80}),
            networks=[NetworkAttachmentConfig(network.id, aliases=["w"])],
            constraints=["node.role==manager"],
            env=["A=B"],
            secrets=[docker.types.SecretReference(secret.id, "s")],
            configs=[docker.types.ConfigReference(config.id, "c")],
        )
        assert [found.name for found in client.services.list(filters={"name": "web"}, status=True)] == ["web"]
        assert service.attrs["Spec"]["Mode"] == {"Replicated": {"Replicas": 2}}
        while len(service.tasks(filters={"desired-state": "running"})) < 2:
            pass
        service.reload()
        assert service.scale(3)
        service.reload()
        service.update(env=["A=C"], labels={"new": "1"})
        service.reload()
        assert service.attrs["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=C"]
        assert service.attrs["Spec"]["TaskTemplate"]["Networks"] == [{"Target": network.id, "Aliases": ["w"]}]
        assert service.force_update()
        with pytest.raises(docker.errors.NotFound):
            client.services.get("nosuch")
        with pytest.raises(docker.errors.APIError) as conflict:
            client.services.create("busybox", name="web")
        assert conflict.value.status_code == 409
        service.remove()
        network.remove()
        secret.remove()
        config.remove()
        assert client.info()["Swarm"]["ControlAvailable"] is True

    await asyncio.to_thread(play)
    await eventually(lambda: cluster.store.snapshot().count(Task) == 0)


async def test_docker_py_global_service(cluster: Setup, client: docker.DockerClient) -> None:
    service = await asyncio.to_thread(client.services.create, "busybox", name="glob", mode="global")
    stored = cluster.store.snapshot().service(service.id)
    assert stored is not None
    assert stored.spec.mode.global_ is not None
    await eventually(lambda: any(task.status.state is TaskState.RUNNING for task in cluster.store.snapshot().all(Task)))
