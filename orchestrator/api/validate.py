"""Is what the user asks for well formed? Docker's rules, in Docker's words.

Pure: no I/O. Source: swarmkit manager/controlapi/{service,common,secret,config,network}.go, moby daemon/cluster/convert. Every function
raises ApiError or returns the object with what Docker fills in at creation.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from orchestrator import go_template
from orchestrator.api import versions
from orchestrator.control import constraints, expressions, labels, placement_labels
from orchestrator.errors import ApiError, ConfigError
from orchestrator.model import (
    SECOND,
    CAConfig,
    ClusterSpec,
    ConfigReference,
    ContainerSpec,
    EndpointSpec,
    IPAMConfig,
    NodeSpec,
    PortConfig,
    ReplicatedJob,
    ReplicatedService,
    ResourceObject,
    SecretReference,
    SecretSpec,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from orchestrator.run_options import host_config

_DNS_NAME = re.compile(r"[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*")
_SECRET_NAME = re.compile(r"[a-zA-Z0-9]+(?:[a-zA-Z0-9-_.]*[a-zA-Z0-9])?")
# docker/distribution reference.Anchored: [domain[:port]/]path[:tag][@digest], path in lower case
_IMAGE = re.compile(
    r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::\w[\w.-]{0,127})?(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?"
)
_SPREAD_DESCRIPTOR = re.compile(r"(?:node|engine)\.labels\..+", re.IGNORECASE)
_MIN_NANO_CPUS = 1_000_000
_MIN_MEMORY_BYTES = 4 * 1024 * 1024
MAX_SECRET_BYTES = 500 * 1024
MAX_CONFIG_BYTES = 1000 * 1024
PREDEFINED_NETWORKS = frozenset({"bridge", "host", "none", "default"})
_MIN_CERTIFICATE_NS = 3600 * SECOND
_Reference = TypeVar("_Reference", SecretReference, ConfigReference)


def invalid(text: str) -> ApiError:
    return ApiError(400, f"rpc error: code = InvalidArgument desc = {text}")


def precondition(text: str) -> ApiError:
    return ApiError(400, f"rpc error: code = FailedPrecondition desc = {text}")


def unsupported(text: str) -> ApiError:
    return ApiError(501, f"rpc error: code = Unimplemented desc = {text}")


def already_exists(text: str) -> ApiError:
    return ApiError(409, f"rpc error: code = AlreadyExists desc = {text}")


def object_name(name: str) -> None:
    """Of a service or network: what can be one label of a DNS name (with underscores)."""
    if not name:
        raise invalid("name must be provided")
    if not _DNS_NAME.fullmatch(name):
        raise invalid("name must be valid as a DNS name component")
    if len(name) > 63:
        raise invalid("name must be 63 characters or fewer")


# ---- services ------------------------------------------------------------------------------------------------------------------


def service_spec(spec: ServiceSpec) -> ServiceSpec:
    """With mode, runtime and the place of the networks as Docker stores them."""
    template = _task_template(spec.task_template)
    object_name(spec.name)
    mode = service_mode(spec.mode)
    if spec.networks and not template.networks:
        # Before API 1.25 networks belonged to the service; Docker still reads them there.
        template = replace(template, networks=spec.networks)
    for name, config in (("UpdateConfig", spec.update_config), ("RollbackConfig", spec.rollback_config)):
        if config is not None:
            _update_config(name, config)
            if mode_name(mode).endswith("-job"):
                raise invalid(f"{name}: a job has no rolling update: an update lets it run again")
    if spec.endpoint_spec is not None:
        _endpoint_spec(spec.endpoint_spec)
    spec = replace(spec, task_template=template, mode=mode, networks=None)
    try:
        labels.check(spec)
        placement_labels.check_service(spec.labels)
    except ConfigError as error:
        raise invalid(str(error)) from None
    return spec


# beyond it a slip of the keyboard would keep the manager busy with tasks that no node can take
MAX_REPLICAS = 100_000
TOO_MANY_REPLICAS = f"Number of replicas must be at most {MAX_REPLICAS}, more than a cluster of thousands of machines can run"


def _placement_labels(check: Callable[[Mapping[str, str] | None], None], given: dict[str, str] | None) -> None:
    try:
        check(given)
    except ConfigError as error:
        raise invalid(str(error)) from None


def service_mode(mode: ServiceMode) -> ServiceMode:
    """With the numbers that Docker fills in."""
    chosen = [part for part in (mode.replicated, mode.global_, mode.replicated_job, mode.global_job) if part is not None]
    if len(chosen) > 1:
        raise ApiError(400, "must specify only one service mode")
    if mode.global_ is not None or mode.global_job is not None:
        return mode
    if mode.replicated_job is not None:
        return ServiceMode(replicated_job=_replicated_job(mode.replicated_job))
    replicas = mode.replicated.replicas if mode.replicated is not None else None
    return ServiceMode(replicated=ReplicatedService(replicas=1 if replicas is None else _replicas(replicas)))


def _replicated_job(mode: ReplicatedJob) -> ReplicatedJob:
    concurrent = 1 if mode.max_concurrent is None else mode.max_concurrent
    total = concurrent if mode.total_completions is None else _replicas(mode.total_completions)
    if concurrent < 0 or (concurrent == 0 and total):
        raise invalid("Maximum concurrent tasks of a job must be at least 1")
    return ReplicatedJob(max_concurrent=concurrent, total_completions=total)


def _replicas(count: int) -> int:
    if count < 0:
        raise invalid("Number of replicas must be non-negative")
    if count > MAX_REPLICAS:
        raise invalid(TOO_MANY_REPLICAS)
    return count


def mode_name(mode: ServiceMode) -> str:
    """As the docker CLI writes it after --mode."""
    named = (("global", mode.global_), ("replicated-job", mode.replicated_job), ("global-job", mode.global_job))
    return next((name for name, part in named if part is not None), "replicated")


def references(given: Sequence[_Reference] | None, kind: str) -> None:
    """Well formed, and no two at one place."""
    targets: dict[str, str] = {}
    for reference in given or ():
        identity = reference.secret_id if isinstance(reference, SecretReference) else reference.config_id
        name = reference.secret_name if isinstance(reference, SecretReference) else reference.config_name
        if not identity or not name:
            raise invalid(f"malformed {kind} reference")
        if reference.file is None:
            continue
        if not 0 <= reference.file.mode < 2**32:
            raise invalid(f"malformed file {kind} reference, invalid file mode {reference.file.mode}")
        target = reference.file.name
        if not target:
            raise invalid(f"malformed file {kind} reference, invalid target file name provided")
        if target in targets:
            raise invalid(f"{kind} references '{targets[target]}' and '{name}' have a conflicting target: '{target}'")
        targets[target] = name


def _task_template(template: TaskSpec) -> TaskSpec:
    if template.runtime not in ("", "container", "plugin", "attachment"):
        raise ApiError(400, "unsupported runtime")
    if template.runtime == "plugin" or template.plugin_spec is not None:
        raise unsupported("plugins as services are not supported: install them on the nodes (docker plugin install)")
    if template.network_attachment_spec is not None or template.container_spec is None:
        raise ApiError(400, "mismatched Runtime and *Spec fields")
    container = _container_spec(template.container_spec)
    if template.resources is not None:
        if template.resources.limits is not None:
            _amount(template.resources.limits.nano_cpus, template.resources.limits.memory_bytes)
            if template.resources.limits.pids < 0:
                raise invalid(f"invalid pids limit value {template.resources.limits.pids}: Must be non-negative")
        if template.resources.reservations is not None:
            _reservation(template.resources.reservations)
    if template.force_update < 0:
        raise invalid("TaskSpec: force-update cannot be negative")
    policy = template.restart_policy
    if policy is not None:
        if policy.condition not in ("", "none", "on-failure", "any"):
            raise ApiError(400, f'invalid RestartCondition: "{policy.condition}"')
        for name, value in (("delay", policy.delay), ("window", policy.window), ("max-attempts", policy.max_attempts)):
            if value is not None and value < 0:
                raise invalid(f"TaskSpec: restart-{name} cannot be negative")
    if template.placement is not None:
        try:
            constraints.parse(template.placement.constraints or [])
        except ConfigError as error:
            raise invalid(str(error)) from None
        if template.placement.max_replicas < 0:
            raise invalid("Placement: max-replicas cannot be negative")
        for preference in template.placement.preferences or ():
            descriptor = preference.spread.spread_descriptor if preference.spread is not None else ""
            if not _SPREAD_DESCRIPTOR.fullmatch(descriptor):
                raise invalid(
                    f"placement preference 'spread={descriptor}' is invalid: expected node.labels.<label> or engine.labels.<label>"
                )
    try:
        expressions.expressions_of(container)
    except ConfigError as error:
        raise invalid(str(error)) from None
    return replace(template, container_spec=container, runtime="container")


def _container_spec(spec: ContainerSpec) -> ContainerSpec:
    if not spec.image:
        raise invalid("ContainerSpec: image reference must be provided")
    if not _IMAGE.fullmatch(spec.image):
        raise invalid(f'ContainerSpec: "{spec.image}" is not a valid repository/tag')
    targets = set()
    for mount in spec.mounts or ():
        if not mount.target:
            raise invalid("ContainerSpec: mount target must be provided")
        if mount.target in targets:
            raise invalid(f"ContainerSpec: duplicate mount point: {mount.target}")
        targets.add(mount.target)
        if mount.type not in ("bind", "volume", "tmpfs"):
            raise ApiError(400, f'invalid MountType: "{mount.type}"')
        if mount.tmpfs_options is not None and not 0 <= mount.tmpfs_options.mode < 2**32:
            raise invalid(f"ContainerSpec: invalid file mode {mount.tmpfs_options.mode} of tmpfs {mount.target}")
        if mount.type == "bind" and not mount.source.startswith("/"):
            raise ApiError(400, f"invalid mount config for type \"bind\": invalid mount path: '{mount.source}' mount path must be absolute")
    if spec.stop_grace_period is not None and spec.stop_grace_period < 0:
        raise invalid("ContainerSpec: stop-grace-period cannot be negative")
    check = spec.healthcheck
    if check is not None:
        for name, value in (("Interval", check.interval), ("Timeout", check.timeout), ("StartPeriod", check.start_period)):
            if value < 0:
                raise invalid(f"ContainerSpec: {name} in HealthConfig cannot be negative")
        if check.retries < 0:
            raise invalid("ContainerSpec: Retries in HealthConfig cannot be negative")
    for line in spec.hosts or ():
        if len(line.split()) < 2:
            raise invalid(f'ContainerSpec: malformed host entry "{line}": it should be "IP_address canonical_hostname [aliases...]"')
    _privileges(spec.privileges or {})
    if spec.isolation not in ("", "default"):
        raise unsupported(f"isolation {spec.isolation} is for Windows containers: only default is supported")
    try:
        host_config(spec)
    except ConfigError as error:
        raise invalid(f"ContainerSpec: {error}") from None
    references(spec.secrets, "secret")
    references(spec.configs, "config")
    return replace(spec, isolation=spec.isolation or "default")


class _SELinuxContext(msgspec.Struct, rename="pascal"):
    disable: bool = False
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


class _CredentialSpec(msgspec.Struct, rename="pascal"):
    config: str = ""
    file: str = ""
    registry: str = ""


class _Confinement(msgspec.Struct, rename="pascal"):
    mode: str = ""
    profile: str = ""


class _Privileges(msgspec.Struct, rename="pascal"):
    """Stored as sent; this only says what may be in there."""

    credential_spec: _CredentialSpec | None = None
    se_linux_context: _SELinuxContext | None = msgspec.field(default=None, name="SELinuxContext")
    app_armor: _Confinement | None = None
    seccomp: _Confinement | None = None
    no_new_privileges: bool = False


def _privileges(sent: dict[str, Any]) -> None:
    try:
        privileges = msgspec.convert(sent, _Privileges)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"invalid Privileges: {error}") from None
    credentials = privileges.credential_spec
    if credentials is not None and (credentials.config or credentials.file or credentials.registry):
        raise unsupported("credential specs are for Windows containers: they are not supported")


def _amount(nano_cpus: int, memory_bytes: int) -> None:
    if nano_cpus and nano_cpus < _MIN_NANO_CPUS:
        raise invalid(f"invalid cpu value {nano_cpus / 1e9:g}: Must be at least {_MIN_NANO_CPUS / 1e9:g}")
    if memory_bytes and memory_bytes < _MIN_MEMORY_BYTES:
        raise invalid(f"invalid memory value {memory_bytes}: Must be at least 4MiB")


def _reservation(reserved: ResourceObject) -> None:
    _amount(reserved.nano_cpus, reserved.memory_bytes)
    for generic in reserved.generic_resources or ():
        discrete = generic.discrete_resource_spec
        if discrete is not None and discrete.value < 0:
            raise invalid(f"the generic resource {discrete.kind} must not be negative")


def _update_config(name: str, config: UpdateConfig) -> None:
    if config.failure_action not in ("", "pause", "continue", "rollback") or (
        name == "RollbackConfig" and config.failure_action == "rollback"
    ):
        raise ApiError(400, f"unrecognized update failure action {config.failure_action}")
    if config.order not in ("", "stop-first", "start-first"):
        raise ApiError(400, f"unrecognized update order {config.order}")
    if config.parallelism < 0:
        raise invalid(f"{name}: parallelism cannot be negative")
    if config.delay < 0:
        raise invalid("TaskSpec: update-delay cannot be negative")
    if config.monitor < 0:
        raise invalid("TaskSpec: update-monitor cannot be negative")
    if not 0 <= config.max_failure_ratio <= 1:
        raise invalid("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")


def _endpoint_spec(spec: EndpointSpec) -> None:
    if spec.mode not in ("", "vip", "dnsrr"):
        raise ApiError(400, f'invalid resolution mode: "{spec.mode}"')
    published: set[tuple[str, int, str]] = set()
    for port in spec.ports or ():
        _port(port)
        if spec.mode == "dnsrr" and port.publish_mode == "ingress":
            raise invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
        key = (port.protocol, port.published_port, port.publish_mode)
        if port.published_port and key in published:
            raise invalid("EndpointSpec: duplicate published ports provided")
        published.add(key)


def _port(port: PortConfig) -> None:
    if port.protocol not in ("tcp", "udp", "sctp"):
        raise ApiError(400, f'invalid protocol "{port.protocol}": must be tcp, udp or sctp')
    if port.publish_mode not in ("ingress", "host"):
        raise ApiError(400, f'invalid PublishMode: "{port.publish_mode}"')
    if not 1 <= port.target_port <= 65535:
        raise invalid(f"EndpointSpec: target port {port.target_port} is not between 1 and 65535")
    if not 0 <= port.published_port <= 65535:
        raise invalid(f"EndpointSpec: published port {port.published_port} is not between 1 and 65535")


def host_network(spec: ServiceSpec) -> None:
    """Of a service that is to share the node's network: what it can't have besides."""
    if len(spec.task_template.networks or ()) > 1:
        raise invalid("a service on the host network can't be attached to other networks: it has the node's")
    for port in (spec.endpoint_spec.ports if spec.endpoint_spec else None) or ():
        if port.publish_mode != "host" or port.published_port not in (0, port.target_port):
            raise invalid(
                f"a service on the host network listens on the node itself: port {port.target_port} can only be published "
                f"as mode=host,target={port.target_port},published={port.target_port}, or not at all"
            )


# ---- nodes and the cluster ---------------------------------------------------------------------------------------------------------


def node_spec(spec: NodeSpec) -> None:
    if spec.role not in ("worker", "manager"):
        raise ApiError(400, f'invalid Role: "{spec.role}"')
    availability(spec.availability)
    _placement_labels(placement_labels.check_node, spec.labels)


def availability(text: str) -> None:
    if text not in ("active", "pause", "drain"):
        raise ApiError(400, f'invalid Availability: "{text}"')


def cluster_spec(spec: ClusterSpec) -> None:
    if spec.name != "default":
        raise invalid("cluster name must be 'default'")
    _placement_labels(placement_labels.check_cluster, spec.labels)
    if spec.dispatcher.heartbeat_period < 0:
        raise invalid("heartbeat time period cannot be a negative duration")
    if spec.ca_config.node_cert_expiry and spec.ca_config.node_cert_expiry < _MIN_CERTIFICATE_NS:
        raise invalid("minimum certificate expiry time is: 1h0m0s")
    raft = spec.raft
    if min(raft.snapshot_interval, raft.keep_old_snapshots or 0, raft.log_entries_for_slow_followers) < 0:
        raise invalid("Raft settings cannot be negative")


def first_ca(config: CAConfig) -> None:
    """A new cluster makes its own root."""
    if config.external_cas or config.signing_ca_cert or config.signing_ca_key:
        raise invalid("a new swarm makes its own root certificate: init it, then `docker swarm ca --rotate` to the one it should have")


def address_pools(pools: Iterable[str], subnet_size: int) -> None:
    networks: list[ipaddress.IPv4Network] = []
    for pool in pools:
        try:
            network = ipaddress.IPv4Network(pool, strict=False)
        except ValueError:
            raise ApiError(400, f"invalid CIDR address: {pool}") from None
        if subnet_size and subnet_size < network.prefixlen:
            raise ApiError(400, f'invalid CIDR: "{pool}". Subnet size is too small for pool: {subnet_size}')
        if any(network.overlaps(other) for other in networks):
            raise ApiError(400, f"Pool overlaps with other one on this address space: {pool}")
        networks.append(network)
    if subnet_size and subnet_size > 29:
        raise ApiError(400, f"invalid subnet size {subnet_size}: must be at most 29")


# ---- secrets and configs -----------------------------------------------------------------------------------------------------------


def payload(spec: SecretSpec, kind: str, version: str = versions.API_VERSION) -> bytes:
    """The decoded payload of a secret ("secret") or config ("config") whose name and size are right."""
    if not spec.name:
        raise invalid("name must be provided")
    if len(spec.name) > 64 or not _SECRET_NAME.fullmatch(spec.name):
        raise invalid("invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]")
    if spec.driver is not None:
        raise unsupported(f"{kind} drivers are not supported")
    content = decoded(spec)
    if spec.templating is not None:
        if versions.before(version, "1.37"):
            raise ApiError(400, f"{kind} templating is not supported on the specified API version: {version}")
        _template(spec.templating.name, content, kind)
    limit = MAX_SECRET_BYTES if kind == "secret" else MAX_CONFIG_BYTES
    if not 0 < len(content) <= limit:
        raise invalid(f"{kind} data must be larger than 0 and less than {limit} bytes")
    return content


def _template(driver: str, content: bytes, kind: str) -> None:
    """Docker finds out when a task starts; what can be said at once is said at once."""
    if driver != "golang":
        raise invalid(f'unrecognized template driver "{driver}": it must be golang')
    try:
        go_template.parse(content.decode())
    except (ConfigError, UnicodeDecodeError) as error:
        raise invalid(f"{kind} is no template: {error}") from None


def decoded(spec: SecretSpec) -> bytes:
    try:
        return base64.b64decode(spec.data, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "illegal base64 data in Data") from None


# ---- networks ----------------------------------------------------------------------------------------------------------------------


def subnets(configs: Sequence[IPAMConfig], *, ipv6: bool) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The subnets a user chose, each with its gateway and range inside, none overlapping another of them."""
    chosen: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for config in configs:
        if not config.subnet:
            raise invalid("ipam configuration: a subnet must be given together with its gateway or range")
        try:
            subnet = ipaddress.ip_network(config.subnet, strict=False)
        except ValueError:
            raise ApiError(400, f"invalid subnet {config.subnet}: invalid CIDR block notation") from None
        if str(subnet) != config.subnet.lower() and subnet.version == 4:
            raise ApiError(400, f"invalid subnet {config.subnet}: it should be {subnet}")
        if subnet.version == 6 and not ipv6:
            raise ApiError(400, f"invalid subnet {config.subnet}: the network has no IPv6 enabled")
        if subnet.num_addresses < 8:
            raise ApiError(400, f"invalid subnet {config.subnet}: it must hold at least 8 addresses")
        if subnet.is_loopback or subnet.is_multicast or subnet.is_link_local:
            raise ApiError(400, f"invalid subnet {config.subnet}: loopback, link-local and multicast addresses can't be used")
        _inside("gateway", config.gateway, subnet)
        for name, address in (config.auxiliary_addresses or {}).items():
            _inside(f"auxiliary address {name}", address, subnet)
        if config.ip_range:
            try:
                within = ipaddress.ip_network(config.ip_range, strict=False)
            except ValueError:
                raise ApiError(400, f"invalid ip-range {config.ip_range}: invalid CIDR block notation") from None
            if within.version != subnet.version or not within.subnet_of(subnet):  # type: ignore[arg-type]
                raise ApiError(400, f"no matching subnet for range {config.ip_range}")
        for other in chosen:
            if other.overlaps(subnet):
                raise ApiError(400, f"multiple overlapping subnet configuration: {other}, {subnet}")
        chosen.append(subnet)
    return chosen


def _inside(what: str, address: str, subnet: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    if not address:
        return
    try:
        parsed = ipaddress.ip_address(address.partition("/")[0])
    except ValueError:
        raise ApiError(400, f"invalid {what} {address}: not an IP address") from None
    if parsed not in subnet:
        raise ApiError(400, f"no matching subnet for {what} {address}")
    if subnet.version == 4 and parsed in (subnet.network_address, subnet.broadcast_address):
        raise ApiError(400, f"invalid {what} {address}: it is the network or broadcast address of {subnet}")
