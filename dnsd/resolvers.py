"""Which servers the node itself asks: resolv.conf, and behind systemd-resolved's stub the real uplinks.

`parse_resolv_conf` and `parse_endpoint` are pure. Edge: NodeResolvers reads the files and looks again when they change.
Source: resolv.conf(5); systemd-resolved.service(8), "/etc/resolv.conf".
"""

from __future__ import annotations

import time
from pathlib import Path

from dnsd.errors import ConfigError
from dnsd.names import address_text, packed_address

Endpoint = tuple[str, int]

RESOLV_CONF = Path("/etc/resolv.conf")
# The stub of systemd-resolved listens here; its uplinks are in the file it keeps for those who bypass it.
_STUBS = frozenset({"127.0.0.53", "127.0.0.54"})
_UPLINKS = Path("/run/systemd/resolve/resolv.conf")
_LOOK_AGAIN_S = 2.0


def parse_resolv_conf(text: str) -> tuple[Endpoint, ...]:
    """The nameservers, in order, without repetition. Lines that make no sense are skipped, as the C library does."""
    endpoints: dict[Endpoint, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            address, _, zone = words[1].partition("%")
            packed = packed_address(address)
            if packed is not None:
                endpoints[(address_text(packed) + (f"%{zone}" if zone else ""), 53)] = None
    return tuple(endpoints)


def parse_endpoint(text: str, default_port: int = 53) -> Endpoint:
    """ "10.0.0.1", "10.0.0.1:53", "fd00::1", "[fd00::1]:53" -> (address, port). ConfigError: it is none of these."""
    host, colon, port = text, "", ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or colon not in ("", ":"):
            raise ConfigError(f"{text!r} is no address: expected [address]:port")
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    packed = packed_address(host.partition("%")[0])
    if packed is None:
        raise ConfigError(f"{text!r} is no address: expected address or address:port, such as 10.0.0.1:53 or [fd00::1]:53")
    if not colon:
        return host, default_port
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(f"{text!r} has no valid port: expected a number up to 65535")
    return host, int(port)


def endpoint_text(endpoint: Endpoint) -> str:
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class NodeResolvers:
    """The node's upstreams as of now. A file is read again when it changed, looked at most every two seconds."""

    def __init__(self, resolv_conf: Path = RESOLV_CONF, uplinks: Path = _UPLINKS) -> None:
        self._resolv_conf = resolv_conf
        self._uplinks = uplinks
        self._looked_at = float("-inf")
        self._stamp: tuple[object, ...] = ()
        self._endpoints: tuple[Endpoint, ...] = ()

    def endpoints(self) -> tuple[Endpoint, ...]:
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_AGAIN_S:
            self._looked_at = now
            stamp = (file_stamp(self._resolv_conf), file_stamp(self._uplinks))
            if stamp != self._stamp:
                self._stamp = stamp
                self._endpoints = self._read()
        return self._endpoints

    def _read(self) -> tuple[Endpoint, ...]:
        endpoints = parse_resolv_conf(_text(self._resolv_conf))
        if any(host in _STUBS for host, _ in endpoints):
            uplinks = parse_resolv_conf(_text(self._uplinks))
            if uplinks:
                return uplinks
        return endpoints


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """Another one when the file was written or replaced; None: it isn't there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
