"""The docker CLI's container commands, through the API, on a real Engine."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator.api.app import serve, serve_unix
from orchestrator.api.endpoints import TcpEndpoint
from orchestrator.lab import image
from tests.lab import programs
from tests.orchestrator.agent.conftest import Engine
from tests.orchestrator.api.fakes import FakeBackend
from tests.orchestrator.api.test_clients import Cli, needs_cli
from tests.orchestrator.api.tls import files, free_port

pytestmark = [pytest.mark.engine, needs_cli]


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Engine]:
    engine = Engine(Path(tempfile.mkdtemp(prefix="api-engine-", dir="/tmp")))
    # Names of its own: it must not be taken for the agent tests' Engine in the same run, nor end it.
    engine.cgroup, engine.marker = f"api-{os.getpid()}", f"MESHD_API_TEST={os.getpid()}"
    engine.files_dir = Path(f"/dev/shm/api-{os.getpid()}")
    try:
        engine.start()
        engine.import_image("bb:1", image.rootfs(), "ENV PATH=/bin", 'CMD ["sleep", "1000"]')
        yield engine
    finally:
        engine.end()


@pytest.fixture
async def cli(dockerd: Engine, tmp_path: Path) -> AsyncIterator[Cli]:
    socket = str(tmp_path / "meshd.sock")
    runner = await serve_unix(FakeBackend(str(dockerd.directory / "docker.sock")), socket)
    yield Cli(f"unix://{socket}", tmp_path)
    await runner.cleanup()


async def test_run_with_input_output_and_exit_code(cli: Cli) -> None:
    assert await cli("run", "--rm", "--network", "none", "bb:1", "echo", "hi") == "hi"
    large = "0123456789\n" * 20_000
    assert await cli("run", "-i", "--rm", "--network", "none", "bb:1", "cat", stdin=large) == large.strip()
    assert await cli("run", "-i", "--rm", "--network", "none", "bb:1", "wc", "-l", stdin=large) == "20000"
    process = await asyncio.create_subprocess_exec(
        "docker", "run", "--rm", "--network", "none", "bb:1", "sh", "-c", "echo err >&2; exit 7",
        env=cli.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await process.communicate()
    assert (process.returncode, err) == (7, b"err\n")
    assert "\r\n" in await raw(cli, "run", "-t", "--rm", "--network", "none", "bb:1", "sh", "-c", "echo a; echo b")


async def raw(cli: Cli, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec("docker", *arguments, env=cli.environment, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode()


async def test_exec_logs_copy_and_the_rest(cli: Cli, tmp_path: Path) -> None:
    await cli("run", "-d", "--name", "c1", "--network", "none", "-l", "k=v", "bb:1", "sh", "-c", "echo out; echo err >&2; sleep 1000")
    try:
        assert await cli("ps", "--filter", "label=k=v", "--format", "{{.Names}}") == "c1"
        assert await cli("exec", "c1", "echo", "x") == "x"
        assert await cli("exec", "-i", "c1", "cat", stdin="zz\n") == "zz"
        await cli("exec", "c1", "sh", "-c", "exit 3", fails=True)
        assert await cli("logs", "c1") == "out"
        (tmp_path / "file").write_text("content")
        await cli("cp", str(tmp_path / "file"), "c1:/tmp/file")
        await cli("cp", "c1:/tmp/file", str(tmp_path / "back"))
        assert (tmp_path / "back").read_text() == "content"
        assert "sleep 1000" in await cli("top", "c1")
        assert (await cli.json("inspect", "c1"))[0]["Name"] == "/c1"
        assert "No such container: nosuch" in await cli("exec", "nosuch", "true", fails=True)
        assert "No such object: nosuch" in await cli("inspect", "nosuch", fails=True)
    finally:
        await cli("rm", "-f", "c1")
    assert "bb" in await cli("images")
    assert "is not a swarm manager" in await cli("service", "ls", fails=True)
    assert "none" in await cli("network", "ls")
    await cli("volume", "create", "api-vv")
    assert await cli("volume", "rm", "api-vv") == "api-vv"
    assert "Server Version: 20.10" in await cli("info")


async def test_details_of_a_log_line_come_before_it_and_may_be_none(cli: Cli, dockerd: Engine) -> None:
    """What `frames.shown` builds on."""
    for options, expected in ((["-l", "tier=x", "--log-opt", "labels=tier"], b"tier=x text\n"), ([], b" text\n")):
        id = await cli("run", "-d", "--network", "none", *options, "bb:1", "echo", "text")
        await cli("wait", id)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(dockerd.directory / "docker.sock"))) as session:
            async with session.get(f"http://d/v1.41/containers/{id}/logs?stdout=1&details=1") as response:
                assert (await response.read())[8:] == expected
        await cli("rm", id)


async def test_an_image_of_a_registry_that_cannot_be_asked_does_not_hold_up(cli: Cli) -> None:
    async with asyncio.timeout(8):
        error = await cli("service", "create", "-d", "busybox", fails=True)
    assert "is not a swarm manager" in error


async def test_events_are_filtered_as_the_engine_filters_them(cli: Cli, dockerd: Engine) -> None:
    begun = time.time()
    await cli("run", "-d", "--name", "told", "--network", "none", "-l", "tier=x", "bb:1", "sleep", "1000")
    await cli("exec", "told", "true")
    await cli("tag", "bb:1", "host:5000/team/bb:2")
    await cli("rmi", "host:5000/team/bb:2")
    await cli("volume", "create", "told-volume")
    await cli("volume", "rm", "told-volume")
    id = (await cli.json("inspect", "told"))[0]["Id"]
    await cli("rm", "-f", "told")
    asked: list[dict[str, list[str]]] = [
        {}, {"bogus": ["x"]}, {"type": ["container", "volume"]}, {"type": ["image"], "event": ["untag", "tag"]}, {"type": []},
        {"event": ["exec_create"]}, {"event": ["exec_start: true"]}, {"event": ["exec_start:"]}, {"event": ["star"]},
        {"event": ["die", "destroy"]},
        {"container": ["told"]}, {"container": ["tol"]}, {"container": [id]}, {"container": [id[:5]]}, {"container": ["old"]},
        {"image": ["bb"]}, {"image": ["bb:1"]}, {"image": ["host:5000/team/bb"]}, {"image": ["team/bb"]}, {"image": ["bb:2"]},
        {"label": ["tier"]}, {"label": ["tier=x", "name=told"]}, {"label": ["tier=y"]}, {"volume": ["told-vol"]}, {"network": ["no"]},
        {"daemon": ["told"]}, {"plugin": ["x"]}, {"scope": ["local"]}, {"scope": ["loc"]}, {"service": ["told"]}, {"secret": ["x"]},
    ]  # fmt: skip
    # ends by itself: nothing is younger
    until = time.time()

    async def told(socket: str, filters: dict[str, list[str]]) -> list[tuple[str, str, str, int]]:
        query = {"since": f"{begun:.9f}", "until": f"{until:.9f}", "filters": json.dumps(filters)}
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as session:
            async with session.get("http://d/v1.41/events", params=query) as response:
                events = [json.loads(line) async for line in response.content]
        return [(event["Type"], event["Action"], event["Actor"]["ID"], event["timeNano"]) for event in events]

    assert len(await told(cli.environment["DOCKER_HOST"].removeprefix("unix://"), {})) >= 12
    for filters in asked:
        assert await told(cli.environment["DOCKER_HOST"].removeprefix("unix://"), filters) == await told(
            str(dockerd.directory / "docker.sock"), filters
        ), filters


@pytest.mark.parametrize("builder", ["BuildKit of 20.10", "buildx"])
async def test_a_build_and_its_session_over_tls(dockerd: Engine, tmp_path: Path, certificates: Path, builder: str) -> None:
    """The session is HTTP/2 on a connection that has left HTTP/1.1 behind; a context goes one way through it, a result the other."""
    config, context, result = (tmp_path / name for name in ("config", "context", "result"))
    for directory in (config, context):
        directory.mkdir()
    program = programs.newest(config, "docker-buildx") if builder == "buildx" else programs.stable(config, buildkit=True)
    words = [*program.words, *(["buildx"] if builder == "buildx" else []), "build"]
    (context / "Dockerfile").write_text("FROM scratch\nCOPY data /\n")
    (context / "data").write_bytes(os.urandom(3_000_000))
    endpoint = TcpEndpoint("127.0.0.1", free_port(), tls=True)
    door = {"DOCKER_HOST": f"tcp://localhost:{endpoint.port}", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates / "alice")}
    runner = await serve(FakeBackend(str(dockerd.directory / "docker.sock")), [endpoint], tls=files(certificates))
    try:
        process = await asyncio.create_subprocess_exec(
            *words, "-q", "-o", result, context, env={**os.environ, **program.environment, **door},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        await runner.cleanup()
    assert process.returncode == 0, said.decode()
    assert (result / "data").read_bytes() == (context / "data").read_bytes()
