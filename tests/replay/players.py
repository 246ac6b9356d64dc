"""Plays scenarios against one daemon: as the docker CLI (on a terminal, too), in a shell, as an HTTP client, as docker-py.

Edge: processes of the docker CLI, requests on the daemon's socket.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import requests
from docker import types
from docker.errors import APIError, DockerException
from docker.models.resource import Model
from docker.transport import UnixHTTPAdapter

from orchestrator.lab.lab import LabError, wait_until
from tests.replay.normalise import Outcome
from tests.terminal import Terminal

# far more than anything takes: a machine that is busy with other things makes no difference
_STEP_S = 120
_POLL_S = 90
_PREFIX_LENGTH = 10
_PLACEHOLDER = re.compile(
    r"\{(?:(?P<value>image2?|nowhere|cli|stack|began|(?:node|address)(?:-\d)?)|token (?P<role>\w+)|task (?P<service>[\w-]+)"
    r"|(?P<what>id|prefix|version) (?P<kind>\w+) (?P<name>[\w-]+))\}"
)
SORTED = "sorted "
_AT = re.compile(r"@(?P<node>\S+) (?P<command>.*)")
_POLL = re.compile(r"poll (?P<pattern>.*?) :: (?P<command>.*)")
_REQUEST = re.compile(r"(?P<method>GET|HEAD|POST|PUT|DELETE) (?P<path>\S+)(?: (?P<body>.*))?")
_SHELL = re.compile(r"sh: (?P<script>.*)")
_TERMINAL = re.compile(r"tty: (?P<command>.*?)(?P<acts> :: .*)")
_CALL = re.compile(r"py: (?:(?P<name>\w+) = )?(?P<expression>.*)")


@dataclass(frozen=True, slots=True)
class Played:
    """One line of a scenario and what came of it; a poll has no outcome worth comparing."""

    line: str
    outcome: Outcome | None


@dataclass(slots=True)
class Side:
    """One daemon, or a cluster asked at its first node. program: the docker CLI. values: what fills the placeholders. others: the sockets
    of its other nodes, by name. directory: where lines of the shell are run."""

    name: str
    socket: Path
    program: str
    values: Mapping[str, str]
    others: Mapping[str, Path] = field(default_factory=dict)
    directory: Path = Path("/nonexistent")
    _began: str = field(init=False, default_factory=lambda: f"{time.time():.6f}")
    _session: requests.Session = field(default_factory=requests.Session)
    _called: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._session.mount("http+unix://", UnixHTTPAdapter(f"http+unix://{self.socket}", timeout=_STEP_S))

    @property
    def names(self) -> dict[str, str]:
        """What is called otherwise on another side -> the word for it; see `normalise.lines`."""
        sockets = {str(socket): "<socket>" for socket in (self.socket, *self.others.values())}
        directories = {str(self.directory): "<files>"} | {str(Path(socket).parent): "<directory>" for socket in sockets}
        places = {value: f"<{key}>" for key, value in self.values.items() if key.startswith(("node", "address"))}
        return {**sockets, **directories, **places}

    def docker(self, *arguments: str, stdin: str = "", at: str = "") -> Outcome:
        """at: the name of another node."""
        command = [self.program, "-H", f"unix://{self.others[at] if at else self.socket}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=_STEP_S, env=self._environment)
        return Outcome(done.stdout, done.stderr, done.returncode)

    @property
    def _environment(self) -> dict[str, str]:
        """Of the docker CLI: nothing of what this machine's user has set up for his own."""
        return {"PATH": f"{Path(self.program).parent}:{os.environ['PATH']}", "DOCKER_CONFIG": "/nonexistent", "LC_ALL": "C.UTF-8"}

    def play(self, scenario: str | Iterable[str]) -> list[Played]:
        lines = scenario.splitlines() if isinstance(scenario, str) else scenario
        return [self.play_line(line.strip()) for line in lines if line.strip()]

    def play_line(self, line: str) -> Played:
        filled = self._filled(line)
        if poll := _POLL.fullmatch(filled):
            self._poll(poll["pattern"], poll["command"])
            return Played(line, None)
        if request := _REQUEST.fullmatch(filled):
            return Played(line, self._request(request["method"], request["path"], request["body"] or ""))
        if call := _CALL.fullmatch(filled):
            return Played(line, self._call(call["name"], call["expression"]))
        if shell := _SHELL.fullmatch(filled):
            return Played(line, self._shell(shell["script"]))
        if terminal := _TERMINAL.fullmatch(filled):
            return Played(line, self._terminal(terminal["command"], terminal["acts"]))
        return Played(line, self._command(filled.removeprefix(SORTED)))

    def _command(self, line: str) -> Outcome:
        there = _AT.fullmatch(line)
        command, _, stdin = (there["command"] if there else line).partition(" <<")
        return self.docker(*shlex.split(command), stdin=stdin.removeprefix(" "), at=there["node"] if there else "")

    def _shell(self, script: str) -> Outcome:
        """What it leaves in the background is ended."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                ["bash", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**self._environment, "DOCKER_HOST": f"unix://{self.socket}", "SOCKET": str(self.socket)},
                cwd=self.directory,
                start_new_session=True,
            )
            try:
                code = process.wait(_STEP_S)
            except subprocess.TimeoutExpired:
                return Outcome("", f"no end within {_STEP_S} s", 124)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for file in (out, err):
                file.seek(0)
            return Outcome(out.read().decode(errors="replace"), err.read().decode(errors="replace"), code)

    def _terminal(self, command: str, acts: str) -> Outcome:
        terminal = Terminal([self.program, "-H", f"unix://{self.socket}", *shlex.split(command)], environment=self._environment)
        try:
            for act in acts.split(" :: ")[1:]:
                verb, _, rest = act.partition(" ")
                match verb:
                    case "expect":
                        terminal.expect(rest)
                    case "type":
                        terminal.type(rest.encode().decode("unicode_escape"))
                    case "resize":
                        rows, _, columns = rest.partition("x")
                        terminal.resize(int(rows), int(columns))
                    case _:
                        raise ValueError(f"{act!r}: neither expect nor type nor resize")
        except AssertionError as error:
            terminal.process.kill()
            return Outcome("", str(error), terminal.ends())
        return Outcome("", code=terminal.ends())

    def _poll(self, pattern: str, command: str) -> None:
        last = Outcome("")

        def matches() -> bool:
            nonlocal last
            last = self._command(command)
            return re.search(pattern, last.stdout.strip()) is not None

        try:
            wait_until(matches, _POLL_S, f"{self.name}: `{command}` says {pattern}", every_s=0.2)
        except LabError as error:
            raise LabError(f"{error}; it says {last}") from None

    def _request(self, method: str, path: str, body: str) -> Outcome:
        headers = {"Content-Type": "application/json"}
        answer = self._session.request(method, f"http+unix://d{path}", data=body.encode(), headers=headers, timeout=_STEP_S)
        return Outcome(answer.text, code=answer.status_code)

    def _call(self, name: str | None, expression: str) -> Outcome:
        if not self._called:
            client = docker.DockerClient(base_url=f"unix://{self.socket}", timeout=_STEP_S)
            self._called = {"client": client, "api": client.api, "types": types, "io": io, "tarball": _tarball("file", b"content\n")}
        try:
            value = eval(compile(ast.parse(expression, mode="eval"), expression, "eval"), self._called)
        except APIError as error:
            return Outcome("", f"{type(error).__name__}: {error.explanation}", error.status_code or 1)
        except (DockerException, OSError) as error:
            return Outcome("", f"{type(error).__name__}: {error}", 1)
        if name is not None:
            # what it is made of changes while it is allocated: asked for when it matters
            self._called[name] = value
            return Outcome(type(value).__name__)
        return Outcome(json.dumps(value, default=lambda other: other.attrs if isinstance(other, Model) else str(other)))

    def _filled(self, text: str) -> str:
        return _PLACEHOLDER.sub(self._value, text)

    def _value(self, found: re.Match[str]) -> str:
        if found["value"] == "began":
            return self._began
        if found["value"]:
            return self.values[found["value"]]
        if found["role"]:
            return self.docker("swarm", "join-token", "-q", found["role"]).stdout.strip()
        if found["service"]:
            return self.docker("service", "ps", "-q", "--no-trunc", found["service"]).stdout.partition("\n")[0]
        if found["what"] == "version":
            return str(json.loads(self._request("GET", f"/{found['kind']}/{found['name']}", "").stdout).get("Version", {}).get("Index", 0))
        id = self.docker(found["kind"], "inspect", found["name"], "--format", "{{.ID}}").stdout.strip()
        return id[:_PREFIX_LENGTH] if found["what"] == "prefix" else id


def _tarball(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
