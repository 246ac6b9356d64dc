"""/_ping, /version, /info: the Engine's answers with the cluster's in them.

Edge: the Engine and the store. Source: Docker Engine API 1.44; moby daemon/cluster/cluster.go (Info).
"""

from __future__ import annotations

import platform
from typing import Any

from aiohttp import web

from orchestrator.api import access, broadcast, totals, views
from orchestrator.api.backend import Backend
from orchestrator.api.engines import asked_path
from orchestrator.api.proxy import PROXY
from orchestrator.api.versions import API_VERSION, MIN_API_VERSION
from orchestrator.errors import ApiError
from orchestrator.model import Node
from orchestrator.version import VERSION

_SWARM_HEADER = {
    "inactive": "inactive", "pending": "pending", "error": "error", "locked": "locked",
    "worker": "active/worker", "manager": "active/manager",
}  # fmt: skip
_LOCAL_STATE = {"worker": "active", "manager": "active"}


async def ping(request: web.Request) -> web.Response:
    answer = web.Response(text="OK", content_type="text/plain")
    answer.headers["Cache-Control"] = "no-cache, no-store, must-revalidate"
    answer.headers["Pragma"] = "no-cache"
    answer.headers["Swarm"] = _SWARM_HEADER[access.backend_of(request).state]
    return answer


async def version(request: web.Request) -> web.Response:
    """The Engine's components stay listed; the API is ours."""
    try:
        shown = await request.app[PROXY].get_json("/version") or {}
    except ApiError:
        uname = platform.uname()
        shown = {"Version": "", "Os": "linux", "Arch": _go_architecture(uname.machine), "KernelVersion": uname.release, "Components": []}
    shown["Platform"] = {"Name": f"meshd {VERSION}"}
    shown["ApiVersion"] = API_VERSION
    shown["MinAPIVersion"] = MIN_API_VERSION
    for component in shown.get("Components") or ():
        if component.get("Name") == "Engine":
            component.setdefault("Details", {}).update({"ApiVersion": API_VERSION, "MinAPIVersion": MIN_API_VERSION})
    shown["Components"] = [*(shown.get("Components") or ()), {"Name": "meshd", "Version": VERSION, "Details": {}}]
    return access.answer(shown)


async def info(request: web.Request) -> web.Response:
    """The Engine's, with our Swarm section. Also without an Engine: the CLI reads the node id and the role here."""
    backend = access.backend_of(request)
    facts = backend.facts()
    warnings = list(facts.warnings)
    try:
        if broadcast.is_whole(request):
            shown, replies = await totals.info_of_all(request)
            if missing := replies.missing("their containers, images and volumes are not shown"):
                warnings.append(f"nodes {missing}")
        else:
            shown = await request.app[PROXY].get_json(asked_path(request, "/info")) or {}
    except ApiError as error:
        uname = platform.uname()
        shown = {"ID": "", "Name": uname.node, "OSType": "linux", "Architecture": uname.machine, "KernelVersion": uname.release}
        warnings.append(error.message)
    shown["Swarm"] = swarm_section(backend)
    labels = [label for label in shown.get("Labels") or () if not label.startswith("meshd.")]
    labels.append(f"meshd.version={VERSION}")
    if facts.balancer:
        labels.append(f"meshd.balancer={facts.balancer}")
    shown["Labels"] = labels
    shown["Warnings"] = [*(shown.get("Warnings") or ()), *(f"WARNING: {text}" for text in warnings)] or None
    return access.answer(shown)


def swarm_section(backend: Backend) -> dict[str, Any]:
    facts = backend.facts()
    section: dict[str, Any] = {
        "NodeID": backend.node_id,
        "NodeAddr": facts.node_addr,
        "LocalNodeState": _LOCAL_STATE.get(backend.state, backend.state),
        "ControlAvailable": False,
        "Error": facts.error,
        "RemoteManagers": [{"NodeID": id, "Addr": addr} for id, addr in facts.managers] or None,
    }
    store = backend.store
    if backend.state == "manager" and store is not None:
        snapshot = store.snapshot()
        section["ControlAvailable"] = True
        section["Nodes"] = snapshot.count(Node)
        section["Managers"] = sum(node.spec.role == "manager" for node in snapshot.all(Node))
        if snapshot.cluster is not None:
            section["Cluster"] = views.cluster(snapshot.cluster)
    return section


ROUTES = [
    web.get("/_ping", ping),
    web.get("/version", version),
    web.get("/info", info),
]


def _go_architecture(machine: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
