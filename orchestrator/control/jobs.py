"""Jobs: services whose tasks are meant to end. Each slot of a run is tried until one of its tasks has completed.

Pure: no I/O. A run is an iteration of the service (`JobStatus.JobIteration`); its tasks carry the number, so what a run has done
is read from them, and a new leader neither loses nor repeats a completion. A plain job has one run, the current; a cron job those
that `cron` has opened. Source: SwarmKit orchestrator/jobs (MaxConcurrent, TotalCompletions, iterations; a global job also runs on nodes
that join later). Differs: a label that changes starts no new run; tasks of earlier runs stay as history.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from orchestrator.control.attention import attention
from orchestrator.control.context import Context
from orchestrator.control.defaults import restart_rule
from orchestrator.control.eligibility import Placement, keeps_tasks, stays, takes_tasks, unreachable
from orchestrator.control.labels import CRON_SCHEDULE
from orchestrator.control.slots import Slot, SlotKey, ended_by_itself, live, may_restart, mode_of, slot_key, slots_of, wanted
from orchestrator.control.steps import Decision, Step, earliest
from orchestrator.control.transitions import created, released, stopped
from orchestrator.model import JobRun, JobStatus, Node, Service, ServiceSpec, Task, TaskSpec, TaskState, Version, terminal
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot

# how long after its start a run of a global cron job takes in nodes that were not ready then
NODES_JOIN_WITHIN = timedelta(minutes=1)

Outcome = Literal["complete", "failed", "active", "open"]


# ---- what the API commits --------------------------------------------------------------------------------------------------------


def first_status(spec: ServiceSpec, now: datetime) -> JobStatus | None:
    """Of a new service; None: it is no job. A plain job begins at once; one with a schedule waits for it."""
    if spec.mode.replicated_job is None and spec.mode.global_job is None:
        return None
    return JobStatus() if is_scheduled(spec) else JobStatus(last_execution=now)


def respecified(service: Service, spec: ServiceSpec, now: datetime) -> Service:
    """The plain job with a new spec. It runs again if what runs has changed (or is forced to), not if only labels have."""
    changed = spec != service.spec
    again = is_scheduled(service.spec) or spec.task_template != service.spec.task_template or spec.mode != service.spec.mode
    status = service.job_status or JobStatus()
    if again:
        status = JobStatus(job_iteration=following(status), last_execution=now)
    previous = service.spec if changed else service.previous_spec
    return msgspec.structs.replace(service, spec=spec, previous_spec=previous, job_status=status, updated_at=now)


def following(status: JobStatus) -> Version:
    """The iteration of the next run."""
    return status.job_iteration if status.last_execution is None else Version(index=status.job_iteration.index + 1)


def is_scheduled(spec: ServiceSpec) -> bool:
    return CRON_SCHEDULE in (spec.labels or {})


# ---- reading a run ---------------------------------------------------------------------------------------------------------------


def size(service: Service) -> tuple[int, int]:
    """(completions wanted, tasks at once) of a replicated job. Source: moby daemon/cluster/convert: both default to the other, or 1."""
    mode = service.spec.mode.replicated_job
    assert mode is not None
    concurrent = 1 if mode.max_concurrent is None else mode.max_concurrent
    return (concurrent if mode.total_completions is None else mode.total_completions), concurrent


def iteration_of(task: Task) -> int:
    return task.job_iteration.index if task.job_iteration is not None else 0


def open_runs(service: Service) -> list[JobRun]:
    """A plain job's only run never closes: it also tends nodes that join later."""
    status = service.job_status or JobStatus()
    if is_scheduled(service.spec):
        return [run for run in status.mesh_runs or () if not run.outcome]
    return [JobRun(iteration=status.job_iteration.index, started_at=status.last_execution or service.created_at)]


def run_slots(tasks: Iterable[Task], iteration: int) -> dict[SlotKey, Slot]:
    return slots_of(task for task in tasks if iteration_of(task) == iteration)


def outcome(slot: Slot) -> Outcome:
    """complete: one of its tasks has; failed: none may be tried any more; active: one lives or is about to be replaced; else open."""
    if any(task.status.state is TaskState.COMPLETE for task in slot.tasks):
        return "complete"
    if slot.wanted:
        return "active"
    return "failed" if ended_by_itself(slot.newest) and not may_restart(slot.newest, slot.tasks) else "open"


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a run. `over`: nothing of it will be started any more."""

    completed: int
    failed: int
    over: bool

    @property
    def outcome(self) -> str:
        return "failed" if self.failed or not self.completed else "complete"


def progress(service: Service, tasks: Iterable[Task], run: JobRun, now: datetime) -> Progress:
    outcomes = [outcome(slot) for slot in run_slots(tasks, run.iteration).values()]
    completed, failed = outcomes.count("complete"), outcomes.count("failed")
    if service.spec.mode.global_job is not None:
        return Progress(completed, failed, "active" not in outcomes and now >= run.started_at + NODES_JOIN_WITHIN)
    return Progress(completed, failed, completed + failed >= size(service)[0])


# ---- the loop --------------------------------------------------------------------------------------------------------------------


def jobs(snapshot: Snapshot, ctx: Context) -> Decision:
    decision = Decision()
    wakeup: datetime | None = None
    nodes = sorted(snapshot.all(Node), key=lambda node: node.id)
    for service in attention(snapshot).unsettled():
        if mode_of(service) != "job":
            continue
        tasks = snapshot.tasks_of_service(service.id)
        runs = {run.iteration: run for run in open_runs(service)}
        past = sorted((task for task in tasks if wanted(task) and iteration_of(task) not in runs), key=lambda task: task.id)
        decision.steps.extend((Put(_halted(task, ctx.now)),) for task in past)
        for run in runs.values():
            tended = _Tending(snapshot, ctx, service, run, tasks)
            tended.tend()
            if service.spec.mode.replicated_job is not None:
                tended.fill()
            else:
                tended.spread(nodes)
            decision.steps.extend(tended.steps)
            wakeup = earliest(wakeup, tended.wakeup)
    return Decision(decision.steps, wakeup)


class _Tending:
    """One run's part of a pass."""

    def __init__(self, snapshot: Snapshot, ctx: Context, service: Service, run: JobRun, tasks: list[Task]) -> None:
        self._snapshot, self._ctx, self._service, self._run = snapshot, ctx, service, run
        self._global = service.spec.mode.global_job is not None
        self._placement = Placement(service.spec.task_template)
        self._slots = run_slots(tasks, run.iteration)
        # also of earlier runs: a slot's volume is not lent twice
        self._stopping = {slot_key(task) for task in tasks if not wanted(task) and not terminal(task.status.state)}
        self.steps: list[Step] = []
        self.wakeup: datetime | None = None
        self._active = 0

    def tend(self) -> None:
        """Replace what failed or is where it can't stay; stop what a completed slot still runs."""
        for slot in self._slots.values():
            state = outcome(slot)
            if state == "complete":
                others = [task for task in slot.wanted if task.status.state is not TaskState.COMPLETE]
                self.steps.extend((Put(_halted(task, self._ctx.now)),) for task in others)
            elif state == "active":
                self._tend(slot)

    def _tend(self, slot: Slot) -> None:
        ended = [task for task in slot.wanted if terminal(task.status.state)]
        due = max((task.mesh_run_at for task in ended if task.mesh_run_at is not None), default=self._ctx.now)
        leaving = [task for task in slot.live if not stays(self._snapshot, task) or not self._belongs(task)]
        staying = [task for task in slot.live if task not in leaving]
        changes = [Put(self._left(task)) for task in leaving]
        # as for services: what fails before its restart delay is over waits for the rest of it
        if due > self._ctx.now:
            self.wakeup = earliest(self.wakeup, due)
        else:
            changes += [Put(stopped(task, self._ctx.now)) for task in ended]
            heir = None if staying else self._heir(slot, slot.wanted[-1])
            if heir is not None:
                changes.append(Put(heir))
                staying.append(heir)
        if staying or due > self._ctx.now:
            self._active += 1
        if changes:
            self.steps.append(tuple(changes))

    def _left(self, task: Task) -> Task:
        """Where nobody can stop it, it goes on, and its completion will count should it be heard of."""
        if unreachable(self._snapshot.node(task.node_id)):
            return stopped(task, self._ctx.now, lost=True)
        return _halted(task, self._ctx.now)

    def _belongs(self, task: Task) -> bool:
        return not self._global or self._keeps(task.node_id)

    def _keeps(self, node_id: str) -> bool:
        node = self._snapshot.node(node_id)
        return node is not None and keeps_tasks(node) and self._placement.matches(node)

    def _heir(self, slot: Slot, old: Task) -> Task | None:
        if self._global and not self._keeps(old.node_id):
            return None
        if terminal(old.status.state) and not may_restart(old, slot.tasks):
            return None
        delay = restart_rule(old.spec).delay if ended_by_itself(old) else None
        run_at = self._ctx.now + delay if delay else old.mesh_run_at if live(old) else None
        return self._task(slot.key, slot, run_at=run_at, waits=True)

    def fill(self) -> None:
        """New slots, as long as tasks may run at once."""
        total, concurrent = size(self._service)
        for number in range(1, total + 1):
            if self._active >= concurrent:
                return
            slot = self._slots.get(number)
            if slot is None or outcome(slot) == "open":
                self.steps.append((Put(self._task(number, slot)),))
                self._active += 1

    def spread(self, nodes: list[Node]) -> None:
        """A task on every node that may have it."""
        if is_scheduled(self._service.spec):
            closes = self._run.started_at + NODES_JOIN_WITHIN
            if self._ctx.now >= closes:
                return
            self.wakeup = earliest(self.wakeup, closes)
        for node in nodes:
            slot = self._slots.get(node.id)
            # what was given up when its node was lost still runs when that is back: not twice at a time
            free = slot is None or (outcome(slot) == "open" and not slot.stopping)
            if free and takes_tasks(node) and self._placement.matches(node):
                self.steps.append((Put(self._task(node.id, slot)),))

    def _task(self, key: SlotKey, before: Slot | None, *, run_at: datetime | None = None, waits: bool = False) -> Task:
        waits = waits or key in self._stopping
        return created(
            self._service,
            self._ctx,
            slot=key if isinstance(key, int) else 0,
            node_id=key if isinstance(key, str) else "",
            desired=TaskState.READY if waits else TaskState.RUNNING,
            run_at=run_at,
            after=before.newest if before is not None else None,
            # a run goes on with what it began with
            spec=self._begun_with(),
            iteration=Version(index=self._run.iteration),
        )

    def _begun_with(self) -> TaskSpec | None:
        return next((task.spec for slot in self._slots.values() for task in slot.tasks), None)


def _halted(task: Task, now: datetime) -> Task:
    """Wanted no longer, and not drained first: who started a job waits for its end, not for an answer."""
    return released(stopped(task, now), now)
