"""What `docker run` can and `docker service create` can't: options of a service's containers, given as container labels.

Pure: no I/O. `docker service create --container-label com.meshd.run.privileged=true`; in a compose file `labels:` of the service, not
those below `deploy:`. As labels of the container they are part of the task's spec: changing one is an update. Source: Docker Engine
API 1.44, HostConfig; the values are written as for `docker run`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.model import ContainerSpec

PREFIX = "com.meshd.run."

_SIZE = re.compile(r"(\d+)([bkmgt]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DEVICE = re.compile(r"(/[^:,]+)(?::(/[^:,]+))?(?::([rwm]+))?")
_GPU_IDS = re.compile(r"device=([\w.\-]+(?:,[\w.\-]+)*)")

HostConfig = dict[str, Any]


def host_config(spec: ContainerSpec) -> HostConfig:
    """The fields of the Engine's HostConfig that the labels ask for. ConfigError: a label that isn't one, or a value that can't be."""
    config: HostConfig = {}
    for label, value in sorted((spec.labels or {}).items()):
        if not label.startswith(PREFIX):
            continue
        name = label.removeprefix(PREFIX)
        option = _OPTIONS.get(name)
        if option is None:
            raise ConfigError(f"unknown option {label}: there are {', '.join(sorted(PREFIX + known for known in _OPTIONS))}")
        field, read = option
        try:
            config[field] = read(value)
        except ValueError as error:
            raise ConfigError(f"{label}={value}: {error}") from None
    return config


def _flag(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise ValueError("expected true or false")
    return value.lower() in ("true", "1")


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"expected {' or '.join(allowed)}")
        return value

    return read


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"-?\d+", value) or not least <= int(value) <= most:
            raise ValueError(f"expected a number from {least} to {most}")
        return int(value)

    return read


def _size(value: str) -> int:
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError("expected a size such as 64m")
    return int(match[1]) * _UNITS[match[2].lower()]


def _swap(value: str) -> int:
    return -1 if value == "-1" else _size(value)


def _text(value: str) -> str:
    if not value:
        raise ValueError("expected a value")
    return value


def _texts(value: str) -> list[str]:
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise ValueError("expected values with commas between them")
    return parts


def _pairs(value: str) -> dict[str, str]:
    parts = [part.partition("=") for part in _texts(value)]
    if not all(key and sign for key, sign, _ in parts):
        raise ValueError("expected key=value, with commas between them")
    return {key: given for key, _, given in parts}


def _devices(value: str) -> list[dict[str, str]]:
    devices = []
    for part in _texts(value):
        match = _DEVICE.fullmatch(part)
        if match is None:
            raise ValueError("expected /dev/path[:/path/inside[:rwm]], with commas between them")
        devices.append({"PathOnHost": match[1], "PathInContainer": match[2] or match[1], "CgroupPermissions": match[3] or "rwm"})
    return devices


def _gpus(value: str) -> list[HostConfig]:
    if match := _GPU_IDS.fullmatch(value):
        return [gpu_request(match[1].split(","))]
    if value == "all" or (value.isdigit() and int(value) > 0):
        return [{"Driver": "", "Count": -1 if value == "all" else int(value), "Capabilities": [["gpu"]]}]
    raise ValueError("expected all, a number, or device=ID,ID")


def gpu_request(ids: list[str]) -> HostConfig:
    return {"Driver": "", "DeviceIDs": ids, "Capabilities": [["gpu"]]}


_OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "blkio-weight": ("BlkioWeight", _number(10, 1000)),
    "cgroup-parent": ("CgroupParent", _text),
    "cgroupns": ("CgroupnsMode", _one_of("host", "private")),
    "cpu-shares": ("CpuShares", _number(2, 262144)),
    "cpuset-cpus": ("CpusetCpus", _text),
    "cpuset-mems": ("CpusetMems", _text),
    "device-cgroup-rules": ("DeviceCgroupRules", _texts),
    "devices": ("Devices", _devices),
    "gpus": ("DeviceRequests", _gpus),
    "ipc": ("IpcMode", _one_of("host", "private", "shareable", "none")),
    "memory-swap": ("MemorySwap", _swap),
    "memory-swappiness": ("MemorySwappiness", _number(0, 100)),
    "oom-kill-disable": ("OomKillDisable", _flag),
    "pid": ("PidMode", _one_of("host")),
    "privileged": ("Privileged", _flag),
    "runtime": ("Runtime", _text),
    "security-opt": ("SecurityOpt", _texts),
    "shm-size": ("ShmSize", _size),
    "storage-opt": ("StorageOpt", _pairs),
    "userns": ("UsernsMode", _one_of("host")),
    "uts": ("UTSMode", _one_of("host")),
}
