from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dispatcher import resume
from orchestrator.dispatcher.resume import MOST_BUCKETS, Held, Summaries, bucket, buckets_of, stale_buckets

Table = dict[str, bytes]


def resumed(had: Table, parts: dict[str, Table], summaries: Summaries) -> tuple[Table, int]:
    """What an agent that had `had` has after a session that resumes, and how many rows it was sent."""
    held = Held()
    held.replace(had.items())
    token = held.token()
    assert buckets_of(token)
    stale, rows = stale_buckets(token, summaries.of(parts))
    dropped = held.of_buckets(stale, buckets_of(token))
    return {key: row for key, row in had.items() if key not in dropped} | dict(rows), len(rows)


def union(parts: dict[str, Table]) -> Table:
    return {key: row for part in parts.values() for key, row in part.items()}


def test_every_pair_of_tiny_assignments() -> None:
    """Three rows of two contents each, in the node's own part, in one network or in two: whatever it had, it has what it is to have."""
    values = [None, b"a", b"b"]
    summaries = Summaries(most=4)
    tables = [
        {key: value for key, value in zip(("task/1", "node/1", "endpoint/n/1"), row, strict=True) if value is not None}
        for row in itertools.product(values, repeat=3)
    ]
    for had, due in itertools.product(tables[1:], tables):
        own = {key: row for key, row in due.items() if key.startswith("task")}
        network = {key: row for key, row in due.items() if not key.startswith("task")}
        shared = {key: row for key, row in network.items() if key.startswith("node")}
        for parts in ({"own/w1": own, "network/n": network}, {"own/w1": own, "network/n": network, "network/o": shared}):
            has, sent = resumed(had, parts, summaries)
            assert has == due
            assert sent == 0 or had != due


@given(st.data())
def test_whatever_differs_is_found_and_little_else_is_sent(data: st.DataObject) -> None:
    keys = st.integers(0, 2000).map(lambda number: f"endpoint/n/{number}")
    had = data.draw(st.dictionaries(keys, st.binary(max_size=3), min_size=1, max_size=80))
    changed = data.draw(st.dictionaries(keys, st.none() | st.binary(max_size=3), max_size=6))
    due = {key: row for key, row in (had | changed).items() if row is not None}
    has, sent = resumed(had, {"own/w1": {}, "network/n": due}, Summaries())
    assert has == due
    if due == had:
        assert sent == 0
    buckets = buckets_of(_token(had))
    assert sent <= sum(bucket(key, buckets) in {bucket(other, buckets) for other in changed} for key in due)


def _token(rows: Table) -> bytes:
    held = Held()
    held.replace(rows.items())
    return held.token()


def test_a_thousand_rows_and_one_change() -> None:
    had = {f"endpoint/n/{number}": b"row" for number in range(1000)}
    has, sent = resumed(had, {"network/n": had | {"endpoint/n/7": b"other"}}, Summaries())
    assert has["endpoint/n/7"] == b"other"
    assert sent <= 20


def test_the_digest_is_the_same_in_every_process_and_release() -> None:
    """Written down: managers and agents of two releases must agree on it."""
    assert f"{resume.row_digest('task/t1', b'row'):032x}" == "e0fba068ab54ededf0ebef26ae8d578d"
    assert bucket("task/t1", 256) == 177


def test_tokens_grow_with_what_is_held_and_odd_ones_are_none() -> None:
    assert _token({}) == b""
    sizes = [buckets_of(_token({str(number): b"" for number in range(count)})) for count in (1, 4, 5, 9, 1000, 5000)]
    assert sizes == [1, 1, 2, 4, MOST_BUCKETS, MOST_BUCKETS]
    assert [buckets_of(bytes(size)) for size in (0, 1, 17, 48, 16 * 512)] == [0] * 5


def test_summaries_forget_the_oldest() -> None:
    summaries = Summaries(most=2)
    tables: list[Table] = [{"node/1": bytes([number])} for number in range(3)]
    for table in tables:
        summaries.of({"network/n": table})
    assert len(summaries._known) == 2
    first = summaries.of({"network/n": tables[2]})[1]
    assert summaries.of({"network/n": tables[2]})[1] is first
