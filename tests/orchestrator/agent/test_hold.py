"""What /proc says of a container's first process, and what that means."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from orchestrator.agent import hold


@pytest.fixture
def living() -> Iterator[int]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        # an answer: its exec is over
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"\n"
        yield process.pid


@pytest.fixture
def zombie() -> Iterator[int]:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process.pid
    process.wait()


def test_an_application_waits_no_more(living: int) -> None:
    assert not hold.is_waiting(living)


@pytest.mark.parametrize("command_line", [["runc", "init", ""], [*hold.ENTRYPOINT, "sh", "-c", "true", ""]])
def test_the_runtime_and_the_holder_wait(living: int, command_line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "_command_line", lambda pid: command_line)
    assert hold.is_waiting(living)


def test_in_the_middle_of_an_exec_it_may_have_become_the_holder(living: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for the application, it would be marked as released, and wait for ever."""
    monkeypatch.setattr(hold, "_command_line", lambda pid: [""])
    assert hold.is_waiting(living)


def test_a_child_of_the_init_process_in_the_middle_of_its_exec(living: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "_children", lambda pid: [-1])
    monkeypatch.setattr(hold, "_command_line", lambda pid: ["/sbin/docker-init", "--", "true", ""] if pid == living else [""])
    assert hold.is_waiting(living)


def test_who_has_ended_waits_no_more(zombie: int) -> None:
    assert hold._command_line(zombie) == [""]
    assert not hold.is_waiting(zombie)


def test_who_is_gone_waits_no_more() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert not hold.is_waiting(process.pid)
