"""Virtual services and published ports as IPVS services keyed by firewall mark, and the nft table that sets the marks.

Pure. Source: linux/ip_vs.h, Documentation/networking/ipvs-sysctl.rst. Forwarding is direct routing: a packet keeps source and
destination, only the frame is addressed to the backend; `mesh.container` has the other half. Answers don't come back this way, so what
is sent like that is not tracked here. Where that can't work a second service with another mark masquerades towards the LB address:
a backend that calls its own service (the answer would never leave it), and clients of published ports whose address means nothing
elsewhere (127.0.0.1, a container's gateway address) or whose owner asked for it.

The mark of a VIP is the low 31 bits of its address (of a hash for IPv6), that of a published port (protocol << 16 | port); the top bit
tells masquerading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence, Set
from ipaddress import ip_address
from typing import Final

from mesh.address import family
from mesh.balance import PROTOCOL_NUMBERS, TABLE
from mesh.model import Backend, Network, PublishedPort, VirtualService
from mesh.nft import hook, rules
from mesh.parts import Part
from mesh.table import BRIDGE, UPLINK, IpvsDestination, IpvsService, NftChain, NftMap, NftTable

IPVS_SYSCTLS: Final = {
    # masquerading needs the connection tracked, or the packet skips nat postrouting and the backend answers the client directly
    "net.ipv4.vs.conntrack": "1",
    # a backend that is gone: its connections are forgotten with it, the client is refused at the next packet instead of waiting
    "net.ipv4.vs.expire_nodest_conn": "1",
    # affinity ends where draining begins: a client of a backend of weight 0 gets another one with its next connection
    "net.ipv4.vs.expire_quiescent_template": "1",
    # Answers don't pass here, so a connection that its server resets is remembered until its timeout. When memory runs short, the
    # kernel may drop those that carried few packets.
    "net.ipv4.vs.drop_entry": "1",
    # a client that reuses a source port gets a fresh choice
    "net.ipv4.vs.conn_reuse_mode": "1",
    # Take up connections in their middle. After a table was lost and rebuilt, schedulers that hash (sh, mh) find the old backend and
    # the connection goes on; a wrong backend resets it, which is what would happen anyway.
    "net.ipv4.vs.sloppy_tcp": "1",
    "net.ipv4.vs.sloppy_sctp": "1",
}

TCP_TIMEOUT_S: Final = 7500
"""Beyond the 7200 s of tcp_keepalive_time: idle connections outlive the kernel's first keep-alive. IPVS's own default is 900 s."""

MASQUERADED: Final = 0x80000000


def vip_mark(vip: str) -> int:
    parsed = ip_address(vip)
    if parsed.version == 4:
        return int(parsed) & ~MASQUERADED
    return int.from_bytes(hashlib.sha256(parsed.packed).digest()[:4], "big") & ~MASQUERADED | 0x01000000


def port_mark(protocol: int, port: int) -> int:
    return protocol << 16 | port


def ipvs_service(service: VirtualService, here: Set[str]) -> Part:
    """Its IPVS service and, where anybody serves it, the mark that leads there: packets of others are refused by the namespace itself.
    `here`: addresses of this node's endpoints; only they can be backends that call themselves by this table."""
    mark, version = vip_mark(service.vip), family(service.vip)
    own = sorted(b.address for b in service.backends if b.address in here)
    elements = [(f"vip_marks{version}", service.vip, str(mark))]
    elements += [(f"self_marks{version}", f"{address} . {service.vip}", str(mark | MASQUERADED)) for address in own]
    services = [_service(mark, version, service, 0)]
    if own:
        services.append(_service(mark | MASQUERADED, version, service, 0))
    return Part(elements=tuple(elements) if _served(service.backends) else (), ipvs=tuple(services))


def ipvs_port(port: PublishedPort, version: int) -> Part:
    number = PROTOCOL_NUMBERS[port.protocol]
    mark = port_mark(number, port.published)
    entry = mark | MASQUERADED if port.source_nat else mark
    elements = (("port_marks", f"{number} . {port.published}", str(entry)),) if _served(port.backends) else ()
    services = [_service(mark | MASQUERADED, version, port, port.target)]
    if not port.source_nat:
        services.append(_service(mark, version, port, 0))
    return Part(elements=elements, ipvs=tuple(services))


def _service(mark: int, version: int, service: VirtualService | PublishedPort, port: int) -> IpvsService:
    masqueraded = bool(mark & MASQUERADED)
    timeout_s = service.affinity_s if isinstance(service, VirtualService) else 0
    destinations = frozenset(IpvsDestination(b.address, port, b.weight, masqueraded) for b in service.backends)
    return IpvsService(mark, version, service.scheduler, timeout_s, destinations)


def _served(backends: Iterable[Backend]) -> bool:
    return any(b.weight > 0 for b in backends)


def marking_frame(network: Network, families: Sequence[int], gateway_subnet: str) -> NftTable:
    """The table of one network's namespace without its services and published ports: VIP -> mark, port -> mark."""
    maps: dict[str, NftMap] = {}
    marking: list[str] = []
    source: list[str] = []
    for version in families:
        ip = "ip" if version == 4 else "ip6"
        maps[f"vip_marks{version}"] = NftMap(f"ipv{version}_addr", "mark")
        maps[f"self_marks{version}"] = NftMap(f"ipv{version}_addr . ipv{version}_addr", "mark")
        # only what a service can carry: echo requests stay here and are answered
        marking.append(f'iifname "{BRIDGE}" meta l4proto {{ 6, 17, 132 }} meta mark set {ip} daddr map @vip_marks{version}')
        marking.append(f'iifname "{BRIDGE}" meta mark != 0 meta mark set {ip} saddr . {ip} daddr map @self_marks{version}')
        if family(network.lb_address) == version:
            source.append(f"meta mark & {MASQUERADED:#x} != 0 meta nfproto ipv{version} snat {ip} to {network.lb_address}")
        else:
            source.append(f"meta mark & {MASQUERADED:#x} != 0 meta nfproto ipv{version} masquerade")
    chains: dict[str, NftChain] = {}
    if network.ingress:
        maps["port_marks"] = NftMap("inet_proto . inet_service", "mark")
        lb = network.lb_address
        marking.append(f'iifname "{UPLINK}" ip daddr {lb} meta mark set meta l4proto . th dport map @port_marks')
        marking.append(f'iifname "{UPLINK}" meta mark != 0 ip saddr {gateway_subnet} meta mark set meta mark or {MASQUERADED:#x}')
        # answers to published ports, on their way out; their requests were not tracked either
        marking.append(f'iifname "{BRIDGE}" ip saddr {lb} notrack')
        # The uplink is a way in for published ports and a way out for their answers, and nothing else. IPVS sends from the input hook:
        # what it balances is never forwarded.
        leaves = f'iifname "{BRIDGE}" oifname "{UPLINK}"'
        chains["forward"] = NftChain(
            hook("filter", "forward", 0),
            rules(f"{leaves} ip saddr {lb} accept", f"{leaves} ct direction reply accept", "drop"),
        )
    marking.append(f"meta mark != 0 meta mark & {MASQUERADED:#x} == 0 notrack")
    # before connections are tracked
    chains["marking"] = NftChain(hook("filter", "prerouting", -300), rules(*marking))
    # IPVS changes the destination itself, so conntrack's dnat status is set only on its say: go by the mark
    chains["postrouting"] = NftChain(hook("nat", "postrouting", 100), rules(*source))
    return NftTable(TABLE, maps, chains)
