"""What the agent needs besides a container engine: the node's data plane, its DNS server, its session with the managers.

Pure: types only. `mesh.NodeMesh`, `dnsd.client.Client` and `dispatcher.session.AgentSession` fit them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from dnsd.model import Applied, DnsState
from mesh.model import NodeState
from orchestrator.dispatcher.messages import TaskReport


class MeshReport(Protocol):
    """errors: what could not be brought into place -> why, by object ("sandbox:<id>", ...). Everything else is."""

    @property
    def errors(self) -> Mapping[str, object]: ...


class Mesh(Protocol):
    async def apply(self, state: NodeState, *, resync: bool = False) -> MeshReport:
        """resync: compare with the kernel itself, not with what is remembered of it."""
        ...

    async def watch(self, on_change: Callable[[], None]) -> None:
        """From now on call `on_change` when somebody else may have changed something of ours."""
        ...

    async def open_connections(self, addresses: Mapping[str, set[str]]) -> dict[tuple[str, str], int]:
        """By (network id, address): connections of this node's balancers to it that are still open."""
        ...


class Names(Protocol):
    async def apply(self, state: DnsState) -> Applied: ...


class Session(Protocol):
    """Neither call waits. Reports are kept until the managers have stored them, the latest of a task wins."""

    def report(self, statuses: Iterable[TaskReport]) -> None: ...

    def applied(self, revision: int, open_connections: Mapping[str, int], behind: frozenset[str] = frozenset()) -> None: ...
