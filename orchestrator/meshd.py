"""The daemon: the one place where adapters are built and put together, and where a node comes into a cluster and leaves it.

Edge. A node is inactive, a worker (agent + TLS server) or a manager (that, and `manager.Manager`). What it is, is on disk before it is
announced: certificate first, `node.json` last; a crash in between leaves an inactive node and files that the next attempt replaces.
What makes it a manager is in `seat`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from mesh import NodeMesh
from mesh.model import Balancer
from orchestrator import local_state
from orchestrator.addresses import choose_address, data_path_address, listen_address, own_addresses
from orchestrator.api.backend import InitRequest, JoinRequest, JoinRole, NodeFacts, NodeState
from orchestrator.daemon_config import DaemonConfig
from orchestrator.diagnose.finding import Finding
from orchestrator.diagnose.peers import examine
from orchestrator.dispatcher.connection import RELAY, Connection, over_tls
from orchestrator.errors import ApiError, ConfigError
from orchestrator.formation.daemon_side import former_of
from orchestrator.formation.decision import Membership, promise_kept
from orchestrator.formation.former import load_record
from orchestrator.local_state import LocalState
from orchestrator.managers.backup import Backup
from orchestrator.managers.founding import Founding, Place, found, refound
from orchestrator.managers.lock import Lock
from orchestrator.managers.role_follower import RoleFollower
from orchestrator.managers.root_rotation import ordered
from orchestrator.managers.seat import Seat
from orchestrator.model import Cluster, ClusterSpec, JoinTokens, Network, Node
from orchestrator.node import NodeRuntime, NodeSettings, leave_without_running
from orchestrator.node_facts import facts_of
from orchestrator.security import keyring, tokens
from orchestrator.security.admission import join_endpoint, managers_of, reached_at, split_endpoint
from orchestrator.security.identity import Credentials, Identity
from orchestrator.security.join import ask_for_promotion, join, renew
from orchestrator.store import sealing
from orchestrator.store.base import Store

if TYPE_CHECKING:
    from orchestrator.managers.manager import Manager

log = logging.getLogger(__name__)

_CERTIFICATES = "certificates"
_UNLOCK_PATIENCE_S = 30.0
_ROLE_PATIENCE_S = 10.0


class Meshd:
    """The daemon of one node; the API's Backend."""

    def __init__(self, config: DaemonConfig, balancer: Balancer) -> None:
        self._config = config
        self._balancer: Balancer = balancer
        self._credentials: Credentials | None = None
        self._local: LocalState | None = None
        self._roles = RoleFollower(self._change_role)
        self._lock = Lock(config.state_dir)
        self._locked = False
        self._seat = Seat(config, self._connect_manager, self._lock, on_lost=self._roles.again)
        self._node: NodeRuntime | None = None
        # one init, join, leave or change of role at a time; what comes meanwhile is told so
        self._changing = asyncio.Lock()
        self._changing_role = False
        # what this node is, is on disk: others may be told
        self._settled = False
        self._former = former_of(config, self._membership, self._changing.locked, self._init, self._join)

    @property
    def _manager(self) -> Manager | None:
        return self._seat.manager

    # ---- Backend -------------------------------------------------------------------------------------------------------------

    def member(self) -> NodeRuntime | None:
        """What runs here as long as this node is in a cluster."""
        return self._node

    @property
    def state(self) -> NodeState:
        if self._local is None:
            return "pending" if self._changing.locked() and self._credentials is not None else "inactive"
        if self._locked:
            return "locked"
        if self._manager is not None:
            return "manager"
        # a manager that waits for its quorum is no worker; one that becomes a manager is, until it is one
        return "error" if self._seat.waiting else "worker"

    @property
    def node_id(self) -> str:
        return self._local.node_id if self._local else ""

    @property
    def store(self) -> Store | None:
        return self._manager.store if self._manager else None

    @property
    def engine_socket(self) -> str:
        return self._config.engine_socket

    def facts(self) -> NodeFacts:
        store = self._manager.store if self._manager else None
        return facts_of(
            self._config,
            self._balancer,
            self._local,
            forming=self._former.why if self._former else "",
            snapshot=store.snapshot() if store is not None else None,
            has_majority=store is None or store.available,
            error=self._seat.error,
        )

    async def init(self, request: InitRequest) -> str:
        self._refuse_if_promised()
        return await self._init(request)

    async def _init(self, request: InitRequest) -> str:
        async with self._one_change():
            advertise, listen = self._addresses(request.advertise_addr, request.listen_addr, "")
            place = Place(self._config.hostname, advertise, listen, self._data_addr(request.data_path_addr, advertise))
            return await self._begin(found(request, place, datetime.now(UTC)))

    async def restore(self, backup: Backup, advertise_addr: str) -> str:
        self._refuse_if_promised()
        async with self._one_change():
            advertise, listen = self._addresses(advertise_addr, "", "")
            node_id = await self._begin(refound(backup, Place(self._config.hostname, advertise, listen, advertise), datetime.now(UTC)))
            log.info("cluster restored objects=%d made_at=%s", backup.header.objects, backup.header.created_at)
            return node_id

    async def _begin(self, founding: Founding) -> str:
        self._clear()
        self._lock.begin(sealing.new_key(), founding.unlock_key)

        async def take_seat() -> None:
            await self._seat.found(founding.local, founding.etcd_ca, founding.changes)

        await self._become(founding.local, founding.identity, take_seat, self._until_ingress)
        log.info("cluster begins cluster=%s node=%s", founding.local.cluster_id, founding.local.node_id)
        return founding.local.node_id

    async def recover(self) -> str:
        async with self._one_change():
            if self._local is None or not self._seat.has_data:
                raise ApiError(503, "this node holds no data of a manager: recover at one that was a manager, or restore a backup")
            await self._seat.recover(self._local)
            return self._local.node_id

    async def join(self, request: JoinRequest) -> None:
        self._refuse_if_promised()
        await self._join(request)

    async def _join(self, request: JoinRequest) -> None:
        async with self._one_change():
            advertise, listen = self._addresses(request.advertise_addr, request.listen_addr, next(iter(request.remote_addrs), ""))
            data_addr = self._data_addr(request.data_path_addr, advertise)
            self._clear()
            result = await join(
                request.remote_addrs,
                request.token,
                addr=reached_at(advertise, listen),
                data_addr=data_addr,
                hostname=self._config.hostname,
                availability=request.availability or "active",
            )
            identity = result.identity
            local = LocalState(
                cluster_id=identity.cluster_id,
                node_id=identity.node_id,
                advertise_addr=advertise,
                data_addr=data_addr,
                listen=listen,
                managers=result.managers,
            )
            if identity.role == "manager":
                local = self._seat.joining(local, result.bundle)
            self._lock.begin(*self._seat.keys_of(result.bundle))

            async def take_seat() -> None:
                if identity.role == "manager":
                    await self._seat.join(local, result.bundle)

            await self._become(local, identity, take_seat)
            log.info("joined cluster=%s node=%s role=%s", local.cluster_id, local.node_id, identity.role)

    async def leave(self, force: bool) -> None:
        async with self._one_change(ends_role_change=True):
            if self._local is None:
                return
            log.info("leaving cluster=%s node=%s force=%s", self._local.cluster_id, self.node_id, force)
            # first of all: a crash from here on must not come back as a member
            local_state.erase(self._config.state_dir)
            local, self._local, self._settled = self._local, None, False
            self._roles.stop()
            node, self._node = self._node, None
            if node is not None:
                await node.leave()
            elif self._locked:
                await leave_without_running(self._node_settings(local), local.cluster_id, NodeMesh(prefix=self._config.netns_prefix))
            await self._seat.withdraw()
            await self._seat.stop()
            self._credentials, self._locked = None, False
            self._clear()

    async def unlock(self, key: str) -> None:
        async with self._one_change():
            if not self._locked:
                raise ApiError(409, "swarm is not locked")
            try:
                self._lock.open(keyring.parsed(key))
            except keyring.WrongKey as error:
                raise ApiError(401, str(error)) from None
            try:
                await self._take_up()
            except ConfigError as error:
                # locked as before: the next try begins anew
                self._roles.stop()
                await self._seat.stop()
                self._credentials = None
                raise ApiError(500, str(error)) from error
            self._locked = False
            log.info("unlocked node=%s", self.node_id)
            # the next command of who unlocks is one for a manager
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_UNLOCK_PATIENCE_S):
                    while self._seat.waiting and not self._seat.error:
                        await asyncio.sleep(0.02)

    async def follow_unlock_key(self) -> None:
        cluster = self._manager.store.snapshot().cluster if self._manager is not None else None
        if cluster is not None:
            await self._lock.follow(cluster.mesh_unlock_key)

    async def engine_session(self, node_id: str) -> tuple[aiohttp.ClientSession, str]:
        session, base = await self.node_session(node_id)
        return session, f"{base}/engine"

    async def node_session(self, node_id: str) -> tuple[aiohttp.ClientSession, str]:
        if self._node is None or self._manager is None:
            raise ApiError(503, "this node is not a manager")
        return self._node.node_session(self._manager.store.snapshot(), node_id)

    async def examine(self) -> list[Finding]:
        if self._locked:
            return [Finding("bad", "cluster", "this node is locked: its keys are sealed", "docker swarm unlock")]
        if self._node is None or self._local is None:
            return [Finding("note", "cluster", "this node is in no cluster", "docker swarm init, or docker swarm join")]
        findings = [Finding("bad", "cluster", self._seat.error, "")] if self._seat.error else []
        nodes = [(addr, addr, "") for addr in self._local.managers]
        if self._manager is not None:
            nodes = [
                (node.description.hostname, node.description.mesh_api_addr, node.id)
                for node in self._manager.store.snapshot().all(Node)
                if node.description.mesh_api_addr and node.status.state != "down"
            ]
        others = [entry for entry in sorted(nodes) if self.node_id != entry[2] and self._own_api_addr() != entry[1]]
        return findings + await examine(self._node.view(others, self._manager.examine if self._manager else None))

    def _own_api_addr(self) -> str:
        assert self._local is not None
        return reached_at(self._local.advertise_addr, self._local.listen)

    def rotate_token(self, cluster: Cluster, role: JoinRole) -> JoinTokens:
        return tokens.rotated(cluster.join_tokens or JoinTokens(), role, cluster.mesh_ca_cert)

    async def order_ca(self, cluster: Cluster, spec: ClusterSpec) -> Cluster:
        if self._credentials is None:
            raise ApiError(503, "this node is not a manager")
        return await ordered(cluster, spec, self._credentials, datetime.now(UTC))

    def encrypt_secret(self, plain: bytes) -> bytes:
        if self._manager is None:
            raise ApiError(503, "this node is not a manager")
        return self._manager.encrypt(plain)

    def decrypt_secret(self, ciphertext: bytes) -> bytes:
        if self._manager is None:
            raise ApiError(503, "this node is not a manager")
        return self._manager.decrypt(ciphertext)

    # ---- life ----------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what this node was. A manager without quorum waits for it in the background; the API says why."""
        await self._resume()
        if self._former is not None:
            self._former.start()

    async def _resume(self) -> None:
        local = local_state.load(self._config.state_dir)
        if local is None:
            return
        self._local, self._settled = local, True
        try:
            self._lock.open()
        except keyring.Locked:
            # its tasks run on as they do without a meshd; its agent needs the key of its certificate
            self._locked = True
            log.warning("locked cluster=%s node=%s: docker swarm unlock", local.cluster_id, local.node_id)
            return
        await self._take_up()

    async def _take_up(self) -> None:
        """Run as the member that the disk says this node is; the keyring is open."""
        local, keys = self._local, self._lock.keys
        assert local is not None
        credentials = Credentials.load(self._config.state_dir / _CERTIFICATES, keys.passphrase) if keys is not None else None
        if credentials is None:
            raise ConfigError(f"{self._config.state_dir} says this node is in a cluster, but its keys are gone; leave and join again")
        self._credentials = credentials
        # without etcd's data it is on its way to be a manager, or no longer one: the leader says which
        if credentials.identity.role == "manager" and self._seat.has_data:
            self._seat.resume(local)
        await self._start_node()

    # ---- roles ---------------------------------------------------------------------------------------------------------------

    async def _change_role(self, role: str) -> None:
        """Be what the leader says. A crash anywhere in between is taken up by the next start: the leader says it again."""
        async with self._changing:
            if self._local is None:
                return
            self._changing_role = True
            try:
                if role == "manager" and (self._seat.lost or (self._manager is None and not self._seat.waiting)):
                    await self._become_manager()
                elif role == "worker" and (self._manager is not None or self._credential_role() == "manager"):
                    await self._become_worker()
            finally:
                self._changing_role = False

    async def _become_manager(self) -> None:
        assert self._local is not None and self._credentials is not None
        await self._seat.check(self._local)
        if self._credential_role() != "manager":
            await renew(self._credentials, self._local.managers)
        bundle = await ask_for_promotion(self._credentials, self._local.managers, self._own_api_addr())
        # of a place it was let go from
        await self._seat.stop()
        self._seat.clear()
        self._lock.admit(*self._seat.keys_of(bundle))
        self._remember(self._seat.joining(self._local, bundle))
        await self._seat.join(self._local, bundle)
        log.info("promoted cluster=%s node=%s", self._local.cluster_id, self._local.node_id)

    async def _become_worker(self) -> None:
        assert self._local is not None and self._credentials is not None
        await self._seat.stop()
        self._seat.clear()
        self._lock.dismiss()
        self._remember(msgspec.structs.replace(self._local, etcd_cluster=""))
        if self._credential_role() == "manager":
            await renew(self._credentials, self._local.managers)
        log.info("demoted cluster=%s node=%s", self._local.cluster_id, self._local.node_id)

    def _connect_manager(self, manager: str) -> AbstractAsyncContextManager[Connection]:
        assert self._credentials is not None
        return over_tls(self._credentials, RELAY)(manager)

    def _credential_role(self) -> str:
        return self._credentials.identity.role if self._credentials is not None else ""

    # ---- life, continued -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End this process's part; containers, kernel tables and dnsd go on."""
        if self._former is not None:
            await self._former.stop()
        self._roles.stop()
        if self._node is not None:
            await self._node.stop()
        await self._seat.stop()

    async def _become(
        self,
        local: LocalState,
        identity: Identity,
        take_seat: Callable[[], Awaitable[None]],
        settled: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """From inactive to a member, or (any error) back to inactive with nothing left. settled: awaited before it counts."""
        try:
            assert self._lock.keys is not None
            self._credentials = Credentials.create(self._config.state_dir / _CERTIFICATES, identity, self._lock.keys.passphrase)
            self._local = local
            await take_seat()
            await self._start_node()
            if settled is not None:
                await settled()
            local_state.save(self._config.state_dir, local)
            self._settled = True
        except BaseException as error:
            self._roles.stop()
            node, self._node = self._node, None
            if node is not None:
                await node.leave()
            await self._seat.stop()
            self._local = self._credentials = None
            self._clear()
            if isinstance(error, ConfigError):
                raise ApiError(500, str(error)) from error
            raise

    async def _start_node(self) -> None:
        assert self._local is not None and self._credentials is not None
        node = NodeRuntime(
            self._node_settings(self._local),
            self._credentials,
            mesh=NodeMesh(prefix=self._config.netns_prefix),
            managers=self._local.managers,
            manager_side=lambda: self._manager.side if self._manager else None,
            on_managers=self._remember_managers,
            on_role=self._roles.told,
            formation=self._former.door if self._former is not None else None,
        )
        if self._former is not None:
            await self._former.close_door()
        self._roles.start()
        await node.start()
        self._node = node

    def _node_settings(self, local: LocalState) -> NodeSettings:
        config = self._config
        return NodeSettings(
            state_dir=config.state_dir,
            runtime_dir=Path("/run/meshd") / local.node_id,
            engine=config.engine,
            hostname=config.hostname,
            listen=local.listen,
            api_addr=reached_at(local.advertise_addr, local.listen),
            data_addr=local.data_addr,
            netns_prefix=config.netns_prefix,
            balancer=self._balancer,
            permits=config.permits,
        )

    def _remember_managers(self, managers: tuple[str, ...]) -> None:
        """A full disk must not end the session that told them: they are told again with the next one."""
        local = self._local
        if local is None or not managers or managers == local.managers:
            return
        try:
            self._remember(msgspec.structs.replace(local, managers=managers))
        except OSError as error:
            log.warning("managers=%s state=not-written error=%s", ",".join(managers), error)
            self._local = local

    def _remember(self, local: LocalState) -> None:
        """Only a node that is in its cluster already has it on disk."""
        self._local = local
        if local_state.load(self._config.state_dir) is not None:
            local_state.save(self._config.state_dir, local)

    async def _until_ingress(self) -> None:
        """`swarm init` answers once the leader's loops run: the ingress network has its addresses."""
        assert self._manager is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while not any(network.mesh_vni for network in self._manager.store.snapshot().all(Network) if network.ingress):
                    await asyncio.sleep(0.02)

    # ---- coming into a cluster by itself -------------------------------------------------------------------------------------

    def _membership(self) -> Membership | None:
        if self._local is None or not self._settled:
            return None
        snapshot = self._manager.store.snapshot() if self._manager is not None else None
        if snapshot is None or snapshot.cluster is None or snapshot.cluster.join_tokens is None:
            return Membership(self._local.cluster_id, self._local.managers)
        given = snapshot.cluster.join_tokens
        return Membership(self._local.cluster_id, managers_of(snapshot), {"worker": given.worker, "manager": given.manager})

    def _refuse_if_promised(self) -> None:
        record = load_record(self._config.state_dir)
        if record is not None and (why := promise_kept(record)):
            raise ApiError(503, why)

    # ---- details -------------------------------------------------------------------------------------------------------------

    def _addresses(self, advertise: str, listen: str, remote: str) -> tuple[str, str]:
        """(IP address to advertise, "ip:port" to listen at). ApiError(400) with Docker's text when there is no single choice."""
        own = own_addresses()
        if listen:
            listen_address(listen, own)
        try:
            host, port = split_endpoint(self._config.listen_addr or listen or "0.0.0.0")
            wanted = advertise or self._config.advertise_addr
            chosen = choose_address(wanted, own, split_endpoint(remote)[0] if remote else "")
        except ValueError:
            raise ApiError(400, f"invalid address {listen or remote!r}: expected an IP address with an optional port") from None
        return chosen, join_endpoint(listen_address(host, own), port)

    def _data_addr(self, given: str, advertise: str) -> str:
        return data_path_address(given, own_addresses()) if given else advertise

    def _clear(self) -> None:
        """Remove what an earlier membership, or an attempt that failed, left on disk."""
        shutil.rmtree(self._config.state_dir / _CERTIFICATES, ignore_errors=True)
        self._seat.clear()
        self._lock.erase()
        local_state.erase(self._config.state_dir)

    @contextlib.asynccontextmanager
    async def _one_change(self, *, ends_role_change: bool = False) -> Any:
        """ends_role_change: one that is under way may finish in its time, and is given up else, instead of being a reason to refuse."""
        if self._changing.locked() and not (ends_role_change and self._changing_role):
            raise ApiError(503, "this node is just being initialized, joined, promoted, demoted or removed: wait until that is done")
        try:
            async with asyncio.timeout(_ROLE_PATIENCE_S):
                await self._changing.acquire()
        except TimeoutError:
            self._roles.stop()
            await self._changing.acquire()
        try:
            yield
        finally:
            self._changing.release()
