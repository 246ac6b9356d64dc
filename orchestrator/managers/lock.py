"""This node's keyring, kept as its role and the cluster's unlock key want it: open on workers, sealed on managers while autolock is on.

Edge: the keyring's file and the backups beside it. The cluster's object says what the unlock key is; every manager follows it. Backups are
sealed anew first and the keyring last, so a crash in between leaves a keyring that the old key opens, and the next start does it again.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from orchestrator.managers.backup_files import reseal_all
from orchestrator.security import keyring
from orchestrator.security.keyring import Keyring

log = logging.getLogger(__name__)


class Lock:
    """`keys`: None while this node has none, or they are sealed. No `repr` of its own: the unlock key stays out of logs."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir
        self._unlock_key = b""
        self._changing = asyncio.Lock()
        self.keys: Keyring | None = None

    @property
    def backups(self) -> Path:
        return self._directory / "backups"

    def open(self, unlock_key: bytes = b"") -> Keyring | None:
        """What lies on disk; None: nothing does. Locked, WrongKey, ConfigError."""
        self.keys = keyring.load(self._directory, unlock_key)
        self._unlock_key = unlock_key
        return self.keys

    def begin(self, store_key: bytes = b"", unlock_key: bytes = b"") -> Keyring:
        """A new node's keys. store_key: for a manager; unlock_key: b"" without autolock."""
        return self._keep(Keyring(passphrase=keyring.new_passphrase(), store_key=store_key), unlock_key)

    def admit(self, store_key: bytes, unlock_key: bytes) -> None:
        """The node becomes a manager."""
        assert self.keys is not None, "a node has its keys as long as it is in a cluster"
        self._keep(Keyring(passphrase=self.keys.passphrase, store_key=store_key), unlock_key)

    def dismiss(self) -> None:
        """The node is a worker from now on: they are never locked."""
        assert self.keys is not None, "a node has its keys as long as it is in a cluster"
        self._keep(Keyring(passphrase=self.keys.passphrase), b"")

    async def follow(self, unlock_key: bytes) -> None:
        """The cluster's unlock key is this one: when it returns, only that opens what lies on this disk. OSError: it can't be written."""
        async with self._changing:
            if self.keys is None or not self.keys.store_key or unlock_key == self._unlock_key:
                return
            await asyncio.to_thread(reseal_all, self.backups, self._unlock_key, unlock_key)
            self._keep(self.keys, unlock_key)
            log.info("keyring=%s", "sealed" if unlock_key else "open")

    def erase(self) -> None:
        keyring.erase(self._directory)
        self.keys, self._unlock_key = None, b""

    def _keep(self, keys: Keyring, unlock_key: bytes) -> Keyring:
        keyring.save(self._directory, keys, unlock_key)
        self.keys, self._unlock_key = keys, unlock_key
        return keys
