"""What a task needs besides itself, as rows for its node: its secrets and configs, the templated ones as it is to see them; credentials.

Pure: no I/O; the function that opens secrets is an argument.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator

from orchestrator.dispatcher.messages import ConfigRow, RegistryRow, SecretRow
from orchestrator.errors import ConfigError, TaskError
from orchestrator.model import STATE_ORDER, Config, ContainerSpec, Node, Secret, Task, TaskState
from orchestrator.store.snapshot import Snapshot
from orchestrator.templates import render_payload

Open = Callable[[Secret], bytes | None]
"""A secret's content; None = it can't be opened."""


def file_rows(snapshot: Snapshot, task: Task, node: Node, open_secret: Open) -> Iterator[SecretRow | ConfigRow]:
    """`task` with its spec rendered. What doesn't exist, can't be opened or is no base64 is left out: the task is told that it lacks it."""
    container = task.spec.container_spec
    if container is None:
        return
    files = _Files(snapshot, container, open_secret)
    for row, obj, content in files.contents():
        if obj.spec.templating is None:
            yield row(id=obj.id, name=obj.spec.name, data=content)
        else:
            data, error = _rendered(snapshot, content, task, node, files)
            yield row(id=f"{task.id}/{obj.id}", name=obj.spec.name, data=data, error=error)


def registry_row(snapshot: Snapshot, task: Task, open_secret: Open) -> RegistryRow | None:
    """What the node needs to pull the task's image; None once it has it, or if nothing is known."""
    service = snapshot.service(task.service_id) if task.service_id else None
    if service is None or not service.mesh_registry_auth or STATE_ORDER[task.status.state] >= STATE_ORDER[TaskState.READY]:
        return None
    content = open_secret(Secret(id=service.id, mesh_ciphertext=service.mesh_registry_auth))
    return RegistryRow(service_id=service.id, auth=content.decode()) if content else None


class _Files:
    """(file name, object) of each: by those names templates ask for each other."""

    def __init__(self, snapshot: Snapshot, container: ContainerSpec, open_secret: Open) -> None:
        self._open_secret = open_secret
        self.secrets = [
            (reference.file.name if reference.file else reference.secret_name, secret)
            for reference in container.secrets or ()
            if (secret := snapshot.secret(reference.secret_id)) is not None
        ]
        self.configs = [
            (reference.file.name if reference.file else reference.config_name, config)
            for reference in container.configs or ()
            if reference.runtime is None and (config := snapshot.config(reference.config_id)) is not None
        ]

    def contents(self) -> Iterator[tuple[type[SecretRow] | type[ConfigRow], Secret | Config, bytes]]:
        """What there is and can be read, with the kind of row it goes into."""
        for _, secret in self.secrets:
            if (content := self._open_secret(secret)) is not None:
                yield SecretRow, secret, content
        for _, config in self.configs:
            if (content := _config_bytes(config)) is not None:
                yield ConfigRow, config, content

    def secret(self, target: str) -> str:
        found = next((secret for name, secret in self.secrets if name == target), None)
        return _text(self._open_secret(found) if found is not None else None, f"secret target {target}")

    def config(self, target: str) -> str:
        found = next((config for name, config in self.configs if name == target), None)
        return _text(_config_bytes(found) if found is not None else None, f"config target {target}")


def _rendered(snapshot: Snapshot, content: bytes, task: Task, node: Node, files: _Files) -> tuple[bytes, str]:
    """(what the task sees, "") or (nothing, why not)."""
    try:
        text = _text(content, "a template")
        service = snapshot.service(task.service_id)
        return render_payload(text, task, service, node, secret=files.secret, config=files.config).encode(), ""
    except (TaskError, ConfigError) as error:
        return b"", str(error)


def _text(content: bytes | None, what: str) -> str:
    if content is None:
        raise ConfigError(f"template: {what} not found")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"template: {what} is no text in UTF-8") from None


def _config_bytes(config: Config) -> bytes | None:
    try:
        return base64.b64decode(config.spec.data, validate=True)
    except binascii.Error:
        return None
