"""A compose file as structs: read, variables put in, checked. What nobody here can do is named, not dropped in silence.

Pure. Source: compose-spec (the schema), Compose file format 3.x, docker/cli cli/compose (which fields a swarm takes). Scalars are those
of YAML 1.2, as in Go's reader: `yes` and `22:22` are text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec
import yaml

from orchestrator.errors import ConfigError
from orchestrator.stacks.interpolate import interpolate, names_in

Scalar: TypeAlias = str | int | float | bool | None
Pairs: TypeAlias = dict[str, Scalar] | list[str]
Text: TypeAlias = str | int | float
Words: TypeAlias = str | list[str]

# a file of nested aliases unfolds without end ("a billion laughs")
_MAX_VALUES = 200_000
_MAX_BYTES = 4 * 1024 * 1024


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Port(_Part, frozen=True):
    target: int
    published: str | int = ""
    protocol: str = "tcp"
    mode: str = "ingress"
    host_ip: str = ""
    name: str = ""
    app_protocol: str = ""


class Bind(_Part, frozen=True):
    propagation: str = ""
    create_host_path: bool = True


class VolumeMount(_Part, frozen=True):
    nocopy: bool = False
    subpath: str = ""
    labels: Pairs | None = None


class Tmpfs(_Part, frozen=True):
    size: Text = 0
    mode: int = 0


class Mount(_Part, frozen=True):
    type: str
    target: str
    source: str = ""
    read_only: bool = False
    consistency: str = ""
    bind: Bind | None = None
    volume: VolumeMount | None = None
    tmpfs: Tmpfs | None = None


class FileReference(_Part, frozen=True):
    """How a service uses a secret or config. mode: as in `0440`, which YAML reads as an octal number."""

    source: str
    target: str = ""
    uid: Text = ""
    gid: Text = ""
    mode: str | int | None = None


class Attached(_Part, frozen=True):
    aliases: list[str] | None = None
    driver_opts: dict[str, Scalar] | None = None
    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_ips: list[str] | None = None
    mac_address: str = ""
    priority: float = 0
    gw_priority: float = 0
    interface_name: str = ""


class Healthcheck(_Part, frozen=True):
    test: Words | None = None
    interval: str = ""
    timeout: str = ""
    retries: int = 0
    start_period: str = ""
    start_interval: str = ""
    disable: bool = False


class Logging(_Part, frozen=True):
    driver: str = ""
    options: dict[str, Scalar] | None = None


class Amounts(_Part, frozen=True):
    cpus: Text = ""
    memory: Text = ""
    pids: int = 0
    generic_resources: list[dict[str, Any]] | None = None
    devices: list[dict[str, Any]] | None = None


class Resources(_Part, frozen=True):
    limits: Amounts | None = None
    reservations: Amounts | None = None


class Update(_Part, frozen=True):
    parallelism: int | None = None
    delay: str = ""
    failure_action: str = ""
    monitor: str = ""
    max_failure_ratio: float = 0.0
    order: str = ""


class Restart(_Part, frozen=True):
    condition: str = ""
    delay: str = ""
    max_attempts: int | None = None
    window: str = ""


class Placement(_Part, frozen=True):
    constraints: list[str] | None = None
    preferences: list[dict[str, str]] | None = None
    max_replicas_per_node: int = 0


class Deploy(_Part, frozen=True):
    mode: str = "replicated"
    replicas: int | None = None
    labels: Pairs | None = None
    endpoint_mode: str = ""
    update_config: Update | None = None
    rollback_config: Update | None = None
    resources: Resources | None = None
    restart_policy: Restart | None = None
    placement: Placement | None = None


class EnvFile(_Part, frozen=True):
    path: str
    required: bool = True
    format: str = ""


class Service(_Part, frozen=True):
    image: str = ""
    command: Words | None = None
    entrypoint: Words | None = None
    environment: Pairs | None = None
    env_file: str | list[str | EnvFile] | None = None
    labels: Pairs | None = None
    deploy: Deploy | None = None
    ports: list[str | int | Port] | None = None
    volumes: list[str | Mount] | None = None
    tmpfs: Words | None = None
    networks: list[str] | dict[str, Attached | None] | None = None
    secrets: list[str | FileReference] | None = None
    configs: list[str | FileReference] | None = None
    healthcheck: Healthcheck | None = None
    hostname: str = ""
    domainname: str = ""
    user: Text = ""
    group_add: list[Text] | None = None
    working_dir: str = ""
    stop_signal: str = ""
    stop_grace_period: str = ""
    init: bool | None = None
    tty: bool = False
    stdin_open: bool = False
    read_only: bool = False
    extra_hosts: list[str] | dict[str, str | list[str]] | None = None
    dns: Words | None = None
    dns_search: Words | None = None
    dns_opt: list[str] | None = None
    cap_add: list[str] | None = None
    cap_drop: list[str] | None = None
    sysctls: Pairs | None = None
    ulimits: dict[str, int | dict[str, int]] | None = None
    oom_score_adj: int = 0
    isolation: str = ""
    logging: Logging | None = None
    restart: str | bool = ""
    scale: int | None = None
    cpus: Text = ""
    mem_limit: Text = ""
    mem_reservation: Text = ""
    pids_limit: int = 0
    # given to the container by labels of ours (`run_options`)
    privileged: bool = False
    devices: list[str | dict[str, str]] | None = None
    shm_size: Text = ""
    pid: str = ""
    ipc: str = ""
    cgroup: str = ""
    cgroup_parent: str = ""
    cpu_shares: int = 0
    cpuset: str = ""
    device_cgroup_rules: list[str] | None = None
    gpus: str | list[dict[str, Any]] | None = None
    memswap_limit: Text = ""
    mem_swappiness: int | None = None
    oom_kill_disable: bool = False
    runtime: str = ""
    security_opt: list[str] | None = None
    storage_opt: dict[str, Scalar] | None = None
    userns_mode: str = ""
    uts: str = ""
    network_mode: str = ""


class External(_Part, frozen=True):
    name: str = ""


class Network(_Part, frozen=True):
    name: str = ""
    driver: str = ""
    driver_opts: dict[str, Scalar] | None = None
    external: bool | External = False
    internal: bool = False
    attachable: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    ipam: dict[str, Any] | None = None
    labels: Pairs | None = None


class Volume(_Part, frozen=True):
    name: str = ""
    driver: str = ""
    driver_opts: dict[str, Scalar] | None = None
    external: bool | External = False
    labels: Pairs | None = None


class File(_Part, frozen=True):
    """A secret or a config: exactly one of file, content, environment and external says where it comes from."""

    name: str = ""
    file: str = ""
    content: str | None = None
    environment: str = ""
    external: bool | External = False
    labels: Pairs | None = None
    template_driver: str = ""
    driver: str = ""
    driver_opts: dict[str, Scalar] | None = None


class Compose(_Part, frozen=True):
    version: Text = ""
    name: str = ""
    services: dict[str, Service] = {}
    networks: dict[str, Network | None] = {}
    volumes: dict[str, Volume | None] = {}
    secrets: dict[str, File] = {}
    configs: dict[str, File] = {}


# fields of a service that the specification has and a cluster of services can't or needn't have: why, for the warning
_IGNORED = {
    "annotations": "the Engine's swarm containers have none",
    "attach": "it is for `docker compose up`",
    "build": "images are built beforehand: `docker build`, `docker push`",
    "blkio_config": "set the label com.meshd.run.blkio-weight",
    "container_name": "tasks are named by service and slot",
    "cpu_count": "it is Windows'",
    "cpu_percent": "it is Windows'",
    "cpu_period": "set deploy.resources.limits.cpus",
    "cpu_quota": "set deploy.resources.limits.cpus",
    "cpu_rt_period": "real-time scheduling isn't offered",
    "cpu_rt_runtime": "real-time scheduling isn't offered",
    "credential_spec": "it is Windows'",
    "depends_on": "services start in any order and may come and go: let the program wait for its peers",
    "develop": "it is for `docker compose watch`",
    "expose": "services of one network reach each other on all ports",
    "extends": "merge the files beforehand: `docker compose config`",
    "external_links": "services of one network reach each other by name",
    "label_file": "write the labels into the file",
    "links": "services of one network reach each other by name; use networks.NAME.aliases for more names",
    "mac_address": "addresses are the cluster's to give",
    "models": "there is no model runner",
    "platform": "use deploy.placement.constraints: node.platform.arch==...",
    "post_start": "there are no hooks",
    "pre_stop": "there are no hooks: use stop_signal and stop_grace_period",
    "profiles": "a stack is deployed whole",
    "provider": "there are no providers",
    "pull_policy": "nodes pull an image when they have none of that name",
    "use_api_socket": "containers don't get the Engine's socket",
    "volumes_from": "use volumes",
}
_IGNORED_AT_TOP = {
    "include": "merge the files beforehand: `docker compose config`",
    "models": "there is no model runner",
}

T = TypeVar("T")


def read(text: str, variables: Mapping[str, str]) -> tuple[Compose, list[str]]:
    """The file and what has to be said about it. ConfigError names the place and what was expected there."""
    document = document_of(text)
    missing: set[str] = set()
    warnings: list[str] = []
    values = _interpolated(document, variables, missing)
    warnings += [f"the variable {name} is not set: it is taken for an empty text" for name in sorted(missing)]
    values = {key: value for key, value in values.items() if not key.startswith("x-")}
    _set_aside(values, _IGNORED_AT_TOP, "", warnings)
    for section in ("services", "networks", "volumes", "secrets", "configs"):
        if values.get(section) is None:
            values.pop(section, None)
        elif not isinstance(values[section], dict):
            raise ConfigError(f"{section} must be a mapping of names")
    for name, service in values.get("services", {}).items():
        if not isinstance(service, dict):
            raise ConfigError(f"services.{name} must be a mapping")
        _set_aside(service, _IGNORED, f"services.{name}.", warnings)
    compose = _as_struct(values)
    if not compose.services:
        raise ConfigError("the file has no services")
    return compose, warnings


def document_of(text: str) -> dict[str, Any]:
    """The YAML as it stands. ConfigError."""
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"a compose file has at most {_MAX_BYTES} bytes")
    try:
        document = yaml.load(text, Loader=_Yaml12)
    except yaml.YAMLError as error:
        raise ConfigError(f"this is no YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError("this YAML is nested too deeply") from None
    if not isinstance(document, dict):
        raise ConfigError("a compose file is a mapping with services")
    return document


class Needs(msgspec.Struct, frozen=True):
    """What has to be sent along with a file. env_files, contents (of secrets and configs): paths as they are written, variables and all."""

    env_files: list[str]
    contents: list[str]
    variables: set[str]


def needs_of(text: str) -> Needs:
    """Of a file that was not read yet; what is malformed is left for `read` to refuse. ConfigError: no YAML."""
    document = document_of(text)
    env_files: list[str] = []
    variables = names_in(text)
    for service in _members(document.get("services")):
        given = service.get("env_file")
        for entry in given if isinstance(given, list) else [given]:
            path = entry.get("path") if isinstance(entry, dict) else entry
            if isinstance(path, str):
                env_files.append(path)
        # a name without a value stands for the variable's
        environment = service.get("environment")
        if isinstance(environment, list):
            variables |= {entry for entry in environment if isinstance(entry, str) and "=" not in entry}
        elif isinstance(environment, dict):
            variables |= {str(name) for name, value in environment.items() if value is None}
    files = [entry for section in ("secrets", "configs") for entry in _members(document.get(section))]
    variables |= {entry["environment"] for entry in files if isinstance(entry.get("environment"), str)}
    return Needs(env_files, [entry["file"] for entry in files if isinstance(entry.get("file"), str)], variables)


def _members(section: object) -> list[dict[str, Any]]:
    return [member for member in section.values() if isinstance(member, dict)] if isinstance(section, dict) else []


def _set_aside(values: dict[str, Any], ignored: Mapping[str, str], where: str, warnings: list[str]) -> None:
    for key in list(values):
        if key in ignored:
            del values[key]
            warnings.append(f"{where}{key} is ignored: {ignored[key]}")


def _interpolated(document: dict[str, Any], variables: Mapping[str, str], missing: set[str]) -> dict[str, Any]:
    count = 0

    def walk(value: Any, path: str) -> Any:
        nonlocal count
        count += 1
        if count > _MAX_VALUES:
            raise ConfigError(f"the file has more than {_MAX_VALUES} values")
        if isinstance(value, dict):
            walked = {}
            for key, member in value.items():
                if not isinstance(key, str):
                    raise ConfigError(f"{path or 'the file'}: {key!r} must be a text to be a name here: put it in quotes")
                if not key.startswith("x-") or path.count(".") > 1:
                    walked[key] = walk(member, f"{path}.{key}" if path else key)
            return walked
        if isinstance(value, list):
            return [walk(member, f"{path}[{number}]") for number, member in enumerate(value)]
        if isinstance(value, str):
            try:
                return interpolate(value, variables, missing)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
        return value

    walked: dict[str, Any] = walk(document, "")
    return walked


def _as_struct(values: dict[str, Any]) -> Compose:
    for section, cls in _SECTIONS.items():
        for name, member in values.get(section, {}).items():
            _converted(member, cls, f"{section}.{name}")
    return _converted(values, Compose, "")


def _converted(value: Any, cls: type[T], where: str) -> T:
    try:
        # not strict: a variable's value is text, also where a number or a truth is expected
        return msgspec.convert(value, cls, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_words(str(error), where)) from None


def _words(text: str, where: str) -> str:
    """msgspec's "Object contains unknown field `imge` - at `$.deploy`" as the path one writes it at, with a suggestion."""
    message, _, place = text.partition(" - at ")
    path = f"{where}{place.strip('`').removeprefix('$').replace('[...]', '.*')}".removeprefix(".") or "the file"
    unknown = re.search(r"unknown field `(.*)`", message)
    if unknown is None:
        return f"{path}: {message[:1].lower()}{message[1:]}"
    known: list[str] = [field for cls in _PARTS for field in cls.__struct_fields__]
    close = difflib.get_close_matches(unknown[1], known, 1)
    return f"{path}: there is no field {unknown[1]!r}" + (f": is it {close[0]!r}?" if close else "; a field of your own begins with x-")


_SECTIONS: dict[str, Any] = {"services": Service, "networks": Network | None, "volumes": Volume | None, "secrets": File, "configs": File}
_PARTS = (Compose, Service, Deploy, Network, Volume, File, Port, Mount, Healthcheck, Update, Restart, Placement, Resources, Amounts)


class _Yaml12(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where `on` is true, `12:30` is 750 and a date is a date."""


_Yaml12.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*|0o[0-7]+|0x[0-9a-fA-F]+|0[0-7]+)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    _Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
