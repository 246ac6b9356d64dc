"""The newest docker CLI that Debian has, beside the one of this machine.

Edge: downloads a package of Debian unstable, with apt lists of its own, and unpacks it into the cache directory; installs nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

_CACHE = Path(os.environ.get("MESHD_CACHE", "/var/cache/meshd"))
_SOURCE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian sid main\n"
_APT_S = 120
# what a CLI says that nobody has looked at yet can't be told from a fault
LAST_MAJOR_LOOKED_AT = 28


class NoNewestCli(Exception):
    """Why there is none."""


def newest_cli() -> Path:
    """The program. NoNewestCli if it can't be had here."""
    present = sorted(_CACHE.glob("docker-cli-*/docker"))
    program = present[-1] if present else _downloaded()
    version = _run(str(program), "--version")
    found = re.search(r"version (\d+)\.", version)
    if found is None or int(found[1]) > LAST_MAJOR_LOOKED_AT:
        raise NoNewestCli(f"{version.strip()} is newer than {LAST_MAJOR_LOOKED_AT}, whose words are known here")
    return program


def _downloaded() -> Path:
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="docker-cli.", dir=_CACHE) as name:
        directory = Path(name)
        (directory / "sources.list").write_text(_SOURCE)
        for needed in ("lists/partial", "archives/partial"):
            (directory / needed).mkdir(parents=True)
        options = {
            "Dir::Etc::sourcelist": directory / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": directory / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": directory,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "0",
            "Acquire::http::Timeout": "20",
        }
        apt = ["apt-get", "-qq", *(f"-o{option}={value}" for option, value in options.items())]
        _run(*apt, "update", cwd=directory)
        _run(*apt, "download", "docker-cli", cwd=directory)
        (package,) = directory.glob("docker-cli_*.deb")
        _run("dpkg-deb", "-x", str(package), "unpacked", cwd=directory)
        program = directory / "unpacked/usr/bin/docker"
        _run(str(program), "--version")
        ready = _CACHE / f"docker-cli-{package.name.split('_')[1]}" / "docker"
        ready.parent.mkdir(exist_ok=True)
        # whoever is last wins, with the same
        program.rename(ready)
        return ready


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_APT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NoNewestCli(f"no newer docker CLI from Debian: {error} {getattr(error, 'stderr', '') or ''}".strip()) from None
