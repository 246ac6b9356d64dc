"""A container's half of direct routing: what the balancer sends arrives unchanged and is taken as the container's own.

Pure. A packet whose frame is for this container but whose destination is another address of the network (a VIP, some node's LB address)
has its destination set to the container's address, its port to the published port's target; tracking undoes that in the answer. The rule
knows neither VIPs nor nodes, so it stays as it is for the container's life. Answers of published ports go back by way of the node's own
LB address, whoever the client is: by the container's ingress address as their source or, for UDP servers that don't bind to an
address, by their source port. On the bridge `answer_frames` sends each on to the node it came by. All of that is there whichever
balancer this node has: another node may have the other one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from mesh import address as addr
from mesh.balance import PROTOCOL_NUMBERS, TABLE
from mesh.errors import MeshError
from mesh.facts import Facts
from mesh.model import LocalEndpoint, Network, PublishedPort
from mesh.nft import hook, rules
from mesh.table import NamespaceTable, NftChain, NftMap, NftRule, NftTable, Policy

FROM_INGRESS: Final = 89
BY_MAIN: Final = 90
FROM_UDP_PORT: Final = 95


def render_containers(
    networks: Iterable[Network], published: Iterable[PublishedPort], facts: Facts, table: str
) -> dict[str, NamespaceTable]:
    """By path, of all containers of these networks that are alive. `table` names their nft tables."""
    members: dict[str, list[tuple[Network, LocalEndpoint]]] = {}
    for network in networks:
        for endpoint in network.local:
            members.setdefault(endpoint.netns, []).append((network, endpoint))
    ports: dict[str, list[PublishedPort]] = {}
    for port in published:
        for backend in port.backends:
            ports.setdefault(backend.address, []).append(port)
    found = {}
    for path, joined in members.items():
        try:
            inode = facts.inode_of(path)
        except MeshError:
            continue  # reported with its endpoint
        found[path] = _container(joined, ports, inode, table)
    return found


def _container(
    joined: Iterable[tuple[Network, LocalEndpoint]], ports: dict[str, list[PublishedPort]], inode: int, table: str
) -> NamespaceTable:
    maps: dict[str, NftMap] = {}
    policies: set[Policy] = set()
    taking: list[NftRule] = []
    for network, endpoint in sorted(joined, key=lambda pair: pair[1].address):
        own = endpoint.address
        publishes = network.ingress and addr.family(own) == 4
        taking += _taking(own, network.subnets, publishes)
        if publishes:
            served = ports.get(own, [])
            maps["ports"] = NftMap(
                "inet_proto . inet_service",
                "ipv4_addr . inet_service",
                {f"{PROTOCOL_NUMBERS[p.protocol]} . {p.published}": f"{own} . {p.target}" for p in served},
            )
            policies |= {Policy(FROM_INGRESS, source=own)}
            udp = {Policy(FROM_UDP_PORT, udp_port=p.target) for p in served if p.protocol == "udp"}
            if udp:
                policies |= udp | {Policy(BY_MAIN)}
    chains = {"prerouting": NftChain(hook("nat", "prerouting", -100), tuple(taking))}
    return NamespaceTable(netns_id=inode, policies=frozenset(policies), nft=NftTable(table, maps, chains))


@lru_cache(maxsize=4096)
def _taking(own: str, subnets: tuple[str, ...], publishes: bool) -> tuple[NftRule, ...]:
    version = addr.family(own)
    ip = "ip" if version == 4 else "ip6"
    same = ", ".join(sorted(s for s in subnets if (":" in s) == (version == 6)))
    sent_here = f"ether daddr {addr.mac(own)} {ip} daddr {{ {same} }} {ip} daddr != {own}"
    by_port = [f"{sent_here} dnat ip addr . port to meta l4proto . th dport map @ports"] if publishes else []
    return rules(*by_port, f"{sent_here} meta l4proto {{ 6, 17, 132 }} dnat {ip} to {own}")


def answer_frames(network: Network) -> NftTable:
    """Of the ingress network's bridge: an answer that a container sends in the name of a node's LB address goes to that node."""
    nodes = {r.address: addr.mac(r.address) for r in network.remote if r.balancer and addr.family(r.address) == 4}
    maps = {"nodes": NftMap("ipv4_addr", "ether_addr", nodes)}
    send_on = 'iifname "mv-*" ether type ip ether daddr set ip saddr map @nodes'
    return NftTable(TABLE, maps, {"prerouting": NftChain(hook("filter", "prerouting", -300), rules(send_on))}, "bridge")
