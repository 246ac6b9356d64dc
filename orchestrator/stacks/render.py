"""A compose file as the objects of a cluster: services, networks, secrets, configs, under their names in the stack.

Pure. Source: docker/cli cli/compose/convert: the same names (`stack_service`), labels and defaults, so that `docker stack` sees these
stacks as its own. Other than there, secrets and configs carry a digest of their content in their names: new content is a new object,
which the services are updated to, and the old one is still there to return to.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from orchestrator.errors import ConfigError
from orchestrator.model import (
    BindOptions,
    ConfigReference,
    ContainerSpec,
    DiscreteGenericResource,
    DNSConfig,
    Driver,
    EndpointSpec,
    FileTarget,
    GenericResource,
    GlobalJob,
    GlobalService,
    HealthConfig,
    Limit,
    Mount,
    NetworkAttachmentConfig,
    PlacementPreference,
    PortConfig,
    ReplicatedJob,
    ReplicatedService,
    ResourceObject,
    ResourceRequirements,
    RestartPolicy,
    SecretReference,
    ServiceMode,
    ServiceSpec,
    SpreadOver,
    StackFile,
    StackNetwork,
    StackParts,
    TaskSpec,
    TmpfsOptions,
    Ulimit,
    UpdateConfig,
    VolumeOptions,
)
from orchestrator.model import Placement as PlacementSpec
from orchestrator.run_options import PREFIX as RUN
from orchestrator.stacks import compose
from orchestrator.stacks.compose import Compose, Pairs, Words
from orchestrator.stacks.units import cpus_ns, duration_ns, port_range, size_bytes

# docker/cli cli/compose/convert: what belongs to a stack carries its name in this label
NAMESPACE = "com.docker.stack.namespace"
IMAGE = "com.docker.stack.image"
DEFAULT_NETWORK = "default"
_STACK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_Reference = TypeVar("_Reference", SecretReference, ConfigReference)


def stack_name(name: str) -> str:
    """ConfigError: no name for a stack."""
    if not _STACK_NAME.fullmatch(name) or len(name) > 40:
        raise ConfigError(f"invalid stack name {name!r}: up to 40 of a-z, 0-9, _ and -, beginning with a letter or a digit")
    return name


def render(
    stack: str, file: Compose, variables: Mapping[str, str], files: Mapping[str, bytes], directory: str = ""
) -> tuple[StackParts, dict[str, bytes], list[str]]:
    """(the stack's objects, contents of its secrets and configs by their names, warnings).

    files: what the file names, by path as written there. directory: where its relative paths start. ConfigError: what is wrong, where.
    """
    reading = _Reading(stack_name(stack), file, variables, files, directory)
    services = [reading.service(name, service) for name, service in sorted(file.services.items())]
    secrets, configs = (reading.used_files(section) for section in ("secrets", "configs"))
    return (
        StackParts(services=services, networks=reading.networks(), secrets=secrets, configs=configs),
        reading.contents,
        reading.warnings,
    )


class _Reading:
    def __init__(self, stack: str, file: Compose, variables: Mapping[str, str], files: Mapping[str, bytes], directory: str) -> None:
        self._stack, self._file, self._variables, self._files, self._directory = stack, file, variables, files, directory
        self.warnings: list[str] = []
        self.contents: dict[str, bytes] = {}
        self._used_networks: set[str] = set()
        self._used_files: dict[str, dict[str, StackFile]] = {"secrets": {}, "configs": {}}

    # ---- services ----------------------------------------------------------------------------------------------------------------

    def service(self, name: str, service: compose.Service) -> ServiceSpec:
        where = f"services.{name}"
        try:
            return self._service(name, service)
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from None

    def _service(self, name: str, service: compose.Service) -> ServiceSpec:
        if not service.image:
            raise ConfigError("image is missing: build it, push it, and name it here")
        deploy = service.deploy or compose.Deploy()
        mode = self._mode(service, deploy)
        template = TaskSpec(
            container_spec=self._container(name, service),
            resources=_resources(service, deploy),
            restart_policy=_restart_policy(service, deploy),
            placement=_placement(deploy.placement),
            networks=self._attachments(name, service),
            log_driver=Driver(name=service.logging.driver, options=_texts(service.logging.options)) if service.logging else None,
        )
        return ServiceSpec(
            name=f"{self._stack}_{name}",
            labels={**_pairs(deploy.labels, "deploy.labels"), NAMESPACE: self._stack, IMAGE: service.image},
            task_template=template,
            mode=mode,
            update_config=_update(deploy.update_config),
            rollback_config=_update(deploy.rollback_config),
            endpoint_spec=EndpointSpec(mode=deploy.endpoint_mode, ports=self._ports(name, service)),
        )

    @staticmethod
    def _mode(service: compose.Service, deploy: compose.Deploy) -> ServiceMode:
        replicas = deploy.replicas if deploy.replicas is not None else service.scale
        if deploy.mode in ("global", "global-job") and replicas is not None:
            raise ConfigError(f"replicas can't be given for mode {deploy.mode}: it runs once on every node")
        match deploy.mode:
            case "replicated":
                return ServiceMode(replicated=ReplicatedService(replicas=replicas))
            case "global":
                return ServiceMode(global_=GlobalService())
            case "replicated-job":
                return ServiceMode(replicated_job=ReplicatedJob(max_concurrent=replicas, total_completions=replicas))
            case "global-job":
                return ServiceMode(global_job=GlobalJob())
            case _:
                raise ConfigError(f"deploy.mode {deploy.mode!r}: there are replicated, global, replicated-job and global-job")

    def _container(self, name: str, service: compose.Service) -> ContainerSpec:
        labels = {**_pairs(service.labels, "labels"), **_run_labels(service), NAMESPACE: self._stack}
        dns = DNSConfig(nameservers=_words(service.dns), search=_words(service.dns_search), options=service.dns_opt)
        if service.domainname:
            self.warnings.append(f"services.{name}.domainname is ignored: write hostname: {service.hostname or name}.{service.domainname}")
        return ContainerSpec(
            image=service.image,
            labels=labels,
            command=_command(service.entrypoint),
            args=_command(service.command),
            hostname=service.hostname,
            env=self._environment(service) or None,
            dir=service.working_dir,
            user=str(service.user),
            groups=[str(group) for group in service.group_add] if service.group_add else None,
            init=service.init,
            stop_signal=service.stop_signal,
            tty=service.tty,
            open_stdin=service.stdin_open,
            read_only=service.read_only,
            mounts=self._mounts(service) or None,
            stop_grace_period=duration_ns("stop_grace_period", service.stop_grace_period) if service.stop_grace_period else None,
            healthcheck=_healthcheck(service.healthcheck),
            hosts=_hosts(service.extra_hosts) or None,
            dns_config=dns if dns != DNSConfig() else None,
            secrets=self._references(service.secrets, "secrets", SecretReference, "secret") or None,
            configs=self._references(service.configs, "configs", ConfigReference, "config") or None,
            isolation=service.isolation,
            sysctls=_pairs(service.sysctls, "sysctls") or None,
            capability_add=_capabilities(service.cap_add),
            capability_drop=_capabilities(service.cap_drop),
            ulimits=_ulimits(service.ulimits) or None,
            oom_score_adj=service.oom_score_adj,
        )

    def _environment(self, service: compose.Service) -> list[str]:
        """A name without a value takes the variable's, or is left out."""
        given: dict[str, str | None] = {}
        env_files = service.env_file if isinstance(service.env_file, list) else [service.env_file] if service.env_file else []
        for entry in env_files:
            path, required = (entry.path, entry.required) if isinstance(entry, compose.EnvFile) else (entry, True)
            if path in self._files:
                given.update(env_file(path, self._files[path]))
            elif required:
                raise ConfigError(f"env_file {path} was not sent along")
        given.update(_maybe_pairs(service.environment, "environment"))
        known = {name: self._variables.get(name) if value is None else value for name, value in given.items()}
        return [f"{name}={value}" for name, value in sorted(known.items()) if value is not None]

    def _ports(self, name: str, service: compose.Service) -> list[PortConfig] | None:
        ports: list[PortConfig] = []
        for given in service.ports or ():
            if isinstance(given, compose.Port):
                if given.host_ip:
                    self._no_host_ip(name, given.host_ip)
                published = list(port_range(str(given.published))) if given.published else [0]
                if len(published) > 1:
                    raise ConfigError(f"ports: published {given.published} names more than one port: write the short form")
                ports.append(
                    PortConfig(
                        name=given.name,
                        protocol=given.protocol,
                        target_port=given.target,
                        published_port=published[0],
                        publish_mode="host" if given.mode == "host" else given.mode,
                    )
                )
            else:
                ports += self._short_port(name, str(given))
        return sorted(ports, key=lambda port: (port.published_port, port.target_port, port.protocol)) or None

    def _short_port(self, name: str, text: str) -> list[PortConfig]:
        """[[IP:]published[-last]:]target[-last][/protocol]"""
        ports, _, protocol = text.partition("/")
        outside, _, inside = ports.rpartition(":")
        address, _, outside = outside.rpartition(":")
        if address:
            self._no_host_ip(name, address)
        targets = port_range(inside)
        published: Sequence[int] = port_range(outside) if outside else [0] * len(targets)
        if len(published) != len(targets):
            raise ConfigError(f"ports: {text}: {len(published)} published ports for {len(targets)} of the container")
        return [
            PortConfig(protocol=protocol or "tcp", target_port=target, published_port=port, publish_mode="ingress")
            for port, target in zip(published, targets, strict=True)
        ]

    def _no_host_ip(self, name: str, address: str) -> None:
        self.warnings.append(f"services.{name}.ports: the address {address} is ignored: a published port works on every node")

    # ---- volumes ------------------------------------------------------------------------------------------------------------------

    def _mounts(self, service: compose.Service) -> list[Mount]:
        mounts = [self._mount(given if isinstance(given, compose.Mount) else _short_mount(given)) for given in service.volumes or ()]
        for given in _words(service.tmpfs) or ():
            target, _, options = given.partition(":")
            size = next((option.removeprefix("size=") for option in options.split(",") if option.startswith("size=")), "")
            mode = next((option.removeprefix("mode=") for option in options.split(",") if option.startswith("mode=")), "")
            sized = TmpfsOptions(size_bytes=size_bytes("tmpfs size", size) if size else 0, mode=_octal("tmpfs mode", mode))
            mounts.append(Mount(type="tmpfs", target=target, tmpfs_options=sized if sized != TmpfsOptions() else None))
        return mounts

    def _mount(self, given: compose.Mount) -> Mount:
        if not given.target.startswith("/"):
            raise ConfigError(f"volumes: the target {given.target!r} must be absolute")
        common = {"target": given.target, "read_only": given.read_only, "consistency": given.consistency}
        match given.type:
            case "bind":
                options = BindOptions(propagation=given.bind.propagation) if given.bind and given.bind.propagation else None
                return Mount(type="bind", source=self._path(given.source), bind_options=options, **common)  # type: ignore[arg-type]
            case "volume":
                source, options_of = self._volume(given)
                return Mount(type="volume", source=source, volume_options=options_of, **common)  # type: ignore[arg-type]
            case "tmpfs":
                tmpfs = given.tmpfs
                sized = TmpfsOptions(size_bytes=size_bytes("tmpfs.size", tmpfs.size), mode=tmpfs.mode) if tmpfs else None
                return Mount(type="tmpfs", tmpfs_options=sized, **common)  # type: ignore[arg-type]
            case _:
                raise ConfigError(f"volumes: type {given.type!r} of {given.target}: there are volume, bind and tmpfs")

    def _path(self, path: str) -> str:
        if path.startswith("/"):
            return path
        if path.startswith("~") or not self._directory:
            raise ConfigError(f"volumes: {path!r} is not a path that every node could know: begin it with /")
        joined = f"{self._directory.rstrip('/')}/{path}"
        parts: list[str] = []
        for part in joined.split("/"):
            if part == "..":
                parts = parts[:-1] if len(parts) > 1 else parts
            elif part != ".":
                parts.append(part)
        return "/".join(parts)

    def _volume(self, given: compose.Mount) -> tuple[str, VolumeOptions | None]:
        nocopy = given.volume.nocopy if given.volume else False
        subpath = given.volume.subpath if given.volume else ""
        if not given.source:
            options = VolumeOptions(no_copy=nocopy, subpath=subpath)
            return "", options if options != VolumeOptions() else None
        if given.source not in self._file.volumes:
            raise ConfigError(f"volumes: undefined volume {given.source!r}: name it below volumes:, at the top")
        volume = self._file.volumes[given.source] or compose.Volume()
        if volume.external:
            options = VolumeOptions(no_copy=nocopy, subpath=subpath)
            return _external_name(volume, given.source), options if options != VolumeOptions() else None
        driver = Driver(name=volume.driver, options=_texts(volume.driver_opts)) if volume.driver or volume.driver_opts else None
        labels = {**_pairs(volume.labels, f"volumes.{given.source}.labels"), NAMESPACE: self._stack}
        return (
            volume.name or f"{self._stack}_{given.source}",
            VolumeOptions(no_copy=nocopy, subpath=subpath, labels=labels, driver_config=driver),
        )

    # ---- networks -----------------------------------------------------------------------------------------------------------------

    def _attachments(self, name: str, service: compose.Service) -> list[NetworkAttachmentConfig] | None:
        if service.network_mode:
            if service.network_mode == "none":
                return None
            if service.network_mode != "host":
                raise ConfigError(f"network_mode {service.network_mode!r}: services have networks, or network_mode: host")
            return [NetworkAttachmentConfig(target="host")]
        given = service.networks
        if not given:
            given = [DEFAULT_NETWORK]
        wanted: dict[str, compose.Attached | None] = dict.fromkeys(given) if isinstance(given, list) else given
        attachments = []
        for key, attached in sorted(wanted.items()):
            if key not in self._file.networks and key != DEFAULT_NETWORK:
                raise ConfigError(f"networks: undefined network {key!r}: name it below networks:, at the top")
            self._used_networks.add(key)
            attached = attached or compose.Attached()
            for field in ("ipv4_address", "ipv6_address", "link_local_ips", "mac_address"):
                if getattr(attached, field):
                    self.warnings.append(f"services.{name}.networks.{key}.{field} is ignored: tasks get their addresses from the cluster")
            options = _texts(attached.driver_opts)
            target = self._network_name(key)
            aliases = sorted({*(attached.aliases or ()), name}) if target != "host" else None
            attachments.append(NetworkAttachmentConfig(target=target, aliases=aliases, driver_opts=options))
        return attachments

    def _network_name(self, key: str) -> str:
        network = self._file.networks.get(key) or compose.Network()
        if network.external:
            return _external_name(network, key)
        return network.name or f"{self._stack}_{key}"

    def networks(self) -> list[StackNetwork]:
        rendered = []
        for key in sorted({*self._file.networks, *self._used_networks}):
            network = self._file.networks.get(key) or compose.Network()
            if key not in self._used_networks:
                self.warnings.append(f"networks.{key} is used by no service: it is not created")
                continue
            name = self._network_name(key)
            if network.external or name == "host":
                rendered.append(StackNetwork(name=name, external=True))
                continue
            if network.driver not in ("", "overlay"):
                raise ConfigError(f"networks.{key}: driver {network.driver!r}: the networks of services are overlays")
            sent: dict[str, Any] = {
                "Name": name,
                "Driver": "overlay",
                "Labels": {**_pairs(network.labels, f"networks.{key}.labels"), NAMESPACE: self._stack},
            }
            if network.driver_opts:
                sent["Options"] = _texts(network.driver_opts)
            for flag, value in (("Internal", network.internal), ("Attachable", network.attachable), ("EnableIPv6", network.enable_ipv6)):
                if value:
                    sent[flag] = True
            if network.ipam:
                sent["IPAM"] = _ipam(key, network.ipam)
            rendered.append(StackNetwork(name=name, sent=sent))
        return rendered

    # ---- secrets and configs --------------------------------------------------------------------------------------------------------

    def _references(
        self, given: list[str | compose.FileReference] | None, section: str, cls: type[_Reference], what: str
    ) -> list[_Reference]:
        references = []
        for entry in given or ():
            reference = entry if isinstance(entry, compose.FileReference) else compose.FileReference(source=entry)
            file = self._file_of(reference.source, section)
            default = reference.source if section == "secrets" else f"/{reference.source}"
            target = FileTarget(
                name=reference.target or default,
                uid=str(reference.uid) or "0",
                gid=str(reference.gid) or "0",
                mode=_octal(f"{section}.mode", reference.mode) if reference.mode is not None else 0o444,
            )
            # the object's id is not known before it is in the store
            references.append(cls(file=target, **{f"{what}_name": file.name}))  # type: ignore[arg-type]
        return sorted(references, key=lambda reference: reference.file.name if reference.file else "")

    def _file_of(self, key: str, section: str) -> StackFile:
        known = self._used_files[section]
        if key in known:
            return known[key]
        files = self._file.secrets if section == "secrets" else self._file.configs
        if key not in files:
            raise ConfigError(f"{section}: undefined {section[:-1]} {key!r}: name it below {section}:, at the top")
        file = files[key]
        if file.external:
            known[key] = StackFile(name=_external_name(file, key), external=True)
            return known[key]
        if file.driver or file.driver_opts:
            raise ConfigError(f"{section}.{key}: drivers of secrets are not supported: give file, content or environment")
        content = self._content(key, section, file)
        digest = hashlib.sha256(content).hexdigest()[:10]
        name = f"{file.name or f'{self._stack}_{key}'}-{digest}"
        labels = {**_pairs(file.labels, f"{section}.{key}.labels"), NAMESPACE: self._stack}
        known[key] = StackFile(name=name, labels=labels, template_driver=file.template_driver)
        self.contents[name] = content
        return known[key]

    def _content(self, key: str, section: str, file: compose.File) -> bytes:
        sources = [source for source in (file.file, file.environment) if source]
        if len(sources) + (file.content is not None) != 1:
            raise ConfigError(f"{section}.{key}: exactly one of file, content, environment and external says what it is")
        if file.content is not None:
            return file.content.encode()
        if file.environment:
            if file.environment not in self._variables:
                raise ConfigError(f"{section}.{key}: the variable {file.environment} is not set")
            return self._variables[file.environment].encode()
        if file.file not in self._files:
            raise ConfigError(f"{section}.{key}: the file {file.file} was not sent along")
        return self._files[file.file]

    def used_files(self, section: str) -> list[StackFile]:
        files = self._file.secrets if section == "secrets" else self._file.configs
        for key in sorted(files.keys() - self._used_files[section].keys()):
            self.warnings.append(f"{section}.{key} is used by no service: it is not created")
        return [file for _, file in sorted(self._used_files[section].items())]


# ---- fields -----------------------------------------------------------------------------------------------------------------------


def _external_name(part: compose.Network | compose.Volume | compose.File, key: str) -> str:
    named = part.external.name if isinstance(part.external, compose.External) else ""
    return part.name or named or key


def _maybe_pairs(given: Pairs | None, where: str) -> dict[str, str | None]:
    """A mapping, or a list of `name=value` and `name` (None)."""
    if isinstance(given, list):
        split = [entry.partition("=") for entry in given]
        if any(not name for name, _, _ in split):
            raise ConfigError(f"{where}: expected name=value")
        return {name: value if sign else None for name, sign, value in split}
    return {name: None if value is None else _text(value) for name, value in (given or {}).items()}


def _pairs(given: Pairs | None, where: str) -> dict[str, str]:
    return {name: value or "" for name, value in _maybe_pairs(given, where).items()}


def _texts(given: Mapping[str, compose.Scalar] | None) -> dict[str, str] | None:
    return {name: "" if value is None else _text(value) for name, value in given.items()} if given else None


def _text(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _words(given: Words | None) -> list[str] | None:
    return [given] if isinstance(given, str) else given


def _command(given: Words | None) -> list[str] | None:
    if not isinstance(given, str):
        return given
    try:
        return shlex.split(given)
    except ValueError as error:
        raise ConfigError(f"the command {given!r} can't be split into words: {error}") from None


def _capabilities(given: list[str] | None) -> list[str] | None:
    """docker/cli opts/capabilities.go: upper case, with CAP_; sorted."""
    upper = sorted({name.upper() for name in given or ()})
    return [name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}" for name in upper] or None


def _octal(where: str, value: str | int) -> int:
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


def _short_mount(text: str) -> compose.Mount:
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


def _hosts(given: list[str] | dict[str, str | list[str]] | None) -> list[str]:
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


def _ulimits(given: dict[str, int | dict[str, int]] | None) -> list[Ulimit]:
    limits = []
    for name, value in sorted((given or {}).items()):
        soft, hard = (value, value) if isinstance(value, int) else (value.get("soft", 0), value.get("hard", 0))
        limits.append(Ulimit(name=name, soft=soft, hard=hard))
    return limits


def _healthcheck(given: compose.Healthcheck | None) -> HealthConfig | None:
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


def _resources(service: compose.Service, deploy: compose.Deploy) -> ResourceRequirements | None:
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
        generic_resources=_generic(reserved.generic_resources) or None,
    )
    if limit == Limit() and kept == ResourceObject():
        return None
    return ResourceRequirements(limits=limit if limit != Limit() else None, reservations=kept if kept != ResourceObject() else None)


def _generic(given: list[dict[str, Any]] | None) -> list[GenericResource]:
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


def _restart_policy(service: compose.Service, deploy: compose.Deploy) -> RestartPolicy | None:
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


def _update(given: compose.Update | None) -> UpdateConfig | None:
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


def _placement(given: compose.Placement | None) -> PlacementSpec | None:
    if given is None:
        return None
    preferences = []
    for entry in given.preferences or ():
        if set(entry) != {"spread"}:
            raise ConfigError("deploy.placement.preferences: expected spread: node.labels.NAME")
        preferences.append(PlacementPreference(spread=SpreadOver(spread_descriptor=entry["spread"])))
    return PlacementSpec(constraints=given.constraints or None, preferences=preferences or None, max_replicas=given.max_replicas_per_node)


def _ipam(key: str, given: dict[str, Any]) -> dict[str, Any]:
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


def _run_labels(service: compose.Service) -> dict[str, str]:
    """What `docker run` can and a service can't: our labels for it."""
    given: dict[str, str] = {}

    def add(option: str, value: str | None) -> None:
        if value:
            given[f"{RUN}{option}"] = value

    add("privileged", "true" if service.privileged else None)
    add("devices", ",".join(_device(device) for device in service.devices or ()))
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
    add("storage-opt", ",".join(f"{name}={value}" for name, value in (_texts(service.storage_opt) or {}).items()))
    if service.gpus:
        if not isinstance(service.gpus, str):
            raise ConfigError("gpus: expected all; for some of them use deploy.resources.reservations.generic_resources")
        add("gpus", service.gpus)
    return given


def _device(given: str | dict[str, str]) -> str:
    if isinstance(given, str):
        return given
    source = given.get("source", "")
    return ":".join([source, given.get("target", source), given.get("permissions", "rwm")])
