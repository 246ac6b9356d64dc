"""A compose file as the objects of a cluster: services, networks, secrets, configs, under their names in the stack.

Pure. Source: docker/cli cli/compose/convert: the same names (`stack_service`), labels and defaults, so that `docker stack` sees these
stacks as its own. Other than there, secrets and configs carry a digest of their content in their names: new content is a new object,
which the services are updated to, and the old one is still there to return to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from orchestrator.errors import ConfigError
from orchestrator.model import (
    BindOptions,
    ConfigReference,
    ContainerSpec,
    DNSConfig,
    Driver,
    EndpointSpec,
    FileTarget,
    GlobalJob,
    GlobalService,
    Mount,
    NetworkAttachmentConfig,
    PortConfig,
    ReplicatedJob,
    ReplicatedService,
    SecretReference,
    ServiceMode,
    ServiceSpec,
    StackFile,
    StackNetwork,
    StackParts,
    TaskSpec,
    TmpfsOptions,
    VolumeOptions,
)
from orchestrator.stacks import compose, fields
from orchestrator.stacks.compose import Compose
from orchestrator.stacks.units import duration_ns, port_range, size_bytes

# docker/cli cli/compose/convert: what belongs to a stack carries its name in this label
NAMESPACE = "com.docker.stack.namespace"
IMAGE = "com.docker.stack.image"
DEFAULT_NETWORK = "default"
_STACK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


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
            resources=fields.resources(service, deploy),
            restart_policy=fields.restart_policy(service, deploy),
            placement=fields.placement(deploy.placement),
            networks=self._attachments(name, service),
            log_driver=Driver(name=service.logging.driver, options=fields.texts(service.logging.options)) if service.logging else None,
        )
        return ServiceSpec(
            name=f"{self._stack}_{name}",
            labels={**fields.pairs(deploy.labels, "deploy.labels"), NAMESPACE: self._stack, IMAGE: service.image},
            task_template=template,
            mode=mode,
            update_config=fields.update(deploy.update_config),
            rollback_config=fields.update(deploy.rollback_config),
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
        labels = {**fields.pairs(service.labels, "labels"), **fields.run_labels(service), NAMESPACE: self._stack}
        dns = DNSConfig(nameservers=fields.words(service.dns), search=fields.words(service.dns_search), options=service.dns_opt)
        if service.domainname:
            self.warnings.append(f"services.{name}.domainname is ignored: write hostname: {service.hostname or name}.{service.domainname}")
        return ContainerSpec(
            image=service.image,
            labels=labels,
            command=fields.command(service.entrypoint),
            args=fields.command(service.command),
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
            healthcheck=fields.healthcheck(service.healthcheck),
            hosts=fields.hosts(service.extra_hosts) or None,
            dns_config=dns if dns != DNSConfig() else None,
            # the objects' ids are not known before they are in the store
            secrets=[SecretReference(file=file, secret_name=name) for file, name in self._targets(service.secrets, "secrets")] or None,
            configs=[ConfigReference(file=file, config_name=name) for file, name in self._targets(service.configs, "configs")] or None,
            isolation=service.isolation,
            sysctls=fields.pairs(service.sysctls, "sysctls") or None,
            capability_add=fields.capabilities(service.cap_add),
            capability_drop=fields.capabilities(service.cap_drop),
            ulimits=fields.ulimits(service.ulimits) or None,
            oom_score_adj=service.oom_score_adj,
        )

    def _environment(self, service: compose.Service) -> list[str]:
        """A name without a value takes the variable's, or is left out."""
        given: dict[str, str | None] = {}
        env_files = service.env_file if isinstance(service.env_file, list) else [service.env_file] if service.env_file else []
        for entry in env_files:
            path, required = (entry.path, entry.required) if isinstance(entry, compose.EnvFile) else (entry, True)
            if path in self._files:
                given.update(fields.env_file(path, self._files[path]))
            elif required:
                raise ConfigError(f"env_file {path} was not sent along")
        given.update(fields.maybe_pairs(service.environment, "environment"))
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
                        publish_mode=given.mode,
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
        mounts = [self._mount(given if isinstance(given, compose.Mount) else fields.short_mount(given)) for given in service.volumes or ()]
        for given in fields.words(service.tmpfs) or ():
            target, _, options = given.partition(":")
            size = next((option.removeprefix("size=") for option in options.split(",") if option.startswith("size=")), "")
            mode = next((option.removeprefix("mode=") for option in options.split(",") if option.startswith("mode=")), "")
            sized = TmpfsOptions(size_bytes=size_bytes("tmpfs size", size) if size else 0, mode=fields.octal("tmpfs mode", mode))
            mounts.append(Mount(type="tmpfs", target=target, tmpfs_options=sized if sized != TmpfsOptions() else None))
        return mounts

    def _mount(self, given: compose.Mount) -> Mount:
        if not given.target.startswith("/"):
            raise ConfigError(f"volumes: the target {given.target!r} must be absolute")
        mount = Mount(type=given.type, target=given.target, read_only=given.read_only, consistency=given.consistency)
        match given.type:
            case "bind":
                options = BindOptions(propagation=given.bind.propagation) if given.bind and given.bind.propagation else None
                return replace(mount, source=self._path(given.source), bind_options=options)
            case "volume":
                source, options_of = self._volume(given)
                return replace(mount, source=source, volume_options=options_of)
            case "tmpfs":
                tmpfs = given.tmpfs
                sized = TmpfsOptions(size_bytes=size_bytes("tmpfs.size", tmpfs.size), mode=tmpfs.mode) if tmpfs else None
                return replace(mount, tmpfs_options=sized)
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
        options = VolumeOptions(no_copy=given.volume.nocopy, subpath=given.volume.subpath) if given.volume else VolumeOptions()
        said = options if options != VolumeOptions() else None
        if not given.source:
            return "", said
        if given.source not in self._file.volumes:
            raise ConfigError(f"volumes: undefined volume {given.source!r}: name it below volumes:, at the top")
        volume = self._file.volumes[given.source] or compose.Volume()
        if volume.external:
            return fields.external_name(volume, given.source), said
        driver = Driver(name=volume.driver, options=fields.texts(volume.driver_opts)) if volume.driver or volume.driver_opts else None
        labels = {**fields.pairs(volume.labels, f"volumes.{given.source}.labels"), NAMESPACE: self._stack}
        return volume.name or f"{self._stack}_{given.source}", replace(options, labels=labels, driver_config=driver)

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
            options = fields.texts(attached.driver_opts)
            target = self._network_name(key)
            aliases = sorted({*(attached.aliases or ()), name}) if target != "host" else None
            attachments.append(NetworkAttachmentConfig(target=target, aliases=aliases, driver_opts=options))
        return attachments

    def _network_name(self, key: str) -> str:
        network = self._file.networks.get(key) or compose.Network()
        if network.external:
            return fields.external_name(network, key)
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
                "Labels": {**fields.pairs(network.labels, f"networks.{key}.labels"), NAMESPACE: self._stack},
            }
            if network.driver_opts:
                sent["Options"] = fields.texts(network.driver_opts)
            for flag, value in (("Internal", network.internal), ("Attachable", network.attachable), ("EnableIPv6", network.enable_ipv6)):
                if value:
                    sent[flag] = True
            if network.ipam:
                sent["IPAM"] = fields.ipam(key, network.ipam)
            rendered.append(StackNetwork(name=name, sent=sent))
        return rendered

    # ---- secrets and configs --------------------------------------------------------------------------------------------------------

    def _targets(self, given: list[str | compose.FileReference] | None, section: str) -> list[tuple[FileTarget, str]]:
        """(where it is in the container, the name of the secret or config)."""
        targets = []
        for entry in given or ():
            reference = entry if isinstance(entry, compose.FileReference) else compose.FileReference(source=entry)
            file = self._file_of(reference.source, section)
            default = reference.source if section == "secrets" else f"/{reference.source}"
            place = FileTarget(
                name=reference.target or default,
                uid=str(reference.uid) or "0",
                gid=str(reference.gid) or "0",
                mode=fields.octal(f"{section}.mode", reference.mode) if reference.mode is not None else 0o444,
            )
            targets.append((place, file.name))
        return sorted(targets, key=lambda target: target[0].name)

    def _file_of(self, key: str, section: str) -> StackFile:
        known = self._used_files[section]
        if key in known:
            return known[key]
        files = self._section(section)
        if key not in files:
            raise ConfigError(f"{section}: undefined {section[:-1]} {key!r}: name it below {section}:, at the top")
        file = files[key]
        if file.external:
            known[key] = StackFile(name=fields.external_name(file, key), external=True)
            return known[key]
        if file.driver or file.driver_opts:
            raise ConfigError(f"{section}.{key}: drivers of secrets are not supported: give file, content or environment")
        content = self._content(key, section, file)
        # a template reads otherwise than the same text
        digest = hashlib.sha256(file.template_driver.encode() + content).hexdigest()[:10]
        name = f"{file.name or f'{self._stack}_{key}'}-{digest}"
        labels = {**fields.pairs(file.labels, f"{section}.{key}.labels"), NAMESPACE: self._stack}
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

    def _section(self, section: str) -> dict[str, compose.File]:
        return self._file.secrets if section == "secrets" else self._file.configs

    def used_files(self, section: str) -> list[StackFile]:
        files = self._section(section)
        for key in sorted(files.keys() - self._used_files[section].keys()):
            self.warnings.append(f"{section}.{key} is used by no service: it is not created")
        return [file for _, file in sorted(self._used_files[section].items())]
