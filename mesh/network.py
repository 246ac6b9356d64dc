"""Turn one network into the table of its namespace: from nothing, or from what was rendered before.

Pure. The frame depends on the network as a whole; members (services, remote endpoints, published ports) add their parts. What is asked
of a member is checked when it is new or changed; what holds between members, by their rows' keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from mesh import address as addr
from mesh.balance import balanced_port, balanced_service, balancer_frame, port_flows, service_flows
from mesh.container import answer_frames
from mesh.encryption import device_mtu, unable
from mesh.errors import ConfigError, MeshError
from mesh.facts import Facts
from mesh.ipvs import IPVS_SYSCTLS, TCP_TIMEOUT_S, ipvs_port, ipvs_service, marking_frame
from mesh.model import LocalEndpoint, Network, NodeState, PublishedPort, RemoteEndpoint, VirtualService
from mesh.parts import Assembly, Collision, Part, assemble
from mesh.table import BRIDGE, Attachment, Bridge, NamespaceTable, Tunnel
from mesh.versioned import difference

K = TypeVar("K")
V = TypeVar("V")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class Members:
    """By what identifies them. `here`: addresses of local endpoints and the LB address: what is here is not behind a tunnel, whatever
    an older row says."""

    services: Mapping[str, VirtualService] = field(default_factory=dict)
    ports: Mapping[tuple[str, int], PublishedPort] = field(default_factory=dict)
    remote: Mapping[str, RemoteEndpoint] = field(default_factory=dict)
    here: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RenderedNetwork:
    """`basis`: all that the frame depends on. `source`: what it was rendered from. `links`: endpoint id -> what its attachment was made of,
    and the attachment."""

    basis: tuple[object, ...]
    assembly: Assembly
    source: Network | None = None
    members: Members = field(default_factory=Members)
    links: Mapping[str, tuple[LocalEndpoint, int, Attachment]] = field(default_factory=dict)

    @property
    def table(self) -> NamespaceTable:
        return self.assembly.table


def endpoint_link(endpoint_id: str) -> str:
    """Name of the host-side link of an endpoint; unique in its network's namespace."""
    return addr.link_name("mv-", endpoint_id)


def unique(where: str, values: Iterable[object], what: str) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ConfigError(where, f"{what} {value} is there twice")
        seen.add(value)


def render_network(
    network: Network, state: NodeState, facts: Facts, errors: dict[str, MeshError], before: RenderedNetwork | None = None
) -> RenderedNetwork:
    """Errors of single endpoints go into `errors`. Raises ConfigError when the network as a whole is wrong."""
    basis = (
        *(network.id, network.vni, network.subnets, network.lb_address, network.mtu, network.ingress),
        *(state.underlay, state.vxlan_port, state.balancer, state.gateway_subnet),
        *(facts.underlay_mtu, facts.has_bridge_netfilter, facts.has_ipv6),
        *((_encrypted_from(network, state, facts),) if network.encrypted else ()),
    )
    if before is None or before.basis != basis:
        before = RenderedNetwork(basis, Assembly(_frame(network, state, facts), {}))
    members = _members(network, state.published if network.ingress else (), before)
    links = _links(network, before, facts, errors)
    changes = list(_changes(network, state, before.members, members))
    assembly = before.assembly
    try:
        if changes:
            assembly = assemble(assembly, (gone for gone, _ in changes if gone), (fresh for _, fresh in changes if fresh))
    except Collision as collision:
        raise _sentence(network, members, collision) from collision
    attachments = {attachment.name: attachment for _, _, attachment in links.values()}
    table = assembly.table
    frames = answer_frames(network) if network.ingress else None
    if attachments != table.attachments or frames != table.frames:
        assembly = replace(assembly, table=replace(table, attachments=attachments, frames=frames))
    return RenderedNetwork(basis, assembly, network, members, links)


def _frame(network: Network, state: NodeState, facts: Facts) -> NamespaceTable:
    """What is there without any member."""
    where = f"network {network.id}"
    if not _ID.fullmatch(network.id):
        raise ConfigError(where, "an id has letters, digits, '.', '_' and '-' only")
    if not 0 < network.vni < 1 << 24:
        raise ConfigError(f"{where}: vni", f"{network.vni} is not between 1 and 16777215")
    subnets = addr.parse_subnets(network.subnets, f"{where}: subnets")
    lb_subnet = addr.subnet_of(network.lb_address, network.subnets, f"{where}: lb_address")
    if network.ingress and lb_subnet.version != 4:
        raise ConfigError(f"{where}: lb_address", "the ingress network needs an IPv4 LB address")
    mtu = _mtu(network, state, facts)
    if not 576 <= mtu <= 65535 or (lb_subnet.version == 6 and mtu < 1280):
        raise ConfigError(f"{where}: mtu", f"{mtu} is too small or too large")
    families = sorted({s.version for s in subnets})
    ipvs = state.balancer == "ipvs"
    return NamespaceTable(
        bridge=Bridge(BRIDGE, addr.mac(network.lb_address), mtu),
        tunnel=Tunnel(network.vni, _local(network, state), state.vxlan_port, mtu, encrypted=network.encrypted),
        addresses=frozenset({f"{network.lb_address}/{lb_subnet.prefixlen}"}),
        sysctls=_sysctls(families, facts) | (IPVS_SYSCTLS if ipvs else {}),
        nft=marking_frame(network, families, state.gateway_subnet) if ipvs else balancer_frame(network, families),
        ipvs_timeout_s=TCP_TIMEOUT_S if ipvs else 0,
    )


def _mtu(network: Network, state: NodeState, facts: Facts) -> int:
    under = device_mtu(state, facts) if network.encrypted else facts.underlay_mtu
    return network.mtu or under - (50 if addr.family(_local(network, state)) == 4 else 70)


def _local(network: Network, state: NodeState) -> str:
    """Where its tunnels begin here."""
    if not network.encrypted:
        return state.underlay
    assert state.encryption is not None
    return state.encryption.address


def _encrypted_from(network: Network, state: NodeState, facts: Facts) -> str:
    """The tunnel address. Raises ConfigError where this node can't encrypt: the network is not made then, never made plain."""
    if reason := unable(state, facts):
        raise ConfigError(f"network {network.id}", reason)
    assert state.encryption is not None
    return state.encryption.address


def _members(network: Network, published: Iterable[PublishedPort], before: RenderedNetwork) -> Members:
    """Raises ConfigError for a VIP that is somebody else's address."""
    where = f"network {network.id}"
    source, known = before.source, before.members
    services = known.services if source and source.services is network.services else {s.vip: s for s in network.services}
    remote = known.remote if source and source.remote is network.remote else {r.address: r for r in network.remote}
    if len(services) != len(network.services):
        unique(f"{where}: services", (s.vip for s in network.services), "VIP")
    unique(f"{where}: local", (e.id for e in network.local), "endpoint id")
    holders = {network.lb_address: "the LB address"}
    for endpoint in network.local:
        if endpoint.address in holders:
            raise ConfigError(f"{where}: endpoint {endpoint.id}", f"{endpoint.address} is already {holders[endpoint.address]}")
        holders[endpoint.address] = f"endpoint {endpoint.id}"
    for address, holder in holders.items():
        if address in services:
            raise ConfigError(f"{where}: a VIP", f"{address} is already {holder}")
    ports: dict[tuple[str, int], PublishedPort] = {(p.protocol, p.published): p for p in published}
    return Members(services, ports, remote, frozenset(holders))


def _changes(network: Network, state: NodeState, old: Members, new: Members) -> Iterator[tuple[Part | None, Part | None]]:
    """What each changed member put into the table before, and what it should have there. Raises ConfigError for one that is wrong."""
    ipvs = state.balancer == "ipvs"
    for vip in {*_changed(new.services, old.services), *_calling_themselves(old, new)}:
        was, now = old.services.get(vip), new.services.get(vip)
        if now is not None:
            _check_service(network, now)
        yield _service_part(was, ipvs, old.here), _service_part(now, ipvs, new.here)
    for key in _changed(new.ports, old.ports):
        port_was, port_now = old.ports.get(key), new.ports.get(key)
        if port_now is not None:
            _check_port(network, port_now)
        yield _port_part(network, port_was, ipvs), _port_part(network, port_now, ipvs)
    for address in {*_changed(new.remote, old.remote), *(new.here ^ old.here)}:
        remote_was, remote_now = old.remote.get(address), new.remote.get(address)
        if remote_now is not None and remote_now is not remote_was:
            _check_remote(network, remote_now)
        yield (
            _remote_part(remote_was) if remote_was and address not in old.here else None,
            _remote_part(remote_now) if remote_now and address not in new.here else None,
        )


def _calling_themselves(old: Members, new: Members) -> Iterable[str]:
    """VIPs of services that have a backend which came here or went from here: its calls to itself are a matter of this table or not."""
    moved = old.here ^ new.here
    if not moved:
        return ()
    return (vip for m in (old, new) for vip, s in m.services.items() if any(b.address in moved for b in s.backends))


def _changed(new: Mapping[K, V], old: Mapping[K, V]) -> Iterable[K]:
    fresh, gone = difference(new, old)
    return (*fresh, *gone)


def _service_part(service: VirtualService | None, ipvs: bool, here: frozenset[str]) -> Part | None:
    if service is None:
        return None
    address = f"{service.vip}/{32 if addr.family(service.vip) == 4 else 128}"
    balanced = ipvs_service(service, here) if ipvs else balanced_service(service)
    return replace(balanced, addresses=(address,), flows=service_flows(service))


def _port_part(network: Network, port: PublishedPort | None, ipvs: bool) -> Part | None:
    if port is None:
        return None
    version = addr.family(network.lb_address)
    balanced = ipvs_port(port, version) if ipvs else balanced_port(port, version)
    return replace(balanced, flows=port_flows(port, network.lb_address))


def _remote_part(remote: RemoteEndpoint) -> Part:
    mac = addr.mac(remote.address)
    return Part(tunnels=((mac, remote.vtep),), neighbours=((remote.address, mac),))


def _check_service(network: Network, service: VirtualService) -> None:
    where = f"network {network.id}"
    addr.subnet_of(service.vip, network.subnets, f"{where}: a VIP")
    for backend in service.backends:
        addr.subnet_of(backend.address, network.subnets, f"{where}: backend of {service.vip}")
        if addr.family(backend.address) != addr.family(service.vip):
            raise ConfigError(f"{where}: backend of {service.vip}", f"{backend.address} is of the other address family")
        if backend.weight < 0:
            raise ConfigError(f"{where}: backend of {service.vip}", f"weight {backend.weight} is negative")


def _check_port(network: Network, port: PublishedPort) -> None:
    where = f"network {network.id}: backend of port {port.published}"
    for backend in port.backends:
        addr.subnet_of(backend.address, network.subnets, where)
        if addr.family(backend.address) != 4:
            raise ConfigError(where, f"{backend.address} is not an IPv4 address")


def _check_remote(network: Network, remote: RemoteEndpoint) -> None:
    where = f"network {network.id}: remote"
    addr.subnet_of(remote.address, network.subnets, where)
    try:
        addr.family(remote.vtep)
    except ValueError as error:
        raise ConfigError(f"{where} {remote.address}", f"vtep: {error}") from error


def _sentence(network: Network, members: Members, collision: Collision) -> ConfigError:
    where = f"network {network.id}"
    if collision.kind in ("tunnels", "neighbours"):
        sharing = sorted(a for a in members.remote if addr.mac(a) == collision.key)
        return ConfigError(f"{where}: remote", f"{' and '.join(sharing)} have the same MAC: choose another address")
    if collision.kind == "ipvs":
        return ConfigError(f"{where}: services", f"two VIPs have the firewall mark {collision.key}: choose another address for one")
    return ConfigError(f"{where}: {collision.kind}", f"{collision.key} is there twice")


def _links(
    network: Network, before: RenderedNetwork, facts: Facts, errors: dict[str, MeshError]
) -> dict[str, tuple[LocalEndpoint, int, Attachment]]:
    links: dict[str, tuple[LocalEndpoint, int, Attachment]] = {}
    mtu = before.table.bridge.mtu if before.table.bridge else 0
    for endpoint in network.local:
        known = before.links.get(endpoint.id)
        # an address outside the subnets is a mistake of the whole network, a namespace that is gone is the endpoint's own
        subnet = addr.subnet_of(endpoint.address, network.subnets, f"network {network.id}: endpoint {endpoint.id}")
        try:
            inode = facts.inode_of(endpoint.netns)
        except MeshError as error:
            errors[f"endpoint:{network.id}/{endpoint.id}"] = error
            continue
        if known is not None and known[1] == inode and (known[0] is endpoint or known[0] == endpoint):
            links[endpoint.id] = known
            continue
        links[endpoint.id] = (endpoint, inode, _attachment(network, endpoint, inode, subnet, mtu))
    return links


def _attachment(network: Network, endpoint: LocalEndpoint, inode: int, own: addr.NetworkLike, mtu: int) -> Attachment:
    subnets = addr.parse_subnets(network.subnets, network.id)
    return Attachment(
        name=endpoint_link(endpoint.id),
        netns=endpoint.netns,
        netns_id=inode,
        inner="eth",
        mac=addr.mac(endpoint.address),
        mtu=mtu,
        bridge=BRIDGE,
        addresses=frozenset({f"{endpoint.address}/{own.prefixlen}"}),
        routes=frozenset(str(s) for s in subnets if s != own and s.version == own.version),
        reply_via=network.lb_address if network.ingress and own.version == 4 else None,
    )


def _sysctls(families: Sequence[int], facts: Facts) -> dict[str, str]:
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
