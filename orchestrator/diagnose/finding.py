"""One thing that a doctor found: what it is, and what to do about it.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Level = Literal["ok", "note", "bad"]


class Finding(msgspec.Struct, frozen=True):
    """level: ok | note (works, but know this) | bad (fix it). check: the part that was looked at. do: "" if there is nothing to do."""

    level: Level
    check: str
    what: str
    do: str = ""


def is_well(findings: Iterable[Finding]) -> bool:
    return all(finding.level != "bad" for finding in findings)
