from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dispatcher.parts import Differences

ROWS = [b"a", b"b"]
# Every part with keys 1 and 2 absent or of one of two contents.
PARTS = [
    {key: row for key, row in zip(("1", "2"), pair, strict=True) if row} for pair in itertools.product([b"", *ROWS], repeat=2)
]  # fmt: skip


def union(parts: dict[str, dict[str, bytes]]) -> dict[str, bytes]:
    return {key: row for name in sorted(parts) for key, row in parts[name].items()}


def consistent(parts: dict[str, dict[str, bytes]]) -> bool:
    """Parts made from one snapshot say the same of a row they share."""
    return all(parts[one][key] == parts[two][key] for one in parts for two in parts for key in parts[one].keys() & parts[two].keys())


def check(old: dict[str, dict[str, bytes]], new: dict[str, dict[str, bytes]], differences: Differences) -> None:
    shown = union(old)
    put, removed = differences.between(old, new)
    for key in removed:
        del shown[key]
    shown.update(put)
    assert shown == union(new)
    assert not put.keys() & set(removed)


def test_every_pair_of_tiny_assignments() -> None:
    pairs = [{"p": one, "q": two} for one in PARTS for two in PARTS]
    tables = [*[{"p": one} for one in PARTS], {}, *pairs]
    tables = [table for table in tables if consistent(table)]
    differences = Differences()
    for old in tables:
        for new in tables:
            check(old, new, differences)


@given(st.data())
def test_shared_tables_are_compared_once_and_right(data: st.DataObject) -> None:
    rows = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(ROWS), max_size=6)
    differences = Differences()
    tables = [data.draw(rows) for _ in range(4)]
    for _ in range(5):
        old, new = ({"p": data.draw(st.sampled_from(tables)), "own": {"x": data.draw(st.sampled_from(ROWS))}} for _ in range(2))
        check(old, new, differences)
