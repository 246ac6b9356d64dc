"""Rolling updates and rollbacks, derived from the store alone.

Pure: no I/O. No task of an update lives in a leader's memory: how far it is, who is under way and who failed is read from the tasks'
specs and times, so a new leader goes on where the old one stopped. Source: SwarmKit orchestrator/update (states, messages, meaning of
parallelism, delay, monitor, failure ratio). Differs: a new task that doesn't get to run in time is a failure; start-first gives way where
a host port is in its way; `delay` and failures survive a change of the leader; scaling in the middle of an update neither restarts it nor
forgets what it would roll back to; tasks that don't run are updated first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from orchestrator.control.attention import attention
from orchestrator.control.context import Context
from orchestrator.control.cron import respecified as job_respecified
from orchestrator.control.defaults import UpdateRule, update_rule
from orchestrator.control.demand import HostPort, host_ports
from orchestrator.control.eligibility import Placement, keeps_tasks, takes_tasks
from orchestrator.control.labels import progress_deadline, stateful_rule
from orchestrator.control.slots import ACTIVE, Slot, age_key, dirty, ended_by_itself, is_updating, live, mode_of, running, slots_of
from orchestrator.control.steps import Decision, Step, earliest
from orchestrator.control.transitions import stopped, successor
from orchestrator.errors import ConfigError
from orchestrator.model import Node, Service, ServiceSpec, Task, TaskState, UpdateStatus
from orchestrator.store.base import Put
from orchestrator.store.snapshot import Snapshot

_PAUSED = ("paused", "rollback_paused")


# ---- what the API commits --------------------------------------------------------------------------------------------------------


def updated(service: Service, spec: ServiceSpec, now: datetime) -> Service:
    """The service with a new spec. An update that is under way or paused starts anew, except when only the replicas changed: then
    it goes on, and what it would roll back to gets the new number. The same spec again resumes a paused update. A job has no update:
    it runs again. ConfigError: a job that may not run again now.
    """
    if mode_of(service) == "job":
        return job_respecified(service, spec, now)
    status = service.update_status
    unfinished = status is not None and status.state in (*ACTIVE, *_PAUSED)
    if unfinished and spec.mode != service.spec.mode and msgspec.structs.replace(spec, mode=service.spec.mode) == service.spec:
        previous = service.previous_spec
        if previous is not None:
            previous = msgspec.structs.replace(previous, mode=spec.mode)
        return msgspec.structs.replace(service, spec=spec, previous_spec=previous, updated_at=now)
    previous = service.previous_spec if spec == service.spec else service.spec
    return msgspec.structs.replace(service, spec=spec, previous_spec=previous, update_status=None, updated_at=now)


def rollback(service: Service, now: datetime) -> Service:
    """The service with its previous spec; the present one becomes the previous. ConfigError when there is none."""
    if service.previous_spec is None:
        raise ConfigError(f"service {service.id} does not have a previous spec")
    if mode_of(service) == "job":
        return job_respecified(service, service.previous_spec, now)
    status = UpdateStatus(state="rollback_started", started_at=now, message="manually requested rollback")
    return msgspec.structs.replace(service, spec=service.previous_spec, previous_spec=service.spec, update_status=status, updated_at=now)


# ---- the loop --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Progress:
    """A slot as the update since `started_at` sees it. `settled_at`: when its first new task ran or ended. `failed`: the new task
    that ended early. `waits`: the new task that has to run yet, `since`: from when on that counts."""

    slot: Slot
    dirty: bool
    under_way: bool
    settled_at: datetime | None
    failed: Task | None
    waits: Task | None
    since: datetime

    def is_stuck(self, deadline: timedelta | None, now: datetime) -> bool:
        return self.waits is not None and deadline is not None and now >= self.since + deadline


def update(snapshot: Snapshot, ctx: Context) -> Decision:
    decision = Decision()
    wakeup: datetime | None = None
    for service in attention(snapshot).unsettled():
        state = service.update_status.state if service.update_status is not None else ""
        if mode_of(service) == "job" or state in _PAUSED:
            continue
        own = _update_service(snapshot, ctx, service)
        decision.steps.extend(own.steps)
        wakeup = earliest(wakeup, own.wakeup)
    return Decision(decision.steps, wakeup)


def _update_service(snapshot: Snapshot, ctx: Context, service: Service) -> Decision:
    tasks = snapshot.tasks_of_service(service.id)
    status = service.update_status
    active = is_updating(service)
    if not active and not any(dirty(task, service) for task in tasks):
        return Decision()
    slots = [slot for slot in slots_of(tasks).values() if slot.current() and _may_be_updated(snapshot, slot)]
    if not active:
        if not any(_is_dirty(slot, service) for slot in slots):
            return Decision()
        status = UpdateStatus(state="updating", started_at=ctx.now, message="update in progress")
        started = _with_status(service, status, ctx.now)
        rest = _update_service(snapshot.with_object(started), ctx, started)
        return Decision([(Put(started),), *rest.steps], rest.wakeup)
    assert status is not None
    rule = update_rule(service.spec.update_config if status.state == "updating" else service.spec.rollback_config)
    started_at = status.started_at or service.updated_at
    progress = [_progress(service, slot, started_at, rule) for slot in slots]
    verdict = _verdict(service, status, rule, progress, ctx.now)
    if verdict is not None:
        return Decision([(Put(verdict),)])
    waiting = [one for one in progress if one.dirty]
    if not waiting and not any(one.under_way for one in progress):
        return _completion(service, status, rule, progress, ctx.now)
    decision = _next_slots(ctx, service, rule, progress, waiting)
    deadline = progress_deadline(service.spec)
    due = [one.since + deadline for one in progress if one.waits is not None] if deadline is not None else []
    steps = [*_making_way(snapshot, ctx, service, progress), *decision.steps]
    return Decision(steps, earliest(decision.wakeup, *(when for when in due if when > ctx.now)))


def _may_be_updated(snapshot: Snapshot, slot: Slot) -> bool:
    """A global service's slot on a node that is losing its tasks is not worth waiting for."""
    return isinstance(slot.key, int) or keeps_tasks(snapshot.node(slot.key))


def _is_dirty(slot: Slot, service: Service) -> bool:
    """Nothing in the slot is, or is about to be, what the service asks for."""
    return all(dirty(task, service) for task in slot.current())


def _progress(service: Service, slot: Slot, started_at: datetime, rule: UpdateRule) -> _Progress:
    outdated = {task.id for task in slot.tasks if dirty(task, service)}
    new = [task for task in slot.tasks if task.created_at >= started_at and task.id not in outdated]
    settled = [when for task in new if (when := _settled_at(task)) is not None]
    current = slot.current()
    heirs = [task for task in current if task.id not in outdated]
    replaced_something = bool(outdated) and bool(heirs)
    return _Progress(
        slot=slot,
        dirty=not heirs,
        under_way=replaced_something and (len(current) > len(heirs) or not (settled or any(running(task) for task in heirs))),
        settled_at=min(settled, default=None),
        failed=next((task for task in new if _failed(task, rule)), None),
        waits=heirs[-1] if replaced_something and not settled and not any(running(task) for task in heirs) else None,
        since=max(started_at, heirs[0].created_at) if heirs else started_at,
    )


def _settled_at(task: Task) -> datetime | None:
    if task.mesh_running_since is not None:
        return task.mesh_running_since
    return task.status.timestamp if ended_by_itself(task) else None


def _failed(task: Task, rule: UpdateRule) -> bool:
    """It ended by itself before or while it was watched; completing early is as bad as failing."""
    if not ended_by_itself(task):
        return False
    return task.mesh_running_since is None or task.status.timestamp - task.mesh_running_since <= rule.monitor


def _verdict(service: Service, status: UpdateStatus, rule: UpdateRule, progress: list[_Progress], now: datetime) -> Service | None:
    """The service paused or rolled back, if too much of the update has failed."""
    deadline = progress_deadline(service.spec)
    early = [one.failed for one in progress if one.failed is not None]
    stuck = [one.waits for one in progress if one.failed is None and one.waits is not None and one.is_stuck(deadline, now)]
    failed = sorted([*early, *stuck], key=age_key)
    concerned = sum(1 for one in progress if one.dirty or one.under_way or one.settled_at is not None)
    if not failed or rule.failure_action == "continue" or len(failed) / concerned <= rule.max_failure_ratio:
        return None
    last = failed[-1]
    why = f"due to failure or early termination of task {last.id}"
    if last in stuck:
        assert deadline is not None
        reason = f" ({last.status.err})" if last.status.err else ""
        why = f"because task {last.id} did not run within {deadline.total_seconds():g} s: it is {last.status.state}{reason}"
    rolling_back = status.state == "rollback_started"
    if rule.failure_action == "rollback" and not rolling_back and service.previous_spec is not None:
        # started_at moves: only what fails from now on speaks against the old spec
        back = UpdateStatus(state="rollback_started", started_at=now, message=f"update rolled back {why}")
        return msgspec.structs.replace(
            service,
            spec=service.previous_spec,
            previous_spec=None,
            update_status=back,
            updated_at=now,
            mesh_spec_since=service.version.index,
        )
    word = "rollback" if rolling_back else "update"
    state = "rollback_paused" if rolling_back else "paused"
    return _with_status(service, msgspec.structs.replace(status, state=state, message=f"{word} paused {why}"), now)


def _completion(service: Service, status: UpdateStatus, rule: UpdateRule, progress: list[_Progress], now: datetime) -> Decision:
    """Done when the last new task has run for the monitor's time."""
    over = max((one.settled_at + rule.monitor for one in progress if one.settled_at is not None), default=now)
    if over > now:
        return Decision(wakeup=over)
    state, message = (
        ("rollback_completed", "rollback completed") if status.state == "rollback_started" else ("completed", "update completed")
    )
    done = msgspec.structs.replace(status, state=state, message=message, completed_at=now)
    return Decision([(Put(_with_status(service, done, now)),)])


def _next_slots(ctx: Context, service: Service, rule: UpdateRule, progress: list[_Progress], waiting: list[_Progress]) -> Decision:
    busy = 0
    wakeup: datetime | None = None
    for one in progress:
        if one.under_way:
            busy += 1
        elif not one.dirty and one.settled_at is not None and rule.delay and one.settled_at + rule.delay > ctx.now:
            busy += 1
            wakeup = earliest(wakeup, one.settled_at + rule.delay)
    stateful = stateful_rule(service.spec)
    if stateful is not None and stateful.ordered:
        # as a stateful set of Kubernetes: from the highest slot down, the next one when the last one runs
        free = 1 - busy
        waiting = sorted(waiting, key=lambda one: one.slot.newest.slot, reverse=True)
    else:
        free = rule.parallelism - busy if rule.parallelism else len(waiting)
        # updating what doesn't run costs nobody anything
        waiting = sorted(waiting, key=lambda one: (any(running(task) for task in one.slot.tasks), str(one.slot.key).zfill(12)))
    return Decision([_replace(ctx, service, rule, one.slot) for one in waiting[: max(free, 0)]], wakeup)


def _making_way(snapshot: Snapshot, ctx: Context, service: Service, progress: list[_Progress]) -> list[Step]:
    """Start-first with host ports: where no node has a successor's ports free, or soon will, the old task goes first after all."""
    steps: list[Step] = []
    for one in progress:
        heir = one.waits
        if heir is not None and heir.status.state is TaskState.PENDING and _finds_no_port(snapshot, service, host_ports(heir)):
            steps.extend((Put(stopped(task, ctx.now)),) for task in one.slot.live if running(task))
    return steps


def _finds_no_port(snapshot: Snapshot, service: Service, ports: frozenset[HostPort]) -> bool:
    placement = Placement(service.spec.task_template)
    return bool(ports) and not any(
        takes_tasks(node)
        and placement.matches(node)
        and not any(ports & host_ports(task) for task in snapshot.tasks_of_node(node.id) if live(task))
        for node in snapshot.all(Node)
    )


def _replace(ctx: Context, service: Service, rule: UpdateRule, slot: Slot) -> Step:
    old = slot.newest
    serving = [task for task in slot.live if running(task)]
    if rule.order == "start-first" and serving:
        # one serves until the successor does; what an overtaken update has left besides goes now
        others = [task for task in slot.wanted if task is not serving[-1]]
        return (*(Put(stopped(task, ctx.now)) for task in others), Put(successor(service, ctx, old, desired=TaskState.RUNNING)))
    # READY: it is pulled and created while the old one drains; succession lets it run when that has stopped
    return (*(Put(stopped(task, ctx.now)) for task in slot.wanted), Put(successor(service, ctx, old, desired=TaskState.READY)))


def _with_status(service: Service, status: UpdateStatus, now: datetime) -> Service:
    return msgspec.structs.replace(service, update_status=status, updated_at=now)
