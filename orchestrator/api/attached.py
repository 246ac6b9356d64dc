"""`docker run --network <overlay>`: the request as the attachment that managers and agents know, and as what the node's Engine is asked.

Pure: no I/O. The Engine knows nothing of the cluster's networks: it makes a container without network whose first process is held at a
gate (`agent.hold`), and the agent brings the network when it starts. What a client is shown is in `attached_views`. Source:
Docker Engine API 1.44, ContainerCreate; moby daemon/commit.go (merge), daemon/container.go.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from orchestrator.agent import hold
from orchestrator.agent.container_spec import DNS_ADDRESS, LABEL_ADDRESS, LABEL_ATTACHMENT, LABEL_CLUSTER
from orchestrator.agent.task_files import gate
from orchestrator.api import validate
from orchestrator.api.views import Json
from orchestrator.errors import ApiError
from orchestrator.model import (
    ContainerSpec,
    DNSConfig,
    Network,
    NetworkAttachmentConfig,
    NetworkAttachmentSpec,
    Node,
    PortConfig,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)

RUNTIME = "attachment"
# how many words of the command line are the entrypoint's
LABEL_ENTRYPOINT = "io.meshd.entrypoint"
_LOCAL = frozenset({"", *validate.PREDEFINED_NETWORKS})


class _IpamConfig(msgspec.Struct, rename="pascal", frozen=True):
    ipv4_address: str = msgspec.field(default="", name="IPv4Address")
    ipv6_address: str = msgspec.field(default="", name="IPv6Address")


class Endpoint(msgspec.Struct, rename="pascal", frozen=True):
    """What is asked of one network: EndpointSettings, as far as it is for an overlay to say."""

    ipam_config: _IpamConfig | None = msgspec.field(default=None, name="IPAMConfig")
    aliases: list[str] | None = None
    links: list[str] | None = None
    mac_address: str = ""


class _PortBinding(msgspec.Struct, rename="pascal", frozen=True):
    host_ip: str = ""
    host_port: str = ""


class _HostConfig(msgspec.Struct, rename="pascal", frozen=True):
    network_mode: str = ""
    port_bindings: dict[str, list[_PortBinding] | None] | None = None
    publish_all_ports: bool = False
    links: list[str] | None = None
    dns: list[str] | None = None


class _NetworkingConfig(msgspec.Struct, rename="pascal", frozen=True):
    endpoints_config: dict[str, Endpoint | None] | None = None


class Wanted(msgspec.Struct, rename="pascal", frozen=True):
    """A request for a container, as far as attaching it is concerned."""

    image: str = ""
    entrypoint: list[str] | str | None = None
    cmd: list[str] | str | None = None
    env: list[str] | None = None
    mac_address: str = ""
    host_config: _HostConfig = _HostConfig()
    networking_config: _NetworkingConfig = _NetworkingConfig()

    def networks(self) -> dict[str, Endpoint]:
        """By the names or ids the client used; those of the node itself left out."""
        given = self.networking_config.endpoints_config or {}
        names = {self.host_config.network_mode: None, **given}
        return {name: given.get(name) or Endpoint() for name in names if name not in _LOCAL and ":" not in name}


class ImageConfig(msgspec.Struct, rename="pascal", frozen=True):
    """What a container inherits."""

    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    env: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """A network of the cluster, what is asked of it, and what the client called it."""

    network: Network
    endpoint: Endpoint
    called: str = ""


def joins(wanted: Wanted, found: Mapping[str, Network]) -> list[Join]:
    """`found`: the cluster's networks by what the client called them. Empty: none is asked for. ApiError: it can't be done so."""
    asked = wanted.networks()
    overlays = {name: found[name] for name in asked if name in found}
    if not overlays:
        return []
    others = sorted(asked.keys() - overlays.keys())
    if others:
        raise ApiError(
            400, f"networks of the cluster ({', '.join(overlays)}) and of a node ({', '.join(others)}) can't be joined by one container"
        )
    if wanted.host_config.publish_all_ports:
        raise ApiError(400, "ports of a container on an overlay network are published one by one: name them with -p instead of -P")
    if wanted.host_config.links:
        raise ApiError(400, "links are not supported on overlay networks: containers there find each other by name")
    if wanted.mac_address:
        raise _mac_address()
    joined = {network.id: Join(network, asked[name], name) for name, network in overlays.items()}
    for join in joined.values():
        check(join)
    return list(joined.values())


def check(join: Join) -> None:
    """ApiError unless a container may join so."""
    if not join.network.attachable or join.network.ingress:
        raise ApiError(
            403,
            f"Could not attach to network {join.network.name}: rpc error: code = PermissionDenied desc = network {join.network.name} "
            "not manually attachable",
        )
    if join.endpoint.mac_address:
        raise _mac_address()
    if join.endpoint.links:
        raise ApiError(400, "links are not supported on overlay networks: containers there find each other by name")
    for address in _addresses(join.endpoint):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ApiError(400, f"invalid endpoint settings: invalid IP address: {address}") from None


def config(join: Join) -> NetworkAttachmentConfig:
    return NetworkAttachmentConfig(
        target=join.network.id, aliases=join.endpoint.aliases or None, mesh_addresses=_addresses(join.endpoint) or None
    )


def attachment(
    id: str, node_id: str, name: str, joined: Iterable[Join], now: datetime, *, wanted: Wanted | None = None, container_id: str = "",
    image: ImageConfig | None = None,
) -> Task:  # fmt: skip
    """The task of a container that is to be made (`wanted` of `image`), or of one that is there."""
    wanted, image = wanted or Wanted(), image or ImageConfig()
    dns = wanted.host_config.dns
    return Task(
        id=id,
        created_at=now,
        updated_at=now,
        name=name,
        node_id=node_id,
        spec=TaskSpec(
            runtime=RUNTIME,
            container_spec=ContainerSpec(image=wanted.image, dns_config=DNSConfig(nameservers=dns) if dns else None),
            network_attachment_spec=NetworkAttachmentSpec(
                container_id=container_id, mesh_environment=hold.put_back([*(image.env or ()), *(wanted.env or ())]) or None
            ),
            networks=[config(join) for join in joined],
        ),
        status=TaskStatus(timestamp=now, state=TaskState.NEW, message="created"),
        desired_state=TaskState.RUNNING,
        mesh_endpoint_ports=_ports(wanted.host_config.port_bindings or {}) or None,
    )


def held(sent: Json, wanted: Wanted, image: ImageConfig, task: Task, node: Node, cluster_id: str) -> Json:
    """The body for the Engine of `node`; the task's addresses are known. ApiError: it has nothing to run."""
    entrypoint, command = command_line(wanted, image)
    sent = _spelled(sent, "HostConfig", "Labels", "Entrypoint", "Cmd", "NetworkingConfig")
    host = _spelled(sent.get("HostConfig") or {}, "NetworkMode", "PortBindings", "Mounts", "Dns", "DnsOptions")
    options = list(host.get("DnsOptions") or ())
    if not any(option.startswith("ndots:") for option in options):
        options.append("ndots:0")
    mount = {"Type": "bind", "Source": str(gate(Path(node.description.mesh_tasks_dir), task.id)), "Target": hold.MOUNT, "ReadOnly": True}
    addresses = _attached_addresses(task)
    return {
        **sent,
        "Entrypoint": list(hold.ENTRYPOINT),
        "Cmd": [*entrypoint, *command],
        "Labels": {
            **(sent.get("Labels") or {}),
            LABEL_CLUSTER: cluster_id,
            LABEL_ATTACHMENT: task.id,
            LABEL_ADDRESS: addresses[0] if addresses else "",
            LABEL_ENTRYPOINT: str(len(entrypoint)),
        },
        "HostConfig": {
            **host,
            "NetworkMode": "none",
            "PortBindings": {},
            "Mounts": [*(host.get("Mounts") or ()), mount],
            "Dns": [DNS_ADDRESS],
            "DnsOptions": options,
        },
        "NetworkingConfig": {},
    }


def _spelled(sent: Json, *names: str) -> Json:
    """With these members' names as Docker writes them: an Engine takes them in any case, but not twice."""
    spelled = {name.lower(): name for name in names}
    return {spelled.get(key.lower(), key): value for key, value in sent.items()}


def command_line(wanted: Wanted, image: ImageConfig) -> tuple[list[str], list[str]]:
    """(entrypoint, command) that the Engine would run: an empty entrypoint takes the image's away, any other its command, too."""
    entrypoint, command = _listed(wanted.entrypoint), _listed(wanted.cmd)
    if not entrypoint:
        command = command or image.cmd
        if entrypoint is None:
            entrypoint = image.entrypoint
    if entrypoint == [""]:
        entrypoint = []
    if not entrypoint and not command:
        raise ApiError(400, "no command specified")
    return entrypoint or [], command or []


# ---- parts -----------------------------------------------------------------------------------------------------------------------


def _addresses(endpoint: Endpoint) -> list[str]:
    asked = endpoint.ipam_config
    return [address for address in (asked.ipv4_address, asked.ipv6_address) if address] if asked is not None else []


def _attached_addresses(task: Task) -> list[str]:
    return [address.partition("/")[0] for attached in task.networks_attachments or () for address in attached.addresses or ()]


def _ports(bindings: Mapping[str, Sequence[_PortBinding] | None]) -> list[PortConfig]:
    """`-p 8080:80` as a port of the node; the mesh brings it to the container."""
    ports = []
    for exposed, published in sorted(bindings.items()):
        target, _, protocol = exposed.partition("/")
        for binding in published or ():
            if binding.host_ip not in ("", "0.0.0.0", "::"):
                raise ApiError(
                    400,
                    f"a port of a container on an overlay network is published on all of its node's addresses, not on {binding.host_ip}",
                )
            if not (target.isdigit() and binding.host_port.isdigit() and int(binding.host_port)):
                raise ApiError(400, f"port {exposed} of a container on an overlay network needs a host port: -p PORT:{target}")
            ports.append(
                PortConfig(protocol=protocol or "tcp", target_port=int(target), published_port=int(binding.host_port), publish_mode="host")
            )
    return ports


def _listed(value: list[str] | str | None) -> list[str] | None:
    """Go's strslice: one text is a list of one."""
    return [value] if isinstance(value, str) else value


def _mac_address() -> ApiError:
    return ApiError(400, "the MAC address of a container on an overlay network follows from its address and can't be chosen")
