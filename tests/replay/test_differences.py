"""Every difference is explained, every explanation needed."""

from __future__ import annotations

from tests.replay.differences import ACCEPTED, Accepted, between, unexplained

_SUBNETS = Accepted("network inspect", "mesh: .*/20", "larger")


def test_lines_of_one_side() -> None:
    assert list(between(["a", "b", "exit 0"], ["a", "c", "exit 0"])) == ["engine: b", "mesh: c"]
    assert list(between(["a"], ["a"])) == []


def test_what_no_entry_explains_is_left() -> None:
    found = [("network inspect ov", "mesh: 10.0.0.0/20"), ("network inspect ov", "engine: 10.0.0.0/24"), ("network ls", "mesh: 1/20")]
    assert unexplained(found, [_SUBNETS]) == (found[1:], [])


def test_an_entry_that_explains_nothing_is_stale() -> None:
    assert unexplained([], [_SUBNETS]) == ([], [_SUBNETS])
    assert unexplained([], [Accepted("x", "y", "by chance", varies=True)]) == ([], [])


def test_every_entry_has_a_reason() -> None:
    assert all(entry.reason for entry in ACCEPTED)
    assert len({(entry.commands, entry.line) for entry in ACCEPTED}) == len(ACCEPTED)
