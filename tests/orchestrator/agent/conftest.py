"""A Docker Engine of the tests' own: its own data, network and mount namespaces; gone without a trace afterwards."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from orchestrator.agent.engine import DockerRuntime
from orchestrator.agent.hold import find_busybox
from orchestrator.lab import image, processes


class Engine:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"unix://{directory / 'docker.sock'}"
        self.cgroup = f"agt-{os.getpid()}"
        self.marker = f"MESHD_AGENT_TEST={os.getpid()}"
        self.files_dir = Path(f"/dev/shm/agt-{os.getpid()}")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # a containerd whose death nobody has reaped yet looks alive to dockerd: it would wait 15 s for it
        for stale in ("docker.sock", "pid", "run/containerd/containerd.pid"):
            (self.directory / stale).unlink(missing_ok=True)
        (self.directory / "daemon.json").write_text("{}")
        key, _, value = self.marker.partition("=")
        command = [
            "unshare", "--net", "--mount", "--propagation=private", "--", "dockerd",
            f"--config-file={self.directory / 'daemon.json'}", f"--data-root={self.directory / 'data'}",
            f"--exec-root={self.directory / 'run'}", f"--pidfile={self.directory / 'pid'}", f"--host={self.url}",
            "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
            "--userland-proxy=false", "--live-restore", "--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{self.cgroup}",
        ]  # fmt: skip
        with (self.directory / "log").open("ab") as log:
            environment = {**os.environ, key: value}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(Exception):
                self.client().ping()
                return
            assert self._process.poll() is None, (self.directory / "log").read_text()[-2000:]
            assert time.monotonic() < end, "dockerd does not answer"
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self) -> docker.APIClient:
        return docker.APIClient(base_url=self.url, version="auto")

    def kill(self) -> None:
        """SIGKILL to dockerd and its containerd: containers lose their Engine at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        ours = [pid for pid in processes.marked(self.marker) if "containerd" in " ".join(processes.command_line(pid)[:1])]
        processes.end(lambda: [pid for pid in ours if "shim" not in " ".join(processes.command_line(pid)[:1])], grace_s=0)

    def end(self) -> None:
        with contextlib.suppress(Exception):
            client = self.client()
            for container in client.containers(all=True):
                client.remove_container(container["Id"], force=True, v=True)
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        left = processes.end(lambda: processes.marked(self.marker) + processes.in_cgroup(self.cgroup), grace_s=0)
        assert not left
        if self._process is not None:
            self._process.wait()
        processes.remove_cgroup(self.cgroup)
        shutil.rmtree(self.files_dir, ignore_errors=True)
        shutil.rmtree(self.directory)

    def import_image(self, name: str, archive: bytes, *changes: str) -> None:
        repository, _, tag = name.partition(":")
        self.client().import_image_from_data(archive, repository=repository, tag=tag, changes=list(changes))


def archive(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    machine = Engine(Path(tempfile.mkdtemp(prefix="agt-", dir="/tmp")))
    try:
        machine.start()
        program = find_busybox().read_bytes()
        machine.import_image("bb:1", image.rootfs(), "ENV PATH=/bin VERSION=v1", 'CMD ["sleep", "1000"]', "EXPOSE 80/tcp 53/udp")
        machine.import_image("client:1", image.rootfs(), "ENV PATH=/bin")
        # nothing but a program: no shell, no /bin, no /etc
        machine.import_image("scratch:1", archive({"sleep": (program, 0o755)}), 'ENTRYPOINT ["/sleep"]', 'CMD ["1000"]')
        # its own `ls`, found before busybox's
        own_ls = b"#!/bin/busybox sh\necho own ls: $0\n"
        machine.import_image(
            "ownls:1",
            archive(
                {
                    "own/ls": (own_ls, 0o755),
                    "bin/busybox": (program, 0o755),
                    "own/plain": (b"text", 0o644),
                    "own/lost": (b"#!/none\n", 0o755),
                }
            ),
            "ENV PATH=/empty:/own discovery.type=single PWD=/elsewhere",
        )
        yield machine
    finally:
        machine.end()


class DockerBed:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._runtimes: list[DockerRuntime] = []

    def runtime(self) -> DockerRuntime:
        runtime = DockerRuntime(
            engine_url=self.engine.url, cluster_id="c1", state_dir=self.engine.directory / "state", files_dir=self.engine.files_dir
        )
        self._runtimes.append(runtime)
        return runtime

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    async def close(self) -> None:
        for runtime in self._runtimes:
            await runtime.close()
        client = self.engine.client()
        for container in client.containers(all=True):
            client.remove_container(container["Id"], force=True, v=True)
