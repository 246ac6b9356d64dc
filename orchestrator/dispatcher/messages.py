"""What managers and agents say to each other over the dispatcher's WebSocket: msgpack frames, one message each.

Pure: types only. A node's assignment is a set of rows, each known by its key; the manager sends the whole set once (`Complete`) and
then only what changed (`Delta`). A row holds everything an agent may know: only its own tasks, and the tables of networks it
takes part in (every node takes part in the ingress network).

    agent                              the leader, or another manager that passes all of it on
    Hello(have)            ------->    have: the resume token of an agent that was here, or elsewhere, before
                           <-------    Complete(revision, rows)      or Redirect(addr) when no leader is found
                           <-------    Restart: another manager leads; the agent says hello again
    Applied(revision)      ------->    the kernel and dnsd now show this revision
                           <-------    Delta(revision, put, removed)
    Statuses               ------->    task states, only forward; answered by StatusesStored once they are in the store
    Applied(..., open)     ------->    repeated while something drains: connections still open to draining endpoints
    Heartbeat              ------->    every `heartbeat_s`; the manager declares the node lost after 3 missed ones
                           <-------    Heard: the leader's proof that it is one, and counts this node as connected
    Leave                  ------->    the node is down from now on
"""

from __future__ import annotations

from typing import Union

import msgspec

from orchestrator.dns_options import DnsOptions
from orchestrator.model import NodeDescription, PortConfig, Task, TaskStatus
from orchestrator.security.admission import Trust

# ---- rows ----------------------------------------------------------------------------------------------------------------------


class TaskRow(msgspec.Struct, frozen=True, kw_only=True, tag="task"):
    """A task of this node (assigned or further, not yet gone). Its container runs iff the agent may: see `agent.tasks`."""

    task: Task

    @property
    def key(self) -> str:
        return f"task/{self.task.id}"


class NodeRow(msgspec.Struct, frozen=True, kw_only=True, tag="node"):
    """A node that shares a network with this one. data_addr: its VTEP address."""

    id: str
    hostname: str
    data_addr: str

    @property
    def key(self) -> str:
        return f"node/{self.id}"


class NetworkRow(msgspec.Struct, frozen=True, kw_only=True, tag="network"):
    """lb_addresses: node id -> that node's own address on this network (no prefix length). vxlan_port, keys_step: the cluster's, on every
    row. keys: node id -> its public keys by epoch, of an encrypted network; None: it is not encrypted."""

    id: str
    name: str
    vni: int
    subnets: tuple[str, ...]
    ingress: bool = False
    internal: bool = False
    mtu: int | None = None
    vxlan_port: int = 4789
    lb_addresses: dict[str, str] = {}
    dns: DnsOptions = DnsOptions()
    keys_step: int = 0
    keys: dict[str, dict[str, str]] | None = None

    @property
    def key(self) -> str:
        return f"network/{self.id}"


class EndpointRow(msgspec.Struct, frozen=True, kw_only=True, tag="endpoint"):
    """One task on one network.

    Rows exist from the moment the task has a node (so that its addresses are reachable before it serves) until it is terminal;
    `serving` says whether VIPs and DNS may offer it: status RUNNING and not draining.
    """

    task_id: str
    network_id: str
    service_id: str
    node_id: str
    name: str
    slot: int
    addresses: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    serving: bool = False
    draining: bool = False

    @property
    def key(self) -> str:
        return f"endpoint/{self.network_id}/{self.task_id}"


class ServiceRow(msgspec.Struct, frozen=True, kw_only=True, tag="service"):
    """A service on one network. vips empty = dnsrr. ports: published ones, given on the ingress network's row only."""

    id: str
    network_id: str
    name: str
    aliases: tuple[str, ...] = ()
    stack: str = ""
    vips: tuple[str, ...] = ()
    ports: tuple[PortConfig, ...] = ()

    @property
    def key(self) -> str:
        return f"service/{self.network_id}/{self.id}"


class SecretRow(msgspec.Struct, frozen=True, kw_only=True, tag="secret"):
    """A secret that one of this node's tasks names, in the clear (the connection is encrypted); kept on tmpfs only.

    A templated one is rendered for one task: its id is "<task id>/<secret id>". error: why it could not be; its task is rejected.
    """

    id: str
    name: str
    data: bytes
    error: str = ""

    def __repr__(self) -> str:
        """Without the secret: a row may get into a log."""
        return f"SecretRow(id={self.id!r}, name={self.name!r})"

    @property
    def key(self) -> str:
        return f"secret/{self.id}"


class ConfigRow(msgspec.Struct, frozen=True, kw_only=True, tag="config"):
    """A config, or, as with secrets, one task's rendering of it (which may hold secrets)."""

    id: str
    name: str
    data: bytes
    error: str = ""

    def __repr__(self) -> str:
        return f"ConfigRow(id={self.id!r}, name={self.name!r})"

    @property
    def key(self) -> str:
        return f"config/{self.id}"


class RegistryRow(msgspec.Struct, frozen=True, kw_only=True, tag="registry"):
    """Credentials for the images of a service, in the clear, for a node that has a task of it to prepare. auth: as in X-Registry-Auth."""

    service_id: str
    auth: str

    @property
    def key(self) -> str:
        return f"registry/{self.service_id}"

    def __repr__(self) -> str:
        return f"RegistryRow(service_id={self.service_id!r})"


Row = Union[TaskRow, NodeRow, NetworkRow, EndpointRow, ServiceRow, SecretRow, ConfigRow, RegistryRow]  # noqa: UP007

# ---- versions ------------------------------------------------------------------------------------------------------------------

# Of this protocol: one more with the minor release that changes it. 1: redirects. 2: any manager serves, and sessions resume.
PROTOCOL = 2


def skew(*, agent: int, manager: int) -> str:
    """Why these versions don't talk to each other; "" = they do. Neighbours do: nodes are upgraded one by one."""
    if abs(agent - manager) <= 1:
        return ""
    older = "agent" if agent < manager else "manager"
    return (
        f"the agent speaks version {agent} of their protocol and the manager version {manager}, more than one minor release apart: "
        f"upgrade the {older}'s meshd, one minor release after the other"
    )


# ---- agent -> manager ----------------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """First message. Who it is, is said by the certificate, not here. have: the resume token (`resume`), b"" = it has no rows."""

    description: NodeDescription
    version: int = 1
    have: bytes = b""


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    task_id: str
    status: TaskStatus


class Statuses(msgspec.Struct, frozen=True, kw_only=True, tag="statuses"):
    sequence: int
    reports: tuple[TaskReport, ...]


class Applied(msgspec.Struct, frozen=True, kw_only=True, tag="applied"):
    """The balancers and DNS of this node show revision `revision`. open_connections: draining task id -> connections still open. behind:
    networks whose balancer could not be changed, and may show an older picture."""

    revision: int
    open_connections: dict[str, int] = {}
    behind: tuple[str, ...] = ()


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag="heartbeat"):
    sequence: int = 0


class Describe(msgspec.Struct, frozen=True, kw_only=True, tag="describe"):
    """The node changed (resources, engine version, balancer)."""

    description: NodeDescription


class Leave(msgspec.Struct, frozen=True, kw_only=True, tag="leave"):
    """The node leaves the cluster for good: it is down at once, nobody waits for it. The last message of its session."""


FromAgent = Union[Hello, Statuses, Applied, Heartbeat, Describe, Leave]  # noqa: UP007

# ---- manager -> agent ----------------------------------------------------------------------------------------------------------


class Redirect(msgspec.Struct, frozen=True, kw_only=True, tag="redirect"):
    """This manager finds no leader. addr: the "ip:port" of the one it knows of, or "" (try another manager)."""

    addr: str


class Restart(msgspec.Struct, frozen=True, kw_only=True, tag="restart"):
    """Another manager leads, or will: the agent stays here and says hello again."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The manager does not talk to this agent, for a reason that only people can change."""

    reason: str


class Complete(msgspec.Struct, frozen=True, kw_only=True, tag="complete"):
    """managers: "ip:port" of all managers, to be remembered for reconnecting. role: what the node is to be, "manager" or "worker".

    stale: None = `rows` is all there is. Else the answer to a token: of what the agent has these buckets go, `rows` come, the rest stays.
    trust: of certificates, None: nothing new.
    """

    revision: int
    rows: tuple[msgspec.Raw, ...]
    managers: tuple[str, ...] = ()
    heartbeat_s: float = 5.0
    role: str = ""
    stale: tuple[int, ...] | None = None
    version: int = 1
    trust: Trust | None = None


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag="delta"):
    revision: int
    put: tuple[msgspec.Raw, ...] = ()
    removed: tuple[str, ...] = ()
    managers: tuple[str, ...] | None = None
    role: str | None = None
    trust: Trust | None = None


class StatusesStored(msgspec.Struct, frozen=True, kw_only=True, tag="stored"):
    sequence: int


class Heard(msgspec.Struct, frozen=True, kw_only=True, tag="heard"):
    """Answer to a heartbeat. confirmed_s: so long ago the write was begun that last proved this leader's leadership."""

    sequence: int
    confirmed_s: float


FromManager = Union[Redirect, Restart, Refused, Complete, Delta, StatusesStored, Heard]  # noqa: UP007
