"""What makes a node a manager: its etcd, the store on it, and what it does with that (`leading`, `quorum`).

Edge: starts, watches and ends them in order. `meshd` builds one when the node becomes a manager.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.diagnose.finding import Finding
from orchestrator.diagnose.peers import etcd_findings
from orchestrator.dispatcher.connection import Connect
from orchestrator.dispatcher.tls_app import ManagerSide
from orchestrator.errors import Compacted, ConfigError, MemberRemoved, MeshdError, StoreError, StoreUnavailable
from orchestrator.managers.backup_files import keep_backups
from orchestrator.managers.leading import Leading
from orchestrator.managers.quorum import PROMOTION_TIMEOUT_S, Quorum
from orchestrator.managers.root_rotation import RootRotation
from orchestrator.model import Cluster
from orchestrator.security import secretbox
from orchestrator.security.admission import split_endpoint
from orchestrator.store import etcd_tls
from orchestrator.store.base import Change
from orchestrator.store.etcd import EtcdStore
from orchestrator.store.etcd_client import EtcdClient
from orchestrator.store.etcd_process import EtcdConfig, EtcdProcess
from orchestrator.store.sealing import sealing
from orchestrator.store.snapshot import Snapshot

log = logging.getLogger(__name__)

# far from etcd's limits of operations and bytes a transaction
_CHUNK = 500
BUNDLE_CA_CERT, BUNDLE_CA_KEY, BUNDLE_CLUSTER = "etcd-ca.crt", "etcd-ca.key", "etcd-initial-cluster"
# base64
BUNDLE_STORE_KEY, BUNDLE_UNLOCK_KEY = "store-key", "unlock-key"
_RESEAL_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class ManagerConfig:
    """addr: "ip:port" of this node's TLS server. initial_cluster: etcd's, "" for a cluster of its own; only its first start reads it.
    force_new_cluster: this member's data go on without the others. backups: where, every how many seconds (0: never), how many.
    store_key: of the values in etcd; passphrase: of etcd's private key on disk; b"": they lie open. Neither is shown."""

    node_id: str
    addr: str
    directory: Path
    client_port: int
    peer_port: int
    initial_cluster: str = ""
    joining: bool = False
    force_new_cluster: bool = False
    backups: Path | None = None
    backup_every_s: float = 0.0
    backup_keep: int = 1
    store_key: bytes = field(default=b"", repr=False)
    passphrase: bytes = field(default=b"", repr=False)

    @property
    def host(self) -> str:
        return split_endpoint(self.addr)[0]


def write_etcd_certificate(config: ManagerConfig, ca: etcd_tls.KeyPair, now: datetime) -> None:
    """Once, before the first start."""
    pair = etcd_tls.issue(ca, config.node_id, [config.host, config.node_id], now)
    etcd_tls.write_files(config.directory / "tls", ca.cert, pair, config.passphrase)


def parse_cluster(text: str) -> tuple[tuple[str, str], ...]:
    """etcd's `--initial-cluster`: "a=https://1.2.3.4:2380,b=..." -> ((name, url), ...). ConfigError: not that."""
    members = []
    for part in filter(None, text.split(",")):
        name, separator, url = part.partition("=")
        if not (name and separator and url.startswith("https://")):
            raise ConfigError(f"{part!r} is no member of an etcd cluster (name=https://address:port)")
        members.append((name, url))
    return tuple(members)


class Manager:
    """`await start()`, then it runs by itself until `stop()`. `store` and `side` are there in between."""

    def __init__(
        self,
        config: ManagerConfig,
        connect: Connect,
        *,
        follow_unlock_key: Callable[[bytes], Awaitable[None]] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """connect: to other managers, for what agents say to this one while another leads. follow_unlock_key: told the cluster's at the
        start and whenever it changes."""
        self._config, self._connect = config, connect
        self._follow = follow_unlock_key
        self._now = now
        tls = config.directory / "tls"
        self._tls = etcd_tls.TLSFiles(ca=tls / "ca.crt", cert=tls / "etcd.crt", key=tls / "etcd.key")
        self._etcd = EtcdProcess(
            EtcdConfig(
                name=config.node_id,
                directory=config.directory,
                tls=self._tls,
                client_port=config.client_port,
                peer_addr=config.host,
                peer_port=config.peer_port,
                initial_cluster=parse_cluster(config.initial_cluster),
                joining=config.joining,
                force_new_cluster=config.force_new_cluster,
            )
        )
        self._key_fd = -1
        self._tasks: list[asyncio.Task[None]] = []
        self._client: EtcdClient | None = None
        self._store: EtcdStore | None = None
        self._leading: Leading | None = None
        self._quorum: Quorum | None = None

    @property
    def store(self) -> EtcdStore:
        assert self._store is not None, "the manager is not started"
        return self._store

    @property
    def side(self) -> ManagerSide:
        """What the node's TLS server serves because this node is a manager."""
        assert self._leading is not None and self._quorum is not None, "the manager is not started"
        return ManagerSide(self.store, self._leading.gateway, self._bundle, self._quorum.record)

    @property
    def removed(self) -> asyncio.Event:
        """Set once the other managers have let this one go: nothing it has is theirs any more."""
        return self._etcd.removed

    async def check(self) -> None:
        """ConfigError: this machine can't run etcd."""
        await self._etcd.check()

    async def start(self, first_changes: Callable[[Snapshot], Sequence[Change]] = lambda snapshot: ()) -> None:
        """Serving when it returns. first_changes: what a cluster begins, or begins again, with; written before anything is decided.

        ConfigError: etcd is missing, unusable or refuses; MemberRemoved: the others let it go; StoreUnavailable: no quorum in time.
        Nothing is left running then.
        """
        try:
            self._open_key()
            await self._etcd.start()
            await self._etcd.wait_healthy()
            self._tasks.append(asyncio.create_task(self._etcd.run(), name="etcd"))
            if self._config.joining:
                await self._until_voting()
            self._store = await EtcdStore.open([self._etcd.config.endpoint], self._etcd.config.tls, sealing=sealing(self._config.store_key))
            self._etcd.config = replace(self._etcd.config, force_new_cluster=False)
            for chunk in _chunks(first_changes(self._store.snapshot())):
                await self._store.commit(chunk)
            if self._store.snapshot().cluster is None:
                raise ConfigError(
                    f"etcd's data in {self._config.directory} holds no cluster; remove {self._config.directory} and init or join again"
                )
        except BaseException:
            await self.stop()
            raise
        self._client = self._etcd.client()
        self._leading = Leading(
            self._store,
            self._client.status,
            node_id=self._config.node_id,
            addr=self._config.addr,
            decrypt=lambda secret: self.decrypt(secret.mesh_ciphertext),
            connect=self._connect,
            now=self._now,
        )
        self._quorum = Quorum(
            self._client,
            self._store,
            node_id=self._config.node_id,
            peer_port=self._config.peer_port,
            fence=self._leading.fence,
            now=self._now,
        )
        self._leading.also(self._quorum.lead, "quorum")
        self._leading.also(RootRotation(self._store, fence=self._leading.fence, now=self._now).lead, "root-rotation")
        self._tasks.append(asyncio.create_task(self._leading.run(), name="leading"))
        if self._follow is not None:
            self._tasks.append(asyncio.create_task(self._follow_unlock_key(self._follow), name="unlock-key"))
        if self._config.backups is not None and self._config.backup_every_s:
            keeping = keep_backups(
                self._config.backups,
                self._store.snapshot,
                every_s=self._config.backup_every_s,
                keep=self._config.backup_keep,
                now=self._now,
            )
            self._tasks.append(asyncio.create_task(keeping, name="backups"))

    async def withdraw(self) -> None:
        """Before a node that leaves the cluster stops: the other managers count without it."""
        if self._quorum is not None:
            await self._quorum.withdraw()

    async def stop(self) -> None:
        """Ends what it started; data stays on disk."""
        for task in reversed(self._tasks):
            if task.get_name() != "etcd":
                await _cancelled(task)
        if self._quorum is not None:
            await self._quorum.stop()
        if self._store is not None:
            await self._store.close()
        if self._client is not None:
            await self._client.close()
        await self._etcd.stop()
        self._close_key()
        for task in self._tasks:
            await _cancelled(task)
        self._tasks.clear()

    async def examine(self) -> list[Finding]:
        """What etcd says of itself."""
        if self._client is None:
            return []
        try:
            return etcd_findings(await self._client.status(), await self._client.members(), self._etcd.config.quota_bytes)
        except StoreError as error:
            return [Finding("bad", "etcd", str(error), "bring the other managers back: more than half must run")]

    def encrypt(self, plain: bytes) -> bytes:
        return secretbox.encrypt(self._cluster().mesh_secret_key, plain)

    def decrypt(self, box: bytes) -> bytes:
        return secretbox.decrypt(self._cluster().mesh_secret_key, box)

    def _cluster(self) -> Cluster:
        cluster = self.store.snapshot().cluster
        if cluster is None:
            raise StoreUnavailable("the cluster object is not there")
        return cluster

    async def _bundle(self, node_id: str, addr: str) -> dict[str, str]:
        """What a joining manager needs for its etcd; from here on its member is a learner of the cluster."""
        assert self._quorum is not None
        cluster = self._cluster()
        return {
            BUNDLE_CA_CERT: cluster.mesh_etcd_ca_cert,
            BUNDLE_CA_KEY: cluster.mesh_etcd_ca_key,
            BUNDLE_CLUSTER: await self._quorum.welcome(node_id, addr),
            BUNDLE_STORE_KEY: base64.b64encode(self._config.store_key).decode(),
            BUNDLE_UNLOCK_KEY: base64.b64encode(cluster.mesh_unlock_key).decode(),
        }

    def _open_key(self) -> None:
        """etcd reads its key from memory: on disk it has a passphrase."""
        tls, self._key_fd = etcd_tls.opened(self._tls, self._config.passphrase)
        self._etcd.config = replace(self._etcd.config, tls=tls, pass_fds=(self._key_fd,))

    def _close_key(self) -> None:
        if self._key_fd >= 0:
            os.close(self._key_fd)
            self._key_fd = -1

    async def _follow_unlock_key(self, follow: Callable[[bytes], Awaitable[None]]) -> None:
        """Until cancelled."""
        while True:
            try:
                watch = self.store.watch()
                await follow(self._cluster().mesh_unlock_key)
                async for snapshot, events in watch:
                    if snapshot.cluster is not None and any(event.kind == "cluster" for event in events):
                        await follow(snapshot.cluster.mesh_unlock_key)
            except Compacted:
                continue
            except (OSError, StoreError) as error:
                log.error("keyring=unchanged error=%s retry_in_s=%g", error, _RESEAL_RETRY_S)
            await asyncio.sleep(_RESEAL_RETRY_S)

    async def _until_voting(self) -> None:
        client = self._etcd.client()
        try:
            async with asyncio.timeout(PROMOTION_TIMEOUT_S):
                while (await _status_or_none(client)) in (None, True):
                    if self.removed.is_set():
                        raise MemberRemoved("the other managers let this one go before it could vote")
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise StoreUnavailable(f"this manager's etcd was not made a voting member within {PROMOTION_TIMEOUT_S:g} s") from None
        finally:
            await client.close()


def _chunks(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    return (changes[start : start + _CHUNK] for start in range(0, len(changes), _CHUNK))


async def _status_or_none(client: EtcdClient) -> bool | None:
    """Is the local member a learner; None while it does not answer."""
    try:
        return (await client.status()).is_learner
    except StoreError:
        return None


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, MeshdError):
        await task
