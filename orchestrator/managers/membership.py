"""Which manager's etcd leaves the quorum, and what a node is told to be: one manager after the other, and never one too many.

Pure: `plan` compares what the store wants with etcd's members. A node that is demoted stays a manager for itself until its member is
out: were it to stop its etcd first, two managers would lose their quorum by demoting one.

    node promote   spec.role = manager                     -> the node hears it, asks for a place (`/v1/promote`), joins as learner, votes
    node demote    spec.role = worker, manager_status kept -> Remove -> Forget (manager_status gone) -> the node hears that it is a worker
    promoted again before Remove   nothing has happened
    promoted again after Remove    nothing is forgotten; its etcd ends as removed and the node asks for a new place
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from orchestrator.model import Node
from orchestrator.security.admission import split_endpoint


@dataclass(frozen=True, slots=True)
class Member:
    """One of etcd's. name: the node's id, "" for one that has never started. hosts: addresses its peers reach it at."""

    id: int
    name: str
    hosts: tuple[str, ...]
    is_learner: bool

    @classmethod
    def of(cls, id: int, name: str, peer_urls: Sequence[str], is_learner: bool) -> Member:
        return cls(id, name, tuple(urlsplit(url).hostname or "" for url in peer_urls), is_learner)


@dataclass(frozen=True, slots=True)
class HandOver:
    """This manager itself is to go: the member `to` leads first, and its manager does the rest."""

    to: int


@dataclass(frozen=True, slots=True)
class Remove:
    member: int
    node_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """No member is left of the node: it is a worker now. node: as it was read before the members were: who changed since, stays."""

    node: Node


@dataclass(frozen=True, slots=True)
class Wait:
    """Can't go on yet; why, as a sentence."""

    why: str


Step = HandOver | Remove | Forget | Wait


def role_of(node: Node | None) -> str:
    """What the node is told to be."""
    return "manager" if node is not None and (node.spec.role == "manager" or node.manager_status is not None) else "worker"


def leaving(nodes: Sequence[Node]) -> list[Node]:
    return sorted((node for node in nodes if node.spec.role == "worker" and node.manager_status is not None), key=lambda node: node.id)


def plan(nodes: Sequence[Node], members: Sequence[Member], own_node_id: str) -> Step | None:
    """The next step, None when there is nothing to do. One at a time: each changes what the next may do."""
    reachable = {node.id for node in nodes if node.manager_status is not None and node.manager_status.reachability == "reachable"}
    voters = [member for member in members if not member.is_learner]
    why = ""
    for node in leaving(nodes):
        member = member_of(node, members)
        if member is None:
            return Forget(node)
        rest = [voter for voter in voters if voter.id != member.id]
        healthy = [voter for voter in rest if voter.name in reachable]
        if not member.is_learner and len(healthy) <= len(rest) // 2:
            why = f"node {node.id} stays a manager for now: without it {len(healthy)} of {len(rest)} could be reached, which is no majority"
            continue
        if node.id != own_node_id:
            return Remove(member.id, node.id)
        return HandOver(min(healthy, key=lambda voter: voter.name).id)
    return Wait(why) if why else None


def member_of(node: Node, members: Sequence[Member]) -> Member | None:
    """By name; a member that never started has none and is known by its address."""
    named = next((member for member in members if member.name == node.id), None)
    if named is not None or node.manager_status is None or not node.manager_status.addr:
        return named
    host = split_endpoint(node.manager_status.addr)[0]
    return next((member for member in members if not member.name and host in member.hosts), None)
