"""Turn the desired state of a node into the tables its kernel should hold.

Pure: `render(state, facts)`. What only the machine knows (MTU of the underlay, inodes of namespaces, which sysctls exist) comes in as
`Facts`. A network or container that can't be rendered is reported and left as it is; it does not stop its siblings. Given the result of a
former call, only members that changed since are rendered; the outcome is the same (`mesh.network`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_network

from mesh import address as addr
from mesh.balance import PROTOCOL_NUMBERS
from mesh.container import render_containers
from mesh.encryption import render_encryption, unable
from mesh.errors import ConfigError, MeshError
from mesh.facts import Facts
from mesh.host import GATEWAY_LINK, frame_rules, host_rules
from mesh.model import HostPort, Network, NodeState, PublishedPort, Sandbox
from mesh.network import RenderedNetwork, render_network, unique
from mesh.table import ENCRYPTION, HOST, OWN_NAMESPACE, UPLINK, Attachment, Bridge, Flow, NamespaceTable


@dataclass(frozen=True, slots=True)
class Names:
    """Everything of ours in the host namespace is called after the prefix; so are the namespaces."""

    prefix: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]{0,8}", self.prefix):
            raise ConfigError("prefix", f"{self.prefix!r} must be 1-9 lower-case letters or digits, starting with a letter")

    @property
    def gateway_bridge(self) -> str:
        return f"{self.prefix}-gw"

    @property
    def uplink(self) -> str:
        return f"{self.prefix}-in"

    @property
    def table(self) -> str:
        return "meshd" if self.prefix == "mesh" else f"meshd_{self.prefix}"

    def namespace(self, network_id: str) -> str:
        return f"{self.prefix}-{network_id}"

    @property
    def encryption(self) -> str:
        """The namespace of the WireGuard devices."""
        return f"{self.prefix}-{ENCRYPTION}"

    @property
    def mark(self) -> str:
        """Alias of the loopback in a namespace of ours: a name alone could be anybody's."""
        return f"meshd {self.prefix}"

    def owns_namespace(self, name: str) -> bool:
        return name.startswith(f"{self.prefix}-")

    def gateway_link(self, sandbox_id: str) -> str:
        return addr.link_name(GATEWAY_LINK, self.prefix, sandbox_id)


@dataclass(frozen=True, slots=True)
class Rendered:
    """`owners`: (namespace, link) of an attachment -> the object it belongs to, as in `errors`. `frozen`: namespaces that must stay
    exactly as they are because their part of the state is wrong. `networks`: for the next call."""

    tables: dict[str, NamespaceTable]
    errors: dict[str, MeshError]
    frozen: frozenset[str]
    owners: dict[tuple[str, str], str]
    networks: Mapping[str, RenderedNetwork] = field(default_factory=dict)


def validate(state: NodeState) -> None:
    """Raises ConfigError for what makes the state as a whole meaningless."""
    try:
        addr.family(state.underlay)
    except ValueError as error:
        raise ConfigError("underlay", f"not an address: {error}") from error
    try:
        gateways = ip_network(state.gateway_subnet)
    except ValueError as error:
        raise ConfigError("gateway_subnet", f"not a subnet: {error}") from error
    if not isinstance(gateways, IPv4Network) or gateways.prefixlen > 29:
        raise ConfigError("gateway_subnet", f"{state.gateway_subnet} must be an IPv4 subnet of at least 8 addresses")
    if not 0 < state.vxlan_port < 65536:
        raise ConfigError("vxlan_port", f"{state.vxlan_port} is not a port")
    if state.balancer not in ("ipvs", "nftables"):
        raise ConfigError("balancer", f"{state.balancer!r} is neither ipvs nor nftables")
    unique("networks", (n.id for n in state.networks), "network id")
    unique("networks", (n.vni for n in state.networks), "VNI")
    unique("sandboxes", (s.id for s in state.sandboxes), "sandbox id")
    ingress = [n.id for n in state.networks if n.ingress]
    if len(ingress) > 1:
        raise ConfigError("networks", f"only one network can be the ingress network, not {', '.join(ingress)}")
    if state.published and not ingress:
        raise ConfigError("published", "published ports need an ingress network")
    seen: set[tuple[str, int]] = set()
    ports: tuple[PublishedPort | HostPort, ...] = (*state.published, *state.host_ports)
    for port in ports:
        where = f"port {port.published}/{port.protocol}"
        if port.protocol not in PROTOCOL_NUMBERS:
            raise ConfigError(where, f"unknown protocol {port.protocol!r}")
        if not (0 < port.published < 65536 and 0 < port.target < 65536):
            raise ConfigError(where, "a port is between 1 and 65535")
        if (port.protocol, port.published) in seen:
            raise ConfigError(where, "published twice")
        seen.add((port.protocol, port.published))


def render(state: NodeState, facts: Facts, names: Names, before: Rendered | None = None) -> Rendered:
    """Tables of all namespaces. Raises ConfigError only where `validate` does or the gateway subnet is full."""
    validate(state)
    errors: dict[str, MeshError] = {}
    tables: dict[str, NamespaceTable] = {}
    networks: dict[str, RenderedNetwork] = {}
    frozen: set[str] = set()
    ingress: Network | None = None
    for network in state.networks:
        known = before.networks.get(network.id) if before else None
        try:
            done = render_network(network, state, facts, errors, known)
        except ConfigError as error:
            errors[f"network:{network.id}"] = error
            frozen.add(names.namespace(network.id))
            # published ports lead into this network: what leads there now is better than nothing
            if network.ingress:
                frozen.add(HOST)
        else:
            networks[network.id] = done
            tables[names.namespace(network.id)] = done.table
            if network.ingress:
                ingress = network
    if any(n.encrypted for n in state.networks) and not unable(state, facts):
        try:
            tables[names.encryption] = render_encryption(state, facts, errors)
        except ConfigError as error:
            errors["encryption"] = error
            frozen.add(names.encryption)
    sound = [n for n in state.networks if n.id in networks]
    tables |= render_containers(sound, state.published if ingress else (), facts, names.table)
    # a container's rules are those of all its networks
    frozen |= {e.netns for n in state.networks if n.id not in networks for e in n.local}
    tables[HOST] = render_host(state, ingress, facts, names, errors)
    owners = {
        (names.namespace(id), attachment.name): f"endpoint:{id}/{endpoint.id}"
        for id, network in networks.items()
        for endpoint, _, attachment in network.links.values()
    }
    owners |= {(HOST, names.gateway_link(s.id)): f"sandbox:{s.id}" for s in state.sandboxes}
    return Rendered(tables, errors, frozenset(frozen), owners, networks)


def render_host(state: NodeState, ingress: Network | None, facts: Facts, names: Names, errors: dict[str, MeshError]) -> NamespaceTable:
    """The host namespace: gateway bridge, a link a sandbox, the uplink into the ingress network, translation of published ports."""
    alive: list[Sandbox] = []
    for sandbox in state.sandboxes:
        try:
            facts.inode_of(sandbox.netns)
        except MeshError as error:
            errors[f"sandbox:{sandbox.id}"] = error
        else:
            alive.append(sandbox)
    with_gateway = {names.gateway_link(s.id): s for s in alive if s.gateway}
    gateways = addr.assign_gateways(state.gateway_subnet, with_gateway, facts.gateways)
    if not with_gateway and ingress is None:
        return NamespaceTable()
    subnet = IPv4Network(state.gateway_subnet)
    gateway = str(subnet[1])
    attachments = {
        name: Attachment(
            name=name,
            netns=sandbox.netns,
            netns_id=facts.inode_of(sandbox.netns),
            inner="eth-gw",
            mac=addr.mac(gateways[name]),
            outer_mac=addr.gateway_port_mac(gateways[name]),
            mtu=facts.underlay_mtu,
            bridge=names.gateway_bridge,
            # a container that calls its own host-mode port, where br_netfilter keeps translated frames on the bridge
            hairpin=True,
            addresses=frozenset({f"{gateways[name]}/{subnet.prefixlen}"}),
            default_via=gateway,
        )
        for name, sandbox in with_gateway.items()
    }
    address_of = {s.id: gateways[name] for name, s in with_gateway.items()}
    sysctls = {
        "net.ipv4.ip_forward": "1",
        # translated connections from 127.0.0.1 come back through this link; rule "raw" keeps everything else out
        f"net.ipv4.conf.{names.gateway_bridge}.route_localnet": "1",
    }
    routes: dict[str, str] = {}
    if ingress is not None:
        namespace = names.namespace(ingress.id)
        attachments[names.uplink] = Attachment(
            name=names.uplink,
            netns=f"{facts.directory}/{namespace}",
            netns_id=OWN_NAMESPACE,
            inner=UPLINK,
            mac=addr.link_mac(gateway),
            mtu=facts.underlay_mtu,
            default_via=gateway,
        )
        routes[ingress.lb_address] = names.uplink
        sysctls[f"net.ipv4.conf.{names.uplink}.route_localnet"] = "1"
        sysctls[f"net.ipv4.conf.{names.uplink}.rp_filter"] = "0"
    host_ports: dict[str, str] = {}
    flows: set[Flow] = set()
    for port in state.host_ports:
        if port.sandbox not in address_of:
            where = f"host_port:{port.published}/{port.protocol}"
            if not any(s.id == port.sandbox and s.gateway for s in state.sandboxes):
                errors[where] = ConfigError(where, f"sandbox {port.sandbox} is not on this node or has no gateway")
            continue
        number = PROTOCOL_NUMBERS[port.protocol]
        host_ports[f"{number} . {port.published}"] = f"{address_of[port.sandbox]} . {port.target}"
        flows.add(Flow("", (number, port.published), address_of[port.sandbox]))
    published: dict[str, str] = {}
    if ingress is not None:
        for mesh_port in state.published:
            number = PROTOCOL_NUMBERS[mesh_port.protocol]
            published[f"{number} . {mesh_port.published}"] = ingress.lb_address
            flows.add(Flow("", (number, mesh_port.published), ingress.lb_address))
    return NamespaceTable(
        bridge=Bridge(names.gateway_bridge, addr.gateway_port_mac(gateway), facts.underlay_mtu),
        attachments=attachments,
        addresses=frozenset({f"{gateway}/{subnet.prefixlen}"}),
        host_routes=routes,
        sysctls=sysctls,
        frames=frame_rules(names.table),
        nft=host_rules(names.table, names.gateway_bridge, names.uplink, gateway, str(subnet), published, host_ports),
        flows=frozenset(flows),
        engine_accepts=frozenset(f"{direction} {link}" for direction in ("-i", "-o") for link in (names.gateway_bridge, names.uplink))
        if facts.has_docker_user
        else frozenset(),
    )
