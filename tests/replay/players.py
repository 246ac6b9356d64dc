"""Plays scenarios against one daemon: as the docker CLI, as an HTTP client, as docker-py.

Edge: processes of the docker CLI, requests on the daemon's socket.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
from collections.abc import Mapping
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

_STEP_S = 60
_POLL_S = 60
_PREFIX_LENGTH = 10
_PLACEHOLDER = re.compile(
    r"\{(?:(?P<value>image2?|node|nowhere|address|stack)|(?P<what>id|prefix|version) (?P<kind>\w+) (?P<name>[\w-]+))\}"
)
_POLL = re.compile(r"poll (?P<pattern>.*?) :: (?P<command>.*)")
_REQUEST = re.compile(r"(?P<method>GET|HEAD|POST|PUT|DELETE) (?P<path>\S+)(?: (?P<body>.*))?")
_CALL = re.compile(r"py: (?:(?P<name>\w+) = )?(?P<expression>.*)")


@dataclass(frozen=True, slots=True)
class Played:
    """One line of a scenario and what came of it; a poll has no outcome worth comparing."""

    line: str
    outcome: Outcome | None


@dataclass(slots=True)
class Side:
    """One daemon. program: the docker CLI. values: what fills the placeholders. names: see `normalise.lines`."""

    name: str
    socket: Path
    program: str
    values: Mapping[str, str]
    _session: requests.Session = field(default_factory=requests.Session)
    _called: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._session.mount("http+unix://", UnixHTTPAdapter(f"http+unix://{self.socket}", timeout=_STEP_S))

    @property
    def names(self) -> dict[str, str]:
        directory = str(self.socket.parent)
        return {str(self.socket): "<socket>", directory: "<directory>", self.values["address"]: "<address>", self.values["node"]: "<node>"}

    def docker(self, *arguments: str, stdin: str = "") -> Outcome:
        command = [self.program, "-H", f"unix://{self.socket}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=_STEP_S)
        return Outcome(done.stdout, done.stderr, done.returncode)

    def play(self, scenario: str) -> list[Played]:
        return [self._play_line(line.strip()) for line in scenario.splitlines() if line.strip()]

    def _play_line(self, line: str) -> Played:
        filled = self._filled(line)
        if poll := _POLL.fullmatch(filled):
            self._poll(poll["pattern"], poll["command"])
            return Played(line, None)
        if request := _REQUEST.fullmatch(filled):
            return Played(line, self._request(request["method"], request["path"], request["body"] or ""))
        if call := _CALL.fullmatch(filled):
            return Played(line, self._call(call["name"], call["expression"]))
        command, _, stdin = filled.partition(" <<")
        return Played(line, self.docker(*shlex.split(command), stdin=stdin.removeprefix(" ")))

    def _poll(self, pattern: str, command: str) -> None:
        last = Outcome("")

        def matches() -> bool:
            nonlocal last
            last = self.docker(*shlex.split(command))
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
            self._called = {"client": client, "api": client.api, "types": types}
        try:
            value = eval(compile(ast.parse(expression, mode="eval"), expression, "eval"), self._called)
        except APIError as error:
            return Outcome("", f"{type(error).__name__}: {error.explanation}", error.status_code or 1)
        except DockerException as error:
            return Outcome("", f"{type(error).__name__}: {error}", 1)
        if name is not None:
            # what it is made of changes while it is allocated: asked for when it matters
            self._called[name] = value
            return Outcome(type(value).__name__)
        return Outcome(json.dumps(value, default=lambda other: other.attrs if isinstance(other, Model) else str(other)))

    def _filled(self, text: str) -> str:
        return _PLACEHOLDER.sub(lambda found: self.values[found["value"]] if found["value"] else self._looked_up(**found.groupdict()), text)

    def _looked_up(self, what: str, kind: str, name: str, value: None) -> str:
        if what == "version":
            return str(json.loads(self._request("GET", f"/{kind}/{name}", "").stdout).get("Version", {}).get("Index", 0))
        id = self.docker(kind, "inspect", name, "--format", "{{.ID}}").stdout.strip()
        return id[:_PREFIX_LENGTH] if what == "prefix" else id
