"""Managers and agents together, over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import pytest

from orchestrator.dispatcher.messages import (
    PROTOCOL,
    Complete,
    FromAgent,
    FromManager,
    Heard,
    Heartbeat,
    Hello,
    Refused,
    Row,
    Statuses,
    StatusesStored,
    TaskReport,
    skew,
)
from orchestrator.dispatcher.session import AgentSession
from orchestrator.errors import ConfigError, Conflict
from orchestrator.model import (
    STATE_ORDER,
    ContainerSpec,
    ContainerStatus,
    NodeAttachment,
    NodeDescription,
    NodeStatus,
    ResourceObject,
    Secret,
    SecretReference,
    Service,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
    VirtualIP,
)
from orchestrator.security.peer import Peer
from orchestrator.store.base import Delete, Put

from .lab import Agent, Lab, Manager, new_task, until


def report(task_id: str, state: TaskState, message: str = "") -> TaskReport:
    return TaskReport(task_id=task_id, status=TaskStatus(timestamp=datetime.now(UTC), state=state, message=message))


async def test_hello_makes_the_node_ready_and_the_end_of_the_session_is_noted(lab: Lab) -> None:
    await lab.manager()
    agent = await lab.agent("w1")
    await until(lambda: lab.node("w1").status.state == "ready")
    node = lab.node("w1")
    assert (node.status.addr, node.description.hostname) == ("127.0.0.1", "w1")
    assert node.description.tls_info == lab.cluster.cluster.tls_info
    assert node.mesh_disconnected_since is None
    await agent.stop()
    await until(lambda: lab.node("w1").mesh_disconnected_since is not None)
    assert lab.node("w1").status.state == "ready"
    again = await lab.agent("w1", join=False)
    await until(lambda: lab.node("w1").mesh_disconnected_since is None)
    assert again.completes == 1


async def test_these_tests_run_under_the_daemons_loop() -> None:
    assert type(asyncio.get_running_loop()).__module__ == "uvloop"


async def test_manager_status_is_kept(lab: Lab) -> None:
    manager = await lab.manager()
    before = lab.node("m1").manager_status
    await lab.agent("m1", join=False)
    await until(lambda: lab.node("m1").status.state == "ready")
    assert lab.node("m1").manager_status == before
    assert manager.dispatcher.connected == {"m1"}


async def test_complete_then_deltas(lab: Lab) -> None:
    await lab.manager()
    await lab.network()
    agent = await lab.agent("w1")
    await until(lambda: agent.completes == 1)
    await lab.attach("w1")
    await lab.assign("t1", "w1")
    await until(lambda: lab.in_sync(agent) and "task/t1" in agent.rows)
    await lab.change("t1", desired_state=TaskState.SHUTDOWN)
    await until(lambda: lab.in_sync(agent))
    await lab.store.commit([Delete("task", "t1")])
    await until(lambda: lab.in_sync(agent) and "task/t1" not in agent.rows)
    assert agent.completes == 1
    assert agent.deltas >= 3


async def test_others_tasks_and_networks_stay_unknown(lab: Lab) -> None:
    await lab.manager()
    await lab.network("net1", 4097)
    await lab.network("net2", 4098)
    one, two = await lab.agent("w1"), await lab.agent("w2")
    await lab.attach("w1", "net1")
    await lab.attach("w2", "net2")
    await lab.assign("t1", "w1", ("net1",))
    await lab.assign("t2", "w2", ("net2",))
    await until(lambda: lab.in_sync(one) and lab.in_sync(two) and "task/t1" in one.rows and "task/t2" in two.rows)
    assert not [key for key in one.rows if "t2" in key or "net2" in key]
    assert not [key for key in two.rows if "t1" in key or "net1" in key]


def random_change(lab: Lab, rng: random.Random, nodes: list[str]) -> list[Put | Delete]:
    """One step of a made-up cluster: tasks come, move forward, go; nodes join networks and leave them; services and secrets change."""
    snapshot = lab.store.snapshot()
    tasks = sorted(snapshot.all(Task), key=lambda task: task.id)
    match rng.randrange(7):
        case 0 | 1:
            networks = tuple(rng.sample(["net1", "net2", "net3"], rng.randint(0, 2)))
            task = new_task(
                f"t{rng.randrange(10**6)}", rng.choice(nodes), networks, f"10.0.{rng.randrange(250)}.{rng.randrange(2, 250)}/16"
            )
            return [] if snapshot.task(task.id) else [Put(task)]
        case 2 if tasks:
            task = rng.choice(tasks)
            further = [state for state in TaskState if STATE_ORDER[state] > STATE_ORDER[task.status.state]]
            if not further:
                return []
            return [Put(msgspec.structs.replace(task, status=TaskStatus(state=rng.choice(further[:3]))))]
        case 3 if tasks:
            task = rng.choice(tasks)
            return [Delete("task", task.id, task.version.index)]
        case 4:
            node = lab.node(rng.choice(nodes))
            wanted = rng.sample(["net1", "net2", "net3"], rng.randint(0, 3))
            attachments = [
                NodeAttachment(network_id=id, addr=f"10.9.{nodes.index(node.id)}.{rng.randrange(250)}/16") for id in sorted(wanted)
            ]
            return [Put(msgspec.structs.replace(node, mesh_attachments=attachments))]
        case 5:
            service = snapshot.service("svc1") or Service(id="svc1")
            vips = [VirtualIP(network_id=rng.choice(["net1", "net2"]), addr=f"10.0.0.{rng.randrange(2, 250)}/16")]
            endpoint = msgspec.structs.replace(service.endpoint, virtual_ips=vips)
            return [Put(msgspec.structs.replace(service, spec=ServiceSpec(name=f"web{rng.randrange(3)}"), endpoint=endpoint))]
        case 6:
            secret = snapshot.secret("sec1") or Secret(id="sec1")
            return [Put(msgspec.structs.replace(secret, mesh_ciphertext=rng.randbytes(8)))]
    return []


@pytest.mark.parametrize("seed", range(6))
async def test_after_random_changes_every_agent_has_exactly_its_assignment(lab: Lab, seed: int) -> None:
    """The whole path against the definition, with agents that are slow, that lose their connection, and a leader that changes."""
    rng = random.Random(seed)
    managers = [await lab.manager("m1"), await lab.manager("m2", lead=False)]
    nodes = ["w1", "w2", "w3"]
    for number, id in enumerate(["net1", "net2", "net3"]):
        await lab.network(id, 4097 + number)
    agents = [await lab.agent(node) for node in nodes]
    leader = 0
    for step in range(150):
        changes = random_change(lab, rng, nodes)
        if changes:
            try:
                await lab.store.commit(changes)
            except Conflict:
                continue
        if rng.random() < 0.1:
            await asyncio.sleep(rng.random() * 0.03)
        if rng.random() < 0.05:
            slow = rng.choice(agents)
            (slow.gate.clear if slow.gate.is_set() else slow.gate.set)()
        if step == 75:
            await lab.depose(managers[leader])
            leader = 1 - leader
            await lab.lead(managers[leader])
    for agent in agents:
        agent.gate.set()
    for agent in agents:
        await until(lambda agent=agent: lab.in_sync(agent) and agent.session.connected_to, f"{agent.node_id} in sync, seed {seed}")  # type: ignore[misc]
    await until(lambda: all(managers[leader].dispatcher.acks.applied(node) == lab.store.snapshot().revision for node in nodes))


async def test_an_agent_that_comes_back_is_sent_the_difference(lab: Lab) -> None:
    """To the same leader or to another; and it is known to show it as soon as it says so."""
    first, second = await lab.manager("m1"), await lab.manager("m2", lead=False)
    await lab.network()
    await lab.cluster.node("w2")
    agent = await lab.agent("w1")
    await lab.attach("w1")
    for number in range(100):
        await lab.assign(f"t{number}", "w1" if number < 10 else "w2", addr=f"10.0.1.{number}/24")
    await until(lambda: lab.in_sync(agent) and len(agent.rows) > 100)
    agent.put.clear()
    await lab.depose(first)
    await lab.change("t5", labels={"changed": "meanwhile"})
    await lab.store.commit([Delete("task", "t50")])
    await lab.lead(second)
    await until(lambda: second.dispatcher.connected and lab.in_sync(agent))
    assert "task/t5" in agent.put and len(agent.put) < 40, agent.put
    assert agent.completes == 1
    await until(lambda: second.dispatcher.acks.applied("w1") == lab.store.snapshot().revision)
    agent.put.clear()
    await lab.depose(second)
    await lab.lead(first)
    await until(lambda: first.dispatcher.acks.applied("w1") == lab.store.snapshot().revision)
    assert (agent.put, agent.completes) == ([], 1)


@pytest.mark.parametrize("token", [bytes(16), bytes(range(128)), bytes(16 * 256), b"odd", bytes(16 * 3)])
async def test_a_token_that_is_not_true_costs_its_agent_what_it_has(lab: Lab, token: bytes) -> None:
    """And nobody else anything: it is sent all that it may know, and nothing more."""
    manager = await lab.manager()
    await lab.cluster.node("w1")
    await lab.cluster.node("w2")
    await lab.assign("t1", "w1", ())
    await lab.assign("t2", "w2", ())
    wire = Wire()
    peer = Peer(node_id="w1", role="worker", cluster_id="c", address="192.0.2.7", expires_unix_s=4e9)
    session = asyncio.create_task(manager.gateway.converse(wire, peer))
    await until(lambda: manager.dispatcher._parts and manager.dispatcher._parts.snapshot.task("t2"))
    wire.say(Hello(description=NodeDescription(hostname="w1"), version=PROTOCOL, have=token))
    await until(lambda: wire.sent)
    complete = wire.sent[0]
    assert isinstance(complete, Complete)
    assert {msgspec.msgpack.decode(row, type=Row).key for row in complete.rows} == {"task/t1"}
    session.cancel()
    await asyncio.gather(session, return_exceptions=True)


# ---- acknowledgements --------------------------------------------------------------------------------------------------------------


async def draining_lab(lab: Lab) -> tuple[Manager, list[Agent]]:
    manager = await lab.manager()
    await lab.network()
    agents = [await lab.agent(id) for id in ("w1", "w2", "w3")]
    await lab.attach("w1", addr="10.0.1.251/24")
    await lab.attach("w2", addr="10.0.1.252/24")
    await lab.assign("t1", "w1")
    await lab.change("t1", status=TaskStatus(state=TaskState.RUNNING))
    await until(lambda: all(lab.in_sync(agent) for agent in agents))
    await until(lambda: all(manager.dispatcher.acks.applied(id) == lab.store.snapshot().revision for id in ("w1", "w2", "w3")))
    return manager, agents


async def test_applied_follows_the_acknowledgement(lab: Lab) -> None:
    manager, agents = await draining_lab(lab)
    slow = agents[1]
    slow.acknowledge = False
    before = lab.store.snapshot().revision
    task = await lab.change("t1", desired_state=TaskState.SHUTDOWN, mesh_draining_since=datetime.now(UTC))
    drained = task.version.index
    acks = manager.dispatcher.acks
    await until(lambda: min(acks.applied("w1") or 0, acks.applied("w3") or 0) >= drained)
    await until(lambda: lab.in_sync(slow))
    assert before <= (acks.applied("w2") or 0) < drained
    assert acks.open("t1") is None
    assert acks.applied("nobody") is None
    pokes = len(manager.pokes)
    slow.session.applied(slow.revision, {"t1": 2})
    await until(lambda: (acks.applied("w2") or 0) >= drained)
    assert acks.open("t1") == 2
    assert len(manager.pokes) > pokes
    slow.session.applied(slow.revision, {"t1": 1, "other": 5})
    await until(lambda: acks.open("t1") == 1)
    slow.session.applied(slow.revision, {})
    await until(lambda: acks.open("t1") == 0)


async def test_a_node_without_the_network_does_not_count(lab: Lab) -> None:
    manager, agents = await draining_lab(lab)
    agents[2].session.applied(lab.store.snapshot().revision, {"t1": 7})
    await lab.change("t1", desired_state=TaskState.SHUTDOWN)
    await until(lambda: manager.dispatcher.acks.open("t1") == 0)


async def test_an_agent_that_left_does_not_hold_a_drain_up(lab: Lab) -> None:
    manager, agents = await draining_lab(lab)
    agents[1].acknowledge = False
    await lab.change("t1", desired_state=TaskState.SHUTDOWN)
    await until(lambda: manager.dispatcher.acks.open("t1") is None)
    await agents[1].stop()
    await until(lambda: manager.dispatcher.acks.applied("w2") is None)
    await until(lambda: manager.dispatcher.acks.open("t1") == 0)


# ---- statuses ------------------------------------------------------------------------------------------------------------------------


async def test_statuses_reach_the_store_and_are_confirmed(lab: Lab) -> None:
    await lab.manager()
    agent = await lab.agent("w1")
    await lab.assign("t1", "w1", ())
    running = TaskStatus(state=TaskState.RUNNING, container_status=ContainerStatus(container_id="c1", pid=7))
    agent.session.report([report("t1", TaskState.ACCEPTED)])
    agent.session.report([report("t1", TaskState.PREPARING), TaskReport(task_id="t1", status=running)])
    await until(lambda: lab.task("t1").status.state is TaskState.RUNNING and agent.session.unstored == 0)
    assert lab.task("t1").status.container_status == running.container_status
    agent.session.report([report("t1", TaskState.PREPARING)])
    await until(lambda: agent.session.unstored == 0)
    assert lab.task("t1").status.state is TaskState.RUNNING


async def test_reports_without_a_leader_are_kept_and_stored_once(lab: Lab) -> None:
    first = await lab.manager("m1", lead=False)
    second = await lab.manager("m2", lead=False)
    agent = await lab.agent("w1")
    await lab.assign("t1", "w1", ())
    agent.session.report([report("t1", TaskState.ACCEPTED), report("t2", TaskState.RUNNING)])
    agent.session.report([report("t1", TaskState.FAILED, "boom")])
    assert agent.session.unstored == 2
    await lab.lead(second)
    await until(lambda: lab.task("t1").status.state is TaskState.FAILED and agent.session.unstored == 0)
    stored = lab.task("t1").version
    await lab.depose(second)
    await lab.lead(first)
    await until(lambda: first.dispatcher.connected)
    agent.session.report([report("t1", TaskState.FAILED, "boom")])
    await until(lambda: agent.session.unstored == 0)
    assert lab.task("t1").version == stored


async def test_many_reports_survive_a_leader_lost_in_the_middle(lab: Lab) -> None:
    first, second = await lab.manager("m1"), await lab.manager("m2", lead=False)
    agent = await lab.agent("w1")
    tasks = [f"t{number}" for number in range(1200)]
    for start in range(0, len(tasks), 100):
        await lab.put(*(new_task(id, "w1", ()) for id in tasks[start : start + 100]))
    await until(lambda: len(agent.rows) == len(tasks))
    agent.session.report([report(id, TaskState.RUNNING) for id in tasks])
    await until(lambda: sum(task.status.state is TaskState.RUNNING for task in lab.store.snapshot().all(Task)) > 60)
    await lab.depose(first)
    await lab.lead(second)
    await until(lambda: agent.session.unstored == 0)
    assert all(task.status.state is TaskState.RUNNING for task in lab.store.snapshot().all(Task))


async def test_a_hostile_agent_speaks_only_for_itself(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    await lab.manager()
    hostile, honest = await lab.agent("w1"), await lab.agent("w2")
    await lab.assign("mine", "w1", ())
    await lab.assign("theirs", "w2", ())
    lies = [report("theirs", TaskState.FAILED, "gotcha"), report("mine", TaskState.ORPHANED), report("none", TaskState.RUNNING)]
    hostile.session.report(lies)
    await until(lambda: hostile.session.unstored == 0)
    assert lab.task("theirs").status.state is TaskState.ASSIGNED
    assert lab.task("mine").status.state is TaskState.ASSIGNED
    assert "belongs to another node" in caplog.text
    assert 'does not decide the state "orphaned"' in caplog.text
    honest.session.report([report("theirs", TaskState.RUNNING, "x" * 10_000)])
    await until(lambda: lab.task("theirs").status.state is TaskState.RUNNING)
    assert len(lab.task("theirs").status.message) == 2048


async def test_a_stale_fence_writes_nothing(lab: Lab) -> None:
    """A leader that was replaced without noticing: its agent's reports stay unstored until it finds the new one."""
    first, second = await lab.manager("m1"), await lab.manager("m2", lead=False)
    agent = await lab.agent("w1", [first])
    await until(lambda: lab.node("w1").status.state == "ready")
    await lab.assign("t1", "w1", ())
    await until(lambda: "task/t1" in agent.rows)
    await lab.lead(second)
    agent.session.report([report("t1", TaskState.RUNNING)])
    await asyncio.sleep(0.1)
    assert lab.task("t1").status.state is TaskState.ASSIGNED
    assert agent.session.unstored == 1
    await lab.depose(first)
    await until(lambda: lab.task("t1").status.state is TaskState.RUNNING and agent.session.unstored == 0)
    assert second.dispatcher.connected == {"w1"}


# ---- sessions ------------------------------------------------------------------------------------------------------------------------


async def test_the_managers_list_follows_the_store(lab: Lab) -> None:
    await lab.manager("m1")
    agent = await lab.agent("w1")
    await until(lambda: agent.completes == 1)
    second = await lab.manager("m2", lead=False)
    await until(lambda: second.addr in agent.session.managers)
    assert agent.completes == 1


async def test_a_newer_session_of_a_node_takes_over(lab: Lab) -> None:
    manager = await lab.manager()
    old = await lab.agent("w1")
    await until(lambda: old.completes == 1)
    new = await lab.agent("w1", join=False)
    await until(lambda: new.completes == 1)
    await until(lambda: not old.session.connected_to)
    await old.stop()
    await lab.assign("t1", "w1", ())
    await until(lambda: lab.in_sync(new) and "task/t1" in new.rows)
    assert manager.dispatcher.connected == {"w1"}
    assert lab.node("w1").mesh_disconnected_since is None


async def test_a_removed_node_is_cut_off(lab: Lab) -> None:
    manager = await lab.manager()
    await lab.network()
    agent = await lab.agent("w1")
    await lab.attach("w1")
    await until(lambda: "network/net1" in agent.rows and lab.in_sync(agent))
    known = dict(agent.rows)
    await lab.store.commit([Delete("node", "w1")])
    await until(lambda: not agent.session.connected_to)
    assert manager.dispatcher.connected == frozenset()
    await lab.assign("t1", "w1")
    completes = agent.completes
    await asyncio.sleep(0.5)
    assert (agent.rows, agent.completes) == (known, completes)
    assert lab.store.snapshot().node("w1") is None


async def test_a_silent_agent_is_lost_after_three_heartbeats(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = await lab.manager(heartbeat_s=0.1)
    agent = await lab.agent("w1")
    await until(lambda: agent.completes == 1)
    await asyncio.sleep(0.6)
    assert manager.dispatcher.connected == {"w1"}
    await agent.stop()
    monkeypatch.setattr(type(agent.session), "_send", lambda self, ws, heartbeat_s: asyncio.Event().wait())
    mute = await lab.agent("w1", join=False)
    await until(lambda: mute.completes == 1)
    await until(lambda: lab.node("w1").mesh_disconnected_since is not None)


async def test_a_new_leader_marks_who_does_not_come_back(lab: Lab) -> None:
    manager = await lab.manager(lead=False)
    for name in ("w1", "w2", "w3"):
        await lab.cluster.node(name)
    for name in ("w1", "w2"):
        await lab.put(msgspec.structs.replace(lab.node(name), status=NodeStatus(state="ready")))
    await lab.agent("w1", join=False)
    await lab.lead(manager)
    await until(lambda: lab.node("w2").mesh_disconnected_since is not None)
    assert lab.node("w1").mesh_disconnected_since is None
    assert lab.node("w3").mesh_disconnected_since is None


async def stuffed(lab: Lab, slow: Agent, quick: Agent) -> None:
    """The connection of `slow`, a held agent on w1, is stuffed while 600 changes of 20 KB pass; `quick`, on w2, is served meanwhile."""
    for number in range(600):
        await lab.change("t1", labels={"filler": f"{number}" + "x" * 20_000})
        if number % 20 == 0:
            await asyncio.sleep(0.025)
    await lab.assign("t2", "w2", ())
    await until(lambda: lab.in_sync(quick))
    slow.gate.set()
    await until(lambda: lab.in_sync(slow))


async def test_a_slow_agent_costs_no_queue_and_gets_one_merged_delta(lab: Lab) -> None:
    """What the manager keeps is the state, not the changes."""
    manager = await lab.manager(heartbeat_s=30.0)
    agent = await lab.agent("w1", held=True)
    quick = await lab.agent("w2")
    await lab.assign("t1", "w1", ())
    await until(lambda: manager.dispatcher.connected == {"w1", "w2"})
    await stuffed(lab, agent, quick)
    assert agent.completes == 1
    assert agent.deltas < 60


async def test_an_unreadable_secret_stops_neither_node_nor_dispatcher(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    manager = await lab.manager()

    def broken(secret: Secret) -> bytes:
        if secret.id == "bad":
            raise ConfigError("the stored secret can't be decrypted")
        return b"good"

    await lab.depose(manager)
    manager.dispatcher._decrypt = broken
    await lab.lead(manager)
    agent = await lab.agent("w1")
    await until(lambda: agent.completes == 1)
    await lab.put(Secret(id="bad"), Secret(id="good"))
    spec = TaskSpec(container_spec=ContainerSpec(image="x", secrets=[SecretReference(secret_id="bad"), SecretReference(secret_id="good")]))
    await lab.put(msgspec.structs.replace(new_task("t1", "w1", ()), spec=spec))
    await until(lambda: set(agent.rows) == {"task/t1", "secret/good"})
    await until(lambda: "secrets can't be decrypted" in caplog.text)
    await lab.assign("t2", "w1", ())
    await until(lambda: "task/t2" in agent.rows)


async def test_a_node_whose_engine_is_silent_stays_what_it_was(lab: Lab) -> None:
    """It can't say what it has just now: that is no reason to forget it."""
    await lab.manager()
    agent = await lab.agent("w1")
    known = NodeDescription(hostname="w1", resources=ResourceObject(nano_cpus=5), mesh_data_addr="127.0.0.1")
    agent.session.describe(known)
    await until(lambda: lab.node("w1").description.resources.nano_cpus == 5)
    agent.session.describe(NodeDescription(hostname="w1", mesh_data_addr="127.0.0.2", mesh_engine_error="silent"))
    await until(lambda: lab.node("w1").description.mesh_engine_error == "silent")
    assert lab.node("w1").description.resources.nano_cpus == 5 and lab.node("w1").description.mesh_data_addr == "127.0.0.2"
    assert lab.node("w1").status.state == "ready"
    agent.session.describe(known)
    await until(lambda: not lab.node("w1").description.mesh_engine_error)


async def test_a_node_that_leaves_is_down_at_once(lab: Lab) -> None:
    await lab.manager()
    agent = await lab.agent("w1")
    await until(lambda: lab.node("w1").status.state == "ready" and agent.completes == 1)
    await agent.session.leave()
    await agent.stop()
    await until(lambda: lab.node("w1").status.state == "down")
    assert lab.node("w1").status.message == "the node left the cluster"
    assert lab.node("w1").mesh_disconnected_since is not None


async def test_leaving_without_a_manager_does_not_wait(lab: Lab) -> None:
    agent = await lab.agent("w1")
    async with asyncio.timeout(1):
        await agent.session.leave()


class Wire:
    """A connection whose far end is the test."""

    def __init__(self) -> None:
        self.sent: list[FromManager] = []
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = False
        self.close_code: int | None = None

    async def send(self, message: bytes) -> None:
        self.sent.append(msgspec.msgpack.decode(message, type=FromManager | FromAgent))

    async def receive(self, timeout_s: float | None) -> bytes | None:
        return await self.inbox.get()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed, self.close_code = True, code

    def say(self, message: FromAgent) -> None:
        self.inbox.put_nowait(msgspec.msgpack.encode(message))

    async def answered(self, sequence: int) -> list[Heard]:
        """What the manager has said of heartbeats once it has dealt with everything said so far: the second of two confirmations
        comes after all that the first one's turn had to send."""
        for number in (2 * sequence, 2 * sequence + 1):
            self.say(Statuses(sequence=number, reports=()))
            await until(lambda number=number: StatusesStored(sequence=number) in self.sent)  # type: ignore[misc]
        return [message for message in self.sent if isinstance(message, Heard)]


async def test_a_leader_proves_that_it_hears_a_node_only_while_it_counts_it_as_connected(lab: Lab) -> None:
    """What fenced tasks live on."""
    manager = await lab.manager(heartbeat_s=60)
    await lab.cluster.node("w1")
    manager.confirmed_s = 7.0
    wire = Wire()
    peer = Peer(node_id="w1", role="worker", cluster_id="c", address="192.0.2.7", expires_unix_s=4e9)
    session = asyncio.create_task(manager.gateway.converse(wire, peer))
    wire.say(Hello(description=NodeDescription(hostname="w1")))
    await until(lambda: lab.node("w1").status.state == "ready")
    wire.say(Heartbeat(sequence=1))
    assert await wire.answered(1) == [Heard(sequence=1, confirmed_s=7.0)]
    await lab.put(msgspec.structs.replace(lab.node("w1"), mesh_disconnected_since=datetime.now(UTC)))
    wire.say(Heartbeat(sequence=2))
    assert len(await wire.answered(2)) == 1, "its loss is noted: time runs from there"
    await lab.put(msgspec.structs.replace(lab.node("w1"), mesh_disconnected_since=None))
    wire.say(Heartbeat(sequence=3))
    assert [heard.sequence for heard in await wire.answered(3)] == [1, 3]
    session.cancel()
    await asyncio.gather(session, return_exceptions=True)


async def test_an_agent_counts_from_the_older_of_its_own_word_and_the_leaders_proof(lab: Lab) -> None:
    manager = await lab.manager(heartbeat_s=1.0)
    manager.confirmed_s = 7.0
    agent = await lab.agent("w1")
    await until(lambda: agent.heard)
    assert agent.heard[0] >= 7.0
    manager.confirmed_s = 0.0
    await until(lambda: agent.heard[-1] < 7.0)


# ---- versions ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [1, 2, 3])
async def test_agents_of_the_release_before_and_after_are_served(lab: Lab, agent: int) -> None:
    """Byte for byte: what such an agent sends has fields that this release does not have, or lacks some that it has."""
    manager = await lab.manager()
    await lab.cluster.node("w1")
    wire = Wire()
    peer = Peer(node_id="w1", role="worker", cluster_id="c", address="192.0.2.7", expires_unix_s=4e9)
    session = asyncio.create_task(manager.gateway.converse(wire, peer))
    hello = {"type": "hello", "description": {"Hostname": "w1", "FromTheFuture": [1]}, "version": agent}
    if agent > 1:
        hello |= {"have": b"", "more": {"a": 1}}
    wire.inbox.put_nowait(msgspec.msgpack.encode(hello))
    await until(lambda: wire.sent)
    [complete] = wire.sent
    assert isinstance(complete, Complete) and complete.stale is None and complete.version == PROTOCOL
    session.cancel()
    await asyncio.gather(session, return_exceptions=True)


async def test_an_agent_two_releases_away_is_told_what_to_do(lab: Lab) -> None:
    manager = await lab.manager()
    await lab.cluster.node("w1")
    wire = Wire()
    peer = Peer(node_id="w1", role="worker", cluster_id="c", address="192.0.2.7", expires_unix_s=4e9)
    wire.say(Hello(description=NodeDescription(), version=PROTOCOL + 2))
    await asyncio.create_task(manager.gateway.converse(wire, peer))
    [refused] = wire.sent
    assert isinstance(refused, Refused) and "upgrade the manager's meshd, one minor release after the other" in refused.reason
    assert wire.closed and lab.node("w1").status.state != "ready"


async def test_an_agent_refuses_a_manager_two_releases_away(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    @contextlib.asynccontextmanager
    async def connect(manager: str) -> AsyncIterator[Wire]:
        wire = Wire()
        wire.inbox.put_nowait(msgspec.msgpack.encode({"type": "complete", "revision": 1, "rows": [], "version": PROTOCOL + 2}))
        yield wire

    async def on_rows(revision: int, put: list[Row], removed: list[str], complete: bool) -> None:
        raise AssertionError("rows of a protocol that is not known here")

    session = AgentSession(connect, ["m1"], NodeDescription(), on_rows)
    running = asyncio.create_task(session.run())
    await until(lambda: "upgrade the agent's meshd, one minor release after the other" in caplog.text)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_neighbouring_versions_and_no_others_talk() -> None:
    for agent, manager in itertools.product(range(1, 6), repeat=2):
        assert bool(skew(agent=agent, manager=manager)) == (abs(agent - manager) > 1)
