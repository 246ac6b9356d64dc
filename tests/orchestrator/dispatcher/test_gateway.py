"""Agents attached to any manager, over real TLS: whoever leads, and whoever goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import pytest

from orchestrator.dispatcher.connection import Connection
from orchestrator.dispatcher.gateway import Gateway
from orchestrator.dispatcher.messages import PROTOCOL, FromManager, Hello, Redirect
from orchestrator.dispatcher.server import CLOSE_NOT_LEADING, CLOSE_REMOVED
from orchestrator.model import NodeDescription, NodeSpec, TaskState
from orchestrator.store.base import Delete

from .lab import Agent, Lab, Manager, until
from .pair import Pair, peer
from .test_dispatch import report, stuffed


async def attached(lab: Lab, to: Manager, node_id: str = "w1") -> Agent:
    agent = await lab.agent(node_id, [to])
    await until(lambda: agent.session.connected_to == to.addr)
    return agent


async def three_managers(lab: Lab) -> list[Manager]:
    return [await lab.manager("m1"), await lab.manager("m2", lead=False), await lab.manager("m3", lead=False)]


async def test_a_manager_that_does_not_lead_serves_as_the_leader_does(lab: Lab) -> None:
    leader, follower, _ = await three_managers(lab)
    agent = await attached(lab, follower)
    assert leader.dispatcher.connected == {"w1"}
    assert set(agent.session.managers) == {manager.addr for manager in lab.managers}
    await lab.network()
    await lab.attach("w1")
    await lab.assign("t1", "w1")
    await until(lambda: lab.in_sync(agent) and "task/t1" in agent.rows)
    agent.open_connections = {"t1": 3}
    agent.session.report([report("t1", TaskState.RUNNING)])
    await until(lambda: lab.task("t1").status.state is TaskState.RUNNING and agent.session.unstored == 0)
    await until(lambda: leader.dispatcher.acks.open("t1") == 3)
    await until(lambda: agent.heard)
    node = lab.node("w1")
    assert (node.status.state, node.status.addr, node.mesh_disconnected_since) == ("ready", "127.0.0.1", None)
    await agent.session.leave()
    await until(lambda: lab.node("w1").status.state == "down")


async def test_when_the_leader_changes_agents_stay_where_they_are(lab: Lab) -> None:
    # a busy machine needs longer than the others' 0.3 s to bring all agents to a new leader
    lab.absent_after_s = 60.0
    first, second, third = await three_managers(lab)
    agents = [await attached(lab, manager, f"w{number}") for number, manager in enumerate(lab.managers)]
    await lab.network()
    for number, agent in enumerate(agents):
        await lab.attach(agent.node_id, addr=f"10.0.1.{250 + number}/24")
        await lab.assign(f"t{number}", agent.node_id, addr=f"10.0.1.{number + 2}/24")
    await until(lambda: all(lab.in_sync(agent) and lab.node(agent.node_id).status.state == "ready" for agent in agents))
    versions = [lab.node(agent.node_id).version for agent in agents]
    for old, new in ((first, second), (second, third), (third, first)):
        await lab.depose(old)
        await lab.change("t1", labels={"led by": new.addr})
        agents[2].session.report([report("t2", TaskState.RUNNING)])
        await lab.lead(new)
        await until(lambda new=new: new.dispatcher.connected == {"w0", "w1", "w2"})  # type: ignore[misc]
        await until(lambda: all(lab.in_sync(agent) for agent in agents) and agents[2].session.unstored == 0)
        await until(lambda: all(agent.session.connected_to for agent in agents))
        assert [agent.session.connected_to for agent in agents] == [manager.addr for manager in lab.managers]
    assert [agent.completes for agent in agents] == [1, 1, 1]
    assert [lab.node(agent.node_id).version for agent in agents] == versions, "of nodes, nothing was written"


@pytest.mark.parametrize("lost", ["follower", "leader"])
async def test_agents_of_a_manager_that_ends_go_to_another(lab: Lab, lost: str) -> None:
    leader, follower, _ = await three_managers(lab)
    going = follower if lost == "follower" else leader
    agent = await attached(lab, going)
    await lab.assign("t0", "w1", ())
    await until(lambda: lab.in_sync(agent) and "task/t0" in agent.rows)
    await asyncio.sleep(1.0)  # LASTED_S: it was no attempt that failed
    await lab.end(going)
    if going is leader:
        await lab.lead(follower)
    await until(lambda: agent.session.connected_to not in ("", going.addr))
    await lab.assign("t1", "w1", ())
    await until(lambda: lab.in_sync(agent) and "task/t1" in agent.rows)
    assert agent.completes == 1
    assert lab.node("w1").mesh_disconnected_since is None


async def test_a_manager_that_is_cut_off_from_the_leader_loses_its_agents(lab: Lab) -> None:
    """It could still talk to them; what it could say is old."""
    lab.patience_s = 0.2
    leader, follower, _ = await three_managers(lab)
    agent = await attached(lab, follower)
    await lab.assign("t1", "w1", ())
    await until(lambda: lab.in_sync(agent) and "task/t1" in agent.rows)

    @contextlib.asynccontextmanager
    async def cut(manager: str) -> AsyncIterator[Connection]:
        raise ConnectionError("network is unreachable")
        yield

    follower.gateway._connect = cut
    assert follower.gateway._trunk is not None
    await follower.gateway._trunk.close()
    await until(lambda: agent.session.connected_to not in ("", follower.addr))
    await lab.assign("t2", "w1", ())
    await until(lambda: lab.in_sync(agent) and "task/t2" in agent.rows)
    assert leader.dispatcher.connected == {"w1"}
    assert agent.completes == 1


async def test_what_a_relayed_agent_loses_with_its_connection_is_noted(lab: Lab) -> None:
    leader, follower, _ = await three_managers(lab)
    agent = await attached(lab, follower)
    await agent.stop()
    await until(lambda: lab.node("w1").mesh_disconnected_since is not None)
    assert leader.dispatcher.connected == frozenset()


async def test_a_removed_node_is_cut_off_wherever_it_is(lab: Lab) -> None:
    leader, follower, _ = await three_managers(lab)
    agent = await attached(lab, follower)
    await lab.store.commit([Delete("node", "w1")])
    await until(lambda: not agent.session.connected_to)
    assert leader.dispatcher.connected == frozenset()


async def test_without_a_leader_an_agent_is_sent_elsewhere_in_the_end(lab: Lab) -> None:
    lab.patience_s = 0.1
    first = await lab.manager("m1", lead=False)
    agent = await lab.agent("w1", [first])
    second = await lab.manager("m2")
    await until(lambda: second.dispatcher.connected == {"w1"} and agent.completes == 1)


async def test_a_slow_agent_holds_up_neither_the_others_nor_the_leaders_memory(lab: Lab) -> None:
    """As with one of the leader's own."""
    leader, follower, _ = await three_managers(lab)
    slow = await lab.agent("w1", [follower], held=True)
    quick = await attached(lab, follower, "w2")
    await lab.assign("t1", "w1", ())
    await until(lambda: leader.dispatcher.connected == {"w1", "w2"})
    await stuffed(lab, slow, quick)
    assert (slow.completes, slow.deltas < 60) == (1, True)


# ---- what managers believe ---------------------------------------------------------------------------------------------------------


def hello(version: int = PROTOCOL) -> bytes:
    return msgspec.msgpack.encode(Hello(description=NodeDescription(hostname="w1"), version=version))


async def heard(wire: Pair) -> FromManager:
    frame = await wire.receive(10)
    assert frame is not None, f"closed with code {wire.close_code}"
    return msgspec.msgpack.decode(frame, type=FromManager)


@contextlib.asynccontextmanager
async def in_between(lab: Lab, to: Manager, node_id: str) -> AsyncIterator[Gateway]:
    """A gateway of `node_id`, which does not lead, straight to `to`."""

    @contextlib.asynccontextmanager
    async def connect(manager: str) -> AsyncIterator[Connection]:
        near, far = Pair.both()
        serving = asyncio.create_task(to.gateway.relay(far, peer(node_id)))
        try:
            yield near
        finally:
            await near.close()
            await serving

    gateway = Gateway(lab.store, lab.managers[-1].dispatcher, node_id=node_id, connect=connect, patience_s=0.2)
    running = asyncio.create_task(gateway.run())
    try:
        yield gateway
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_only_a_manager_brings_agents(lab: Lab) -> None:
    leader = await lab.manager("m1")
    await lab.manager("m2", lead=False)
    await lab.cluster.node("w1")
    demoted = lab.node("m2")
    await lab.put(msgspec.structs.replace(demoted, spec=NodeSpec(role="worker")))
    async with in_between(lab, leader, "m2") as gateway:
        near, far = Pair.both()
        serving = asyncio.create_task(gateway.converse(far, peer("w1")))
        await near.send(hello())
        assert await near.receive(10) is None
        assert near.close_code == CLOSE_REMOVED
        await serving
    assert leader.dispatcher.connected == frozenset()


async def test_an_agent_of_the_release_before_is_closed_when_the_leader_changes(lab: Lab) -> None:
    """It doesn't know that it could stay."""
    leader = await lab.manager("m1")
    await lab.manager("m2", lead=False)
    await lab.cluster.node("w1")
    async with in_between(lab, leader, "m2") as gateway:
        near, far = Pair.both()
        serving = asyncio.create_task(gateway.converse(far, peer("w1")))
        await near.send(hello(version=1))
        await heard(near)
        await lab.depose(leader)
        while await near.receive(10) is not None:
            pass
        assert near.close_code == CLOSE_NOT_LEADING
        await serving


async def test_without_a_leader_nobody_is_kept_waiting_for_long(lab: Lab) -> None:
    leader = await lab.manager("m1")
    await lab.manager("m2", lead=False)
    await lab.cluster.node("w1")
    await lab.put(msgspec.structs.replace(lab.node("w1"), mesh_disconnected_since=datetime.now(UTC)))
    await lab.depose(leader)
    async with in_between(lab, leader, "m2") as gateway:
        near, far = Pair.both()
        serving = asyncio.create_task(gateway.converse(far, peer("w1")))
        await near.send(hello())
        assert await heard(near) == Redirect(addr=leader.addr)
        assert await near.receive(10) is None
        await serving
    assert lab.node("w1").mesh_disconnected_since is not None
