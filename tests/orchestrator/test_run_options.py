"""Options of `docker run` as container labels; what each asks of the node; what a node's owner permits."""

from __future__ import annotations

import pytest

from orchestrator.errors import ConfigError
from orchestrator.model import ContainerSpec, Mount, NetworkAttachmentConfig, TaskSpec
from orchestrator.permissions import ALL, DEFAULT, PERMISSIONS, needed, permitted, refusal
from orchestrator.run_options import PREFIX, host_config


def asked(**labels: str) -> ContainerSpec:
    return ContainerSpec(image="a", labels={PREFIX + name.replace("_", "-"): value for name, value in labels.items()} | {"other": "x"})


@pytest.mark.parametrize(
    ("name", "value", "field", "result", "permission"),
    [
        ("privileged", "true", "Privileged", True, "privileged"),
        ("privileged", "0", "Privileged", False, ""),
        ("pid", "host", "PidMode", "host", "host-namespaces"),
        ("ipc", "host", "IpcMode", "host", "host-namespaces"),
        ("ipc", "private", "IpcMode", "private", ""),
        ("uts", "host", "UTSMode", "host", "host-namespaces"),
        ("userns", "host", "UsernsMode", "host", "host-namespaces"),
        ("cgroupns", "host", "CgroupnsMode", "host", "host-namespaces"),
        ("cgroupns", "private", "CgroupnsMode", "private", ""),
        (
            "devices", "/dev/kvm,/dev/fuse:/dev/f:r", "Devices",
            [{"PathOnHost": "/dev/kvm", "PathInContainer": "/dev/kvm", "CgroupPermissions": "rwm"},
             {"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/f", "CgroupPermissions": "r"}], "devices",
        ),
        ("device_cgroup_rules", "c 10:200 rwm, c 1:3 r", "DeviceCgroupRules", ["c 10:200 rwm", "c 1:3 r"], "devices"),
        ("gpus", "all", "DeviceRequests", [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}], "gpus"),
        ("gpus", "2", "DeviceRequests", [{"Driver": "", "Count": 2, "Capabilities": [["gpu"]]}], "gpus"),
        ("gpus", "device=0,GPU-1", "DeviceRequests", [{"Driver": "", "DeviceIDs": ["0", "GPU-1"], "Capabilities": [["gpu"]]}], "gpus"),
        ("runtime", "nvidia", "Runtime", "nvidia", "runtimes"),
        ("cgroup_parent", "/x", "CgroupParent", "/x", "cgroups"),
        ("security_opt", "seccomp=unconfined", "SecurityOpt", ["seccomp=unconfined"], "security-options"),
        ("shm_size", "64m", "ShmSize", 64 << 20, ""),
        ("shm_size", "1GB", "ShmSize", 1 << 30, ""),
        ("memory_swap", "-1", "MemorySwap", -1, ""),
        ("memory_swappiness", "0", "MemorySwappiness", 0, ""),
        ("cpu_shares", "512", "CpuShares", 512, ""),
        ("cpuset_cpus", "0-1", "CpusetCpus", "0-1", ""),
        ("cpuset_mems", "0", "CpusetMems", "0", ""),
        ("blkio_weight", "500", "BlkioWeight", 500, ""),
        ("oom_kill_disable", "true", "OomKillDisable", True, ""),
        ("storage_opt", "size=10G", "StorageOpt", {"size": "10G"}, ""),
    ],
)  # fmt: skip
def test_every_option(name: str, value: str, field: str, result: object, permission: str) -> None:
    spec = asked(**{name: value})
    assert host_config(spec) == {field: result}
    assert needed(TaskSpec(container_spec=spec)) == ({permission} if permission else set())


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("privilegd", "true", "unknown option com.meshd.run.privilegd: there are com.meshd.run.blkio-weight, "),
        ("privileged", "yes", "com.meshd.run.privileged=yes: expected true or false"),
        ("pid", "container:x", "expected host"),
        ("ipc", "", "expected host or private"),
        ("devices", "kvm", "expected /dev/path"),
        ("devices", "/dev/kvm,", "expected values with commas"),
        ("gpus", "0", "expected all, a number"),
        ("shm_size", "big", "expected a size such as 64m"),
        ("cpu_shares", "1", "expected a number from 2"),
        ("memory_swappiness", "101", "expected a number from 0 to 100"),
        ("storage_opt", "size", "expected key=value"),
        ("runtime", "", "expected a value"),
    ],
)
def test_what_is_no_option_is_refused_with_a_sentence(name: str, value: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        host_config(asked(**{name: value}))
    assert error in str(caught.value)


def test_what_docker_s_own_fields_ask_for() -> None:
    def of(networks: list[NetworkAttachmentConfig] | None = None, **fields: object) -> set[str]:
        return set(needed(TaskSpec(container_spec=ContainerSpec(image="a", **fields), networks=networks)))  # type: ignore[arg-type]

    assert of() == set()
    assert of(networks=[NetworkAttachmentConfig(target="host")]) == {"host-network"}
    assert of(networks=[NetworkAttachmentConfig(target="net")]) == set()
    assert of(mounts=[Mount(type="bind", source="/a", target="/b"), Mount(target="/c")]) == {"bind-mounts"}
    assert of(capability_add=["CAP_NET_ADMIN"]) == {"capabilities"}
    assert of(privileges={"Seccomp": {"Mode": "unconfined"}}) == {"security-options"}
    assert of(privileges={"AppArmor": {"Mode": "disabled"}}) == {"security-options"}
    assert of(privileges={"NoNewPrivileges": True}) == set()


def test_a_refusal_says_what_its_reader_can_do() -> None:
    spec = TaskSpec(container_spec=asked(privileged="true", pid="host"))
    assert refusal(spec, DEFAULT) == (
        "this node does not permit containers to share the node's process, IPC, hostname, user or cgroup namespace and be privileged: "
        "its owner can, with `meshd daemon --permit host-namespaces --permit privileged`"
    )
    assert refusal(spec, permitted([ALL], [])) == ""
    assert refusal(TaskSpec(), frozenset()) == ""


@pytest.mark.parametrize(
    ("permit", "forbid", "result"),
    [
        ([], [], DEFAULT),
        (["privileged"], ["bind-mounts"], (DEFAULT | {"privileged"}) - {"bind-mounts"}),
        ([ALL], ["privileged"], frozenset(PERMISSIONS) - {"privileged"}),
        (["gpus"], [ALL], frozenset({"gpus"})),
    ],
)
def test_what_an_owner_says(permit: list[str], forbid: list[str], result: frozenset[str]) -> None:
    assert permitted(permit, forbid) == result


@pytest.mark.parametrize(("permit", "forbid"), [(["everything"], []), ([], ["x"]), (["gpus"], ["gpus"]), ([ALL], [ALL])])
def test_what_an_owner_can_not_mean(permit: list[str], forbid: list[str]) -> None:
    with pytest.raises(ConfigError):
        permitted(permit, forbid)
