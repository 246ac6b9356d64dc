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
from mesh.balance import PROTOCOL_NUMBERS, TABLE
from mesh.model import Backend, Network, PublishedPort, VirtualService
from mesh.nft import hook, rules
from mesh.parts import Part
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


def ipvs_service(service: VirtualService) -> Part:
    """Its IPVS service and, where anybody serves it, the mark that leads there: packets of others are refused by the namespace itself."""
    mark, version = vip_mark(service.vip), family(service.vip)
    marking = ((f"vip_marks{version}", service.vip, str(mark)),) if _served(service.backends) else ()
    balanced = IpvsService(mark, version, service.scheduler, service.affinity_s, _destinations(service.backends, 0))
    return Part(elements=marking, ipvs=(balanced,))


def ipvs_port(port: PublishedPort, version: int) -> Part:
    number = PROTOCOL_NUMBERS[port.protocol]
    mark = port_mark(number, port.published)
    marking = (("port_marks", f"{number} . {port.published}", str(mark)),) if _served(port.backends) else ()
    return Part(elements=marking, ipvs=(IpvsService(mark, version, port.scheduler, 0, _destinations(port.backends, port.target)),))


def _served(backends: Iterable[Backend]) -> bool:
    return any(b.weight > 0 for b in backends)


def _destinations(backends: Iterable[Backend], port: int) -> frozenset[IpvsDestination]:
    return frozenset(IpvsDestination(b.address, port, b.weight) for b in backends)


def marking_frame(network: Network, families: Sequence[int]) -> NftTable:
    """The table of one network's namespace without its services and published ports: VIP -> mark, port -> mark."""
    maps: dict[str, NftMap] = {}
    marking: list[str] = []
    for version in families:
        ip = "ip" if version == 4 else "ip6"
        maps[f"vip_marks{version}"] = NftMap(f"ipv{version}_addr", "mark")
        marking.append(f"meta l4proto {{ 6, 17, 132 }} meta mark set {ip} daddr map @vip_marks{version}")
    ip = "ip" if family(network.lb_address) == 4 else "ip6"
    chains: dict[str, NftChain] = {}
    if network.ingress:
        maps["port_marks"] = NftMap("inet_proto . inet_service", "mark")
        marking.append(f"{ip} daddr {network.lb_address} meta mark set meta l4proto . th dport map @port_marks")
        # IPVS sends from the input hook: what it balances is never forwarded, so only answers may cross
        chains["forward"] = NftChain(hook("filter", "forward", 0), rules("ct direction original drop"))
    chains["prerouting"] = NftChain(hook("filter", "prerouting", -150), rules(*marking))
    # IPVS changes the destination itself, so conntrack's dnat status is set only on its say: go by the mark
    chains["postrouting"] = NftChain(hook("nat", "postrouting", 100), rules(f"meta mark != 0 snat {ip} to {network.lb_address}"))
    return NftTable(TABLE, maps, chains)
