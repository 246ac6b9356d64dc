"""Backups: what goes in comes out, what is damaged is told, a restored cluster has one manager."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from orchestrator.errors import ConfigError
from orchestrator.managers import backup, backup_files
from orchestrator.model import (
    Claim,
    Cluster,
    Leadership,
    ManagerStatus,
    Network,
    Node,
    NodeDescription,
    NodeSpec,
    Secret,
    Service,
    Task,
    TaskState,
    TaskStatus,
    Version,
)
from orchestrator.store.base import Delete, Put
from orchestrator.store.memory import MemoryStore

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


async def a_store() -> MemoryStore:
    store = MemoryStore()

    def manager(number: int) -> Node:
        description = NodeDescription(mesh_api_addr="10.0.0.9:2377" if number == 1 else f"10.0.0.{number}:2377")
        status = ManagerStatus(addr=description.mesh_api_addr)
        return Node(id=f"m{number}", spec=NodeSpec(role="manager"), description=description, manager_status=status)

    await store.commit(
        [
            Put(Cluster(id="c", created_at=NOW, mesh_secret_key=b"\0key", mesh_ca_cert="cert")),
            Put(manager(1)),
            Put(manager(2)),
            Put(Node(id="w1")),
            Put(Leadership(node_id="m1")),
            Put(Service(id="s", created_at=NOW)),
            Put(Task(id="t", service_id="s", node_id="w1", status=TaskStatus(state=TaskState.RUNNING))),
            Put(Network(id="n", name="ingress")),
            Put(Secret(id="x", mesh_ciphertext=b"\xff\0")),
            Put(Claim(id="network/ingress", owner="n")),
        ]
    )
    return store


async def test_what_goes_in_comes_out_but_who_leads() -> None:
    store = await a_store()
    snapshot = store.snapshot()
    packed = backup.dump(snapshot, NOW, "1.2")
    loaded = backup.load(packed)
    assert backup.dump(snapshot, NOW, "1.2") == packed
    assert loaded.header == backup.Header(format=1, cluster="c", revision=snapshot.revision, created_at=NOW, meshd="1.2", objects=9)
    expected = [replace(obj, version=Version()) for table in snapshot.tables.values() for obj in table.values()]
    assert sorted(map(repr, loaded.objects)) == sorted(repr(obj) for obj in expected if not isinstance(obj, Leadership))


async def test_every_damage_is_told() -> None:
    packed = backup.dump((await a_store()).snapshot(), NOW, "1.2")
    plain = gzip.decompress(packed)
    for end in range(0, len(packed), 7):
        with pytest.raises(ConfigError, match="no backup of meshd, or it is cut off"):
            backup.load(packed[:end])
    for place in range(0, len(plain) - 1, 5):
        changed = plain[:place] + bytes([plain[place] ^ 1]) + plain[place + 1 :]
        with pytest.raises(ConfigError, match=r"damaged|no backup"):
            backup.load(gzip.compress(changed))
    with pytest.raises(ConfigError, match="no backup"):
        backup.load(b"etcd")
    with pytest.raises(ConfigError, match="no cluster to back up"):
        backup.dump(MemoryStore().snapshot(), NOW, "1.2")


async def test_a_restored_cluster_has_one_manager_and_all_the_rest() -> None:
    loaded = backup.load(backup.dump((await a_store()).snapshot(), NOW, "1.2"))
    later = NOW + timedelta(days=1)
    for node_id, known in (("m2", True), ("new", False)):
        me = backup.manager_node(loaded, node_id, "host", "10.0.0.9:2377", "10.0.0.9", later)
        changes = backup.first_objects(loaded, me, later)
        assert isinstance(changes[-1], Put) and isinstance(changes[-1].obj, Cluster), "a part of it is no cluster"
        fresh = MemoryStore()
        for start in range(0, len(changes), 3):
            await fresh.commit(changes[start : start + 3])
        snapshot = fresh.snapshot()
        managers = [node for node in snapshot.all(Node) if node.spec.role == "manager" or node.manager_status]
        assert [node.id for node in managers] == [node_id]
        assert managers[0].manager_status == ManagerStatus(leader=True, reachability="reachable", addr="10.0.0.9:2377")
        assert snapshot.count(Node) == (3 if known else 4)
        former = snapshot.node("m1")
        assert former is not None and former.status.state == "down" and node_id in former.status.message
        assert snapshot.leader is None
        assert snapshot.task("t") is not None and snapshot.get(Secret, "x") is not None


async def test_after_a_lost_quorum_the_others_are_workers() -> None:
    store = await a_store()
    changes = backup.sole_manager(store.snapshot(), "m2", NOW)
    await store.commit(changes)
    assert any(isinstance(change, Delete) and change.kind == "leader" for change in changes)
    roles = {node.id: (node.spec.role, node.manager_status is not None) for node in store.snapshot().all(Node)}
    assert roles == {"m1": ("worker", False), "m2": ("manager", True), "w1": ("worker", False)}
    assert backup.sole_manager(store.snapshot(), "m2", NOW) == []


def test_when_the_next_is_due() -> None:
    files = [Path(f"meshd-20300102T03000{second}Z.backup") for second in range(5)]
    last = datetime(2030, 1, 2, 3, 0, 4, tzinfo=UTC)
    assert backup_files.due_in_s([], 60, NOW) == 0
    assert backup_files.due_in_s(files, 60, last + timedelta(seconds=20)) == 40
    assert backup_files.due_in_s(files, 60, last + timedelta(hours=20)) == 0
    # a clock that was set back
    assert backup_files.due_in_s(files, 60, last - timedelta(hours=20)) == 60
    assert backup_files.surplus(files, 2) == files[:3]
    assert backup_files.surplus(files, 9) == []


async def test_backups_are_kept_checked_and_bounded(tmp_path: Path) -> None:
    store = await a_store()
    clock = NOW

    def now() -> datetime:
        nonlocal clock
        clock += timedelta(seconds=1)
        return clock

    directory = tmp_path / "backups"
    foreign = directory / "meshd-mine.backup"
    directory.mkdir()
    foreign.write_bytes(b"of the operator")
    running = asyncio.create_task(backup_files.keep_backups(directory, store.snapshot, every_s=0.001, keep=3, now=now))
    seen: set[Path] = set()

    def enough() -> bool:
        seen.update(backup_files.kept(directory))
        return len(seen) > 6

    await _until(enough)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    left = backup_files.kept(directory)
    assert 3 <= len(left) <= 4 and left == sorted(seen)[-len(left) :]
    assert all(backup.load(path.read_bytes()).header.objects == 9 for path in left)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in left)
    assert foreign.exists()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)
