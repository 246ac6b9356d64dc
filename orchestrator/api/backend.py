"""What the Docker API needs of the daemon around it; the daemon implements it, the tests fake it.

Pure: types only. Whatever goes wrong in these calls is raised as ApiError with Docker's text and status (or StoreUnavailable,
which the API answers as 503); nothing else may leave them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import aiohttp

from orchestrator.diagnose.finding import Finding
from orchestrator.managers.backup import Backup
from orchestrator.model import Cluster, ClusterSpec, JoinTokens
from orchestrator.store.base import Store

NodeState = Literal["inactive", "pending", "worker", "manager", "error", "locked"]
JoinRole = Literal["worker", "manager"]


@dataclass(frozen=True, slots=True)
class InitRequest:
    """`swarm init`. Empty text / empty list / 0 = the user did not say: the daemon chooses (port 4789, /24 subnets, ...).

    An advertise address that can't be chosen is the daemon's ApiError(400) "could not choose an IP address to advertise ...".
    """

    spec: ClusterSpec
    advertise_addr: str = ""
    listen_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0
    default_addr_pool: Sequence[str] = ()
    subnet_size: int = 0
    availability: str = "active"
    auto_lock_managers: bool = False


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """`swarm join`; the role is in the token."""

    remote_addrs: Sequence[str]
    token: str
    advertise_addr: str = ""
    listen_addr: str = ""
    data_path_addr: str = ""
    availability: str = "active"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """This node as it knows itself, also without a quorum: for /info and /version.

    managers: (node id, "ip:port" of its cluster address), as a worker remembers them and a manager reads them.
    balancer: "ipvs" | "nftables" | "" before it is known. warnings: whole sentences, one each, shown by `docker info`.
    error: why state is "error" or "pending", else "". data_path_addr: the VXLAN address.
    """

    node_addr: str = ""
    data_path_addr: str = ""
    managers: Sequence[tuple[str, str]] = ()
    balancer: str = ""
    meshd_version: str = ""
    error: str = ""
    warnings: Sequence[str] = ()


class Backend(Protocol):
    """Properties are cheap and current at every call: the API keeps none of them."""

    @property
    def state(self) -> NodeState:
        """What this node is now. "manager" implies that `store` is there; "pending": joining, not yet accepted."""
        ...

    @property
    def node_id(self) -> str:
        """ "" while inactive."""
        ...

    @property
    def store(self) -> Store | None:
        """None unless a manager."""
        ...

    @property
    def engine_socket(self) -> str:
        """Path of the local Engine's unix socket."""
        ...

    def facts(self) -> NodeFacts: ...

    async def init(self, request: InitRequest) -> str:
        """Make a cluster of this one node; returns the node id once the store answers. The API has refused it unless inactive."""
        ...

    async def recover(self) -> str:
        """The quorum is lost for good: go on as the only manager, with what this node's etcd has; returns the node id."""
        ...

    async def restore(self, backup: Backup, advertise_addr: str) -> str:
        """From inactive: the backup's cluster again, with this node as its only manager; returns the node id."""
        ...

    async def join(self, request: JoinRequest) -> None:
        """Returns once this node is accepted (worker) or serves as manager."""
        ...

    async def leave(self, force: bool) -> None:
        """Stop the tasks, forget the cluster. A manager is asked only with force (the API has said Docker's text otherwise)."""
        ...

    async def unlock(self, key: str) -> None:
        """A locked node goes on as what it was. ApiError(409): it isn't locked; ApiError(401): it is another key; ConfigError: none."""
        ...

    async def follow_unlock_key(self) -> None:
        """After the cluster's unlock key was changed: when it returns, this manager's disk is sealed with it."""
        ...

    async def engine_session(self, node_id: str) -> tuple[aiohttp.ClientSession, str]:
        """A session and base URL (no trailing slash) at which `node_id`'s Engine API answers; managers only. The session stays the
        backend's: the API never closes it. ApiError(500) when that node can't be reached."""
        ...

    async def node_session(self, node_id: str) -> tuple[aiohttp.ClientSession, str]:
        """The same for the node's own API, which carries its Engine's."""
        ...

    async def examine(self) -> list[Finding]:
        """What this node, while it runs, finds wrong with itself and with its way to the others."""
        ...

    def rotate_token(self, cluster: Cluster, role: JoinRole) -> JoinTokens:
        """The cluster's tokens with a new secret for `role`. Only computed: the API commits it."""
        ...

    async def order_ca(self, cluster: Cluster, spec: ClusterSpec) -> Cluster:
        """The cluster with that spec and what it asks of the CA (a new root, external CAs). ConfigError: why it can't be. Only computed."""
        ...

    def encrypt_secret(self, plain: bytes) -> bytes:
        """What Secret.mesh_ciphertext holds for this payload."""
        ...

    def decrypt_secret(self, ciphertext: bytes) -> bytes:
        """The payload again: `secret update` must tell whether the payload it was sent is the stored one."""
        ...
