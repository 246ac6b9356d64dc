"""The keyring's file: sealed and opened, and cut off at every step of a change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.security import keyring
from orchestrator.security.keyring import Keyring, Locked, WrongKey
from tests.orchestrator.crash import crashing_at_every_step

KEYS = Keyring(passphrase=b"open sesame", store_key=bytes(range(32)))
A, B = keyring.new_unlock_key(), keyring.new_unlock_key()


def opened(directory: Path) -> str:
    """Which unlock key opens it: "A", "B", or "" for none needed."""
    for name, key in (("", b""), ("A", A), ("B", B)):
        try:
            assert keyring.load(directory, key) == KEYS
            return name
        except (Locked, WrongKey):
            continue
    raise AssertionError("nothing opens it")


def test_what_is_sealed_opens_with_its_key_only(tmp_path: Path) -> None:
    assert keyring.load(tmp_path) is None
    keyring.save(tmp_path, KEYS, A)
    with pytest.raises(Locked, match="docker swarm unlock"):
        keyring.load(tmp_path)
    with pytest.raises(WrongKey, match="swarm could not be unlocked: invalid key provided"):
        keyring.load(tmp_path, B)
    assert keyring.load(tmp_path, A) == KEYS
    # an open one takes any key: who unlocks a node that was opened meanwhile isn't turned away
    keyring.save(tmp_path, KEYS)
    assert keyring.load(tmp_path) == keyring.load(tmp_path, A) == KEYS
    assert "sesame" not in repr(KEYS)
    [path] = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    keyring.erase(tmp_path)
    assert keyring.load(tmp_path) is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", ["", "A"])
@pytest.mark.parametrize("after", ["", "A", "B"])
def test_a_crash_at_any_step_leaves_the_key_before_or_the_key_after(tmp_path: Path, before: str, after: str) -> None:
    key = {"": b"", "A": A, "B": B}
    steps = 0

    def prepare() -> Path:
        nonlocal steps
        steps += 1
        directory = tmp_path / str(steps)
        keyring.save(directory, KEYS, key[before])
        return directory

    for directory in crashing_at_every_step(prepare, lambda directory: keyring.save(directory, KEYS, key[after])):
        assert opened(directory) in (before, after)
        # and nothing half-written stays beside it
        assert [path.name for path in directory.iterdir()] == ["keyring.json"]
        keyring.save(directory, KEYS, key[after])
        assert opened(directory) == after
    assert steps > 5


def test_what_it_held_is_overwritten_where_it_lay(tmp_path: Path) -> None:
    keyring.save(tmp_path, KEYS)
    with open(tmp_path / "keyring.json", "rb") as before:
        assert b'"sealed":false' in before.read()
        keyring.save(tmp_path, KEYS, A)
        before.seek(0)
        assert set(before.read()) == {0}


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"nonsense", b'{"format":2,"sealed":false,"keys":""}', b'{"format":1,"sealed":false,"keys":"e30="}']
)
def test_an_unfit_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keyring.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"keyring\.json"):
        keyring.load(tmp_path)


def test_unlock_keys_are_swarms() -> None:
    text = "SWMKEY-1-RfDxeu2iq7nGIBLBahUOld4hn9jzUyY4uoUl7RqIr80"
    assert keyring.shown(keyring.parsed(text)) == text
    assert keyring.parsed(f" {text}\n") == keyring.parsed(text)
    assert keyring.shown(b"") == ""
    for key in (A, b"\0" * 32, b"\xff" * 32, os.urandom(32)):
        assert keyring.parsed(keyring.shown(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SWMKEY-1-",
        "SWMKEY-2-RfDxeu2iq7nGIBLBahUOld4hn9jzUyY4uoUl7RqIr80",
        "RfDxeu2iq7nGIBLBahUOld4hn9jzUyY4uoUl7RqIr80",
        "SWMKEY-1-RfDx",
        "SWMKEY-1-RfDxeu2iq7nGIBLBahUOld4hn9jzUyY4uoUl7RqIr8!",
    ],
)
def test_what_is_no_unlock_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^invalid key string$"):
        keyring.parsed(text)
