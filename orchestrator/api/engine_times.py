"""Moments as Engines write and read them, to the nanosecond.

Pure: no I/O. Source: Go's time.RFC3339Nano; moby api/types/time (seconds since 1970, with a fraction).
"""

from __future__ import annotations

import re
from datetime import datetime

_RFC3339 = re.compile(r"(.*:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})")


def nanoseconds(text: str) -> int | None:
    """Since 1970, of RFC 3339; None: it is no such time."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    whole, fraction, zone = found.groups()
    try:
        return int(datetime.fromisoformat(whole + zone).timestamp()) * 10**9 + int((fraction or "").ljust(9, "0"))
    except ValueError:
        return None


def seconds(time_ns: int) -> str:
    """For `since` and `until`."""
    return f"{time_ns // 10**9}.{time_ns % 10**9:09d}"
