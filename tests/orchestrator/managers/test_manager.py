"""A manager with a real etcd: founded, stopped, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.dispatcher.connection import Connection
from orchestrator.errors import ConfigError, Conflict, StoreUnavailable
from orchestrator.managers.genesis import FirstNode, Keys, first_objects
from orchestrator.managers.manager import Manager, ManagerConfig, parse_cluster, write_etcd_certificate
from orchestrator.model import Claim, ClusterSpec, JoinTokens, Network, TLSInfo
from orchestrator.security import secretbox
from orchestrator.store import etcd_tls
from orchestrator.store.base import Change, Put


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _config(directory: Path) -> ManagerConfig:
    return ManagerConfig(
        node_id="m1", addr="127.0.0.1:2377", directory=directory / "etcd", client_port=_free_port(), peer_port=_free_port()
    )


def _founding(config: ManagerConfig) -> list[Change]:
    now = datetime.now(UTC)
    etcd_ca = etcd_tls.create_ca("test", now)
    write_etcd_certificate(config, etcd_ca, now)
    keys = Keys("ca", "key", etcd_ca.cert, etcd_ca.key, secretbox.new_key(), JoinTokens(worker="w", manager="m"), TLSInfo())
    return first_objects("c1", "ingress1", ClusterSpec(), keys, FirstNode("m1", "host", config.addr, "127.0.0.1"), now)


async def _until(condition: Callable[[], bool], deadline_s: float = 15.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.02)


async def _written(manager: Manager, claim: Claim) -> None:
    """A write that was under way when etcd died has an unknown outcome: a conflict then says that it happened."""
    async with asyncio.timeout(15):
        while True:
            try:
                await manager.store.commit([Put(claim)])
                return
            except Conflict:
                return
            except StoreUnavailable:
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def alone(manager: str) -> AsyncIterator[Connection]:
    raise ConnectionError("there is no other manager")
    yield


def _allocated(manager: Manager) -> bool:
    return any(network.mesh_vni for network in manager.store.snapshot().all(Network))


async def test_a_founded_manager_leads_survives_its_etcd_and_comes_back(tmp_path: Path) -> None:
    config = _config(tmp_path)
    founding = _founding(config)
    manager = Manager(config, alone)
    await manager.start(lambda snapshot: founding)
    try:
        await _until(lambda: _allocated(manager))
        assert manager.store.snapshot().leader is not None
        box = manager.encrypt(b"secret")
        assert b"secret" not in box
        assert manager.decrypt(box) == b"secret"

        os.kill(manager._etcd.pid, signal.SIGKILL)
        await _written(manager, Claim(id="service/x", owner="o"))
    finally:
        await manager.stop()
    assert manager._etcd.pid == 0

    again = Manager(config, alone)
    await again.start()
    try:
        assert again.store.snapshot().claim("service/x") is not None
        assert again.decrypt(box) == b"secret"
        await _until(lambda: again.store.snapshot().leader is not None)
    finally:
        await again.stop()


async def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(tmp_path)
    founding = _founding(config)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="install etcd-server"):
        await Manager(config, alone).start(lambda snapshot: founding)


async def test_an_etcd_without_a_cluster_is_refused(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _founding(config)
    with pytest.raises(ConfigError, match="holds no cluster"):
        await Manager(config, alone).start()


async def test_a_taken_port_is_said_and_nothing_stays(tmp_path: Path) -> None:
    config = _config(tmp_path)
    founding = _founding(config)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", config.client_port))
        taken.listen()
        manager = Manager(config, alone)
        with pytest.raises(ConfigError, match="another program uses it"):
            await manager.start(lambda snapshot: founding)
        assert manager._etcd.pid == 0


def test_initial_clusters_are_read() -> None:
    assert parse_cluster("") == ()
    assert parse_cluster("a=https://192.0.2.1:2380,b=https://192.0.2.2:2380") == (
        ("a", "https://192.0.2.1:2380"),
        ("b", "https://192.0.2.2:2380"),
    )
    for bad in ("a", "a=", "=https://x", "a=http://x"):
        with pytest.raises(ConfigError, match="no member"):
            parse_cluster(bad)
