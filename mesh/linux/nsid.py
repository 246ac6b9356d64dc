"""Numbers by which one network namespace knows others: given when a link first leads from one into the other, kept as long as both live.

Edge. Source: rtnetlink(7), Linux net/core/net_namespace.c (RTM_NEWNSID, RTM_GETNSID, peernet2id_alloc).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mesh.errors import NamespaceGone
from mesh.linux.namespace import open_namespace
from mesh.linux.netlink import Netlink, attribute, attributes

RTM_NEWNSID: Final = 88
RTM_DELNSID: Final = 89
_RTM_GETNSID: Final = 90
NSID: Final = 1
_NSID_FD: Final = 3
NOT_NUMBERED: Final = -1


def number_of(netlink: Netlink, path: str) -> int | None:
    """Of the namespace at `path` in the socket's; None if it has none there, or is gone."""
    try:
        with _asked(path) as request:
            for _kind, payload in netlink.ask("read a namespace's number", _RTM_GETNSID, request):
                number = int(struct.unpack("=i", attributes(payload[4:])[NSID])[0])
                return None if number == NOT_NUMBERED else number
    except NamespaceGone:
        pass
    return None


def give_number(netlink: Netlink, path: str) -> int | None:
    """The same; given one if it has none."""
    try:
        with _asked(path) as request:
            any_number = attribute(NSID, struct.pack("=i", NOT_NUMBERED))
            netlink.request("number a namespace", RTM_NEWNSID, 0, request + any_number, ignore=(errno.EEXIST,))
    except NamespaceGone:
        return None
    return number_of(netlink, path)


@contextmanager
def _asked(path: str) -> Iterator[bytes]:
    descriptor = open_namespace(path)
    try:
        yield struct.pack("=Bxxx", 0) + attribute(_NSID_FD, struct.pack("=I", descriptor))
    finally:
        os.close(descriptor)
