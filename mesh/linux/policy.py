"""Routing rules of ours in a container: which packets are routed by the table for answers.

Edge. Source: ip-rule(8), linux/fib_rules.h. Ours are known by their protocol number. Acts in the namespace the calling thread is in.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final

from mesh.linux.link import RT_TABLE_ANSWERS, RT_TABLE_MAIN
from mesh.linux.netlink import NETLINK_ROUTE, NLM_F_CREATE, NLM_F_EXCL, Netlink, attribute, attributes
from mesh.table import Policy

_RTM_NEWRULE: Final = 32
_RTM_DELRULE: Final = 33
_RTM_GETRULE: Final = 34
_RULE = struct.Struct("=BBBBBBBBI")
"""family, length of destination, of source, tos, table, 2 reserved, action, flags"""

_TO_TABLE: Final = 1
_FRA_SRC: Final = 2
_FRA_PRIORITY: Final = 6
_FRA_SUPPRESS_PREFIXLEN: Final = 14
_FRA_TABLE: Final = 15
_FRA_PROTOCOL: Final = 21
_FRA_IP_PROTO: Final = 22
_FRA_SPORT_RANGE: Final = 23
_OURS: Final = 0x6D
_UDP: Final = 17


def read() -> frozenset[Policy]:
    with Netlink(NETLINK_ROUTE) as netlink:
        found = netlink.dump("list routing rules", _RTM_GETRULE, _RULE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))
    policies = (decode(payload) for kind, payload in found if kind == _RTM_NEWRULE)
    return frozenset(p for p in policies if p is not None)


def put(policies: Iterable[Policy]) -> None:
    requests = [(_RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, encode(p)) for p in policies]
    with Netlink(NETLINK_ROUTE) as netlink:
        netlink.requests("add routing rules", requests, ignore=(errno.EEXIST,))


def delete(policies: Iterable[Policy]) -> None:
    with Netlink(NETLINK_ROUTE) as netlink:
        netlink.requests("delete routing rules", [(_RTM_DELRULE, 0, encode(p)) for p in policies], ignore=(errno.ENOENT,))


def encode(policy: Policy) -> bytes:
    by_main = not policy.source and not policy.udp_port
    table = RT_TABLE_MAIN if by_main else RT_TABLE_ANSWERS
    length = 32 if policy.source else 0
    parts = [_RULE.pack(socket.AF_INET, 0, length, 0, 0, 0, 0, _TO_TABLE, 0)]
    parts.append(attribute(_FRA_PRIORITY, struct.pack("=I", policy.priority)))
    parts.append(attribute(_FRA_TABLE, struct.pack("=I", table)))
    parts.append(attribute(_FRA_PROTOCOL, bytes([_OURS])))
    if policy.source:
        parts.append(attribute(_FRA_SRC, socket.inet_aton(policy.source)))
    if policy.udp_port:
        parts.append(attribute(_FRA_IP_PROTO, bytes([_UDP])))
        parts.append(attribute(_FRA_SPORT_RANGE, struct.pack("=HH", policy.udp_port, policy.udp_port)))
    if by_main:
        # the table's default route doesn't count: what is not on a link of the container goes on to the next rule
        parts.append(attribute(_FRA_SUPPRESS_PREFIXLEN, struct.pack("=I", 0)))
    return b"".join(parts)


def decode(payload: bytes) -> Policy | None:
    """None for a rule that is not ours."""
    values = attributes(payload[_RULE.size :])
    if values.get(_FRA_PROTOCOL, b"") != bytes([_OURS]):
        return None
    source = socket.inet_ntoa(values[_FRA_SRC]) if _FRA_SRC in values else ""
    port = struct.unpack("=HH", values[_FRA_SPORT_RANGE])[0] if _FRA_SPORT_RANGE in values else 0
    return Policy(struct.unpack("=I", values[_FRA_PRIORITY])[0], source, port)
