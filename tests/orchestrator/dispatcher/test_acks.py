from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dispatcher.acks import MAX_OPEN_COUNTS, AgentAcks


def test_nothing_counts_before_the_first_acknowledgement() -> None:
    acks = AgentAcks()
    acks.sent(10)
    acks.processed(20)
    assert acks.applied == 0
    assert not acks.acknowledge(9, {"t": 1})
    assert (acks.applied, acks.open("t")) == (0, 0)
    assert acks.acknowledge(10, {"t": 1})
    assert (acks.applied, acks.open("t")) == (20, 1)


def test_silence_is_knowledge() -> None:
    acks = AgentAcks()
    acks.sent(10)
    acks.acknowledge(10, {})
    acks.processed(15)
    assert acks.applied == 15


def test_a_delta_of_many_revisions_claims_none_of_them_before_its_acknowledgement() -> None:
    acks = AgentAcks()
    acks.sent(10)
    acks.acknowledge(10, {})
    acks.processed(14)
    acks.sent(20)
    assert acks.applied == 14
    acks.processed(25)
    assert acks.applied == 14
    acks.sent(30)
    acks.acknowledge(20, {})
    assert acks.applied == 25
    acks.acknowledge(30, {})
    assert acks.applied == 30


def test_a_liar_acknowledges_only_what_it_was_sent() -> None:
    acks = AgentAcks()
    acks.sent(10)
    acks.acknowledge(2**62, {})
    assert acks.applied == 10
    acks.sent(11)
    assert acks.applied == 10
    acks.acknowledge(11, dict.fromkeys(map(str, range(MAX_OPEN_COUNTS + 1)), 1))
    assert acks.open("1") == 0


def test_repeated_counts_change_nothing_and_negative_ones_count_nothing() -> None:
    acks = AgentAcks()
    acks.sent(1)
    assert acks.acknowledge(1, {"t": 2})
    assert not acks.acknowledge(1, {"t": 2})
    assert acks.acknowledge(1, {"t": -3})
    assert acks.open("t") == 0


@given(st.lists(st.tuples(st.sampled_from(["process", "send", "ack"]), st.integers(0, 3)), max_size=40))
def test_applied_is_safe_and_never_goes_back(steps: list[tuple[str, int]]) -> None:
    """Against a model that knows, for every revision, whether the agent needed a message for it and has acknowledged that message."""
    acks, revision, messages, acked, before = AgentAcks(), 1, [1], 0, 0
    acks.sent(1)
    carried = {1: 1}  # revision -> revision of the message that shows it
    for kind, amount in steps:
        if kind == "process" or (kind == "send" and amount == 0):
            for _ in range(amount):
                revision += 1
                carried[revision] = 0
            acks.processed(revision)
        elif kind == "send":
            for _ in range(amount):
                revision += 1
                carried[revision] = revision
            for one in range(revision - amount + 1, revision + 1):
                carried[one] = revision
            acks.sent(revision)
            messages.append(revision)
        else:
            unacked = [message for message in messages if message > acked]
            if unacked:
                acked = unacked[min(amount, len(unacked) - 1)]
            acks.acknowledge(acked, {})
        assert acks.applied >= before
        before = acks.applied
        assert all(carried[one] <= acked for one in range(1, acks.applied + 1))
        if acked == messages[-1]:
            assert acks.applied == revision


def test_networks_left_behind_are_those_last_named() -> None:
    acks = AgentAcks()
    acks.sent(1)
    assert acks.acknowledge(1, {}, ("app",))
    assert (acks.applied, acks.behind) == (1, {"app"})
    assert not acks.acknowledge(1, {}, ("app",))
    assert acks.acknowledge(1, {})
    assert acks.behind == frozenset()
