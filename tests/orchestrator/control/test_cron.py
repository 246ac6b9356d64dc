"""Cron jobs: due times, what becomes of them, and that no leader change, outage or clock change loses or doubles a run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.control.cron import last_due, next_due
from orchestrator.control.labels import CronRule, check, cron_rule
from orchestrator.errors import ConfigError
from orchestrator.model import JobRun, RestartPolicy, ServiceSpec, Task, TaskState
from tests.orchestrator.control.sim import START, World, job, spec
from tests.orchestrator.control.test_jobs import completes, forced

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = timedelta(minutes=1)


def cron(schedule: str = "* * * * *", total: int | None = 1, concurrent: int = 1, **given: str) -> ServiceSpec:
    """given: labels, `history_failed` for history.failed."""
    labels = {f"com.meshd.cron.{name.replace('_', '.')}": value for name, value in given.items()}
    return job(total, concurrent, labels={"com.meshd.cron.schedule": schedule, **labels}, restart=RestartPolicy(condition="none"))


def runs(world: World, service: str) -> list[JobRun]:
    status = world.service(service).job_status
    return list((status.mesh_runs if status is not None else None) or ())


def outcomes(world: World, service: str) -> list[str]:
    return [run.outcome for run in runs(world, service)]


# ---- due times ------------------------------------------------------------------------------------------------------------------


def local(*when: int, fold: int = 0) -> datetime:
    return datetime(*when, tzinfo=BERLIN, fold=fold).astimezone(UTC)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        # in the night to 29 March 2026 02:00 becomes 03:00: what is skipped runs when the clock has jumped
        ("30 2 * * *", local(2026, 3, 28, 12), [local(2026, 3, 29, 3), local(2026, 3, 30, 2, 30)]),
        ("30 1 * * *", local(2026, 3, 28, 12), [local(2026, 3, 29, 1, 30), local(2026, 3, 30, 1, 30)]),
        ("*/30 * * * *", local(2026, 3, 29, 1, 10), [local(2026, 3, 29, 1, 30), local(2026, 3, 29, 3), local(2026, 3, 29, 3, 30)]),
        # in the night to 25 October 2026 03:00 becomes 02:00: what comes twice runs the first time
        ("30 2 * * *", local(2026, 10, 24, 12), [local(2026, 10, 25, 2, 30), local(2026, 10, 26, 2, 30)]),
        ("30 2 * * *", local(2026, 10, 25, 2, 10, fold=1), [local(2026, 10, 26, 2, 30)]),
        ("0 * * * *", local(2026, 10, 25, 1, 10), [local(2026, 10, 25, 2), local(2026, 10, 25, 2, fold=1), local(2026, 10, 25, 3)]),
        ("15 30 2 * * *", local(2026, 3, 28, 12), [local(2026, 3, 30, 2, 30, 15)]),
        ("0 0 31 * *", local(2026, 1, 31, 0), [local(2026, 3, 31, 0)]),
    ],
)
def test_due_times_when_clocks_change(schedule: str, after: datetime, expected: list[datetime]) -> None:
    rule = CronRule(schedule, BERLIN)
    moment = after
    for due in expected:
        moment = next_due(rule, moment) or moment
        assert moment == due
        assert last_due(rule, after, due) == due
        assert last_due(rule, due, due) is None
        assert last_due(rule, after, due + timedelta(seconds=1)) == due


@settings(max_examples=100, deadline=None)
@given(
    schedule=st.sampled_from(["* * * * *", "*/7 * * * *", "30 2 * * *", "0 */3 * * *", "5,50 1-3 * * *", "*/20 15 * * * *", "0 2 1 * *"]),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    start=st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),
    gaps_s=st.lists(st.floats(0.001, 4 * 86400), min_size=1, max_size=6),
)
def test_looks_at_any_moments_see_the_due_times_that_one_long_look_sees(
    schedule: str, zone: str, start: datetime, gaps_s: list[float]
) -> None:
    """Whoever looks, whenever: the last due time is the one that going forward finds, and none is seen twice."""
    rule = CronRule(schedule, ZoneInfo(zone))
    seen = now = start.replace(tzinfo=UTC)
    for gap_s in gaps_s:
        now += timedelta(seconds=gap_s)
        forward, due = None, next_due(rule, max(seen, now - timedelta(hours=30)))
        while due is not None and due <= now:
            forward, due = due, next_due(rule, due)
        found = last_due(rule, seen, now)
        if forward is not None:
            assert found == forward
        if found is not None:
            assert seen < found <= now
            seen = found


# ---- labels ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"schedule": "61 * * * *"}, "bad schedule '61 * * * *': bad minute"),
        ({"schedule": "* * *"}, "wrong number of fields"),
        ({"schedule": "@sometimes"}, "bad schedule '@sometimes'"),
        ({"schedule": "0 0 31 2 *"}, "bad day-of-month"),
        ({"schedule": "* * */20 * 1L"}, "never falls due"),
        ({"schedule": ""}, "com.meshd.cron.schedule is missing"),
        ({"timezone": "UTC"}, "com.meshd.cron.schedule is missing beside com.meshd.cron.timezone"),
        ({"schedule": "@daily", "timezone": "Mars/Olympus"}, "'Mars/Olympus' is no time zone"),
        ({"schedule": "@daily", "timezone": "../etc"}, "is no time zone"),
        ({"schedule": "@daily", "concurrency": "maybe"}, "'maybe' should be one of allow, forbid, replace"),
        ({"schedule": "@daily", "deadline": "5"}, "'5' is no duration"),
        ({"schedule": "@daily", "suspend": "yes"}, "'yes' should be one of true, false"),
        ({"schedule": "@daily", "history.completed": "-1"}, "should be a number from 0"),
        ({"schedule": "@daily", "shedule": "x"}, "unknown label com.meshd.cron.shedule"),
    ],
)
def test_what_can_not_be_read_is_refused_with_a_sentence(given: dict[str, str], says: str) -> None:
    labels = {f"com.meshd.cron.{name}": value for name, value in given.items()}
    with pytest.raises(ConfigError, match=says.replace("*", r"\*").replace("(", r"\(")):
        check(job(1, labels=labels))


def test_only_jobs_have_a_schedule() -> None:
    with pytest.raises(ConfigError, match="--mode replicated-job or global-job"):
        check(spec(labels={"com.meshd.cron.schedule": "@daily"}))
    assert cron_rule(spec(labels={"other": "label"})) is None
    rule = cron_rule(cron("@hourly", timezone="Asia/Shanghai", deadline="1h30m", suspend="true", history_failed="0"))
    assert rule == CronRule("0 * * * *", ZoneInfo("Asia/Shanghai"), "allow", timedelta(minutes=90), True, 3, 0)


# ---- runs -----------------------------------------------------------------------------------------------------------------------


def test_a_run_at_every_due_time_and_none_before() -> None:
    world = World.of(2, fate=completes())
    service = world.create(cron(total=2, concurrent=2))
    world.run(59)
    assert world.tasks(service) == []
    world.run(62)
    assert [run.due_at for run in runs(world, service)] == [START + MINUTE, START + 2 * MINUTE]
    assert all(timedelta() <= run.started_at - run.due_at < timedelta(seconds=1) for run in runs(world, service) if run.due_at)
    world.run(5)
    assert outcomes(world, service) == ["complete", "complete"]
    assert len(world.tasks(service)) == 4


def test_history_keeps_some_runs_with_their_tasks() -> None:
    bad = {1, 3}
    fate = completes(unless=lambda task: task.job_iteration is not None and task.job_iteration.index in bad)
    world = World.of(1, fate=fate)
    service = world.create(cron(history_completed="2", history_failed="1"))
    world.run(60 * 7 + 10)
    assert [(run.iteration, run.outcome) for run in runs(world, service)] == [(3, "failed"), (5, "complete"), (6, "complete")]
    assert sorted(task.job_iteration.index for task in world.tasks(service) if task.job_iteration) == [3, 5, 6]


@pytest.mark.parametrize(
    ("policy", "expected", "running"),
    [
        ("allow", ["complete", "", ""], 2),
        ("forbid", ["complete", ""], 1),
        ("replace", ["replaced", "replaced", ""], 1),
    ],
)
def test_a_run_that_falls_due_while_an_earlier_one_is_open(policy: str, expected: list[str], running: int) -> None:
    world = World.of(2, fate=completes(100))
    service = world.create(cron(concurrency=policy, history_failed="3"))
    world.run(3 * 60 + 5)
    assert outcomes(world, service) == expected
    assert len(world.serving(service)) == running


def test_slow_runs_do_not_pile_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.control.cron.MAX_OPEN_RUNS", 5)
    world = World.of(1)
    service = world.create(cron("* * * * * *", timezone="Asia/Kolkata"))
    world.run(20)
    assert len(runs(world, service)) == 5


@pytest.mark.parametrize(("deadline", "made_up"), [(None, True), ("10m", False), ("61m", True)])
def test_what_falls_due_while_nobody_leads_is_made_up_for_once_unless_it_is_too_late(deadline: str | None, made_up: bool) -> None:
    world = World.of(1, fate=completes())
    service = world.create(cron("0 * * * *", **({"deadline": deadline} if deadline else {})))
    world.now += timedelta(hours=5, minutes=59, seconds=30)
    world.run(20)
    assert [run.due_at for run in runs(world, service)] == ([START + timedelta(hours=5)] if made_up else [])
    world.run(60)
    assert runs(world, service)[-1].due_at == START + timedelta(hours=6)


def test_a_suspended_job_misses_its_runs_for_good() -> None:
    world = World.of(1, fate=completes())
    service = world.create(cron(suspend="true"))
    world.run(150)
    assert runs(world, service) == []
    world.update(service, cron(suspend="false"))
    world.run(20)
    assert runs(world, service) == []
    world.run(15)
    assert [run.due_at for run in runs(world, service)] == [START + 3 * MINUTE]


def test_a_new_schedule_makes_up_for_nothing_of_its_own_past() -> None:
    world = World.of(1, fate=completes())
    service = world.create(cron("0 0 1 1 *"))
    world.run(600)
    world.update(service, cron("*/5 * * * *"))
    world.run(200)
    assert runs(world, service) == []
    world.run(120)
    assert [run.due_at for run in runs(world, service)] == [START + timedelta(minutes=15)]


def test_force_runs_it_now_and_the_schedule_goes_on() -> None:
    world = World.of(1, fate=completes())
    service = world.create(cron())
    world.run(10)
    world.update(service, forced(world.service(service).spec))
    world.run(60)
    assert [run.due_at for run in runs(world, service)] == [None, START + MINUTE]
    assert [run.iteration for run in runs(world, service)] == [0, 1]


def test_force_respects_that_two_at_once_are_forbidden() -> None:
    world = World.of(1)
    service = world.create(cron(concurrency="forbid"))
    world.run(61)
    with pytest.raises(ConfigError, match="has a run under way"):
        world.update(service, forced(world.service(service).spec))


def test_a_run_goes_on_with_the_spec_it_began_with() -> None:
    def fate(task: Task, age: timedelta) -> TaskState | None:
        if task.status.state is not TaskState.RUNNING or age < timedelta(seconds=20):
            return None
        return TaskState.FAILED if len(world.tasks(service)) == 1 else TaskState.COMPLETE

    world = World.of(1, fate=fate)
    old = msgspec.structs.replace(cron(), labels={"com.meshd.cron.schedule": "0 * * * *"})
    template = msgspec.structs.replace(old.task_template, restart_policy=RestartPolicy(delay=0))
    service = world.create(msgspec.structs.replace(old, task_template=template))
    world.run(3601)
    changed = msgspec.structs.replace(template, force_update=0, log_driver=None, runtime="container")
    world.update(service, msgspec.structs.replace(old, task_template=changed))
    world.run(60)
    assert outcomes(world, service) == ["complete"]
    assert [task.spec.runtime for task in world.tasks(service)] == ["", ""]


def test_a_global_cron_job_takes_the_nodes_of_its_beginning() -> None:
    world = World.of(3, fate=completes())
    world.availability("n3", "pause")
    service = world.create(cron("0 * * * *", total=None))
    world.run(3600 + 10)
    world.availability("n3", "active")
    world.run(10)
    assert len(world.tasks(service)) == 3, "it came within the minute"
    world.run(60)
    assert outcomes(world, service) == ["complete"]
    world.availability("n3", "pause")
    world.run(3600)
    world.availability("n3", "active")
    world.run(60)
    assert [len([task for task in world.tasks(service) if task.job_iteration and task.job_iteration.index == i]) for i in (0, 1)] == [3, 2]


# ---- properties -----------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    policy=st.sampled_from(["allow", "forbid", "replace"]),
    slow_s=st.sampled_from([1, 70]),
    script=st.lists(st.tuples(st.sampled_from(["leader", "outage", "fail", "rest"]), st.integers(1, 150)), max_size=8),
)
def test_runs_are_neither_doubled_nor_lost(policy: str, slow_s: int, script: list[tuple[str, int]]) -> None:
    doomed: set[str] = set()
    world = World.of(2, ask_every=timedelta(seconds=1), fate=completes(slow_s, unless=lambda task: task.id in doomed))
    service = world.create(cron(concurrency=policy, history_completed="1000", history_failed="1000"))
    led: list[tuple[datetime, datetime]] = []
    for deed, length_s in script:
        begin = world.now
        match deed:
            case "leader":
                world = world.successor()
                world.run(length_s)
                led.append((begin, world.now))
            case "outage":
                world.now += timedelta(seconds=length_s)
                world.run(0)
            case "fail":
                doomed.update(task.id for task in world.live(service))
            case "rest":
                world.run(length_s)
                led.append((begin, world.now))
    dues = [run.due_at for run in runs(world, service) if run.due_at is not None]
    assert dues == sorted(set(dues)), "a due time was run twice"
    assert all((due - START) % MINUTE == timedelta() and START < due <= world.now for due in dues)
    assert [run.iteration for run in runs(world, service)] == list(range(len(dues)))
    if policy != "forbid":
        expected = {START + MINUTE * n for n in range(1, 3000)}
        assert not [due for due in expected if any(begin < due <= end for begin, end in led) and due not in dues], "a run was lost"
    world.run(60 + slow_s)
    assert len(runs(world, service)) > len(dues), "after all of it the next run comes"
