"""The namespace of the WireGuard devices, by which encrypted networks are carried between nodes.

Pure. The VXLAN devices of encrypted networks have their underlay in it and nowhere else: there are the WireGuard devices, and no other way
out. So what is to be encrypted can't leave plain, whatever fails, and what arrives plain on the underlay finds no such network.

There are two devices with a key each. Packets leave by the active one and are taken from both, so the keys of the other can be changed on
all nodes in any order, and then the routes: no packet waits for a handshake, none is lost (`mesh/DESIGN.md`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Set
from ipaddress import IPv6Address
from typing import Final

from mesh import address as addr
from mesh.errors import ConfigError, MeshError
from mesh.facts import Facts
from mesh.model import Encryption, EncryptionPeer, NodeState
from mesh.table import WIREGUARDS, NamespaceTable, Peer, WireGuard

NO_WIREGUARD: Final = "this node's kernel has no WireGuard: load the module wireguard (CONFIG_WIREGUARD)"
NO_IPV6: Final = "this node's kernel has no IPv6, which tunnel addresses are of (ipv6.disable=1?)"
# WireGuard's header and tag, UDP, and the outer IP header
_OVERHEAD: Final = {4: 60, 6: 80}


def device_mtu(state: NodeState, facts: Facts) -> int:
    return facts.underlay_mtu - _OVERHEAD[addr.family(state.underlay)]


def unable(state: NodeState, facts: Facts) -> str:
    """Why this node can't have encrypted networks; "" = it can."""
    if state.encryption is None:
        return "the network is encrypted, but this node was given no keys"
    if not facts.has_wireguard:
        return f"the network is encrypted, but {NO_WIREGUARD}"
    if not facts.has_ipv6:
        return f"the network is encrypted, but {NO_IPV6}"
    return ""


def render_encryption(state: NodeState, facts: Facts, errors: dict[str, MeshError]) -> NamespaceTable:
    """A peer that makes no sense is left out and in `errors`: what is said by one node stops no other. Raises ConfigError."""
    encryption = state.encryption
    assert encryption is not None
    _check(encryption)
    mtu = device_mtu(state, facts)
    peers: dict[tuple[str, str], Peer] = {}
    routes: dict[str, str] = {}
    known: set[str] = {encryption.address}
    for peer in encryption.peers:
        try:
            _check_peer(peer, known)
        except ConfigError as error:
            errors[f"peer:{peer.address}"] = error
            continue
        known |= {peer.address, *peer.keys}
        for number, (device, key) in enumerate(zip(WIREGUARDS, peer.keys, strict=True)):
            if key:
                peers[device, key] = Peer((peer.underlay, encryption.port + number), frozenset({f"{peer.address}/128"}))
                if number == encryption.active:
                    routes[peer.address] = device
    return NamespaceTable(
        sysctls={"net.ipv6.conf.all.disable_ipv6": "0"},
        wireguards={
            device: WireGuard(key, encryption.port + number, mtu, f"{encryption.address}/128")
            for number, (device, key) in enumerate(zip(WIREGUARDS, encryption.keys, strict=True))
        },
        peers=peers,
        host_routes=routes,
    )


def _check(encryption: Encryption) -> None:
    _tunnel_address("encryption: address", encryption.address)
    if not 0 < encryption.port < 65535:
        raise ConfigError("encryption: port", f"{encryption.port} and the one after it must be ports")
    for key in encryption.keys:
        _key("encryption: keys", key, secret=True)


def _check_peer(peer: EncryptionPeer, known: Set[str]) -> None:
    """known: addresses and keys of this node and of the peers before."""
    where = f"encryption: peer {peer.address}"
    _tunnel_address(where, peer.address)
    if peer.address in known:
        raise ConfigError(where, "is there twice")
    try:
        addr.family(peer.underlay)
    except ValueError as error:
        raise ConfigError(where, f"underlay: {error}") from error
    for key in filter(None, peer.keys):
        _key(where, key)
        if key in known or peer.keys.count(key) > 1:
            raise ConfigError(where, "has a key that is there twice")


def _tunnel_address(where: str, address: str) -> None:
    try:
        if addr.family(address) != 6 or not IPv6Address(address).is_private:
            raise ConfigError(where, f"{address} is not of the private IPv6 addresses (fc00::/7)")
    except ValueError as error:
        raise ConfigError(where, str(error)) from error


def _key(where: str, key: str, *, secret: bool = False) -> None:
    """The text of a private key is not repeated."""
    try:
        good = len(base64.b64decode(key, validate=True)) == 32
    except (binascii.Error, ValueError):
        good = False
    if not good:
        raise ConfigError(where, f"{'a private key' if secret else repr(key)} is not the base64 of 32 bytes, as `wg genkey` writes them")
