"""The simulated cluster: machines, one etcd, a network; what users and accidents do to it; and when it has come to rest.

Laws that hold for every single write are checked with it (`laws`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from random import Random

import msgspec

from orchestrator.control.defaults import replicas
from orchestrator.control.jobs import first_status
from orchestrator.control.slots import dirty, live, mode_of
from orchestrator.control.update import updated
from orchestrator.model import (
    IPAM,
    Cluster,
    ManagerStatus,
    Node,
    NodeSpec,
    NodeStatus,
    Service,
    ServiceSpec,
    Task,
    TaskState,
    terminal,
)
from orchestrator.model import (
    Network as StoredNetwork,
)
from orchestrator.store.base import Delete, Event, Put
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.sim import START, check_laws

from . import laws
from .etcd import Etcd
from .machine import Machine
from .network import Network

# what happens to the cluster, told in the log between what it does itself
STORY = "STORY"


class Complaint(logging.Handler):
    """An error in the log is a bug: nothing that a simulation does may lead to one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.first is None:
            self.first = self.format(record)


class SimCluster:
    def __init__(self, seed: str, *, managers: int = 3, workers: int = 2) -> None:
        self.random = Random(seed)
        self.network = Network(Random(f"{seed}/network"))
        self.etcd = Etcd(Random(f"{seed}/etcd"), self._has_quorum)
        self.etcd.watchers.append(self._written)
        self.machines = {
            f"n{number}": Machine(f"n{number}", self, manager=number <= managers, seed=seed) for number in range(1, managers + workers + 1)
        }
        self.managers = [machine for machine in self.machines.values() if machine.is_manager]
        self.ids = 0
        self._election: asyncio.Task[None] | None = None
        self.changed_at_s = 0.0
        self._newest: list[Event] = []
        self._broken = ""
        self.history: list[str] = []
        self.complaint = Complaint()

    def _begin(self) -> None:
        cluster = Cluster(id="cluster", default_addr_pool=["10.0.0.0/8"], subnet_size=20)
        nodes = [
            Node(
                id=machine.name,
                created_at=START,
                spec=NodeSpec(role="manager" if machine.is_manager else "worker"),
                description=machine.description,
                status=NodeStatus(state="ready", addr=machine.description.mesh_data_addr),
                manager_status=ManagerStatus(addr=machine.addr) if machine.is_manager else None,
            )
            for machine in self.machines.values()
        ]
        networks = [StoredNetwork(id="net", name="net", ipam=IPAM()), StoredNetwork(id="ing", name="ingress", ingress=True, ipam=IPAM())]
        self.etcd.commit([Put(cluster), *map(Put, networks), *map(Put, nodes)])

    # ---- what machines ask -----------------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        self.ids += 1
        return f"t{self.ids:05}"

    def _has_quorum(self, name: str) -> bool:
        mates = [other for other in self.managers if other.up and self.network.reachable(name, other.name)]
        return self.machines[name] in mates and len(mates) > len(self.managers) // 2

    def about_to_stop(self, machine: Machine, task_id: str) -> None:
        try:
            laws.check_stop(self.truth, task_id)
        except AssertionError as error:
            self._break(error)

    def _break(self, error: AssertionError) -> None:
        """Told by `check`, and not into the face of who wrote."""
        if not self._broken:
            self._broken = str(error)
            self.note(f"law broken: {error}")

    # ---- life ------------------------------------------------------------------------------------------------------------------

    @property
    def truth(self) -> Snapshot:
        return self.etcd.truth

    async def start(self) -> None:
        logging.getLogger("orchestrator").addHandler(self.complaint)
        self._begin()
        for machine in self.machines.values():
            self.start_machine(machine)
        self._election = asyncio.create_task(self.etcd.elect_forever())

    async def stop(self) -> None:
        logging.getLogger("orchestrator").removeHandler(self.complaint)
        if self._election is not None:
            self._election.cancel()
        for machine in self.machines.values():
            if machine.up:
                await machine.kill()

    def start_machine(self, machine: Machine) -> None:
        machine.start([other.addr for other in self.managers])

    def _written(self, before: Snapshot, after: Snapshot, events: list[Event]) -> None:
        try:
            check_laws(before, after, self.managers[0].now())
            laws.check_release(self, after, events)
        except AssertionError as error:
            self._break(error)
        # renewals of the leadership go on for ever
        if any(event.kind != "leader" for event in events):
            self.changed_at_s = asyncio.get_running_loop().time()
            self._newest = events

    def check(self) -> None:
        """What must hold at any time, besides what each write is checked for."""
        if self._broken:
            raise AssertionError(self._broken)
        if self.complaint.first is not None:
            raise AssertionError(f"an error was logged: {self.complaint.first}")
        for machine in self.machines.values():
            machine.raise_if_crashed()

    def note(self, text: str) -> None:
        self.history.append(f"{asyncio.get_running_loop().time():9.3f} {text}")
        logging.getLogger(STORY).info("%s", text)

    # ---- what users do -----------------------------------------------------------------------------------------------------------

    def user_now(self) -> datetime:
        """The clock of the manager that a request goes to."""
        return self.random.choice(self.managers).now()

    def create(self, spec: ServiceSpec) -> None:
        now = self.user_now()
        service = Service(
            id=f"s-{spec.name}-{self.new_id()}", created_at=now, updated_at=now, spec=spec, job_status=first_status(spec, now)
        )
        self.etcd.commit([Put(service)])

    def change(self, service: Service, spec: ServiceSpec) -> None:
        self.etcd.commit([Put(updated(service, spec, self.user_now()))])

    def remove(self, service: Service) -> None:
        self.etcd.commit([Delete("service", service.id, service.version.index)])

    def availability(self, node: Node, value: str) -> None:
        self.etcd.commit([Put(msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, availability=value)))])

    # ---- healing and rest ----------------------------------------------------------------------------------------------------------

    async def heal(self) -> None:
        self.network.groups.clear()
        self.network.off.clear()
        self.network.slow_s = self.etcd.slow_s = self.etcd.lost_answers = 0.0
        self.network.changed()
        for machine in self.machines.values():
            machine.faults = type(machine.faults)()
            if not machine.up:
                self.start_machine(machine)

    async def until(self, true: Callable[[], object], limit_s: float) -> bool:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + limit_s
        while not true():
            self.check()
            if loop.time() > end_s:
                return False
            await asyncio.sleep(0.25)
        return True

    def lacks(self) -> str:
        """Why it has not converged; "" = it has."""
        for service in self.truth.all(Service):
            if lacks := self._service_lacks(service):
                return lacks
        return laws.differences(self)

    def _service_lacks(self, service: Service) -> str:
        tasks = [task for task in self.truth.tasks_of_service(service.id) if not terminal(task.status.state)]
        nodes = [node for node in self.truth.all(Node) if node.spec.availability != "drain"]
        if service.job_status is not None:
            return self._job_lacks(service, tasks, {node.id for node in nodes})
        expected = len(nodes) if mode_of(service) == "global" else replicas(service)
        if any(not live(task) or task.status.state is not TaskState.RUNNING for task in tasks) or len(tasks) != expected:
            states = [f"{task.id} {task.status.state}/{task.desired_state} on {task.node_id} {task.status.err}" for task in tasks]
            return f"{service.id} has {states}, not {expected} running"
        if len({task.slot or task.node_id for task in tasks}) != expected:
            return f"{service.id} has two tasks in a slot"
        if any(dirty(task, service) for task in tasks):
            return f"{service.id} has tasks of an older spec"
        return ""

    def _job_lacks(self, service: Service, living: list[Task], nodes: set[str]) -> str:
        if living:
            return f"{service.id} still has {[(task.id, task.status.state, task.desired_state) for task in living]}"
        assert service.job_status is not None
        iteration = service.job_status.job_iteration
        done = [task for task in self.truth.tasks_of_service(service.id) if task.status.state is TaskState.COMPLETE]
        done = [task for task in done if task.job_iteration == iteration]
        job = service.spec.mode.replicated_job
        if job is None:
            missing = sorted(nodes - {task.node_id for task in done})
            return f"{service.id} has not run on {missing}" if missing else ""
        slots = {task.slot for task in done}
        return "" if len(slots) == job.total_completions else f"{service.id} has completed {sorted(slots)} of {job.total_completions}"

    def newest(self) -> str:
        return str([(event.old, event.new) for event in self._newest])

    def rests_since_s(self) -> float:
        return asyncio.get_running_loop().time() - self.changed_at_s
