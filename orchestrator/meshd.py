"""The daemon: the one place where adapters are built and put together, and where a node comes into a cluster and leaves it.

Edge. A node is inactive, a worker (agent + TLS server) or a manager (that, and `manager.Manager`). What it is, is on disk before it is
announced: certificate first, `node.json` last; a crash in between leaves an inactive node and files that the next attempt replaces.
`manager` is imported where a manager is made: a worker does without the etcd client's 15 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import grp
import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import uvloop

from mesh import NodeMesh, check_kernel, detect_balancer
from mesh.model import Balancer
from orchestrator import local_state, permissions
from orchestrator.addresses import choose_address, metrics_endpoint, own_addresses
from orchestrator.api.app import serve_unix
from orchestrator.api.backend import InitRequest, JoinRequest, JoinRole, NodeFacts, NodeState
from orchestrator.backup import Backup, manager_node, sole_manager
from orchestrator.backup import first_objects as first_objects_of_backup
from orchestrator.diagnose.finding import Finding
from orchestrator.diagnose.peers import examine
from orchestrator.errors import ApiError, ConfigError, MeshdError, StoreUnavailable
from orchestrator.genesis import FirstNode, Keys, first_objects
from orchestrator.ids import new_id
from orchestrator.local_state import LocalState
from orchestrator.model import Cluster, JoinTokens, Network, Node
from orchestrator.node import NodeRuntime, NodeSettings
from orchestrator.role_follower import RoleFollower
from orchestrator.security import ca, secretbox, tokens
from orchestrator.security.admission import DEFAULT_PORT, join_endpoint, split_endpoint
from orchestrator.security.identity import Credentials, Identity
from orchestrator.security.join import ask_for_promotion, join, renew
from orchestrator.store.base import Change, Store
from orchestrator.store.snapshot import Snapshot
from orchestrator.version import VERSION

if TYPE_CHECKING:
    from orchestrator.manager import Manager, ManagerConfig

log = logging.getLogger(__name__)

_CERTIFICATES = "certificates"
_ETCD = "etcd"
_BACKUPS = "backups"
_RESUME_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """engine: "unix:///path". listen_addr, metrics: "ip:port" or "". backup_every: minutes, 0 = never."""

    state_dir: Path
    socket: Path
    group: str
    engine: str
    advertise_addr: str
    listen_addr: str
    hostname: str
    netns_prefix: str
    etcd_client_port: int
    etcd_peer_port: int
    backup_every: int
    backup_keep: int
    metrics: str
    log_level: str
    permits: frozenset[str] = permissions.DEFAULT

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> DaemonConfig:
        engine = str(options["engine"])
        if not engine.startswith("unix:///"):
            raise ConfigError(f"--engine {engine}: meshd drives the Engine of its own node through a unix socket: unix:///path")
        options = dict(options)
        permits = permissions.permitted(options.pop("permit", ()), options.pop("forbid", ()))
        for flag in ("advertise_addr", "listen_addr"):
            if options[flag]:
                try:
                    ipaddress.ip_address(split_endpoint(str(options[flag]))[0])
                except ValueError:
                    raise ConfigError(f"--{flag.replace('_', '-')} {options[flag]}: not an IP address") from None
        if options["metrics"]:
            metrics_endpoint(str(options["metrics"]))
        return cls(
            **{
                **options,
                "state_dir": Path(options["state_dir"]).absolute(),
                "socket": Path(options["socket"]).absolute(),
                "hostname": options["hostname"] or socket.gethostname(),
                "permits": permits,
            }
        )

    @property
    def engine_socket(self) -> str:
        return self.engine.removeprefix("unix://")


class Meshd:
    """The daemon of one node; the API's Backend."""

    def __init__(self, config: DaemonConfig, balancer: Balancer) -> None:
        self._config = config
        self._balancer: Balancer = balancer
        self._credentials: Credentials | None = None
        self._local: LocalState | None = None
        self._manager: Manager | None = None
        self._node: NodeRuntime | None = None
        # one init, join, leave or change of role at a time; what comes meanwhile is told so
        self._changing = asyncio.Lock()
        self._error = ""
        self._roles = RoleFollower(self._change_role)
        self._resuming: asyncio.Task[None] | None = None

    # ---- Backend -------------------------------------------------------------------------------------------------------------

    def member(self) -> NodeRuntime | None:
        """What runs here as long as this node is in a cluster."""
        return self._node

    @property
    def state(self) -> NodeState:
        if self._local is None:
            return "pending" if self._changing.locked() and self._credentials is not None else "inactive"
        if self._manager is not None:
            return "manager"
        # a manager that waits for its quorum is no worker; one that becomes a manager is, until it is one
        return "error" if self._resuming is not None else "worker"

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
        warnings = []
        if self._balancer == "nftables":
            warnings.append("balancer is nftables because this kernel has no ip_vs: servers see the node's address, not the client's")
        local = self._local
        if self._manager and not self._manager.store.available:
            warnings.append("no majority of the managers can be reached: what is shown is as old as that, and nothing can be changed")
        snapshot = self._manager.store.snapshot() if self._manager else None
        known: list[tuple[str, str]] = [("", addr) for addr in local.managers] if local else []
        if snapshot is not None:
            known = [(node.id, node.manager_status.addr) for node in snapshot.all(Node) if node.manager_status]
        return NodeFacts(
            node_addr=local.advertise_addr if local else "",
            data_path_addr=local.data_addr if local else "",
            managers=sorted(known),
            balancer=self._balancer,
            meshd_version=VERSION,
            error=self._error,
            warnings=warnings,
        )

    async def init(self, request: InitRequest) -> str:
        async with self._one_change():
            from orchestrator.manager import Manager, write_etcd_certificate
            from orchestrator.store import etcd_tls

            advertise, listen = self._addresses(request.advertise_addr, request.listen_addr, "")
            data_addr = self._data_addr(request.data_path_addr, advertise)
            now = datetime.now(UTC)
            cluster_id = new_id()
            root = ca.new_root(cluster_id, now)
            key, csr = ca.new_key_and_csr()
            node_id = ca.node_id_of(csr)
            certificate = ca.issue(root, csr, node_id=node_id, role="manager", cluster_id=cluster_id, now=now, addresses=[advertise])
            etcd_ca = etcd_tls.create_ca(f"meshd etcd {cluster_id}", now)
            keys = Keys(
                ca_cert=root.certificate,
                ca_key=root.key,
                etcd_ca_cert=etcd_ca.cert,
                etcd_ca_key=etcd_ca.key,
                secret_key=secretbox.new_key(),
                tokens=tokens.make_both(root.certificate),
                tls_info=ca.tls_info(root.certificate),
            )
            addr = join_endpoint(advertise, split_endpoint(listen)[1])
            pool = tuple(request.default_addr_pool)
            changes = first_objects(
                cluster_id,
                new_id(),
                request.spec,
                keys,
                FirstNode(node_id, self._config.hostname, addr, data_addr, request.availability),
                now,
                address_pool=pool,
                # the CLI always sends /24; it is the user's word only beside a pool of his own
                subnet_size=request.subnet_size if pool else 0,
                data_path_port=request.data_path_port,
            )
            local = LocalState(
                cluster_id=cluster_id, node_id=node_id, advertise_addr=advertise, data_addr=data_addr, listen=listen, managers=(addr,)
            )
            config = self._manager_config(local)
            self._clear()
            write_etcd_certificate(config, etcd_ca, now)
            await self._become(local, Identity.of(certificate, key, root.certificate), Manager(config), lambda snapshot: changes)
            log.info("cluster made cluster=%s node=%s addr=%s", cluster_id, node_id, addr)
            return node_id

    async def recover(self) -> str:
        async with self._one_change():
            from orchestrator.manager import Manager

            local = self._local
            if local is None or not self._has_etcd_data():
                raise ApiError(503, "this node holds no data of a manager: recover at one that was a manager, or restore a backup")
            await self._stop_resuming()
            manager, self._manager = self._manager, None
            if manager is not None:
                await manager.stop()
            config = dataclasses.replace(self._manager_config(local), force_new_cluster=True)
            log.warning("recovering as the only manager cluster=%s node=%s", local.cluster_id, local.node_id)
            manager = Manager(config)
            try:
                await manager.start(lambda snapshot: sole_manager(snapshot, local.node_id, datetime.now(UTC)))
            except MeshdError:
                # whatever etcd could not do now, it may do at the next try; until then this node waits as before
                self._resuming = asyncio.create_task(self._resume_manager(local), name="resume-manager")
                raise
            self._manager, self._error = manager, ""
            return local.node_id

    async def restore(self, backup: Backup, advertise_addr: str) -> str:
        async with self._one_change():
            from orchestrator.manager import Manager, write_etcd_certificate
            from orchestrator.store import etcd_tls

            advertise, listen = self._addresses(advertise_addr, "", "")
            now = datetime.now(UTC)
            cluster = backup.cluster
            root = ca.RootCA(cluster.mesh_ca_cert, cluster.mesh_ca_key)
            key, csr = ca.new_key_and_csr()
            node_id = ca.node_id_of(csr)
            certificate = ca.issue(root, csr, node_id=node_id, role="manager", cluster_id=cluster.id, now=now, addresses=[advertise])
            addr = join_endpoint(advertise, split_endpoint(listen)[1])
            local = LocalState(
                cluster_id=cluster.id, node_id=node_id, advertise_addr=advertise, data_addr=advertise, listen=listen, managers=(addr,)
            )
            config = self._manager_config(local)
            me = manager_node(backup, node_id, self._config.hostname, addr, advertise, now)
            self._clear()
            write_etcd_certificate(config, etcd_tls.KeyPair(cluster.mesh_etcd_ca_cert, cluster.mesh_etcd_ca_key), now)
            changes = first_objects_of_backup(backup, me, now)
            await self._become(local, Identity.of(certificate, key, root.certificate), Manager(config), lambda snapshot: changes)
            log.info(
                "cluster restored cluster=%s node=%s objects=%d made_at=%s", cluster.id, node_id, len(changes), backup.header.created_at
            )
            return node_id

    async def join(self, request: JoinRequest) -> None:
        async with self._one_change():
            advertise, listen = self._addresses(request.advertise_addr, request.listen_addr, next(iter(request.remote_addrs), ""))
            data_addr = self._data_addr(request.data_path_addr, advertise)
            addr = join_endpoint(advertise, split_endpoint(listen)[1])
            self._clear()
            result = await join(
                request.remote_addrs,
                request.token,
                addr=addr,
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
            manager = None
            if identity.role == "manager":
                local, manager = self._joining_manager(local, result.bundle)
            await self._become(local, identity, manager)
            log.info("joined cluster=%s node=%s role=%s", local.cluster_id, local.node_id, identity.role)

    def _joining_manager(self, local: LocalState, bundle: Mapping[str, str]) -> tuple[LocalState, Manager]:
        from orchestrator.manager import BUNDLE_CA_CERT, BUNDLE_CA_KEY, BUNDLE_CLUSTER, Manager, write_etcd_certificate
        from orchestrator.store import etcd_tls

        local = msgspec.structs.replace(local, etcd_cluster=bundle[BUNDLE_CLUSTER])
        config = self._manager_config(local, joining=True)
        write_etcd_certificate(config, etcd_tls.KeyPair(bundle[BUNDLE_CA_CERT], bundle[BUNDLE_CA_KEY]), datetime.now(UTC))
        return local, Manager(config)

    async def leave(self, force: bool) -> None:
        async with self._one_change():
            log.info("leaving cluster=%s node=%s force=%s", self._local.cluster_id if self._local else "", self.node_id, force)
            # first of all: a crash from here on must not come back as a member
            local_state.erase(self._config.state_dir)
            self._local = None
            self._roles.stop()
            node, self._node = self._node, None
            if node is not None:
                await node.leave()
            await self._stop_resuming()
            manager, self._manager = self._manager, None
            if manager is not None:
                await manager.withdraw()
                await manager.stop()
            self._credentials = None
            self._error = ""
            self._clear()

    async def engine_session(self, node_id: str) -> tuple[aiohttp.ClientSession, str]:
        session, base = await self.node_session(node_id)
        return session, f"{base}/engine"

    async def node_session(self, node_id: str) -> tuple[aiohttp.ClientSession, str]:
        if self._node is None or self._manager is None:
            raise ApiError(503, "this node is not a manager")
        return self._node.node_session(self._manager.store.snapshot(), node_id)

    async def examine(self) -> list[Finding]:
        if self._node is None or self._local is None:
            return [Finding("note", "cluster", "this node is in no cluster", "docker swarm init, or docker swarm join")]
        findings = [Finding("bad", "cluster", self._error, "")] if self._error else []
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
        return join_endpoint(self._local.advertise_addr, split_endpoint(self._local.listen)[1])

    def rotate_token(self, cluster: Cluster, role: JoinRole) -> JoinTokens:
        return tokens.rotated(cluster.join_tokens or JoinTokens(), role, cluster.mesh_ca_cert)

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
        local = local_state.load(self._config.state_dir)
        if local is None:
            return
        credentials = Credentials.load(self._config.state_dir / _CERTIFICATES)
        if credentials is None:
            raise ConfigError(f"{self._config.state_dir} says this node is in a cluster, but its certificate is gone; leave and join again")
        self._credentials, self._local = credentials, local
        # without etcd's data it is on its way to be a manager, or no longer one: the leader says which
        if credentials.identity.role == "manager" and self._has_etcd_data():
            self._resuming = asyncio.create_task(self._resume_manager(local), name="resume-manager")
        await self._start_node()
        if self._resuming is not None:
            await asyncio.wait({self._resuming})
            if not self._resuming.cancelled():
                self._resuming.result()
            self._resuming = None

    async def _resume_manager(self, local: LocalState) -> None:
        from orchestrator.manager import Manager

        manager = Manager(self._manager_config(local))
        while True:
            try:
                await manager.start()
            except StoreUnavailable as error:
                self._error = str(error)
                log.warning("manager waits error=%s", error)
            except ConfigError as error:
                # the node's tasks go on; and a member that was removed meanwhile ends like this, until the leader tells it so
                self._error = str(error)
                log.error("manager can't start error=%s retry_in_s=%g", error, _RESUME_RETRY_S)
                await asyncio.sleep(_RESUME_RETRY_S)
            else:
                self._manager, self._error = manager, ""
                return

    async def _stop_resuming(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            await asyncio.wait({self._resuming})

    # ---- roles ---------------------------------------------------------------------------------------------------------------

    async def _change_role(self, role: str) -> None:
        """Be what the leader says. A crash anywhere in between is taken up by the next start: the leader says it again."""
        async with self._changing:
            if self._local is None:
                return
            if role == "manager" and self._manager is None and self._resuming is None:
                await self._become_manager()
            elif role == "worker" and (self._manager is not None or self._credential_role() == "manager"):
                await self._become_worker()

    async def _become_manager(self) -> None:
        from orchestrator.manager import Manager

        assert self._local is not None and self._credentials is not None
        config = self._manager_config(self._local, joining=True)
        await Manager(config).check()
        if self._credential_role() != "manager":
            await renew(self._credentials, self._local.managers)
        bundle = await ask_for_promotion(self._credentials, self._local.managers, config.addr)
        self._clear_etcd()
        local, manager = self._joining_manager(self._local, bundle)
        local_state.save(self._config.state_dir, local)
        self._local = local
        try:
            await manager.start()
        except BaseException:
            # a learner whose data is gone is replaced at the next try
            self._clear_etcd()
            raise
        self._manager = manager
        log.info("promoted cluster=%s node=%s", local.cluster_id, local.node_id)

    async def _become_worker(self) -> None:
        assert self._local is not None and self._credentials is not None
        await self._stop_resuming()
        manager, self._manager = self._manager, None
        if manager is not None:
            await manager.stop()
        self._clear_etcd()
        self._local = msgspec.structs.replace(self._local, etcd_cluster="")
        local_state.save(self._config.state_dir, self._local)
        if self._credential_role() == "manager":
            await renew(self._credentials, self._local.managers)
        self._error = ""
        log.info("demoted cluster=%s node=%s", self._local.cluster_id, self._local.node_id)

    def _credential_role(self) -> str:
        return self._credentials.identity.role if self._credentials is not None else ""

    def _has_etcd_data(self) -> bool:
        return (self._config.state_dir / _ETCD / "data" / "member").exists()

    def _clear_etcd(self) -> None:
        shutil.rmtree(self._config.state_dir / _ETCD, ignore_errors=True)

    # ---- life, continued -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End this process's part; containers, kernel tables and dnsd go on."""
        self._roles.stop()
        await self._stop_resuming()
        if self._node is not None:
            await self._node.stop()
        if self._manager is not None:
            await self._manager.stop()

    async def _become(
        self,
        local: LocalState,
        identity: Identity,
        manager: Manager | None,
        first_changes: Callable[[Snapshot], Sequence[Change]] | None = None,
    ) -> None:
        """From inactive to a member, or (any error) back to inactive with nothing left. first_changes: of a cluster that begins here."""
        try:
            self._credentials = Credentials.create(self._config.state_dir / _CERTIFICATES, identity)
            self._local = local
            if manager is not None:
                await manager.start(first_changes or _nothing)
                self._manager = manager
            await self._start_node()
            if first_changes:
                await self._until_ingress()
            local_state.save(self._config.state_dir, local)
        except BaseException as error:
            node, self._node = self._node, None
            if node is not None:
                await node.leave()
            if manager is not None:
                await manager.stop()
            self._manager = self._local = self._credentials = None
            self._clear()
            if isinstance(error, ConfigError):
                raise ApiError(500, str(error)) from error
            raise

    async def _start_node(self) -> None:
        assert self._local is not None and self._credentials is not None
        config, local = self._config, self._local
        settings = NodeSettings(
            state_dir=config.state_dir,
            runtime_dir=Path("/run/meshd") / local.node_id,
            engine=config.engine,
            hostname=config.hostname,
            listen=local.listen,
            api_addr=join_endpoint(local.advertise_addr, split_endpoint(local.listen)[1]),
            data_addr=local.data_addr,
            netns_prefix=config.netns_prefix,
            balancer=self._balancer,
            permits=config.permits,
        )
        node = NodeRuntime(
            settings,
            self._credentials,
            mesh=NodeMesh(prefix=config.netns_prefix),
            managers=local.managers,
            manager_side=lambda: self._manager.side if self._manager else None,
            on_managers=self._remember_managers,
            on_role=self._roles.told,
        )
        self._roles.start()
        await node.start()
        self._node = node

    def _remember_managers(self, managers: tuple[str, ...]) -> None:
        local = self._local
        if local is not None and managers and managers != local.managers:
            self._local = msgspec.structs.replace(local, managers=managers)
            if local_state.load(self._config.state_dir) is not None:
                local_state.save(self._config.state_dir, self._local)

    async def _until_ingress(self) -> None:
        """`swarm init` answers once the leader's loops run: the ingress network has its addresses."""
        assert self._manager is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while not any(network.mesh_vni for network in self._manager.store.snapshot().all(Network) if network.ingress):
                    await asyncio.sleep(0.02)

    # ---- details -------------------------------------------------------------------------------------------------------------

    def _manager_config(self, local: LocalState, *, joining: bool = False) -> ManagerConfig:
        from orchestrator.manager import ManagerConfig

        return ManagerConfig(
            node_id=local.node_id,
            addr=join_endpoint(local.advertise_addr, split_endpoint(local.listen)[1]),
            directory=self._config.state_dir / _ETCD,
            client_port=self._config.etcd_client_port,
            peer_port=self._config.etcd_peer_port,
            initial_cluster=local.etcd_cluster,
            joining=joining,
            backups=self._config.state_dir / _BACKUPS,
            backup_every_s=self._config.backup_every * 60.0,
            backup_keep=self._config.backup_keep,
        )

    def _addresses(self, advertise: str, listen: str, remote: str) -> tuple[str, str]:
        """(IP address to advertise, "ip:port" to listen at). ApiError(400) with Docker's text when there is no single choice."""
        port = DEFAULT_PORT
        given_listen = self._config.listen_addr or ("" if listen in ("", f"0.0.0.0:{DEFAULT_PORT}") else listen)
        try:
            if given_listen:
                host, port = split_endpoint(given_listen)
            else:
                host = "0.0.0.0"
            wanted = advertise or self._config.advertise_addr
            chosen = choose_address(wanted, own_addresses(), split_endpoint(remote)[0] if remote else "")
        except ValueError:
            raise ApiError(400, f"invalid address {listen or remote!r}: expected an IP address with an optional port") from None
        return chosen, join_endpoint(host, port)

    def _data_addr(self, given: str, advertise: str) -> str:
        return choose_address(given, own_addresses(), "") if given else advertise

    def _clear(self) -> None:
        """Remove what an earlier membership, or an attempt that failed, left on disk."""
        shutil.rmtree(self._config.state_dir / _CERTIFICATES, ignore_errors=True)
        self._clear_etcd()
        local_state.erase(self._config.state_dir)

    @contextlib.asynccontextmanager
    async def _one_change(self) -> Any:
        if self._changing.locked():
            raise ApiError(503, "this node is just being initialized, joined or removed: wait until that is done")
        async with self._changing:
            yield


def _nothing(snapshot: Snapshot) -> Sequence[Change]:
    return ()


async def _serve(config: DaemonConfig) -> None:
    balancer = detect_balancer()
    daemon = Meshd(config, balancer)
    runners = []
    if config.metrics:
        from orchestrator import metrics

        runners.append(await metrics.serve(*metrics_endpoint(config.metrics), daemon.member))
    runners.append(await serve_unix(daemon, str(config.socket)))
    with contextlib.suppress(KeyError):
        os.chown(config.socket, -1, grp.getgrnam(config.group).gr_gid)
    log.info(
        "meshd version=%s socket=%s engine=%s balancer=%s hostname=%s", VERSION, config.socket, config.engine, balancer, config.hostname
    )
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    starting = asyncio.create_task(daemon.start(), name="start")
    waiting = asyncio.create_task(ended.wait(), name="end")
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await waiting
    finally:
        for task in (starting, waiting):
            task.cancel()
        for runner in runners:
            await runner.cleanup()
        await daemon.stop()


def run(config: DaemonConfig) -> None:
    """The daemon until SIGTERM. ConfigError: one sentence what this machine lacks."""
    if os.geteuid() != 0:
        raise ConfigError("meshd makes network namespaces and devices: run it as root")
    logging.basicConfig(level=config.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if problems := check_kernel():
        raise ConfigError("; ".join(problems))
    if shutil.which("nft") is None and shutil.which("nft", path="/usr/sbin:/sbin") is None:
        raise ConfigError("nft is missing: apt-get install nftables")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config))
