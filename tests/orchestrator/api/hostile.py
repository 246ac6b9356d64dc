"""Requests as nobody should send them: bodies that were good once, references and queries that mean nothing.

Pure: hypothesis strategies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

Json = Any

# A client's mistake, or malice, in the place of any value. JSON knows no infinity and no end of integers.
VALUES: tuple[Json, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 0.5, -1e308, "", " ", "x", "\x00", "ü", "a" * 5000,
    "../..", "{{.Node.ID}}", "{{", "10.0.0.0/8", "::/0", "999.1.1.1", "0001-01-01T00:00:00Z", [], {}, [[]], [None], [{}], {"": None},
    {"a": {"b": {}}}, ["x", 1], "host", "overlay", "replicated", "SWMTKN-1-x-worker0",
)  # fmt: skip
REFERENCES = ("web", "ov1", "s1", "c1", "node-a", "nosuch", "n", "0", "%20", "%00", "%2e%2e", "x" * 300, "%F0%9F%90%B3", "a%2Fb", "{id}")
QUERY_VALUES = (
    "",
    "1",
    "0",
    "true",
    "false",
    "x",
    "-1",
    "1e9",
    "99999999999999999999",
    "previous",
    "%00",
    "spec",
    "swarm",
    "2026-01-01",
    "null",
)
_FILTER_KEYS = ("name", "id", "label", "mode", "runtime", "service", "node", "desired-state", "role", "membership", "node.label", "names",
                "driver", "type", "scope", "dangling", "until", "_up-to-date", "event", "bogus", "")  # fmt: skip

_PORTS = [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]
_UPDATE = {"Parallelism": 1, "Delay": 1, "FailureAction": "pause", "Monitor": 1, "MaxFailureRatio": 0.1, "Order": "stop-first"}
_CONTAINER = {
    "Image": "busybox:latest", "Labels": {"a": "b"}, "Command": ["sh"], "Args": ["-c", "true"], "Hostname": "h", "Env": ["A=B"], "Dir": "/",
    "User": "nobody", "Groups": ["g"], "Privileges": {"NoNewPrivileges": True, "Seccomp": {"Mode": "unconfined"}, "SELinuxContext": None},
    "Init": True, "StopSignal": "SIGTERM", "TTY": True, "OpenStdin": True, "ReadOnly": True, "StopGracePeriod": 1, "Isolation": "default",
    "Mounts": [{"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {"DriverConfig": {"Name": "local", "Options": {}}}},
               {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1, "Mode": 448, "Options": [["noexec"]]}},
               {"Type": "bind", "Source": "/tmp", "Target": "/b", "BindOptions": {"Propagation": "rprivate"}}],
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1, "Timeout": 1, "Retries": 1, "StartPeriod": 1, "StartInterval": 1},
    "Hosts": ["10.0.0.1 h"], "DNSConfig": {"Nameservers": ["8.8.8.8"], "Search": ["x"], "Options": ["ndots:2"]},
    "Secrets": [{"SecretID": "{secret}", "SecretName": "s1", "File": {"Name": "f", "UID": "0", "GID": "0", "Mode": 292}}],
    "Configs": [{"ConfigID": "{config}", "ConfigName": "c1", "File": {"Name": "g", "UID": "0", "GID": "0", "Mode": 292}}],
    "Sysctls": {"net.core.somaxconn": "1"}, "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["ALL"],
    "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}], "OomScoreAdj": 5,
}  # fmt: skip
SERVICE: Json = {
    "Name": "fuzzed",
    "Labels": {"com.meshd.cron.schedule": "* * * * *", "a": "b"},
    "TaskTemplate": {
        "ContainerSpec": _CONTAINER,
        "Resources": {
            "Limits": {"NanoCPUs": 10**9, "MemoryBytes": 10**8, "Pids": 10},
            "Reservations": {
                "NanoCPUs": 10**9,
                "MemoryBytes": 10**8,
                "GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}],
            },
        },
        "RestartPolicy": {"Condition": "any", "Delay": 1, "MaxAttempts": 1, "Window": 1},
        "Placement": {
            "Constraints": ["node.role==manager"],
            "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.rack"}}],
            "MaxReplicas": 1,
            "Platforms": [{"Architecture": "amd64", "OS": "linux"}],
        },
        "Networks": [{"Target": "ov1", "Aliases": ["a"], "DriverOpts": {"a": "b"}}],
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}},
        "ForceUpdate": 1,
        "Runtime": "container",
    },
    "Mode": {"Replicated": {"Replicas": 2}},
    "UpdateConfig": _UPDATE,
    "RollbackConfig": _UPDATE,
    "EndpointSpec": {"Mode": "vip", "Ports": _PORTS},
}
JOB: Json = {
    "Name": "fuzzed-job",
    "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}, "RestartPolicy": {"Condition": "none"}},
    "Mode": {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 2}},
}
NETWORK: Json = {
    "Name": "fuzzed", "Driver": "overlay", "Scope": "swarm", "EnableIPv4": True, "EnableIPv6": False, "Internal": False, "Attachable": True,
    "Ingress": False, "ConfigOnly": False, "ConfigFrom": {"Network": ""}, "Options": {"com.docker.network.driver.mtu": "1400"},
    "Labels": {"a": "b"}, "CheckDuplicate": True,
    "IPAM": {"Driver": "default", "Options": {}, "Config": [{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.1", "IPRange": "10.77.0.64/26",
                                                             "AuxiliaryAddresses": {"x": "10.77.0.9"}}]},
}  # fmt: skip
SECRET: Json = {"Name": "fuzzed", "Labels": {"a": "b"}, "Data": "eA==", "Templating": {"Name": "golang", "Options": {}}}
NODE: Json = {"Name": "", "Role": "manager", "Availability": "active", "Labels": {"a": "b"}}
CLUSTER: Json = {
    "Name": "default",
    "Labels": {"a": "b"},
    "Orchestration": {"TaskHistoryRetentionLimit": 5},
    "Raft": {"SnapshotInterval": 1, "KeepOldSnapshots": 1, "LogEntriesForSlowFollowers": 1, "ElectionTick": 10, "HeartbeatTick": 1},
    "Dispatcher": {"HeartbeatPeriod": 5 * 10**9},
    "CAConfig": {"NodeCertExpiry": 10**16, "ForceRotate": 0},
    "TaskDefaults": {"LogDriver": {"Name": "json-file", "Options": {}}},
    "EncryptionConfig": {"AutoLockManagers": False},
}
INIT: Json = {
    "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.0.0.1", "DataPathAddr": "", "DataPathPort": 4789, "ForceNewCluster": False,
    "AutoLockManagers": False, "Availability": "active", "DefaultAddrPool": ["10.0.0.0/8"], "SubnetSize": 24, "Spec": CLUSTER,
}  # fmt: skip
JOIN: Json = {"ListenAddr": "0.0.0.0:2377", "RemoteAddrs": ["10.0.0.9:2377"], "JoinToken": "SWMTKN-1-x-worker0", "Availability": "active"}

_KINDS = {"services": SERVICE, "networks": NETWORK, "secrets": SECRET, "configs": SECRET, "nodes": NODE}
_FLAGS = (
    "version",
    "status",
    "insertDefaults",
    "verbose",
    "scope",
    "force",
    "rollback",
    "registryAuthFrom",
    "since",
    "until",
    "rotateWorkerToken",
)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: bytes = b""


def places(value: Json, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every value in it, the whole first."""
    found = [path]
    if isinstance(value, dict):
        found += [place for key, member in value.items() for place in places(member, (*path, key))]
    elif isinstance(value, list):
        found += [place for index, member in enumerate(value) for place in places(member, (*path, index))]
    return found


def changed(value: Json, path: tuple[Any, ...], change: Callable[[Json], Json]) -> Json:
    """A copy in which the value at `path` is what `change` makes of it; as it is where a change before has taken that place away."""
    if not path:
        return change(value)
    head, *rest = path
    try:
        inner = value[head]
    except (LookupError, TypeError):
        return value
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[head] = changed(inner, tuple(rest), change)
    return copy


def _without(value: Json) -> Json:
    return {key: member for key, member in value.items() if key != next(iter(value))} if isinstance(value, dict) and value else value


def _doubled(value: Json) -> Json:
    return (
        value * 2
        if isinstance(value, list | str)
        else {**value, **{k.upper(): v for k, v in value.items()}}
        if isinstance(value, dict)
        else value
    )


@st.composite
def bodies(draw: st.DrawFn, good: Json) -> bytes:
    """The good body with up to three changes; sometimes its text is spoilt as well."""
    body = good
    for path in draw(st.lists(st.sampled_from(places(good)), max_size=3)):
        hostile = draw(st.sampled_from(VALUES))
        body = changed(
            body, path, draw(st.sampled_from((lambda _, hostile=hostile: hostile, lambda _, hostile=hostile: hostile, _without, _doubled)))
        )
    text = json.dumps(body).encode()
    if draw(st.integers(0, 7)) == 0:
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(st.sampled_from((b"", b"\xff", b"}", b"]" * 5, b"[" * 5000, b'"', b"NaN", b"\x00", b"1e999")))
    return text


@st.composite
def queries(draw: st.DrawFn) -> str:
    parts = [f"{flag}={draw(st.sampled_from(QUERY_VALUES))}" for flag in draw(st.lists(st.sampled_from(_FLAGS), max_size=2, unique=True))]
    if draw(st.booleans()):
        keys = draw(st.lists(st.sampled_from(_FILTER_KEYS), max_size=2))
        values = st.one_of(
            st.lists(st.sampled_from(("web", "x", "true", "running", "", "a=b"))),
            st.sampled_from(VALUES),
            st.just({"web": True}),
            st.just({"x": 5}),
        )
        parts.append("filters=" + quote(json.dumps({key: draw(values) for key in keys})))
    elif draw(st.integers(0, 9)) == 0:
        parts.append("filters=" + quote(draw(st.sampled_from(("{", "[]", "5", "null", '"', "[" * 1500)))))
    return "?" + "&".join(parts) if parts else ""


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Of the cluster's half of the API, any."""
    version = draw(st.sampled_from(("", "", "", "/v1.24", "/v1.37", "/v1.40", "/v1.50")))
    kind = draw(st.sampled_from((*_KINDS, "tasks", "swarm")))
    reference = draw(st.sampled_from(REFERENCES))
    query = draw(queries())
    good = _KINDS.get(kind, CLUSTER)
    if kind == "swarm":
        action, good = draw(
            st.sampled_from(
                (("", {}), ("/update", CLUSTER), ("/unlock", {"UnlockKey": "x"}), ("/unlockkey", {}), ("/join", JOIN), ("/init", INIT))
            )
        )
        method = "GET" if action in ("", "/unlockkey") else "POST"
        return Request(method, f"{version}/swarm{action}{query}", draw(bodies(good)) if method == "POST" else b"")
    match draw(st.sampled_from(("list", "get", "create", "create", "update", "update", "delete", "odd"))):
        case "list":
            return Request("GET", f"{version}/{kind}{query}")
        case "get":
            return Request("GET", f"{version}/{kind}/{reference}{query}")
        case "create":
            return Request(
                "POST",
                f"{version}/{kind}/create{query}",
                draw(bodies(draw(st.sampled_from((SERVICE, JOB))) if kind == "services" else good)),
            )
        case "update":
            newest = draw(st.booleans())
            return Request("POST", f"{version}/{kind}/{reference}/update{'?version={version}' if newest else query}", draw(bodies(good)))
        case "delete":
            return Request("DELETE", f"{version}/{kind}/{reference}{query}")
        case _:
            method = draw(st.sampled_from(("PUT", "PATCH", "HEAD", "OPTIONS", "POST", "DELETE")))
            return Request(method, f"{version}/{kind}{draw(st.sampled_from(('', '/', '/x/y', '/create/z')))}", draw(bodies({})))
