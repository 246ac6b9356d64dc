"""Read all that is ours in the kernel, as tables: one look.

Edge. Ownership is decided here and nowhere else: namespaces by their name and a mark on their loopback, everything inside them; in the
host namespace the links and the nft table named after the prefix, and gateway links by being ports of our bridge; in a container the links
that lead to us, and the rules where our table is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface
from typing import Final

from mesh.balance import TABLE
from mesh.errors import KernelError, NamespaceGone
from mesh.linux import conntrack, docker_user, link, nftables, policy, rows, sysctl, wireguard
from mesh.linux import ipvs as ipvs_netlink
from mesh.linux.namespace import Namespaces, all_namespaces, inode, inside
from mesh.linux.netlink import NETLINK_ROUTE, Netlink
from mesh.linux.nsid import number_of
from mesh.render import Names
from mesh.table import (
    BRIDGE,
    HOST,
    OWN_NAMESPACE,
    TUNNEL,
    UPLINK,
    Attachment,
    Bridge,
    Flow,
    NamespaceTable,
    Peer,
    Tables,
    Tunnel,
    WireGuard,
    is_container,
)

_MISSING: Final = -1
"""netns_id of a link whose inner end is not where it should be: compares unequal to every real one."""


@dataclass(slots=True)
class Means:
    """By what to look. `iptables`: the tool whose chain an Engine manages, None without one; `ipvs_family`: None without IPVS."""

    names: Names
    namespaces: Namespaces
    nft: nftables.Nft
    iptables: str | None = None
    ipvs_family: int | None = None


@dataclass(frozen=True, slots=True)
class _Inside:
    """What lies in a container's namespace, looked at once however many links lead there."""

    inode: int
    links: Mapping[str, link.Link]
    addresses: Mapping[int, set[str]]
    routes: tuple[link.Route, ...]


@dataclass(slots=True)
class Reading:
    """One look; not kept for another."""

    means: Means
    _seen: dict[str, _Inside | None] = field(default_factory=dict)

    def read(self, desired: Tables) -> dict[str, NamespaceTable]:
        """All that is ours. `desired` says which containers to look into and which sysctls to read; it does not change what is found."""
        tables: dict[str, NamespaceTable] = {}
        for name in self.means.namespaces.names():
            if not self.means.names.owns_namespace(name):
                continue
            if self.means.namespaces.alive(name):
                # one that is wanted is adopted by its name, one that is not must also carry our mark: it is there to be deleted
                if name in desired or self._marked(name):
                    tables[name] = self._read_network(name, desired.get(name, NamespaceTable()))
            elif name not in desired and self.means.namespaces.half_made(name):
                tables[name] = NamespaceTable()
        tables |= {path: self._read_container(path) for path in desired if is_container(path)}
        tables[HOST] = self._read_host(desired.get(HOST, NamespaceTable()))
        self.means.nft.forget_unmet()
        return tables

    def read_containers(self, paths: Iterable[str] | None = None) -> dict[str, NamespaceTable]:
        """Containers in which something of ours is left: among `paths`, or among all that a link of ours ever led into."""
        found = {path: self._read_container(path) for path in (self._linked() if paths is None else paths)}
        # routing rules have no room for a name: they are ours where the table is
        return {path: table for path, table in found.items() if table.nft}

    def _read_container(self, path: str) -> NamespaceTable:
        identity = inode(path)
        if identity is None:
            return NamespaceTable()
        try:
            with inside(path):
                return NamespaceTable(netns_id=identity, policies=policy.read(), nft=self.means.nft.table(self.means.names.table))
        except NamespaceGone:
            return NamespaceTable()

    def _linked(self) -> list[str]:
        """The namespaces that the host's or one of ours has a number for. A table with our name anywhere else is another node's, whose host
        is a namespace of this machine as ours may be."""
        others = all_namespaces(self.means.namespaces)
        found = _numbered(others)
        for name in self.means.namespaces.names():
            if self.means.names.owns_namespace(name) and self.means.namespaces.alive(name) and self._marked(name):
                with inside(self.means.namespaces.path(name)):
                    found |= _numbered(others)
        return sorted(found)

    def _marked(self, name: str) -> bool:
        with inside(self.means.namespaces.path(name)), Netlink(NETLINK_ROUTE) as netlink:
            return link.links(netlink)["lo"].alias == self.means.names.mark

    def _read_network(self, name: str, desired: NamespaceTable) -> NamespaceTable:
        with inside(self.means.namespaces.path(name)):
            with Netlink(NETLINK_ROUTE) as netlink:
                links = link.links(netlink)
                bridge = links.get(BRIDGE)
                tunnel = links.get(TUNNEL)
                if bridge is not None and bridge.kind != "bridge":
                    bridge = None
                if tunnel is not None and tunnel.kind != "vxlan":
                    tunnel = None
                addresses = rows.addresses(netlink).get(bridge.index, set()) if bridge else set()
                tunnels = rows.tunnels(netlink, tunnel.index) if tunnel else {}
                neighbours = rows.neighbours(netlink, tunnel.index) if tunnel else {}
                devices = {item.name: item for item in links.values() if item.kind == "wireguard"}
                encryption = _encryption(netlink, devices, desired) if devices else NamespaceTable()
            flows = self._flows(desired.flows, {a.partition("/")[0] for a in addresses})
            nft = self.means.nft.table(TABLE)
            frames = self.means.nft.table(TABLE, "bridge") if desired.frames else None
            values = sysctl.read(desired.sysctls)
            ipvs = ipvs_netlink.Ipvs(self.means.ipvs_family) if self.means.ipvs_family is not None else None
            services, timeout_s = (ipvs.read(), ipvs.timeout_s()) if ipvs else ({}, 0)
        attachments = {
            item.name: self._attachment(item, links, desired.attachments.get(item.name))
            for item in links.values()
            if item.kind == "veth" and item.name != UPLINK
        }
        return NamespaceTable(
            bridge=_bridge(bridge),
            tunnel=_tunnel(tunnel, bridge),
            attachments=attachments,
            addresses=frozenset(addresses),
            tunnels=tunnels,
            neighbours=neighbours,
            sysctls=values,
            nft=nft,
            frames=frames,
            ipvs=services,
            # a value that nobody asked for compares equal
            ipvs_timeout_s=timeout_s if desired.ipvs_timeout_s else 0,
            flows=flows,
            wireguards=encryption.wireguards,
            peers=encryption.peers,
            host_routes=encryption.host_routes,
        )

    def _read_host(self, desired: NamespaceTable) -> NamespaceTable:
        names = self.means.names
        with Netlink(NETLINK_ROUTE) as netlink:
            links = link.links(netlink)
            bridge = links.get(names.gateway_bridge)
            if bridge is not None and bridge.kind != "bridge":
                bridge = None
            addresses = rows.addresses(netlink).get(bridge.index, set()) if bridge else set()
            uplink = links.get(names.uplink)
            routes = {r.destination.partition("/")[0]: names.uplink for r in link.routes(netlink) if uplink and r.index == uplink.index}
        ours = [
            item
            for item in links.values()
            if item.kind == "veth" and bridge and item.master == bridge.index and item.name.startswith("mg-")
        ]
        if uplink is not None:
            ours.append(uplink)
        nft = self.means.nft.table(names.table)
        frames = self.means.nft.table(names.table, "bridge")
        return NamespaceTable(
            bridge=_bridge(bridge),
            attachments={item.name: self._attachment(item, links, desired.attachments.get(item.name)) for item in ours},
            addresses=frozenset(addresses),
            host_routes=routes,
            sysctls=sysctl.read(desired.sysctls),
            nft=nft,
            frames=frames,
            flows=self._host_flows(desired.flows) if nft is not None else frozenset(),
            engine_accepts=self._engine_accepts(frozenset({names.gateway_bridge, names.uplink})),
        )

    def _engine_accepts(self, links: frozenset[str]) -> frozenset[str]:
        program = self.means.iptables
        if program is None:
            return frozenset()
        if docker_user.in_nft(program):
            return self.means.nft.recall("engine accepts", lambda: docker_user.rules(program, links))
        return docker_user.rules(program, links)

    def _attachment(self, outer: link.Link, links: Mapping[str, link.Link], desired: Attachment | None) -> Attachment:
        """What is there of the pair, looked up where `desired` says the inner end should be."""
        master = next((item.name for item in links.values() if item.index == outer.master), None) if outer.master else None
        found = Attachment(
            name=outer.name,
            netns="",
            netns_id=_MISSING,
            inner="",
            mac="",
            mtu=outer.mtu,
            bridge=master,
            outer_mac=outer.mac,
            hairpin=outer.hairpin,
            up=outer.up,
        )
        if desired is None:
            return found
        if desired.outer_mac is None:
            found = replace(found, outer_mac=None)
        if not desired.hairpin:
            found = replace(found, hairpin=False)
        there = self._look_inside(desired.netns)
        inner = inner_end(there.links, outer, desired) if there else None
        if there is None or inner is None:
            return found
        addresses = there.addresses.get(inner.index, set())
        routes = [r for r in there.routes if r.index == inner.index]
        defaults = [r for r in routes if not r.destination]
        return replace(
            found,
            netns=desired.netns,
            netns_id=OWN_NAMESPACE if desired.netns_id == OWN_NAMESPACE else there.inode,
            mac=inner.mac,
            mtu=min(inner.mtu, outer.mtu),
            # the container may have more of its own; we only look for ours
            addresses=desired.addresses & addresses,
            routes=desired.routes & {r.destination for r in routes if not r.via and r.table == link.RT_TABLE_MAIN},
            default_via=next((r.via for r in defaults if r.table == link.RT_TABLE_MAIN and r.via == desired.default_via), None),
            reply_via=next((r.via for r in defaults if r.table == link.RT_TABLE_ANSWERS), None),
            up=inner.up and outer.up,
        )

    def _flows(self, desired: Set[Flow], addresses: set[str]) -> frozenset[Flow]:
        """Kinds of connections in a network's namespace."""
        shared = {f.destination for f in desired if f.port is not None}
        found = set()
        for c in conntrack.kinds():
            if c.translated or (c.protocol == 17 and c.destination in addresses):
                found.add(network_flow(c, shared))
        return frozenset(found)

    def _host_flows(self, desired: Set[Flow]) -> frozenset[Flow]:
        """Kinds of translated connections that lead to us: to an address on the gateway bridge or to the ingress network."""
        backends = {f.backend for f in desired}
        with Netlink(NETLINK_ROUTE) as netlink:
            links = link.links(netlink)
            indexes = {links[n].index for n in (self.means.names.gateway_bridge, self.means.names.uplink) if n in links}
            routes = {r.destination.partition("/")[0] for r in link.routes(netlink) if r.index in indexes}
            subnets = [c for i in indexes for c in rows.addresses(netlink).get(i, set())]
        found = set()
        for c in conntrack.kinds(translated_only=True):
            if c.answerer in backends or c.answerer in routes or any(_within(c.answerer, subnet) for subnet in subnets):
                found.add(Flow("", (c.protocol, c.port), c.answerer))
        return frozenset(found)

    def _look_inside(self, path: str) -> _Inside | None:
        """None: there is no such namespace (any more)."""
        if path not in self._seen:
            self._seen[path] = _look_inside(path)
        return self._seen[path]


def _numbered(paths: Iterable[str]) -> set[str]:
    """Those of the namespaces that the calling thread's has a number for."""
    with Netlink(NETLINK_ROUTE) as netlink:
        return {path for path in paths if number_of(netlink, path) is not None}


def _look_inside(path: str) -> _Inside | None:
    try:
        identity = inode(path)
        with inside(path), Netlink(NETLINK_ROUTE) as netlink:
            if identity is None:
                return None
            return _Inside(identity, link.links(netlink), rows.addresses(netlink), tuple(link.routes(netlink)))
    except (NamespaceGone, KernelError):
        return None


def network_flow(c: conntrack.Connection, shared: set[str]) -> Flow:
    port = (c.protocol, c.port) if c.destination in shared else None
    return Flow(c.destination, port, c.answerer if c.translated else "")


def inner_end(links: Mapping[str, link.Link], outer: link.Link, attachment: Attachment) -> link.Link | None:
    """The other end of `outer`: each names the other's index, and the MAC is ours. Indexes alone repeat in every namespace."""
    for item in links.values():
        if item.kind == "veth" and item.index == outer.peer and item.peer == outer.index and item.mac == attachment.mac:
            return item
    return None


def _bridge(item: link.Link | None) -> Bridge | None:
    return Bridge(item.name, item.mac, item.mtu, item.up) if item else None


def _tunnel(tunnel: link.Link | None, bridge: link.Link | None) -> Tunnel | None:
    if tunnel is None:
        return None
    return Tunnel(tunnel.vni, tunnel.local, tunnel.port, tunnel.mtu, bool(bridge and tunnel.master == bridge.index), tunnel.up)


def _encryption(netlink: Netlink, devices: Mapping[str, link.Link], desired: NamespaceTable) -> NamespaceTable:
    """WireGuard devices, their peers, and the routes through them."""
    by_index = {item.index: name for name, item in devices.items()}
    addresses = rows.addresses(netlink)
    wireguards: dict[str, WireGuard] = {}
    peers: dict[tuple[str, str], Peer] = {}
    for name, item in devices.items():
        device = wireguard.read(name)
        # several addresses are none that we want
        address = " ".join(sorted(addresses.get(item.index, set())))
        wireguards[name] = WireGuard(device.private_key, device.port, item.mtu, address, item.up)
        for key, peer in device.peers.items():
            known = desired.peers.get((name, key))
            # one that has proven who he is may answer from another address of his than we call
            peers[name, key] = replace(peer, endpoint=known.endpoint) if known and key in device.heard else peer
    routes = {r.destination.partition("/")[0]: by_index[r.index] for r in link.routes(netlink) if r.index in by_index}
    return NamespaceTable(wireguards=wireguards, peers=peers, host_routes=routes)


def _within(address: str, cidr: str) -> bool:
    return ip_address(address) in ip_interface(cidr).network
