"""What a node's owner permits containers to do to the node, and what a task asks for.

Pure: no I/O. Docker's answer to dangerous options is that services don't have them. Here each node says what it permits (`meshd daemon
--permit`, `--forbid`): the scheduler passes over nodes that don't, and an agent refuses what comes all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.model import ContainerSpec, TaskSpec
from orchestrator.run_options import host_config

# name -> what it lets a container do
PERMISSIONS = {
    "bind-mounts": "mount directories of the node",
    "capabilities": "add capabilities",
    "cgroups": "choose their place among the node's control groups",
    "devices": "use devices of the node",
    "gpus": "use GPUs of the node",
    "host-namespaces": "share the node's process, IPC, hostname, user or cgroup namespace",
    "host-network": "share the node's network",
    "privileged": "be privileged",
    "runtimes": "choose their runtime",
    "security-options": "go without seccomp, AppArmor or SELinux confinement",
}
# what any Swarm service may do
DEFAULT = frozenset({"bind-mounts", "capabilities", "gpus", "host-network", "security-options"})
ALL = "all"

_NAMESPACES = {"PidMode": "host", "IpcMode": "host", "UTSMode": "host", "UsernsMode": "host", "CgroupnsMode": "host"}


def permitted(permit: Iterable[str], forbid: Iterable[str]) -> frozenset[str]:
    """The default with the owner's words applied. ConfigError: a word that is no permission, or one both permitted and forbidden."""
    given, taken = set(permit), set(forbid)
    for name in sorted(given | taken):
        if name != ALL and name not in PERMISSIONS:
            raise ConfigError(f"{name} is no permission: there are {', '.join(sorted(PERMISSIONS))} and {ALL}")
    if both := sorted(given & taken):
        raise ConfigError(f"{', '.join(both)} can't be permitted and forbidden")
    base = frozenset(PERMISSIONS) if ALL in given else frozenset() if ALL in taken else DEFAULT
    return (base | (given - {ALL})) - (taken - {ALL})


def needed(spec: TaskSpec) -> frozenset[str]:
    """What the task asks of its node. Labels that can't be read ask for nothing: the API has refused them."""
    container = spec.container_spec
    if container is None:
        return frozenset()
    names = set(_asked_by_labels(container))
    if any(network.target == "host" for network in spec.networks or ()):
        names.add("host-network")
    if any(mount.type == "bind" for mount in container.mounts or ()):
        names.add("bind-mounts")
    if container.capability_add:
        names.add("capabilities")
    privileges = container.privileges or {}
    if (privileges.get("Seccomp") or {}).get("Mode") == "unconfined" or (privileges.get("AppArmor") or {}).get("Mode") == "disabled":
        names.add("security-options")
    return frozenset(names)


def _asked_by_labels(container: ContainerSpec) -> Iterable[str]:
    if not container.labels:
        return
    try:
        config = host_config(container)
    except ConfigError:
        return
    yield from _asked_by_options(config)


def needed_by_options(config: Mapping[str, Any]) -> frozenset[str]:
    """What a container asks of its node by `config`, its HostConfig as the Engine takes it."""
    names = set(_asked_by_options(config))
    if config.get("NetworkMode") == "host":
        names.add("host-network")
    binds = [bind for bind in config.get("Binds") or () if str(bind).startswith("/")]
    if binds or any(mount.get("Type") == "bind" for mount in config.get("Mounts") or ()):
        names.add("bind-mounts")
    if config.get("CapAdd"):
        names.add("capabilities")
    return frozenset(names)


def _asked_by_options(config: Mapping[str, Any]) -> Iterable[str]:
    if config.get("Privileged"):
        yield "privileged"
    if any(config.get(field) == value for field, value in _NAMESPACES.items()):
        yield "host-namespaces"
    for field, permission in (
        ("Devices", "devices"),
        ("DeviceCgroupRules", "devices"),
        ("DeviceRequests", "gpus"),
        ("Runtime", "runtimes"),
        ("CgroupParent", "cgroups"),
        ("SecurityOpt", "security-options"),
    ):
        if config.get(field):
            yield permission


def refusal(spec: TaskSpec, allowed: Collection[str]) -> str:
    """ "" = the node lets it; else a sentence that says what to do."""
    missing = sorted(needed(spec) - set(allowed))
    if not missing:
        return ""
    what = " and ".join(PERMISSIONS[name] for name in missing)
    options = " ".join(f"--permit {name}" for name in missing)
    return f"this node does not permit containers to {what}: its owner can, with `meshd daemon {options}`"
