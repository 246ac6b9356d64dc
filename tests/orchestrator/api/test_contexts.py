"""Contexts of the stock CLIs, Debian's stable one and its newest: TLS, and ssh to an sshd of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import debian
from tests.orchestrator.api.test_access import served
from tests.orchestrator.api.tls import files, free_port

STATE = ("info", "--format", "{{.Swarm.LocalNodeState}}")


@dataclass(frozen=True, slots=True)
class Cli:
    """The only docker in its PATH, which begins with `directory`/bin; `directory` is its home."""

    directory: Path
    major: int

    async def __call__(self, *arguments: str) -> str:
        """What it prints."""
        process = await asyncio.create_subprocess_exec(
            self.directory / "bin" / "docker",
            *arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": self.path, "HOME": str(self.directory), "DOCKER_CONFIG": str(self.directory / "config")},
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        return output.decode()

    @property
    def path(self) -> str:
        return f"{self.directory}/bin:/usr/bin:/bin"


@pytest.fixture(params=["Debian's", "the newest"])
def cli(request: pytest.FixtureRequest, tmp_path: Path) -> Cli:
    (tmp_path / "bin").mkdir()
    try:
        program = Path("/usr/bin/docker") if request.param == "Debian's" else debian.program("docker-cli", "usr/bin/docker")
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, debian.Missing) as missing:
        pytest.skip(str(missing))
    found = re.search(r"version (\d+)\.", version)
    assert found is not None, version
    (tmp_path / "bin" / "docker").symlink_to(program)
    return Cli(tmp_path, int(found[1]))


async def test_over_tls(cli: Cli, tmp_path: Path, certificates: Path) -> None:
    home = certificates / "alice"
    async with served(tmp_path, tls=files(certificates)) as (backend, endpoint, path):
        tls = [f"--tls{kind}={home / name}" for kind, name in (("cacert", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem"))]
        address = f"tcp://localhost:{endpoint.port}"
        assert await cli("-H", address, "--tlsverify", *tls, *STATE) == "inactive\n"
        assert "for clients with a certificate of its CA only: `meshd api-certs`" in await cli("-H", address, "--tlsverify", tls[0], "ps")
        options = f"host={address},ca={home / 'ca.pem'},cert={home / 'cert.pem'},key={home / 'key.pem'}"
        await cli("context", "create", "far", "--docker", options)
        await cli("context", "create", "near", "--docker", f"host=unix://{path}")
        for context in ("far", "near"):
            backend.state = "inactive"
            assert "Swarm initialized" in await cli("--context", context, "swarm", "init", "--advertise-addr", "10.0.0.1")
            assert "active" in await cli("--context", context, *STATE)


@pytest.mark.root
async def test_over_ssh(cli: Cli, tmp_path: Path) -> None:
    """The CLI logs in and runs `docker system dial-stdio` at the other end; DOCKER_HOST there names our socket, or the URL does."""
    async with sshd(cli) as address, served(tmp_path) as (_, _, socket):
        assert "created" in await cli("context", "create", "mesh", "--docker", f"host=ssh://{address}")
        assert "Swarm initialized" in await cli("--context", "mesh", "swarm", "init", "--advertise-addr", "10.0.0.1")
        assert "node-a" in await cli("--context", "mesh", "node", "ls")
        assert await cli("--context", "mesh", *STATE) == "active\n"
        if cli.major >= 23:
            # past the environment of the other end
            assert await cli("-H", f"ssh://{address}{socket}", *STATE) == "active\n"
            assert "Cannot connect" in await cli("-H", f"ssh://{address}{socket}.not", *STATE)


@asynccontextmanager
async def sshd(cli: Cli) -> AsyncIterator[str]:
    """Debian's sshd, unpacked, on loopback, with keys of its own: root may log in, with the key that the CLI's ssh has. Where it runs, root
    has another home and /run is empty. Yields user, host and port."""
    directory = cli.directory
    ssh, keygen = shutil.which("ssh"), shutil.which("ssh-keygen")
    if ssh is None or keygen is None:
        pytest.skip("needs an ssh client: apt-get install openssh-client")
    try:
        program = debian.program("openssh-server", "usr/sbin/sshd")
        [library] = debian.unpacked("libwrap0").rglob("libwrap.so.0")
    except debian.Missing as missing:
        pytest.skip(str(missing))
    for name in ("host", "user"):
        making = await asyncio.create_subprocess_exec(keygen, "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
        assert await making.wait() == 0
    port = free_port()
    (directory / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/user.pub\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
        f"SetEnv DOCKER_HOST=unix://{directory}/api.sock PATH={cli.path}\n"
    )
    (directory / "passwd").write_text(
        f"root:x:0:0:root:{directory}:/bin/sh\nsshd:x:65533:65534:privilege separation:/run/sshd:/usr/sbin/nologin\n"
    )
    # a locked root would not be let in by a key, either
    (directory / "shadow").write_text("root:*:19000:0:99999:7:::\n")
    # the docker CLI takes the first ssh in PATH, and ssh the configuration of the user's own home, whatever HOME says
    options = f"-i {directory}/user -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    (directory / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F /dev/null {options} "$@"\n')
    (directory / "bin" / "ssh").chmod(0o755)
    mounts = f"mount --bind {directory}/passwd /etc/passwd && mount --bind {directory}/shadow /etc/shadow && mount -t tmpfs none /run"
    serve = f"{mounts} && mkdir -m 755 /run/sshd && exec {program} -D -e -f {directory}/sshd_config"
    with (directory / "sshd.log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "sh", "-c", serve, stderr=log, env={**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
        )
    try:
        await until_open(port, server, directory / "sshd.log")
        yield f"root@127.0.0.1:{port}"
    finally:
        if server.returncode is None:
            server.terminate()
        await server.wait()


async def until_open(port: int, server: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(20):
        while True:
            assert server.returncode is None, log.read_text()
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)
