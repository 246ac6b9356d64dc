"""IPVS services and destinations over generic netlink, in the namespace the calling thread is in.

Edge: the socket; encoding and decoding are pure. Source: linux/ip_vs.h, genetlink. Every service is keyed by firewall mark. pyroute2's IPVS
is not used: its "update" sends DELETE, and a message costs 280 us.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from mesh.address import text
from mesh.errors import KernelError, KernelUnsupported
from mesh.linux import generic
from mesh.linux.netlink import NETLINK_GENERIC, NLA_F_NESTED, Netlink, attribute, attributes
from mesh.table import IpvsDestination, IpvsService

NEW_SERVICE: Final = 1
SET_SERVICE: Final = 2
DEL_SERVICE: Final = 3
GET_SERVICE: Final = 4
NEW_DEST: Final = 5
SET_DEST: Final = 6
DEL_DEST: Final = 7
SET_CONFIG: Final = 12
GET_CONFIG: Final = 13

_ATTR_SERVICE: Final = 1
_ATTR_DEST: Final = 2
_ATTR_TIMEOUT_TCP: Final = 4
_SVC_AF: Final = 1
_SVC_MARK: Final = 5
_SVC_SCHEDULER: Final = 6
_SVC_FLAGS: Final = 7
_SVC_TIMEOUT: Final = 8
_SVC_NETMASK: Final = 9
_DEST_ADDR: Final = 1
_DEST_PORT: Final = 2
_DEST_METHOD: Final = 3
_DEST_WEIGHT: Final = 4
_DEST_UPPER: Final = 5
_DEST_LOWER: Final = 6
_DEST_FAMILY: Final = 11
_PERSISTENT: Final = 0x0001
_MASQUERADE: Final = 0
_DIRECT_ROUTE: Final = 3

_SERVICE_KEY: Final = struct.Struct("=HH HHHxx HHI")
_DESTINATION: Final = struct.Struct("=HH HH16s HHHxx HHI HHI HHI HHI HHHxx")
_PART: Final = 200
"""Requests of one write."""

_GONE: Final = {DEL_DEST: (errno.ENOENT,), DEL_SERVICE: (errno.ESRCH, errno.ENOENT)}
_TABLE: Final = "/proc/thread-self/net/ip_vs"


def family_id() -> int | None:
    return generic.family_id("IPVS")


def load_module() -> None:
    generic.load_module("IPVS", "ip_vs")


def encode_service(service: IpvsService, *, whole: bool) -> bytes:
    """The service attribute; `whole` False: only what identifies it."""
    af = socket.AF_INET if service.family == 4 else socket.AF_INET6
    settings = _settings(service.family, service.scheduler, service.timeout_s) if whole else b""
    size = _SERVICE_KEY.size + len(settings)
    return _SERVICE_KEY.pack(size, _ATTR_SERVICE | NLA_F_NESTED, 6, _SVC_AF, af, 8, _SVC_MARK, service.mark) + settings


@lru_cache(maxsize=1024)
def _settings(family: int, scheduler: str, timeout_s: int) -> bytes:
    flags = _PERSISTENT if timeout_s else 0
    # one client is one address: all bits of an IPv4 address, a prefix length for IPv6
    netmask = b"\xff\xff\xff\xff" if family == 4 else struct.pack("=I", 128)
    return b"".join(
        (
            attribute(_SVC_SCHEDULER, scheduler.encode() + b"\0"),
            attribute(_SVC_FLAGS, struct.pack("=II", flags, 0xFFFFFFFF)),
            attribute(_SVC_TIMEOUT, struct.pack("=I", timeout_s)),
            attribute(_SVC_NETMASK, netmask),
        )
    )


def decode_service(value: bytes) -> IpvsService:
    values = attributes(value)
    flags = struct.unpack_from("=I", values[_SVC_FLAGS])[0] if _SVC_FLAGS in values else 0
    return IpvsService(
        mark=struct.unpack("=I", values[_SVC_MARK])[0] if _SVC_MARK in values else 0,
        family=4 if struct.unpack("=H", values[_SVC_AF])[0] == socket.AF_INET else 6,
        scheduler=values.get(_SVC_SCHEDULER, b"").rstrip(b"\0").decode(),
        timeout_s=struct.unpack("=I", values[_SVC_TIMEOUT])[0] if flags & _PERSISTENT else 0,
    )


def encode_destination(destination: IpvsDestination) -> bytes:
    """In one go: they come by the ten thousand."""
    af = socket.AF_INET6 if ":" in destination.address else socket.AF_INET
    method = _MASQUERADE if destination.masqueraded else _DIRECT_ROUTE
    return _DESTINATION.pack(
        *(_DESTINATION.size, _ATTR_DEST | NLA_F_NESTED),
        *(20, _DEST_ADDR, socket.inet_pton(af, destination.address)),
        *(6, _DEST_PORT, socket.htons(destination.port)),
        *(8, _DEST_METHOD, method),
        *(8, _DEST_WEIGHT, destination.weight),
        *(8, _DEST_UPPER, 0),
        *(8, _DEST_LOWER, 0),
        *(6, _DEST_FAMILY, af),
    )


def parse_destinations(listing: str) -> dict[int, frozenset[IpvsDestination]]:
    """By mark, from what /proc/net/ip_vs says: one read, where netlink has a dump for each service."""
    found: dict[int, list[IpvsDestination]] = {}
    current: list[IpvsDestination] | None = None
    for line in listing.splitlines():
        if line.startswith("  -> "):
            if current is not None:
                target, method, weight = line[5:].split(None, 3)[:3]
                address, _, port = target.rpartition(":")
                current.append(IpvsDestination(_address(address), int(port, 16), int(weight), method == "Masq"))
        elif line.startswith("FWM"):
            current = found.setdefault(int(line.split()[1], 16), [])
        else:
            current = None
    return {mark: frozenset(destinations) for mark, destinations in found.items()}


def _address(shown: str) -> str:
    """As /proc shows it: hexadecimal, or IPv6 in full in brackets."""
    return text(socket.inet_pton(socket.AF_INET6, shown[1:-1]) if shown.startswith("[") else bytes.fromhex(shown))


class Ipvs:
    """The tables of one namespace; short-lived, opened where the thread is."""

    def __init__(self, family: int | None) -> None:
        if family is None:
            raise KernelUnsupported("open IPVS", errno.ENOENT, "the kernel has no ip_vs: use the nftables balancer")
        self._family = family

    def read(self) -> dict[int, IpvsService]:
        """All that have a mark, by it."""
        found: dict[int, IpvsService] = {}
        destinations = parse_destinations(Path(_TABLE).read_text())
        with Netlink(NETLINK_GENERIC) as netlink:
            for _kind, payload in netlink.dump("list IPVS services", self._family, _header(GET_SERVICE)):
                service = decode_service(attributes(payload[4:])[_ATTR_SERVICE])
                if service.mark:
                    found[service.mark] = replace(service, destinations=destinations.get(service.mark, frozenset()))
        return found

    def timeout_s(self) -> int:
        """Of an idle TCP connection."""
        with Netlink(NETLINK_GENERIC) as netlink:
            ((_kind, payload),) = netlink.ask("read IPVS timeouts", self._family, _header(GET_CONFIG))
        return int(struct.unpack("=I", attributes(payload[4:])[_ATTR_TIMEOUT_TCP])[0])

    def put_timeout(self, timeout_s: int) -> None:
        value = attribute(_ATTR_TIMEOUT_TCP, struct.pack("=I", timeout_s))
        with Netlink(NETLINK_GENERIC) as netlink:
            netlink.request("set IPVS timeouts", self._family, 0, _header(SET_CONFIG) + value)

    def put(self, changes: Iterable[tuple[IpvsService, IpvsService | None]]) -> None:
        """Desired and actual (None: there is none). Of each, new destinations first, then the changed, then the gone ones: it is never
        without, wherever this ends."""
        self._send("put IPVS services", [request for desired, actual in changes for request in _requests(desired, actual)])

    def delete(self, services: Iterable[IpvsService]) -> None:
        self._send("delete IPVS services", [(DEL_SERVICE, encode_service(service, whole=False)) for service in services])

    def _send(self, op: str, requests: Sequence[tuple[int, bytes]]) -> None:
        with Netlink(NETLINK_GENERIC) as netlink:
            for start in range(0, len(requests), _PART):
                part = requests[start : start + _PART]
                codes = netlink.send([(self._family, 0, _header(command) + payload) for command, payload in part])
                # what is to be deleted and isn't there is as it should be
                failed = [c for (command, _), c in zip(part, codes, strict=True) if c and c not in _GONE.get(command, ())]
                if failed:
                    raise KernelError(op, failed[0], f"{os.strerror(failed[0])}, {len(failed)} of {len(part)}")


def _requests(desired: IpvsService, actual: IpvsService | None) -> Iterator[tuple[int, bytes]]:
    if actual is None:
        yield NEW_SERVICE, encode_service(desired, whole=True)
    elif (actual.scheduler, actual.timeout_s) != (desired.scheduler, desired.timeout_s):
        yield SET_SERVICE, encode_service(desired, whole=True)
    key = encode_service(desired, whole=False)
    present = {(d.address, d.port): d for d in actual.destinations} if actual else {}
    wanted = {(d.address, d.port): d for d in desired.destinations}
    for command in (NEW_DEST, SET_DEST):
        for name in sorted(name for name, d in wanted.items() if (name in present) is (command == SET_DEST) and present.get(name) != d):
            yield command, key + encode_destination(wanted[name])
    for name in sorted(present.keys() - wanted.keys()):
        yield DEL_DEST, key + encode_destination(present[name])


def _header(command: int) -> bytes:
    return struct.pack("=BBH", command, 1, 0)
