"""Virtual services and published ports as IPVS services keyed by firewall mark, and the nft table that sets the marks.

Pure. Source: ip_vs(4) as in linux/ip_vs.h. The mark of a VIP is its address as a number (a hash for IPv6), that of a published port
(protocol << 16 | port): the two ranges never meet, 0.0.0.0/8 is nobody's address. Forwarding is by masquerading towards the LB address,
with connection tracking, so that it needs nothing in a backend's namespace and calls of a service to itself work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Final

from mesh.address import family
from mesh.balance import PROTOCOL_NUMBERS, TABLE, balancer_table
from mesh.errors import ConfigError
from mesh.model import Backend, Network, PublishedPort
from mesh.nft import hook, rules
from mesh.table import IpvsDestination, IpvsService, NftChain, NftMap, NftTable

IPVS_SYSCTLS: Final = {
    # without it the packet of a masqueraded service skips nat postrouting, and the backend would answer the client directly
    "net.ipv4.vs.conntrack": "1",
    # a backend that is gone: answer with a reset, don't swallow
    "net.ipv4.vs.expire_nodest_conn": "1",
    # a client that reuses a source port gets a fresh choice
    "net.ipv4.vs.conn_reuse_mode": "1",
}


def vip_mark(vip: str) -> int:
    parsed = ip_address(vip)
    if parsed.version == 4:
        return int(parsed)
    return int.from_bytes(hashlib.sha256(parsed.packed).digest()[:4], "big") | 0x01000000


def port_mark(protocol: int, port: int) -> int:
    return protocol << 16 | port


def ipvs_services(network: Network, published: Iterable[PublishedPort]) -> dict[int, IpvsService]:
    """By mark. Raises ConfigError when two VIPs share a mark (a collision of the IPv6 hash)."""
    services: dict[int, IpvsService] = {}
    for service in network.services:
        mark = vip_mark(service.vip)
        if mark in services:
            raise ConfigError(
                f"network {network.id}: services", f"the firewall mark of {service.vip} is taken by another VIP: choose another address"
            )
        services[mark] = IpvsService(mark, family(service.vip), service.scheduler, service.affinity_s, _destinations(service.backends, 0))
    if network.ingress:
        for port in published:
            mark = port_mark(PROTOCOL_NUMBERS[port.protocol], port.published)
            services[mark] = IpvsService(mark, family(network.lb_address), port.scheduler, 0, _destinations(port.backends, port.target))
    return services


def _destinations(backends: Iterable[Backend], port: int) -> frozenset[IpvsDestination]:
    return frozenset(IpvsDestination(b.address, port, b.weight) for b in backends)


def marking_table(network: Network, families: Sequence[int], published: Iterable[PublishedPort]) -> NftTable:
    """VIP -> mark, port -> mark. A service that no backend serves has no mark: its packets are refused by the namespace itself."""
    # address translation to the LB address and the rules of the uplink are the same as the other balancer's
    same = balancer_table(network, families, ())
    maps: dict[str, NftMap] = {}
    marking: list[str] = []
    for version in families:
        ip = "ip" if version == 4 else "ip6"
        vips = {s.vip: str(vip_mark(s.vip)) for s in network.services if family(s.vip) == version and any(b.weight > 0 for b in s.backends)}
        maps[f"vip_marks{version}"] = NftMap(f"ipv{version}_addr", "mark", vips)
        marking.append(f"meta l4proto {{ 6, 17, 132 }} meta mark set {ip} daddr map @vip_marks{version}")
    if network.ingress:
        ports = {
            f"{PROTOCOL_NUMBERS[p.protocol]} . {p.published}": str(port_mark(PROTOCOL_NUMBERS[p.protocol], p.published))
            for p in published
            if any(b.weight > 0 for b in p.backends)
        }
        maps["port_marks"] = NftMap("inet_proto . inet_service", "mark", ports)
        ip = "ip" if family(network.lb_address) == 4 else "ip6"
        marking.append(f"{ip} daddr {network.lb_address} meta mark set meta l4proto . th dport map @port_marks")
    ip = "ip" if family(network.lb_address) == 4 else "ip6"
    chains = {
        "prerouting": NftChain(hook("filter", "prerouting", -150), rules(*marking)),
        # IPVS changes the destination itself, so conntrack's dnat status is set only on its say: go by the mark
        "postrouting": NftChain(hook("nat", "postrouting", 100), rules(f"meta mark != 0 snat {ip} to {network.lb_address}")),
    }
    if "forward" in same.chains:
        # IPVS sends from the input hook: what it balances is never forwarded, so only answers may cross
        chains["forward"] = NftChain(hook("filter", "forward", 0), rules("ct direction original drop"))
    return NftTable(TABLE, maps, chains)
