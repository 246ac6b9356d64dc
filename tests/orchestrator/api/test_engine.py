"""The docker CLI's container commands, through the API, on a real Engine."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator.api.app import serve_unix
from orchestrator.lab import image
from tests.orchestrator.agent.conftest import Engine
from tests.orchestrator.api.fakes import FakeBackend
from tests.orchestrator.api.test_clients import Cli, needs_cli

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


async def test_an_image_of_a_registry_that_cannot_be_asked_does_not_hold_up(cli: Cli) -> None:
    async with asyncio.timeout(8):
        error = await cli("service", "create", "-d", "busybox", fails=True)
    assert "is not a swarm manager" in error
