"""Which of the unpacked packages tests use, and what they say where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import debian


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(debian, "CACHE", tmp_path)
    return tmp_path


def test_the_one_that_was_unpacked_last(cache: Path) -> None:
    for age, version in enumerate(("28.5.2+dfsg4-5", "28.10.1", "27.0")):
        (cache / f"docker-cli_{version}").mkdir()
        os.utime(cache / f"docker-cli_{version}", (0, 100 - age))
    (cache / "docker-cli-extra_99").mkdir()
    assert debian.unpacked("docker-cli").name == "docker-cli_28.5.2+dfsg4-5"
    with pytest.raises(debian.Missing, match=r"docker-cli_28\.5\.2\+dfsg4-5 has no usr/bin/docker"):
        debian.program("docker-cli", "usr/bin/docker")


def test_what_is_missing_or_not_known_yet_is_told(cache: Path) -> None:
    with pytest.raises(debian.Missing, match=r"no package docker-cli in .*: `scripts/bootstrap test` downloads it"):
        debian.unpacked("docker-cli")
    (cache / "docker-cli_29.0.1-1").mkdir()
    with pytest.raises(debian.Missing, match=r"docker-cli 29\.0\.1-1 is newer than 28, which is known here"):
        debian.unpacked("docker-cli")
    # an epoch, as apt writes it
    (cache / "openssh-server_1%3a9.2p1-2+deb12u10").mkdir()
    assert debian.unpacked("openssh-server").name == "openssh-server_1%3a9.2p1-2+deb12u10"


def test_a_mirror_that_can_not_be_asked_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(debian.Missing, match="apt-get"):
        debian.fetch(["docker-cli"])
    assert list(cache.iterdir()) == []
