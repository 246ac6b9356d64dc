"""What a client of an older API version sends of what came later is not there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestrator.api.versions import before, service_spec
from orchestrator.model import ServiceSpec

# field of the spec -> the API version that brought it, a value
_BROUGHT: dict[str, tuple[str, Any]] = {
    "Mode.ReplicatedJob": ("1.41", {"MaxConcurrent": 1}),
    "Mode.GlobalJob": ("1.41", {}),
    "TaskTemplate.Placement.MaxReplicas": ("1.40", 2),
    "TaskTemplate.Resources.Limits.Pids": ("1.41", 5),
    "TaskTemplate.ContainerSpec.Sysctls": ("1.40", {"a": "b"}),
    "TaskTemplate.ContainerSpec.CapabilityAdd": ("1.41", ["ALL"]),
    "TaskTemplate.ContainerSpec.CapabilityDrop": ("1.41", ["ALL"]),
    "TaskTemplate.ContainerSpec.Ulimits": ("1.41", [{"Name": "nofile", "Soft": 1, "Hard": 2}]),
    "TaskTemplate.ContainerSpec.Healthcheck.StartInterval": ("1.44", 5),
    "TaskTemplate.ContainerSpec.Privileges.NoNewPrivileges": ("1.44", True),
    "TaskTemplate.ContainerSpec.OomScoreAdj": ("1.46", 5),
}


def _with(path: str, value: Any) -> ServiceSpec:
    for name in reversed(path.split(".")):
        value = {name: value}
    return msgspec.convert(value, ServiceSpec)


def _has(spec: ServiceSpec, path: str) -> bool:
    place = msgspec.to_builtins(spec)
    for name in path.split("."):
        if name not in place:
            return False
        place = place[name]
    return True


@pytest.mark.parametrize(("path", "since", "value"), [(path, since, value) for path, (since, value) in _BROUGHT.items()])
def test_a_field_is_there_from_its_version_on(path: str, since: str, value: Any) -> None:
    spec = _with(path, value)
    for version in ("1.24", "1.39", "1.40", "1.41", "1.43", "1.44", "1.45", "1.46", "1.50"):
        assert _has(service_spec(spec, version), path) == (not before(version, since)), version


def test_options_of_tmpfs_came_with_1_46() -> None:
    mount = {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 5, "Options": [["noexec"]]}}
    spec = _with("TaskTemplate.ContainerSpec.Mounts", [mount])
    for version, shown in (("1.45", {"SizeBytes": 5}), ("1.46", {"SizeBytes": 5, "Options": [["noexec"]]})):
        told = msgspec.to_builtins(service_spec(spec, version))
        assert told["TaskTemplate"]["ContainerSpec"]["Mounts"][0]["TmpfsOptions"] == shown


def test_the_newest_version_changes_nothing() -> None:
    for path, (_, value) in _BROUGHT.items():
        assert service_spec(_with(path, value), "1.50") == _with(path, value)


def test_versions_are_compared_by_number() -> None:
    assert before("1.9", "1.24")
    assert not before("1.50", "1.5")
