"""The command line: what it teaches, and one sentence for every machine that can't be a node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator import daemon
from orchestrator.cli.main import main


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_help_teaches_the_way_from_nothing_to_a_cluster() -> None:
    text = _run("--help").output
    for word in ("daemon", "docker -H unix:///run/meshd/meshd.sock swarm init", "lab", "demo", "doctor", "trace", "dns"):
        assert word in text
    for command in ("daemon", "lab", "demo", "doctor", "trace", "dns"):
        result = _run(command, "--help")
        assert result.exit_code == 0
        assert result.output.count("\n") > 5


def test_help_waits_for_nothing_heavy() -> None:
    loaded = "import sys, orchestrator.cli.main; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert "orchestrator.cli.stack" in modules
    assert not {"mesh", "pyroute2", "aiohttp"} & set(modules)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--engine", "tcp://1.2.3.4:2375"], "through a unix socket: unix:///path"),
        (["--permit", "everything"], "everything is no permission: there are bind-mounts, "),
        (["--permit", "gpus", "--forbid", "gpus"], "gpus can't be permitted and forbidden"),
        (["--advertise-addr", "banana"], "--advertise-addr banana: not an IP address"),
        (["--metrics", "localhost:9323"], "--metrics 'localhost:9323' is no address"),
        (["--metrics", "127.0.0.1"], "--metrics 127.0.0.1: give a port as well, such as 127.0.0.1:9323"),
        (["--host", "tcp://0.0.0.0:2376"], "TCP needs --tlsverify (`meshd api-certs` makes the certificates)"),
        (["--host", "0.0.0.0:2376"], "--host 0.0.0.0:2376: not an endpoint"),
        (["--tlsverify", "--insecure-plain-tcp"], "exclude each other"),
        (["--listen-addr", "0.0.0.0:99999"], "--listen-addr 0.0.0.0:99999: not an IP address"),
    ],
)
def test_bad_options_are_named(options: list[str], sentence: str) -> None:
    result = _run("daemon", *options)
    assert result.exit_code == 2
    assert sentence in result.output


def test_api_certificates_are_made_once(tmp_path: Path) -> None:
    made = _run("api-certs", str(tmp_path / "api"), "--client", "alice", "--name", "node-1.example")
    assert made.output.split() == [
        "made",
        f"{tmp_path}/api/ca.pem",
        "made",
        f"{tmp_path}/api/server-cert.pem",
        "made",
        f"{tmp_path}/api/alice/cert.pem",
    ]
    assert "--renew makes it anew" in _run("api-certs", str(tmp_path / "api"), "--client", "alice").output
    wrong = _run("api-certs", str(tmp_path / "api"), "--client", "a/b")
    assert (wrong.exit_code, "can't name a client" in wrong.output) == (2, True)


def test_not_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    daemon = _run("daemon", "--state-dir", str(tmp_path))
    assert (daemon.exit_code, "run it as root" in daemon.output) == (2, True)
    lab = _run("lab", "--state-dir", str(tmp_path / "l"), "up")
    assert (lab.exit_code, "run this as root" in lab.output) == (2, True)
    doctor = _run("doctor")
    assert (doctor.exit_code, "run it with sudo" in doctor.output) == (1, True)


def test_what_kernel_or_programs_lack_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    options = ["daemon", "--state-dir", str(tmp_path), "--socket", str(tmp_path / "s")]
    monkeypatch.setattr(daemon, "check_kernel", lambda: ["this kernel has no VXLAN: modprobe vxlan"])
    result = _run(*options)
    assert (result.exit_code, "no VXLAN: modprobe vxlan" in result.output) == (2, True)
    monkeypatch.setattr(daemon, "check_kernel", list)
    monkeypatch.setattr(daemon.shutil, "which", lambda *a, **k: None)
    result = _run(*options)
    assert (result.exit_code, "apt-get install nftables" in result.output) == (2, True)
    assert not list(tmp_path.iterdir()), "nothing was made"


def test_doctor_says_what_to_do_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    result = _run("doctor", "--engine", "unix:///nonexistent.sock")
    assert result.exit_code == 1
    assert "no Docker Engine answers at unix:///nonexistent.sock" in result.output
    assert "start it, or say where it is with --engine" in result.output


def test_trace_needs_a_daemon(tmp_path: Path) -> None:
    result = _run("trace", "web", "--socket", str(tmp_path / "none.sock"))
    assert (result.exit_code, "start it, or say where it is with --socket" in result.output) == (2, True)


def test_lab_status_of_nothing() -> None:
    result = _run("lab", "--state-dir", "/nonexistent", "status")
    assert (result.exit_code, "`meshd lab up` makes one" in result.output) == (0, True)
