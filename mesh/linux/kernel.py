"""The kernel behind the tables: read all that is ours, run one operation.

Edge. All calls must come from one thread, the one whose namespace is the host's. Ownership is decided here and nowhere else: namespaces
by their name and a mark on their loopback, everything inside them; in the host namespace the links and the nft table named after the
prefix, and gateway links by being ports of our bridge.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Mapping, Set
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Final, assert_never

from mesh import plan
from mesh.address import address_of_gateway_port
from mesh.balance import TABLE
from mesh.errors import ConfigError, KernelError, KernelUnsupported, NamespaceGone
from mesh.facts import Facts
from mesh.linux import conntrack, docker_user, link, nftables, policy, rows, sysctl
from mesh.linux import ipvs as ipvs_netlink
from mesh.linux.events import Events
from mesh.linux.namespace import Namespaces, all_namespaces, inode, inside, open_namespace
from mesh.linux.netlink import NETLINK_ROUTE, Netlink
from mesh.model import NodeState
from mesh.render import Names
from mesh.table import BRIDGE, HOST, OWN_NAMESPACE, TUNNEL, UPLINK, Attachment, Bridge, Flow, NamespaceTable, Tables, Tunnel, is_container

_TUNNEL_WAIT_S: Final = 5.0
"""A deleted namespace is taken apart in the background; until then its VXLAN device holds the VNI."""

_MISSING: Final = -1
"""netns_id of a link whose inner end is not where it should be: compares unequal to every real one."""


class Kernel:
    def __init__(self, names: Names, namespaces: Namespaces) -> None:
        self._names = names
        self._namespaces = namespaces
        self._iptables: str | None = None
        self._ipvs_family: int | None = None
        self._nft = nftables.Nft()

    # ---------------------------------------------------------------- facts

    def facts(self, state: NodeState) -> Facts:
        """What `render` must know of this machine now. Raises ConfigError when the underlay address is not here, KernelUnsupported when
        the balancer is not."""
        with Netlink(NETLINK_ROUTE) as netlink:
            by_index = {item.index: item for item in link.links(netlink).values()}
            bridge = next((item.index for item in by_index.values() if item.name == self._names.gateway_bridge), 0)
            gateways = {
                item.name: address
                for item in by_index.values()
                if item.name.startswith("mg-") and item.master == bridge and (address := address_of_gateway_port(item.mac))
            }
            underlay = next(
                (index for index, cidrs in rows.addresses(netlink).items() if any(c.partition("/")[0] == state.underlay for c in cidrs)),
                None,
            )
        if underlay is None:
            raise ConfigError("underlay", f"no interface of this node has the address {state.underlay}")
        if state.balancer == "ipvs":
            ipvs_netlink.load_module()
        self.discover()
        if state.balancer == "ipvs" and self._ipvs_family is None:
            raise KernelUnsupported("use IPVS", errno.ENOENT, "the kernel has no ip_vs: choose the nftables balancer")
        host_id = inode("/proc/thread-self/ns/net")
        assert host_id is not None
        return Facts(
            # 65536 of a loopback is more than other links take
            underlay_mtu=min(by_index[underlay].mtu, 65535),
            host_id=host_id,
            netns=self.netns_inodes(state),
            directory=self._namespaces.path("").rstrip("/"),
            gateways=gateways,
            has_bridge_netfilter=sysctl.exists("net.bridge.bridge-nf-call-iptables"),
            has_ipv6=sysctl.exists("net.ipv6.conf.all.disable_ipv6"),
            has_docker_user=self._iptables is not None,
        )

    def discover(self) -> None:
        """Find out by what means to look: an Engine's chain, IPVS."""
        self._iptables = docker_user.tool()
        self._ipvs_family = ipvs_netlink.family_id()

    def netns_inodes(self, state: NodeState) -> dict[str, int | None]:
        paths = {s.netns for s in state.sandboxes} | {e.netns for n in state.networks for e in n.local}
        return {path: inode(path) for path in paths}

    def followed_by(self, events: Events) -> None:
        """Have our namespaces heard."""
        events.follow(self._namespaces.path(n) for n in self._namespaces.names() if self._names.owns_namespace(n))

    # ---------------------------------------------------------------- reading

    def read(self, desired: Tables) -> dict[str, NamespaceTable]:
        """All that is ours. `desired` says which containers to look into and which sysctls to read; it does not change what is found."""
        tables: dict[str, NamespaceTable] = {}
        for name in self._namespaces.names():
            if not self._names.owns_namespace(name):
                continue
            if self._namespaces.alive(name):
                # one that is wanted is adopted by its name, one that is not must also carry our mark: it is there to be deleted
                if name in desired or self._marked(name):
                    tables[name] = self._read_network(name, desired.get(name, NamespaceTable()))
            elif name not in desired and self._namespaces.half_made(name):
                tables[name] = NamespaceTable()
        tables |= {path: self._read_container(path) for path in desired if is_container(path)}
        tables[HOST] = self._read_host(desired.get(HOST, NamespaceTable()))
        self._nft.forget_unmet()
        return tables

    def read_containers(self, paths: Iterable[str] | None = None) -> dict[str, NamespaceTable]:
        """Containers in which something of ours is left: among `paths`, or among all network namespaces with a process or a name."""
        found = {path: self._read_container(path) for path in (all_namespaces(self._namespaces) if paths is None else paths)}
        # routing rules have no room for a name: they are ours where the table is
        return {path: table for path, table in found.items() if table.nft}

    def _read_container(self, path: str) -> NamespaceTable:
        identity = inode(path)
        if identity is None:
            return NamespaceTable()
        try:
            with inside(path):
                return NamespaceTable(netns_id=identity, policies=policy.read(), nft=self._nft.table(self._names.table))
        except NamespaceGone:
            return NamespaceTable()

    def _marked(self, name: str) -> bool:
        with self._inside(name), Netlink(NETLINK_ROUTE) as netlink:
            return link.links(netlink)["lo"].alias == self._names.mark

    def _mark(self) -> None:
        with Netlink(NETLINK_ROUTE) as netlink:
            link.mark_loopback(netlink, self._names.mark)

    def _read_network(self, name: str, desired: NamespaceTable) -> NamespaceTable:
        with self._inside(name):
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
            flows = self._flows(desired.flows, {a.partition("/")[0] for a in addresses})
            nft = self._nft.table(TABLE)
            frames = self._nft.table(TABLE, "bridge") if desired.frames else None
            values = sysctl.read(desired.sysctls)
            ipvs = ipvs_netlink.Ipvs(self._ipvs_family) if self._ipvs_family is not None else None
            services, timeout_s = (ipvs.read(), ipvs.timeout_s()) if ipvs else ({}, 0)
        attachments = {
            item.name: self._attachment(item, links, desired.attachments.get(item.name))
            for item in links.values()
            if item.kind == "veth" and item.name != UPLINK
        }
        return NamespaceTable(
            bridge=_bridge(bridge),
            tunnel=Tunnel(tunnel.vni, tunnel.local, tunnel.port, tunnel.mtu, bool(bridge and tunnel.master == bridge.index), tunnel.up)
            if tunnel
            else None,
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
        )

    def _read_host(self, desired: NamespaceTable) -> NamespaceTable:
        names = self._names
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
        nft = self._nft.table(names.table)
        frames = self._nft.table(names.table, "bridge")
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
        program = self._iptables
        if program is None:
            return frozenset()
        if docker_user.in_nft(program):
            return self._nft.recall("engine accepts", lambda: docker_user.rules(program, links))
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
        try:
            here = inode(desired.netns)
            with inside(desired.netns), Netlink(NETLINK_ROUTE) as netlink:
                inner = _inner(link.links(netlink), outer, desired)
                if inner is None or here is None:
                    return found
                addresses = rows.addresses(netlink).get(inner.index, set())
                routes = [r for r in link.routes(netlink) if r.index == inner.index]
                defaults = [r for r in routes if not r.destination]
        except (NamespaceGone, KernelError):
            return found
        return replace(
            found,
            netns=desired.netns,
            netns_id=OWN_NAMESPACE if desired.netns_id == OWN_NAMESPACE else here,
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
                found.add(_network_flow(c, shared))
        return frozenset(found)

    def _host_flows(self, desired: Set[Flow]) -> frozenset[Flow]:
        """Kinds of translated connections that lead to us: to an address on the gateway bridge or to the ingress network."""
        backends = {f.backend for f in desired}
        with Netlink(NETLINK_ROUTE) as netlink:
            links = link.links(netlink)
            indexes = {links[n].index for n in (self._names.gateway_bridge, self._names.uplink) if n in links}
            routes = {r.destination.partition("/")[0] for r in link.routes(netlink) if r.index in indexes}
            subnets = [c for i in indexes for c in rows.addresses(netlink).get(i, set())]
        found = set()
        for c in conntrack.kinds(translated_only=True):
            if c.answerer in backends or c.answerer in routes or any(_within(c.answerer, subnet) for subnet in subnets):
                found.add(Flow("", (c.protocol, c.port), c.answerer))
        return frozenset(found)

    def open_connections(self, network_id: str, addresses: set[str], containers: Mapping[str, str]) -> dict[str, int]:
        """Open TCP connections to each address that this node knows of. Those of its own clients are tracked in the network's namespace
        where the destination was translated; where only frames are addressed (direct routing), the container that took them over
        tracks them, whoever the client. `containers`: the path of each address that is here."""
        counts = dict.fromkeys(addresses, 0)
        name = self._names.namespace(network_id)
        spaces = {self._namespaces.path(name), *(containers[a] for a in addresses if a in containers)}
        for path in sorted(spaces):
            with suppress(NamespaceGone), inside(path):
                for c in conntrack.connections():
                    if c.open and c.translated and c.answerer in counts:
                        counts[c.answerer] += 1
        return counts

    # ---------------------------------------------------------------- running

    def run(self, op: plan.Op) -> None:
        """Idempotent: running it again after an interruption ends in the same place. Raises KernelError."""
        match op:
            case plan.CreateNamespace(name):
                self._namespaces.create(name, self._mark)
            case plan.DeleteNamespace(name):
                self._delete_namespace(name)
            case plan.PutTunnel():
                self._put_tunnel(op)
            case plan.Attach():
                self._attach(op)
            case plan.DeletePolicies() | plan.LoadNft(desired=None) if is_container(op.namespace):
                # it went with its namespace
                with suppress(NamespaceGone), self._inside(op.namespace):
                    self._run_inside(op)
            case _:
                with self._inside(op.namespace):
                    self._run_inside(op)

    def _run_inside(self, op: plan.Op) -> None:
        match op:
            case plan.PutSysctls(_, values):
                return sysctl.put(values)
            case plan.LoadNft(_, desired, actual, text):
                table = desired or actual
                assert table is not None
                return self._nft.load(text, table.name, table.family, desired)
            case plan.ChangeElements(_, wanted, _, changes):
                return self._nft.change(changes, wanted.name, wanted.family, wanted)
            case plan.ForgetFlows():
                return self._forget(op)
            case plan.PutIpvs(_, services):
                return ipvs_netlink.Ipvs(self._ipvs_family).put(services)
            case plan.DeleteIpvs(_, gone):
                return ipvs_netlink.Ipvs(self._ipvs_family).delete(gone)
            case plan.PutIpvsTimeout(_, timeout_s):
                return ipvs_netlink.Ipvs(self._ipvs_family).put_timeout(timeout_s)
            case plan.PutPolicies(_, policies):
                return policy.put(policies)
            case plan.DeletePolicies(_, policies):
                return policy.delete(policies)
            case plan.PutEngineAccept(_, rule):
                return docker_user.put(self._iptables, rule) if self._iptables else None
            case plan.DeleteEngineAccept(_, rule):
                return docker_user.delete(self._iptables, rule) if self._iptables else None
            case plan.CreateNamespace() | plan.DeleteNamespace() | plan.PutTunnel() | plan.Attach():
                raise AssertionError(op)
            case _:
                with Netlink(NETLINK_ROUTE) as netlink:
                    return self._run_link(netlink, op)

    def _run_link(
        self,
        netlink: Netlink,
        op: plan.PutBridge
        | plan.DeleteLink
        | plan.PutAddresses
        | plan.DeleteAddresses
        | plan.PutNeighbours
        | plan.DeleteNeighbours
        | plan.PutTunnels
        | plan.DeleteTunnels
        | plan.PutHostRoute
        | plan.DeleteHostRoute,
    ) -> None:
        match op:
            case plan.PutBridge(_, bridge):
                link.put_bridge(netlink, bridge)
            case plan.DeleteLink(_, name):
                link.delete_link(netlink, name)
            case plan.PutAddresses(_, name, addresses):
                rows.put_addresses(netlink, link.index(name), addresses)
            case plan.DeleteAddresses(_, name, addresses):
                rows.delete_addresses(netlink, link.index(name), addresses)
            case plan.PutNeighbours(_, pairs):
                rows.put_neighbours(netlink, link.index(TUNNEL), pairs)
            case plan.DeleteNeighbours(_, addresses):
                rows.delete_neighbours(netlink, link.index(TUNNEL), addresses)
            case plan.PutTunnels(_, pairs):
                rows.put_tunnels(netlink, link.index(TUNNEL), pairs)
            case plan.DeleteTunnels(_, macs):
                rows.delete_tunnels(netlink, link.index(TUNNEL), macs)
            case plan.PutHostRoute(_, address, name):
                length = 128 if ":" in address else 32
                link.put_route(netlink, link.Route(f"{address}/{length}", "", link.index(name)))
            case plan.DeleteHostRoute(_, address, name):
                present = link.links(netlink).get(name)
                if present is not None:
                    length = 128 if ":" in address else 32
                    link.delete_route(netlink, link.Route(f"{address}/{length}", "", present.index))
            case _:
                assert_never(op)

    def _delete_namespace(self, name: str) -> None:
        if self._namespaces.alive(name):
            # Links go now, not when the kernel gets round to it: the VNI is free and containers lose the interface at once.
            with self._inside(name), Netlink(NETLINK_ROUTE) as netlink:
                for item in link.links(netlink).values():
                    if item.kind in ("veth", "vxlan", "bridge"):
                        link.delete_link(netlink, item.name)
        self._namespaces.delete(name)

    def _put_tunnel(self, op: plan.PutTunnel) -> None:
        with self._inside(op.namespace), Netlink(NETLINK_ROUTE) as netlink:
            present = link.links(netlink).get(TUNNEL)
            if present is not None and (op.replace or present.kind != "vxlan"):
                link.delete_link(netlink, TUNNEL)
                present = None
        if present is None:
            descriptor = open_namespace(self._namespaces.path(op.namespace))
            try:
                with Netlink(NETLINK_ROUTE) as host:
                    self._create_tunnel(host, op.tunnel, descriptor)
            finally:
                os.close(descriptor)
        with self._inside(op.namespace), Netlink(NETLINK_ROUTE) as netlink:
            try:
                link.join_tunnel(netlink, op.tunnel, BRIDGE)
            except KernelError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                detail = f"UDP port {op.tunnel.port} is in use by something else on this node: choose another VXLAN port"
                raise KernelError("bring up the VXLAN device", errno.EADDRINUSE, detail) from error

    def _create_tunnel(self, host: Netlink, tunnel: Tunnel, descriptor: int) -> None:
        deadline = time.monotonic() + _TUNNEL_WAIT_S
        while True:
            try:
                return link.create_tunnel(host, tunnel, descriptor)
            except KernelError as error:
                if error.errno != errno.EEXIST:
                    raise
                if time.monotonic() > deadline:
                    detail = f"VNI {tunnel.vni} on UDP port {tunnel.port} is in use by another VXLAN device of this node"
                    raise KernelError("create VXLAN device", errno.EEXIST, detail) from error
                time.sleep(0.02)

    def _attach(self, op: plan.Attach) -> None:
        attachment = op.attachment
        with self._inside(op.namespace), Netlink(NETLINK_ROUTE) as netlink:
            outer = link.links(netlink).get(attachment.name)
            if outer is not None and (op.replace or self._inner_index(outer, attachment) is None):
                link.delete_link(netlink, attachment.name)
                outer = None
            if outer is None:
                descriptor = open_namespace(attachment.netns)
                try:
                    link.create_veth(netlink, attachment, self._inner_name(attachment), descriptor)
                finally:
                    os.close(descriptor)
            link.repair_outer(netlink, attachment)
            outer = link.links(netlink)[attachment.name]
        with inside(attachment.netns), Netlink(NETLINK_ROUTE) as netlink:
            inner = _inner(link.links(netlink), outer, attachment)
            if inner is None:
                raise KernelError(f"attach {attachment.name} to {attachment.netns}", errno.ENODEV)
            link.set_up(netlink, "lo")
            link.set_up(netlink, inner.name, attachment.mtu)
            if any(":" in address for address in attachment.addresses):
                # the Engine disables IPv6 in containers that it gives no network
                sysctl.put([(f"net.ipv6.conf.{inner.name}.disable_ipv6", "0")])
            rows.put_addresses(netlink, inner.index, sorted(attachment.addresses))
            for destination in sorted(attachment.routes):
                link.put_route(netlink, link.Route(destination, "", inner.index))
            if attachment.default_via:
                link.put_route(netlink, link.Route("", attachment.default_via, inner.index))
            if attachment.reply_via:
                own = ip_interface(next(iter(attachment.addresses)))
                answers = link.RT_TABLE_ANSWERS
                link.put_route(netlink, link.Route(str(own.network), "", inner.index, answers))
                link.put_route(netlink, link.Route("", attachment.reply_via, inner.index, answers, str(own.ip)))

    def _inner_index(self, outer: link.Link, attachment: Attachment) -> int | None:
        with inside(attachment.netns), Netlink(NETLINK_ROUTE) as netlink:
            inner = _inner(link.links(netlink), outer, attachment)
        return inner.index if inner else None

    def _inner_name(self, attachment: Attachment) -> str:
        if attachment.inner != "eth":
            return attachment.inner
        with inside(attachment.netns), Netlink(NETLINK_ROUTE) as netlink:
            taken = link.links(netlink)
        return next(name for name in (f"eth{n}" for n in range(len(taken) + 1)) if name not in taken)

    def _forget(self, op: plan.ForgetFlows) -> None:
        if op.namespace == HOST:
            translated = {f for f in op.flows if f.backend}
            if translated:
                answerers = {f.backend for f in translated}
                conntrack.forget(
                    lambda c: Flow("", (c.protocol, c.port), c.answerer) in translated, addresses=answerers, translated_only=True
                )
            refused = {f.port for f in op.flows if not f.backend}
            if refused:
                conntrack.forget(lambda c: not c.translated and c.protocol == 17 and (17, c.port) in refused)
            return
        shared = {f.destination for f in op.flows if f.port is not None}
        conntrack.forget(lambda c: _network_flow(c, shared) in op.flows, addresses={f.backend or f.destination for f in op.flows})

    def _inside(self, namespace: str) -> AbstractContextManager[None]:
        return nullcontext() if namespace == HOST else inside(self._namespaces.path(namespace))


def _network_flow(c: conntrack.Connection, shared: set[str]) -> Flow:
    port = (c.protocol, c.port) if c.destination in shared else None
    return Flow(c.destination, port, c.answerer if c.translated else "")


def _inner(links: Mapping[str, link.Link], outer: link.Link, attachment: Attachment) -> link.Link | None:
    """The other end of `outer`: each names the other's index, and the MAC is ours. Indexes alone repeat in every namespace."""
    for item in links.values():
        if item.kind == "veth" and item.index == outer.peer and item.peer == outer.index and item.mac == attachment.mac:
            return item
    return None


def _bridge(item: link.Link | None) -> Bridge | None:
    return Bridge(item.name, item.mac, item.mtu, item.up) if item else None


def _within(address: str, cidr: str) -> bool:
    return ip_address(address) in ip_interface(cidr).network
