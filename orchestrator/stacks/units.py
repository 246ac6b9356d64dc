"""Durations, sizes, CPUs and port ranges as compose files write them.

Pure. Source: compose-spec 11-extension.md (durations, byte values), docker/go-connections nat.ParsePortRange.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from orchestrator.errors import ConfigError

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:us|ms|h|m|s))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|h|m|s)")
_UNITS_NS = {"us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def duration_ns(where: str, text: str) -> int:
    """ "1m30s" -> ns; "" is 0."""
    if text in ("", "0"):
        return 0
    if not _DURATION.fullmatch(text):
        raise ConfigError(f"{where} {text!r}: expected a duration such as 1m30s")
    return int(sum(Decimal(amount) * _UNITS_NS[unit] for amount, unit in _DURATION_PART.findall(text)))


def size_bytes(where: str, given: str | int | float) -> int:
    """ "64m" -> bytes; "" is 0."""
    text = str(given).strip()
    if not text:
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{where} {text!r}: expected a size such as 64M")
    return int(Decimal(match[1]) * _UNITS_BYTES[match[2].lower()])


def cpus_ns(where: str, given: str | int | float) -> int:
    """ "0.5" -> 1e-9 CPUs; "" is 0."""
    text = str(given).strip()
    if not text:
        return 0
    try:
        cpus = Decimal(text)
    except InvalidOperation:
        raise ConfigError(f"{where} {text!r}: expected a number of CPUs such as 0.5") from None
    if not cpus.is_finite() or cpus < 0 or cpus > 100_000:
        raise ConfigError(f"{where} {text!r}: expected a number of CPUs such as 0.5")
    return int(cpus * 10**9)


def port_range(text: str) -> range:
    """ "80" or "8000-8010". ConfigError."""
    first, dash, last = text.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
        raise ConfigError(f"ports: {text!r} is neither a port nor a range of ports")
    ports = range(int(first), int(last or first) + 1)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise ConfigError(f"ports: {text!r}: ports go from 1 to 65535")
    return ports
