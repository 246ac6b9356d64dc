"""The agent of a node: makes its containers, its data plane and its DNS what the managers' rows say, and reports what is.

Edge: the loop around the pure planner (`tasks`) and translators (`network_state`, `names_state`). Nothing starts, stops or is removed
before the first complete assignment of this process's life; without managers everything goes on as it is.

    rows ----.                          .--> steps on the runtime, one a task at a time
              >--> plan, translate -->--+--> network loop --> mesh, dnsd --> applied(revision)
    containers                          '--> statuses
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mesh.model import Balancer, NodeState
from orchestrator import permissions
from orchestrator.agent.attachments import plan_attachment, plan_foreign
from orchestrator.agent.container_spec import grace_s, uses_host_network
from orchestrator.agent.encryption_state import step_of
from orchestrator.agent.errors import EngineUnavailable
from orchestrator.agent.keyring import Keyring
from orchestrator.agent.lease import Lease
from orchestrator.agent.names_state import dns_state
from orchestrator.agent.network_loop import NetworkLoop, Timing, Wanted, place
from orchestrator.agent.network_state import draining_addresses, node_state
from orchestrator.agent.ports import Mesh, Names, Session
from orchestrator.agent.readiness import PortRule, listening_ports, port_rule
from orchestrator.agent.rows import Rows
from orchestrator.agent.runtime import Container, Runtime
from orchestrator.agent.tasks import Facts, Said, Step, further, plan_orphan, plan_task, task_status
from orchestrator.dispatcher.messages import Row, TaskReport
from orchestrator.errors import TaskError
from orchestrator.model import SECOND, STATE_ORDER, Task, TaskState, is_attachment, terminal

log = logging.getLogger(__name__)

_RETRY_FIRST_S = 0.2
_RETRY_LAST_S = 5.0
# events say that something changed; this catches what no event told
_LOOK_EVERY_S = 10.0
_READY_POLL_FIRST_S = 0.01
_READY_POLL_LAST_S = 0.25
_ORPHAN_GRACE_S = 10.0


def listening(pid: int) -> frozenset[int]:
    """TCP ports in LISTEN in the network namespace of the process; none if it is gone."""
    tables = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            tables.append(Path(f"/proc/{pid}/net/{name}").read_text())
    return listening_ports(*tables)


def alive(pid: int) -> bool:
    """Whether the process still has namespaces: a zombie has none."""
    return Path(f"/proc/{pid}/ns/net").exists()


@dataclass(slots=True)
class _Memory:
    """What this process knows of a task beyond row and container; all of it can be found out again. created_at: the task's, as an
    attachment may be followed by another one of the same id; None: it was not seen yet."""

    created_at: datetime | None = None
    said: TaskState = TaskState.NEW
    failure: str = ""
    ready_pid: int = 0
    # of attachments: see `Facts`. prepared: also that there is something to forget. None: this process has said nothing, so what is
    # stored counts
    prepared: bool = False
    released_pid: int = 0
    said_pid: int | None = None
    step: asyncio.Task[None] | None = None
    running_step: Step | None = None
    watch: asyncio.Task[None] | None = None
    retry_at_s: float = 0.0
    retry_s: float = 0.0
    # the count of looks begun when a step last told us about the container: an older look must not overrule it
    told_at: int = -1
    # a look came by while the step ran: look again when it has ended
    overlooked: bool = False


class Agent:
    """Feed it rows with `on_rows`, run `run()` until cancelled. data_addr: this node's tunnel endpoint. permits: see `permissions`.
    unable_to_encrypt: why it can't have encrypted networks, "" = it can; keyring: by which keys it has them.

    Cancelling `run` leaves containers, kernel and dnsd as they are.
    """

    def __init__(
        self,
        *,
        node_id: str,
        data_addr: str,
        runtime: Runtime,
        mesh: Mesh,
        names: Names,
        session: Session,
        lease: Lease | None = None,
        balancer: Balancer = "nftables",
        permits: Collection[str] = permissions.DEFAULT,
        cluster_id: str = "",
        keyring: Keyring | None = None,
        unable_to_encrypt: str = "",
        timing: Timing | None = None,
        listening: Callable[[int], frozenset[int]] = listening,
        alive: Callable[[int], bool] = alive,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._node_id = node_id
        self._data_addr = data_addr
        self._runtime = runtime
        self._session = session
        self._lease = lease or Lease()
        self._balancer: Balancer = balancer
        self._permits = permits
        self._cluster_id, self._keyring, self._unable_to_encrypt = cluster_id, keyring, unable_to_encrypt
        self._listening = listening
        self._alive = alive
        self._now = now
        self._rows = Rows()
        self._rows_known = False
        self._containers: dict[str, Container] = {}
        self._containers_known = False
        # attachments whose containers the last look asked for by their ids
        self._looked_for: frozenset[str] = frozenset()
        self._looks = 0
        self._memories: dict[str, _Memory] = {}
        self._wake = asyncio.Event()
        self._look = asyncio.Event()
        self._network = NetworkLoop(mesh, names, session, on_change=self._wake.set, timing=timing)
        # uvloop's call_at returns a handle without a time where that is less than half a millisecond away
        self._timer: asyncio.Handle | None = None
        self._timer_at_s = 0.0
        self._engine_lost = False
        # since when the Engine owes a list of its containers; None = it has answered
        self._asked_at_s: float | None = None

    @property
    def containers(self) -> dict[str, Container]:
        """Task id -> its container on this node, as last seen."""
        return dict(self._containers)

    @property
    def rows(self) -> Rows | None:
        """The node's assignment; None before it has one."""
        return self._rows if self._rows_known else None

    @property
    def network_errors(self) -> dict[str, str]:
        """Task id -> why its network isn't whole."""
        return dict(self._network.errors)

    @property
    def keys_step(self) -> int | None:
        """Of the change of keys: what the kernel shows."""
        return self._network.keys_step

    @property
    def wanted(self) -> NodeState | None:
        """What the data plane was last told to be."""
        return self._network.wanted_state

    @property
    def engine_available(self) -> bool:
        return self._containers_known and not self._engine_lost

    @property
    def engine_silent_s(self) -> float:
        """For how long the Engine has owed an answer; 0.0 = it has answered."""
        return 0.0 if self._asked_at_s is None else asyncio.get_running_loop().time() - self._asked_at_s

    async def on_rows(self, revision: int, put: list[Row], removed: list[str], complete: bool) -> None:
        """For the session. Returns at once; `session.applied(revision, ...)` follows when the node shows it."""
        if not complete and not self._rows_known:
            return
        joined = self._rows.joined()
        self._rows.update(revision, put, removed, complete)
        if self._rows.joined() != joined:
            self._look.set()
        self._rows_known = True
        if self._containers_known:
            self._translate(owed=True)
        self._wake.set()

    def resync(self) -> None:
        """Compare everything with what is really there, now."""
        self._network.resync()
        self._look.set()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_events())
                group.create_task(self._look_forever())
                group.create_task(self._plan_forever())
                group.create_task(self._network.run())
        finally:
            if self._timer is not None:
                self._timer.cancel()
            running = [t for memory in self._memories.values() for t in (memory.step, memory.watch) if t is not None]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    # ---- looking -------------------------------------------------------------------------------------------------------------

    async def _follow_events(self) -> None:
        async for _ in self._runtime.events():
            self._look.set()

    async def _look_forever(self) -> None:
        retry_s = _RETRY_FIRST_S
        while True:
            self._look.clear()
            self._looks += 1
            if self._asked_at_s is None:
                self._asked_at_s = asyncio.get_running_loop().time()
            try:
                joined = self._rows.joined()
                found = await self._runtime.containers(joined)
            except EngineUnavailable as error:
                if not self._engine_lost:
                    log.warning("engine_lost error=%s", error)
                self._engine_lost = True
                self._drop_dead()
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_LAST_S)
                continue
            retry_s = _RETRY_FIRST_S
            if self._engine_lost:
                log.info("engine_found containers=%d", len(found))
            self._engine_lost = False
            self._asked_at_s = None
            self._found(found, frozenset(joined.values()), self._looks)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._look.wait()

    def _found(self, found: Iterable[Container], joined: frozenset[str], look: int) -> None:
        seen = {container.task_id: container for container in found}
        told = set()
        for task_id in seen.keys() | self._containers.keys() | joined:
            memory = self._memories.get(task_id)
            if memory is not None and memory.step is not None:
                memory.overlooked = True
                continue
            if memory is not None and memory.told_at >= look:
                self._look.set()
                continue
            self._tell(task_id, seen.get(task_id))
            told.add(task_id)
        self._looked_for = joined & told
        self._lease.forget(frozenset(seen))
        first = not self._containers_known
        self._containers_known = True
        if self._rows_known:
            self._translate(owed=first)
        self._wake.set()

    def _drop_dead(self) -> None:
        """Without an Engine it can still be seen that a process has ended: nobody is sent to it any more."""
        dead = [c for c in self._containers.values() if c.pid and not self._alive(c.pid)]
        for container in dead:
            self._tell(container.task_id, replace(container, state="running", pid=0))
        if dead and self._rows_known:
            self._translate(owed=False)

    def _tell(self, task_id: str, container: Container | None) -> None:
        if container is None:
            self._containers.pop(task_id, None)
        else:
            self._containers[task_id] = container

    # ---- planning ------------------------------------------------------------------------------------------------------------

    async def _plan_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._containers_known:
                self._fence()
            if self._rows_known and self._containers_known:
                self._plan()
                self._translate(owed=False)

    def _fence(self) -> None:
        """Stop what may run only as long as a leader is heard of, also if this process has been told nothing yet."""
        for task_id, container in sorted(self._containers.items()):
            if container.fence_s is None or not container.pid:
                continue
            memory = self._memories.setdefault(task_id, _Memory())
            left_s = container.fence_s - self._lease.age_s()
            if memory.step is None and left_s <= 0:
                left_s = memory.retry_at_s - asyncio.get_running_loop().time()
                if left_s <= 0:
                    log.warning("task=%s fenced=stopping unheard_s=%.0f", task_id, self._lease.age_s())
                    self._lease.fence(task_id)
                    self._begin(task_id, self._rows.tasks.get(task_id), memory, Step.STOP)
            if memory.step is None:
                self._wake_in(left_s)

    def _plan(self) -> None:
        reports: list[TaskReport] = []
        for task_id in sorted(self._rows.tasks.keys() | self._containers.keys() | self._memories.keys()):
            memory = self._memories.setdefault(task_id, _Memory())
            task = self._rows.tasks.get(task_id)
            if memory.step is not None:
                if memory.running_step is Step.PREPARE and (task is None or _is_over(task)):
                    # a pull may take minutes; what a call under way still creates is found and removed later
                    memory.step.cancel()
                continue
            if task is not None and memory.created_at != task.created_at:
                memory = self._met(task, memory)
            if task is None and task_id not in self._containers:
                if memory.prepared:
                    self._begin(task_id, None, memory, Step.FORGET)
                else:
                    self._forget(task_id)
                continue
            wait_s = memory.retry_at_s - asyncio.get_running_loop().time()
            if wait_s > 0:
                self._wake_in(wait_s)
            else:
                self._plan_one(task_id, task, memory, reports)
        if reports:
            self._session.report(reports)

    def _met(self, task: Task, memory: _Memory) -> _Memory:
        """For the first time: of a former task of the same id only what lies on the disk is still true."""
        if memory.created_at is not None:
            self._forget(task.id)
            memory = self._memories[task.id] = _Memory(prepared=memory.prepared)
        memory.created_at = task.created_at
        return memory

    def _plan_one(self, task_id: str, task: Task | None, memory: _Memory, reports: list[TaskReport]) -> None:
        """Statuses until there is something to do or to wait for."""
        while True:
            container = self._containers.get(task_id)
            if task is None:
                assert container is not None
                decision = plan_foreign(container) if container.attachment else plan_orphan(container)
            elif is_attachment(task):
                decision = plan_attachment(task, container, self._facts(task, container, memory), self._now())
            else:
                decision = plan_task(task, container, self._facts(task, container, memory), self._now())
            if decision.failure:
                memory.failure = decision.failure
            if decision.said is not None and task is not None:
                reports.append(self._say(task, container, memory, decision.said))
            if decision.step is not None:
                self._begin(task_id, task, memory, decision.step)
                return
            if decision.wake_at is not None:
                self._wake_in((decision.wake_at - self._now()) / timedelta(seconds=1))
            if decision.said is None:
                if task is not None and container is not None and not container.attachment:
                    self._watch_readiness(task, container, memory)
                return

    def _facts(self, task: Task, container: Container | None, memory: _Memory) -> Facts:
        stored = task.status.container_status
        return Facts(
            state=further(task.status.state, memory.said),
            attached=container is not None and (place(task.id, container.pid) in self._network.attached or uses_host_network(task)),
            attach_error=self._network.errors.get(task.id, ""),
            listening=container is not None and container.pid != 0 and memory.ready_pid == container.pid,
            failure=memory.failure,
            cut_off=task.mesh_fence is not None and self._lease.age_s() >= task.mesh_fence / SECOND,
            fenced=task.id in self._lease.fenced,
            prepared=memory.prepared,
            looked_for=task.id in self._looked_for,
            released_pid=memory.released_pid,
            said_pid=memory.said_pid if memory.said_pid is not None else stored.pid if stored is not None else 0,
        )

    def _say(self, task: Task, container: Container | None, memory: _Memory, said: Said) -> TaskReport:
        memory.said = further(memory.said, said.state)
        memory.said_pid = container.pid if container is not None else 0
        log.info("task=%s state=%s%s", task.id, said.state, f" err={said.err!r}" if said.err else "")
        return TaskReport(task_id=task.id, status=task_status(task, container, said, self._now()))

    def _forget(self, task_id: str) -> None:
        memory = self._memories.pop(task_id)
        if memory.watch is not None:
            memory.watch.cancel()

    def _translate(self, *, owed: bool) -> None:
        rows, containers = self._rows, self._containers
        step = self._follow_keys()
        state = node_state(
            rows,
            containers,
            node_id=self._node_id,
            data_addr=self._data_addr,
            balancer=self._balancer,
            cluster_id=self._cluster_id,
            private_keys=self._keyring.private if self._keyring else {},
        )
        names = dns_state(rows, containers, node_id=self._node_id)
        self._network.want(Wanted(rows.revision, state, names, draining_addresses(rows), step), owed=owed)

    def _follow_keys(self) -> int:
        """The step of the change of keys for which there are keys here."""
        if self._keyring is None:
            return 0
        step = step_of(self._rows)
        if step is not None and step != self._keyring.step:
            try:
                self._keyring.follow(step)
                log.info("keys step=%d epochs=%s", step, sorted(self._keyring.private))
            except OSError as error:
                log.error("keys step=%d error=%s action=try-again", step, error)
                self._wake_in(_RETRY_LAST_S)
        return self._keyring.step

    def _wake_in(self, delay_s: float) -> None:
        """One timer, for the earliest; whoever planned then asks again for its own."""
        loop = asyncio.get_running_loop()
        at_s = loop.time() + max(0.0, delay_s)
        if self._timer is not None and not self._timer.cancelled() and loop.time() < self._timer_at_s <= at_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at_s = loop.call_at(at_s, self._wake.set), at_s

    # ---- steps ---------------------------------------------------------------------------------------------------------------

    def _begin(self, task_id: str, task: Task | None, memory: _Memory, step: Step) -> None:
        memory.running_step = step
        memory.step = asyncio.create_task(self._run_step(task_id, task, memory, step), name=f"{step.value} {task_id}")

    async def _run_step(self, task_id: str, task: Task | None, memory: _Memory, step: Step) -> None:
        try:
            await self._do(task_id, task, step)
        except TaskError as error:
            self._step_failed(task, memory, step, error)
        except EngineUnavailable as error:
            log.warning("task=%s step=%s engine_unavailable=%s", task_id, step.name, error)
            self._later(memory)
        except OSError as error:
            # a full disk, most of the time
            log.warning("task=%s step=%s error=%s", task_id, step.name, error)
            self._later(memory)
        except asyncio.CancelledError:
            self._look.set()
            raise
        except Exception:
            # a bug of ours must not take the other tasks of the node along
            log.exception("task=%s step=%s", task_id, step.name)
            self._later(memory)
        else:
            memory.retry_s = 0.0
        finally:
            memory.step = memory.running_step = None
            memory.told_at = self._looks
            if memory.overlooked:
                memory.overlooked = False
                self._look.set()
            self._wake.set()

    async def _do(self, task_id: str, task: Task | None, step: Step) -> None:
        match step:
            case Step.PREPARE if task is not None and is_attachment(task):
                await self._runtime.prepare_attachment(task)
                self._memories[task_id].prepared = True
            case Step.FORGET:
                await self._runtime.forget_attachment(task_id)
                self._memories[task_id].prepared = False
            case Step.PREPARE if task is not None and task.spec.container_spec is not None:
                if refusal := permissions.refusal(task.spec, self._permits):
                    raise TaskError(refusal, rejected=True)
                if self._unable_to_encrypt and any(a.network.mesh_encrypted for a in task.networks_attachments or ()):
                    raise TaskError(f"one of its networks is encrypted: {self._unable_to_encrypt}", rejected=True)
                auth = self._rows.registry_auths.get(task.service_id, "")
                self._tell(task_id, await self._runtime.prepare(task, self._rows.contents(task), auth))
            case Step.PREPARE:
                raise TaskError("this task has no container to run (only container tasks are supported)", rejected=True)
            case Step.START_HELD:
                self._tell(task_id, await self._runtime.start_held(task_id))
            case Step.RELEASE:
                await self._runtime.release(task_id)
                container = self._containers.get(task_id)
                if container is not None and container.attachment:
                    memory = self._memories[task_id]
                    memory.released_pid, memory.prepared = container.pid, True
                if container is not None and container.state == "held":
                    self._tell(task_id, replace(container, state="running"))
            case Step.STOP:
                spec = task.spec.container_spec if task is not None else None
                grace = grace_s(task) if task is not None else _ORPHAN_GRACE_S
                await self._runtime.stop(task_id, grace, spec.stop_signal if spec else "")
                container = self._containers.get(task_id)
                if container is not None:
                    self._tell(task_id, replace(container, state="running", pid=0))
                self._look.set()
            case Step.REMOVE:
                await self._runtime.remove(task_id)
                self._tell(task_id, None)

    def _step_failed(self, task: Task | None, memory: _Memory, step: Step, error: TaskError) -> None:
        if task is None or step in (Step.STOP, Step.REMOVE):
            log.warning("task=%s step=%s error=%s", task.id if task else "gone", step.name, error)
            self._later(memory)
            return
        container = self._containers.get(task.id)
        if terminal(further(task.status.state, memory.said)):
            return
        if error.rejected or step is Step.PREPARE:
            said = Said(TaskState.REJECTED, "preparing", str(error))
        else:
            said = Said(TaskState.FAILED, "starting", str(error))
        self._session.report([self._say(task, container, memory, said)])

    def _later(self, memory: _Memory) -> None:
        memory.retry_s = min(max(memory.retry_s * 2, _RETRY_FIRST_S), _RETRY_LAST_S)
        memory.retry_at_s = asyncio.get_running_loop().time() + memory.retry_s

    # ---- readiness -----------------------------------------------------------------------------------------------------------

    def _watch_readiness(self, task: Task, container: Container, memory: _Memory) -> None:
        """A task that runs, has no health check and isn't known to listen yet is watched until it does."""
        waiting = (
            container.state == "running"
            and container.pid
            and not container.health
            and further(task.status.state, memory.said) is TaskState.STARTING
            and memory.ready_pid != container.pid
        )
        if waiting and memory.watch is None:
            memory.watch = asyncio.create_task(self._await_ports(task, container, memory), name=f"readiness {task.id}")

    async def _await_ports(self, task: Task, container: Container, memory: _Memory) -> None:
        loop = asyncio.get_running_loop()
        running_s = (self._now() - container.started_at) / timedelta(seconds=1) if container.started_at else 0.0
        rule = self._port_rule(task, container)
        deadline = loop.time() + max(0.0, rule.bound_s - running_s)
        poll_s = _READY_POLL_FIRST_S
        try:
            while not rule.met_by(self._listening(container.pid)):
                if loop.time() >= deadline:
                    log.info("task=%s ready=assumed after_s=%g ports=%s", task.id, rule.bound_s, sorted(rule.all_of or rule.any_of))
                    break
                current = self._containers.get(task.id)
                if current is None or current.pid != container.pid:
                    return
                await asyncio.sleep(min(poll_s, max(0.0, deadline - loop.time())))
                poll_s = min(poll_s * 1.5, _READY_POLL_LAST_S)
            memory.ready_pid = container.pid
        finally:
            memory.watch = None
            self._wake.set()

    def _port_rule(self, task: Task, container: Container) -> PortRule:
        published = list(task.mesh_endpoint_ports or ())
        published += [port for service in self._rows.services.values() if service.id == task.service_id for port in service.ports]
        spec = task.spec.container_spec
        return port_rule(published, container.tcp_ports, own_command=not (spec and (spec.command or spec.args)))


def _is_over(task: Task) -> bool:
    return terminal(task.status.state) or STATE_ORDER[task.desired_state] > STATE_ORDER[TaskState.COMPLETE]
