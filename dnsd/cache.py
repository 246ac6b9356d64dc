"""Answers of other servers, kept for as long as they allow, and as a last resort for longer.

Pure but for its memory; `now` (monotonic seconds) is an argument. The least recently used goes first, by bytes.
Source: RFC 2308 (negative answers), RFC 8767 (serving stale).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import msgspec

from dnsd.wire import Reply

# RFC 8767, 5: stale for one to three days; RFC 2308, 5: denials for one to three hours.
STALE_S = 86_400
MAX_TTL_S = 86_400
MAX_NEGATIVE_TTL_S = 3_600
# RFC 8767, 5: the failure recheck timer.
RECHECK_S = 30.0
# A rough cost of one entry's objects, on top of its bytes.
_ENTRY_BYTES = 700


class Kept(msgspec.Struct, frozen=True):
    """recheck_at: getting a newer one failed; until then it isn't tried again, and this one goes out stale."""

    reply: Reply
    since: float
    until: float
    recheck_at: float = float("-inf")

    def age_s(self, now: float) -> int:
        return int(now - self.since)


class Cache:
    def __init__(self, size_bytes: int = 16 << 20) -> None:
        self._size_bytes = size_bytes
        self._used_bytes = 0
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: Hashable, reply: Reply, now: float) -> None:
        """Keep it if it says so (ttl_s > 0). What must not be kept also ends what was kept before."""
        self._drop(key)
        if not reply.ttl_s:
            return
        ttl_s = min(reply.ttl_s, MAX_TTL_S if reply.answer_ends else MAX_NEGATIVE_TTL_S)
        self._kept[key] = Kept(reply, now, now + ttl_s)
        self._used_bytes += len(reply.body) + _ENTRY_BYTES
        while self._used_bytes > self._size_bytes:
            self._drop(next(iter(self._kept)))

    def fresh(self, key: Hashable, now: float) -> Kept | None:
        kept = self._kept.get(key)
        if kept is None or now >= kept.until:
            return None
        self._kept.move_to_end(key)
        return kept

    def stale(self, key: Hashable, now: float) -> Kept | None:
        """Fresh or not: better than a failure, if it expired less than a day ago."""
        kept = self._kept.get(key)
        return kept if kept is not None and now < kept.until + STALE_S else None

    def failed(self, key: Hashable, now: float) -> None:
        """The upstreams don't tell just now."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept[key] = msgspec.structs.replace(kept, recheck_at=now + RECHECK_S)

    def resting(self, key: Hashable, now: float) -> Kept | None:
        """Stale, and to be served as it is: the last attempt to get a newer one failed a moment ago."""
        kept = self.stale(key, now)
        return kept if kept is not None and now < kept.recheck_at else None

    def _drop(self, key: Hashable) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._used_bytes -= len(kept.reply.body) + _ENTRY_BYTES
