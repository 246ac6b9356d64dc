"""Nodes: list, inspect, update (labels, role, availability), remove.

Edge: routes over the store. Source: Docker Engine API 1.44 /nodes; swarmkit manager/controlapi/node.go. A changed role is only
written here: the leader and the node itself bring it about (`membership`).
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from msgspec.structs import replace

from orchestrator.api import access, filters, references, validate, views
from orchestrator.model import Node, NodeSpec, TaskState, TaskStatus, terminal
from orchestrator.store.base import Change, Delete, Put, Store
from orchestrator.store.snapshot import Snapshot


async def list_nodes(request: web.Request) -> web.Response:
    snapshot = access.store_of(request).snapshot()
    wanted = access.filters_of(request, filters.NODE_KEYS)
    wanted.one_of("role", filters.NODE_ROLES)
    wanted.one_of("membership", filters.MEMBERSHIPS)
    found = sorted((node for node in snapshot.all(Node) if _matches(node, wanted)), key=lambda node: (references.name_of(node), node.id))
    return access.answer([views.node(snapshot, node) for node in found])


async def inspect_node(request: web.Request) -> web.Response:
    snapshot = access.store_of(request).snapshot()
    return access.answer(views.node(snapshot, _find(request, snapshot)))


async def update_node(request: web.Request) -> web.Response:
    store = access.store_of(request)
    seen = access.version_of(request, "node")
    spec = await access.body_as(request, NodeSpec)
    validate.node_spec(spec)

    def plan(snapshot: Snapshot) -> Sequence[Change]:
        node = _find(request, snapshot)
        access.in_sequence(node, seen)
        if node.spec.role == "manager" and spec.role == "worker":
            _refuse_demotion(snapshot, node)
        return [Put(replace(node, spec=spec, updated_at=access.now(), mesh_spec_since=node.version.index))]

    await access.commit(store, plan)
    return web.Response(status=200)


async def remove_node(request: web.Request) -> web.Response:
    """The node's tasks are orphaned first: nobody will report on them again."""
    store = access.store_of(request)
    force = access.flag(request, "force")
    node = _find(request, store.snapshot())
    _refuse_removal(node, force)
    await _orphan_tasks(store, node.id)

    def plan(snapshot: Snapshot) -> Sequence[Change]:
        current = references.find(snapshot, Node, node.id)
        _refuse_removal(current, force)
        return [Delete("node", current.id, current.version.index)]

    await access.commit(store, plan)
    return web.Response(status=200)


ROUTES = [
    web.get("/nodes", list_nodes),
    web.get("/nodes/{id}", inspect_node),
    web.post("/nodes/{id}/update", update_node),
    web.delete("/nodes/{id}", remove_node),
]


def _find(request: web.Request, snapshot: Snapshot) -> Node:
    return references.find(snapshot, Node, request.match_info["id"])


def _matches(node: Node, wanted: filters.Filters) -> bool:
    return (
        wanted.prefix("id", node.id)
        and wanted.prefix("name", references.name_of(node))
        and wanted.labels(node.description.engine.labels)
        and wanted.labels(node.spec.labels, "node.label")
        and wanted.exact("role", node.spec.role)
        # A node is in the store once its certificate was issued: there are no others.
        and wanted.exact("membership", "accepted")
    )


def _refuse_demotion(snapshot: Snapshot, node: Node) -> None:
    managers = [other for other in snapshot.all(Node) if other.spec.role == "manager"]
    if len(managers) == 1:
        raise validate.precondition("attempting to demote the last manager of the swarm")
    reachable = sum(_reachable(other) for other in managers if other.id != node.id)
    if reachable < (len(managers) - 1) // 2 + 1:
        raise validate.precondition("can't remove member from the raft: this would result in a loss of quorum")


def _reachable(node: Node) -> bool:
    return node.manager_status is not None and node.manager_status.reachability == "reachable"


def _refuse_removal(node: Node, force: bool) -> None:
    if node.spec.role == "manager" or node.manager_status is not None:
        raise validate.precondition(
            f"node {node.id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
        )
    if not force and node.status.state == "ready":
        raise validate.precondition(f"node {node.id} is not down and can't be removed")


async def _orphan_tasks(store: Store, node_id: str) -> None:
    """In as many transactions as it takes; whatever came in between is found by the next round."""

    def living(snapshot: Snapshot) -> list[Change]:
        moment = access.now()
        status = TaskStatus(timestamp=moment, state=TaskState.ORPHANED, message="Task belonged to a node that has been deleted")
        return [
            Put(replace(task, status=replace(status, container_status=task.status.container_status), updated_at=moment))
            for task in sorted(snapshot.tasks_of_node(node_id), key=lambda task: task.id)
            if not terminal(task.status.state)
        ]

    while living(store.snapshot()):
        await access.commit(store, lambda snapshot: living(snapshot)[: store.max_changes])
