"""The schedule keeps its promises, whatever the seed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .schedule import _OF_NETWORK, _OF_PROCESSES, Fault, schedule

FIVE, TWO = [f"node-{i}" for i in range(1, 6)], ["node-6", "node-7"]


@given(st.integers(0, 2**32), st.sampled_from([30.0, 100.0, 600.0]), st.sampled_from([1, 3, 5]), st.integers(0, 2))
def test_a_seed_is_a_schedule_that_leaves_the_network_alone_at_first_and_ends_in_time(
    seed: int, duration_s: float, managers: int, workers: int
) -> None:
    faults = schedule(seed, duration_s, FIVE[:managers], TWO[:workers])
    assert faults == schedule(seed, duration_s, FIVE[:managers], TWO[:workers])
    assert faults == sorted(faults, key=lambda fault: fault.at_s)
    assert all(fault.end_s < duration_s for fault in faults)
    assert all(fault.for_s == 0 if fault.kind == "kill" else fault.for_s >= 0.5 for fault in faults)
    assert not any(fault.of_network for fault in faults if fault.at_s < duration_s / 2)
    assert all(fault.end_s < duration_s / 2 or fault.at_s >= duration_s / 2 for fault in faults)


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 5]))
def test_a_round_troubles_a_minority_of_the_managers_or_takes_the_majority_on_purpose(seed: int, managers: int) -> None:
    faults = schedule(seed, 300.0, FIVE[:managers], TWO)
    rounds = [list(round) for _, round in itertools.groupby(faults, key=lambda fault: fault.round)]
    assert [round[0].round for round in rounds] == sorted({fault.round for fault in faults})
    for before, after in itertools.pairwise(rounds):
        assert max(fault.end_s for fault in before) + 4.0 <= after[0].at_s + 0.02
    for round in rounds:
        hit = {node for fault in round for node in fault.nodes[: 1 if fault.kind == "one_way" else None] if node not in TWO}
        if any(fault.kind == "no_quorum" for fault in round):
            assert len(round) == 1 and len(hit) == managers // 2 + 1
        else:
            assert len(hit) <= (managers - 1) // 2


@pytest.mark.parametrize("seed", range(5))
def test_a_long_schedule_has_everything(seed: int) -> None:
    faults = schedule(seed, 1200.0, FIVE, TWO)
    assert {(fault.kind, fault.unit) for fault in faults} == {*_OF_PROCESSES, *_OF_NETWORK, ("no_quorum", "")}
    assert len(faults) > 100


def test_a_fault_says_what_it_is() -> None:
    assert str(Fault(1, 1.0, 5.0, "clock", ("node-2",), amount=-60)) == "clock node-2 -60 s for 5.0 s"
    assert str(Fault(1, 1.0, 0.0, "kill", ("leader",), "etcd")) == "kill etcd leader"
