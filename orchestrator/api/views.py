"""Stored objects -> exactly the JSON that Docker shows.

Pure: no I/O. Source: Docker Engine API 1.44; moby daemon/cluster/convert; answers captured from Engine 20.10. The stored structs leave
defaults out; here come back the fields whose presence clients rely on, and our own `Mesh...` fields go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from orchestrator.control.cron import next_due
from orchestrator.control.defaults import replicas
from orchestrator.control.eligibility import suspect
from orchestrator.control.jobs import is_scheduled, iteration_of
from orchestrator.control.labels import CRON_SCHEDULE, cron_rule
from orchestrator.control.slots import is_job_task, running, slot_key
from orchestrator.errors import ConfigError
from orchestrator.model import (
    SECOND,
    Cluster,
    Config,
    JobStatus,
    Network,
    Node,
    Object,
    Secret,
    Service,
    ServiceStatus,
    Task,
    TaskState,
    is_attachment,
    terminal,
)
from orchestrator.store.snapshot import Snapshot

Json = dict[str, Any]

VXLAN_OPTION = "com.docker.network.driver.overlay.vxlanid_list"
_ZERO_TIME = "0001-01-01T00:00:00Z"


def service(obj: Service, *, status: ServiceStatus | None = None, insert_defaults: bool = False) -> Json:
    shown = _object(obj)
    shown["Spec"] = _service_spec(shown.get("Spec", {}))
    if "PreviousSpec" in shown:
        shown["PreviousSpec"] = _service_spec(shown["PreviousSpec"])
    endpoint = _ports(shown.setdefault("Endpoint", {}))
    # Docker shows it of what has been allocated, and there is nothing to allocate for a service without networks and ports
    allocated = bool(endpoint.get("VirtualIPs") or endpoint.get("Ports"))
    endpoint["Spec"] = _endpoint_spec(endpoint.get("Spec", {})) if allocated else {}
    if obj.job_status is not None:
        shown.setdefault("JobStatus", {})["JobIteration"] = _iteration(obj.job_status.job_iteration.index)
    if is_scheduled(obj.spec):
        shown["UpdateStatus"] = _cron_status(obj)
    if status is not None:
        shown["ServiceStatus"] = msgspec.to_builtins(status)
    if insert_defaults:
        _insert_defaults(shown["Spec"])
    return shown


def service_status(snapshot: Snapshot, obj: Service) -> ServiceStatus:
    """Counts as `docker service ls` shows them: for a job, of its newest run. A global service wants what its loop has decided to run."""
    tasks = snapshot.tasks_of_service(obj.id)
    if obj.job_status is not None:
        tasks = [task for task in tasks if iteration_of(task) == obj.job_status.job_iteration.index]
    wanted = [task for task in tasks if not terminal(task.desired_state)]
    mode = obj.spec.mode
    if mode.global_ is not None or mode.global_job is not None:
        desired = sum(not terminal(task.status.state) for task in wanted)
    elif mode.replicated_job is not None:
        desired = mode.replicated_job.max_concurrent or 0
    else:
        desired = replicas(obj)
    return ServiceStatus(
        running_tasks=sum(running(task) for task in wanted),
        desired_tasks=desired,
        completed_tasks=len({slot_key(task) for task in tasks if is_job_task(task) and task.status.state is TaskState.COMPLETE}),
    )


def _cron_status(obj: Service) -> Json:
    """Docker has no place for a schedule; `docker service inspect --pretty` and the progress of `docker service create` look here."""
    status = obj.job_status or JobStatus()
    since = status.mesh_due_until or obj.created_at
    try:
        rule = cron_rule(obj.spec)
        due = next_due(rule, since) if rule is not None and not rule.suspended else None
    except ConfigError as error:
        return {"State": "paused", "StartedAt": msgspec.to_builtins(since), "Message": str(error)}
    last = status.mesh_runs[-1] if status.mesh_runs else None
    parts = [f"schedule {(obj.spec.labels or {})[CRON_SCHEDULE]!r}", f"next run {due:%Y-%m-%d %H:%M:%S} UTC" if due else "no run is due"]
    if last is not None:
        parts.append(f"run of {last.started_at:%Y-%m-%d %H:%M:%S} UTC {last.outcome or 'is under way'}")
    times = {"StartedAt": msgspec.to_builtins(since), "CompletedAt": msgspec.to_builtins(since)}
    return {"State": "completed", **times, "Message": "; ".join(parts)}


def task(snapshot: Snapshot, obj: Task) -> Json:
    """Networks are embedded whole, as Swarm shows them."""
    shown = _object(obj)
    # Docker names tasks by service and slot; the CLI composes that itself and prints a Name it finds.
    shown.pop("Name", None)
    if is_job_task(obj):
        shown["JobIteration"] = _iteration(iteration_of(obj))
    shown["Labels"] = obj.labels or {}
    shown["Spec"] = _task_spec(shown.get("Spec", {}))
    status = shown.setdefault("Status", {})
    status.setdefault("Timestamp", _ZERO_TIME)
    status["State"] = obj.status.state.value
    status.setdefault("Message", "")
    if obj.status.container_status is not None:
        container = status["ContainerStatus"]
        container.setdefault("ContainerID", "")
        container.setdefault("PID", 0)
        container.setdefault("ExitCode", 0)
    status["PortStatus"] = _ports(status.get("PortStatus", {}))
    shown["DesiredState"] = shown_desired_state(obj).value
    if obj.networks_attachments:
        shown["NetworksAttachments"] = [
            {"Network": _attached_network(snapshot, attachment.network.id), "Addresses": attachment.addresses}
            for attachment in obj.networks_attachments
        ]
    return shown


def shown_desired_state(obj: Task) -> TaskState:
    """Tasks of jobs are to complete, not to run on."""
    if is_job_task(obj) and (obj.desired_state is TaskState.RUNNING or obj.status.state is TaskState.COMPLETE):
        return TaskState.COMPLETE
    return obj.desired_state


def node(snapshot: Snapshot, obj: Node) -> Json:
    """`Leader` is read from the leadership, so it is right also right after a change of leader."""
    shown = _object(obj)
    spec = shown.setdefault("Spec", {})
    spec["Labels"] = obj.spec.labels or {}
    spec["Role"] = obj.spec.role
    spec["Availability"] = obj.spec.availability
    description = shown.setdefault("Description", {})
    description.setdefault("Hostname", "")
    for part in ("Platform", "Resources", "Engine"):
        description.setdefault(part, {})
    description.setdefault("TLSInfo", {})
    for private in [name for name in description if name.startswith("Mesh")]:
        del description[private]
    status = shown.setdefault("Status", {})
    status["State"] = obj.status.state
    if suspect(obj):
        status |= {"State": "disconnected", "Message": "heartbeats are missing: it gets no new tasks, those it has keep their traffic"}
    elif obj.status.state == "ready" and obj.description.mesh_engine_error:
        status["Message"] = f"it gets no new tasks: {obj.description.mesh_engine_error}"
    status.setdefault("Addr", "")
    if obj.manager_status is not None:
        leader = snapshot.leader
        shown["ManagerStatus"] = {
            "Reachability": obj.manager_status.reachability,
            "Addr": obj.manager_status.addr,
        }
        if leader is not None and leader.node_id == obj.id:
            shown["ManagerStatus"]["Leader"] = True
    return shown


def network(obj: Network) -> Json:
    options = dict(obj.options or {})
    if obj.mesh_vni:
        options.setdefault(VXLAN_OPTION, str(obj.mesh_vni))
    return {
        "Name": obj.name,
        "Id": obj.id,
        "Created": msgspec.to_builtins(obj.created_at),
        "Scope": obj.scope,
        "Driver": obj.driver,
        "EnableIPv4": True,
        "EnableIPv6": obj.enable_ipv6,
        "IPAM": {
            "Driver": obj.ipam.driver,
            "Options": obj.ipam.options or None,
            "Config": [msgspec.to_builtins(config) for config in obj.ipam.config or ()],
        },
        "Internal": obj.internal,
        "Attachable": obj.attachable,
        "Ingress": obj.ingress,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": None,
        "Options": options or None,
        "Labels": obj.labels or None,
    }


def network_detail(snapshot: Snapshot, obj: Network, node_id: str, *, verbose: bool) -> Json:
    """`docker network inspect`: also this node's containers and, of all nodes, those started by hand; verbose: every service of the
    network on all nodes."""
    shown = network(obj)
    tasks = [task for task in snapshot.tasks_of_network(obj.id) if not terminal(task.status.state)]
    containers: Json = {}
    for member in sorted((task for task in tasks if task.node_id == node_id or is_attachment(task)), key=lambda task: task.id):
        status = member.status.container_status
        address = _address(member, obj.id)
        if status is None or not status.container_id or not address:
            continue
        ipv6 = ":" in address
        containers[status.container_id] = {
            "Name": container_name(member),
            "EndpointID": member.id,
            "MacAddress": "" if ipv6 else mac(address),
            "IPv4Address": "" if ipv6 else address,
            "IPv6Address": address if ipv6 else "",
        }
    shown["Containers"] = containers or None
    services = _network_services(snapshot, obj, tasks) if verbose else {}
    if services:
        shown["Services"] = services
    return shown


def secret(obj: Secret) -> Json:
    """Never with its payload."""
    shown = _object(obj)
    shown["Spec"] = {"Name": obj.spec.name, "Labels": obj.spec.labels or {}, **_rest(shown.get("Spec", {}), "Name", "Labels", "Data")}
    return shown


def config(obj: Config) -> Json:
    shown = _object(obj)
    shown["Spec"] = {
        "Name": obj.spec.name,
        "Labels": obj.spec.labels or {},
        "Data": obj.spec.data,
        **_rest(shown.get("Spec", {}), "Name", "Labels", "Data"),
    }
    return shown


def cluster(obj: Cluster) -> Json:
    """For /info: no tokens, no key."""
    shown = _object(obj)
    shown.pop("JoinTokens", None)
    spec = shown.setdefault("Spec", {})
    spec["Name"] = obj.spec.name
    spec["Labels"] = obj.spec.labels or {}
    for part in ("Orchestration", "Raft", "Dispatcher", "CAConfig", "TaskDefaults"):
        spec.setdefault(part, {})
    spec["Raft"].setdefault("ElectionTick", 0)
    spec["Raft"].setdefault("HeartbeatTick", 0)
    spec["CAConfig"].pop("SigningCAKey", None)
    spec["EncryptionConfig"] = {"AutoLockManagers": obj.spec.encryption_config.auto_lock_managers}
    shown.setdefault("TLSInfo", {})
    shown["RootRotationInProgress"] = obj.root_rotation_in_progress
    shown["DefaultAddrPool"] = obj.default_addr_pool or []
    shown["SubnetSize"] = obj.subnet_size
    shown["DataPathPort"] = obj.data_path_port
    return shown


def swarm(obj: Cluster) -> Json:
    """For GET /swarm: with the join tokens."""
    tokens = obj.join_tokens
    return {**cluster(obj), "JoinTokens": {"Worker": tokens.worker if tokens else "", "Manager": tokens.manager if tokens else ""}}


def container_name(obj: Task) -> str:
    """`web.1.<task id>`; a task of a global service has its node's id in place of the slot. Of an attachment: its container's."""
    return obj.name or f"{obj.mesh_service_name}.{obj.slot or obj.node_id}.{obj.id}"


# ---- parts -------------------------------------------------------------------------------------------------------------------


def _object(obj: Object) -> Json:
    shown: Json = msgspec.to_builtins(obj)
    head: Json = {"ID": obj.id, "Version": {"Index": obj.version.index}}
    for when in ("CreatedAt", "UpdatedAt"):
        head[when] = shown.get(when, _ZERO_TIME)
    return {**head, **{key: value for key, value in shown.items() if key not in head and not key.startswith("Mesh")}}


def _rest(shown: Json, *without: str) -> Json:
    return {key: value for key, value in shown.items() if key not in without}


def _service_spec(spec: Json) -> Json:
    spec.setdefault("Name", "")
    spec.setdefault("Labels", {})
    spec["TaskTemplate"] = _task_spec(spec.get("TaskTemplate", {}))
    if not spec.get("Mode"):
        spec["Mode"] = {"Replicated": {"Replicas": 1}}
    for name in ("UpdateConfig", "RollbackConfig"):
        if name in spec:
            spec[name].setdefault("Parallelism", 0)
            spec[name].setdefault("FailureAction", "pause")
            spec[name].setdefault("MaxFailureRatio", 0)
            spec[name].setdefault("Order", "stop-first")
    if "EndpointSpec" in spec:
        _endpoint_spec(spec["EndpointSpec"])
    return spec


def _task_spec(spec: Json) -> Json:
    container = spec.get("ContainerSpec")
    if container is not None:
        container.setdefault("Image", "")
        for mount in container.get("Mounts", ()):
            mount.setdefault("Type", "volume")
        for reference in (*container.get("Secrets", ()), *container.get("Configs", ())):
            if "File" in reference:
                # These are the model's defaults, but not Go's zero values: clients would read 0 and "".
                reference["File"] = {"Name": "", "UID": "0", "GID": "0", "Mode": 0o444, **reference["File"]}
    spec.setdefault("ForceUpdate", 0)
    return spec


def _iteration(number: int) -> Json:
    """Docker leaves out the number of the first run."""
    return {"Index": number} if number else {}


def _endpoint_spec(spec: Json) -> Json:
    spec.setdefault("Mode", "vip")
    return _ports(spec)


def _ports(holder: Json) -> Json:
    for port in holder.get("Ports", ()):
        port.setdefault("Protocol", "tcp")
        port.setdefault("PublishMode", "ingress")
    return holder


def _insert_defaults(spec: Json) -> None:
    """What Swarm would do where the user said nothing (swarmkit api/defaults/service.go)."""
    template = spec["TaskTemplate"]
    if "ContainerSpec" in template:
        template["ContainerSpec"].setdefault("StopGracePeriod", 10 * SECOND)
        template["ContainerSpec"].setdefault("DNSConfig", {})
    template.setdefault("Resources", {})
    template.setdefault("Placement", {})
    template["RestartPolicy"] = {"Condition": "any", "Delay": 5 * SECOND, "MaxAttempts": 0, **template.get("RestartPolicy", {})}
    update = {
        "Parallelism": 1, "FailureAction": "pause", "Monitor": 5 * SECOND, "MaxFailureRatio": 0, "Order": "stop-first",
    }  # fmt: skip
    for name in ("UpdateConfig", "RollbackConfig"):
        spec[name] = {**update, **spec.get(name, {})}


def _attached_network(snapshot: Snapshot, network_id: str) -> Json:
    obj = snapshot.network(network_id)
    if obj is None:
        return {"ID": network_id, "Version": {}, "CreatedAt": _ZERO_TIME, "UpdatedAt": _ZERO_TIME, "Spec": {}}
    driver: Json = {"Name": obj.driver}
    spec: Json = {
        "Name": obj.name,
        "Labels": obj.labels or {},
        "DriverConfiguration": {},
        "IPAMOptions": {"Driver": {"Name": obj.ipam.driver}},
        "Scope": obj.scope,
    }
    for name, given in (
        ("Internal", obj.internal),
        ("Attachable", obj.attachable),
        ("Ingress", obj.ingress),
        ("IPv6Enabled", obj.enable_ipv6),
    ):
        if given:
            spec[name] = True
    shown = _object(obj)
    return {
        "ID": obj.id,
        "Version": shown["Version"],
        "CreatedAt": msgspec.to_builtins(obj.created_at),
        "UpdatedAt": shown["UpdatedAt"],
        "Spec": spec,
        "DriverState": {**driver, "Options": {VXLAN_OPTION: str(obj.mesh_vni)}},
        "IPAMOptions": {
            "Driver": {"Name": obj.ipam.driver},
            "Configs": [msgspec.to_builtins(config) for config in obj.ipam.config or ()],
        },
    }


def _network_services(snapshot: Snapshot, obj: Network, tasks: Iterable[Task]) -> Json:
    services: Json = {}
    for member in sorted(tasks, key=lambda task: (task.service_id, task.slot, task.id)):
        owner = snapshot.service(member.service_id)
        address = _address(member, obj.id)
        if owner is None or not address:
            continue
        vips = [vip.addr.partition("/")[0] for vip in owner.endpoint.virtual_ips or () if vip.network_id == obj.id]
        entry = services.setdefault(
            owner.spec.name,
            {
                "VIP": vips[0] if vips else "",
                "Ports": [f"Target: {port.target_port}, Publish: {port.published_port}" for port in owner.endpoint.ports or ()]
                if obj.ingress
                else [],
                "LocalLBIndex": 0,
                "Tasks": [],
            },
        )
        runs_on = snapshot.node(member.node_id)
        entry["Tasks"].append(
            {
                "Name": container_name(member),
                "EndpointID": member.id,
                "EndpointIP": address.partition("/")[0],
                "Info": {"Host IP": runs_on.status.addr if runs_on else ""},
            }
        )
    return services


def _address(obj: Task, network_id: str) -> str:
    for attachment in obj.networks_attachments or ():
        if attachment.network.id == network_id and attachment.addresses:
            return attachment.addresses[0]
    return ""


def mac(address: str) -> str:
    """02:42 and the four bytes of the address, as Docker and the data plane make it."""
    return "02:42:" + ":".join(f"{int(part):02x}" for part in address.partition("/")[0].split("."))
