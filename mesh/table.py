"""What the kernel holds for us, as comparable values: the common language of render, plan and the adapters.

Pure: no I/O. A table exists twice, as desired (`mesh.render`) and as actual (`mesh.linux.kernel`); `mesh.plan` compares them.
Whatever can't be compared (rule text the kernel rewrites, names that are chosen on the spot) is left out of equality.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

HOST = ""
"""Name of the host namespace in `Tables`. Other keys: a name under the namespace directory, or a container's path (`is_container`)."""

BRIDGE = "br0"
TUNNEL = "vx0"
UPLINK = "uplink"
ENCRYPTION = "+encryption"
"""What the namespace of the WireGuard devices is called after the prefix; no network's id has a '+'."""

WIREGUARDS = ("wg0", "wg1")
OWN_NAMESPACE = 0
"""`Attachment.netns_id` of a link into a namespace of ours: that is known by its name."""


@dataclass(frozen=True, slots=True)
class Bridge:
    name: str
    mac: str
    mtu: int
    up: bool = True


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The VXLAN device of a network: created in the host namespace, or that for encryption (its underlay socket stays there; where, is told
    by `local`, which no two namespaces have), living in the network's."""

    vni: int
    local: str
    port: int
    mtu: int
    bridged: bool = True
    up: bool = True
    encrypted: bool = field(compare=False, default=False)

    @property
    def identity(self) -> tuple[object, ...]:
        """What can't be changed of a device that is there."""
        return self.vni, self.local, self.port


@dataclass(frozen=True, slots=True)
class WireGuard:
    """A WireGuard device: created in the host namespace (its UDP socket stays there), living in the one for encryption. `private_key`:
    base64; shown to nobody."""

    private_key: str = field(repr=False)
    port: int
    mtu: int
    address: str
    up: bool = True


@dataclass(frozen=True, slots=True)
class Peer:
    """Of a WireGuard device. endpoint: (address, UDP port). allowed: CIDRs that packets may come from it with, and go to it by. With
    keepalives the device that carries nothing has a session all the same: it can take over at any packet."""

    endpoint: tuple[str, int]
    allowed: frozenset[str]
    keepalive_s: int = 25


@dataclass(frozen=True, slots=True)
class Attachment:
    """A veth pair: `name` in a namespace of ours, a port of `bridge` if that is given; its inner end in the namespace at `netns`.

    `netns_id` is that namespace's inode: a path that means another namespace today compares unequal. `inner` is the inner end's name,
    or "eth" for the first free ethN. `outer_mac` None = any. `hairpin`: the bridge may send a frame back where it came from. On the inner
    end: `addresses` and on-link `routes` as CIDR, `default_via`; `reply_via`: the default route of the table that answers of published
    ports are routed by (`Policy`).
    """

    name: str
    netns: str
    netns_id: int
    inner: str = field(compare=False)
    mac: str
    mtu: int
    bridge: str | None = None
    outer_mac: str | None = None
    hairpin: bool = False
    addresses: frozenset[str] = frozenset()
    routes: frozenset[str] = frozenset()
    default_via: str | None = None
    reply_via: str | None = None
    up: bool = True


@dataclass(frozen=True, slots=True, order=True)
class Policy:
    """A routing rule in a container. What comes from the address `source` ("" = any) or from the UDP port `udp_port` (0 = any) is routed
    by the table for answers; both empty: by the main table, but not by its default route."""

    priority: int
    source: str = ""
    udp_port: int = 0


@dataclass(frozen=True, slots=True)
class NftRule:
    """One rule. `tag` stands for the text in comparisons: nft prints rules back in its own words, but keeps our comment."""

    tag: str
    text: str = field(compare=False, default="")


@dataclass(frozen=True, slots=True)
class NftChain:
    """`hook` is the base chain's definition ("type nat hook prerouting priority -100; policy accept;"), empty for a plain chain."""

    hook: str = ""
    rules: tuple[NftRule, ...] = ()


@dataclass(frozen=True, slots=True)
class NftMap:
    """A named map, elements as text in nft's numeric form: "10.0.0.9 . 1" -> "10.0.0.4", "10.0.0.9" -> "goto vip-3"."""

    key_type: str
    value_type: str
    elements: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NftTable:
    """`family`: "inet" for packets, "bridge" for frames. `dormant`: somebody switched it off; never desired."""

    name: str
    maps: Mapping[str, NftMap] = field(default_factory=dict)
    chains: Mapping[str, NftChain] = field(default_factory=dict)
    family: str = "inet"
    dormant: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """A kind of tracked connection: to `destination` (a VIP, an LB address; "" = any address of the node) and, where the destination is
    shared by many services, (protocol number, port); answered by `backend` ("" = by nobody behind us: the flow was not translated)."""

    destination: str
    port: tuple[int, int] | None
    backend: str


@dataclass(frozen=True, slots=True, order=True)
class IpvsDestination:
    """`masqueraded`: its address (and port) is put into the packet; else only the frame is addressed to it (direct routing)."""

    address: str
    port: int
    weight: int
    masqueraded: bool = False


@dataclass(frozen=True, slots=True)
class IpvsService:
    """A virtual service keyed by firewall mark. `timeout_s` > 0: one client keeps its backend that long."""

    mark: int
    family: int
    scheduler: str
    timeout_s: int = 0
    destinations: frozenset[IpvsDestination] = frozenset()


@dataclass(frozen=True, slots=True)
class NamespaceTable:
    """Everything of ours in one namespace.

    addresses: CIDRs on the bridge. host_routes: address -> link, on-link routes of single addresses. tunnels: MAC -> VTEP, each
    standing for the tunnel row *and* the bridge row. neighbours: address -> MAC on the tunnel device. sysctls: name -> value, only ever
    set. nft, frames: our tables of the families inet and bridge. flows: desired = the kinds that may exist; actual = the kinds that do.
    engine_accepts: rules of ours in the Engine's DOCKER-USER chain. ipvs_timeout_s: of an idle TCP connection, 0 = not ours to say.
    wireguards: devices by name; peers: by (device, public key).

    Of a container's namespace only `netns_id` (its inode), `policies`, and `nft` are ever filled in.
    """

    bridge: Bridge | None = None
    tunnel: Tunnel | None = None
    attachments: Mapping[str, Attachment] = field(default_factory=dict)
    addresses: Set[str] = frozenset()
    host_routes: Mapping[str, str] = field(default_factory=dict)
    tunnels: Mapping[str, str] = field(default_factory=dict)
    neighbours: Mapping[str, str] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    nft: NftTable | None = None
    frames: NftTable | None = None
    ipvs: Mapping[int, IpvsService] = field(default_factory=dict)
    ipvs_timeout_s: int = 0
    flows: Set[Flow] = frozenset()
    engine_accepts: frozenset[str] = frozenset()
    netns_id: int = 0
    policies: frozenset[Policy] = frozenset()
    wireguards: Mapping[str, WireGuard] = field(default_factory=dict)
    peers: Mapping[tuple[str, str], Peer] = field(default_factory=dict)


def is_container(namespace: str) -> bool:
    """Whether this key of `Tables` is a container's namespace (a path) rather than one of ours (a name) or the host's."""
    return namespace.startswith("/")


Tables = Mapping[str, NamespaceTable]
EMPTY = NamespaceTable()
