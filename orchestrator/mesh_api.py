"""Our own HTTP API, beside Docker's: every operation of `/mesh/v1`, and the OpenAPI document made of them.

Pure. The server publishes the document, `client` has a method for each operation, and tests hold the three together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orchestrator.diagnose.finding import Finding
from orchestrator.diagnose.itinerary import TraceRequest
from orchestrator.diagnose.report import TraceReport
from orchestrator.stacks.messages import StackAnswer, StackRequest, StackState
from orchestrator.version import VERSION

OPENAPI_PATH = "/mesh/v1/openapi.json"


class Restored(msgspec.Struct, frozen=True):
    """What a restore began: this node's id, the cluster's, how many objects it has."""

    node_id: str = msgspec.field(name="NodeID")
    cluster_id: str = msgspec.field(name="ClusterID")
    objects: int = msgspec.field(name="Objects")


class NetworkKeys(msgspec.Struct, frozen=True, rename="pascal"):
    """Keys of encrypted networks. changes: how often they were changed; last: when, RFC 3339; under_way: a change is being made."""

    changes: int
    last: str
    under_way: bool


class Refusal(msgspec.Struct, frozen=True):
    """Of every status from 400 on."""

    message: str


@dataclass(frozen=True, slots=True)
class Query:
    """A parameter of the query; schema: of its value."""

    what: str
    schema: dict[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True)
class Operation:
    """body, answer: a struct's type, `bytes` (body_type, answer_type say of what), or None. status: when it is done. refusals: statuses
    besides those that its parts bring with them (a body that can't be read, a name that nobody has)."""

    id: str
    method: str
    path: str
    summary: str
    body: Any = None
    answer: Any = None
    body_type: str = "application/json"
    answer_type: str = "application/json"
    query: dict[str, Query] = field(default_factory=dict)
    status: int = 200
    refusals: tuple[int, ...] = ()

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def statuses(self) -> list[int]:
        """All that it may be answered with, from 400 on."""
        found = {*_ANYWHERE, *self.refusals}
        if self.body is not None:
            found |= {400, 408, 413}
        if self.query:
            found.add(400)
        if self.parameters:
            found.add(404)
        return sorted(found)


_REFUSALS = {
    400: "what was sent can't be read or can't be done, and why",
    404: "there is no such object",
    408: "the body came too slowly",
    409: "it is not as the request takes it to be",
    413: "the body is too large",
    429: "too many requests of this client: later",
    500: "it could not be done, and why",
    503: "this node is no manager, or too few managers are there",
    504: "a node did not answer in time",
}
_ANYWHERE = (429, 500, 503)
_REVISION = {
    "revision": Query(
        "refuse with 409 unless the stack is at this revision; 0: unless there is none yet", {"type": "integer", "minimum": 0}
    )
}
OPERATIONS = (
    Operation("list_stacks", "GET", "/mesh/v1/stacks", "All stacks and how they are, those of `docker stack` too", answer=list[StackState]),
    Operation("stack", "GET", "/mesh/v1/stacks/{name}", "How a stack is, and what differs from what it is to be", answer=StackState),
    Operation(
        "compose_file", "GET", "/mesh/v1/stacks/{name}/compose", "The compose file as it was deployed",
        answer=bytes, answer_type="application/yaml", query={"revision": Query("the one before", {"type": "string", "enum": ["previous"]})},
    ),
    Operation(
        "plan_stack", "POST", "/mesh/v1/stacks/{name}/plan", "What deploying this file would change; changes nothing",
        body=StackRequest, answer=StackAnswer,
    ),
    Operation(
        "deploy_stack", "PUT", "/mesh/v1/stacks/{name}", "Make the stack what the file says: all of it, or nothing",
        body=StackRequest, answer=StackAnswer, query=_REVISION, refusals=(409,),
    ),
    Operation(
        "roll_back_stack", "POST", "/mesh/v1/stacks/{name}/rollback", "The previous revision again, as a new one",
        answer=StackAnswer, query=_REVISION, refusals=(409,),
    ),
    Operation(
        "remove_stack", "DELETE", "/mesh/v1/stacks/{name}", "Remove a stack and all that carries its label",
        answer=StackAnswer, query=_REVISION, refusals=(409,),
    ),
    Operation(
        "backup", "GET", "/mesh/v1/backup", "The whole cluster as one file; it holds the cluster's keys",
        answer=bytes, answer_type="application/gzip",
    ),
    Operation(
        "restore", "POST", "/mesh/v1/restore", "Make the cluster of a backup again, at a node that is in none",
        body=bytes, body_type="application/gzip", answer=Restored, query={"advertise-addr": Query("where other nodes reach this one")},
    ),
    Operation(
        "trace", "POST", "/mesh/v1/trace", "Send probes and tell the way they took, link by link",
        body=TraceRequest, answer=TraceReport, refusals=(404, 504),
    ),
    Operation("network_keys", "GET", "/mesh/v1/network-keys", "How old the keys of encrypted networks are", answer=NetworkKeys),
    Operation(
        "rotate_network_keys", "POST", "/mesh/v1/network-keys/rotate", "New keys for encrypted networks, without a lost packet",
        status=202, refusals=(400,),
    ),
    Operation("doctor", "GET", "/mesh/v1/doctor", "What this node finds wrong with itself and its way to the others", answer=list[Finding]),
)  # fmt: skip


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document, as JSON has it: no tuples."""
    types = [kind for operation in OPERATIONS for kind in (operation.body, operation.answer) if kind not in (None, bytes)]
    schemas, components = msgspec.json.schema_components([*types, Refusal], ref_template="#/components/schemas/{name}")
    of_type = {str(kind): schema for kind, schema in zip(types, schemas, strict=False)}
    refused = {"application/json": {"schema": schemas[-1]}}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        content = {} if operation.answer is None else {operation.answer_type: {"schema": _schema(operation.answer, of_type)}}
        described: dict[str, Any] = {
            "operationId": operation.id,
            "summary": operation.summary,
            "parameters": [
                *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in operation.parameters),
                *(
                    {"name": name, "in": "query", "required": False, "description": query.what, "schema": query.schema}
                    for name, query in operation.query.items()
                ),
            ],
            "responses": {
                str(operation.status): {"description": "done", "content": content},
                **{str(status): {"description": _REFUSALS[status], "content": refused} for status in operation.statuses},
            },
        }
        if operation.body is not None:
            described["requestBody"] = {"required": True, "content": {operation.body_type: {"schema": _schema(operation.body, of_type)}}}
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    document = {
        "openapi": "3.1.0",
        "info": {"title": "meshd", "version": VERSION, "description": "What meshd can beyond the Docker Engine API, on the same sockets."},
        "paths": paths,
        "components": {"schemas": components},
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document))
    return plain


def _schema(kind: Any, of_type: dict[str, Any]) -> dict[str, Any]:
    if kind is bytes:
        return {"type": "string", "format": "binary"}
    schema: dict[str, Any] = of_type[str(kind)]
    return schema
