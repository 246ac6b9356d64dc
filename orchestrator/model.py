"""The objects of the cluster. Their JSON *is* the Docker Engine API's.

Pure: no I/O. Source: Docker Engine API 1.44 (definitions Node, Service, Task, Network, Secret, Config, Swarm). API, store and wire
use these structs; what Docker doesn't have is named `Mesh...` and never changes the meaning of a Docker field.

A struct is never changed: `msgspec.structs.replace`. `version.index` is the store's ModRevision of the object: 0 = not stored yet.
Durations are nanoseconds (`..._ns` in the docs below where Docker's name doesn't say so), memory bytes, CPUs 1e-9 CPUs.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Any, Literal, Union

import msgspec

SECOND = 1_000_000_000
ZERO_TIME = datetime(1, 1, 1, tzinfo=UTC)

_NAMES = {
    "id": "ID", "service_id": "ServiceID", "node_id": "NodeID", "network_id": "NetworkID", "container_id": "ContainerID",
    "secret_id": "SecretID", "config_id": "ConfigID", "nano_cpus": "NanoCPUs", "os": "OS", "virtual_ips": "VirtualIPs",
    "uid": "UID", "gid": "GID", "dns_config": "DNSConfig", "ca_config": "CAConfig", "ca_certificate": "CACertificate",
    "ca_certs": "CACerts", "external_cas": "ExternalCAs", "signing_ca_cert": "SigningCACert", "signing_ca_key": "SigningCAKey",
    "enable_ipv6": "EnableIPv6", "enable_ipv4": "EnableIPv4", "ipam": "IPAM", "tty": "TTY", "pid": "PID", "tls_info": "TLSInfo",
    "selinux_context": "SELinuxContext", "mesh_vni": "MeshVNI", "url": "URL", "tmpfs_options": "TmpfsOptions",
    "mesh_api_addr": "MeshAPIAddr",
}  # fmt: skip


def docker_name(field: str) -> str:
    """`nano_cpus` -> `NanoCPUs`: PascalCase, acronyms by explicit name."""
    return _NAMES.get(field) or "".join(part.capitalize() for part in field.split("_"))


# gc=False: frozen objects hold no cycles, and a collector that walks 100,000 tasks each time costs more than all that is done with them
class _Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=docker_name, gc=False):
    """Base: Docker's names, defaults left out, unknown fields ignored, nulls accepted where Docker's Go code sends them."""


class _Whole(msgspec.Struct, frozen=True, kw_only=True, rename=docker_name, gc=False):
    """Like `_Struct`, but every field is always written: clients rely on its presence."""


# ---- parts shared by several objects -----------------------------------------------------------------------------------------


class Version(_Whole):
    index: int = 0


class Driver(_Struct):
    name: str = ""
    options: dict[str, str] | None = None


class Platform(_Struct):
    architecture: str = ""
    os: str = ""


class NamedGenericResource(_Struct):
    kind: str = ""
    value: str = ""


class DiscreteGenericResource(_Struct):
    kind: str = ""
    value: int = 0


class GenericResource(_Struct):
    named_resource_spec: NamedGenericResource | None = None
    discrete_resource_spec: DiscreteGenericResource | None = None


# ---- task spec -----------------------------------------------------------------------------------------------------------------


class BindOptions(_Struct):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class VolumeOptions(_Struct):
    no_copy: bool = False
    labels: dict[str, str] | None = None
    subpath: str = ""
    driver_config: Driver | None = None


class TmpfsOptions(_Struct):
    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class Mount(_Struct):
    type: str = "volume"
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None


class HealthConfig(_Struct):
    """Times in ns; 0 = the image's or the Engine's default."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    retries: int = 0
    start_period: int = 0
    start_interval: int = 0


class DNSConfig(_Struct):
    nameservers: list[str] | None = None
    search: list[str] | None = None
    options: list[str] | None = None


class FileTarget(_Struct):
    name: str = ""
    uid: str = msgspec.field(default="0")
    gid: str = msgspec.field(default="0")
    mode: int = 0o444


class SecretReference(_Struct):
    file: FileTarget | None = None
    secret_id: str = ""
    secret_name: str = ""


class ConfigReference(_Struct):
    file: FileTarget | None = None
    runtime: dict[str, Any] | None = None
    config_id: str = ""
    config_name: str = ""


class Ulimit(_Struct):
    name: str = ""
    soft: int = 0
    hard: int = 0


class ContainerSpec(_Struct):
    """What runs. `command` replaces the image's ENTRYPOINT, `args` its CMD."""

    image: str = ""
    labels: dict[str, str] | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    hostname: str = ""
    env: list[str] | None = None
    dir: str = ""
    user: str = ""
    groups: list[str] | None = None
    privileges: dict[str, Any] | None = None
    init: bool | None = None
    stop_signal: str = ""
    tty: bool = False
    open_stdin: bool = False
    read_only: bool = False
    mounts: list[Mount] | None = None
    stop_grace_period: int | None = None
    healthcheck: HealthConfig | None = None
    hosts: list[str] | None = None
    dns_config: DNSConfig | None = None
    secrets: list[SecretReference] | None = None
    configs: list[ConfigReference] | None = None
    isolation: str = ""
    sysctls: dict[str, str] | None = None
    capability_add: list[str] | None = None
    capability_drop: list[str] | None = None
    ulimits: list[Ulimit] | None = None
    oom_score_adj: int = 0


class Limit(_Struct):
    nano_cpus: int = 0
    memory_bytes: int = 0
    pids: int = 0


class ResourceObject(_Struct):
    nano_cpus: int = 0
    memory_bytes: int = 0
    generic_resources: list[GenericResource] | None = None


class ResourceRequirements(_Struct):
    limits: Limit | None = None
    reservations: ResourceObject | None = None


class RestartPolicy(_Struct):
    """condition any (default) | on-failure | none; delay and window ns; max_attempts 0 = for ever."""

    condition: str = ""
    delay: int | None = None
    max_attempts: int | None = None
    window: int | None = None


class SpreadOver(_Struct):
    spread_descriptor: str = ""


class PlacementPreference(_Struct):
    spread: SpreadOver | None = None


class Placement(_Struct):
    constraints: list[str] | None = None
    preferences: list[PlacementPreference] | None = None
    max_replicas: int = 0
    platforms: list[Platform] | None = None


class NetworkAttachmentConfig(_Struct):
    """mesh_addresses: those that it is to have there (`docker run --ip`), no prefix length; only attachments ask for them."""

    target: str = ""
    aliases: list[str] | None = None
    driver_opts: dict[str, str] | None = None
    mesh_addresses: list[str] | None = None


class NetworkAttachmentSpec(_Struct):
    """A container that somebody started by hand. container_id: "" until its Engine has made it. mesh_environment: those of its variables
    that its held start has to know (`agent.hold`)."""

    container_id: str = ""
    mesh_environment: list[str] | None = None


class TaskSpec(_Struct):
    container_spec: ContainerSpec | None = None
    plugin_spec: dict[str, Any] | None = None
    network_attachment_spec: NetworkAttachmentSpec | None = None
    resources: ResourceRequirements | None = None
    restart_policy: RestartPolicy | None = None
    placement: Placement | None = None
    networks: list[NetworkAttachmentConfig] | None = None
    log_driver: Driver | None = None
    force_update: int = 0
    runtime: str = ""


# ---- service -------------------------------------------------------------------------------------------------------------------


class ReplicatedService(_Whole):
    replicas: int | None = None


class GlobalService(_Whole):
    pass


class ReplicatedJob(_Struct):
    max_concurrent: int | None = None
    total_completions: int | None = None


class GlobalJob(_Whole):
    pass


class ServiceMode(_Struct):
    """Exactly one is set; none = replicated."""

    replicated: ReplicatedService | None = None
    global_: GlobalService | None = msgspec.field(default=None, name="Global")
    replicated_job: ReplicatedJob | None = None
    global_job: GlobalJob | None = None


class UpdateConfig(_Struct):
    """delay, monitor ns; order stop-first | start-first; failure_action pause | continue | rollback. parallelism 0 = all at once."""

    parallelism: int = 0
    delay: int = 0
    failure_action: str = ""
    monitor: int = 0
    max_failure_ratio: float = 0.0
    order: str = ""


class PortConfig(_Struct):
    name: str = ""
    protocol: str = "tcp"
    target_port: int = 0
    published_port: int = 0
    publish_mode: str = "ingress"


class EndpointSpec(_Struct):
    mode: str = ""
    ports: list[PortConfig] | None = None


class ServiceSpec(_Struct):
    name: str = ""
    labels: dict[str, str] | None = None
    task_template: TaskSpec = TaskSpec()
    mode: ServiceMode = ServiceMode()
    update_config: UpdateConfig | None = None
    rollback_config: UpdateConfig | None = None
    networks: list[NetworkAttachmentConfig] | None = None
    endpoint_spec: EndpointSpec | None = None


class VirtualIP(_Struct):
    """`addr` in CIDR form, as Docker shows it."""

    network_id: str = ""
    addr: str = ""


class Endpoint(_Struct):
    spec: EndpointSpec = EndpointSpec()
    ports: list[PortConfig] | None = None
    virtual_ips: list[VirtualIP] | None = None


class UpdateStatus(_Struct):
    """state: updating paused completed rollback_started rollback_paused rollback_completed."""

    state: str = ""
    started_at: datetime | None = None
    completed_at: datetime | None = None
    message: str = ""


class ServiceStatus(_Whole):
    running_tasks: int = 0
    desired_tasks: int = 0
    completed_tasks: int = 0


class JobRun(_Struct):
    """One run of a cron service. outcome "" while it is open, then complete | failed | replaced. due_at None: started by hand."""

    iteration: int = 0
    due_at: datetime | None = None
    started_at: datetime = ZERO_TIME
    ended_at: datetime | None = None
    outcome: str = ""


class JobStatus(_Struct):
    """job_iteration: of the newest run; its tasks carry it. Cron services only: mesh_runs, the open ones and the history, oldest
    first; mesh_due_until: due times up to here have been dealt with (None: those since the service was created count).
    """

    job_iteration: Version = Version()
    last_execution: datetime | None = None
    mesh_runs: list[JobRun] | None = None
    mesh_due_until: datetime | None = None


class Service(_Struct):
    """Removed by the user = gone from the store; its tasks follow with desired state REMOVE. service_status: only in API answers.
    mesh_registry_auth: credentials for its images (`registry_auth`), encrypted; not part of the spec, so new ones restart nothing.
    mesh_homes: slot -> id of the node that has its volumes (stateful services).
    mesh_spec_since: every version after this one has this spec (0: all of them).
    """

    id: str
    version: Version = Version()
    created_at: datetime = ZERO_TIME
    updated_at: datetime = ZERO_TIME
    spec: ServiceSpec = ServiceSpec()
    previous_spec: ServiceSpec | None = None
    endpoint: Endpoint = Endpoint()
    update_status: UpdateStatus | None = None
    job_status: JobStatus | None = None
    service_status: ServiceStatus | None = None
    mesh_registry_auth: bytes = b""
    mesh_homes: dict[str, str] | None = None
    mesh_spec_since: int = 0


# ---- task ----------------------------------------------------------------------------------------------------------------------


class TaskState(enum.StrEnum):
    """States only move forward, in this order (SwarmKit api/types.proto)."""

    NEW = "new"
    PENDING = "pending"
    ASSIGNED = "assigned"
    ACCEPTED = "accepted"
    PREPARING = "preparing"
    READY = "ready"
    STARTING = "starting"
    RUNNING = "running"
    COMPLETE = "complete"
    SHUTDOWN = "shutdown"
    FAILED = "failed"
    REJECTED = "rejected"
    REMOVE = "remove"
    ORPHANED = "orphaned"

    # a string's own, which is remembered: that of Enum is Python code, and states are looked up for every task in every pass
    __hash__ = str.__hash__


STATE_ORDER: dict[TaskState, int] = {state: order for order, state in enumerate(TaskState)}
_TERMINAL = frozenset({TaskState.COMPLETE, TaskState.SHUTDOWN, TaskState.FAILED, TaskState.REJECTED, TaskState.REMOVE, TaskState.ORPHANED})


def terminal(state: TaskState) -> bool:
    """No process can be running any more."""
    return state in _TERMINAL


class ContainerStatus(_Struct):
    container_id: str = ""
    pid: int = 0
    exit_code: int = 0


class PortStatus(_Struct):
    ports: list[PortConfig] | None = None


class TaskStatus(_Struct):
    timestamp: datetime = ZERO_TIME
    state: TaskState = TaskState.NEW
    message: str = ""
    err: str = ""
    container_status: ContainerStatus | None = None
    port_status: PortStatus | None = None


class NetworkReference(_Struct):
    """The part of a network that a stored task keeps; the API shows the whole one."""

    id: str = ""
    mesh_encrypted: bool = False


class NetworkAttachment(_Struct):
    """addresses in CIDR form."""

    network: NetworkReference = NetworkReference()
    addresses: list[str] | None = None


class Task(_Struct):
    """One attempt to fill one slot of a service (replicated) or one node (global).

    desired_state is the orchestrator's, status is the agent's (up to ASSIGNED: the leader's). RUNNING means ready: healthy where
    it has a check, else its ports listen. Tasks of jobs are desired RUNNING too until they end (the API shows COMPLETE).
    mesh_run_at: not started before (restart delay). mesh_draining_since: desired shutdown while running: weight 0 from the
    revision of that write on. mesh_released: nobody sends to it any more (or the drain deadline passed): the agent may stop it.
    mesh_running_since: when it was first reported RUNNING (kept after it ended: an update's monitor asks how long it ran).
    mesh_lost_since: when it was replaced because its node was lost. If the node returns, it serves until its successor does.
    mesh_fence: its agent stops it when it has heard of no leader for so long (ns): it must not run beside a successor. None: never.

    An *attachment* (`is_attachment`) is a container started by hand on overlay networks. It has no service; `name` is its container's; its
    node is given by whoever made it and its networks may change. RUNNING: it is attached whenever its container runs, which is while
    `status.container_status` has a pid.
    """

    id: str
    version: Version = Version()
    created_at: datetime = ZERO_TIME
    updated_at: datetime = ZERO_TIME
    name: str = ""
    labels: dict[str, str] | None = None
    spec: TaskSpec = TaskSpec()
    service_id: str = ""
    slot: int = 0
    node_id: str = ""
    status: TaskStatus = TaskStatus()
    desired_state: TaskState = TaskState.RUNNING
    networks_attachments: list[NetworkAttachment] | None = None
    generic_resources: list[GenericResource] | None = None
    job_iteration: Version | None = None
    mesh_service_name: str = ""
    mesh_endpoint_ports: list[PortConfig] | None = None
    mesh_run_at: datetime | None = None
    mesh_draining_since: datetime | None = None
    mesh_released: bool = False
    mesh_running_since: datetime | None = None
    mesh_lost_since: datetime | None = None
    mesh_fence: int | None = None


def is_attachment(task: Task) -> bool:
    return task.spec.network_attachment_spec is not None


# ---- node ----------------------------------------------------------------------------------------------------------------------


class NodeSpec(_Struct):
    """role manager | worker; availability active | pause | drain."""

    name: str = ""
    labels: dict[str, str] | None = None
    role: str = "worker"
    availability: str = "active"


class EnginePlugin(_Struct):
    type: str = ""
    name: str = ""


class EngineDescription(_Struct):
    engine_version: str = ""
    labels: dict[str, str] | None = None
    plugins: list[EnginePlugin] | None = None


class TLSInfo(_Struct):
    trust_root: str = ""
    cert_issuer_subject: str = ""
    cert_issuer_public_key: str = ""


class NodeEncryption(_Struct):
    """unable: why the node can't have encrypted networks, "" = it can. keys: WireGuard public keys by epoch. step: of the change of keys
    that its kernel shows (`orchestrator.encryption`)."""

    unable: str = ""
    keys: dict[str, str] = {}
    step: int = 0


class NodeDescription(_Struct):
    """mesh_balancer: "ipvs" or "nftables", chosen by the node from its kernel. mesh_api_addr: where the node API listens, "ip:port".
    mesh_engine_error: why the node's Engine can't be worked with just now, "" = it answers.
    mesh_facts: what the Engine says of its machine, by the names that classic constraints use (`storagedriver`, `kernelversion`, ...).
    mesh_permits: what the node's owner permits containers (`permissions`); None: not said.
    mesh_tasks_dir: where on the node the gates of held containers lie (`agent.task_files`).
    mesh_encryption: None: an agent that knows nothing of it.
    """

    hostname: str = ""
    platform: Platform = Platform()
    resources: ResourceObject = ResourceObject()
    engine: EngineDescription = EngineDescription()
    tls_info: TLSInfo | None = None
    mesh_balancer: str = ""
    mesh_api_addr: str = ""
    mesh_data_addr: str = ""
    mesh_engine_error: str = ""
    mesh_permits: list[str] | None = None
    mesh_facts: dict[str, str] | None = None
    mesh_tasks_dir: str = ""
    mesh_encryption: NodeEncryption | None = None


class NodeStatus(_Struct):
    """state unknown | down | ready | disconnected."""

    state: str = "unknown"
    message: str = ""
    addr: str = ""


class ManagerStatus(_Struct):
    leader: bool = False
    reachability: str = "unknown"
    addr: str = ""


class NodeAttachment(_Struct):
    """The node's own (LB) address on a network, CIDR form. Allocated when the first task of the network is placed there."""

    network_id: str = ""
    addr: str = ""


class NodeCertificate(_Struct):
    """What is known of a node's certificate: fingerprints of the key it last proved to have and of the one last certified, until when."""

    keys: list[str] | None = None
    not_after: datetime = ZERO_TIME


class Node(_Struct):
    """mesh_disconnected_since: when the dispatcher lost it (None while connected). mesh_spec_since: as in `Service`."""

    id: str
    version: Version = Version()
    created_at: datetime = ZERO_TIME
    updated_at: datetime = ZERO_TIME
    spec: NodeSpec = NodeSpec()
    description: NodeDescription = NodeDescription()
    status: NodeStatus = NodeStatus()
    manager_status: ManagerStatus | None = None
    mesh_attachments: list[NodeAttachment] | None = None
    mesh_disconnected_since: datetime | None = None
    mesh_certificate: NodeCertificate | None = None
    mesh_spec_since: int = 0


# ---- network, secret, config ----------------------------------------------------------------------------------------------------


class IPAMConfig(_Struct):
    subnet: str = ""
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] | None = None


class IPAM(_Struct):
    driver: str = "default"
    options: dict[str, str] | None = None
    config: list[IPAMConfig] | None = None


class Network(_Struct):
    """An overlay network. mesh_vni: 0 until allocated. mesh_encrypted: between nodes by WireGuard or not at all. Docker writes `Id` and
    `Created` here, not `ID` and `CreatedAt`."""

    id: str = msgspec.field(name="Id")
    version: Version = Version()
    created_at: datetime = msgspec.field(default=ZERO_TIME, name="Created")
    updated_at: datetime = ZERO_TIME
    name: str = ""
    scope: str = "swarm"
    driver: str = "overlay"
    enable_ipv6: bool = False
    ipam: IPAM = IPAM()
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    mesh_vni: int = 0
    mesh_encrypted: bool = False


class SecretSpec(_Struct):
    """data: base64, as Docker sends it."""

    name: str = ""
    labels: dict[str, str] | None = None
    data: str = ""
    templating: Driver | None = None
    driver: Driver | None = None


class Secret(_Struct):
    """Stored encrypted (mesh_ciphertext); spec.data is empty in the store and in every answer."""

    id: str
    version: Version = Version()
    created_at: datetime = ZERO_TIME
    updated_at: datetime = ZERO_TIME
    spec: SecretSpec = SecretSpec()
    mesh_ciphertext: bytes = b""


class Config(_Struct):
    id: str
    version: Version = Version()
    created_at: datetime = ZERO_TIME
    updated_at: datetime = ZERO_TIME
    spec: SecretSpec = SecretSpec()


# ---- cluster -------------------------------------------------------------------------------------------------------------------


class OrchestrationConfig(_Struct):
    task_history_retention_limit: int | None = None


class RaftConfig(_Struct):
    snapshot_interval: int = 0
    keep_old_snapshots: int | None = None
    log_entries_for_slow_followers: int = 0
    election_tick: int = 0
    heartbeat_tick: int = 0


class DispatcherConfig(_Struct):
    heartbeat_period: int = 0


class ExternalCA(_Struct):
    protocol: str = ""
    url: str = ""
    options: dict[str, str] | None = None
    ca_cert: str = msgspec.field(default="", name="CACert")


class CAConfig(_Struct):
    node_cert_expiry: int = 0
    external_cas: list[ExternalCA] | None = None
    signing_ca_cert: str = ""
    signing_ca_key: str = ""
    force_rotate: int = 0


class TaskDefaults(_Struct):
    log_driver: Driver | None = None


class EncryptionConfig(_Struct):
    auto_lock_managers: bool = False


class ClusterSpec(_Struct):
    name: str = "default"
    labels: dict[str, str] | None = None
    orchestration: OrchestrationConfig = OrchestrationConfig()
    raft: RaftConfig = RaftConfig()
    dispatcher: DispatcherConfig = DispatcherConfig()
    ca_config: CAConfig = CAConfig()
    task_defaults: TaskDefaults = TaskDefaults()
    encryption_config: EncryptionConfig = EncryptionConfig()


class JoinTokens(_Struct):
    worker: str = ""
    manager: str = ""


class RootRotation(_Struct):
    """The root that is to be, PEM. cross_signed: it, signed by the present root. ca_key "": an external CA has it."""

    ca_cert: str = ""
    ca_key: str = ""
    cross_signed: str = ""


class KeyChange(_Struct):
    """Where all nodes are in changing the keys of encrypted networks (`orchestrator.encryption`). since: the last change's end. wanted:
    somebody asked for one now."""

    step: int = 0
    since: datetime = ZERO_TIME
    wanted: bool = False


class Cluster(_Struct):
    """The one object of kind cluster. mesh_ca_*: PEM; keys never leave managers (`api` strips every Mesh field here).

    mesh_secret_key: key that encrypts secrets at rest. mesh_bridges: each root, signed by the one before it, oldest first: what leads a
    node that was away from the root it trusts to the present one. mesh_force_rotate: the spec's, as far as it was obeyed.
    mesh_unlock_key: what managers seal their keys with; b"" without autolock.
    """

    id: str
    version: Version = Version()
    created_at: datetime = ZERO_TIME
    updated_at: datetime = ZERO_TIME
    spec: ClusterSpec = ClusterSpec()
    default_addr_pool: list[str] | None = None
    subnet_size: int = 20
    data_path_port: int = 4789
    root_rotation_in_progress: bool = False
    tls_info: TLSInfo | None = None
    join_tokens: JoinTokens | None = None
    mesh_ca_cert: str = ""
    mesh_ca_key: str = ""
    mesh_root_rotation: RootRotation | None = None
    mesh_force_rotate: int = 0
    mesh_bridges: list[str] | None = None
    mesh_etcd_ca_cert: str = ""
    mesh_etcd_ca_key: str = ""
    mesh_secret_key: bytes = b""
    mesh_unlock_key: bytes = b""
    mesh_keys: KeyChange = KeyChange()


class Claim(_Struct):
    """A unique name taken in the store: id is "<what>/<name>" ("service/web", "port/tcp/8080"), owner the taker's id.

    Claims make uniqueness a guarded write, so two managers can't hand out one name twice.
    """

    id: str
    version: Version = Version()
    owner: str = ""


class Leadership(_Struct):
    """The one object of kind leader (id "leader"): who runs the control loops. Its ModRevision fences the leader's writes."""

    id: str = "leader"
    version: Version = Version()
    node_id: str = ""
    addr: str = ""
    renewed_at: datetime = ZERO_TIME


# ---- stacks --------------------------------------------------------------------------------------------------------------------


class StackNetwork(_Struct):
    """sent: the body of /networks/create that makes it; None for an external one, which only has to be there."""

    name: str = ""
    external: bool = False
    sent: dict[str, Any] | None = None


class StackFile(_Struct):
    """A secret or config by name; its content is an object of its own."""

    name: str = ""
    external: bool = False
    labels: dict[str, str] | None = None
    template_driver: str = ""


class StackParts(_Struct):
    """What a compose file comes to. References to networks, secrets and configs are by name here: ids are the cluster's."""

    services: list[ServiceSpec] = []
    networks: list[StackNetwork] = []
    secrets: list[StackFile] = []
    configs: list[StackFile] = []


class StackRevision(_Struct):
    """compose: the file as it was given, variables not put in."""

    number: int = 0
    created_at: datetime = ZERO_TIME
    compose: str = ""
    parts: StackParts = StackParts()


class Stack(_Struct):
    """What a stack is to be, and was before. id: its name."""

    id: str
    version: Version = Version()
    created_at: datetime = ZERO_TIME
    updated_at: datetime = ZERO_TIME
    current: StackRevision = StackRevision()
    previous: StackRevision | None = None


Kind = Literal["cluster", "leader", "node", "service", "task", "network", "secret", "config", "claim", "stack"]
Object = Union[Cluster, Leadership, Node, Service, Task, Network, Secret, Config, Claim, Stack]  # noqa: UP007

KINDS: dict[Kind, type[Object]] = {
    "cluster": Cluster, "leader": Leadership, "node": Node, "service": Service, "task": Task,
    "network": Network, "secret": Secret, "config": Config, "claim": Claim,
    "stack": Stack,
}  # fmt: skip
KIND_OF: dict[type[Object], Kind] = {cls: kind for kind, cls in KINDS.items()}
