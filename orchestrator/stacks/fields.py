"""Fields of a compose file as Docker's: pairs and words, mounts in one line, health checks, resources, placement.

Pure. Source: docker/cli cli/compose/{convert,loader}. ConfigError says what was expected.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.model import (
    DiscreteGenericResource,
    GenericResource,
    HealthConfig,
    Limit,
    PlacementPreference,
    ResourceObject,
    ResourceRequirements,
    RestartPolicy,
    SpreadOver,
    Ulimit,
    UpdateConfig,
)
from orchestrator.model import Placement as PlacementSpec
from orchestrator.run_options import PREFIX as RUN
from orchestrator.stacks import compose
from orchestrator.stacks.compose import Pairs, Words
from orchestrator.stacks.units import cpus_ns, duration_ns, size_bytes

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def external_name(part: compose.Network | compose.Volume | compose.File, key: str) -> str:
    named = part.external.name if isinstance(part.external, compose.External) else ""
    return part.name or named or key


def maybe_pairs(given: Pairs | None, where: str) -> dict[str, str | None]:
    """A mapping, or a list of `name=value` and `name` (None)."""
    if isinstance(given, list):
        split = [entry.partition("=") for entry in given]
        if any(not name for name, _, _ in split):
            raise ConfigError(f"{where}: expected name=value")
        return {name: value if sign else None for name, sign, value in split}
    return {name: None if value is None else text(value) for name, value in (given or {}).items()}


def pairs(given: Pairs | None, where: str) -> dict[str, str]:
    return {name: value or "" for name, value in maybe_pairs(given, where).items()}


def texts(given: Mapping[str, compose.Scalar] | None) -> dict[str, str] | None:
    return {name: "" if value is None else text(value) for name, value in given.items()} if given else None


def text(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def words(given: Words | None) -> list[str] | None:
    return [given] if isinstance(given, str) else given


def command(given: Words | None) -> list[str] | None:
    if not isinstance(given, str):
        return given
    try:
        return shlex.split(given)
    except ValueError as error:
        raise ConfigError(f"the command {given!r} can't be split into words: {error}") from None


def capabilities(given: list[str] | None) -> list[str] | None:
    """docker/cli opts/capabilities.go: upper case, with CAP_; sorted."""
    upper = sorted({name.upper() for name in given or ()})
    return [name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}" for name in upper] or None


def octal(where: str, value: str | int) -> int:
    if isinstance(value, int):
        return value
    if value and not re.fullmatch(r"0?o?[0-7]{1,5}", value):
        raise ConfigError(f"{where} {value!r}: expected an octal number such as 0440")
    return int(value.replace("o", ""), 8) if value else 0


def env_file(path: str, content: bytes) -> dict[str, str | None]:
    """NAME=value lines; None: a name alone. ConfigError with the line."""
    given: dict[str, str | None] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, sign, value = text.partition("=")
        if not _VARIABLE.fullmatch(name.strip()):
            raise ConfigError(f"env_file {path}, line {number}: expected NAME=value")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        given[name.strip()] = value if sign else None
    return given


def short_mount(text: str) -> compose.Mount:
    """[source:]target[:options]"""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise ConfigError(f"volumes: {text!r}: expected [source:]target[:options]")
    if len(parts) == 1:
        return compose.Mount(type="volume", target=parts[0])
    source, target, *rest = parts
    options = rest[0].split(",") if rest else []
    is_path = source[0] in "/.~"
    known = {"ro", "rw", "nocopy", "z", "Z", "cached", "delegated", "consistent"} | _PROPAGATIONS
    for option in options:
        if option not in known:
            raise ConfigError(f"volumes: {text!r}: unknown option {option!r}")
    propagation = next((option for option in options if option in _PROPAGATIONS), "")
    return compose.Mount(
        type="bind" if is_path else "volume",
        source=source,
        target=target,
        read_only="ro" in options,
        bind=compose.Bind(propagation=propagation) if is_path and propagation else None,
        volume=compose.VolumeMount(nocopy=True) if not is_path and "nocopy" in options else None,
    )


_PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})


def hosts(given: list[str] | dict[str, str | list[str]] | None) -> list[str]:
    """As the Engine's file of hosts has them: "address name"."""
    pairs: list[tuple[str, str]] = []
    if isinstance(given, dict):
        for name, addresses in given.items():
            pairs += [(name, address) for address in ([addresses] if isinstance(addresses, str) else addresses)]
    else:
        for entry in given or ():
            name, sign, address = entry.partition("=") if "=" in entry else entry.partition(":")
            if not sign:
                raise ConfigError(f"extra_hosts: {entry!r}: expected name:address")
            pairs.append((name, address))
    return [f"{address.strip('[]')} {name}" for name, address in pairs]


def ulimits(given: dict[str, int | dict[str, int]] | None) -> list[Ulimit]:
    limits = []
    for name, value in sorted((given or {}).items()):
        soft, hard = (value, value) if isinstance(value, int) else (value.get("soft", 0), value.get("hard", 0))
        limits.append(Ulimit(name=name, soft=soft, hard=hard))
    return limits


def healthcheck(given: compose.Healthcheck | None) -> HealthConfig | None:
    if given is None:
        return None
    if given.disable:
        if given.test:
            raise ConfigError("healthcheck: disable and test don't go together")
        return HealthConfig(test=["NONE"])
    test = ["CMD-SHELL", given.test] if isinstance(given.test, str) else given.test
    return HealthConfig(
        test=test,
        interval=duration_ns("healthcheck.interval", given.interval),
        timeout=duration_ns("healthcheck.timeout", given.timeout),
        retries=given.retries,
        start_period=duration_ns("healthcheck.start_period", given.start_period),
        start_interval=duration_ns("healthcheck.start_interval", given.start_interval),
    )


def resources(service: compose.Service, deploy: compose.Deploy) -> ResourceRequirements | None:
    limits = (deploy.resources.limits if deploy.resources else None) or compose.Amounts()
    reserved = (deploy.resources.reservations if deploy.resources else None) or compose.Amounts()
    for amounts, where in ((limits, "limits"), (reserved, "reservations")):
        if amounts.devices:
            raise ConfigError(f"deploy.resources.{where}.devices: for GPUs write gpus: all, or generic_resources")
    limit = Limit(
        nano_cpus=cpus_ns("cpus", limits.cpus or service.cpus),
        memory_bytes=size_bytes("memory", limits.memory or service.mem_limit),
        pids=limits.pids or service.pids_limit,
    )
    kept = ResourceObject(
        nano_cpus=cpus_ns("cpus", reserved.cpus),
        memory_bytes=size_bytes("memory", reserved.memory or service.mem_reservation),
        generic_resources=generic(reserved.generic_resources) or None,
    )
    if limit == Limit() and kept == ResourceObject():
        return None
    return ResourceRequirements(limits=limit if limit != Limit() else None, reservations=kept if kept != ResourceObject() else None)


def generic(given: list[dict[str, Any]] | None) -> list[GenericResource]:
    resources = []
    for entry in given or ():
        discrete = entry.get("discrete_resource_spec")
        if not isinstance(discrete, dict) or not isinstance(discrete.get("kind"), str):
            raise ConfigError("generic_resources: expected discrete_resource_spec with kind and value")
        try:
            amount = int(discrete.get("value", 0))
        except (TypeError, ValueError):
            raise ConfigError(f"generic_resources: {discrete.get('value')!r} is no number") from None
        resources.append(GenericResource(discrete_resource_spec=DiscreteGenericResource(kind=discrete["kind"], value=amount)))
    return resources


def restart_policy(service: compose.Service, deploy: compose.Deploy) -> RestartPolicy | None:
    given = deploy.restart_policy
    if given is not None:
        return RestartPolicy(
            condition=given.condition,
            delay=duration_ns("restart_policy.delay", given.delay) if given.delay else None,
            max_attempts=given.max_attempts,
            window=duration_ns("restart_policy.window", given.window) if given.window else None,
        )
    text = "no" if service.restart is False else str(service.restart)
    name, _, attempts = text.partition(":")
    if attempts and (name != "on-failure" or not attempts.isdigit()):
        raise ConfigError(f"restart {text!r}: only on-failure:N counts")
    match name:
        case "":
            return None
        case "no":
            return RestartPolicy(condition="none")
        case "always" | "unless-stopped":
            return RestartPolicy(condition="any")
        case "on-failure":
            return RestartPolicy(condition="on-failure", max_attempts=int(attempts) if attempts else None)
        case _:
            raise ConfigError(f"restart {text!r}: there are no, always, unless-stopped and on-failure[:N]")


def update(given: compose.Update | None) -> UpdateConfig | None:
    if given is None:
        return None
    return UpdateConfig(
        parallelism=1 if given.parallelism is None else given.parallelism,
        delay=duration_ns("delay", given.delay),
        failure_action=given.failure_action,
        monitor=duration_ns("monitor", given.monitor),
        max_failure_ratio=given.max_failure_ratio,
        order=given.order,
    )


def placement(given: compose.Placement | None) -> PlacementSpec | None:
    if given is None:
        return None
    preferences = []
    for entry in given.preferences or ():
        if set(entry) != {"spread"}:
            raise ConfigError("deploy.placement.preferences: expected spread: node.labels.NAME")
        preferences.append(PlacementPreference(spread=SpreadOver(spread_descriptor=entry["spread"])))
    return PlacementSpec(constraints=given.constraints or None, preferences=preferences or None, max_replicas=given.max_replicas_per_node)


def ipam(key: str, given: dict[str, Any]) -> dict[str, Any]:
    sent: dict[str, Any] = {}
    if given.get("driver"):
        sent["Driver"] = str(given["driver"])
    if given.get("options"):
        sent["Options"] = given["options"]
    pools = given.get("config") or []
    if not isinstance(pools, list) or not all(isinstance(pool, dict) for pool in pools):
        raise ConfigError(f"networks.{key}.ipam.config: expected a list of mappings with subnet")
    names = {"subnet": "Subnet", "gateway": "Gateway", "ip_range": "IPRange", "aux_addresses": "AuxiliaryAddresses"}
    for pool in pools:
        if unknown := sorted(pool.keys() - names.keys()):
            raise ConfigError(f"networks.{key}.ipam.config: there is no field {unknown[0]!r}: there are {', '.join(names)}")
    if pools:
        sent["Config"] = [{names[field]: value for field, value in pool.items()} for pool in pools]
    return sent


def run_labels(service: compose.Service) -> dict[str, str]:
    """What `docker run` can and a service can't: our labels for it."""
    given: dict[str, str] = {}

    def add(option: str, value: str | None) -> None:
        if value:
            given[f"{RUN}{option}"] = value

    add("privileged", "true" if service.privileged else None)
    add("devices", ",".join(device_text(given) for given in service.devices or ()))
    add("shm-size", str(service.shm_size) if service.shm_size else None)
    for option, value in (
        ("pid", service.pid), ("ipc", service.ipc), ("cgroupns", service.cgroup), ("cgroup-parent", service.cgroup_parent),
        ("cpuset-cpus", service.cpuset), ("runtime", service.runtime), ("userns", service.userns_mode), ("uts", service.uts),
    ):  # fmt: skip
        add(option, value)
    add("cpu-shares", str(service.cpu_shares) if service.cpu_shares else None)
    add("device-cgroup-rules", ",".join(service.device_cgroup_rules or ()))
    add("memory-swap", str(service.memswap_limit) if service.memswap_limit else None)
    add("memory-swappiness", str(service.mem_swappiness) if service.mem_swappiness is not None else None)
    add("oom-kill-disable", "true" if service.oom_kill_disable else None)
    add("security-opt", ",".join(service.security_opt or ()))
    add("storage-opt", ",".join(f"{name}={value}" for name, value in (texts(service.storage_opt) or {}).items()))
    if service.gpus:
        if not isinstance(service.gpus, str):
            raise ConfigError("gpus: expected all; for some of them use deploy.resources.reservations.generic_resources")
        add("gpus", service.gpus)
    return given


def device_text(given: str | dict[str, str]) -> str:
    if isinstance(given, str):
        return given
    source = given.get("source", "")
    return ":".join([source, given.get("target", source), given.get("permissions", "rwm")])
