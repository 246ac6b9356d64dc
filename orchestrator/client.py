"""A typed client of our own API (`/mesh/v1`); docker-py is the one for Docker's.

    mesh = Mesh("/run/meshd/meshd.sock")
    for change in mesh.plan_stack("shop", StackRequest(compose=text)).changes:
        print(change.action, change.kind, change.name)
    mesh.deploy_stack("shop", StackRequest(compose=text))

Edge: HTTP over a unix socket. One connection a call; safe to use from several threads.
"""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from orchestrator.ask import DEFAULT_SOCKET, ask
from orchestrator.diagnose.finding import Finding
from orchestrator.diagnose.itinerary import TraceRequest
from orchestrator.diagnose.report import TraceReport
from orchestrator.mesh_api import OPERATIONS, NetworkKeys, Operation, Restored
from orchestrator.stacks.messages import StackAnswer, StackRequest, StackState

_BY_ID = {operation.id: operation for operation in OPERATIONS}
T = TypeVar("T")


class Mesh:
    """Every method raises NoDaemon when nobody answers on the socket, and ConfigError with the daemon's sentence when it refuses."""

    def __init__(self, socket: str = DEFAULT_SOCKET, *, timeout_s: float = 60.0) -> None:
        self._socket, self._timeout_s = socket, timeout_s

    # ---- stacks --------------------------------------------------------------------------------------------------------------------

    def list_stacks(self) -> list[StackState]:
        """All stacks, those of `docker stack` too; without their drift."""
        return self._call("list_stacks", list[StackState])

    def stack(self, name: str) -> StackState:
        return self._call("stack", StackState, name=name)

    def compose_file(self, name: str, *, previous: bool = False) -> str:
        """As it was deployed, variables not put in."""
        return self._raw("compose_file", None, {"revision": "previous"} if previous else {}, name=name).decode()

    def plan_stack(self, name: str, request: StackRequest) -> StackAnswer:
        """What deploying would change; changes nothing."""
        return self._call("plan_stack", StackAnswer, request, name=name)

    def deploy_stack(self, name: str, request: StackRequest, *, revision: int | None = None) -> StackAnswer:
        """All of it or nothing. revision: only if the stack is still at this one (0: only if there is none)."""
        return self._call("deploy_stack", StackAnswer, request, _revision(revision), name=name)

    def roll_back_stack(self, name: str, *, revision: int | None = None) -> StackAnswer:
        return self._call("roll_back_stack", StackAnswer, None, _revision(revision), name=name)

    def remove_stack(self, name: str, *, revision: int | None = None) -> StackAnswer:
        return self._call("remove_stack", StackAnswer, None, _revision(revision), name=name)

    # ---- the cluster ---------------------------------------------------------------------------------------------------------------

    def backup(self) -> bytes:
        """The whole cluster as one gzip file (`managers.backup.load` reads it); it holds the cluster's keys."""
        return self._raw("backup")

    def restore(self, packed: bytes, *, advertise_addr: str = "") -> Restored:
        """At a node that is in no cluster."""
        return self._call("restore", Restored, packed, {"advertise-addr": advertise_addr} if advertise_addr else {})

    def network_keys(self) -> NetworkKeys:
        return self._call("network_keys", NetworkKeys)

    def rotate_network_keys(self) -> None:
        """Asks for it; `network_keys().under_way` says when it is done."""
        self._raw("rotate_network_keys")

    # ---- diagnosis -----------------------------------------------------------------------------------------------------------------

    def trace(self, request: TraceRequest) -> TraceReport:
        return self._call("trace", TraceReport, request)

    def doctor(self) -> list[Finding]:
        return self._call("doctor", list[Finding])

    # ---- details -------------------------------------------------------------------------------------------------------------------

    def _call(self, id: str, answer: type[T], body: object = None, query: dict[str, str] | None = None, **path: str) -> T:
        return msgspec.json.decode(self._raw(id, body, query or {}, **path), type=answer)

    def _raw(self, id: str, body: object = None, query: dict[str, Any] | None = None, **path: str) -> bytes:
        operation: Operation = _BY_ID[id]
        target = operation.path.format(**{name: quote(value, safe="") for name, value in path.items()})
        if query:
            target += f"?{urlencode(query)}"
        return ask(self._socket, operation.method, target, body, timeout_s=self._timeout_s)


def _revision(number: int | None) -> dict[str, str]:
    return {} if number is None else {"revision": str(number)}
