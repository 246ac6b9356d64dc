"""Plans upon plans, committed as one: the store then holds what the draft showed, or nothing of it."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from orchestrator.errors import Conflict
from orchestrator.model import Claim, Object
from orchestrator.store.base import Change, Delete, Guard, Put
from orchestrator.store.draft import Draft
from orchestrator.store.memory import MemoryStore
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.transaction import check_shape

IDS = ("a", "b", "c")
Step = tuple[str, str, str]


def owners(snapshot: Snapshot) -> dict[str, str]:
    return {claim.id: claim.owner for claim in snapshot.all(Claim)}


def change(snapshot: Snapshot, step: Step) -> Change:
    """What a plan makes of the picture it sees."""
    what, id, owner = step
    found = snapshot.claim(id)
    index = found.version.index if found is not None else 0
    if what == "delete" and found is not None:
        return Delete("claim", id, index)
    if what == "guard":
        return Guard("claim", id, index if found is not None else -1)
    return Put(cast(Object, Claim(id=id, owner=owner) if found is None else replace(found, owner=owner)))


steps = st.lists(st.tuples(st.sampled_from(["put", "delete", "guard"]), st.sampled_from(IDS), st.sampled_from(["x", "y"])), max_size=8)


@given(stored=st.sets(st.sampled_from(IDS)), plans=st.lists(steps, max_size=4))
async def test_the_store_holds_what_the_draft_showed(stored: set[str], plans: list[list[Step]]) -> None:
    store = MemoryStore()
    for id in sorted(stored):
        await store.commit([Put(Claim(id=id, owner="x"))])
    draft = Draft(store.snapshot())
    for plan in plans:
        seen: set[str] = set()
        for step in plan:
            # one change a key within one plan, as every plan is
            if step[1] not in seen:
                seen.add(step[1])
                draft.add([change(draft.snapshot, step)])
    changes = draft.changes()
    check_shape(changes, 100)
    if changes:
        await store.commit(changes)
    assert owners(store.snapshot()) == owners(draft.snapshot)


async def test_somebody_faster_is_a_conflict_and_nothing_is_written() -> None:
    store = MemoryStore()
    await store.commit([Put(Claim(id="a", owner="x"))])
    await store.commit([Put(Claim(id="b", owner="x"))])
    draft = Draft(store.snapshot())
    draft.add([change(draft.snapshot, ("put", "c", "y")), change(draft.snapshot, ("guard", "b", ""))])
    draft.add([change(draft.snapshot, ("delete", "a", ""))])
    await store.commit([change(store.snapshot(), ("put", "b", "z"))])
    with pytest.raises(Conflict):
        await store.commit(draft.changes())
    assert owners(store.snapshot()) == {"a": "x", "b": "z"}


async def test_what_comes_back_to_what_it_was_must_still_be_so() -> None:
    store = MemoryStore()
    await store.commit([Put(Claim(id="a", owner="x"))])
    draft = Draft(store.snapshot())
    draft.add([change(draft.snapshot, ("put", "a", "y")), change(draft.snapshot, ("put", "b", "y"))])
    draft.add([change(draft.snapshot, ("put", "a", "x"))])
    await store.commit([change(store.snapshot(), ("delete", "a", ""))])
    with pytest.raises(Conflict):
        await store.commit(draft.changes())


def test_what_comes_and_goes_within_the_draft_leaves_no_trace() -> None:
    draft = Draft(Snapshot(revision=1))
    draft.add([Put(Claim(id="a", owner="x"))])
    draft.add([change(draft.snapshot, ("delete", "a", ""))])
    assert draft.changes() == []
