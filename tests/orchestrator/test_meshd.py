"""What the daemon remembers, and what must not stop it."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from orchestrator import local_state, meshd
from orchestrator.daemon_config import DaemonConfig
from orchestrator.errors import ApiError
from orchestrator.meshd import Meshd
from tests.orchestrator.test_local_state import STATE


def _daemon(directory: Path) -> Meshd:
    config = DaemonConfig(
        state_dir=directory,
        socket=directory / "meshd.sock",
        group="",
        engine="unix:///nowhere",
        advertise_addr="",
        listen_addr="",
        hostname="a",
        netns_prefix="x",
        etcd_client_port=1,
        etcd_peer_port=2,
        backup_every=0,
        backup_keep=1,
        metrics="",
        log_level="info",
    )
    return Meshd(config, "nftables")


async def test_managers_that_a_full_disk_did_not_keep_are_kept_when_they_are_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_state.save(tmp_path, STATE)
    daemon = _daemon(tmp_path)
    daemon._local = STATE
    told = ("192.0.2.1:2377", "192.0.2.2:2377")

    def full(directory: Path, state: local_state.LocalState) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(local_state, "save", full)
        daemon._remember_managers(told)
    assert local_state.load(tmp_path) == STATE
    daemon._remember_managers(told)
    kept = local_state.load(tmp_path)
    assert kept is not None and kept.managers == told


def test_a_link_to_listen_at_stands_for_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.meshd.own_addresses", lambda: {"192.0.2.1": "eth0", "198.51.100.1": "eth1"})
    daemon = _daemon(tmp_path)
    for listen, expected in (
        ("eth1:2378", "198.51.100.1:2378"),
        ("eth1", "198.51.100.1:2377"),
        ("198.51.100.1", "198.51.100.1:2377"),
        ("0.0.0.0:2378", "0.0.0.0:2378"),
        ("[::]:2378", "[::]:2378"),
        ("", "0.0.0.0:2377"),
    ):
        assert daemon._addresses("eth0", listen, "") == ("192.0.2.1", expected)


@pytest.mark.parametrize("ends", [True, False])
async def test_a_node_leaves_though_its_role_is_being_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """A demotion that waits for its managers must not keep the node; one that is nearly done is waited for."""
    local_state.save(tmp_path, STATE)
    daemon = _daemon(tmp_path)
    daemon._local = STATE
    begun, end, ended = asyncio.Event(), asyncio.Event(), list[str]()

    async def change() -> None:
        begun.set()
        try:
            await end.wait()
            ended.append("done")
        except asyncio.CancelledError:
            ended.append("given up")
            raise

    monkeypatch.setattr(daemon, "_become_worker", change)
    monkeypatch.setattr(daemon, "_credential_role", lambda: "manager")
    monkeypatch.setattr(meshd, "_ROLE_PATIENCE_S", 30.0 if ends else 0.01)
    daemon._roles.start()
    daemon._roles.told("worker")
    await begun.wait()
    with pytest.raises(ApiError, match="promoted, demoted"):
        await daemon.recover()
    leaving = [asyncio.create_task(daemon.leave(True)) for _ in range(2)]
    if ends:
        await asyncio.sleep(0)
        assert local_state.load(tmp_path) == STATE and ended == []
        end.set()
    await asyncio.gather(*leaving)
    assert ended == (["done"] if ends else ["given up"])
    assert daemon.state == "inactive" and local_state.load(tmp_path) is None
