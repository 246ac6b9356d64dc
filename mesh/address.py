"""Addresses as the kernel's tables need them: families, MACs by arithmetic, prefixes, stable names.

Pure. Source: RFC 7042 section 2.1 (locally administered MACs).
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from mesh.errors import ConfigError

NetworkLike = IPv4Network | IPv6Network


@lru_cache(maxsize=1 << 16)
def packed(address: str) -> bytes:
    """4 or 16 bytes. Raises ValueError for anything that isn't an address in canonical text form."""
    if ":" not in address:
        # ten times as fast as the library below, which is there to say what is wrong
        with suppress(OSError):
            found = socket.inet_pton(socket.AF_INET, address)
            if socket.inet_ntop(socket.AF_INET, found) == address:
                return found
    parsed = ip_address(address)
    if str(parsed) != address:
        raise ValueError(f"{address!r} is not in canonical form ({parsed})")
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        raise ValueError(f"{address!r} is an IPv4 address in IPv6 form")
    return parsed.packed


def text(packed_address: bytes) -> str:
    """Inverse of `packed`. (The C library writes some IPv6 addresses with an IPv4 tail.)"""
    return socket.inet_ntop(socket.AF_INET, packed_address) if len(packed_address) == 4 else str(IPv6Address(packed_address))


def family(address: str) -> int:
    """4 or 6. Raises ValueError as `packed` does."""
    return 4 if len(packed(address)) == 4 else 6


def mac(address: str) -> str:
    """02:42 + the four bytes of an IPv4 address, as Docker does; 02:46 + four bytes of a hash of an IPv6 address."""
    tail = packed(address)
    return (b"\x02\x42" + tail if len(tail) == 4 else b"\x02\x46" + hashlib.sha256(tail).digest()[:4]).hex(":")


def gateway_port_mac(address: str) -> str:
    """MAC of the host's end of a gateway link: 02:43 + the container's gateway address, so the end here tells the address there."""
    return "02:43" + mac(address)[5:]


def link_mac(address: str) -> str:
    """MAC of a link that leads to `address` beside the bridge that owns it: 02:44 + the address."""
    return "02:44" + mac(address)[5:]


def address_of_gateway_port(port_mac: str | None) -> str | None:
    """Inverse of `gateway_port_mac`; None for a MAC that is not one."""
    if port_mac is None or not port_mac.startswith("02:43:"):
        return None
    return str(IPv4Address(bytes.fromhex(port_mac.replace(":", ""))[2:]))


def link_name(prefix: str, *parts: str) -> str:
    """A stable interface name of at most 15 characters: the prefix and a hash of the parts."""
    return prefix + hashlib.sha256("\0".join(parts).encode()).hexdigest()[: 15 - len(prefix)]


def parse_subnets(subnets: Iterable[str], field: str) -> tuple[NetworkLike, ...]:
    try:
        parsed = tuple(_subnet(s) for s in subnets)
    except ValueError as error:
        raise ConfigError(field, f"not a subnet: {error}") from error
    if not parsed:
        raise ConfigError(field, "a network needs at least one subnet")
    return parsed


@lru_cache(maxsize=4096)
def _subnet(text: str) -> NetworkLike:
    return ip_network(text)


def subnet_of(address: str, subnets: tuple[str, ...], field: str) -> NetworkLike:
    """The subnet that holds `address`; ConfigError when it isn't an address or none does."""
    try:
        found = _find(address, subnets)
    except ValueError as error:
        raise ConfigError(field, f"not an address: {error}") from error
    if found is None:
        raise ConfigError(field, f"{address} is in none of the subnets {', '.join(subnets)}")
    return found


def _find(address: str, subnets: tuple[str, ...]) -> NetworkLike | None:
    found = packed(address)
    number = int.from_bytes(found, "big")
    for size, mask, first, subnet in map(_range, subnets):
        if size == len(found) and number & mask == first:
            return subnet
    return None


@lru_cache(maxsize=4096)
def _range(text: str) -> tuple[int, int, int, NetworkLike]:
    """Bytes of an address, mask and first address as numbers, the subnet itself."""
    subnet = _subnet(text)
    return subnet.max_prefixlen // 8, int(subnet.netmask), int(subnet.network_address), subnet


def assign_gateways(subnet: str, names: Iterable[str], present: Mapping[str, str]) -> dict[str, str]:
    """An address of `subnet` for each name: the present one where it is in the subnet and unique, else the first free one from a place
    that the name's hash decides (so a new container does not inherit the address, and the tracked connections, of the one just gone).
    Raises ConfigError when the subnet is full.
    """
    network = IPv4Network(subnet)
    low, size = int(network.network_address) + 2, network.num_addresses - 3
    wanted = sorted(set(names))
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in wanted:
        address = present.get(name)
        if address and address not in taken and low <= int(IPv4Address(address)) < low + size:
            chosen[name] = address
            taken.add(address)
    for name in wanted:
        if name in chosen:
            continue
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        for step in range(size):
            address = str(IPv4Address(low + (start + step) % size))
            if address not in taken:
                break
        else:
            raise ConfigError("gateway_subnet", f"{subnet} has no free address for {len(wanted)} containers")
        chosen[name] = address
        taken.add(address)
    return chosen
