"""A strict kernel in memory: runs the operations of a plan, refuses what the real one would refuse, is asked about packets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mesh import operations as ops
from mesh.address import mac
from mesh.nft import element_changes, script
from mesh.table import HOST, NamespaceTable, NftTable, Tables, is_container

CONTAINERS = {"/c/x": 10, "/c/x2": 11, "/c/y": 12, "/c/gone": None}


class Refused(Exception):
    """The real kernel would have said no."""


class FakeKernel:
    """`containers`: those that are alive, inode by path."""

    def __init__(self, tables: Tables, containers: Mapping[str, int | None] = CONTAINERS) -> None:
        self.tables: dict[str, NamespaceTable] = dict(tables)
        self.containers = containers

    def run(self, op: ops.Op) -> None:
        if isinstance(op, ops.CreateNamespace):
            if op.namespace in self.tables:
                raise Refused(op)
            self.tables[op.namespace] = NamespaceTable()
            return
        if is_container(op.namespace):
            present = self.tables.get(op.namespace, NamespaceTable(netns_id=self.containers[op.namespace] or 0))
            self.tables[op.namespace] = self._in_container(present, op)
            return
        if op.namespace not in self.tables and op.namespace != HOST:
            raise Refused(op)
        if isinstance(op, ops.DeleteNamespace):
            del self.tables[op.namespace]
            return
        self.tables[op.namespace] = self._changed(self.tables.get(op.namespace, NamespaceTable()), op)

    def _in_container(self, t: NamespaceTable, op: ops.Op) -> NamespaceTable:
        match op:
            case ops.LoadNft(_, desired, actual, text):
                if t.nft != actual or script(desired, actual) != text:
                    raise Refused(op)
                return replace(t, nft=desired)
            case ops.ChangeElements(_, desired, actual, changes):
                if t.nft != actual or element_changes(desired, actual) != changes:
                    raise Refused(op)
                return replace(t, nft=desired)
            case ops.PutPolicies(_, policies):
                return replace(t, policies=t.policies | set(policies))
            case ops.DeletePolicies(_, policies):
                if not set(policies) <= t.policies:
                    raise Refused(op)
                return replace(t, policies=t.policies - set(policies))
        raise Refused(op)

    def _changed(self, t: NamespaceTable, op: ops.Op) -> NamespaceTable:
        match op:
            case ops.PutBridge(_, bridge):
                return replace(t, bridge=bridge)
            case ops.PutSysctls(_, values):
                for name, _value in values:
                    link = name.split(".")[3] if ".conf." in name else "all"
                    known = {"all", t.bridge.name if t.bridge else "all", *t.attachments}
                    if link not in known:
                        raise Refused(op)
                return replace(t, sysctls={**t.sysctls, **dict(values)})
            case ops.PutTunnel(_, tunnel, replaced):
                if t.bridge is None:
                    raise Refused(op)
                if t.tunnel and not replaced and (t.tunnel.vni, t.tunnel.local, t.tunnel.port) != (tunnel.vni, tunnel.local, tunnel.port):
                    raise Refused(op)
                if replaced:
                    t = replace(t, tunnels={}, neighbours={})
                return replace(t, tunnel=tunnel)
            case ops.PutWireGuard(_, name, device):
                return replace(t, wireguards={**t.wireguards, name: device})
            case ops.PutPeers(_, device, rows):
                if device not in t.wireguards:
                    raise Refused(op)
                # an address belongs to one peer of a device
                taken = {cidr for _, peer in rows for cidr in peer.allowed}
                kept = {k: replace(p, allowed=p.allowed - taken) if k[0] == device else p for k, p in t.peers.items()}
                return replace(t, peers={**kept, **{(device, key): peer for key, peer in rows}})
            case ops.DeletePeers(_, device, keys):
                if not {(device, key) for key in keys} <= t.peers.keys():
                    raise Refused(op)
                return replace(t, peers={k: p for k, p in t.peers.items() if not (k[0] == device and k[1] in keys)})
            case ops.PutAddresses(_, link, addresses):
                if t.bridge is None or t.bridge.name != link:
                    raise Refused(op)
                return replace(t, addresses=t.addresses | set(addresses))
            case ops.DeleteAddresses(_, link, addresses):
                if t.bridge is None or t.bridge.name != link or not set(addresses) <= t.addresses:
                    raise Refused(op)
                return replace(t, addresses=t.addresses - set(addresses))
            case ops.PutTunnels(_, rows):
                if t.tunnel is None:
                    raise Refused(op)
                return replace(t, tunnels={**t.tunnels, **dict(rows)})
            case ops.DeleteTunnels(_, macs):
                if t.tunnel is None or not set(macs) <= t.tunnels.keys():
                    raise Refused(op)
                return replace(t, tunnels={k: v for k, v in t.tunnels.items() if k not in macs})
            case ops.PutNeighbours(_, rows):
                if t.tunnel is None:
                    raise Refused(op)
                return replace(t, neighbours={**t.neighbours, **dict(rows)})
            case ops.DeleteNeighbours(_, addresses):
                if t.tunnel is None or not set(addresses) <= t.neighbours.keys():
                    raise Refused(op)
                return replace(t, neighbours={k: v for k, v in t.neighbours.items() if k not in addresses})
            case ops.Attach(_, attachment, replaced):
                old = t.attachments.get(attachment.name)
                if attachment.bridge and (t.bridge is None or t.bridge.name != attachment.bridge):
                    raise Refused(op)
                if old and not replaced and old.netns_id != attachment.netns_id:
                    raise Refused(op)
                if "run/netns" in attachment.netns and attachment.netns.rpartition("/")[2] not in self.tables:
                    raise Refused(op)
                if replaced or not old:
                    # what hung on the old link went with it
                    t = replace(
                        t,
                        host_routes={a: via for a, via in t.host_routes.items() if via != attachment.name},
                        sysctls={k: v for k, v in t.sysctls.items() if f".conf.{attachment.name}." not in k},
                    )
                return replace(t, attachments={**t.attachments, attachment.name: attachment})
            case ops.DeleteLink(_, name):
                if t.bridge and t.bridge.name == name:
                    return replace(t, bridge=None, addresses=frozenset())
                if name in t.wireguards:
                    return replace(
                        t,
                        wireguards={k: d for k, d in t.wireguards.items() if k != name},
                        peers={k: p for k, p in t.peers.items() if k[0] != name},
                        host_routes={a: via for a, via in t.host_routes.items() if via != name},
                    )
                if name not in t.attachments:
                    raise Refused(op)
                left = {k: v for k, v in t.attachments.items() if k != name}
                return replace(t, attachments=left, host_routes={a: via for a, via in t.host_routes.items() if via != name})
            case ops.PutHostRoute(_, address, link):
                if link not in t.attachments and link not in t.wireguards:
                    raise Refused(op)
                return replace(t, host_routes={**t.host_routes, address: link})
            case ops.DeleteHostRoute(_, address, _link):
                if address not in t.host_routes:
                    raise Refused(op)
                return replace(t, host_routes={k: v for k, v in t.host_routes.items() if k != address})
            case ops.LoadNft(_, desired, actual, text):
                if (desired or actual).family == "bridge":  # type: ignore[union-attr]
                    return replace(t, frames=desired)
                if t.nft != actual or script(desired, actual) != text:
                    raise Refused(op)
                if desired:
                    check_references(desired)
                return replace(t, nft=desired)
            case ops.ChangeElements(_, desired, actual, changes):
                if desired.family == "bridge":
                    return replace(t, frames=desired)
                if t.nft != actual or element_changes(desired, actual) != changes:
                    raise Refused(op)
                check_references(desired)
                return replace(t, nft=desired)
            case ops.ForgetFlows(_, flows):
                return replace(t, flows=t.flows - flows)
            case ops.PutEngineAccept(_, rule):
                return replace(t, engine_accepts=t.engine_accepts | {rule})
            case ops.DeleteEngineAccept(_, rule):
                return replace(t, engine_accepts=t.engine_accepts - {rule})
            case ops.PutIpvs(_, changes):
                if any(t.ipvs.get(wanted.mark) != present for wanted, present in changes):
                    raise Refused(op)
                return replace(t, ipvs={**t.ipvs, **{wanted.mark: wanted for wanted, _ in changes}})
            case ops.PutIpvsTimeout(_, timeout_s):
                return replace(t, ipvs_timeout_s=timeout_s)
            case ops.DeleteIpvs(_, services):
                gone = {service.mark for service in services}
                if not gone <= t.ipvs.keys():
                    raise Refused(op)
                return replace(t, ipvs={k: v for k, v in t.ipvs.items() if k not in gone})
        raise AssertionError(op)

    # ------------------------------------------------------------ packets

    def reaches(self, namespace: str, address: str) -> bool:
        """A frame to `address` arrives: by a local link, or by neighbour + tunnel row."""
        t = self.tables.get(namespace, NamespaceTable())
        if t.bridge is None:
            return False
        for attachment in t.attachments.values():
            if any(cidr.partition("/")[0] == address for cidr in attachment.addresses):
                return not t.ipvs or self.takes(attachment.netns, address)
        return t.tunnel is not None and t.neighbours.get(address) == mac(address) and mac(address) in t.tunnels

    def takes(self, path: str, address: str) -> bool:
        """The container at `path` answers what is sent to it with another address of the network as destination."""
        nft = self.tables.get(path, NamespaceTable()).nft
        texts = [rule.text for rule in nft.chains["prerouting"].rules] if nft else []
        return any(f"ether daddr {mac(address)} " in text and text.endswith(f"dnat ip to {address}") for text in texts)

    def backends(self, namespace: str, vip: str) -> set[str] | None:
        """Where new connections to the VIP go; None: there is no such VIP; empty: refused."""
        t = self.tables.get(namespace, NamespaceTable())
        if f"{vip}/32" not in t.addresses:
            return None
        if t.ipvs or (t.nft and "vip_marks4" in t.nft.maps):
            mark = t.nft.maps["vip_marks4"].elements.get(vip) if t.nft else None
            service = t.ipvs.get(int(mark)) if mark else None
            return {d.address for d in service.destinations if d.weight} if service else set()
        if t.nft is None or vip not in t.nft.maps["vips4"].elements:
            return set()
        chain = t.nft.chains[t.nft.maps["vips4"].elements[vip].removeprefix("goto ")]
        count = int(chain.rules[0].text.rpartition("mod ")[2].split()[0])
        return {t.nft.maps["backends4"].elements[f"{vip} . {n}"] for n in range(count)}

    def live(self, namespace: str, vip: str) -> bool:
        """Somebody answers, whichever backend is drawn."""
        backends = self.backends(namespace, vip)
        return bool(backends) and all(self.reaches(namespace, b) for b in backends or ())

    def carries(self, namespace: str, address: str) -> bool:
        """A packet to this tunnel address leaves by a device that has a peer for it."""
        t = self.tables.get(namespace, NamespaceTable())
        device = t.host_routes.get(address)
        return any(of == device and f"{address}/128" in peer.allowed for (of, _), peer in t.peers.items())

    def published(self, port: str) -> bool:
        """The port leads to the ingress network: translated, routed, attached."""
        t = self.tables.get(HOST, NamespaceTable())
        address = t.nft.maps["published"].elements.get(port) if t.nft else None
        return address is not None and t.host_routes.get(address) in t.attachments


def settled(tables: Tables) -> dict[str, NamespaceTable]:
    """Sysctls are only ever set, connections only ever forgotten: what is left of the former state doesn't count, nor does a container
    in which nothing of ours is left."""
    found = {name: replace(t, sysctls={}, flows=frozenset()) for name, t in tables.items() if not is_container(name) or t.nft or t.policies}
    return found | {HOST: found.get(HOST, NamespaceTable())}


def check_references(table: NftTable) -> None:
    for m in table.maps.values():
        for value in m.elements.values():
            if value.startswith("goto ") and value.removeprefix("goto ") not in table.chains:
                raise Refused(value)
