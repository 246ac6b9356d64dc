"""What a service asks of us beyond Docker's API, by labels `com.meshd.*`.

Pure: no I/O. The API refuses what can't be read when the service is created or updated; the loops then read it again.
"""

from __future__ import annotations

import functools
import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from cronsim import CronSim, CronSimError

from orchestrator.errors import ConfigError
from orchestrator.model import Mount, ServiceSpec

_PREFIX = "com.meshd."
_CRON = f"{_PREFIX}cron."
CRON_SCHEDULE = f"{_CRON}schedule"
_CRON_LABELS = ("schedule", "timezone", "concurrency", "deadline", "suspend", "history.completed", "history.failed")
STATEFUL = f"{_PREFIX}stateful"
_STATEFUL_LABELS = ("", ".order", ".sticky", ".fence")
# shorter ones would stop tasks when the leader merely changes: that takes up to 8 s, and up to 8 s until the agents are back
_FENCE, _SHORTEST_FENCE = timedelta(seconds=30), timedelta(seconds=20)
_UPDATE = f"{_PREFIX}update."
# Kubernetes' progressDeadlineSeconds
_PROGRESS_DEADLINE = timedelta(minutes=10)
# sethostname(2): 64 bytes, less "-" and six digits
_LONGEST_STATEFUL_NAME = 57
_NICKNAMES = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# Kubernetes' successfulJobsHistoryLimit and failedJobsHistoryLimit
_KEEP_COMPLETED, _KEEP_FAILED, _MAX_KEPT = 3, 1, 1000


@dataclass(frozen=True, slots=True)
class CronRule:
    """concurrency allow | forbid | replace: what becomes of a run that falls due while an earlier one is open. deadline: a run that
    could not be started so long after its due time is missed; None = it is made up for, once, however late."""

    schedule: str
    timezone: tzinfo = UTC
    concurrency: str = "allow"
    deadline: timedelta | None = None
    suspended: bool = False
    keep_completed: int = _KEEP_COMPLETED
    keep_failed: int = _KEEP_FAILED


@dataclass(frozen=True, slots=True)
class StatefulRule:
    """Slots are identities. ordered: one slot after the other is started (lowest first), updated and stopped (highest first). sticky:
    a slot stays on the node that has its volumes. fence: how long one may run on a node that no manager reaches.
    """

    ordered: bool = False
    sticky: bool = False
    fence: timedelta = _FENCE


def check(spec: ServiceSpec) -> None:
    """ConfigError: a label of ours is misspelt, can't be read, or doesn't fit the service."""
    cron_rule(spec)
    progress_deadline(spec)
    if stateful_rule(spec) is None:
        return
    if spec.mode.replicated is None:
        raise ConfigError(f"label {STATEFUL}: only services of mode replicated have slots with an identity")
    if any(config is not None and config.order == "start-first" for config in (spec.update_config, spec.rollback_config)):
        raise ConfigError(f"label {STATEFUL}: a slot never runs twice, so its update order is stop-first")
    if len(spec.name) > _LONGEST_STATEFUL_NAME:
        raise ConfigError(f"label {STATEFUL}: host names are made of the service's name: it may have {_LONGEST_STATEFUL_NAME} characters")


def cron_rule(spec: ServiceSpec) -> CronRule | None:
    """None: not a cron service. ConfigError."""
    given = _given(spec.labels, _CRON)
    if not given:
        return None
    rule = _cron_rule(given)
    if spec.mode.replicated_job is None and spec.mode.global_job is None:
        raise ConfigError(f"label {CRON_SCHEDULE}: only jobs have a schedule: create the service with --mode replicated-job or global-job")
    return rule


@functools.lru_cache(maxsize=1024)
def _cron_rule(given: tuple[tuple[str, str], ...]) -> CronRule:
    labels = dict(given)
    _refuse_unknown(labels, _CRON, _CRON_LABELS)
    schedule = labels.get("schedule", "").strip()
    if not schedule:
        raise ConfigError(f"label {CRON_SCHEDULE} is missing beside {_CRON}{next(iter(labels))}")
    deadline = labels.get("deadline")
    return CronRule(
        schedule=_schedule(schedule),
        timezone=_timezone(labels.get("timezone", "UTC")),
        concurrency=_one_of(f"{_CRON}concurrency", labels.get("concurrency", "allow"), ("allow", "forbid", "replace")),
        deadline=duration(f"{_CRON}deadline", deadline) if deadline is not None else None,
        suspended=_flag(f"{_CRON}suspend", labels.get("suspend", "false")),
        keep_completed=_count(f"{_CRON}history.completed", labels.get("history.completed", str(_KEEP_COMPLETED))),
        keep_failed=_count(f"{_CRON}history.failed", labels.get("history.failed", str(_KEEP_FAILED))),
    )


# ---- stateful services -------------------------------------------------------------------------------------------------------------


def stateful_rule(spec: ServiceSpec) -> StatefulRule | None:
    """None: its slots have no identity. ConfigError."""
    given = _given(spec.labels, STATEFUL)
    return _stateful_rule(given, _has_local_volume(spec)) if given else None


@functools.lru_cache(maxsize=1024)
def _stateful_rule(given: tuple[tuple[str, str], ...], has_local_volume: bool) -> StatefulRule | None:
    labels = dict(given)
    _refuse_unknown(labels, STATEFUL, _STATEFUL_LABELS)
    if not _flag(STATEFUL, labels.get("", "false")):
        if len(labels) > ("" in labels):
            raise ConfigError(f"label {STATEFUL}=true is missing beside {STATEFUL}{max(labels)}")
        return None
    fence = duration(f"{STATEFUL}.fence", labels[".fence"]) if ".fence" in labels else _FENCE
    if fence < _SHORTEST_FENCE:
        raise ConfigError(f"label {STATEFUL}.fence: at least {_SHORTEST_FENCE.seconds}s, or a change of the leader would stop every slot")
    return StatefulRule(
        ordered=_one_of(f"{STATEFUL}.order", labels.get(".order", "parallel"), ("parallel", "ordered")) == "ordered",
        sticky=_flag(f"{STATEFUL}.sticky", labels.get(".sticky", str(has_local_volume))),
        fence=fence,
    )


def _has_local_volume(spec: ServiceSpec) -> bool:
    container = spec.task_template.container_spec
    return any(mount.type == "volume" and _is_local(mount) for mount in (container.mounts if container else None) or ())


def _is_local(mount: Mount) -> bool:
    driver = mount.volume_options.driver_config if mount.volume_options else None
    return driver is None or driver.name in ("", "local")


# ---- updates -----------------------------------------------------------------------------------------------------------------------


def progress_deadline(spec: ServiceSpec) -> timedelta | None:
    """How long an update waits for a new task to run before that counts as its failure; None = for ever (`0s`). ConfigError."""
    labels = dict(_given(spec.labels, _UPDATE))
    _refuse_unknown(labels, _UPDATE, ("progress-deadline",))
    text = labels.get("progress-deadline")
    return (duration(f"{_UPDATE}progress-deadline", text) or None) if text is not None else _PROGRESS_DEADLINE


# ---- schedules ---------------------------------------------------------------------------------------------------------------------


def _schedule(text: str) -> str:
    """Five fields, or six with the seconds first. A schedule that never falls due is refused."""
    expression = _NICKNAMES.get(text.lower(), text)
    hint = 'it should be "minute hour day month weekday", with the second in front if there are six fields, or @hourly, @daily, ...'
    try:
        next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ConfigError(f"label {CRON_SCHEDULE}: bad schedule '{text}': {str(error).lower()}; {hint}") from None
    except StopIteration:
        raise ConfigError(f"label {CRON_SCHEDULE}: '{text}' never falls due") from None
    return expression


def _timezone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(f"label {_CRON}timezone: '{name}' is no time zone; it should be like Europe/Berlin, or UTC") from None


# ---- values ------------------------------------------------------------------------------------------------------------------------


def duration(label: str, text: str) -> timedelta:
    """As Go writes durations: 90s, 1h30m, 500ms. ConfigError."""
    if not _DURATION.fullmatch(text):
        raise ConfigError(f"label {label}: '{text}' is no duration; it should be like 30s, 10m or 1h30m")
    return timedelta(seconds=sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION_PART.findall(text)))


def _given(labels: Mapping[str, str] | None, prefix: str) -> tuple[tuple[str, str], ...]:
    """(name without the prefix, value), sorted."""
    return tuple(sorted((key.removeprefix(prefix), value) for key, value in (labels or {}).items() if key.startswith(prefix)))


def _refuse_unknown(labels: Mapping[str, str], prefix: str, known: tuple[str, ...]) -> None:
    for name in labels:
        if name not in known:
            raise ConfigError(f"unknown label {prefix}{name}: there are {', '.join(prefix + other for other in known)}")


def _one_of(label: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"label {label}: '{value}' should be one of {', '.join(allowed)}")
    return value


def _flag(label: str, value: str) -> bool:
    return _one_of(label, value.lower(), ("true", "false")) == "true"


def _count(label: str, value: str) -> int:
    if not value.isdecimal() or int(value) > _MAX_KEPT:
        raise ConfigError(f"label {label}: '{value}' should be a number from 0 to {_MAX_KEPT}")
    return int(value)
