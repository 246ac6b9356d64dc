"""Hear that something of ours changed, in the host's namespace and in ours: one socket for links, addresses and rows, one for nft.

Edge. Source: rtnetlink(7), netlink(7) (NETLINK_LISTEN_ALL_NSID). Both sockets live in the host's namespace: it hears every namespace that
has an id there, so nothing pins one. What an event says is not looked at beyond "is it ours?"; the answer to any is a resync. Not heard,
and found by the next resync: IPVS, sysctls, neighbours that were deleted.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final

from mesh.errors import KernelError
from mesh.linux.namespace import inode
from mesh.linux.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Netlink, attributes
from mesh.linux.nsid import NOT_NUMBERED, NSID, RTM_DELNSID, RTM_NEWNSID, give_number

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_LISTEN_ALL_NSID: Final = 8
_GROUPS_ROUTE: Final = (1, 3, 5, 9, 28)
"""RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV6_IFADDR, _NSID."""

_GROUP_NFTABLES: Final = 7
_RTM_NEWNEIGH: Final = 28
_RTM_DELNEIGH: Final = 29
_ANY_NUMBER: Final = struct.pack("=i", NOT_NUMBERED)
_NUD_STATIC: Final = 0x40 | 0x80
"""NOARP, PERMANENT: rows that somebody programmed. The others come and go with traffic."""

_HEADER = struct.Struct("=IHHII")
_NDMSG = struct.Struct("=BBHiH")
_BUFFER_BYTES: Final = 1 << 20


class Events:
    """Opened by a thread in the host's namespace. The tables are those of the host's namespace and of the others; `marks`: names, or
    beginnings of names, of our links in the host's."""

    def __init__(self, host_table: str, table: str, marks: Iterable[str]) -> None:
        self._host_table, self._table = (name.encode() + b"\0" for name in (host_table, table))
        self._marks = tuple(mark.encode() for mark in marks)
        self._followed: dict[str, tuple[int, int]] = {}
        self.links = _socket(NETLINK_ROUTE, _GROUPS_ROUTE)
        self.nft = _socket(NETLINK_NETFILTER, (_GROUP_NFTABLES,))

    def follow(self, paths: Iterable[str]) -> None:
        """Hear the namespaces at these paths, and no others. In the host's namespace."""
        followed: dict[str, tuple[int, int]] = {}
        with Netlink(NETLINK_ROUTE) as netlink:
            for path in paths:
                identity = inode(path)
                if identity is None:
                    continue
                known = self._followed.get(path)
                if known is not None and known[0] == identity:
                    followed[path] = known
                elif (number := give_number(netlink, path)) is not None:
                    followed[path] = (identity, number)
        self._followed = followed

    def drain(self) -> bool:
        """Take all that came; whether any of it is about us."""
        numbers = {number for _, number in self._followed.values()}
        links = any(self._is_ours(message, source, numbers) for message, source in _messages(self.links))
        return any(self._is_our_table(message, source, numbers) for message, source in _messages(self.nft)) or links

    def _is_ours(self, message: bytes, source: int | None, numbers: set[int]) -> bool:
        if not message:
            return True
        kind = _HEADER.unpack_from(message)[1]
        if kind == RTM_NEWNSID:
            return False
        if kind == RTM_DELNSID:
            return struct.unpack("=i", attributes(message[20:]).get(NSID, _ANY_NUMBER))[0] in numbers
        if kind in (_RTM_NEWNEIGH, _RTM_DELNEIGH) and not _NDMSG.unpack_from(message, 16)[4] & _NUD_STATIC:
            return False
        return source in numbers if source is not None else any(mark in message for mark in self._marks)

    def _is_our_table(self, message: bytes, source: int | None, numbers: set[int]) -> bool:
        if not message:
            return True
        return self._host_table in message if source is None else source in numbers and self._table in message

    def close(self) -> None:
        self.links.close()
        self.nft.close()


def _socket(protocol: int, groups: Iterable[int]) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        opened.setsockopt(_SOL_NETLINK, _LISTEN_ALL_NSID, 1)
        opened.bind((0, 0))
        for group in groups:
            opened.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError as error:
        opened.close()
        raise KernelError("listen to the kernel's events", error.errno or 0) from error
    return opened


def _messages(opened: socket.socket) -> list[tuple[bytes, int | None]]:
    """Each with the id of the namespace it comes from, None: the socket's own. b"" stands for messages that were lost."""
    found: list[tuple[bytes, int | None]] = []
    while True:
        try:
            packet, ancillary, _flags, _address = opened.recvmsg(_BUFFER_BYTES, 64)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found.append((b"", None))
            continue
        source = next(
            (struct.unpack("=i", value)[0] for level, kind, value in ancillary if (level, kind) == (_SOL_NETLINK, _LISTEN_ALL_NSID)), None
        )
        offset = 0
        while offset + 16 <= len(packet):
            length = _HEADER.unpack_from(packet, offset)[0]
            if length < 16:
                break
            found.append((packet[offset : offset + length], source))
            offset += (length + 3) & ~3
