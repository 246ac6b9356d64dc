"""Kernel parameters under /proc/sys/net, of the namespace the calling thread is in.

Edge. Source: sysctl(8), Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mesh.errors import KernelError


def _path(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def exists(name: str) -> bool:
    return _path(name).exists()


def read(names: Iterable[str]) -> dict[str, str]:
    """Values of those that exist."""
    found = {}
    for name in names:
        try:
            found[name] = _path(name).read_text().strip()
        except OSError:
            continue
    return found


def put(values: Iterable[tuple[str, str]]) -> None:
    for name, value in values:
        try:
            _path(name).write_text(value)
        except OSError as error:
            raise KernelError(f"set {name}={value}", error.errno or 0) from error
