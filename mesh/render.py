"""Turn the desired state of a node into the tables its kernel should hold.

Pure: `render(state, facts)`. What only the machine knows (MTU of the underlay, inodes of namespaces, which sysctls exist) comes in as
`Facts`. A network or container that can't be rendered is reported and left as it is; it does not stop its siblings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_network

from mesh import address as addr
from mesh.balance import PROTOCOL_NUMBERS, balancer_table, network_flows
from mesh.errors import ConfigError, MeshError, NamespaceGone
from mesh.host import GATEWAY_LINK, frame_rules, host_rules
from mesh.ipvs import IPVS_SYSCTLS, ipvs_services, marking_table
from mesh.model import HostPort, LocalEndpoint, Network, NodeState, PublishedPort, Sandbox
from mesh.table import BRIDGE, HOST, OWN_NAMESPACE, UPLINK, Attachment, Bridge, Flow, NamespaceTable, Tunnel

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


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
    def mark(self) -> str:
        """Alias of the loopback in a namespace of ours: a name alone could be anybody's."""
        return f"meshd {self.prefix}"

    def owns_namespace(self, name: str) -> bool:
        return name.startswith(f"{self.prefix}-")

    def gateway_link(self, sandbox_id: str) -> str:
        return addr.link_name(GATEWAY_LINK, self.prefix, sandbox_id)


def endpoint_link(endpoint_id: str) -> str:
    """Name of the host-side link of an endpoint; unique in its network's namespace."""
    return addr.link_name("mv-", endpoint_id)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the machine says. `netns`: inode by path, None where it is gone. `gateways`: gateway link name -> address it has now."""

    underlay_mtu: int
    host_id: int
    netns: Mapping[str, int | None]
    directory: str = "/run/netns"
    gateways: Mapping[str, str] = field(default_factory=dict)
    has_bridge_netfilter: bool = False
    has_ipv6: bool = True
    has_docker_user: bool = False


@dataclass(frozen=True, slots=True)
class Rendered:
    """`owners`: (namespace, link) of an attachment -> the object it belongs to, as in `errors`. `frozen`: namespaces that must stay
    exactly as they are because their part of the state is wrong."""

    tables: dict[str, NamespaceTable]
    errors: dict[str, MeshError]
    frozen: frozenset[str]
    owners: dict[tuple[str, str], str]


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
    _unique("networks", (n.id for n in state.networks), "network id")
    _unique("networks", (n.vni for n in state.networks), "VNI")
    _unique("sandboxes", (s.id for s in state.sandboxes), "sandbox id")
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


def _unique(where: str, values: Iterable[object], what: str) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ConfigError(where, f"{what} {value} is there twice")
        seen.add(value)


def render(state: NodeState, facts: Facts, names: Names) -> Rendered:
    """Tables of all namespaces. Raises ConfigError only where `validate` does or the gateway subnet is full."""
    validate(state)
    errors: dict[str, MeshError] = {}
    tables: dict[str, NamespaceTable] = {}
    frozen: set[str] = set()
    ingress: Network | None = None
    for network in state.networks:
        try:
            tables[names.namespace(network.id)] = render_network(network, state, facts, errors)
            if network.ingress:
                ingress = network
        except ConfigError as error:
            errors[f"network:{network.id}"] = error
            frozen.add(names.namespace(network.id))
            # published ports lead into this network: what leads there now is better than nothing
            if network.ingress:
                frozen.add(HOST)
    tables[HOST] = render_host(state, ingress, facts, names, errors)
    owners = {(names.namespace(n.id), endpoint_link(e.id)): f"endpoint:{n.id}/{e.id}" for n in state.networks for e in n.local}
    owners |= {(HOST, names.gateway_link(s.id)): f"sandbox:{s.id}" for s in state.sandboxes}
    return Rendered(tables, errors, frozenset(frozen), owners)


def render_network(network: Network, state: NodeState, facts: Facts, errors: dict[str, MeshError]) -> NamespaceTable:
    where = f"network {network.id}"
    if not _ID.fullmatch(network.id):
        raise ConfigError(where, "an id has letters, digits, '.', '_' and '-' only")
    if not 0 < network.vni < 1 << 24:
        raise ConfigError(f"{where}: vni", f"{network.vni} is not between 1 and 16777215")
    subnets = addr.parse_subnets(network.subnets, f"{where}: subnets")
    lb_subnet = addr.subnet_of(network.lb_address, network.subnets, f"{where}: lb_address")
    if network.ingress and lb_subnet.version != 4:
        raise ConfigError(f"{where}: lb_address", "the ingress network needs an IPv4 LB address")
    _check_members(network, where, state.published if network.ingress else ())
    overhead = 50 if addr.family(state.underlay) == 4 else 70
    mtu = network.mtu or facts.underlay_mtu - overhead
    if not 576 <= mtu <= 65535 or (lb_subnet.version == 6 and mtu < 1280):
        raise ConfigError(f"{where}: mtu", f"{mtu} is too small or too large")
    families = sorted({s.version for s in subnets})
    attachments = {}
    for endpoint in network.local:
        try:
            attachment = _endpoint_attachment(network, endpoint, mtu, facts)
        except MeshError as error:
            errors[f"endpoint:{network.id}/{endpoint.id}"] = error
        else:
            attachments[attachment.name] = attachment
    addresses = {f"{network.lb_address}/{lb_subnet.prefixlen}"}
    addresses |= {f"{s.vip}/{32 if addr.family(s.vip) == 4 else 128}" for s in network.services}
    # an endpoint that is here is not behind a tunnel, whatever an older row says
    here = {e.address for e in network.local} | {network.lb_address}
    remote = [r for r in network.remote if r.address not in here]
    published = state.published if network.ingress else ()
    ipvs = state.balancer == "ipvs"
    return NamespaceTable(
        bridge=Bridge(BRIDGE, addr.mac(network.lb_address), mtu),
        tunnel=Tunnel(network.vni, state.underlay, state.vxlan_port, mtu),
        attachments=attachments,
        addresses=frozenset(addresses),
        tunnels={addr.mac(r.address): r.vtep for r in remote},
        neighbours={r.address: addr.mac(r.address) for r in remote},
        sysctls=_network_sysctls(families, facts) | (IPVS_SYSCTLS if ipvs else {}),
        nft=marking_table(network, families, published) if ipvs else balancer_table(network, families, published),
        ipvs=ipvs_services(network, published) if ipvs else {},
        flows=network_flows(network, published),
    )


def _check_members(network: Network, where: str, published: Iterable[PublishedPort]) -> None:
    _unique(f"{where}: local", (e.id for e in network.local), "endpoint id")
    holders: dict[str, str] = {network.lb_address: "the LB address"}
    for address, holder in (
        *((e.address, f"endpoint {e.id}") for e in network.local),
        *((s.vip, "a VIP") for s in network.services),
    ):
        addr.subnet_of(address, network.subnets, f"{where}: {holder}")
        if address in holders:
            raise ConfigError(f"{where}: {holder}", f"{address} is already {holders[address]}")
        holders[address] = holder
    macs: dict[str, str] = {}
    for remote in network.remote:
        addr.subnet_of(remote.address, network.subnets, f"{where}: remote")
        if macs.setdefault(addr.mac(remote.address), remote.address) != remote.address:
            raise ConfigError(
                f"{where}: remote", f"{remote.address} has the MAC of {macs[addr.mac(remote.address)]}: choose another address"
            )
        try:
            addr.family(remote.vtep)
        except ValueError as error:
            raise ConfigError(f"{where}: remote {remote.address}", f"vtep: {error}") from error
    for service in network.services:
        for backend in service.backends:
            addr.subnet_of(backend.address, network.subnets, f"{where}: backend of {service.vip}")
            if addr.family(backend.address) != addr.family(service.vip):
                raise ConfigError(f"{where}: backend of {service.vip}", f"{backend.address} is of the other address family")
            if backend.weight < 0:
                raise ConfigError(f"{where}: backend of {service.vip}", f"weight {backend.weight} is negative")
    for port in published:
        for backend in port.backends:
            addr.subnet_of(backend.address, network.subnets, f"{where}: backend of port {port.published}")
            if addr.family(backend.address) != 4:
                raise ConfigError(f"{where}: backend of port {port.published}", f"{backend.address} is not an IPv4 address")


def _endpoint_attachment(network: Network, endpoint: LocalEndpoint, mtu: int, facts: Facts) -> Attachment:
    subnets = addr.parse_subnets(network.subnets, network.id)
    own = addr.subnet_of(endpoint.address, network.subnets, f"endpoint {endpoint.id}")
    return Attachment(
        name=endpoint_link(endpoint.id),
        netns=endpoint.netns,
        netns_id=_inode(endpoint.netns, facts),
        inner="eth",
        mac=addr.mac(endpoint.address),
        mtu=mtu,
        bridge=BRIDGE,
        addresses=frozenset({f"{endpoint.address}/{own.prefixlen}"}),
        routes=frozenset(str(s) for s in subnets if s != own and s.version == own.version),
    )


def _inode(path: str, facts: Facts) -> int:
    inode = facts.netns.get(path)
    if inode is None:
        raise NamespaceGone(path)
    if inode == facts.host_id:
        raise ConfigError(path, "is the node's own network namespace, not a container's")
    return inode


def _network_sysctls(families: Sequence[int], facts: Facts) -> dict[str, str]:
    values = {
        "net.ipv4.ip_forward": "1",
        # packets of published ports come in with the node's own LB address as their source once the balancer is asked by itself
        f"net.ipv4.conf.{BRIDGE}.accept_local": "1",
        "net.ipv4.conf.all.rp_filter": "0",
        f"net.ipv4.conf.{BRIDGE}.rp_filter": "0",
        # a packet that leaves where it came in is our job, not a mistake to report
        "net.ipv4.conf.all.send_redirects": "0",
        f"net.ipv4.conf.{BRIDGE}.send_redirects": "0",
        # the LB address may change: the kernel must not drop the network's other addresses with it
        f"net.ipv4.conf.{BRIDGE}.promote_secondaries": "1",
        # "refused at once" for UDP is an ICMP error: not only for the first of a second
        "net.ipv4.icmp_ratelimit": "0",
    }
    if facts.has_bridge_netfilter:
        # bridged frames must not pass our ip hooks: calls of a service to itself would break
        values |= {f"net.bridge.bridge-nf-call-{t}tables": "0" for t in ("ip", "ip6", "arp")}
    if facts.has_ipv6:
        values["net.ipv6.conf.all.disable_ipv6"] = "0" if 6 in families else "1"
        if 6 in families:
            values["net.ipv6.conf.all.forwarding"] = "1"
            values["net.ipv6.icmp.ratelimit"] = "0"
    return values


def render_host(state: NodeState, ingress: Network | None, facts: Facts, names: Names, errors: dict[str, MeshError]) -> NamespaceTable:
    """The host namespace: gateway bridge, a link a sandbox, the uplink into the ingress network, translation of published ports."""
    alive: list[Sandbox] = []
    for sandbox in state.sandboxes:
        try:
            _inode(sandbox.netns, facts)
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
            netns_id=_inode(sandbox.netns, facts),
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
