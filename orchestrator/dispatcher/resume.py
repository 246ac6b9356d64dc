"""The resume token: what an agent says it has when it comes back, so that it is sent the difference and not everything.

Pure: no I/O. Rows are dealt into buckets by their keys; the token is one digest a bucket. Buckets whose digests are equal stay as they
are; those that differ are sent whole. A token says nothing of where it was made, so it holds for any manager, any leader and any
history of the store. Digests are sums (modulo 2^128) of the rows' digests, so those of big buckets are sums of those of small ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from zlib import crc32

from orchestrator.dispatcher.parts import Part, Parts

MOST_BUCKETS = 256
# Small assignments get small tokens, big ones small buckets.
ROWS_PER_BUCKET = 4
_SIZE_BYTES = 16
_MODULUS = 1 << 8 * _SIZE_BYTES


def row_digest(key: str, row: bytes) -> int:
    name = key.encode()
    return int.from_bytes(blake2b(len(name).to_bytes(4) + name + row, digest_size=_SIZE_BYTES).digest())


def bucket(key: str, buckets: int) -> int:
    return crc32(key.encode()) % buckets


class Held:
    """The agent's half: the digests of the rows it has."""

    def __init__(self) -> None:
        self._digests: dict[str, int] = {}

    def replace(self, rows: Iterable[tuple[str, bytes]]) -> None:
        self._digests.clear()
        self.update(rows, ())

    def update(self, put: Iterable[tuple[str, bytes]], removed: Iterable[str]) -> None:
        for key in removed:
            self._digests.pop(key, None)
        for key, row in put:
            self._digests[key] = row_digest(key, row)

    def token(self) -> bytes:
        """b"" = it has nothing."""
        if not self._digests:
            return b""
        buckets = 1
        while buckets < MOST_BUCKETS and buckets * ROWS_PER_BUCKET < len(self._digests):
            buckets *= 2
        sums = [0] * buckets
        for key, digest in self._digests.items():
            sums[bucket(key, buckets)] += digest
        return b"".join((one % _MODULUS).to_bytes(_SIZE_BYTES) for one in sums)

    def of_buckets(self, numbers: Iterable[int], buckets: int) -> set[str]:
        """The keys of what it has in these of so many buckets."""
        wanted = set(numbers)
        return {key for key in self._digests if bucket(key, buckets) in wanted}


def buckets_of(token: bytes) -> int:
    """How many buckets a token speaks of; 0: it is none, or of a form not known here."""
    buckets, rest = divmod(len(token), _SIZE_BYTES)
    return 0 if rest or buckets > MOST_BUCKETS or buckets & (buckets - 1) else buckets


class Summary:
    """The manager's half: rows in the smallest buckets. Bigger ones are sums of them, as numbers of buckets are powers of two."""

    __slots__ = ("rows", "sums", "tables")

    def __init__(self, *tables: Part) -> None:
        """Kept with the tables it was made of: while it lives, their identities are theirs."""
        self.tables = tables
        self.sums = [0] * MOST_BUCKETS
        self.rows: list[dict[str, bytes]] = [{} for _ in range(MOST_BUCKETS)]
        for table in tables:
            for key, row in table.items():
                number = bucket(key, MOST_BUCKETS)
                # a row (a node's) may be in several tables: it counts once
                if key not in self.rows[number]:
                    self.rows[number][key] = row
                    self.sums[number] += row_digest(key, row)


class Summaries:
    """Of assignments: what many agents have in common, all of their networks, is summed once as long as its tables are the same objects."""

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._known: dict[tuple[int, ...], Summary] = {}

    def of(self, parts: Parts) -> tuple[Summary, Summary]:
        """Two that share no key: the node's own rows, and those of its networks."""
        own = Summary(*(part for name, part in parts.items() if not name.startswith("network/")))
        tables = tuple(part for name, part in sorted(parts.items()) if name.startswith("network/"))
        known = tuple(map(id, tables))
        summary = self._known.pop(known, None) or Summary(*tables)
        self._known[known] = summary
        if len(self._known) > self._most:
            del self._known[next(iter(self._known))]
        return own, summary


def stale_buckets(token: bytes, summaries: Sequence[Summary]) -> tuple[tuple[int, ...], Mapping[str, bytes]]:
    """(buckets in which the agent has something else, all rows that belong there). The token is one of `buckets_of` > 0 buckets."""
    buckets = buckets_of(token)
    stale = []
    rows: dict[str, bytes] = {}
    for number in range(buckets):
        fine = range(number, MOST_BUCKETS, buckets)
        due = sum(summary.sums[part] for summary in summaries for part in fine) % _MODULUS
        if due == int.from_bytes(token[number * _SIZE_BYTES : (number + 1) * _SIZE_BYTES]):
            continue
        stale.append(number)
        for summary in summaries:
            for part in fine:
                rows.update(summary.rows[part])
    return tuple(stale), {key: rows[key] for key in sorted(rows)}
