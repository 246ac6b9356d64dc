"""Rows that come by the thousand: addresses of a link, neighbours, forwarding rows. Packed by hand, many a write.

Edge. Source: rtnetlink(7), linux/if_addr.h, linux/neighbour.h. Every function acts in the namespace whose socket it is given.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final

from mesh.address import text
from mesh.linux.netlink import NLM_F_CREATE, NLM_F_REPLACE, Netlink, attribute, attributes

_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_RTM_NEWNEIGH: Final = 28
_RTM_DELNEIGH: Final = 29
_RTM_GETNEIGH: Final = 30
_AF_BRIDGE: Final = 7
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_F_NODAD: Final = 0x02
_IFA_F_PERMANENT: Final = 0x80
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NDA_MASTER: Final = 9
_NUD_NOARP: Final = 0x40
_NUD_PERMANENT: Final = 0x80
_NTF_SELF: Final = 0x02
_NTF_MASTER: Final = 0x04
# attributes of a MAC, an IPv4 address and a bridge: length and type
_LLADDR_HEADER: Final = struct.pack("=HH", 10, _NDA_LLADDR)
_DST_HEADER: Final = struct.pack("=HH", 8, _NDA_DST)
_MASTER_HEADER: Final = struct.pack("=HH", 8, _NDA_MASTER)
_IFADDRMSG = struct.Struct("=BBBBI")
_NDMSG = struct.Struct("=BBHiHBB")


def _packed(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def addresses(netlink: Netlink) -> dict[int, set[str]]:
    """CIDRs by link index; IPv6 link-local ones are the kernel's own and left out."""
    found: dict[int, set[str]] = {}
    for kind, payload in netlink.dump("list addresses", _RTM_GETADDR, _IFADDRMSG.pack(0, 0, 0, 0, 0)):
        family, length, _flags, _scope, index = _IFADDRMSG.unpack_from(payload)
        if kind != _RTM_NEWADDR or family not in (socket.AF_INET, socket.AF_INET6):
            continue
        values = attributes(payload[_IFADDRMSG.size :])
        address = text(values.get(_IFA_LOCAL) or values[_IFA_ADDRESS])
        if not address.startswith("fe80:"):
            found.setdefault(index, set()).add(f"{address}/{length}")
    return found


def put_addresses(netlink: Netlink, index: int, cidrs: Iterable[str]) -> None:
    requests = [(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, _address(index, cidr)) for cidr in cidrs]
    netlink.requests("add addresses", requests, ignore=(errno.EEXIST,))


def delete_addresses(netlink: Netlink, index: int, cidrs: Iterable[str]) -> None:
    requests = [(_RTM_DELADDR, 0, _address(index, cidr)) for cidr in cidrs]
    netlink.requests("delete addresses", requests, ignore=(errno.EADDRNOTAVAIL, errno.ENODEV))


def _address(index: int, cidr: str) -> bytes:
    address, _, length = cidr.partition("/")
    family, packed = _packed(address)
    # duplicate address detection would leave an IPv6 address unusable for a second; ours are unique by construction
    flags = _IFA_F_PERMANENT | (_IFA_F_NODAD if family == socket.AF_INET6 else 0)
    return _IFADDRMSG.pack(family, int(length), flags, 0, index) + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)


def neighbours(netlink: Netlink, index: int) -> dict[str, str]:
    """Permanent neighbours of one link: address -> MAC."""
    found: dict[str, str] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind, payload in netlink.dump("list neighbours", _RTM_GETNEIGH, _NDMSG.pack(family, 0, 0, 0, 0, 0, 0)):
            _family, _pad, _pad2, link, state, _flags, _type = _NDMSG.unpack_from(payload)
            if kind != _RTM_NEWNEIGH or link != index or not state & _NUD_PERMANENT:
                continue
            if payload[12:16] == _DST_HEADER and payload[20:24] == _LLADDR_HEADER:
                found[text(payload[16:20])] = payload[24:30].hex(":")
            else:
                values = attributes(payload[_NDMSG.size :])
                if _NDA_DST in values and _NDA_LLADDR in values:
                    found[text(values[_NDA_DST])] = values[_NDA_LLADDR].hex(":")
    return found


def put_neighbours(netlink: Netlink, index: int, rows: Iterable[tuple[str, str]]) -> None:
    requests = [(_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, _neighbour(index, address, mac)) for address, mac in rows]
    netlink.requests("add neighbours", requests)


def delete_neighbours(netlink: Netlink, index: int, gone: Iterable[str]) -> None:
    requests = [(_RTM_DELNEIGH, 0, _neighbour(index, address, None)) for address in gone]
    netlink.requests("delete neighbours", requests, ignore=(errno.ENOENT, errno.ENODEV))


def _neighbour(index: int, address: str, mac: str | None) -> bytes:
    family, packed = _packed(address)
    row = _NDMSG.pack(family, 0, 0, index, _NUD_PERMANENT, 0, 0) + attribute(_NDA_DST, packed)
    return row + (attribute(_NDA_LLADDR, _mac(mac)) if mac else b"")


def tunnels(netlink: Netlink, index: int) -> dict[str, str]:
    """Forwarding rows of the VXLAN device: MAC -> VTEP, "" where the tunnel row or the bridge row is missing."""
    vteps: dict[str, str] = {}
    bridged: set[str] = set()
    for kind, payload in netlink.dump("list forwarding rows", _RTM_GETNEIGH, _NDMSG.pack(_AF_BRIDGE, 0, 0, 0, 0, 0, 0)):
        _family, _pad, _pad2, link, state, _flags, _type = _NDMSG.unpack_from(payload)
        if kind != _RTM_NEWNEIGH or link != index:
            continue
        mac, of_bridge, vtep = _forwarding(payload)
        if of_bridge:
            # NOARP is what `bridge fdb add ... master static` shows as static; permanent ones are the bridge's own
            if state & _NUD_NOARP:
                bridged.add(mac)
        elif vtep:
            vteps[mac] = vtep
    return {mac: vteps.get(mac, "") if mac in bridged else "" for mac in vteps.keys() | bridged}


def _forwarding(payload: bytes) -> tuple[str, bool, str]:
    """MAC, whether it is a row of the bridge, VTEP. What is wanted is usually right at the beginning, and there are tens of thousands."""
    at = 12 if payload[12:16] == _LLADDR_HEADER else 20
    if payload[at : at + 4] == _LLADDR_HEADER:
        follower = payload[at + 12 : at + 16]
        if follower == _MASTER_HEADER:
            return payload[at + 4 : at + 10].hex(":"), True, ""
        if follower == _DST_HEADER:
            return payload[at + 4 : at + 10].hex(":"), False, text(payload[at + 16 : at + 20])
    values = attributes(payload[_NDMSG.size :])
    packed = values.get(_NDA_DST, b"")
    vtep = text(packed) if packed else ""
    return values.get(_NDA_LLADDR, b"").hex(":"), _NDA_MASTER in values, vtep


def put_tunnels(netlink: Netlink, index: int, rows: Iterable[tuple[str, str]]) -> None:
    """`master static`, not permanent: the bridge would take a permanent row as an address of its own and swallow the frames."""
    requests = []
    flags = NLM_F_CREATE | NLM_F_REPLACE
    for mac, vtep in rows:
        destination = attribute(_NDA_DST, _packed(vtep)[1])
        requests.append((_RTM_NEWNEIGH, flags, _forward(index, mac, _NUD_PERMANENT, _NTF_SELF) + destination))
        requests.append((_RTM_NEWNEIGH, flags, _forward(index, mac, _NUD_NOARP, _NTF_MASTER)))
    netlink.requests("add forwarding rows", requests)


def delete_tunnels(netlink: Netlink, index: int, macs: Iterable[str]) -> None:
    requests = []
    for mac in macs:
        requests.append((_RTM_DELNEIGH, 0, _forward(index, mac, 0, _NTF_MASTER)))
        requests.append((_RTM_DELNEIGH, 0, _forward(index, mac, 0, _NTF_SELF)))
    netlink.requests("delete forwarding rows", requests, ignore=(errno.ENOENT, errno.ENODEV))


def _forward(index: int, mac: str, state: int, flags: int) -> bytes:
    return _NDMSG.pack(_AF_BRIDGE, 0, 0, index, state, flags, 0) + attribute(_NDA_LLADDR, _mac(mac))


def _mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
