"""What the managers have told this node, by kind; and which of its containers are alive. The common input of the translators.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.agent.container_spec import spec_of, task_files, uses_host_network
from orchestrator.agent.runtime import Container
from orchestrator.dispatcher.messages import ConfigRow, EndpointRow, NetworkRow, NodeRow, RegistryRow, Row, SecretRow, ServiceRow, TaskRow
from orchestrator.errors import TaskError
from orchestrator.model import NetworkAttachment, Task


@dataclass(slots=True)
class Rows:
    """A node's assignment. Sorted by key wherever the order reaches the outside."""

    revision: int = 0
    tasks: dict[str, Task] = field(default_factory=dict)
    nodes: dict[str, NodeRow] = field(default_factory=dict)
    networks: dict[str, NetworkRow] = field(default_factory=dict)
    endpoints: dict[str, EndpointRow] = field(default_factory=dict)
    services: dict[str, ServiceRow] = field(default_factory=dict)
    files: dict[str, SecretRow | ConfigRow] = field(default_factory=dict)
    registry_auths: dict[str, str] = field(default_factory=dict)

    def update(self, revision: int, put: Iterable[Row], removed: Iterable[str], complete: bool) -> None:
        """complete: `put` is everything there is."""
        if complete:
            for table in (self.tasks, self.nodes, self.networks, self.endpoints, self.services, self.files, self.registry_auths):
                table.clear()
        for key in removed:
            kind, _, rest = key.partition("/")
            match kind:
                case "task":
                    self.tasks.pop(rest, None)
                case "node":
                    self.nodes.pop(rest, None)
                case "network":
                    self.networks.pop(rest, None)
                case "endpoint":
                    self.endpoints.pop(key, None)
                case "service":
                    self.services.pop(key, None)
                case "secret" | "config":
                    self.files.pop(rest, None)
                case "registry":
                    self.registry_auths.pop(rest, None)
        for row in put:
            match row:
                case TaskRow():
                    self.tasks[row.task.id] = row.task
                case NodeRow():
                    self.nodes[row.id] = row
                case NetworkRow():
                    self.networks[row.id] = row
                case EndpointRow():
                    self.endpoints[row.key] = row
                case ServiceRow():
                    self.services[row.key] = row
                case SecretRow() | ConfigRow():
                    self.files[row.id] = row
                case RegistryRow():
                    self.registry_auths[row.service_id] = row.auth
        self.revision = revision

    def contents(self, task: Task) -> dict[str, bytes]:
        """Secret or config id -> what the task sees of it. TaskError: a template of its that can't be rendered."""
        found = {}
        for file in task_files(spec_of(task)):
            row = self.files.get(f"{task.id}/{file.source_id}") or self.files.get(file.source_id)
            if row is not None and row.error:
                raise TaskError(f"{file.kind} {file.name}: {row.error}", rejected=True)
            if row is not None:
                found[file.source_id] = row.data
        return found

    def joined(self) -> dict[str, str]:
        """Container id -> attachment, of containers started by hand."""
        attachments = ((task, task.spec.network_attachment_spec) for task in self.tasks.values())
        return {spec.container_id: task.id for task, spec in attachments if spec is not None and spec.container_id}

    def sorted_endpoints(self) -> list[EndpointRow]:
        return [self.endpoints[key] for key in sorted(self.endpoints)]

    def sorted_services(self) -> list[ServiceRow]:
        return [self.services[key] for key in sorted(self.services)]


@dataclass(frozen=True, slots=True)
class LocalTask:
    """A task of this node whose container has namespaces just now."""

    task: Task
    pid: int
    own_network: bool = False

    @property
    def netns(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    @property
    def attachments(self) -> list[NetworkAttachment]:
        return [a for a in self.task.networks_attachments or () if a.addresses]


def local_tasks(rows: Rows, containers: Mapping[str, Container]) -> list[LocalTask]:
    """Those with a namespace of their own (not the host's), by task id."""
    return [
        LocalTask(rows.tasks[task_id], containers[task_id].pid, containers[task_id].own_network)
        for task_id in sorted(rows.tasks.keys() & containers.keys())
        if is_alive(containers[task_id]) and not uses_host_network(rows.tasks[task_id])
    ]


def is_alive(container: Container | None) -> bool:
    return container is not None and container.state in ("held", "running") and container.pid != 0


def weight(endpoint: EndpointRow, node_id: str, containers: Mapping[str, Container]) -> int | None:
    """1 = offered, 0 = keeps what it has, None = no backend. What died on this very node is out before any manager has heard of it."""
    if not (endpoint.serving or endpoint.draining):
        return None
    if endpoint.node_id == node_id:
        container = containers.get(endpoint.task_id)
        if not is_alive(container):
            return None
        if container is not None and container.health == "unhealthy":
            return 0
    return 1 if endpoint.serving and not endpoint.draining else 0


def bare(address: str) -> str:
    """Without prefix length."""
    return address.partition("/")[0]
