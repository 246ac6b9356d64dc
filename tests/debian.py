"""Programs of Debian's packages, beside this machine's own: unpacked into a cache directory, never installed; no service is started.

Edge: apt with lists of its own, dpkg-deb. `python -m tests.debian` (scripts/bootstrap test) downloads what is missing; tests take what is
there, and are skipped with the reason where it isn't.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

CACHE = Path(os.environ.get("MESHD_CACHE", "/var/cache/meshd")) / "packages"
# where a package comes from: the newest that Debian has, or this machine's own release, whose libraries it needs
NEWEST, OWN = "sid", "own"
PACKAGES: Mapping[str, str] = {
    "docker-cli": NEWEST,
    "docker-buildx": NEWEST,
    "docker-compose": NEWEST,
    "openssh-server": OWN,
    # what sshd needs and not every machine has
    "libwrap0": OWN,
}
# what a program says that nobody has looked at yet can't be told from a fault: packages of these major versions are used, newer ones not
_LOOKED_AT = {"docker-cli": 28, "docker-buildx": 0, "docker-compose": 2}
_APT_S = 180


class Missing(Exception):
    """It isn't here: why, and what to do."""


def unpacked(package: str) -> Path:
    """The directory with the package's files. Missing."""
    found = sorted(CACHE.glob(f"{package}_*"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise Missing(f"no package {package} in {CACHE}: `scripts/bootstrap test` downloads it")
    version = found[-1].name.partition("_")[2]
    if package in _LOOKED_AT and int(version.partition(".")[0]) > _LOOKED_AT[package]:
        raise Missing(f"{package} {version} is newer than {_LOOKED_AT[package]}, which is known here")
    return found[-1]


def program(package: str, path: str) -> Path:
    """path: as in the package, "usr/bin/docker". Missing."""
    found = unpacked(package) / path
    if not found.exists():
        raise Missing(f"{unpacked(package)} has no {path}")
    return found


def fetch(packages: Iterable[str]) -> None:
    """Those that are not there yet. Missing: Debian's mirror can't be asked, or has no such package for this machine."""
    wanted = [package for package in packages if not list(CACHE.glob(f"{package}_*"))]
    CACHE.mkdir(parents=True, exist_ok=True)
    for source in sorted({PACKAGES[package] for package in wanted}):
        with tempfile.TemporaryDirectory(prefix="unpacking.", dir=CACHE) as name:
            directory = Path(name)
            _download(directory, _own_release() if source == OWN else source, [one for one in wanted if PACKAGES[one] == source])
            for archive in sorted(directory.glob("*.deb")):
                package, version, _ = archive.name.split("_")
                _run("dpkg-deb", "-x", str(archive), str(directory / package))
                ready = CACHE / f"{package}_{version}"
                # whoever is first wins
                if not ready.exists():
                    (directory / package).rename(ready)


def _download(directory: Path, suite: str, packages: Iterable[str]) -> None:
    source = f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {_mirror()} {suite} main\n"
    (directory / "sources.list").write_text(source)
    for needed in ("lists/partial", "archives/partial"):
        (directory / needed).mkdir(parents=True)
    options = {
        "Dir::Etc::sourcelist": directory / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": directory / "lists",
        # nothing is installed, as far as this is concerned
        "Dir::State::status": "/dev/null",
        "Dir::Cache": directory,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "0",
        "Acquire::http::Timeout": "20",
    }
    apt = ["apt-get", "-qq", *(f"-o{option}={value}" for option, value in options.items())]
    _run(*apt, "update", cwd=directory)
    _run(*apt, "download", *packages, cwd=directory)


def _mirror() -> str:
    """Where this machine has its own packages from."""
    wanted = ("Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main")
    found = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).split()
    if not found:
        raise Missing("apt knows no mirror of Debian: check /etc/apt, then `apt-get update`")
    return found[0]


def _own_release() -> str:
    words = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return words.get("VERSION_CODENAME", "stable").strip('"')


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_APT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Missing(f"{error} {getattr(error, 'stderr', '') or ''}".strip()) from None


if __name__ == "__main__":
    try:
        fetch(PACKAGES)
    except Missing as error:
        sys.exit(f"debian: {error}")
