"""Builds through the mesh, as through the Engine itself: the classic builder, BuildKit of CLI 20.10, buildx; here and elsewhere."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator.lab import processes
from orchestrator.lab.lab import Lab, Node, wait_until
from tests.lab import programs
from tests.lab.cli import IMAGE, Cli
from tests.lab.programs import Program

pytestmark = [pytest.mark.root, pytest.mark.engine, pytest.mark.cluster, pytest.mark.timeout(300)]

DEADLINE_S = 60
PLAIN = ("--progress", "plain")
_CLASSIC = f"""
FROM {IMAGE} AS first
ARG WHO=nobody
RUN echo hello $WHO > /who # MARK
COPY data /data
RUN ls /data > /listed
FROM scratch
COPY --from=first /who /listed /
COPY --from=first /bin /bin
CMD ["/bin/cat", "/who", "/listed"]
"""
_BUILDKIT = f"""
FROM {IMAGE} AS first
RUN --mount=type=secret,id=token tr a-z A-Z < /run/secrets/token > /told # MARK
RUN --mount=type=bind,source=data,target=/data ls /data >> /told
FROM scratch
COPY --from=first /told /
"""


@dataclass(frozen=True, slots=True)
class Builder:
    """A client that builds at a socket of the mesh, and where it does: `node`'s Engine."""

    program: Program
    socket: Path
    node: Node
    is_buildkit: bool

    def build(self, *arguments: str, input: bytes | None = None) -> str:
        return self.program.ok(self.socket, "build", *arguments, input=input)

    def build_at_engine(self, *arguments: str) -> str:
        return self.program.ok(self.node.layout.engine_socket, "build", *arguments)

    def progress(self, socket: Path, *arguments: str) -> list[str]:
        """What a build tells, without what no two builds have in common; BuildKit's steps tell side by side."""
        if not self.is_buildkit:
            return self.program.ok(socket, "build", *arguments).splitlines()
        done = self.program.run(socket, "build", *PLAIN, *arguments)
        assert done.returncode == 0, done.stderr
        lines = {re.sub(r"^#\d+ |\b\d+\.\d+s\b", "", line).strip() for line in done.stderr.splitlines()}
        # what takes its time is told when it begins, too
        lines -= {line.removesuffix(" done") for line in lines if line.endswith(" done")}
        # digests: those of steps are the session's
        return sorted(line for line in lines if not line.startswith(("sha256:", "transferring", "exporting", "DONE")))


@pytest.fixture(params=["classic there", "BuildKit there", "buildx here", "buildx there"])
def builder(request: pytest.FixtureRequest, lab: Lab, fleet: Cli, tmp_path: Path) -> Builder:
    kind, where = request.param.split()
    config = tmp_path / "config"
    config.mkdir()
    node, socket = lab.nodes[where == "there"], fleet.node.layout.meshd_socket
    if kind == "buildx":
        # it sends no headers of the CLI's configuration: it is pointed at a node by that node's socket
        newest = programs.newest(config, "docker-buildx")
        program = replace(newest, words=[*newest.words, "buildx"])
        if where == "there":
            socket = socket.with_suffix(".nodes") / f"{node.name}.sock"
            wait_until(socket.exists, DEADLINE_S, f"{node.name} has its socket")
    else:
        program = programs.stable(config, buildkit=kind == "BuildKit")
        if where == "there":
            (config / "config.json").write_text(json.dumps({"HttpHeaders": {"X-Meshd-Nodes": node.name}}))
    return Builder(program, socket, node, kind != "classic")


@pytest.fixture(scope="module", autouse=True)
def caches(lab: Lab) -> Iterator[None]:
    """What builds leave for the next ones goes afterwards."""
    yield
    for node in lab.nodes[:2]:
        at_engine(node, "builder", "prune", "-af")
        at_engine(node, "image", "prune", "-f")


def at_engine(node: Node, *arguments: str) -> str:
    """The stable CLI at the node's own Engine."""
    return Program(["docker"]).ok(node.layout.engine_socket, *arguments)


def context(directory: Path, dockerfile: str) -> Path:
    """Its steps are no other test's, so that no cache knows them: MARK is replaced."""
    made = directory / "context"
    (made / "data").mkdir(parents=True)
    (made / "Dockerfile").write_text(dockerfile.replace("MARK", directory.name))
    (made / ".dockerignore").write_text("data/ignored\n")
    for name in ("kept", "ignored"):
        (made / "data" / name).write_text(name)
    return made


def archive(directory: Path) -> bytes:
    buffer = io.BytesIO()
    # the CLI knows no other for an archive
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(directory, ".")
    return buffer.getvalue()


def test_a_build_makes_and_tells_what_one_at_the_engine_does(builder: Builder, fleet: Cli, tmp_path: Path) -> None:
    where = str(context(tmp_path, _CLASSIC))
    id = builder.build("-q", "--build-arg", "WHO=me", "-t", "made:1", where)
    assert at_engine(builder.node, "image", "inspect", "--format", "{{.Id}}", "made:1") == id
    assert fleet.ok("images", "-q", "--no-trunc", "--filter", f"node={builder.node.name}", "made") == id
    assert fleet.ok("run", "--rm", "--network", "none", "made:1").split() == ["hello", "me", "kept"]
    # the Engine finds each step in its cache: it was asked for the same
    assert builder.build_at_engine("-q", "--build-arg", "WHO=me", where) == id
    told = builder.progress(builder.socket, "--build-arg", "WHO=me", where)
    assert told == builder.progress(builder.node.layout.engine_socket, "--build-arg", "WHO=me", where)
    assert any("CACHED" in line or "Using cache" in line for line in told)
    id = builder.build("-q", "--build-arg", "WHO=you", "-t", "made:2", "-", input=archive(Path(where)))
    assert id.startswith("sha256:")
    # what is piped in is taken whole
    assert fleet.ok("run", "--rm", "--network", "none", "made:2").split() == ["hello", "you", "ignored", "kept"]
    (tmp_path / "failing").write_text(f"FROM {IMAGE}\nRUN exit 7\n")
    failed = builder.program.run(builder.socket, "build", "-f", str(tmp_path / "failing"), where)
    assert failed.returncode != 0 and re.search(r"(exit|non-zero) code: 7", failed.stderr)


def test_a_session_brings_secrets_and_directories_and_takes_results(builder: Builder, tmp_path: Path) -> None:
    if not builder.is_buildkit:
        pytest.skip("the classic builder has no sessions")
    (tmp_path / "secret").write_text("hush")
    out = tmp_path / "out"
    builder.build("-q", "--secret", f"id=token,src={tmp_path / 'secret'}", "-o", str(out), str(context(tmp_path, _BUILDKIT)))
    assert (out / "told").read_text() == "HUSHkept\n"


def test_a_build_that_is_interrupted_leaves_nothing(builder: Builder, fleet: Cli, tmp_path: Path) -> None:
    # a name of its own, as all nodes of all labs are on this machine
    mark = f"{tmp_path.name}-{id(builder)}"
    where = context(tmp_path, f"FROM {IMAGE}\nRUN exec sh -c 'while :; do sleep 0.1; done' {mark}\n")

    def running() -> list[int]:
        commands = {pid: processes.command_line(pid) for pid in processes.pids()}
        return [pid for pid, words in commands.items() if words[-1:] == [mark]]

    # what a shell starts in the background is started deaf to Ctrl-C, and hands that on
    command = ["env", "--default-signal=INT", *builder.program.words, "build", str(where)]
    client = subprocess.Popen(
        command, env=builder.program.at(builder.socket), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        wait_until(lambda: bool(running()) or client.poll() is not None, DEADLINE_S, "the build is under way")
        assert client.poll() is None, client.communicate()
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=DEADLINE_S)
    finally:
        client.kill()
        client.wait()
    assert client.returncode != 0
    wait_until(lambda: not running(), DEADLINE_S, "its step has ended")
    wait_until(lambda: fleet.ok("ps", "-aq") == "", DEADLINE_S, "its container is gone")
