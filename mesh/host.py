"""The nft table of the host namespace: published ports in, containers out, and nothing between containers.

Pure. Published ports are translated to the LB address of the ingress network, host-mode ports to the container's gateway address. The
gateway bridge is not a service network: whatever enters it is an answer or a translated port.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mesh.nft import hook, rules
from mesh.table import NftChain, NftMap, NftTable

GATEWAY_LINK: Final = "mg-"
TRANSLATED: Final = "0x01000000"
"""Bit of the packet mark: its destination was translated. It is read only between ports of our own bridge."""


def frame_rules(table: str) -> NftTable:
    """Of the gateway bridge: containers don't talk over it, except by a translated port; port isolation would stop those, too."""
    drop = f'iifname "{GATEWAY_LINK}*" oifname "{GATEWAY_LINK}*" meta mark & {TRANSLATED} == 0 drop'
    return NftTable(table, {}, {"forward": NftChain(hook("filter", "forward", 0), rules(drop))}, "bridge")


def host_rules(
    table: str,
    gateway_bridge: str,
    uplink: str,
    gateway: str,
    gateway_subnet: str,
    published: Mapping[str, str],
    host_ports: Mapping[str, str],
) -> NftTable:
    """`published`: "6 . 8080" -> LB address; `host_ports`: "6 . 80" -> "172.30.1.2 . 8080" (numbers as nft prints them)."""
    ours = f'{{ "{gateway_bridge}", "{uplink}" }}'
    chains = {
        # route_localnet opens 127.0.0.0/8 to these links; only what we translate ourselves may use it
        "raw": NftChain(hook("filter", "prerouting", -300), rules(f"iifname {ours} ip daddr 127.0.0.0/8 drop")),
        # with br_netfilter, a frame whose packet is translated to another port of the bridge never comes up here: tell the bridge
        "translated": NftChain(
            hook("filter", "prerouting", -90),
            rules(f'iifname "{gateway_bridge}" ct status & dnat != 0 meta mark set meta mark or {TRANSLATED}'),
        ),
        "prerouting": NftChain(hook("nat", "prerouting", -100), rules("fib daddr type local goto ports")),
        "output": NftChain(hook("nat", "output", -100), rules("fib daddr type local goto ports")),
        "ports": NftChain(
            rules=rules(
                "dnat ip to meta l4proto . th dport map @published",
                "dnat ip addr . port to meta l4proto . th dport map @host_ports",
            )
        ),
        "forward": NftChain(
            hook("filter", "forward", 0),
            rules(
                f'oifname "{gateway_bridge}" ct state established,related accept',
                f'oifname "{gateway_bridge}" ct status & dnat != 0 accept',
                f'oifname "{gateway_bridge}" drop',
                f'iifname "{uplink}" ct direction original drop',
                f'oifname "{uplink}" ct status & dnat == 0 ct direction original drop',
            ),
        ),
        "postrouting": NftChain(
            hook("nat", "postrouting", 100),
            rules(
                f"oifname {ours} ip saddr 127.0.0.0/8 snat ip to {gateway}",
                # a container that calls a host-mode port of a container beside it: ports of the bridge can't talk directly
                f'oifname "{gateway_bridge}" ip saddr {gateway_subnet} ip saddr != {gateway} snat ip to {gateway}',
                f"oifname != {ours} ip saddr {gateway_subnet} masquerade",
            ),
        ),
    }
    maps = {
        "published": NftMap("inet_proto . inet_service", "ipv4_addr", dict(published)),
        "host_ports": NftMap("inet_proto . inet_service", "ipv4_addr . inet_service", dict(host_ports)),
    }
    return NftTable(table, maps, chains)
