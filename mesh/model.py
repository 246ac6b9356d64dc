"""The desired state of one node's data plane, as plain values.

Pure: no I/O. `NodeState` is what a caller wants; `mesh.render` turns it into kernel tables; nothing here knows how.
Addresses and subnets are strings in their canonical text form ("10.0.1.5", "10.0.1.0/24", "fd00::5"); both families are allowed
everywhere. Every collection is a tuple; order never matters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Protocol = Literal["tcp", "udp", "sctp"]
Balancer = Literal["ipvs", "nftables"]
IpvsScheduler = Literal["rr", "wrr", "lc", "wlc", "sh", "mh"]


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A container (or any network namespace) of this node that takes part in a network.

    `netns` is a path that setns(2) accepts ("/proc/123/ns/net", "/run/netns/x"). The namespace must exist before `apply`.
    `id` is unique in its network and names the host-side link. `default_route` is not given here: it is the sandbox's.
    """

    id: str
    address: str
    netns: str


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """An address that lives behind another node: a task, or that node's own LB address (`balancer`). `vtep` is the node's underlay
    address."""

    address: str
    vtep: str
    balancer: bool = False


@dataclass(frozen=True, slots=True)
class Backend:
    """An address that serves a virtual service. weight 0 = draining: no new connections, existing ones go on."""

    address: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class VirtualService:
    """A VIP of a network, balanced over its backends for all ports and protocols. No backends: connections are refused at once."""

    vip: str
    backends: tuple[Backend, ...] = ()
    scheduler: IpvsScheduler = "rr"
    affinity_s: int = 0


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the routing mesh: open on every node, balanced over backends on the ingress network (`target` is their port).

    Backends see the client's address where the balancer is IPVS, unless `source_nat` asks for the node's LB address instead.
    """

    protocol: Protocol
    published: int
    target: int
    backends: tuple[Backend, ...] = ()
    scheduler: IpvsScheduler = "rr"
    source_nat: bool = False


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host-mode port: only this node's own addresses, straight to one local container. `sandbox` names it."""

    protocol: Protocol
    published: int
    target: int
    sandbox: str


@dataclass(frozen=True, slots=True)
class Network:
    """One overlay network as this node sees it.

    `lb_address` is the node's own address on it. `mtu` None = underlay MTU minus encapsulation. Exactly one network of a
    NodeState may have `ingress=True`: published ports are balanced there. `encrypted`: between nodes only through WireGuard
    (`NodeState.encryption`), or not at all; the VTEPs of its remote endpoints are tunnel addresses.
    """

    id: str
    vni: int
    subnets: tuple[str, ...]
    lb_address: str
    mtu: int | None = None
    ingress: bool = False
    local: tuple[LocalEndpoint, ...] = ()
    remote: tuple[RemoteEndpoint, ...] = ()
    services: tuple[VirtualService, ...] = ()
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class EncryptionPeer:
    """Another node with encrypted networks. `address`: its tunnel address; `underlay`: where its WireGuard listens; `keys`: public keys
    (base64), one for each device, "" while there is none."""

    address: str
    underlay: str
    keys: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Encryption:
    """The two WireGuard devices that encrypted networks are carried by. `address`: this node's tunnel address, IPv6; `keys`: private keys
    (base64), one for each device; `active`: the device that packets leave by. The other one can be given other keys meanwhile.
    `port`: UDP port of the first device; the second has the next one."""

    address: str
    keys: tuple[str, str] = field(repr=False)
    active: Literal[0, 1] = 0
    peers: tuple[EncryptionPeer, ...] = ()
    # 51820 is left to a VPN of the machine's owner; this is Cilium's
    port: int = 51871


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A local container's network namespace as a whole: its way out (gateway link, masqueraded) whatever networks it joined.

    `gateway` False: no way out (it joined only internal networks).
    """

    id: str
    netns: str
    gateway: bool = True


@dataclass(frozen=True, slots=True)
class NodeState:
    """Everything the data plane of one node should be. `underlay` is this node's own VTEP address."""

    underlay: str
    networks: tuple[Network, ...] = ()
    sandboxes: tuple[Sandbox, ...] = ()
    published: tuple[PublishedPort, ...] = ()
    host_ports: tuple[HostPort, ...] = ()
    balancer: Balancer = "nftables"
    vxlan_port: int = 4789
    gateway_subnet: str = "172.30.0.0/16"
    encryption: Encryption | None = None
