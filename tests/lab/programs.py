"""The docker CLIs that tests play against a lab: Debian's stable one, and its newest with the plugins buildx and compose.

Edge: programs and their configuration directories. pytest skips what this machine doesn't have.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import debian

_TIMEOUT_S = 180


@dataclass(frozen=True, slots=True)
class Program:
    """A docker CLI with a configuration of its own. words: what every command of it begins with."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def at(self, socket: Path) -> dict[str, str]:
        """The environment in which it asks there."""
        return {**os.environ, **self.environment, "DOCKER_HOST": f"unix://{socket}"}

    def run(self, socket: Path, *arguments: str, input: bytes | None = None) -> subprocess.CompletedProcess[str]:
        command = [*self.words, *arguments]
        done = subprocess.run(command, env=self.at(socket), capture_output=True, input=input, timeout=_TIMEOUT_S)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, socket: Path, *arguments: str, input: bytes | None = None) -> str:
        done = self.run(socket, *arguments, input=input)
        assert done.returncode == 0, f"{' '.join(done.args)}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def fails(self, socket: Path, *arguments: str) -> str:
        done = self.run(socket, *arguments)
        assert done.returncode != 0, f"{' '.join(done.args)} was accepted: {done.stdout}"
        return done.stderr.strip()


def stable(config: Path, buildkit: bool) -> Program:
    """With the builder that is its own: the classic one, or BuildKit's client that was built in up to version 20.10."""
    program = "/usr/bin/docker"
    found = re.search(r"version (\d+)\.", _version(program))
    if found is None or (buildkit and int(found[1]) > 20):
        pytest.skip(f"{program} is no CLI of 20.10: {_version(program)}")
    return Program([program], {"DOCKER_CONFIG": str(config), "DOCKER_BUILDKIT": "1" if buildkit else "0"})


def newest(config: Path, *plugins: str) -> Program:
    """plugins: "docker-buildx", "docker-compose"."""
    try:
        program = debian.program("docker-cli", "usr/bin/docker")
        (config / "cli-plugins").mkdir(parents=True, exist_ok=True)
        for plugin in plugins:
            link = config / "cli-plugins" / plugin
            link.unlink(missing_ok=True)
            link.symlink_to(debian.program(plugin, f"usr/libexec/docker/cli-plugins/{plugin}"))
    except debian.Missing as missing:
        pytest.skip(str(missing))
    return Program([str(program)], {"DOCKER_CONFIG": str(config)})


def _version(program: str) -> str:
    try:
        return subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S).stdout.strip()
    except OSError as error:
        return str(error)
