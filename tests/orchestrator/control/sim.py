"""A cluster under a virtual clock: the real control loops over a snapshot, tiny agents that do as they are told.

Pure: no I/O, no clock; time moves only by `run`. Every write goes through the store's own rules (shape, conflicts, versions), and
after each one the laws that no fault may break are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import msgspec

from orchestrator.control.batches import batches
from orchestrator.control.context import Context, NetworkAcks
from orchestrator.control.defaults import duration, stop_grace
from orchestrator.control.eligibility import gone, placed
from orchestrator.control.jobs import first_status
from orchestrator.control.labels import cron_rule
from orchestrator.control.loops import LOOPS
from orchestrator.control.slots import live, slot_key, wanted
from orchestrator.control.status import advance
from orchestrator.control.steps import Loop, Step, applied, earliest
from orchestrator.control.update import rollback, updated
from orchestrator.model import (
    IPAM,
    STATE_ORDER,
    Cluster,
    ClusterSpec,
    ContainerSpec,
    ContainerStatus,
    EndpointSpec,
    GlobalJob,
    GlobalService,
    Mount,
    Network,
    NetworkAttachmentConfig,
    Node,
    NodeDescription,
    NodeSpec,
    NodeStatus,
    OrchestrationConfig,
    Placement,
    Platform,
    PortConfig,
    ReplicatedJob,
    ReplicatedService,
    ResourceObject,
    RestartPolicy,
    Service,
    ServiceMode,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
    UpdateConfig,
    terminal,
)
from orchestrator.store.base import Change, Delete, Put
from orchestrator.store.snapshot import Snapshot
from orchestrator.store.transaction import apply, check_conflicts, check_shape

START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
_MAX_CHANGES = 500
FENCED = "fenced"

# (task, how long it has been in its state) -> how it ends now, None = it goes on
Fate = Callable[[Task, timedelta], TaskState | None]


def seconds(value: float) -> int:
    """Docker's durations."""
    return int(value * 1_000_000_000)


def spec(
    name: str = "web",
    replicas: int | None = 1,
    image: str = "app:1",
    *,
    update: UpdateConfig | None = None,
    rollback_config: UpdateConfig | None = None,
    restart: RestartPolicy | None = None,
    constraints: list[str] | None = None,
    ports: list[PortConfig] | None = None,
    networks: Sequence[str] = ("net",),
    mode: ServiceMode | None = None,
    labels: dict[str, str] | None = None,
) -> ServiceSpec:
    """replicas None = global; `mode` overrides it."""
    if mode is None:
        mode = ServiceMode(global_=GlobalService()) if replicas is None else ServiceMode(replicated=ReplicatedService(replicas=replicas))
    return ServiceSpec(
        name=name,
        mode=mode,
        labels=labels,
        task_template=TaskSpec(
            container_spec=ContainerSpec(image=image),
            restart_policy=restart,
            placement=Placement(constraints=constraints) if constraints else None,
            networks=[NetworkAttachmentConfig(target=network) for network in networks] or None,
        ),
        update_config=update,
        rollback_config=rollback_config,
        endpoint_spec=EndpointSpec(ports=ports) if ports else None,
    )


def job(total: int | None, concurrent: int = 1, **fields: object) -> ServiceSpec:
    """total None = on every node."""
    replicated = ReplicatedJob(total_completions=total, max_concurrent=concurrent)
    mode = ServiceMode(global_job=GlobalJob()) if total is None else ServiceMode(replicated_job=replicated)
    return spec("job", mode=mode, **fields)  # type: ignore[arg-type]


def stateful(replicas: int, *, volume: bool = False, **given: str) -> ServiceSpec:
    """given: labels, `order="ordered"` for com.meshd.stateful.order."""
    labels = {"com.meshd.stateful": "true", **{f"com.meshd.stateful.{name}": value for name, value in given.items()}}
    base = spec(replicas=replicas, labels=labels, restart=RestartPolicy(delay=0))
    mounts = [Mount(source="data-{{.Task.Slot}}", target="/data")] if volume else None
    template = msgspec.structs.replace(base.task_template, container_spec=ContainerSpec(image="app:1", mounts=mounts))
    return msgspec.structs.replace(base, task_template=template)


def scaled(service_spec: ServiceSpec, replicas: int) -> ServiceSpec:
    return msgspec.structs.replace(service_spec, mode=ServiceMode(replicated=ReplicatedService(replicas=replicas)))


def with_image(service_spec: ServiceSpec, image: str) -> ServiceSpec:
    container = service_spec.task_template.container_spec
    assert container is not None
    template = msgspec.structs.replace(service_spec.task_template, container_spec=msgspec.structs.replace(container, image=image))
    return msgspec.structs.replace(service_spec, task_template=template)


def image_of(task: Task) -> str:
    assert task.spec.container_spec is not None
    return task.spec.container_spec.image


def node(id: str, **changes: object) -> Node:
    base = Node(
        id=id,
        created_at=START,
        spec=NodeSpec(role="worker"),
        description=NodeDescription(
            hostname=id,
            platform=Platform(architecture="x86_64", os="linux"),
            resources=ResourceObject(nano_cpus=64_000_000_000, memory_bytes=1 << 36),
            mesh_data_addr="192.0.2.1",
        ),
        status=NodeStatus(state="ready", addr="192.0.2.1"),
    )
    return msgspec.structs.replace(base, **changes)


@dataclass
class World:
    """`pace`: how long an agent needs from one state to the next. `ask_every`: fates are asked so often.
    `open`: connections that draining tasks still have. `mute`: nodes that run but never acknowledge. `stuck`: tasks that their Engine
    can't stop. `overlap`: slots may be handed over with two tasks let run, whatever the update order."""

    pace: timedelta = timedelta(milliseconds=100)
    fate: Fate | None = None
    ask_every: timedelta = timedelta(milliseconds=100)
    loops: Sequence[Loop] = LOOPS
    snapshot: Snapshot = field(default_factory=Snapshot)
    now: datetime = START
    lost: set[str] = field(default_factory=set)
    lost_at: dict[str, datetime] = field(default_factory=dict)
    fenced: set[str] = field(default_factory=set)
    mute: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    open: dict[str, int] = field(default_factory=dict)
    watchers: list[Callable[[Snapshot, Snapshot], None]] = field(default_factory=list)
    writes: int = 0
    overlap: bool = False
    _ids: int = 0

    @classmethod
    def of(cls, nodes: int, history: int | None = None, **fields: object) -> World:
        world = cls(**fields)  # type: ignore[arg-type]
        cluster_spec = ClusterSpec(orchestration=OrchestrationConfig(task_history_retention_limit=history))
        cluster = Cluster(id="cluster", spec=cluster_spec, default_addr_pool=["10.0.0.0/8"], subnet_size=20)
        world.write(Put(cluster), Put(Network(id="net", name="net", ipam=IPAM())), *(Put(node(f"n{i}")) for i in range(1, nodes + 1)))
        return world

    def successor(self) -> World:
        """The same cluster under a new leader: nothing but the snapshot goes over to it."""
        return replace(self)

    # ---- what a user does ------------------------------------------------------------------------------------------------------

    def create(self, service_spec: ServiceSpec) -> str:
        id = f"s-{service_spec.name}"
        job_status = first_status(service_spec, self.now)
        self.write(Put(Service(id=id, created_at=self.now, updated_at=self.now, spec=service_spec, job_status=job_status)))
        return id

    def update(self, service_id: str, service_spec: ServiceSpec) -> None:
        self.write(Put(updated(self.service(service_id), service_spec, self.now)))

    def rollback(self, service_id: str) -> None:
        self.write(Put(rollback(self.service(service_id), self.now)))

    def remove(self, service_id: str) -> None:
        self.write(Delete("service", service_id, self.service(service_id).version.index))

    def availability(self, node_id: str, value: str) -> None:
        old = self.node(node_id)
        self.write(Put(msgspec.structs.replace(old, spec=msgspec.structs.replace(old.spec, availability=value))))

    def lose(self, node_id: str) -> None:
        """The node stops answering, as the dispatcher tells it."""
        self.lost.add(node_id)
        self.lost_at[node_id] = self.now
        self.write(Put(msgspec.structs.replace(self.node(node_id), mesh_disconnected_since=self.now)))

    def find(self, node_id: str) -> None:
        self.fenced |= {task.id for task in self.snapshot.tasks_of_node(node_id) if self._is_fenced(task)}
        self.lost.discard(node_id)
        old = self.node(node_id)
        self.write(Put(msgspec.structs.replace(old, mesh_disconnected_since=None, status=NodeStatus(state="ready", addr="192.0.2.1"))))

    def remove_node(self, node_id: str) -> None:
        self.lost.discard(node_id)
        self.write(Delete("node", node_id))

    # ---- looking ---------------------------------------------------------------------------------------------------------------

    def service(self, id: str) -> Service:
        found = self.snapshot.service(id)
        assert found is not None, id
        return found

    def node(self, id: str) -> Node:
        found = self.snapshot.node(id)
        assert found is not None, id
        return found

    def tasks(self, service_id: str) -> list[Task]:
        return sorted(self.snapshot.tasks_of_service(service_id), key=lambda task: (task.created_at, task.id))

    def live(self, service_id: str) -> list[Task]:
        return [task for task in self.tasks(service_id) if live(task)]

    def serving(self, service_id: str) -> list[Task]:
        """What clients are sent to."""
        return [
            task for task in self.live(service_id) if task.status.state is TaskState.RUNNING and task.desired_state is TaskState.RUNNING
        ]

    def state(self, service_id: str) -> str:
        status = self.service(service_id).update_status
        return status.state if status is not None else ""

    # ---- time ------------------------------------------------------------------------------------------------------------------

    def run(self, duration_s: float) -> None:
        """Let this much time pass, event by event."""
        end = self.now + timedelta(seconds=duration_s)
        while True:
            wakeup = self._settle()
            following = earliest(wakeup, self._next_agent_move())
            if following is None or following > end:
                self.now = end
                self._settle()
                return
            self.now = max(following, self.now + timedelta(microseconds=1))

    def until(self, true: Callable[[], bool], limit_s: float = 120, step_s: float = 0.05) -> float:
        """Runs until it is true; returns the seconds that took."""
        begin = self.now
        while not true():
            assert self.now - begin < timedelta(seconds=limit_s), f"not within {limit_s} s\n{self.picture()}"
            self.run(step_s)
        return (self.now - begin).total_seconds()

    def _settle(self) -> datetime | None:
        """Agents and loops until nobody has anything to do at this instant. Returns when the loops want to be woken."""
        for _ in range(200):
            moved = self._agents()
            wakeup = self.plan()
            if wakeup is not _CHANGED and not moved:
                assert wakeup is None or isinstance(wakeup, datetime)
                assert wakeup is None or wakeup > self.now, f"woken for nothing at {wakeup}\n{self.picture()}"
                return wakeup
        raise AssertionError(f"the loops find no rest at {self.now}\n{self.picture()}")

    def plan(self) -> datetime | object | None:
        """One pass of the driver. `_CHANGED` when it wrote something."""
        context = Context(now=self.now, new_id=self._new_id, acks=self._acks())
        picture, steps, wakeup = self.snapshot, list[Step](), None
        for loop in self.loops:
            decision = loop(picture, context)
            if decision.steps:
                picture = applied(picture, decision.steps)
            steps += decision.steps
            wakeup = earliest(wakeup, decision.wakeup)
        wrote = False
        for batch in batches(self.snapshot, steps, _MAX_CHANGES):
            if batch.changes:
                self.write(*batch.changes)
                wrote = True
        # the clock moves a little with each pass, as it does in reality
        if wrote:
            self.now += timedelta(microseconds=1)
            return _CHANGED
        return wakeup

    def write(self, *changes: Change) -> None:
        check_shape(changes, 100_000)
        check_conflicts(self.snapshot, changes)
        before = self.snapshot
        self.snapshot, _ = apply(before, changes)
        self.writes += 1
        check_laws(before, self.snapshot, self.now, overlap=self.overlap)
        check_stops(before, self.snapshot)
        self._check_writers()
        for watcher in self.watchers:
            watcher(before, self.snapshot)

    def _is_fenced(self, task: Task) -> bool:
        """The agent of a lost node has stopped it: it counts from its last word with the leader, then gives it its grace."""
        if task.mesh_fence is None or task.node_id not in self.lost or terminal(task.status.state):
            return False
        return self.now >= self.lost_at[task.node_id] + duration(task.mesh_fence) + stop_grace(task.spec)

    def _check_writers(self) -> None:
        """Of a slot that is fenced never two run at once, whatever the store knows of it. (Who removes a node vouches for its tasks.)"""
        writers: dict[tuple[str, int], list[str]] = {}
        for task in self.snapshot.all(Task):
            if task.mesh_fence is None or terminal(task.status.state) or not placed(task) or self.snapshot.node(task.node_id) is None:
                continue
            runs = task.desired_state is TaskState.RUNNING or task.status.state in (TaskState.STARTING, TaskState.RUNNING)
            if runs and task.id not in self.fenced and not self._is_fenced(task):
                writers.setdefault((task.service_id, task.slot), []).append(task.id)
        assert all(len(ids) == 1 for ids in writers.values()), f"two writers {writers}\n{self.picture()}"

    def picture(self) -> str:
        lines = [f"{service.id} {service.spec.mode} {service.update_status}" for service in self.snapshot.all(Service)]
        for task in sorted(self.snapshot.all(Task), key=lambda task: (task.service_id, str(slot_key(task)), task.created_at)):
            lines.append(
                f"{task.service_id}.{slot_key(task)} {task.id} {image_of(task)} on {task.node_id or '-'}: {task.status.state} "
                f"desired {task.desired_state} released {task.mesh_released} run_at {task.mesh_run_at} err {task.status.err!r}"
            )
        return "\n".join(lines)

    # ---- the agents ------------------------------------------------------------------------------------------------------------

    def _agents(self) -> bool:
        moved: list[Change] = []
        for task in self._attended():
            status = self._next_status(task)
            if status is not None:
                changed = advance(task, status, self.now)
                if changed is not None:
                    moved.append(Put(changed))
        if moved:
            self.write(*moved)
        return bool(moved)

    def _attended(self) -> Iterable[Task]:
        """Tasks that have an agent which can act."""
        for task in sorted(self.snapshot.all(Task), key=lambda task: task.id):
            known = STATE_ORDER[task.status.state] >= STATE_ORDER[TaskState.ASSIGNED]
            if known and not terminal(task.status.state) and self.snapshot.node(task.node_id) is not None and task.node_id not in self.lost:
                yield task

    def _next_status(self, task: Task) -> TaskStatus | None:
        age = self.now - task.status.timestamp
        end = self.fate(task, age) if self.fate is not None else None
        if end is not None:
            return self._status(end, "it ended")
        if task.id in self.fenced:
            return self._status(TaskState.SHUTDOWN, FENCED)
        if age < self.pace:
            return None
        if not wanted(task):
            if task.id in self.stuck:
                return None
            return self._status(TaskState.SHUTDOWN, "shutdown") if task.mesh_released else None
        following = _FOLLOWING.get(task.status.state)
        if following is None or STATE_ORDER[following] > STATE_ORDER[task.desired_state]:
            return None
        return self._status(following, str(following))

    def _status(self, state: TaskState, message: str) -> TaskStatus:
        return TaskStatus(timestamp=self.now, state=state, message=message, container_status=ContainerStatus(container_id="c", pid=1))

    def _next_agent_move(self) -> datetime | None:
        """The next time at which an agent could have something to do."""
        times = []
        for task in self._attended():
            due = task.status.timestamp + self.pace
            if due > self.now:
                times.append(due)
            elif self.fate is not None:
                times.append(self.now + self.ask_every)
        return min(times, default=None)

    def _acks(self) -> NetworkAcks:
        def applied_by(node_id: str) -> int | None:
            if node_id in self.lost or self.snapshot.node(node_id) is None:
                return None
            return 0 if node_id in self.mute else self.snapshot.revision

        return NetworkAcks(applied=applied_by, open=lambda task_id: self.open.get(task_id, 0))

    def _new_id(self) -> str:
        self._ids += 1
        return f"t{self._ids:05}"


_CHANGED = object()
_FOLLOWING = {
    TaskState.ASSIGNED: TaskState.ACCEPTED,
    TaskState.ACCEPTED: TaskState.PREPARING,
    TaskState.PREPARING: TaskState.READY,
    TaskState.READY: TaskState.STARTING,
    TaskState.STARTING: TaskState.RUNNING,
}


# ---- laws ---------------------------------------------------------------------------------------------------------------------------


def check_laws(before: Snapshot, after: Snapshot, now: datetime, *, overlap: bool = False) -> None:
    """What holds for every single write, whoever made it."""
    touched = set()
    for task in after.all(Task):
        old = before.task(task.id)
        if old is task:
            continue
        touched.add((task.service_id, slot_key(task)))
        if old is None:
            continue
        assert STATE_ORDER[task.status.state] >= STATE_ORDER[old.status.state], f"{task.id} went back from {old.status.state}"
        assert STATE_ORDER[task.desired_state] >= STATE_ORDER[old.desired_state], f"{task.id} is wanted again"
        assert not terminal(old.status.state) or task.status.state is old.status.state, f"{task.id} left its end state"
        assert task.spec == old.spec and task.slot == old.slot and task.service_id == old.service_id
        assert not old.node_id or task.node_id == old.node_id, f"{task.id} moved"
        assert not old.mesh_released or task.mesh_released
    for service_id, key in touched:
        check_slot(after, service_id, key, now, overlap)


def check_stops(before: Snapshot, after: Snapshot) -> None:
    """Here no container ends while it drains but by its agent's hand, unless it is fenced."""
    for task in after.all(Task):
        old = before.task(task.id)
        if old is not None and task.status.state is TaskState.SHUTDOWN and old.status.state is TaskState.RUNNING:
            assert old.mesh_released or task.status.message == FENCED, f"{task.id} was stopped before it was released"


def check_slot(snapshot: Snapshot, service_id: str, key: int | str, now: datetime, overlap: bool = False) -> None:
    tasks = [task for task in snapshot.tasks_of_service(service_id) if slot_key(task) == key and not gone(snapshot, task, now)]
    let_run = [task for task in tasks if task.desired_state is TaskState.RUNNING]
    service = snapshot.service(service_id)
    if service is None:
        # what was handing over when it was removed, and how, nobody knows any more
        return
    rule = cron_rule(service.spec)
    if rule is not None and rule.concurrency == "allow":
        return
    start_first = "start-first" in {
        config.order for config in (service.spec.update_config, service.spec.rollback_config) if config is not None
    }
    assert len(let_run) <= (2 if start_first or overlap else 1), f"slot {key} of {service_id} runs {[task.id for task in let_run]}"
