"""What is counted while answering: queries by type and rcode, and how long answers took.

Pure. Made for the hot path: a batch of queries is counted with two calls, whoever exports the figures pays for their form.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

# From the fastest answer seen to the patience of a resolver. An answer of ours takes microseconds, another server's milliseconds.
BOUNDS_S = (2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 1e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0)

_UNCOUNTED_LIMIT = 4096


class Histogram:
    """buckets[i]: how many took at most BOUNDS_S[i] and more than the bound before; the last one has no bound."""

    __slots__ = ("buckets", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        self.buckets[bisect_left(BOUNDS_S, seconds)] += times
        self.sum_s += seconds * times


class QueryCounters:
    """Responses by label (see `label`), and how long they took.

    own_s: from reading a query to its answer being sent, for names of ours and cached ones; a batch is timed as a whole and each
    query of it counts as its mean. forwarded_s: the same for those that another server had to be asked for.
    """

    __slots__ = ("_answers", "_uncounted", "forwarded_s", "own_s")

    def __init__(self) -> None:
        self._answers: Counter[int] = Counter()
        # Noting a batch costs a tenth of counting it; that is done for many at once.
        self._uncounted: list[int] = []
        self.own_s = Histogram()
        self.forwarded_s = Histogram()

    def count(self, labels: Sequence[int]) -> None:
        self._uncounted += labels
        if len(self._uncounted) > _UNCOUNTED_LIMIT:
            self._settle()

    def by_type_and_rcode(self) -> Iterator[tuple[int, int, int]]:
        """(qtype, rcode, how many), sorted. qtype 0: the question could not be read."""
        self._settle()
        for number, times in sorted(self._answers.items()):
            yield number >> 4, number & 0xF, times

    def _settle(self) -> None:
        self._answers.update(self._uncounted)
        self._uncounted.clear()


def label(qtype: int, rcode: int) -> int:
    """One number for both: counting numbers is cheapest."""
    return qtype << 4 | rcode


def label_of(response: bytes) -> int:
    """The label of a whole response."""
    end = response.find(b"\0", 12)
    qtype = response[end + 1] << 8 | response[end + 2] if response[5:6] == b"\1" and 0 < end < len(response) - 4 else 0
    return label(qtype, response[3] & 0xF)
