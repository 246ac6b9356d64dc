"""Virtual services and published ports as nft maps: the balancer of kernels without ip_vs.

Pure. The scheme: `vips` sends a VIP to the chain of its number of slots ("vip-3"), which draws a number below 3 and looks (VIP, number)
up in `backends`. So a service costs elements, never rules, and adding one among thousands is a handful of `add element` in one
transaction. A weight is a number of slots; weight 0 has none: tracked connections go on, new ones don't arrive. A VIP without slots is
in no map: the packet stays with the namespace, which owns the address and has no listener, and is refused at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import gcd
from typing import Final

from mesh.address import family
from mesh.model import Backend, Network, PublishedPort, VirtualService
from mesh.nft import hook, rules
from mesh.parts import Part
from mesh.table import BRIDGE, UPLINK, Flow, NftChain, NftMap, NftTable

PROTOCOL_NUMBERS: Final = {"tcp": 6, "udp": 17, "sctp": 132}
TABLE: Final = "meshd"
MAX_WEIGHTED_SLOTS: Final = 64
"""Slots a service of unequal weights may take, unless it has more backends than that."""

STANDING_CHAINS: Final = 16
"""Chains for 1 to this many slots are always there: scaling an ordinary service then changes elements only. Deleting a chain makes the
kernel wait for a grace period, measured as 12 ms beside 3 ms for a transaction of elements."""

_ADDRESS: Final = {4: "ip", 6: "ip6"}


def slots(backends: Iterable[Backend]) -> tuple[str, ...]:
    """Backend addresses, each as often as its weight asks, scaled down to MAX_WEIGHTED_SLOTS; at least once unless the weight is 0."""
    weights = {b.address: b.weight for b in backends if b.weight > 0}
    if len(set(weights.values())) <= 1:
        return tuple(sorted(weights))
    divisor = gcd(*weights.values())
    total = sum(weights.values()) // divisor
    limit = max(MAX_WEIGHTED_SLOTS, len(weights))
    shares = {a: w // divisor for a, w in weights.items()}
    if total > limit:
        shares = {a: max(1, share * limit // total) for a, share in shares.items()}
    return tuple(address for address in sorted(shares) for _ in range(shares[address]))


def by_source(service: VirtualService | PublishedPort) -> bool:
    """Whether one client always gets the same backend: affinity, or a scheduler that hashes the source."""
    return service.scheduler in ("sh", "mh") or (isinstance(service, VirtualService) and service.affinity_s > 0)


def balancer_frame(network: Network, families: Sequence[int]) -> NftTable:
    """The table of one network's namespace without its services and published ports."""
    maps: dict[str, NftMap] = {}
    chains: dict[str, NftChain] = {}
    dispatch: list[str] = []
    source: list[str] = []
    for version in families:
        ip = _ADDRESS[version]
        for count in range(1, STANDING_CHAINS + 1):
            chains[_chain_name("vip", False, version, count)] = _draw(False, version, count, _to_backend(version))
        maps[f"vips{version}"] = NftMap(f"ipv{version}_addr", "verdict")
        maps[f"backends{version}"] = NftMap(f"ipv{version}_addr . mark", f"ipv{version}_addr")
        # only what a service can carry: echo requests stay here and are answered
        dispatch.append(f"meta l4proto {{ 6, 17, 132 }} {ip} daddr vmap @vips{version}")
        if family(network.lb_address) == version:
            source.append(f"ct status dnat meta nfproto ipv{version} snat {ip} to {network.lb_address}")
        else:
            source.append(f"ct status dnat meta nfproto ipv{version} masquerade")
    if network.ingress:
        version = family(network.lb_address)
        for count in range(1, STANDING_CHAINS + 1):
            chains[_chain_name("port", False, version, count)] = _draw(False, version, count, _to_port(version))
        maps["ports"] = NftMap("inet_proto . inet_service", "verdict")
        maps["port_backends"] = NftMap("inet_proto . inet_service . mark", f"ipv{version}_addr . inet_service")
        dispatch.append(f"{_ADDRESS[version]} daddr {network.lb_address} meta l4proto . th dport vmap @ports")
        # The uplink is a way in for published ports and a way out for their answers, and nothing else. Clients on the uplink have bigger
        # frames than the tunnel: their first segment must not rely on path MTU discovery.
        chains["forward"] = NftChain(
            hook("filter", "forward", 0),
            rules(
                f'iifname "{BRIDGE}" oifname "{UPLINK}" ct direction original drop',
                f'iifname "{UPLINK}" ct status & dnat == 0 drop',
                "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu",
            ),
        )
    chains["prerouting"] = NftChain(hook("nat", "prerouting", -100), rules(*dispatch))
    chains["postrouting"] = NftChain(hook("nat", "postrouting", 100), rules(*source))
    return NftTable(TABLE, maps, chains)


def balanced_service(service: VirtualService) -> Part:
    """Its rows of the table: the chain that draws, and what can be drawn."""
    addresses = slots(service.backends)
    if not addresses:
        return Part()
    version = family(service.vip)
    chain = _chain_name("vip", by_source(service), version, len(addresses))
    return Part(
        elements=(
            (f"vips{version}", service.vip, f"goto {chain}"),
            *((f"backends{version}", f"{service.vip} . {i}", address) for i, address in enumerate(addresses)),
        ),
        chains=_beyond_standing(chain, service, version, len(addresses), _to_backend(version)),
    )


def balanced_port(port: PublishedPort, version: int) -> Part:
    addresses = slots(port.backends)
    if not addresses:
        return Part()
    key = f"{PROTOCOL_NUMBERS[port.protocol]} . {port.published}"
    chain = _chain_name("port", by_source(port), version, len(addresses))
    return Part(
        elements=(
            ("ports", key, f"goto {chain}"),
            *(("port_backends", f"{key} . {i}", f"{address} . {port.target}") for i, address in enumerate(addresses)),
        ),
        chains=_beyond_standing(chain, port, version, len(addresses), _to_port(version)),
    )


def _beyond_standing(
    chain: str, service: VirtualService | PublishedPort, version: int, count: int, to: str
) -> tuple[tuple[str, NftChain], ...]:
    if count <= STANDING_CHAINS and not by_source(service):
        return ()
    return ((chain, _draw(by_source(service), version, count, to)),)


def _to_backend(version: int) -> str:
    return f"dnat {_ADDRESS[version]} to {_ADDRESS[version]} daddr . meta mark map @backends{version}"


def _to_port(version: int) -> str:
    return f"dnat {_ADDRESS[version]} addr . port to meta l4proto . th dport . meta mark map @port_backends"


def _chain_name(kind: str, hashed: bool, version: int, count: int) -> str:
    return f"{kind}{version}{'-src' if hashed else ''}-{count}"


@lru_cache(maxsize=1024)
def _draw(hashed: bool, version: int, count: int, to: str) -> NftChain:
    # Random, not in turn: the counter would be shared by all services of this size, and two services called alternately would each
    # always get the same backend.
    number = f"jhash {_ADDRESS[version]} saddr mod {count} seed 0x6d657368" if hashed else f"numgen random mod {count}"
    return NftChain(rules=rules(f"meta mark set {number}", to))


def service_flows(service: VirtualService) -> tuple[Flow, ...]:
    """The kinds of tracked connections that may exist to it. Untranslated ones only while nobody could serve them: a UDP client that asked
    too early must not stay with the refusal."""
    return _allowed(service.vip, None, service.backends)


def port_flows(port: PublishedPort, lb_address: str) -> tuple[Flow, ...]:
    return _allowed(lb_address, (PROTOCOL_NUMBERS[port.protocol], port.published), port.backends)


def _allowed(destination: str, port: tuple[int, int] | None, backends: Sequence[Backend]) -> tuple[Flow, ...]:
    flows = {Flow(destination, port, b.address) for b in backends}
    if not any(b.weight > 0 for b in backends):
        flows.add(Flow(destination, port, ""))
    return tuple(flows)
