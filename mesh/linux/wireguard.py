"""WireGuard devices and their peers over generic netlink, in the namespace the calling thread is in.

Edge: the socket; encoding and decoding are pure. Source: linux/wireguard.h. Packed by hand: pyroute2's WireGuard takes one peer a message,
and its socket can't be used beside an event loop. Links are made by `link`.
"""

from __future__ import annotations

import base64
import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final

from mesh.errors import KernelError
from mesh.linux import generic
from mesh.linux.netlink import NETLINK_GENERIC, Netlink, attribute, attributes, each, nested
from mesh.table import Peer

FAMILY: Final = "wireguard"
_MODULE: Final = "wireguard"
_GET_DEVICE: Final = 0
_SET_DEVICE: Final = 1
_HEADER: Final = struct.Struct("=BBH")
_VERSION: Final = 1
_DEVICE_NAME: Final = 2
_DEVICE_PRIVATE_KEY: Final = 3
_DEVICE_PORT: Final = 6
_DEVICE_PEERS: Final = 8
_PEER_PUBLIC_KEY: Final = 1
_PEER_FLAGS: Final = 3
_PEER_ENDPOINT: Final = 4
_PEER_KEEPALIVE: Final = 5
_PEER_LAST_HANDSHAKE: Final = 6
_PEER_ALLOWED: Final = 9
_REMOVE: Final = 1
_REPLACE_ALLOWED: Final = 2
_ALLOWED_FAMILY: Final = 1
_ALLOWED_ADDRESS: Final = 2
_ALLOWED_LENGTH: Final = 3
_ENDPOINT4: Final = struct.Struct("=H2s4s8x")
_ENDPOINT6: Final = struct.Struct("=H2sI16sI")


@dataclass(frozen=True, slots=True)
class Device:
    """private_key: base64. heard: peers that have proven who they are at least once, by public key."""

    private_key: str
    port: int
    peers: Mapping[str, Peer]
    heard: frozenset[str]

    def __repr__(self) -> str:
        return f"Device(port={self.port}, peers={len(self.peers)})"


def available() -> bool:
    """This kernel has WireGuard, or has loaded it now."""
    generic.load_module(FAMILY, _MODULE)
    return generic.family_id(FAMILY) is not None


def possible() -> bool:
    """It is there, or could be loaded."""
    return generic.family_id(FAMILY) is not None or generic.could_load(_MODULE)


def read(name: str) -> Device:
    family = generic.family_id(FAMILY)
    if family is None:
        raise KernelError("read a WireGuard device", errno.ENOENT)
    with Netlink(NETLINK_GENERIC) as netlink:
        request = _HEADER.pack(_GET_DEVICE, _VERSION, 0) + _name(name)
        return decode(payload[_HEADER.size :] for _, payload in netlink.dump(f"read WireGuard device {name}", family, request))


def put_device(name: str, private_key: str, port: int) -> None:
    content = attribute(_DEVICE_PRIVATE_KEY, base64.b64decode(private_key)) + attribute(_DEVICE_PORT, struct.pack("=H", port))
    _set(f"set WireGuard device {name}", name, content)


def put_peers(name: str, rows: Iterable[tuple[str, Peer]]) -> None:
    """An address that was another peer's is this one's afterwards."""
    _set(f"set peers of {name}", name, nested(_DEVICE_PEERS, *(nested(0, encode_peer(key, peer)) for key, peer in rows)))


def delete_peers(name: str, keys: Iterable[str]) -> None:
    gone = (nested(0, _key(key) + attribute(_PEER_FLAGS, struct.pack("=I", _REMOVE))) for key in keys)
    _set(f"delete peers of {name}", name, nested(_DEVICE_PEERS, *gone))


def encode_peer(key: str, peer: Peer) -> bytes:
    allowed = nested(_PEER_ALLOWED, *(nested(0, _allowed(cidr)) for cidr in sorted(peer.allowed)))
    flags = attribute(_PEER_FLAGS, struct.pack("=I", _REPLACE_ALLOWED))
    keepalive = attribute(_PEER_KEEPALIVE, struct.pack("=H", peer.keepalive_s))
    return _key(key) + flags + attribute(_PEER_ENDPOINT, _endpoint(peer.endpoint)) + keepalive + allowed


def decode(messages: Iterable[bytes]) -> Device:
    """A device whose peers don't fit into one message comes in several; so may the addresses of one peer."""
    device = Device("", 0, {}, frozenset())
    peers: dict[str, Peer] = {}
    heard: set[str] = set()
    for message in messages:
        values = attributes(message)
        if _DEVICE_PRIVATE_KEY in values:
            device = replace(device, private_key=base64.b64encode(values[_DEVICE_PRIVATE_KEY]).decode())
        if _DEVICE_PORT in values:
            device = replace(device, port=struct.unpack("=H", values[_DEVICE_PORT])[0])
        for content in each(values.get(_DEVICE_PEERS, b"")):
            found = attributes(content)
            key = base64.b64encode(found[_PEER_PUBLIC_KEY]).decode()
            allowed = frozenset(_cidr(attributes(entry)) for entry in each(found.get(_PEER_ALLOWED, b"")))
            known = peers.get(key) or Peer(("", 0), frozenset())
            endpoint = _endpoint_of(found[_PEER_ENDPOINT]) if _PEER_ENDPOINT in found else known.endpoint
            keepalive_s = struct.unpack("=H", found[_PEER_KEEPALIVE])[0] if _PEER_KEEPALIVE in found else known.keepalive_s
            peers[key] = Peer(endpoint, known.allowed | allowed, keepalive_s)
            if any(found.get(_PEER_LAST_HANDSHAKE, b"")):
                heard.add(key)
    return replace(device, peers=peers, heard=frozenset(heard))


def _set(op: str, name: str, content: bytes) -> None:
    family = generic.family_id(FAMILY)
    if family is None:
        raise KernelError(op, errno.ENOENT)
    with Netlink(NETLINK_GENERIC) as netlink:
        netlink.request(op, family, 0, _HEADER.pack(_SET_DEVICE, _VERSION, 0) + _name(name) + content)


def _name(name: str) -> bytes:
    return attribute(_DEVICE_NAME, name.encode() + b"\0")


def _key(key: str) -> bytes:
    return attribute(_PEER_PUBLIC_KEY, base64.b64decode(key))


def _allowed(cidr: str) -> bytes:
    address, _, length = cidr.partition("/")
    packed = ip_address(address).packed
    family = attribute(_ALLOWED_FAMILY, struct.pack("=H", socket.AF_INET if len(packed) == 4 else socket.AF_INET6))
    return family + attribute(_ALLOWED_ADDRESS, packed) + attribute(_ALLOWED_LENGTH, struct.pack("=B", int(length)))


def _cidr(values: Mapping[int, bytes]) -> str:
    return f"{ip_address(values[_ALLOWED_ADDRESS])}/{values[_ALLOWED_LENGTH][0]}"


def _endpoint(endpoint: tuple[str, int]) -> bytes:
    """struct sockaddr_in or sockaddr_in6."""
    packed, port = ip_address(endpoint[0]).packed, endpoint[1].to_bytes(2, "big")
    if len(packed) == 4:
        return _ENDPOINT4.pack(socket.AF_INET, port, packed)
    return _ENDPOINT6.pack(socket.AF_INET6, port, 0, packed, 0)


def _endpoint_of(value: bytes) -> tuple[str, int]:
    if int(struct.unpack_from("=H", value)[0]) == socket.AF_INET:
        _, port, packed = _ENDPOINT4.unpack(value)
    else:
        _, port, _, packed, _ = _ENDPOINT6.unpack(value)
    return str(ip_address(packed)), int.from_bytes(port, "big")
