from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.security.rate import MAX_KEYS, RateLimit


def test_a_burst_then_the_rate() -> None:
    limit = RateLimit(per_s=2.0, burst=3)
    assert [limit.allows("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert [limit.allows("a", 0.5) for _ in range(2)] == [True, False]
    assert limit.allows("b", 0.5)
    assert [limit.allows("a", 100.0) for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.floats(0, 2), max_size=60))
def test_never_more_than_burst_plus_rate(gaps: list[float]) -> None:
    limit, clock, allowed = RateLimit(per_s=1.0, burst=5), 0.0, 0
    for gap in gaps:
        clock += gap
        allowed += limit.allows("a", clock)
        assert allowed <= 5 + clock + 1e-6


def test_memory_is_bounded_and_comes_back() -> None:
    limit = RateLimit(per_s=1.0, burst=1)
    assert all(limit.allows(str(key), 0.0) for key in range(MAX_KEYS))
    assert not limit.allows("one more", 0.5)
    assert limit.allows("one more", 2.0)
