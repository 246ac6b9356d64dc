"""The checker against the definition, over all tiny histories, and against registers that lie in each of the ways it looks for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .checker import check, check_leaders
from .history import ABSENT, Op, Term

# ---- all tiny histories, against the definition -----------------------------------------------------------------------------------

_POOL = [
    Op("c", "s", "update", "k", 0, 0, "ok", "b", "a"),
    Op("c", "s", "update", "k", 0, 0, "maybe", "b", "a"),
    Op("c", "s", "update", "k", 0, 0, "refused", "b", "a"),
    Op("c", "s", "update", "k", 0, 0, "ok", "x", "a"),
    Op("c", "s", "update", "k", 0, 0, "maybe", "x", "b"),
    Op("c", "s", "delete", "k", 0, 0, "ok"),
    Op("c", "s", "delete", "k", 0, 0, "maybe"),
    Op("c", "s", "read", "k", 0, 0, value=ABSENT, fresh=True),
    Op("c", "s", "read", "k", 0, 0, value="a", fresh=True),
    Op("c", "s", "read", "k", 0, 0, value="b", fresh=True),
]
# one after the other, and across each other
_SPANS = [(0, 1), (2, 3), (4, 5), (6, 7), (0, 5), (2, 7)]
_BEGIN = [Op("c", "s", "create", "k", 0, 1, outcome, "a") for outcome in ("ok", "maybe")]


def _after(op: Op, state: str | None) -> tuple[bool, str | None]:
    """Can the operation take place in this state, and the state then. None = never created, ABSENT = deleted."""
    match op.kind:
        case "create":
            return state is None, op.value
        case "update":
            return state == op.base, op.value
        case "delete":
            return state is not None, ABSENT
        case _:
            return (state or ABSENT) == op.value, state


def _linearizable(ops: Sequence[Op]) -> bool:
    """The definition: some of the "maybe"s and all of the acknowledged, in some order that respects time, each possible where it stands."""
    sure = [op for op in ops if op.outcome == "ok"]
    maybe = [replace(op, ended=1e9) for op in ops if op.outcome == "maybe"]

    def fits(left: tuple[Op, ...], state: str | None) -> bool:
        if not any(op.outcome == "ok" for op in left):
            return True
        first_end = min(op.ended for op in left)
        for index, op in enumerate(left):
            rest = left[:index] + left[index + 1 :]
            if op.outcome == "maybe" and fits(rest, state):
                return True
            if op.started <= first_end:
                possible, then = _after(op, state)
                if possible and fits(rest, then):
                    return True
        return False

    return fits((*sure, *maybe), None)


def _histories() -> Iterator[list[Op]]:
    for begin, chosen in itertools.product(_BEGIN, itertools.combinations_with_replacement(_POOL, 3)):
        values = [op.value for op in chosen if op.kind == "update"]
        if len(set(values)) < len(values):
            # every value is written once
            continue
        for spans in itertools.product(_SPANS, repeat=3):
            yield [begin, *(replace(op, started=start, ended=end) for op, (start, end) in zip(chosen, spans, strict=True))]


def test_it_finds_exactly_what_is_not_linearizable() -> None:
    counted = {True: 0, False: 0}
    for ops in _histories():
        # one server an operation: what each says alone is another law
        told_by_many = [replace(op, server=f"s{i}") for i, op in enumerate(ops)]
        honest = _linearizable(ops)
        counted[honest] += 1
        assert (check(told_by_many) == []) == honest, [str(op) for op in ops]
    assert min(counted.values()) > 10_000


# ---- registers on three servers, honest ones and others ---------------------------------------------------------------------------


class Register:
    """Three copies of one key: writes are made in the first one and reach the others later; time passes with each operation."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.log: list[tuple[str, int]] = [(ABSENT, 0)]
        self.copies = {"s1": 0, "s2": 0, "s3": 0}
        self.ops: list[Op] = []
        self.clock = 0.0

    def run(self, length: int) -> list[Op]:
        self.write("create", "s1", "ok")
        for _ in range(length):
            server = self.random.choice(sorted(self.copies))
            match self.random.choice(("write", "read", "fresh", "follow")):
                case "write":
                    self.write("update", server, self.random.choice(("ok", "ok", "ok", "maybe", "refused")))
                case "read":
                    self.read(server, fresh=False)
                case "fresh":
                    self.read(server, fresh=True)
                case "follow":
                    self.follow(server)
        for server in self.copies:
            self.read(server, fresh=True)
        return self.ops

    def follow(self, server: str) -> None:
        self.copies[server] = len(self.log) - 1

    def span(self) -> tuple[float, float]:
        self.clock += 2
        # half of them overlap with what comes next
        return self.clock, self.clock + self.random.choice((1, 3))

    def write(self, kind: str, server: str, outcome: str) -> None:
        started, ended = self.span()
        base, _ = self.log[-1]
        value = f"v{len(self.ops)}"
        if outcome == "ok" or (outcome == "maybe" and self.random.random() < 0.5):
            self.log.append((value, 10 * len(self.log)))
            self.follow(server)
        self.ops.append(Op("c", server, kind, "k", started, ended, outcome, value, base))  # type: ignore[arg-type]

    def read(self, server: str, *, fresh: bool) -> None:
        started, ended = self.span()
        if fresh:
            self.follow(server)
        value, version = self.log[self.copies[server]]
        self.ops.append(Op("c", server, "read", "k", started, ended, value=value, version=version, fresh=fresh))


@given(st.randoms(use_true_random=False), st.integers(0, 40))
def test_an_honest_register_is_believed(random: Random, length: int) -> None:
    assert check(Register(random).run(length)) == []


def _laws(ops: Sequence[Op]) -> set[str]:
    return {violation.law for violation in check(ops)}


@given(st.randoms(use_true_random=False), st.integers(2, 30))
def test_an_acknowledged_write_that_is_gone_is_found(random: Random, length: int) -> None:
    register = Register(random)
    register.run(length)
    register.write("update", "s1", "ok")
    register.log.pop()
    register.copies = dict.fromkeys(register.copies, len(register.log) - 1)
    register.clock += 5
    register.read("s2", fresh=True)
    assert "lost write" in _laws(register.ops)


@given(st.randoms(use_true_random=False), st.integers(2, 30))
def test_a_stale_read_is_found_if_it_claims_to_be_fresh_and_only_then(random: Random, length: int) -> None:
    register = Register(random)
    register.run(length)
    register.write("update", "s1", "ok")
    register.clock += 5
    register.read("s2", fresh=False)
    behind = register.ops[-1]
    register.clock += 5
    for server in register.copies:
        register.read(server, fresh=True)
    assert check(register.ops) == []
    assert _laws([replace(op, fresh=True) if op is behind else op for op in register.ops]) == {"stale read"}


@given(st.randoms(use_true_random=False), st.integers(2, 30))
def test_a_server_that_goes_back_is_found_though_it_claims_nothing(random: Random, length: int) -> None:
    register = Register(random)
    register.run(length)
    register.write("update", "s1", "ok")
    register.clock += 5
    register.copies["s1"] -= 1
    register.read("s1", fresh=False)
    register.clock += 5
    for server in register.copies:
        register.read(server, fresh=True)
    assert _laws(register.ops) == {"version went back"}


@given(st.randoms(use_true_random=False), st.integers(2, 30))
def test_two_writers_of_one_version_are_found(random: Random, length: int) -> None:
    register = Register(random)
    register.run(length)
    register.write("update", "s1", "ok")
    register.ops.append(replace(register.ops[-1], server="s2", value="other"))
    assert _laws(register.ops) == {"two writers"}


def test_a_key_that_vanishes_or_returns_is_found() -> None:
    made = Op("c", "s1", "create", "k", 0, 1, value="a")
    gone = Op("c", "s2", "read", "k", 2, 3, fresh=True)
    deleted = Op("c", "s2", "delete", "k", 1.5, 1.7)
    again = Op("c", "s3", "read", "k", 4, 5, value="a", version=7, fresh=True)
    assert _laws([made, gone]) == {"lost write"}
    assert _laws([made, replace(deleted, outcome="refused"), gone]) == {"lost write"}
    assert check([made, deleted, gone]) == check([made, replace(deleted, outcome="maybe"), gone]) == []
    assert _laws([made, deleted, again]) == {"lost write"}
    assert _laws([made, deleted, again, replace(gone, started=6, ended=7)]) == {"stale read"}


def test_values_from_nowhere_are_found() -> None:
    made = Op("c", "s1", "create", "k", 1, 2, value="a")
    read = Op("c", "s1", "read", "k", 3, 4, value="b", version=9)
    assert _laws([made, read]) == {"wrong value"}
    assert _laws([made, Op("c", "s1", "update", "k", 2, 3, "refused", "b", "a"), read]) == {"wrong value"}
    assert _laws([made, Op("c", "s1", "update", "k", 5, 6, "ok", "b", "a"), read]) == {"wrong value"}
    assert check([made, Op("c", "s1", "update", "k", 2, 3, "maybe", "b", "a"), read]) == []


def test_a_version_with_two_values_is_found() -> None:
    made = Op("c", "s1", "create", "k", 0, 1, value="a")
    changed = Op("c", "s1", "update", "k", 2, 3, "ok", "b", "a")
    reads = [Op("c", "s1", "read", "k", 1.2, 1.3, value="a", version=5), Op("c", "s1", "read", "k", 4, 5, value="b", version=5)]
    assert _laws([made, changed, *reads]) == {"version went back"}
    assert _laws([made, changed, reads[0], replace(reads[1], version=4)]) == {"version went back"}
    assert check([made, changed, reads[0], replace(reads[1], version=6)]) == []


@pytest.mark.parametrize(
    ("terms", "law"),
    [
        ([(1, "a", True), (2, "a", False), (5, "b", True), (6, "b", False)], None),
        ([(1, "a", True), (2, "a", False), (5, "b", True), (6, "a", False)], "two leaders"),
        ([(1, "a", True), (5, "b", True), (6, "a", True), (7, "a", False)], None),
        ([(5, "a", True), (4, "b", True)], "version went back"),
    ],
)
def test_a_leader_writes_only_while_it_is_the_leader(terms: list[tuple[int, str, bool]], law: str | None) -> None:
    assert [v.law for v in check_leaders([Term(*term) for term in terms])] == ([law] if law else [])
