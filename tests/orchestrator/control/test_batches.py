"""From steps to transactions."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from orchestrator.control.batches import batches
from orchestrator.control.steps import Step, applied
from orchestrator.model import Claim, Version
from orchestrator.store.base import Change, Delete, Guard, Put
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.transaction import apply, check_conflicts, check_shape


def base() -> Snapshot:
    """`a` and `b` exist, `c` doesn't."""
    return apply(Snapshot(), [Put(Claim(id="a", owner="0")), Put(Claim(id="b", owner="0"))])[0]


def moves(snapshot: Snapshot, id: str, mark: str) -> list[Change]:
    """What a loop that sees `snapshot` may do with one object."""
    existing = snapshot.claim(id)
    if existing is None:
        return [Put(Claim(id=id, owner=mark))]
    return [Put(msgspec.structs.replace(existing, owner=mark)), Delete("claim", id, existing.version.index)]


def plans(depth: int) -> list[list[Step]]:
    """Every sequence of `depth` steps over three objects, each step made on the picture that those before it left."""
    result: list[list[Step]] = [[]]
    for number in range(depth):
        longer: list[list[Step]] = []
        for plan in result:
            picture = applied(base(), plan)
            singles = [(change,) for id in "abc" for change in moves(picture, id, str(number + 1))]
            pairs = [one + other for one, other in itertools.combinations(singles, 2) if id_of(one[0]) != id_of(other[0])]
            longer += [[*plan, step] for step in [*singles, *pairs]]
        result = longer
    return result


def id_of(change: Change) -> str:
    return change.obj.id if isinstance(change, Put) else change.id


def content(snapshot: Snapshot) -> dict[str, str]:
    return {claim.id: claim.owner for claim in snapshot.all(Claim)}


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_committed_batches_are_a_prefix_of_the_plan(limit: int, depth: int) -> None:
    """Exhaustive: whatever is committed equals the first steps run one by one, no version conflicts, no step is torn."""
    for plan in plans(depth):
        snapshot, steps = base(), 0
        for batch in batches(base(), plan, limit):
            check_shape(batch.changes, 100)
            check_conflicts(snapshot, batch.changes)
            snapshot, _ = apply(snapshot, batch.changes)
            steps += batch.steps
            assert content(snapshot) == content(applied(base(), plan[:steps]))
            assert len(batch.changes) <= max(limit, 2)
        assert steps > 0
        if limit == 100:
            assert steps == len(plan)


def test_made_and_forgotten_in_one_pass_is_nothing() -> None:
    (batch,) = batches(base(), [(Put(Claim(id="c")),), (Delete("claim", "c", 0),)], 10)
    assert batch.changes == () and batch.steps == 2


def test_a_guard_gives_way_to_a_write_of_the_same_object() -> None:
    claim = base().claim("a")
    assert claim is not None
    (batch,) = batches(base(), [(Guard("claim", "a", 1),), (Put(claim),), (Guard("claim", "a", 1), Guard("claim", "b", 1))], 10)
    assert batch.changes == (Put(claim), Guard("claim", "b", 1))


def test_taken_away_and_made_anew_is_a_replacement() -> None:
    (batch,) = batches(base(), [(Delete("claim", "a", 0),), (Put(Claim(id="a", owner="new")),)], 10)
    assert batch.changes == (Put(Claim(id="a", owner="new", version=Version(index=1))),)
