"""The daemon itself, in no cluster and in a network of its own: the doors its command line opens, what it warns of, what it writes down."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.audit_log import read

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


class Daemon:
    def __init__(self, pid: int, directory: Path) -> None:
        self.pid, self.directory = pid, directory

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The stock CLI beside the daemon."""
        if shutil.which("docker") is None:
            pytest.skip("needs the docker CLI: apt-get install docker.io")
        return subprocess.run(["nsenter", "-t", str(self.pid), "--net", "docker", *arguments], capture_output=True, text=True, timeout=60)

    def info(self, *options: str) -> dict[str, object]:
        done = self.docker(*options, "info", "--format", "json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        return answer


@contextmanager
def running(directory: Path, *options: str) -> Iterator[Daemon]:
    """`unshare` becomes the shell, which becomes meshd: one pid."""
    words = [sys.executable, "-m", "orchestrator.cli", "daemon", f"--state-dir={directory}/state", f"--socket={directory}/meshd.sock"]
    words += [f"--engine=unix://{directory}/no-engine.sock", "--hostname=alone", *options]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *words], stderr=log)
    try:
        deadline = time.monotonic() + 60
        while b"meshd version=" not in (directory / "log").read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.05)
        yield Daemon(process.pid, directory)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_tcp_with_certificates_made_by_api_certs(tmp_path: Path) -> None:
    certificates = tmp_path / "api"
    made = [sys.executable, "-m", "orchestrator.cli", "api-certs", str(certificates), "--client", "alice", "--name", "127.0.0.1"]
    subprocess.run(made, check=True, capture_output=True)
    files = [f"--tls{kind}={certificates}/{name}.pem" for kind, name in (("cacert", "ca"), ("cert", "server-cert"), ("key", "server-key"))]
    hosts = ["--host=tcp://127.0.0.1:2376", "--host=tcp://127.0.0.1:2476", f"--host=unix://{tmp_path}/second.sock"]
    with running(tmp_path, *hosts, "--tlsverify", *files) as daemon:
        alice = [f"--tls{kind}={certificates}/alice/{name}.pem" for kind, name in (("cacert", "ca"), ("cert", "cert"), ("key", "key"))]
        for host in ("tcp://127.0.0.1:2376", "tcp://127.0.0.1:2476"):
            assert "is accessible on" not in str(daemon.info("-H", host, "--tlsverify", *alice)["Warnings"])
        assert "with a certificate of its CA only" in daemon.docker("-H", "tcp://127.0.0.1:2376", "--tlsverify", alice[0], "ps").stderr
        assert "HTTP request to an HTTPS server" in daemon.docker("-H", "tcp://127.0.0.1:2376", "ps").stderr
        daemon.info("-H", f"unix://{tmp_path}/second.sock")
        assert (tmp_path / "second.sock").stat().st_mode & 0o777 == 0o660
        # refused, and written down
        left = daemon.docker("-H", "tcp://127.0.0.1:2376", "--tlsverify", *alice, "swarm", "leave")
        assert "This node is not part of a swarm" in left.stderr
        [record] = read(tmp_path / "state" / "audit.log")
        assert (record.who, record.address, record.action, record.status) == ("alice", "127.0.0.1", "leave", 503)


def test_plain_tcp_is_warned_of(tmp_path: Path) -> None:
    with running(tmp_path, "--host=tcp://127.0.0.1", "--insecure-plain-tcp", "--audit-log=none") as daemon:
        warnings = str(daemon.info("-H", "tcp://127.0.0.1:2375")["Warnings"])
        assert "WARNING: API is accessible on tcp://127.0.0.1:2375 without encryption" in warnings
        assert "WARNING" in (tmp_path / "log").read_text() and "is root on every node" in (tmp_path / "log").read_text()
    assert not (tmp_path / "state" / "audit.log").exists()
