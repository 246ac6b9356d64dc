"""Containers of the whole cluster through one manager, with the stock CLI and docker-py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from orchestrator.lab.lab import Lab, wait_until
from tests.lab.cli import IMAGE, Cli
from tests.terminal import Terminal

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ON_2 = ("-e", "constraint:node==node-2")
DEADLINE_S = 60


@pytest.fixture
def containers(lab: Lab, cli: Cli) -> Iterator[Cli]:
    """Containers made by hand are removed afterwards."""
    try:
        yield cli
    finally:
        for node in lab.nodes:
            wait_until(lambda node=node: bool(node.pid_of("meshd")), DEADLINE_S, f"meshd of {node.name} runs")  # type: ignore[misc]
        wait_until(lambda: _away(cli) == [], DEADLINE_S, "all nodes answer")
        if left := cli.ok("ps", "-aq").split():
            cli.ok("rm", "-f", *left)


def _away(cli: Cli) -> list[str]:
    return [line for line in cli.ok("node", "ls", "--format", "{{.Hostname}} {{.Status}}").splitlines() if not line.endswith("Ready")]


# ---- one machine -----------------------------------------------------------------------------------------------------------------------


def test_run_spreads_and_ps_shows_all(lab: Lab, containers: Cli) -> None:
    ids = {name: containers.ok("run", "-d", "--name", name, IMAGE) for name in ("one", "two", "three")}
    nodes = dict(line.split() for line in containers.ok("ps", "--format", '{{.Names}} {{.Label "com.meshd.node"}}').splitlines())
    assert sorted(nodes) == ["one", "three", "two"]
    assert sorted(nodes.values()) == ["node-1", "node-2", "node-3"]
    two = nodes["two"]
    assert containers.ok("ps", "-q", "--no-trunc", "--filter", f"node={two}") == ids["two"]
    assert containers.ok("inspect", f"{two}/two", "--format", "{{.Node.Name}} {{.Name}}") == f"{two} /two"
    assert f'The container name "/two" is already in use by container "{ids["two"]}"' in containers.fails("run", "--name", "two", IMAGE)
    assert "already in use" in containers.fails("rename", "one", "two")
    stats = containers.ok("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}").splitlines()
    assert sorted(line.split()[0] for line in stats) == ["one", "three", "two"]
    assert containers.ok("ps", "-q", "-n", "2", "--no-trunc").split() == [ids["three"], ids["two"]]
    worker = Cli(next(node for node in lab.nodes if node.name != "node-1"))
    assert worker.ok("ps", "-q", "--no-trunc").split() == [id for name, id in ids.items() if nodes[name] == worker.node.name]


def test_everything_a_container_can_be_asked_on_another_node(containers: Cli, tmp_path: Path) -> None:
    ok = containers.ok
    id = ok("run", "-d", "--name", "box", *ON_2, IMAGE, "sh", "-c", "echo out; echo err >&2; exec idle")
    assert ok("inspect", "box", "--format", '{{.Node.Name}} {{index .Config.Labels "com.docker.swarm.constraints"}}') == (
        'node-2 ["node==node-2"]'
    )
    assert "constraint" not in ok("exec", "box", "env")
    wait_until(lambda: "out" in containers.run("logs", id[:10]).stdout, DEADLINE_S, "its log is there")
    logs = containers.run("logs", id[:10])
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")
    assert "idle" in ok("top", "box")
    assert containers.run("exec", "box", "sh", "-c", "exit 3").returncode == 3
    assert ok("exec", "-i", "box", "cat", input="half closed") == "half closed"
    (tmp_path / "file").write_text("x" * 3_000_000)
    ok("cp", str(tmp_path / "file"), "box:/tmp/file")
    ok("cp", "box:/tmp/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "x" * 3_000_000
    assert "A /tmp/file" in ok("diff", "box")
    done = subprocess.run(containers.command("export", "box"), capture_output=True, timeout=60, check=True)
    assert len(done.stdout) > 3_000_000
    assert ok("commit", "box", "committed:1").startswith("sha256:")
    assert _at(containers, "node-2", "rmi", "committed:1").returncode == 0
    ok("rename", "box", "case")
    ok("pause", "case")
    assert ok("ps", "--filter", "status=paused", "--format", "{{.Names}}") == "case"
    ok("unpause", "case")
    ok("update", "--memory-reservation", "10m", "case")
    waiting = subprocess.Popen(containers.command("wait", "case"), stdout=subprocess.PIPE, text=True)
    # it may come before the wait or after it: the answer is the same
    ok("kill", "case")
    assert waiting.communicate(timeout=DEADLINE_S)[0].strip() == "137"
    ok("start", "case")
    ok("restart", "-t", "0", "case")
    ok("stop", "-t", "0", "case")
    ok("rm", "case")
    assert "No such container: case" in containers.fails("inspect", "--type", "container", "case")


def test_run_gives_back_output_input_and_exit_code(containers: Cli) -> None:
    done = containers.run("run", "--rm", *ON_2, IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)
    text = "line\n" * 100_000
    done = containers.run("run", "--rm", "-i", *ON_2, IMAGE, "sh", "-c", "cat; echo end", input=text)
    assert (done.stdout == text + "end\n", done.returncode) == (True, 0)
    assert containers.ok("ps", "-aq") == ""
    assert "Unable to find image" in containers.fails("run", "--rm", "registry.invalid/nosuch:x", "true")


def test_terminals_are_resized_and_detached_from(containers: Cli) -> None:
    run = Terminal(containers.command("run", "-it", "--name", "term", *ON_2, IMAGE, "sh"))
    run.expect(r"# ")
    run.type("stty size; echo rea''dy\n")
    run.expect(r"33 101\s+ready")
    run.resize(40, 120)
    run.type("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.1; done; echo res''ized\n")
    run.expect(r"resized")
    run.type("\x10\x11")
    assert run.ends() == 0
    inside = Terminal(containers.command("exec", "-it", "term", "sh"), rows=20, columns=70)
    inside.expect(r"# ")
    inside.type("while [ \"$(stty size)\" != '20 70' ]; do sleep 0.1; done; exit 5\n")
    assert inside.ends() == 5
    again = Terminal(containers.command("attach", "term"))
    again.type("\necho ba''ck; exit 4\n")
    again.expect(r"back")
    assert again.ends() == 4


# ---- one node --------------------------------------------------------------------------------------------------------------------------


def _node_socket(cli: Cli, node: str) -> Path:
    return cli.node.layout.meshd_socket.with_suffix(".nodes") / f"{node}.sock"


def _at(cli: Cli, node: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The CLI at the manager's socket for one node."""
    socket = _node_socket(cli, node)
    wait_until(socket.exists, DEADLINE_S, f"{node} has its socket")
    return subprocess.run(["docker", "-H", f"unix://{socket}", *arguments], capture_output=True, text=True, timeout=60)


def test_each_node_has_a_socket_of_its_own(lab: Lab, containers: Cli) -> None:
    containers.ok("run", "-d", "--name", "there", *ON_2, IMAGE, "idle")
    for node in lab.nodes:
        assert _at(containers, node.name, "info", "--format", "{{.Swarm.LocalNodeState}}").stdout == "inactive\n"
        assert _at(containers, node.name, "ps", "--format", "{{.Names}}").stdout.split() == (["there"] if node.name == "node-2" else [])
    assert _at(containers, "node-2", "run", "--rm", IMAGE, "echo", "here").stdout == "here\n"
    assert "not a swarm manager" in _at(containers, "node-2", "node", "ls").stderr


# ---- docker-py -------------------------------------------------------------------------------------------------------------------------


def test_docker_py(lab: Lab, containers: Cli) -> None:
    client = lab.nodes[0].docker()
    try:
        env = ["constraint:node==node-3"]
        assert client.containers.run(IMAGE, ["echo", "hi"], environment=env, remove=True) == b"hi\n"
        container = client.containers.run(IMAGE, ["idle"], name="py", environment=env, detach=True)
        assert [one.name for one in client.containers.list(filters={"node": "node-3"})] == ["py"]
        assert container.exec_run(["sh", "-c", "echo x; exit 2"]) == (2, b"x\n")
        _, stream = container.exec_run(["cat"], stdin=True, socket=True)
        stream._sock.sendall(b"typed")
        stream._sock.shutdown(1)
        assert b"typed" in stream.read()
        stats = container.stats(stream=False)
        assert stats["id"] == container.id
        with pytest.raises(docker.errors.APIError) as refused:
            client.containers.create(IMAGE, name="py")
        assert refused.value.status_code == 409
        container.kill()
        assert container.wait()["StatusCode"] == 137
        container.remove()
        with pytest.raises(docker.errors.NotFound):
            client.containers.get("py")
    finally:
        client.close()


# ---- nodes that go ---------------------------------------------------------------------------------------------------------------------


def test_a_node_that_is_lost_in_the_middle_is_told_in_words(lab: Lab, containers: Cli) -> None:
    """Its meshd is killed: what goes through it breaks off. The container runs on, and is there again when meshd is."""
    containers.ok("run", "-d", "--name", "long", "-e", "constraint:node==node-3", IMAGE, "sh", "-c", "while sleep 0.1; do echo tick; done")
    streams = {
        command: subprocess.Popen(containers.command(*command.split()), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in ("wait long", "logs -f long", "attach --no-stdin long")
    }
    try:
        for process in list(streams.values())[1:]:
            assert process.stdout is not None and process.stdout.readline() == "tick\n"
        lab.nodes[2].kill("meshd")
        for command, process in streams.items():
            output = process.communicate(timeout=DEADLINE_S)[0]
            assert "node-3" in output, (command, output)
    finally:
        for process in streams.values():
            process.kill()
            process.wait()
    wait_until(lambda: bool(lab.nodes[2].pid_of("meshd")), DEADLINE_S, "meshd of node-3 runs again")
    wait_until(lambda: "long" in containers.run("ps", "--format", "{{.Names}}").stdout, DEADLINE_S, "its container is shown again")
    assert json.loads(containers.ok("inspect", "long"))[0]["State"]["Running"]
