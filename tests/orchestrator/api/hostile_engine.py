"""Requests as nobody should send them, of the half of the API that Engines answer: containers, images, volumes, networks of one machine.

Pure: hypothesis strategies.
"""

from __future__ import annotations

import json
from urllib.parse import quote

from hypothesis import strategies as st

from tests.orchestrator.api.hostile import QUERY_VALUES, VALUES, Json, Request, bodies

CONTAINER: Json = {
    "Image": "bb:1", "Cmd": ["sleep", "1"], "Entrypoint": None, "Env": ["A=B", "affinity:container!=~nosuch"], "Labels": {"a": "b"},
    "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}, "WorkingDir": "/", "User": "0", "Tty": False, "OpenStdin": True, "Hostname": "h",
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 10**9, "Timeout": 10**9, "Retries": 1}, "StopSignal": "SIGTERM", "StopTimeout": 1,
    "HostConfig": {
        "Binds": ["vol:/b:ro"], "Memory": 10**8, "MemoryReservation": 10**7, "NanoCpus": 10**9, "NetworkMode": "none", "AutoRemove": False,
        "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}, "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 1},
        "Mounts": [{"Type": "volume", "Source": "vol", "Target": "/m"}, {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"Mode": 9}}],
        "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}], "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
        "ExtraHosts": ["h:10.0.0.1"], "Dns": ["8.8.8.8"], "CapAdd": ["NET_ADMIN"], "CapDrop": ["ALL"], "Tmpfs": {"/u": "size=1m"},
        "ShmSize": 10**6, "VolumesFrom": ["web"], "Links": None, "Init": True, "PidsLimit": 10, "GroupAdd": ["g"], "Privileged": False,
    },
    "NetworkingConfig": {"EndpointsConfig": {"none": {"Aliases": ["x"], "IPAMConfig": {"IPv4Address": "10.0.0.9"}}}},
}  # fmt: skip
VOLUME: Json = {"Name": "fuzzed", "Driver": "local", "DriverOpts": {"type": "tmpfs", "device": "tmpfs"}, "Labels": {"a": "b"}}
BRIDGE: Json = {
    "Name": "fuzzed", "Driver": "bridge", "CheckDuplicate": True, "Internal": True, "Attachable": False, "EnableIPv6": False,
    "Labels": {"a": "b"}, "Options": {"com.docker.network.driver.mtu": "1400"},
    "IPAM": {"Driver": "default", "Config": [{"Subnet": "10.88.0.0/24", "Gateway": "10.88.0.1", "IPRange": "10.88.0.64/26"}]},
}  # fmt: skip
_BODIES: dict[str, Json] = {
    "exec": {"Cmd": ["true"], "Env": ["A=B"], "AttachStdout": True, "Tty": False, "User": "0", "WorkingDir": "/", "Privileged": False},
    "start": {"Detach": True, "Tty": False},
    "update": {"Memory": 10**8, "MemorySwap": 2 * 10**8, "CpuShares": 100, "RestartPolicy": {"Name": "no"}, "PidsLimit": 10},
    "commit": {"Cmd": ["true"], "Env": ["A=B"], "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}},
    "connect": {"Container": "web", "EndpointConfig": {"Aliases": ["x"], "IPAMConfig": {"IPv4Address": "10.88.0.9"}, "Links": None}},
    "disconnect": {"Container": "web", "Force": True},
    "auth": {"username": "u", "password": "p", "serveraddress": "127.0.0.1:1"},
}  # fmt: skip
_REFERENCES = (
    "web", "vol", "br", "bb:1", "nosuch", "node-a%2Fweb", "node-a/web", "nosuch/web", "{id}", "{short}", "%00", "%2e%2e", "%20", "x" * 300,
    "a%2Fb%2Fc", "%F0%9F%90%B3", "sha256:" + "0" * 64, "bb:1@sha256:00", "UPPER",
)  # fmt: skip
_FLAGS = (
    "all", "limit", "size", "since", "before", "until", "stdout", "stderr", "timestamps", "tail", "details", "path", "force", "v", "link",
    "noprune", "signal", "t", "name", "h", "w", "condition", "repo", "tag", "fromSrc", "container", "comment", "changes", "verbose",
    "scope", "ps_args", "one-shot", "node", "platform", "names", "quiet", "dangling", "type", "digests",
)  # fmt: skip
_VALUES = (*QUERY_VALUES, "web", "vol", "bb:1", "/etc/hosts", "node-a", "SIGKILL", "KILL", "removed", "linux/amd64", "a/b", "-", "5")
_FILTER_KEYS = (
    "name", "id", "label", "label!", "status", "ancestor", "before", "since", "exited", "health", "network", "volume", "publish", "expose",
    "dangling", "reference", "until", "driver", "type", "scope", "node", "all", "is-task", "bogus", "",
)  # fmt: skip
# path, methods that make sense there, and the good body
_BELOW_CONTAINER = (
    ("GET", "/json", None), ("GET", "/top", None), ("GET", "/logs", None), ("GET", "/changes", None), ("GET", "/stats?stream=0", None),
    ("GET", "/archive", None), ("HEAD", "/archive", None), ("PUT", "/archive", "tar"), ("POST", "/start", None),
    ("POST", "/stop", None), ("POST", "/kill", None), ("POST", "/restart", None), ("POST", "/pause", None), ("POST", "/unpause", None),
    ("POST", "/rename", None), ("POST", "/resize", None), ("POST", "/update", "update"), ("POST", "/exec", "exec"), ("DELETE", "", None),
    ("POST", "/nonsense", None), ("GET", "/", None), ("PATCH", "/json", None),
)  # fmt: skip
_ELSEWHERE = (
    ("GET", "/containers/json", None), ("POST", "/containers/prune", None), ("POST", "/commit", "commit"), ("GET", "/images/json", None),
    ("GET", "/images/{}/json", None), ("GET", "/images/{}/history", None), ("POST", "/images/{}/tag", None), ("DELETE", "/images/{}", None),
    ("POST", "/images/prune", None), ("POST", "/images/load", "tar"), ("POST", "/images/create?fromSrc=-", "tar"),
    ("GET", "/images/{}/get", None), ("GET", "/images/get", None), ("POST", "/images/{}/push", None),
    ("POST", "/images/create?fromImage=127.0.0.1:1/x", None),
    ("GET", "/volumes", None), ("GET", "/volumes/{}", None), ("DELETE", "/volumes/{}", None), ("POST", "/volumes/prune", None),
    ("PUT", "/volumes/{}", "commit"), ("GET", "/networks", None), ("GET", "/networks/{}", None), ("DELETE", "/networks/{}", None),
    ("POST", "/networks/{}/connect", "connect"), ("POST", "/networks/{}/disconnect", "disconnect"), ("POST", "/networks/prune", None),
    ("GET", "/exec/{}/json", None), ("POST", "/exec/{}/start", "start"), ("POST", "/exec/{}/resize", None), ("GET", "/system/df", None),
    ("GET", "/events?until=1", None), ("GET", "/info", None), ("GET", "/version", None), ("POST", "/auth", "auth"),
    ("POST", "/build", "tar"), ("POST", "/build/prune", None), ("POST", "/build/cancel", None), ("GET", "/plugins", None),
    ("HEAD", "/_ping", None), ("GET", "/nonsense", None), ("GET", "/distribution/127.0.0.1:1%2Fx/json", None),
)  # fmt: skip


@st.composite
def _queries(draw: st.DrawFn) -> list[str]:
    flags = draw(st.lists(st.sampled_from(_FLAGS), max_size=3, unique=True))
    parts = [f"{flag}={quote(draw(st.sampled_from(_VALUES)), safe='%/')}" for flag in flags]
    if draw(st.integers(0, 2)) == 0:
        keys = draw(st.lists(st.sampled_from(_FILTER_KEYS), max_size=2))
        values = st.lists(st.sampled_from(("web", "vol", "x", "true", "running", "1", "a=b", "", "80/tcp"))) | st.sampled_from(VALUES)
        parts.append("filters=" + quote(json.dumps({key: draw(values) for key in keys})))
    return parts


@st.composite
def requests(draw: st.DrawFn) -> Request:
    version = draw(st.sampled_from(("", "", "/v1.24", "/v1.41", "/v1.44", "/v1.50")))
    kind = draw(st.sampled_from(("create", "create", "volume", "network", "container", "container", "other", "other")))
    query = draw(_queries())
    match kind:
        case "create":
            path, body = "/containers/create", draw(bodies(CONTAINER))
            query = [part for part in query if not part.startswith("name=")] + draw(
                st.sampled_from(([], ["name=fuzzed"], ["name=web"], ["name=%00"]))
            )
            return Request("POST", version + _with(path, query), body)
        case "volume":
            return Request("POST", version + _with("/volumes/create", query), draw(bodies(VOLUME)))
        case "network":
            return Request("POST", version + _with("/networks/create", query), draw(bodies(BRIDGE)))
        case "container":
            method, below, good = draw(st.sampled_from(_BELOW_CONTAINER))
            path = f"/containers/{draw(st.sampled_from(_REFERENCES))}{below}"
        case _:
            method, path, good = draw(st.sampled_from(_ELSEWHERE))
            path = path.replace("{}", draw(st.sampled_from(_REFERENCES)))
    body = b""
    if good == "tar":
        body = draw(st.sampled_from((b"", b"\x00" * 1024, b"no archive", b"\x1f\x8b\x08", b"{}")))
    elif good is not None:
        body = draw(bodies(_BODIES[good]))
    return Request(method, version + _with(path, query), body)


def _with(path: str, query: list[str]) -> str:
    return path + ("&" if "?" in path else "?") + "&".join(query) if query else path
