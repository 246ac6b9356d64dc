"""IPVS services and destinations over generic netlink, in the namespace the calling thread is in.

Edge: the socket; encoding and decoding are pure. Source: linux/ip_vs.h, genetlink. Every service is keyed by firewall mark. pyroute2's IPVS
is not used: its "update" sends DELETE, and a message costs 280 us.
"""

from __future__ import annotations

import errno
import shutil
import socket
import struct
import subprocess
from contextlib import suppress
from dataclasses import replace
from typing import Final

from mesh.errors import KernelUnsupported
from mesh.linux.netlink import NETLINK_GENERIC, Netlink, attribute, attributes, nested
from mesh.table import IpvsDestination, IpvsService

NEW_SERVICE: Final = 1
SET_SERVICE: Final = 2
DEL_SERVICE: Final = 3
GET_SERVICE: Final = 4
NEW_DEST: Final = 5
SET_DEST: Final = 6
DEL_DEST: Final = 7
GET_DEST: Final = 8
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
_FORWARDING_MASK: Final = 7

_CONTROL: Final = 0x10
_GET_FAMILY: Final = 3
_FAMILY_ID: Final = 1
_FAMILY_NAME: Final = 2


def family_id() -> int | None:
    """Number of the IPVS family, None when the kernel has none (or has not loaded it)."""
    with Netlink(NETLINK_GENERIC) as netlink:
        for _kind, payload in netlink.dump("list netlink families", _CONTROL, struct.pack("=BBH", _GET_FAMILY, 1, 0)):
            values = attributes(payload[4:])
            if values.get(_FAMILY_NAME, b"").rstrip(b"\0") == b"IPVS":
                return int(struct.unpack("=H", values[_FAMILY_ID])[0])
    return None


def load_module() -> None:
    """Afterwards `family_id` tells whether this kernel can have IPVS at all."""
    if family_id() is None and shutil.which("modprobe"):
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["modprobe", "-q", "ip_vs"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10)


def encode_service(service: IpvsService, *, whole: bool) -> bytes:
    """The service attribute; `whole` False: only what identifies it."""
    af = socket.AF_INET if service.family == 4 else socket.AF_INET6
    parts = [attribute(_SVC_AF, struct.pack("=H", af)), attribute(_SVC_MARK, struct.pack("=I", service.mark))]
    if whole:
        flags = _PERSISTENT if service.timeout_s else 0
        # one client is one address: all bits of an IPv4 address, a prefix length for IPv6
        netmask = b"\xff\xff\xff\xff" if service.family == 4 else struct.pack("=I", 128)
        parts += [
            attribute(_SVC_SCHEDULER, service.scheduler.encode() + b"\0"),
            attribute(_SVC_FLAGS, struct.pack("=II", flags, 0xFFFFFFFF)),
            attribute(_SVC_TIMEOUT, struct.pack("=I", service.timeout_s)),
            attribute(_SVC_NETMASK, netmask),
        ]
    return nested(_ATTR_SERVICE, *parts)


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
    af = socket.AF_INET6 if ":" in destination.address else socket.AF_INET
    return nested(
        _ATTR_DEST,
        attribute(_DEST_ADDR, socket.inet_pton(af, destination.address).ljust(16, b"\0")),
        attribute(_DEST_PORT, struct.pack(">H", destination.port)),
        attribute(_DEST_METHOD, struct.pack("=I", _MASQUERADE if destination.masqueraded else _DIRECT_ROUTE)),
        attribute(_DEST_WEIGHT, struct.pack("=I", destination.weight)),
        attribute(_DEST_UPPER, struct.pack("=I", 0)),
        attribute(_DEST_LOWER, struct.pack("=I", 0)),
        attribute(_DEST_FAMILY, struct.pack("=H", af)),
    )


def decode_destination(value: bytes, service_family: int) -> IpvsDestination:
    values = attributes(value)
    default = socket.AF_INET if service_family == 4 else socket.AF_INET6
    af = struct.unpack("=H", values[_DEST_FAMILY])[0] if _DEST_FAMILY in values else default
    packed = values[_DEST_ADDR][: 4 if af == socket.AF_INET else 16]
    port = struct.unpack(">H", values[_DEST_PORT])[0]
    weight = struct.unpack("=I", values[_DEST_WEIGHT])[0]
    masqueraded = struct.unpack("=I", values[_DEST_METHOD])[0] & _FORWARDING_MASK == _MASQUERADE
    return IpvsDestination(socket.inet_ntop(af, packed), port, weight, masqueraded)


class Ipvs:
    """The tables of one namespace; short-lived, opened where the thread is."""

    def __init__(self, family: int | None) -> None:
        if family is None:
            raise KernelUnsupported("open IPVS", errno.ENOENT, "the kernel has no ip_vs: use the nftables balancer")
        self._family = family

    def read(self) -> dict[int, IpvsService]:
        """All that have a mark, by it."""
        found: dict[int, IpvsService] = {}
        with Netlink(NETLINK_GENERIC) as netlink:
            for _kind, payload in netlink.dump("list IPVS services", self._family, _header(GET_SERVICE)):
                service = decode_service(attributes(payload[4:])[_ATTR_SERVICE])
                if not service.mark:
                    continue
                request = _header(GET_DEST) + encode_service(service, whole=False)
                rows = netlink.dump("list IPVS destinations", self._family, request)
                destinations = frozenset(decode_destination(attributes(row[4:])[_ATTR_DEST], service.family) for _kind, row in rows)
                found[service.mark] = replace(service, destinations=destinations)
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

    def put(self, desired: IpvsService, actual: IpvsService | None) -> None:
        """New destinations first, then the changed, then the gone ones; the service is never without."""
        with Netlink(NETLINK_GENERIC) as netlink:
            whole = encode_service(desired, whole=True)
            if actual is None:
                netlink.request("add IPVS service", self._family, 0, _header(NEW_SERVICE) + whole, ignore=(errno.EEXIST,))
            elif (actual.scheduler, actual.timeout_s) != (desired.scheduler, desired.timeout_s):
                netlink.request("set IPVS service", self._family, 0, _header(SET_SERVICE) + whole)
            key = encode_service(desired, whole=False)
            present = {(d.address, d.port): d for d in actual.destinations} if actual else {}
            wanted = {(d.address, d.port): d for d in desired.destinations}
            requests = [
                (self._family, 0, _header(SET_DEST if name in present else NEW_DEST) + key + encode_destination(d))
                for name, d in sorted(wanted.items())
                if present.get(name) != d
            ]
            requests += [
                (self._family, 0, _header(DEL_DEST) + key + encode_destination(d))
                for name, d in sorted(present.items())
                if name not in wanted
            ]
            netlink.requests("set IPVS destinations", requests, ignore=(errno.EEXIST, errno.ENOENT))

    def delete(self, service: IpvsService) -> None:
        payload = _header(DEL_SERVICE) + encode_service(service, whole=False)
        with Netlink(NETLINK_GENERIC) as netlink:
            netlink.request("delete IPVS service", self._family, 0, payload, ignore=(errno.ESRCH, errno.ENOENT))


def _header(command: int) -> bytes:
    return struct.pack("=BBH", command, 1, 0)
