"""Families of generic netlink: which this kernel has, and having it load one.

Edge. Source: linux/genetlink.h.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from typing import Final

from mesh.linux.netlink import NETLINK_GENERIC, Netlink, attributes

_CONTROL: Final = 0x10
_GET_FAMILY: Final = 3
_FAMILY_ID: Final = 1
_FAMILY_NAME: Final = 2


def family_id(name: str) -> int | None:
    """Number of the family, None when the kernel has none (or has not loaded it)."""
    with Netlink(NETLINK_GENERIC) as netlink:
        for _kind, payload in netlink.dump("list netlink families", _CONTROL, struct.pack("=BBH", _GET_FAMILY, 1, 0)):
            values = attributes(payload[4:])
            if values.get(_FAMILY_NAME, b"").rstrip(b"\0") == name.encode():
                return int(struct.unpack("=H", values[_FAMILY_ID])[0])
    return None


def load_module(family: str, module: str) -> None:
    """Afterwards `family_id` tells whether this kernel can have the family at all."""
    if family_id(family) is None:
        _modprobe("-q", module)


def could_load(module: str) -> bool:
    """Nothing is loaded."""
    return _modprobe("-q", "-n", module)


def _modprobe(*arguments: str) -> bool:
    program = shutil.which("modprobe") or shutil.which("modprobe", path="/usr/sbin:/sbin")
    if program is None:
        return False
    try:
        return subprocess.run([program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
