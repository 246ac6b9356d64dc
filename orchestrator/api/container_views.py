"""Containers of many Engines as one machine's: lists merged, the node shown, references told apart.

Pure: no I/O. Source: Docker Engine API 1.44 /containers/json; moby daemon/list.go, daemon/container.go (GetContainer: id, name, prefix of
an id); classicswarm api/handlers.go (Node object, addresses of published ports).

A name stays what it is: `Names` is `["/web", "/node-2/web"]`. Clients show, and compare, the first (the CLI prints those without a second
slash unless told not to truncate), and `node-2/web` is accepted wherever a container is named. The node is also the label com.meshd.node
of lists, for `docker ps --format`, and the object `Node` of `docker inspect`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from orchestrator.api.broadcast import NODE_FILTER, NODE_LABEL
from orchestrator.api.engines import Member
from orchestrator.api.filters import Filters
from orchestrator.errors import ApiError
from orchestrator.model import Node

FULL_ID = re.compile(r"[0-9a-f]{64}")
_ACTIONS = frozenset({
    "archive", "attach", "changes", "copy", "exec", "export", "json", "kill", "logs", "pause", "rename", "resize", "restart", "start",
    "stats", "stop", "top", "unpause", "update", "wait",
})  # fmt: skip
_ANY_ADDRESS = {"0.0.0.0": 4, "::": 6}


@dataclass(frozen=True, slots=True)
class Found:
    """A container that answers to a reference, on one node. shown: its inspection."""

    member: Member
    shown: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.shown.get("Id", ""))

    @property
    def name(self) -> str:
        return str(self.shown.get("Name", "")).lstrip("/")


# ---- references ------------------------------------------------------------------------------------------------------------------------


def split_path(path: str) -> tuple[str, str]:
    """What follows /containers/, as (reference, rest with its slash): a reference may be `node/name`."""
    parts = path.split("/")
    for index in (1, 2):
        if len(parts) > index and parts[index] in _ACTIONS:
            return "/".join(parts[:index]), "/" + "/".join(parts[index:])
    return path, ""


def choose(reference: str, found: Sequence[Found]) -> Found | None:
    """Docker's order: the whole id, the name, the beginning of the id. None: there is none. ApiError(400): several on one step."""
    steps = (
        [one for one in found if one.id == reference],
        [one for one in found if one.name == reference.lstrip("/")],
        list(found),
    )
    for named, step in enumerate(steps):
        if len(step) == 1:
            return step[0]
        if step and named < 2:
            places = ", ".join(f"{one.member.name}/{one.name}" for one in step)
            raise ApiError(400, f"container {reference} is on several nodes: name one of {places}")
        if step:
            raise ApiError(400, f"Multiple IDs found with provided prefix: {reference}")
    return None


# ---- lists -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """`docker ps`: what was asked. before, since: the container (and its Created, seconds) that the list ends, or begins, at."""

    all: bool = False
    limit: int = 0
    size: bool = False
    filters: Filters = field(default_factory=Filters)
    before: Found | None = None
    since: Found | None = None

    def query(self, member: Member) -> str:
        """For one Engine. Where the container of before or since is, the Engine knows its place best; the others are cut by time."""
        asked = {key: list(values) for key, values in self.filters.values.items() if key not in (NODE_FILTER, "before", "since")}
        cut = self.before is not None or self.since is not None
        for key, found in (("before", self.before), ("since", self.since)):
            if found is not None and found.member.node_id == member.node_id:
                asked[key] = [found.id]
        query = {"all": "1"} if self.all or (cut and self.limit > 0) else {}
        if self.limit > 0 and not cut:
            query["limit"] = str(self.limit)
        if self.size:
            query["size"] = "1"
        if asked:
            query["filters"] = msgspec.json.encode(asked).decode()
        return f"/containers/json?{urlencode(query, quote_via=quote)}" if query else "/containers/json"

    def wants(self, member: Member) -> bool:
        names = self.filters.get(NODE_FILTER)
        return not names or any(name in (member.name, member.node_id) or (name and member.node_id.startswith(name)) for name in names)

    def merged(
        self, lists: Iterable[tuple[Member, Sequence[Mapping[str, Any]]]], order: Callable[[str], int] = lambda id: 0
    ) -> list[dict[str, Any]]:
        """Newest first. order: of containers of one second, greater = newer; else each Engine's own order is kept."""
        shown = [listed(entry, member) for member, entries in lists for entry in entries if self._within(member, entry, order)]
        together = sorted(shown, key=lambda entry: (-int(entry.get("Created") or 0), -order(str(entry.get("Id")))))
        return together[: self.limit] if self.limit > 0 else together

    def _within(self, member: Member, entry: Mapping[str, Any], order: Callable[[str], int]) -> bool:
        """Of another node's containers: by the same second's order where that is known, else neither before nor since."""
        made = int(entry.get("Created") or 0), order(str(entry.get("Id")))
        before, since = self.before, self.since
        return (before is None or before.member.node_id == member.node_id or made < (created_s(before.shown), order(before.id))) and (
            since is None or since.member.node_id == member.node_id or made > (created_s(since.shown), order(since.id))
        )


def created_s(shown: Mapping[str, Any]) -> int:
    """Of an inspection, as lists show it: whole seconds. 0: it doesn't say."""
    head = str(shown.get("Created", "")).rstrip("Z").partition(".")[0]
    try:
        return int(datetime.fromisoformat(f"{head}+00:00").timestamp())
    except ValueError:
        return 0


def listed(entry: Mapping[str, Any], member: Member) -> dict[str, Any]:
    """One entry of a list, with its node."""
    names = [str(name) for name in entry.get("Names") or ()]
    shown = dict(entry)
    shown["Names"] = [*names, *(f"/{member.name}{name}" for name in names if name.count("/") == 1)]
    shown["Labels"] = {**(entry.get("Labels") or {}), NODE_LABEL: member.name}
    if isinstance(entry.get("Ports"), list):
        shown["Ports"] = _reachable(entry["Ports"], "IP", member)
    return shown


def inspected(shown: Mapping[str, Any], member: Member, node: Node | None) -> dict[str, Any]:
    """`docker inspect`: with classic Swarm's `Node`, and published ports where the client reaches them."""
    result = dict(shown)
    if node is not None:
        resources = node.description.resources
        result["Node"] = {
            "ID": node.id,
            "Name": member.name,
            "IP": member.addr,
            "Addr": node.description.mesh_api_addr,
            "Cpus": resources.nano_cpus // 10**9,
            "Memory": resources.memory_bytes,
            "Labels": {**(node.description.engine.labels or {}), **(node.spec.labels or {})},
        }
    settings = shown.get("NetworkSettings")
    if isinstance(settings, dict) and isinstance(settings.get("Ports"), dict):
        ports = {port: _reachable(bindings, "HostIp", member) for port, bindings in settings["Ports"].items()}
        result["NetworkSettings"] = {**settings, "Ports": ports}
    return result


def _reachable(bindings: list[Any] | None, field: str, member: Member) -> list[Any] | None:
    """On another node "all addresses" means that node's. This node's stay as they are: clients take them for the machine they talk to."""
    if bindings is None or member.local or not member.addr:
        return bindings
    family = 6 if ":" in member.addr else 4
    shown = []
    for binding in bindings:
        wildcard = _ANY_ADDRESS.get(binding.get(field, ""))
        if wildcard is None:
            shown.append(binding)
        elif wildcard == family:
            shown.append({**binding, field: member.addr})
    return shown


# ---- names -----------------------------------------------------------------------------------------------------------------------------


def name_taken(name: str, id: str) -> ApiError:
    """Docker's words."""
    return ApiError(
        409,
        f'Conflict. The container name "/{name}" is already in use by container "{id}". '
        "You have to remove (or rename) that container to be able to reuse that name.",
    )
