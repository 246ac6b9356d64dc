"""This node's seat among the managers: taken, resumed after a restart, kept alone when the others are lost, given back.

Edge. `manager` is imported where a manager is made: a worker does without the etcd client's 15 MB. At most one Manager lives at a time;
etcd's data below `directory` are what makes a node with a manager's certificate resume instead of asking for a place.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from orchestrator.daemon_config import DaemonConfig
from orchestrator.dispatcher.connection import Connect
from orchestrator.errors import ConfigError, MemberRemoved, MeshdError, StoreUnavailable
from orchestrator.local_state import LocalState
from orchestrator.managers.backup import sole_manager
from orchestrator.managers.lock import Lock
from orchestrator.security.admission import reached_at
from orchestrator.store.base import Change
from orchestrator.store.snapshot import Snapshot

if TYPE_CHECKING:
    from orchestrator.managers.manager import Manager, ManagerConfig
    from orchestrator.store.etcd_tls import KeyPair

log = logging.getLogger(__name__)

_RESUME_RETRY_S = 5.0


class Seat:
    """`manager` is there while this node serves as one; `waiting`: it is one, but finds no quorum yet; `error` says why.

    lost: the other managers have let it go; on_lost is called then.
    """

    def __init__(self, config: DaemonConfig, connect: Connect, lock: Lock, on_lost: Callable[[], None] = lambda: None) -> None:
        """connect: to other managers, see `Manager`. lock: this node's keys."""
        self._config, self._connect, self._lock = config, connect, lock
        self._on_lost = on_lost
        self._resuming: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.lost = False
        self.manager: Manager | None = None
        self.error = ""

    @property
    def directory(self) -> Path:
        return self._config.state_dir / "etcd"

    @property
    def waiting(self) -> bool:
        return self.manager is None and self._resuming is not None and not self._resuming.done()

    @property
    def has_data(self) -> bool:
        return (self.directory / "data" / "member").exists()

    # ---- taking it -----------------------------------------------------------------------------------------------------------

    async def found(self, local: LocalState, etcd_ca: KeyPair, first_changes: Sequence[Change]) -> None:
        """The first manager of a cluster."""
        config = self._manager_config(local)
        self._write_certificate(config, etcd_ca)
        await self._serve(config, lambda snapshot: first_changes)

    async def join(self, local: LocalState, bundle: Mapping[str, str]) -> None:
        """As one more; bundle: what another manager gave. Returns when this one votes."""
        from orchestrator.managers.manager import BUNDLE_CA_CERT, BUNDLE_CA_KEY
        from orchestrator.store.etcd_tls import KeyPair

        config = self._manager_config(local, joining=True)
        self._write_certificate(config, KeyPair(bundle[BUNDLE_CA_CERT], bundle[BUNDLE_CA_KEY]))
        try:
            await self._serve(config)
        except BaseException:
            # a learner whose data is gone is replaced at the next try
            self.clear()
            raise

    async def check(self, local: LocalState) -> None:
        """ConfigError: this machine can't be a manager."""
        from orchestrator.managers.manager import Manager

        await Manager(self._manager_config(local), self._connect).check()

    @staticmethod
    def joining(local: LocalState, bundle: Mapping[str, str]) -> LocalState:
        """The local state of a node that takes its seat with this bundle."""
        from orchestrator.managers.manager import BUNDLE_CLUSTER

        return msgspec.structs.replace(local, etcd_cluster=bundle[BUNDLE_CLUSTER])

    @staticmethod
    def keys_of(bundle: Mapping[str, str]) -> tuple[bytes, bytes]:
        """(store key, unlock key) that a new manager was given."""
        from orchestrator.managers.manager import BUNDLE_STORE_KEY, BUNDLE_UNLOCK_KEY

        store_key, unlock_key = (base64.b64decode(bundle.get(name, "")) for name in (BUNDLE_STORE_KEY, BUNDLE_UNLOCK_KEY))
        return store_key, unlock_key

    # ---- keeping it ----------------------------------------------------------------------------------------------------------

    def resume(self, local: LocalState) -> None:
        """In the background, for as long as it takes to find a quorum."""
        self._resuming = asyncio.create_task(self._resume(self._manager_config(local)), name="resume-manager")

    async def _resume(self, config: ManagerConfig) -> None:
        while True:
            try:
                await self._serve(config)
                return
            except StoreUnavailable as error:
                self.error = str(error)
                log.warning("manager waits error=%s", error)
            except MemberRemoved as error:
                self.error = str(error)
                self._lose()
                return
            except ConfigError as error:
                # the node's tasks go on
                self.error = str(error)
                log.error("manager can't start error=%s retry_in_s=%g", error, _RESUME_RETRY_S)
                await asyncio.sleep(_RESUME_RETRY_S)

    async def recover(self, local: LocalState) -> None:
        """Go on with this node's data as the only manager. MeshdError: not now; it waits as before then."""
        await self.stop()
        log.warning("recovering as the only manager cluster=%s node=%s", local.cluster_id, local.node_id)
        config = dataclasses.replace(self._manager_config(local), force_new_cluster=True)
        try:
            await self._serve(config, lambda snapshot: sole_manager(snapshot, local.node_id, datetime.now(UTC)))
        except MeshdError:
            self.resume(local)
            raise

    # ---- giving it back ------------------------------------------------------------------------------------------------------

    async def withdraw(self) -> None:
        """Before leaving for good: the others count without this one."""
        if self.manager is not None:
            await self.manager.withdraw()

    async def stop(self) -> None:
        """No manager runs here any more; data stays."""
        resuming, self._resuming = self._resuming, None
        if resuming is not None:
            resuming.cancel()
            await asyncio.wait({resuming})
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        self.lost = False
        manager, self.manager, self.error = self.manager, None, ""
        if manager is not None:
            await manager.stop()

    def clear(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    # ---- details -------------------------------------------------------------------------------------------------------------

    async def _serve(self, config: ManagerConfig, first_changes: Callable[[Snapshot], Sequence[Change]] | None = None) -> None:
        from orchestrator.managers.manager import Manager

        manager = Manager(config, self._connect, follow_unlock_key=self._lock.follow)
        await (manager.start(first_changes) if first_changes else manager.start())
        self.manager, self.error = manager, ""
        self._watching = asyncio.create_task(self._watch(manager.removed), name="seat")

    async def _watch(self, removed: asyncio.Event) -> None:
        await removed.wait()
        self._lose()

    def _lose(self) -> None:
        log.warning("the other managers let this one go")
        self.lost = True
        self._on_lost()

    @staticmethod
    def _write_certificate(config: ManagerConfig, etcd_ca: KeyPair) -> None:
        from orchestrator.managers.manager import write_etcd_certificate

        write_etcd_certificate(config, etcd_ca, datetime.now(UTC))

    def _manager_config(self, local: LocalState, *, joining: bool = False) -> ManagerConfig:
        from orchestrator.managers.manager import ManagerConfig

        keys = self._lock.keys
        assert keys is not None, "a node that is or becomes a manager has its keys"
        return ManagerConfig(
            node_id=local.node_id,
            addr=reached_at(local.advertise_addr, local.listen),
            directory=self.directory,
            client_port=self._config.etcd_client_port,
            peer_port=self._config.etcd_peer_port,
            initial_cluster=local.etcd_cluster,
            joining=joining,
            backups=self._lock.backups,
            backup_every_s=self._config.backup_every * 60.0,
            backup_keep=self._config.backup_keep,
            store_key=keys.store_key,
            passphrase=keys.passphrase,
        )
