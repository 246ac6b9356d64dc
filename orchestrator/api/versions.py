"""API versions: which are served, and what a client of an older one cannot have meant.

Pure: no I/O. Source: moby api/server/router/swarm/helpers.go (adjustForAPIVersion), cluster_routes.go; Docker Engine API version history.
A field that a version does not have is ignored, as Docker ignores it, also when a client of that version sends it.
"""

from __future__ import annotations

from msgspec.structs import replace

from orchestrator.engine_http import version_key
from orchestrator.model import ContainerSpec, Mount, ServiceSpec, TaskSpec

API_VERSION = "1.50"
MIN_API_VERSION = "1.24"

_CONFINEMENT = frozenset({"AppArmor", "Seccomp", "NoNewPrivileges"})


def before(version: str, limit: str) -> bool:
    return version_key(version) < version_key(limit)


def service_spec(spec: ServiceSpec, version: str) -> ServiceSpec:
    """Without what came after `version`."""
    if before(version, "1.41"):
        spec = replace(spec, mode=replace(spec.mode, replicated_job=None, global_job=None))
    return replace(spec, task_template=_task_template(spec.task_template, version))


def _task_template(template: TaskSpec, version: str) -> TaskSpec:
    if before(version, "1.40") and template.placement is not None:
        template = replace(template, placement=replace(template.placement, max_replicas=0))
    if before(version, "1.41") and template.resources is not None and template.resources.limits is not None:
        limits = replace(template.resources.limits, pids=0)
        template = replace(template, resources=replace(template.resources, limits=limits))
    container = template.container_spec
    return template if container is None else replace(template, container_spec=_container(container, version))


def _container(spec: ContainerSpec, version: str) -> ContainerSpec:
    if before(version, "1.40"):
        configs = spec.configs and [replace(reference, runtime=None) for reference in spec.configs]
        spec = replace(spec, sysctls=None, configs=configs)
    if before(version, "1.41"):
        spec = replace(spec, capability_add=None, capability_drop=None, ulimits=None)
    if before(version, "1.44"):
        if spec.healthcheck is not None:
            spec = replace(spec, healthcheck=replace(spec.healthcheck, start_interval=0))
        if spec.privileges:
            spec = replace(spec, privileges={name: value for name, value in spec.privileges.items() if name not in _CONFINEMENT})
    if before(version, "1.46"):
        spec = replace(spec, oom_score_adj=0, mounts=spec.mounts and [_mount(mount) for mount in spec.mounts])
    return spec


def _mount(mount: Mount) -> Mount:
    return mount if mount.tmpfs_options is None else replace(mount, tmpfs_options=replace(mount.tmpfs_options, options=None))
