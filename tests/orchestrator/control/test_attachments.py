"""Containers started by hand: their way to a node, addresses that follow their networks; nothing is leaked or given twice."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control.allocator import LINGER, allocate
from orchestrator.control.attachments import attachments
from orchestrator.control.nodes import ORPHAN_AFTER, lost_tasks
from orchestrator.control.scheduler import schedule
from orchestrator.control.transitions import removed
from orchestrator.dispatcher.assignment import network_scope_rows
from orchestrator.dispatcher.messages import EndpointRow
from orchestrator.model import (
    ContainerStatus,
    NetworkAttachmentConfig,
    NetworkAttachmentSpec,
    Node,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.control.clusters import NOW, addresses, cluster, context, network, node, run, service, snapshot, task, with_state


def attachment(id: str, *networks: str, node_id: str = "n1", ip: str = "") -> Task:
    configs = [NetworkAttachmentConfig(target=name, mesh_addresses=[ip] if ip else None) for name in networks]
    spec = TaskSpec(runtime="attachment", networks=configs, network_attachment_spec=NetworkAttachmentSpec())
    return Task(id=id, name=id, created_at=NOW, node_id=node_id, spec=spec, status=TaskStatus(state=TaskState.NEW, timestamp=NOW))


def decided(picture: Snapshot) -> Snapshot:
    return run(picture, lost_tasks, allocate, attachments, schedule)


def of(picture: Snapshot, id: str) -> dict[str, list[str]]:
    found = picture.task(id)
    assert found is not None
    return {one.network.id: one.addresses or [] for one in found.networks_attachments or ()}


def shown(picture: Snapshot, network_id: str = "a") -> dict[str, bool]:
    """Endpoint -> whether it is offered."""
    return {row.name: row.serving for row in network_scope_rows(picture, network_id).values() if isinstance(row, EndpointRow)}


BASE = snapshot(cluster(), network("a", "10.0.0.0/24"), network("b", "10.0.1.0/29"), node("n1"), node("n2"))


@pytest.mark.parametrize("availability", ["active", "pause", "drain"])
def test_it_goes_to_its_containers_node_whatever_the_scheduler_thinks(availability: str) -> None:
    picture = decided(BASE.with_object(node("n1", availability=availability, cpus=0)).with_object(attachment("x", "a", "b")))
    found = picture.task("x")
    assert found is not None and (found.status.state, found.node_id) == (TaskState.ASSIGNED, "n1")
    assert set(of(picture, "x")) == {"a", "b"}
    member = picture.node("n1")
    assert member is not None and {one.network_id for one in member.mesh_attachments or ()} == {"a", "b"}


def test_a_chosen_address() -> None:
    picture = decided(BASE.with_object(attachment("x", "a", ip="10.0.0.77")))
    assert of(picture, "x") == {"a": ["10.0.0.77/24"]}
    for id, ip, why in (("y", "10.0.0.77", "Address already in use: 10.0.0.77"), ("z", "10.9.0.1", "Invalid address 10.9.0.1: It does")):
        after = decided(picture.with_object(attachment(id, "a", ip=ip)))
        refused = after.task(id)
        assert refused is not None and refused.status.state is TaskState.NEW
        assert refused.status.err.startswith(why)


def test_it_is_offered_while_its_container_runs() -> None:
    picture = decided(BASE.with_object(attachment("x", "a")))
    assert shown(picture) == {"x": False}
    for pid, state in ((0, TaskState.READY), (7, TaskState.RUNNING), (0, TaskState.RUNNING), (8, TaskState.RUNNING)):
        old = picture.task("x")
        assert old is not None
        status = TaskStatus(state=state, timestamp=NOW, container_status=ContainerStatus(container_id="c", pid=pid))
        picture = decided(picture.with_object(msgspec.structs.replace(old, status=status)))
        assert shown(picture) == {"x": pid > 0}
        (row,) = [row for row in network_scope_rows(picture, "a").values() if isinstance(row, EndpointRow)]
        assert not row.draining


def test_a_lost_node_keeps_its_containers_addresses_and_a_removed_one_does_not() -> None:
    away = msgspec.structs.replace(node("n1", state="down"), mesh_disconnected_since=NOW - ORPHAN_AFTER - timedelta(days=1))
    assigned = decided(BASE.with_object(attachment("x", "a")))
    before = of(assigned, "x")
    lost = decided(assigned.with_object(away))
    assert of(lost, "x") == before
    assert decided(lost.without_object("node", "n1")).task("x") is None


@pytest.mark.parametrize("state", [state for state in TaskState if state.value not in ("new", "pending")])
def test_what_has_ended_is_forgotten_and_nothing_else_is(state: TaskState) -> None:
    picture = with_state(decided(BASE.with_object(attachment("x", "a"))), "x", state)
    ended = state in (TaskState.COMPLETE, TaskState.SHUTDOWN, TaskState.FAILED, TaskState.REJECTED, TaskState.REMOVE, TaskState.ORPHANED)
    assert (decided(picture).task("x") is None) == ended
    web = service("web", networks=["a"])
    of_service = with_state(decided(BASE.with_object(web).with_object(task(web, 1))), "web-1", state)
    assert decided(of_service).task("web-1") is not None


IDS = ("x", "y", "z")
USERS = st.lists(
    st.tuples(st.sampled_from(IDS), st.sampled_from(["make", "connect a", "connect b", "disconnect a", "disconnect b", "end", "give up"])),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(USERS)
def test_no_address_is_given_twice_or_leaked(users: list[tuple[str, str]]) -> None:
    """b has room for three of everything: whoever finds it full is told so, and gets an address when somebody leaves."""
    picture = BASE
    for id, action in users:
        picture = decided(_acted(picture, id, action))
        for name in ("a", "b"):
            used = addresses(picture, name)
            assert len(used) == len(set(used)), used
        for one in picture.tasks_attaching():
            asked = {config.target for config in one.spec.networks or ()}
            if one.status.state is not TaskState.NEW:
                assert set(of(picture, one.id)) == asked or (one.status.err and set(of(picture, one.id)) < asked)
    for id in IDS:
        picture = decided(_acted(picture, id, "end"))
    later = run(picture, allocate, attachments, now=NOW + 2 * LINGER)
    assert not list(later.all(Task))
    assert [addresses(later, name) for name in ("a", "b")] == [[], []]
    assert all(not member.mesh_attachments for member in later.all(Node))
    assert allocate(later, context(NOW + 2 * LINGER)).steps == []


def _acted(picture: Snapshot, id: str, action: str) -> Snapshot:
    old = picture.task(id)
    verb, _, name = action.partition(" ")
    if verb == "make":
        return picture if old is not None else picture.with_object(attachment(id, "a"))
    if old is None:
        return picture
    if verb == "end":
        return with_state(picture, id, TaskState.SHUTDOWN)
    if action == "give up":
        # with its agent's answer to that
        return with_state(picture.with_object(removed(old, NOW)), id, TaskState.SHUTDOWN)
    configs = [config for config in old.spec.networks or () if config.target != name]
    if verb == "connect":
        configs.append(NetworkAttachmentConfig(target=name))
    return picture.with_object(msgspec.structs.replace(old, spec=msgspec.structs.replace(old.spec, networks=configs)))
