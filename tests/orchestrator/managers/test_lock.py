"""A manager's disk follows the cluster's unlock key: keyring and backups, killed at every step, and never both unreadable."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.managers import backup
from orchestrator.managers.backup import SealedBackup
from orchestrator.managers.backup_files import keep_backups, kept, write_one
from orchestrator.managers.lock import Lock
from orchestrator.model import Cluster
from orchestrator.security import keyring
from orchestrator.security.keyring import Locked, WrongKey
from orchestrator.store.base import Put
from orchestrator.store.memory import MemoryStore
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.agent.wait import until
from tests.orchestrator.crash import crashing_at_every_step

KEYS = {"off": b"", "A": keyring.new_unlock_key(), "B": keyring.new_unlock_key()}
STORE_KEY = bytes(32)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def a_cluster(unlock_key: bytes) -> Snapshot:
    store = MemoryStore()
    await store.commit([Put(Cluster(id="c", mesh_ca_key="the CA's key", mesh_unlock_key=unlock_key))])
    return store.snapshot()


def opens(directory: Path) -> str:
    for name, key in KEYS.items():
        try:
            keys = keyring.load(directory, key)
        except (Locked, WrongKey):
            continue
        assert keys is not None and keys.store_key == STORE_KEY
        return name
    raise AssertionError("no key opens the keyring")


def backups_open(directory: Path) -> set[str]:
    """Which key each backup needs; all of them whole."""
    needed = set()
    for path in kept(directory / "backups"):
        packed = path.read_bytes()
        for name, key in KEYS.items():
            try:
                assert backup.load(packed, key).cluster.mesh_ca_key == "the CA's key"
            except SealedBackup:
                continue
            needed.add(name if backup.sealed(packed) else "off")
            break
        else:
            raise AssertionError(f"no key opens {path}")
    return needed


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(KEYS, 2)))
def test_a_crash_at_any_step_is_taken_up(tmp_path: Path, before: str, after: str) -> None:
    snapshot = asyncio.run(a_cluster(KEYS[before]))
    numbers = itertools.count()

    def prepare() -> Path:
        directory = tmp_path / str(next(numbers))
        Lock(directory).begin(STORE_KEY, KEYS[before])
        for hour in range(2):
            write_one(directory / "backups", snapshot, NOW + timedelta(hours=hour))
        return directory

    def change(directory: Path) -> None:
        lock = Lock(directory)
        assert lock.open(KEYS[before]) is not None
        asyncio.run(lock.follow(KEYS[after]))

    for directory in crashing_at_every_step(prepare, change):
        found = opens(directory)
        assert found in (before, after)
        assert backups_open(directory) <= {before, after}
        if found == after:
            # the keyring is last: who has the new key needs no other
            assert backups_open(directory) == {after}
        # the next start, and whoever unlocks it has the key that opens it
        again = Lock(directory)
        again.open(KEYS[found])
        asyncio.run(again.follow(KEYS[after]))
        assert (opens(directory), backups_open(directory)) == (after, {after})
        assert [path for path in directory.rglob("*") if path.name.endswith(".tmp")] == []
        if after != "off":
            assert not any(b"the CA's key" in path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert next(numbers) > 12


async def test_roles(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    assert lock.open() is None
    passphrase = lock.begin().passphrase
    # a worker has no store, and is never locked whatever it hears
    await lock.follow(KEYS["A"])
    worker = keyring.load(tmp_path)
    assert worker is not None and (worker.passphrase, worker.store_key) == (passphrase, b"")
    lock.admit(STORE_KEY, KEYS["A"])
    assert opens(tmp_path) == "A"
    lock.dismiss()
    assert keyring.load(tmp_path) == worker
    lock.erase()
    assert lock.open() is None and lock.keys is None


@pytest.mark.parametrize("change", ["admit", "dismiss"])
def test_a_change_of_role_is_whole_or_not_begun(tmp_path: Path, change: str) -> None:
    numbers = itertools.count()
    passphrases: list[bytes] = []

    def prepare() -> Path:
        directory = tmp_path / str(next(numbers))
        sealed = change == "dismiss"
        passphrases.append(Lock(directory).begin(STORE_KEY if sealed else b"", KEYS["A"] if sealed else b"").passphrase)
        return directory

    def carried_out(directory: Path) -> None:
        lock = Lock(directory)
        lock.open(KEYS["A"])
        if change == "admit":
            lock.admit(STORE_KEY, KEYS["A"])
        else:
            lock.dismiss()

    for directory in crashing_at_every_step(prepare, carried_out):
        keys = Lock(directory).open(KEYS["A"])
        # what the passphrase opens stays open, whichever of the two the node is
        assert keys is not None and keys.passphrase == passphrases[-1]
        assert keys.store_key in (b"", STORE_KEY)
        carried_out(directory)
        after = Lock(directory).open(KEYS["A"])
        assert after is not None and after.store_key == (STORE_KEY if change == "admit" else b"")
    assert next(numbers) > 5


async def test_what_a_lost_key_sealed_stays(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    lock.begin(STORE_KEY, KEYS["A"])
    path = write_one(tmp_path / "backups", await a_cluster(KEYS["B"]), NOW)
    before = path.read_bytes()
    await lock.follow(b"")
    assert path.read_bytes() == before
    assert opens(tmp_path) == "off"


async def test_a_backup_that_was_under_way_is_made_again(tmp_path: Path) -> None:
    pictures = iter([await a_cluster(b"")])
    newest = await a_cluster(KEYS["A"])
    keeping = asyncio.create_task(keep_backups(tmp_path, lambda: next(pictures, newest), every_s=3600, keep=3, now=lambda: NOW))
    await until(lambda: any(backup.sealed(path.read_bytes()) for path in kept(tmp_path)), "one is sealed", 20)
    assert [backup.sealed(path.read_bytes()) for path in kept(tmp_path)] == [True]
    keeping.cancel()


async def test_a_sealed_backup_tells_what_it_is_and_no_more() -> None:
    packed = backup.dump(await a_cluster(KEYS["A"]), NOW, "0.1")
    told = backup.header(packed)
    assert (told.cluster, told.objects, told.created_at) == ("c", 1, NOW)
    assert told == backup.load(packed, KEYS["A"]).header == backup.header(backup.dump(await a_cluster(b""), NOW, "0.1"))
    with pytest.raises(SealedBackup, match="give the unlock key of its time"):
        backup.load(packed)
    with pytest.raises(SealedBackup, match="with another unlock key"):
        backup.load(packed, KEYS["B"])
    with pytest.raises(ConfigError, match="its seal is broken"):
        backup.load(packed[:-1], KEYS["A"])
    for broken in (packed[: packed.index(b"\n") - 1], b"{}", b"\x1f\x8b", b""):
        with pytest.raises(ConfigError, match="no backup of meshd"):
            backup.header(broken)
    # open ones are read whatever key is given
    assert backup.load(backup.dump(await a_cluster(b""), NOW, "0.1"), KEYS["A"]).cluster.id == "c"
