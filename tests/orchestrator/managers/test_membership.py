"""Letting managers go: every small cluster, played to its end; and what a node is told to be."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from orchestrator.managers.membership import Forget, HandOver, Member, Remove, Wait, leaving, member_of, plan, role_of
from orchestrator.model import ManagerStatus, Node, NodeSpec

IDS = ("a", "b", "c")


def node(id: str, role: str = "manager", *, reachable: bool = True, known: bool = True) -> Node:
    status = ManagerStatus(addr=f"10.0.0.{ord(id)}:2377", reachability="reachable" if reachable else "unreachable")
    return Node(id=id, spec=NodeSpec(role=role), manager_status=status if known else None)


def member(id: str, *, name: str | None = None, learner: bool = False) -> Member:
    return Member.of(ord(id), id if name is None else name, [f"https://10.0.0.{ord(id)}:2380"], learner)


def quorate(members: list[Member], alive: set[str]) -> bool:
    voters = [m.name for m in members if not m.is_learner]
    return len([name for name in voters if name in alive]) > len(voters) // 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_small_cluster_keeps_its_quorum_and_lets_go_whom_it_can(count: int) -> None:
    """Each manager stays or is demoted, lives or is dead: the steps are played until none is left, whoever leads meanwhile."""
    for roles in itertools.product(("manager", "worker"), repeat=count):
        for living in itertools.product((True, False), repeat=count):
            ids = IDS[:count]
            alive = {id for id, lives in zip(ids, living, strict=True) if lives}
            nodes = {id: node(id, role, reachable=id in alive) for id, role in zip(ids, roles, strict=True)}
            members = [member(id) for id in ids]
            if not quorate(members, alive) or "manager" not in roles:
                continue
            leader = min(alive)
            for _ in range(20):
                step = plan(list(nodes.values()), members, leader)
                match step:
                    case Remove(id, node_id):
                        assert node_id != leader and nodes[node_id].spec.role == "worker"
                        members = [m for m in members if m.id != id]
                        assert quorate(members, alive)
                    case HandOver(to):
                        assert nodes[leader].spec.role == "worker"
                        leader = next(m.name for m in members if m.id == to)
                        assert leader in alive
                    case Forget(gone):
                        assert all(m.name != gone.id for m in members)
                        nodes[gone.id] = replace(nodes[gone.id], manager_status=None)
                    case Wait() | None:
                        break
            else:
                pytest.fail(f"{roles} {living}: no end")
            left = leaving(list(nodes.values()))
            assert (step is None) == (left == [])
            # who is still there could only go at the price of the quorum
            for waiting in left:
                rest = [m for m in members if m.name != waiting.id]
                assert not quorate(rest, alive)


def test_a_member_that_never_started_is_known_by_its_address_and_may_go_at_any_time() -> None:
    nodes = [node("a"), node("b", "worker", reachable=False)]
    learner = member("b", name="", learner=True)
    assert member_of(nodes[1], [member("a"), learner]) == learner
    assert plan(nodes, [member("a"), learner], "a") == Remove(learner.id, "b")
    assert plan(nodes, [member("a")], "a") == Forget(nodes[1])


def test_what_has_to_wait_says_why() -> None:
    nodes = [node("a", "worker"), node("b", reachable=False)]
    step = plan(nodes, [member("a"), member("b")], "a")
    assert step == Wait("node a stays a manager for now: without it 0 of 1 could be reached, which is no majority")


def test_a_demoted_manager_is_told_so_when_it_is_out() -> None:
    assert role_of(None) == "worker"
    assert role_of(node("a", "manager", known=False)) == "manager"
    assert role_of(node("a", "worker")) == "manager"
    assert role_of(node("a", "worker", known=False)) == "worker"
