"""What clients asked and were told: the record that the checker judges.

Pure: types only. Nothing here knows whose API it was: keys hold values, every value was written once, versions only grow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ABSENT = ""


@dataclass(frozen=True, slots=True)
class Op:
    """One request, from `started` to `ended` by the client's monotonic clock.

    outcome: "ok"; "refused" = it has not happened and never will; "maybe" = no answer, or one that leaves it open.
    value: what is written, or what was seen (ABSENT: there is no such key). A deleted key is never made again.
    base: the value that an update replaces, as its author saw it; the server was told that value's version.
    version: of what was seen. fresh: the answer claims to show everything that was acknowledged before the question.
    """

    client: str
    server: str
    kind: Literal["create", "update", "delete", "read"]
    key: str
    started: float
    ended: float
    outcome: Literal["ok", "refused", "maybe"] = "ok"
    value: str = ABSENT
    base: str = ABSENT
    version: int = 0
    fresh: bool = False

    def __str__(self) -> str:
        what = {
            "create": f"= {self.value}",
            "update": f"{self.base} -> {self.value}",
            "delete": "",
            "read": f"saw {self.value or 'nothing'}",
        }
        version = f" at version {self.version}" if self.version else ""
        claim = " (fresh)" if self.fresh else ""
        span = f"{self.started:.3f} to {self.ended:.3f}"
        return f"{self.kind} {self.key} {what[self.kind]}{version}{claim}: {self.outcome}, by {self.client} at {self.server}, {span}"


@dataclass(frozen=True, slots=True)
class Term:
    """From the store's own history, in its order: at `revision`, `holder` took the leadership (taken), or only renewed it."""

    revision: int
    holder: str
    taken: bool
