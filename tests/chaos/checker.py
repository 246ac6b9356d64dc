"""Is what clients were told the truth? Lost writes, stale reads that claim to be fresh, versions that go back, two leaders at once.

Pure. An update names the version that it replaces and every value is written once, so a key's values form one chain: the order of its
writes is known, and a history is linearizable exactly when nothing that began after another operation had ended shows an earlier place
in the chain (Gibbons and Korach, Testing Shared Memories, 1997: with the order of writes given, linear in the number of operations).
"Maybe" operations count as done when somebody saw what they wrote, else they claim nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from .history import ABSENT, Op, Term

Law = Literal["lost write", "two writers", "stale read", "version went back", "wrong value", "two leaders"]
_BEFORE, _DELETED = -1.0, math.inf


@dataclass(frozen=True, slots=True)
class Violation:
    law: Law
    text: str

    def __str__(self) -> str:
        return f"{self.law}: {self.text}"


def check(ops: Iterable[Op], terms: Sequence[Term] = ()) -> list[Violation]:
    """Everything in the history that no honest cluster could have answered; [] = nothing."""
    by_key: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        by_key[op.key].append(op)
    return [violation for key in sorted(by_key) for violation in _check_key(by_key[key])] + check_leaders(terms)


def check_leaders(terms: Sequence[Term]) -> list[Violation]:
    """A leadership that somebody renews who doesn't hold it was written by two leaders at once: the fence has a hole."""
    violations = []
    for before, term in pairwise(terms):
        if term.revision < before.revision:
            violations.append(Violation("version went back", f"leadership at revision {term.revision} after {before.revision}"))
        if not term.taken and term.holder != before.holder:
            text = f"{term.holder} wrote as the leader at revision {term.revision}, while {before.holder} held the leadership"
            violations.append(Violation("two leaders", text))
    return violations


def _check_key(ops: Sequence[Op]) -> list[Violation]:
    # without a sound chain the rest would only repeat what is wrong with it
    effective = _effective(ops)
    wrong = _wrong_values(ops)
    places, unsound = _chain(effective)
    if wrong or unsound:
        return wrong + unsound
    wrong = _versions(ops, places)
    done = [op for op in ops if op.outcome == "ok" or (op in effective and op.outcome == "maybe")]
    wrong += _order([op for op in done if op.kind != "read" or op.fresh], ops, places, "")
    for server in sorted({op.server for op in done}):
        # a server never contradicts itself, not even in answers that claim nothing, and shows what was written through it
        wrong += _order([op for op in done if op.server == server and op.outcome == "ok"], ops, places, server)
    return list(dict.fromkeys(wrong))


def _effective(ops: Sequence[Op]) -> list[Op]:
    """The writes that took effect: acknowledged, seen, or replaced by one that took effect; who deletes has found something there."""
    writes = {op.value: op for op in ops if op.kind in ("create", "update")}
    found = {op.value: op for op in writes.values() if op.outcome == "ok"}
    wanted = [op.value for op in ops if op.kind == "read"] + [op.base for op in found.values()]
    if any(op.kind == "delete" and op.outcome == "ok" for op in ops):
        wanted += [op.value for op in writes.values() if op.kind == "create" and op.outcome == "maybe"]
    while wanted:
        op = writes.get(wanted.pop())
        if op is not None and op.value not in found and op.outcome == "maybe":
            found[op.value] = op
            wanted.append(op.base)
    return sorted(found.values(), key=lambda op: op.started)


def _wrong_values(ops: Sequence[Op]) -> list[Violation]:
    """What was seen was written: by somebody who had begun, and who was not refused. What was deleted had been made."""
    writes = {op.value: op for op in ops if op.kind in ("create", "update")}
    found = []
    for op in ops:
        if op.kind == "delete" and op.outcome == "ok" and not any(w.kind == "create" and w.outcome != "refused" for w in writes.values()):
            found.append(Violation("wrong value", f"it deleted what was never there: {op}"))
        value = op.value if op.kind == "read" else op.base if op.kind == "update" and op.outcome == "ok" else ABSENT
        if value == ABSENT:
            continue
        write = writes.get(value)
        if write is None:
            found.append(Violation("wrong value", f"nobody wrote {value}: {op}"))
        elif write.outcome == "refused":
            found.append(Violation("wrong value", f"it was refused, and yet there: {write}; {op}"))
        elif write.started > op.ended:
            found.append(Violation("wrong value", f"it was there before it was written: {write}; {op}"))
    return found


def _chain(effective: Sequence[Op]) -> tuple[dict[str, float], list[Violation]]:
    """The place of every value that took effect, from the creation on."""
    next_of: dict[str, Op] = {}
    for op in effective:
        other = next_of.setdefault(op.base, op)
        if other is not op:
            return {}, [Violation("two writers", f"both replaced {op.base or 'nothing'}: {other}; {op}")]
    places: dict[str, float] = {}
    value = ABSENT
    while value in next_of:
        value = next_of[value].value
        places[value] = len(places)
    return places, [Violation("wrong value", f"it replaced what was never there: {op}") for op in effective if op.value not in places]


def _versions(ops: Sequence[Op], places: dict[str, float]) -> list[Violation]:
    """A version names one value, and later values have higher versions."""
    seen = sorted({(op.version, places[op.value], op.value) for op in ops if op.kind == "read" and op.value != ABSENT and op.version})
    return [
        Violation("version went back", f"{ops[0].key} is {value} at version {version} and {next_value} at version {next_version}")
        for (version, place, value), (next_version, next_place, next_value) in pairwise(seen)
        if version == next_version or place > next_place
    ]


def _order(ops: Sequence[Op], all_ops: Sequence[Op], places: dict[str, float], server: str) -> list[Violation]:
    """Nothing that began after another had ended shows an earlier place. ops: of `all_ops` those that promise it to each other;
    server: that they are one server's answers, "" = all servers'."""
    # nobody knows when a "maybe" ended, but it has not happened before it began
    ops = [replace(op, ended=math.inf) if op.outcome == "maybe" else op for op in ops]
    by_end = iter(sorted(ops, key=lambda op: op.ended))
    ended = next(by_end, None)
    place_of: dict[Op, float] = {}
    latest, latest_op = _BEFORE, None
    found = []
    for op in sorted(ops, key=lambda op: op.started):
        while ended is not None and ended.ended < op.started:
            if place_of[ended] > latest:
                latest, latest_op = place_of[ended], ended
            ended = next(by_end, None)
        place = place_of[op] = _place(op, places, latest)
        if place == _DELETED and op.kind == "read" and not _may_be_deleted(op, all_ops):
            found.append(Violation("lost write", f"it is gone, and nobody deleted it: {op}; before that: {latest_op}"))
        elif latest_op is not None and (place < latest or (op.kind != "read" and place == latest != _DELETED)):
            found.append(_verdict(latest_op, op, all_ops, places, server))
    return found


def _place(op: Op, places: dict[str, float], latest: float) -> float:
    """latest: the place that was reached before `op` began; who sees nothing then sees that the key was deleted."""
    if op.kind == "delete":
        return _DELETED
    if op.value == ABSENT:
        return _BEFORE if latest == _BEFORE else _DELETED
    return places[op.value]


def _may_be_deleted(read: Op, ops: Sequence[Op]) -> bool:
    return any(op.kind == "delete" and op.outcome != "refused" and op.started <= read.ended for op in ops)


def _verdict(earlier: Op, op: Op, ops: Sequence[Op], places: dict[str, float], server: str) -> Violation:
    text = f"{op}; but before that: {earlier}"
    if op.kind != "read":
        return Violation("two writers", text)
    reached = _DELETED if earlier.kind == "delete" or earlier.value == ABSENT else places[earlier.value]
    again = any(
        later.kind == "read" and later.started > op.started and (_DELETED if later.value == ABSENT else places[later.value]) >= reached
        for later in ops
    )
    if not again:
        return Violation("lost write", text)
    return Violation("version went back", f"at {server}: {text}") if server else Violation("stale read", text)
