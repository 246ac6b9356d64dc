"""The queries of one scope, for who looks for a mistake: the last thousand, in memory, while it is switched on.

Pure but for its memory and the clock. What is kept are bytes, so that an asker in a hurry costs little; they become text when they are
read. Nothing is written to a disk that a busy asker could fill.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from dnsd import presentation
from dnsd.model import QueryLogged

_REMEMBERED = 1000
# All that a datagram holds; of longer ones (TCP) the question and the response code.
_KEPT_BYTES = 4096


class QueryLog:
    """Called by the listener for each query, see `listener.QueryLog`."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, float, tuple[Any, ...], bytes, bool]] = deque(maxlen=_REMEMBERED)
        self._number = 0

    def __call__(self, packet: bytes, peer: tuple[Any, ...], response: bytes | None) -> None:
        self._number += 1
        kept = (packet if response is None else response)[:_KEPT_BYTES]
        self._entries.append((self._number, time.time(), peer, kept, response is not None))

    def after(self, number: int) -> tuple[QueryLogged, ...]:
        """Those later than `number` that are still there, in order."""
        return tuple(_shown(*entry) for entry in self._entries if entry[0] > number)


def _shown(number: int, at: float, peer: tuple[Any, ...], kept: bytes, answered: bool) -> QueryLogged:
    name, kind = presentation.question_text(kept)
    rcode, records = presentation.answer_text(kept) if answered else ("", ())
    client = str(peer[0]) if peer else "tcp"
    return QueryLogged(number=number, at=at, client=client, name=name, type=kind, rcode=rcode, records=records)
