"""A task as the Engine's container-create request.

Pure. Source: Docker Engine API 1.41, ContainerCreate (Config + HostConfig); moby daemon/cluster/executor/container/container.go for
how a ContainerSpec maps onto it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from orchestrator.agent import hold
from orchestrator.control.expressions import without_expressions
from orchestrator.errors import ConfigError, TaskError
from orchestrator.model import SECOND, ContainerSpec, FileTarget, Mount, Task
from orchestrator.run_options import gpu_request, host_config

LABEL_CLUSTER = "io.meshd.cluster"
LABEL_TASK = "io.meshd.task"
# on a container that somebody started by hand on networks of the cluster: its attachment
LABEL_ATTACHMENT = "io.meshd.attachment"
# seconds: known also to an agent that has no rows
LABEL_FENCE = "io.meshd.fence"
LABEL_ADDRESS = "io.meshd.address"
DNS_ADDRESS = "127.0.0.11"
DEFAULT_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What a container inherits from its image."""

    id: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A secret or config of a task: content of object `source_id`, seen in the container at `target`."""

    source_id: str
    kind: str
    name: str
    target: str
    uid: int
    gid: int
    mode: int


def container_name(task: Task) -> str:
    """`web.1.<task id>`; tasks of global services carry their node's id instead of a slot."""
    return f"{task.mesh_service_name or task.service_id or 'task'}.{task.slot or task.node_id}.{task.id}"


def spec_of(task: Task) -> ContainerSpec:
    if task.spec.container_spec is None:
        raise TaskError("this task has no container to run (only container tasks are supported)", rejected=True)
    return task.spec.container_spec


def uses_host_network(task: Task) -> bool:
    targets = {n.target for n in task.spec.networks or ()} | {a.network.id for a in task.networks_attachments or ()}
    return "host" in targets


def grace_s(task: Task) -> float:
    period = task.spec.container_spec.stop_grace_period if task.spec.container_spec else None
    return DEFAULT_GRACE_S if period is None else period / SECOND


def task_files(spec: ContainerSpec) -> list[TaskFile]:
    """The spec's secrets (below /run/secrets) and configs (below /), in order."""
    files = []
    for secret in spec.secrets or ():
        files.append(_file("secret", secret.secret_id, secret.secret_name, secret.file, "/run/secrets/"))
    for config in spec.configs or ():
        if config.runtime is None:
            files.append(_file("config", config.config_id, config.config_name, config.file, "/"))
    return files


def _file(kind: str, source_id: str, name: str, target: FileTarget | None, base: str) -> TaskFile:
    target = target or FileTarget(name=name)
    path = target.name or name
    try:
        uid, gid = int(target.uid or 0), int(target.gid or 0)
    except ValueError:
        raise TaskError(f"{kind} {name}: uid and gid must be numbers, not {target.uid!r} and {target.gid!r}", rejected=True) from None
    return TaskFile(source_id, kind, name, path if path.startswith("/") else base + path, uid, gid, target.mode or 0o444)


def argument_vector(spec: ContainerSpec, image: ImageConfig) -> list[str]:
    """What the Engine would run: `command` replaces the image's entrypoint and drops its command, `args` replaces the command."""
    if spec.command:
        return [*spec.command, *(spec.args or ())]
    return [*image.entrypoint, *(spec.args or image.command)]


def environment(task: Task) -> list[str]:
    """What the task adds to its image's environment; classic Swarm's placement expressions are no business of the container."""
    return [*without_expressions(spec_of(task).env or ()), *_generic_resource_environment(task)]


def create_request(
    task: Task,
    image: ImageConfig,
    *,
    cluster_id: str,
    gate_dir: str,
    file_paths: Mapping[TaskFile, str],
    gpu_requests: bool = False,
) -> dict[str, Any]:
    """The body of POST /containers/create. gate_dir: see `hold`. file_paths: where on this node each file's content lies.
    gpu_requests: the Engine can give GPUs to a container by their ids."""
    spec = spec_of(task)
    argv = argument_vector(spec, image)
    if not argv or not argv[0]:
        raise TaskError("No command specified", rejected=True)
    request: dict[str, Any] = {
        "Image": spec.image,
        "Entrypoint": list(hold.ENTRYPOINT),
        "Cmd": argv,
        "Env": environment(task),
        "Labels": _labels(task, spec, cluster_id),
        "Hostname": spec.hostname,
        "User": spec.user,
        "WorkingDir": spec.dir,
        "Tty": spec.tty,
        "OpenStdin": spec.open_stdin,
        "StopTimeout": math.ceil(grace_s(task)),
        "HostConfig": _host_config(task, spec, gate_dir, file_paths) | _gpus(task, gpu_requests) | _run_options(spec),
    }
    if spec.stop_signal:
        request["StopSignal"] = spec.stop_signal
    if spec.healthcheck is not None:
        request["Healthcheck"] = msgspec.to_builtins(spec.healthcheck)
    return request


def _labels(task: Task, spec: ContainerSpec, cluster_id: str) -> dict[str, str]:
    addresses = [address.partition("/")[0] for attachment in task.networks_attachments or () for address in attachment.addresses or ()]
    return {
        **(spec.labels or {}),
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": task.id,
        "com.docker.swarm.task.name": container_name(task),
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.service.name": task.mesh_service_name,
        "com.docker.swarm.node.id": task.node_id,
        LABEL_CLUSTER: cluster_id,
        LABEL_TASK: task.id,
        LABEL_ADDRESS: addresses[-1] if addresses else "",
        **({LABEL_FENCE: f"{task.mesh_fence / SECOND:g}"} if task.mesh_fence is not None else {}),
    }


def _host_config(task: Task, spec: ContainerSpec, gate_dir: str, file_paths: Mapping[TaskFile, str]) -> dict[str, Any]:
    host_network = uses_host_network(task)
    config: dict[str, Any] = {
        "NetworkMode": "host" if host_network else "none",
        "RestartPolicy": {"Name": "no"},
        "Mounts": [
            _bind(gate_dir, hold.MOUNT),
            *(_bind(path, file.target) for file, path in file_paths.items()),
            *(_mount(mount) for mount in spec.mounts or ()),
        ],
        "ReadonlyRootfs": spec.read_only,
        "CapAdd": spec.capability_add or [],
        "CapDrop": spec.capability_drop or [],
        "GroupAdd": spec.groups or [],
        "Sysctls": spec.sysctls or {},
        "Ulimits": [{"Name": u.name, "Soft": u.soft, "Hard": u.hard} for u in spec.ulimits or ()],
        "ExtraHosts": _extra_hosts(spec.hosts or []),
        "SecurityOpt": _security_options(spec.privileges or {}),
        "OomScoreAdj": spec.oom_score_adj,
    }
    dns = spec.dns_config
    if host_network and dns is not None:
        config |= {"Dns": dns.nameservers or [], "DnsSearch": dns.search or [], "DnsOptions": dns.options or []}
    elif not host_network:
        options = list((dns.options if dns else None) or [])
        if not any(option.startswith("ndots:") for option in options):
            options.append("ndots:0")
        # the spec's nameservers are not for the container: its server forwards to them
        config |= {"Dns": [DNS_ADDRESS], "DnsSearch": list((dns.search if dns else None) or []), "DnsOptions": options}
    if spec.init is not None:
        config["Init"] = spec.init
    if task.spec.log_driver is not None and task.spec.log_driver.name:
        config["LogConfig"] = {"Type": task.spec.log_driver.name, "Config": task.spec.log_driver.options or {}}
    return config | _resources(task)


def _run_options(spec: ContainerSpec) -> dict[str, Any]:
    """What the container's labels ask for (`run_options`)."""
    try:
        asked = host_config(spec)
    except ConfigError as error:
        raise TaskError(str(error), rejected=True) from None
    if "SecurityOpt" in asked:
        asked["SecurityOpt"] = [*_security_options(spec.privileges or {}), *asked["SecurityOpt"]]
    return asked


def _gpus(task: Task, requests: bool) -> dict[str, Any]:
    """The cards that the scheduler has given the task. Without device requests the environment alone names them, as in Swarm."""
    named = [resource.named_resource_spec for resource in task.generic_resources or () if resource.named_resource_spec is not None]
    ids = [card.value for card in named if "gpu" in card.kind.lower()]
    return {"DeviceRequests": [gpu_request(ids)]} if ids and requests else {}


def _resources(task: Task) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    requirements = task.spec.resources
    limits = requirements.limits if requirements else None
    reservations = requirements.reservations if requirements else None
    if limits is not None:
        if limits.memory_bytes:
            resources["Memory"] = limits.memory_bytes
        if limits.nano_cpus:
            resources["NanoCpus"] = limits.nano_cpus
        if limits.pids:
            resources["PidsLimit"] = limits.pids
    if reservations is not None and reservations.memory_bytes:
        # the Engine refuses a reservation above the limit
        resources["MemoryReservation"] = min(reservations.memory_bytes, resources.get("Memory", reservations.memory_bytes))
    return resources


def _generic_resource_environment(task: Task) -> list[str]:
    """DOCKER_RESOURCE_GPU=uuid1,uuid2, as Swarm tells a container what it was given."""
    given: dict[str, list[str]] = {}
    for resource in task.generic_resources or ():
        if resource.named_resource_spec is not None:
            given.setdefault(resource.named_resource_spec.kind, []).append(resource.named_resource_spec.value)
        elif resource.discrete_resource_spec is not None:
            given.setdefault(resource.discrete_resource_spec.kind, []).append(str(resource.discrete_resource_spec.value))
    return [f"DOCKER_RESOURCE_{kind.upper()}={','.join(values)}" for kind, values in sorted(given.items())]


def _bind(source: str, target: str) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": True}


def _mount(mount: Mount) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(mount)
    return {**body, "Type": mount.type or "volume"}


def _extra_hosts(hosts: list[str]) -> list[str]:
    """The API's "ADDRESS NAME [ALIAS...]" (hosts(5)) as the Engine's "NAME:ADDRESS", one each."""
    entries = []
    for line in hosts:
        address, *names = line.split()
        entries += [f"{name}:{address}" for name in names]
    return entries


def _security_options(privileges: dict[str, Any]) -> list[str]:
    options = []
    selinux = privileges.get("SELinuxContext") or {}
    if selinux.get("Disable"):
        options.append("label=disable")
    options += [f"label={part.lower()}:{selinux[part]}" for part in ("User", "Role", "Type", "Level") if selinux.get(part)]
    if privileges.get("NoNewPrivileges"):
        options.append("no-new-privileges=true")
    if (privileges.get("AppArmor") or {}).get("Mode") == "disabled":
        options.append("apparmor=unconfined")
    seccomp = privileges.get("Seccomp") or {}
    if seccomp.get("Mode") == "unconfined":
        options.append("seccomp=unconfined")
    elif seccomp.get("Mode") == "custom":
        options.append(f"seccomp={base64.b64decode(seccomp.get('Profile') or '').decode(errors='replace')}")
    return options
