"""Tracked connections of the namespace the calling thread is in: list, count, delete.

Edge: the socket; `parse` is pure. Source: linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_tcp.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from mesh.address import text
from mesh.linux.netlink import NETLINK_NETFILTER, Netlink, attribute, attributes, nested

_CTNETLINK: Final = 1 << 8
_GET: Final = _CTNETLINK | 1
_DELETE: Final = _CTNETLINK | 2
_TUPLE_ORIGINAL: Final = 1
_TUPLE_REPLY: Final = 2
_STATUS: Final = 3
_PROTOCOL_STATE: Final = 4
_ID: Final = 12
_FILTER: Final = 25
_BY_SOURCE: Final = 1
_STATUS_MASK: Final = 26
_IPS_DST_NAT: Final = 1 << 5
_TCP: Final = 6
# Where the parts of an entry are, when it is one of TCP, UDP or SCTP over IPv4: the kernel writes both tuples first, each 52 bytes.
_ORIGINAL: Final = slice(4, 8)
_ORIGINAL_HEADER: Final = struct.pack("=HH", 52, _TUPLE_ORIGINAL | 0x8000)
_AFTER_TUPLES: Final = slice(108, 112)
_STATUS_HEADER: Final = struct.pack("=HH", 8, _STATUS)
_KIND: Final = (slice(24, 28), slice(36, 37), slice(52, 54), slice(68, 72), slice(112, 116))
_FEW: Final = 8
_OPEN_TCP_STATES: Final = frozenset({1, 2, 3, 4, 5, 6, 9})
"""SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK, SYN_SENT2: not NONE, TIME_WAIT, CLOSE."""


@dataclass(frozen=True, slots=True)
class Connection:
    """`destination`, `port`: whom the client called. `answerer`: who answers, another one if the destination was translated.
    `key` deletes it: the address family and the attributes of its original direction and id."""

    protocol: int
    destination: str
    port: int
    answerer: str
    translated: bool
    open: bool
    key: tuple[int, bytes]


def connections(*, translated_only: bool = False) -> list[Connection]:
    """`translated_only` is also the kernel's filter (Linux 5.15 and later; before, all are sent and dropped here)."""
    found = map(parse, _dump(translated_only))
    return [c for c in found if c is not None and (c.translated or not translated_only)]


def kinds(*, translated_only: bool = False) -> list[Connection]:
    """One connection for each protocol, destination, port, answerer and status there is: a busy node has thousands of each."""
    seen: set[bytes] = set()
    found: list[Connection] = []
    for payload in _dump(translated_only):
        if payload[_ORIGINAL] == _ORIGINAL_HEADER and payload[_AFTER_TUPLES] == _STATUS_HEADER:
            kind = b"".join([payload[part] for part in _KIND])
            if kind in seen:
                continue
            seen.add(kind)
        connection = parse(payload)
        if connection is not None and (connection.translated or not translated_only):
            found.append(connection)
    return found


def _dump(translated_only: bool, answerer: str = "") -> list[bytes]:
    """Both are asked of the kernel, which may not know to (`answerer` before Linux 5.8): it then sends more. `answerer` is an IPv4 address:
    of IPv6 the kernel sends all but those asked for (seen in Linux 6.18)."""
    request = struct.pack("=BBH", socket.AF_INET if answerer else socket.AF_UNSPEC, 0, 0)
    if translated_only:
        request += attribute(_STATUS, struct.pack(">I", _IPS_DST_NAT)) + attribute(_STATUS_MASK, struct.pack(">I", _IPS_DST_NAT))
    if answerer:
        source = nested(1, attribute(1, socket.inet_pton(socket.AF_INET, answerer)))
        flags = nested(_FILTER, attribute(1, struct.pack("=I", 0)), attribute(2, struct.pack("=I", _BY_SOURCE)))
        request += nested(_TUPLE_REPLY, source) + flags
    with Netlink(NETLINK_NETFILTER) as netlink:
        return [payload for _kind, payload in netlink.dump("list tracked connections", _GET, request)]


def parse(payload: bytes) -> Connection | None:
    """One entry; None for what has no ports or is neither IPv4 nor IPv6."""
    family = payload[0]
    values = attributes(payload[4:])
    try:
        original, reply = attributes(values[_TUPLE_ORIGINAL]), attributes(values[_TUPLE_REPLY])
        protocol_attributes = attributes(original[2])
        protocol = protocol_attributes[1][0]
        port = struct.unpack(">H", protocol_attributes[3])[0]
        first, second = (1, 2) if family == socket.AF_INET else (3, 4)
        destination = text(attributes(original[1])[second])
        answerer = text(attributes(reply[1])[first])
    except (KeyError, ValueError):
        return None
    is_open = False
    if protocol == _TCP and _PROTOCOL_STATE in values:
        state = attributes(attributes(values[_PROTOCOL_STATE]).get(1, b"")).get(1)
        is_open = bool(state) and state[0] in _OPEN_TCP_STATES if state else False
    status = struct.unpack(">I", values[_STATUS])[0] if _STATUS in values else 0
    key = attribute(_TUPLE_ORIGINAL | 0x8000, values[_TUPLE_ORIGINAL])
    if _ID in values:
        # the id keeps us from deleting a successor with the same addresses and ports
        key += attribute(_ID, values[_ID])
    # IPVS translates without saying so in the status
    translated = bool(status & _IPS_DST_NAT) or answerer != destination
    return Connection(protocol, destination, port, answerer, translated, is_open, (family, key))


def forget(matches: Callable[[Connection], bool], *, answerers: Collection[str] = (), translated_only: bool = False) -> int:
    """Delete the connections that match, return how many there were. `answerers`: who answers in those that match; where they are few,
    the kernel is asked for their connections only."""
    if 0 < len(answerers) <= _FEW and not any(":" in address for address in answerers):
        payloads = [payload for address in answerers for payload in _dump(translated_only, address)]
    else:
        payloads = _dump(translated_only)
    doomed = [c for c in map(parse, payloads) if c is not None and (c.translated or not translated_only) and matches(c)]
    with Netlink(NETLINK_NETFILTER) as netlink:
        for part in _parts(doomed):
            requests = [(_DELETE, 0, struct.pack("=BBH", c.key[0], 0, 0) + c.key[1]) for c in part]
            netlink.requests("delete tracked connections", requests, ignore=(errno.ENOENT,))
    return len(doomed)


def _parts(items: list[Connection], size: int = 128) -> Iterable[list[Connection]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
