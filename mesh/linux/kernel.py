"""The kernel behind the tables: what it is, what of ours it has (`mesh.linux.reading`), one operation run.

Edge. All calls must come from one thread, the one whose namespace is the host's.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from ipaddress import ip_interface
from typing import Final, assert_never

from mesh import operations as ops
from mesh.address import address_of_gateway_port
from mesh.errors import ConfigError, KernelError, KernelUnsupported, NamespaceGone
from mesh.facts import Facts
from mesh.linux import conntrack, docker_user, link, nftables, policy, rows, sysctl, wireguard
from mesh.linux import ipvs as ipvs_netlink
from mesh.linux.events import Events
from mesh.linux.namespace import Namespaces, inode, inside, open_namespace
from mesh.linux.netlink import NETLINK_ROUTE, Netlink
from mesh.linux.reading import Means, Reading, inner_end, network_flow
from mesh.model import NodeState
from mesh.render import Names
from mesh.table import BRIDGE, HOST, TUNNEL, Attachment, Flow, NamespaceTable, Tables, Tunnel, is_container

_TUNNEL_WAIT_S: Final = 5.0
"""A deleted namespace is taken apart in the background; until then its VXLAN device holds the VNI."""


class Kernel:
    def __init__(self, names: Names, namespaces: Namespaces) -> None:
        self._means = Means(names, namespaces, nftables.Nft())

    # ---------------------------------------------------------------- facts

    def facts(self, state: NodeState) -> Facts:
        """What `render` must know of this machine now. Raises ConfigError when the underlay address is not here, KernelUnsupported when
        the balancer is not."""
        with Netlink(NETLINK_ROUTE) as netlink:
            by_index = {item.index: item for item in link.links(netlink).values()}
            bridge = next((item.index for item in by_index.values() if item.name == self._means.names.gateway_bridge), 0)
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
        if state.balancer == "ipvs" and self._means.ipvs_family is None:
            raise KernelUnsupported("use IPVS", errno.ENOENT, "the kernel has no ip_vs: choose the nftables balancer")
        host_id = inode("/proc/thread-self/ns/net")
        assert host_id is not None
        return Facts(
            # 65536 of a loopback is more than other links take
            underlay_mtu=min(by_index[underlay].mtu, 65535),
            host_id=host_id,
            netns=self.netns_inodes(state),
            directory=self._means.namespaces.path("").rstrip("/"),
            gateways=gateways,
            has_bridge_netfilter=sysctl.exists("net.bridge.bridge-nf-call-iptables"),
            has_ipv6=sysctl.exists("net.ipv6.conf.all.disable_ipv6"),
            has_docker_user=self._means.iptables is not None,
            has_wireguard=any(n.encrypted for n in state.networks) and wireguard.available(),
        )

    def discover(self) -> None:
        """Find out by what means to look: an Engine's chain, IPVS."""
        self._means.iptables = docker_user.tool()
        self._means.ipvs_family = ipvs_netlink.family_id()

    def netns_inodes(self, state: NodeState) -> dict[str, int | None]:
        paths = {s.netns for s in state.sandboxes} | {e.netns for n in state.networks for e in n.local}
        return {path: inode(path) for path in paths}

    def followed_by(self, events: Events) -> None:
        """Have our namespaces heard."""
        events.follow(self._means.namespaces.path(n) for n in self._means.namespaces.names() if self._means.names.owns_namespace(n))

    # ---------------------------------------------------------------- reading

    def read(self, desired: Tables) -> dict[str, NamespaceTable]:
        return Reading(self._means).read(desired)

    def read_containers(self, paths: Iterable[str] | None = None) -> dict[str, NamespaceTable]:
        return Reading(self._means).read_containers(paths)

    def open_connections(self, network_id: str, addresses: set[str], containers: Mapping[str, str]) -> dict[str, int]:
        """Open TCP connections to each address that this node knows of. Those of its own clients are tracked in the network's namespace
        where the destination was translated; where only frames are addressed (direct routing), the container that took them over
        tracks them, whoever the client. `containers`: the path of each address that is here."""
        counts = dict.fromkeys(addresses, 0)
        name = self._means.names.namespace(network_id)
        spaces = {self._means.namespaces.path(name), *(containers[a] for a in addresses if a in containers)}
        for path in sorted(spaces):
            with suppress(NamespaceGone), inside(path):
                for c in conntrack.connections():
                    if c.open and c.translated and c.answerer in counts:
                        counts[c.answerer] += 1
        return counts

    # ---------------------------------------------------------------- running

    def run(self, op: ops.Op) -> None:
        """Idempotent: running it again after an interruption ends in the same place. Raises KernelError."""
        match op:
            case ops.CreateNamespace(name):
                self._means.namespaces.create(name, self._mark)
            case ops.DeleteNamespace(name):
                self._delete_namespace(name)
            case ops.PutTunnel():
                self._put_tunnel(op)
            case ops.PutWireGuard():
                self._put_wireguard(op)
            case ops.Attach():
                self._attach(op)
            case ops.DeletePolicies() | ops.LoadNft(desired=None) if is_container(op.namespace):
                # it went with its namespace
                with suppress(NamespaceGone), self._inside(op.namespace):
                    self._run_inside(op)
            case _:
                with self._inside(op.namespace):
                    self._run_inside(op)

    def _run_inside(self, op: ops.Op) -> None:
        match op:
            case ops.PutSysctls(_, values):
                return sysctl.put(values)
            case ops.LoadNft(_, desired, actual, text):
                table = desired or actual
                assert table is not None
                return self._means.nft.load(text, table.name, table.family, desired)
            case ops.ChangeElements(_, wanted, _, changes):
                return self._means.nft.change(changes, wanted.name, wanted.family, wanted)
            case ops.ForgetFlows():
                return self._forget(op)
            case ops.PutIpvs(_, services):
                return ipvs_netlink.Ipvs(self._means.ipvs_family).put(services)
            case ops.DeleteIpvs(_, gone):
                return ipvs_netlink.Ipvs(self._means.ipvs_family).delete(gone)
            case ops.PutIpvsTimeout(_, timeout_s):
                return ipvs_netlink.Ipvs(self._means.ipvs_family).put_timeout(timeout_s)
            case ops.PutPolicies(_, policies):
                return policy.put(policies)
            case ops.DeletePolicies(_, policies):
                return policy.delete(policies)
            case ops.PutEngineAccept(_, rule):
                return docker_user.put(self._means.iptables, rule) if self._means.iptables else None
            case ops.DeleteEngineAccept(_, rule):
                return docker_user.delete(self._means.iptables, rule) if self._means.iptables else None
            case ops.PutPeers(_, device, peers):
                return wireguard.put_peers(device, peers)
            case ops.DeletePeers(_, device, keys):
                return wireguard.delete_peers(device, keys)
            case ops.CreateNamespace() | ops.DeleteNamespace() | ops.PutTunnel() | ops.PutWireGuard() | ops.Attach():
                raise AssertionError(op)
            case _:
                with Netlink(NETLINK_ROUTE) as netlink:
                    return self._run_link(netlink, op)

    def _run_link(
        self,
        netlink: Netlink,
        op: ops.PutBridge
        | ops.DeleteLink
        | ops.PutAddresses
        | ops.DeleteAddresses
        | ops.PutNeighbours
        | ops.DeleteNeighbours
        | ops.PutTunnels
        | ops.DeleteTunnels
        | ops.PutHostRoute
        | ops.DeleteHostRoute,
    ) -> None:
        match op:
            case ops.PutBridge(_, bridge):
                link.put_bridge(netlink, bridge)
            case ops.DeleteLink(_, name):
                link.delete_link(netlink, name)
            case ops.PutAddresses(_, name, addresses):
                rows.put_addresses(netlink, link.index(name), addresses)
            case ops.DeleteAddresses(_, name, addresses):
                rows.delete_addresses(netlink, link.index(name), addresses)
            case ops.PutNeighbours(_, pairs):
                rows.put_neighbours(netlink, link.index(TUNNEL), pairs)
            case ops.DeleteNeighbours(_, addresses):
                rows.delete_neighbours(netlink, link.index(TUNNEL), addresses)
            case ops.PutTunnels(_, pairs):
                rows.put_tunnels(netlink, link.index(TUNNEL), pairs)
            case ops.DeleteTunnels(_, macs):
                rows.delete_tunnels(netlink, link.index(TUNNEL), macs)
            case ops.PutHostRoute(_, address, name):
                length = 128 if ":" in address else 32
                link.put_route(netlink, link.Route(f"{address}/{length}", "", link.index(name)))
            case ops.DeleteHostRoute(_, address, name):
                present = link.links(netlink).get(name)
                if present is not None:
                    length = 128 if ":" in address else 32
                    link.delete_route(netlink, link.Route(f"{address}/{length}", "", present.index))
            case _:
                assert_never(op)

    def _delete_namespace(self, name: str) -> None:
        if self._means.namespaces.alive(name):
            # Links go now, not when the kernel gets round to it: the VNI is free and containers lose the interface at once.
            with self._inside(name), Netlink(NETLINK_ROUTE) as netlink:
                for item in link.links(netlink).values():
                    if item.kind in ("veth", "vxlan", "bridge", "wireguard"):
                        link.delete_link(netlink, item.name)
        self._means.namespaces.delete(name)

    def _put_tunnel(self, op: ops.PutTunnel) -> None:
        with self._inside(op.namespace), Netlink(NETLINK_ROUTE) as netlink:
            present = link.links(netlink).get(TUNNEL)
            if present is not None and (op.replace or present.kind != "vxlan"):
                link.delete_link(netlink, TUNNEL)
                present = None
        if present is None:
            descriptor = open_namespace(self._means.namespaces.path(op.namespace))
            try:
                # its packets leave by the namespace it is created from
                with self._inside(self._means.names.encryption if op.tunnel.encrypted else HOST), Netlink(NETLINK_ROUTE) as under:
                    self._create_tunnel(under, op.tunnel, descriptor)
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

    def _put_wireguard(self, op: ops.PutWireGuard) -> None:
        device = op.device
        with self._inside(op.namespace), Netlink(NETLINK_ROUTE) as netlink:
            present = link.links(netlink).get(op.name)
            if present is not None and present.kind != "wireguard":
                link.delete_link(netlink, op.name)
                present = None
        if present is None:
            descriptor = open_namespace(self._means.namespaces.path(op.namespace))
            try:
                with Netlink(NETLINK_ROUTE) as host:
                    link.create_wireguard(host, op.name, device, descriptor)
            finally:
                os.close(descriptor)
        with self._inside(op.namespace), Netlink(NETLINK_ROUTE) as netlink:
            wireguard.put_device(op.name, device.private_key, device.port)
            number = link.index(op.name)
            link.set_mtu(netlink, op.name, device.mtu)
            stale = rows.addresses(netlink).get(number, set()) - {device.address}
            rows.put_addresses(netlink, number, [device.address])
            rows.delete_addresses(netlink, number, sorted(stale))
            try:
                link.set_up(netlink, op.name)
            except KernelError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                detail = f"UDP port {device.port} is in use by something else on this node: encrypted networks need it"
                raise KernelError(f"bring up the WireGuard device {op.name}", errno.EADDRINUSE, detail) from error

    def _attach(self, op: ops.Attach) -> None:
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
            inner = inner_end(link.links(netlink), outer, attachment)
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
            inner = inner_end(link.links(netlink), outer, attachment)
        return inner.index if inner else None

    def _inner_name(self, attachment: Attachment) -> str:
        if attachment.inner != "eth":
            return attachment.inner
        with inside(attachment.netns), Netlink(NETLINK_ROUTE) as netlink:
            taken = link.links(netlink)
        return next(name for name in (f"eth{n}" for n in range(len(taken) + 1)) if name not in taken)

    def _forget(self, op: ops.ForgetFlows) -> None:
        if op.namespace == HOST:
            translated = {f for f in op.flows if f.backend}
            if translated:
                answerers = {f.backend for f in translated}
                conntrack.forget(
                    lambda c: Flow("", (c.protocol, c.port), c.answerer) in translated, answerers=answerers, translated_only=True
                )
            refused = {f.port for f in op.flows if not f.backend}
            if refused:
                conntrack.forget(lambda c: not c.translated and c.protocol == 17 and (17, c.port) in refused)
            return
        shared = {f.destination for f in op.flows if f.port is not None}
        conntrack.forget(lambda c: network_flow(c, shared) in op.flows, answerers={f.backend or f.destination for f in op.flows})

    def _mark(self) -> None:
        with Netlink(NETLINK_ROUTE) as netlink:
            link.mark_loopback(netlink, self._means.names.mark)

    def _inside(self, namespace: str) -> AbstractContextManager[None]:
        return nullcontext() if namespace == HOST else inside(self._means.namespaces.path(namespace))
