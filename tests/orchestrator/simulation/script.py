"""One run: a cluster, a phase of users and accidents, then healing, convergence and rest. All of it follows from the seed.

Pure but for the virtual loop.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from random import Random

import msgspec

from orchestrator.control.defaults import replicas
from orchestrator.control.slots import mode_of
from orchestrator.model import Node, PortConfig, RestartPolicy, Service, UpdateConfig
from tests.orchestrator.control.sim import job, scaled, seconds, spec, with_image

from .cluster import SimCluster
from .loop import VirtualLoop
from .machine import Machine, clock_jump

# many short runs find more than few long ones, but not everything
FAULTS_FOR_S = (12.0, 12.0, 25.0, 60.0)
CONVERGES_WITHIN_S = 600.0
RESTS_FOR_S = 60.0
MOST_SERVICES = 4


@dataclass(slots=True)
class Outcome:
    """failure "" = all laws held and it came to rest. trace: equal for equal runs."""

    seed: str
    failure: str
    trace: str
    history: list[str]


def run(seed: str) -> Outcome:
    """The same seed, the same run: in one process or in two (with the same PYTHONHASHSEED)."""
    gc.collect()
    gc.disable()
    loop = VirtualLoop()
    shape = Random(f"{seed}/shape")
    cluster = SimCluster(seed, managers=shape.choice((1, 3, 3)), workers=shape.choice((1, 2)))
    failure = ""
    try:
        loop.run_until_complete(_Script(seed, cluster, shape.choice(FAULTS_FOR_S)).run())
    except AssertionError as error:
        failure = str(error) or "an assertion failed"
    except Exception:
        failure = traceback.format_exc()
    finally:
        loop.run_until_complete(cluster.stop())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        gc.enable()
    trace = f"{loop.time():.6f} revision {cluster.truth.revision} ids {cluster.ids}"
    return Outcome(seed, failure, trace, cluster.history)


class _Script:
    def __init__(self, seed: str, cluster: SimCluster, faults_for_s: float) -> None:
        self.random = Random(f"{seed}/script")
        self.cluster = cluster
        self._faults_for_s = faults_for_s
        self._numbers = itertools.count(1)
        self._later: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            await self._forget_later()

    async def _forget_later(self) -> None:
        for task in self._later:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)

    async def _run(self) -> None:
        cluster, random = self.cluster, self.random
        await cluster.start()
        for _ in range(2):
            self._create()
        loop = asyncio.get_running_loop()
        # some runs begin in peace: what breaks then breaks a cluster in full service
        await asyncio.sleep(random.choice((0.0, 5.0, 20.0)))
        end_s = loop.time() + self._faults_for_s
        while loop.time() < end_s:
            cluster.check()
            action = random.choices(self._actions, self._weights)[0]
            await action(self)
            await asyncio.sleep(random.choice((0.0, 0.05, 0.3, 1.0, 4.0)) * random.random())
        await self._forget_later()
        cluster.note("heal")
        await cluster.heal()
        self._settle_wishes()
        if not await cluster.until(lambda: not cluster.lacks(), CONVERGES_WITHIN_S):
            raise AssertionError(f"not converged after {CONVERGES_WITHIN_S:g} s: {cluster.lacks()}")
        if not await cluster.until(lambda: cluster.rests_since_s() > RESTS_FOR_S, 10 * RESTS_FOR_S):
            raise AssertionError(f"it finds no rest: {cluster.newest()}")
        if lacks := cluster.lacks():
            raise AssertionError(f"it converged and went away from it: {lacks}")

    # ---- users -----------------------------------------------------------------------------------------------------------------

    def _services(self) -> list[Service]:
        return sorted(self.cluster.truth.all(Service), key=lambda service: service.id)

    def _create(self) -> None:
        if len(self._services()) >= MOST_SERVICES:
            return
        if self.random.random() < 0.2:
            self._create_job()
            return
        random = self.random
        number = next(self._numbers)
        order = random.choice(("stop-first", "start-first"))
        action = random.choice(("pause", "rollback", "continue"))
        update = UpdateConfig(parallelism=random.choice((0, 1, 2)), order=order, failure_action=action, monitor=seconds(2))
        ports = [PortConfig(target_port=80, published_port=8000 + number)] if random.random() < 0.4 else None
        made = spec(
            f"web{number}",
            random.choice((None, 1, 2, 3, 5)),
            "app:1",
            update=update,
            restart=RestartPolicy(delay=seconds(random.choice((0, 1, 5)))),
            ports=ports,
        )
        self.cluster.note(f"create {made.name} {made.mode} {order} {action}")
        self.cluster.create(made)

    def _create_job(self) -> None:
        total = self.random.choice((None, 1, 3, 5))
        restart = RestartPolicy(condition="on-failure", delay=seconds(self.random.choice((1, 5))))
        made = job(total, self.random.choice((1, 2)), image="job:1", restart=restart)
        made = msgspec.structs.replace(made, name=f"job{next(self._numbers)}")
        self.cluster.note(f"create {made.name} {made.mode}")
        self.cluster.create(made)

    def _settle_wishes(self) -> None:
        """What users want in the end can be had: images that work, nodes that are active but for one."""
        for service in self._services():
            image = "job:1" if service.job_status is not None else self.random.choice(("app:1", "app:2"))
            wish = with_image(service.spec, image)
            if service.spec.mode.replicated is not None:
                wish = scaled(wish, max(1, replicas(service)))
            self.cluster.note(f"wish {service.id} {image}")
            self.cluster.change(service, wish)
        drained = self.random.choice([*self.cluster.machines, ""])
        for node in list(self.cluster.truth.all(Node)):
            self.cluster.availability(node, "drain" if node.id == drained else "active")

    async def create(self) -> None:
        self._create()

    async def scale(self) -> None:
        for service in self._some_service():
            if mode_of(service) == "replicated":
                count = self.random.randint(0, 6)
                self.cluster.note(f"scale {service.id} {count}")
                self.cluster.change(service, scaled(service.spec, count))

    async def update(self) -> None:
        for service in self._some_service():
            image = self.random.choice(("app:1", "app:2", "app:2", "crash:1", "missing:1"))
            if service.job_status is not None:
                image = self.random.choice(("job:1", "crash:1", "missing:1"))
            self.cluster.note(f"update {service.id} {image}")
            self.cluster.change(service, with_image(service.spec, image))

    async def remove(self) -> None:
        for service in self._some_service():
            self.cluster.note(f"remove {service.id}")
            self.cluster.remove(service)

    async def availability(self) -> None:
        node = self.random.choice(sorted(self.cluster.truth.all(Node), key=lambda node: node.id))
        value = self.random.choice(("active", "active", "pause", "drain"))
        self.cluster.note(f"availability {node.id} {value}")
        self.cluster.availability(node, value)

    def _some_service(self) -> list[Service]:
        services = self._services()
        return [self.random.choice(services)] if services else []

    # ---- accidents --------------------------------------------------------------------------------------------------------------

    def _machine(self) -> Machine:
        return self.random.choice(list(self.cluster.machines.values()))

    def _after(self, least_s: float, most_s: float, work: Callable[[], Awaitable[None]]) -> None:
        async def later() -> None:
            await asyncio.sleep(least_s + (most_s - least_s) * self.random.random() ** 3)
            await work()

        task = asyncio.create_task(later())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def kill(self) -> None:
        machine = self._machine()
        if machine.up:
            machine.raise_if_crashed()
            self.cluster.note(f"kill {machine.name}")
            await machine.kill()
            self._start_later(machine, 5.0)

    async def power_off(self) -> None:
        machine = self._machine()
        if machine.up:
            self.cluster.note(f"power off {machine.name}")
            await machine.power_off()
            self._start_later(machine, 60.0)

    def _start_later(self, machine: Machine, most_s: float) -> None:
        async def start() -> None:
            self.cluster.network.off.discard(machine.name)
            self.cluster.network.changed()
            if not machine.up:
                self.cluster.note(f"start {machine.name}")
                self.cluster.start_machine(machine)

        self._after(0.1, most_s, start)

    async def partition(self) -> None:
        names = sorted(self.cluster.machines)
        apart = self.random.sample(names, min(self.random.choice((1, 1, 1, 2, 3)), len(names)))
        self.cluster.note(f"partition {apart}")
        for name in apart:
            self.cluster.network.groups[name] = 1
        self.cluster.network.changed()

        async def join() -> None:
            self.cluster.note(f"joined {apart}")
            for name in apart:
                self.cluster.network.groups[name] = 0
            self.cluster.network.changed()

        self._after(0.5, 60.0, join)

    async def reset(self) -> None:
        machine = self._machine()
        self.cluster.note(f"connections lost {machine.name}")
        self.cluster.network.reset(machine.name)

    async def engine(self) -> None:
        machine, how = self._machine(), self.random.choice(("engine_down", "engine_hangs", "kernel_fails"))
        self._fault(machine, how, True, False, 30.0)

    async def lost_answers(self) -> None:
        self._fault(self._machine(), "engine_answers_lost", 0.3, 0.0, 20.0)

    async def slow_pulls(self) -> None:
        machine = self._machine()
        machine.pulled.clear()
        self._fault(machine, "slow_pull_s", 40.0, 0.0, 30.0)

    async def clock(self) -> None:
        self._fault(self._machine(), "clock_off", clock_jump(self.random), timedelta(), 60.0)

    def _fault(self, machine: Machine, name: str, bad: object, good: object, most_s: float) -> None:
        self.cluster.note(f"fault {machine.name} {name} {bad}")
        setattr(machine.faults, name, bad)

        async def mend() -> None:
            self.cluster.note(f"mended {machine.name} {name}")
            setattr(machine.faults, name, good)

        self._after(0.5, most_s, mend)

    async def container_dies(self) -> None:
        machine = self._machine()
        if running := sorted(machine.serving()):
            task_id = self.random.choice(running)
            self.cluster.note(f"container {task_id} dies")
            machine.end_container(task_id, self.random.choice((0, 1, 137)))

    async def etcd(self) -> None:
        etcd, random = self.cluster.etcd, self.random
        match random.choice(("leader", "lost", "slow", "network")):
            case "leader":
                etcd.raft_leader = ""
            case "lost":
                etcd.lost_answers = random.choice((0.0, 0.2))
            case "slow":
                etcd.slow_s = random.choice((0.0, 0.3))
            case "network":
                self.cluster.network.slow_s = random.choice((0.0, 0.5))
        self.cluster.note(
            f"etcd leader={etcd.raft_leader} lost={etcd.lost_answers} slow={etcd.slow_s} network={self.cluster.network.slow_s}"
        )

    async def nothing(self) -> None:
        await asyncio.sleep(self.random.uniform(1.0, 8.0))

    _actions = (create, scale, update, remove, availability, kill, power_off, partition, reset, engine, lost_answers, slow_pulls, clock,
                container_dies, etcd, nothing)  # fmt: skip
    _weights = (4, 5, 5, 1, 3, 3, 1, 2, 3, 2, 1, 1, 1, 6, 2, 8)
