"""Cron jobs: a run of a job service whenever its schedule falls due.

Pure: no I/O. Which due times have been dealt with is stored in the service in the very write that opens a run, so a new leader
neither loses nor doubles one. Due times that passed while nobody led count as one, the last: it is made up for unless the deadline
has passed. Source for due times: cronsim, which does what Debian's cron does when clocks change (cron(8)): a time that is skipped
runs when the clock has jumped, a time that comes twice runs the first time; schedules with `*` in the minute or hour, or with
seconds, simply follow the clock. Source for concurrency, deadline and history: Kubernetes' CronJob.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime

import msgspec
from cronsim import CronSim

from orchestrator.control import jobs
from orchestrator.control.attention import attention
from orchestrator.control.context import Context
from orchestrator.control.labels import CronRule, cron_rule
from orchestrator.control.slots import mode_of
from orchestrator.control.steps import Decision, earliest
from orchestrator.errors import ConfigError
from orchestrator.model import JobRun, JobStatus, Service, ServiceSpec
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot

# with concurrency "allow" a job slower than its schedule would pile up for ever
MAX_OPEN_RUNS = 100


# ---- due times -------------------------------------------------------------------------------------------------------------------


# every pass asks for the same ones again
@functools.lru_cache(maxsize=4096)
def next_due(rule: CronRule, after: datetime) -> datetime | None:
    """The first due time after that moment; None: none within 50 years."""
    for due in CronSim(rule.schedule, after.astimezone(rule.timezone)):
        # in the hour that a clock is set back, the first of two equal times may lie before `after`
        if due.astimezone(UTC) > after:
            return due.astimezone(UTC)
    return None


def last_due(rule: CronRule, after: datetime, now: datetime) -> datetime | None:
    """The last due time after `after` and not after `now`; None: there is none."""
    first = next_due(rule, after)
    if first is None or first > now:
        return None
    # a whole second would itself be skipped when looking back
    looking_from = now.astimezone(rule.timezone).replace(microsecond=max(now.microsecond, 1))
    last = next(CronSim(rule.schedule, looking_from, reverse=True), first).astimezone(UTC)
    return max(first, last) if last <= now else first


# ---- what the API commits --------------------------------------------------------------------------------------------------------


def respecified(service: Service, spec: ServiceSpec, now: datetime) -> Service:
    """The job with a new spec. A cron job takes it for its next run and is run at once only when forced to; other jobs run again.

    ConfigError: forced to run while an earlier run is open and the job forbids two at once.
    """
    rule = cron_rule(spec)
    if rule is None:
        return jobs.respecified(service, spec, now)
    status = service.job_status or JobStatus()
    before = cron_rule(service.spec)
    # due times of another schedule, or from before there was one, are not this one's to make up for
    if before is None or (before.schedule, before.timezone) != (rule.schedule, rule.timezone):
        status = msgspec.structs.replace(status, mesh_due_until=now)
    if spec.task_template.force_update != service.spec.task_template.force_update:
        if rule.concurrency == "forbid" and _open(status):
            raise ConfigError(f"service {service.id} has a run under way and forbids two at once: wait for its end")
        status = _run_opened(rule, status, None, now)
    previous = service.spec if spec != service.spec else service.previous_spec
    return msgspec.structs.replace(service, spec=spec, previous_spec=previous, job_status=status, updated_at=now)


# ---- the loop --------------------------------------------------------------------------------------------------------------------


def cron(snapshot: Snapshot, ctx: Context) -> Decision:
    decision = Decision()
    wakeup: datetime | None = None
    for service in attention(snapshot).unsettled():
        if mode_of(service) != "job" or not jobs.is_scheduled(service.spec):
            continue
        try:
            rule = cron_rule(service.spec)
        except ConfigError:
            # the API refused it once; what reads differently now (a time zone that was dropped) waits for its user
            continue
        assert rule is not None
        old = service.job_status or JobStatus()
        status = _runs_closed(snapshot, ctx, service, old)
        due = last_due(rule, status.mesh_due_until or service.created_at, ctx.now)
        if due is not None:
            status = msgspec.structs.replace(status, mesh_due_until=due)
            if _is_to_run(rule, status, due, ctx.now):
                status = _run_opened(rule, status, due, ctx.now)
        status = _history_kept(rule, status)
        if status != old:
            decision.steps.append((Put(msgspec.structs.replace(service, job_status=status, updated_at=ctx.now)),))
        wakeup = earliest(wakeup, next_due(rule, ctx.now if due is not None else status.mesh_due_until or service.created_at))
    return Decision(decision.steps, wakeup)


def _is_to_run(rule: CronRule, status: JobStatus, due: datetime, now: datetime) -> bool:
    if rule.suspended or (rule.deadline is not None and now > due + rule.deadline):
        return False
    opened = _open(status)
    return rule.concurrency == "replace" or not opened or (rule.concurrency == "allow" and len(opened) < MAX_OPEN_RUNS)


def _open(status: JobStatus) -> list[JobRun]:
    return [run for run in status.mesh_runs or () if not run.outcome]


def _run_opened(rule: CronRule, status: JobStatus, due: datetime | None, now: datetime) -> JobStatus:
    runs = list(status.mesh_runs or ())
    if rule.concurrency == "replace":
        runs = [run if run.outcome else msgspec.structs.replace(run, ended_at=now, outcome="replaced") for run in runs]
    iteration = jobs.following(status)
    runs.append(JobRun(iteration=iteration.index, due_at=due, started_at=now))
    return msgspec.structs.replace(status, job_iteration=iteration, last_execution=now, mesh_runs=runs)


def _runs_closed(snapshot: Snapshot, ctx: Context, service: Service, status: JobStatus) -> JobStatus:
    """With the runs that are over as such."""
    if not _open(status):
        return status
    tasks = snapshot.tasks_of_service(service.id)
    runs = []
    for run in status.mesh_runs or ():
        if not run.outcome:
            progress = jobs.progress(service, tasks, run, ctx.now)
            if progress.over:
                run = msgspec.structs.replace(run, ended_at=ctx.now, outcome=progress.outcome)
        runs.append(run)
    return msgspec.structs.replace(status, mesh_runs=runs)


def _history_kept(rule: CronRule, status: JobStatus) -> JobStatus:
    """The open runs and the newest of the others; the reaper forgets the tasks of those that go."""
    kept: list[JobRun] = []
    room = {True: rule.keep_completed, False: rule.keep_failed}
    for run in reversed(status.mesh_runs or ()):
        if run.outcome:
            completed = run.outcome == "complete"
            room[completed] -= 1
            if room[completed] < 0:
                continue
        kept.append(run)
    return msgspec.structs.replace(status, mesh_runs=kept[::-1] or None) if len(kept) != len(status.mesh_runs or ()) else status
