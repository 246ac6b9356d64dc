from __future__ import annotations

from orchestrator.lab.probe import Answer, Log


def _answer(start: float, by: tuple[str, ...] = (), *, kind: str = "port", node: str = "a", error: str = "") -> Answer:
    return Answer(node, kind, start, start + 0.01, by, error)


def test_all_seen_is_the_moment_the_last_wanted_task_answered() -> None:
    log = Log(
        [_answer(0.5, ("old", "v1")), _answer(1, ("x", "v1")), _answer(2, ("x", "v1")), _answer(3, ("y", "v1")), _answer(4, ("x", "v1"))]
    )
    assert log.all_seen("a", "port", 1, {"x", "y"}) == 2.01
    assert log.all_seen("a", "port", 1, {"x", "z"}) is None
    assert log.all_seen("a", "port", 1, {"old"}) is None
    assert log.all_seen("b", "port", 1, {"x"}) is None


def test_dns_must_stay_right_to_count() -> None:
    right, wrong = ("10.0.0.1", "10.0.0.2"), ("10.0.0.1",)
    log = Log([_answer(t, by, kind="dns") for t, by in ((1, wrong), (2, right), (3, wrong), (4, right[::-1]), (5, right))])
    assert log.dns_is("a", "dns", 1, set(right)) == 3.01
    assert Log(log.answers[:3]).dns_is("a", "dns", 1, set(right)) is None


def test_only_balanced_requests_that_failed_are_counted() -> None:
    log = Log(
        [_answer(1, error="refused"), _answer(2, ("x",)), _answer(3, error="timeout", kind="dns"), _answer(4, error="timeout", kind="vip")]
    )
    assert log.count(0) == 3
    assert [a.started for a in log.failed(0)] == [1, 4]
    assert log.last_failure("a", "vip", 1) == 3
    assert log.last_failure("a", "vip", 5) == 0
