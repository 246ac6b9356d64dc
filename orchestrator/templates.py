"""Placeholders in a service's environment, hostname and mounts, and in templated configs and secrets.

Pure: no I/O. Source: Docker's "create services using templates" and SwarmKit's template package: `.Service.ID .Name .Labels`,
`.Node.ID .Hostname .Platform`, `.Task.ID .Name .Slot` everywhere; in configs and secrets also `env "NAME"`, `secret "target"` and
`config "target"`, of the task that names them. The language is `go_template`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from orchestrator.errors import ConfigError, TaskError
from orchestrator.go_template import Fields, Function, parse, shown
from orchestrator.model import ContainerSpec, Mount, Node, Service, Task, TaskSpec


def task_name(task: Task) -> str:
    """`web.1.<task id>`, or `web.<node id>.<task id>` for a global service: also the name of the task's container. That of a container
    started by hand is its own."""
    return task.name or f"{task.mesh_service_name}.{task.slot or task.node_id}.{task.id}"


def is_template(spec: TaskSpec) -> bool:
    """Whether rendering could change anything. Cheap: most specs have no placeholder."""
    container = spec.container_spec
    return container is not None and any("{{" in text for text in _texts(container))


def render(spec: TaskSpec, task: Task, service: Service | None, node: Node) -> TaskSpec:
    """The spec as the node is to run it. TaskError (rejected): the template asks for something that doesn't exist.

    service None: it was removed meanwhile; its name is the task's, its labels are empty.
    """
    container = spec.container_spec
    if container is None or not is_template(spec):
        return spec
    values = _values(task, service, node)
    rendered = msgspec.structs.replace(
        container,
        hostname=_expand(container.hostname, values),
        env=[_expand(text, values) for text in container.env] if container.env is not None else None,
        mounts=[_expand_mount(mount, values) for mount in container.mounts] if container.mounts is not None else None,
    )
    return msgspec.structs.replace(spec, container_spec=rendered)


def _texts(container: ContainerSpec) -> list[str]:
    texts = [container.hostname, *(container.env or ())]
    for mount in container.mounts or ():
        texts += [mount.source, mount.target]
        if mount.volume_options:
            for key, value in (mount.volume_options.labels or {}).items():
                texts += [key, value]
            driver = mount.volume_options.driver_config
            texts += (driver.options or {}).values() if driver else ()
    return texts


def render_payload(
    text: str, task: Task, service: Service | None, node: Node, *, secret: Callable[[str], str], config: Callable[[str], str]
) -> str:
    """A templated config or secret as the task is to see it. secret, config: by their file names in the task; ConfigError: no such.

    `task` with its spec rendered: `env` gives what the container gets. TaskError (rejected): a sentence why it can't be.
    """
    container = task.spec.container_spec or ContainerSpec()
    variables = dict(entry.partition("=")[::2] for entry in container.env or ())
    functions: dict[str, Function] = {
        "env": lambda name: variables.get(shown(name), ""),
        "secret": lambda target: secret(shown(target)),
        "config": lambda target: config(shown(target)),
    }
    try:
        return parse(text).render(_values(task, service, node), functions)
    except ConfigError as error:
        raise TaskError(str(error), rejected=True) from None


def _values(task: Task, service: Service | None, node: Node) -> Fields:
    platform = node.description.platform
    return Fields(
        Service=Fields(
            ID=task.service_id,
            Name=service.spec.name if service else task.mesh_service_name,
            Labels=(service.spec.labels if service else None) or {},
        ),
        Node=Fields(
            ID=node.id,
            Hostname=node.description.hostname,
            Platform=Fields(Architecture=platform.architecture, OS=platform.os),
        ),
        # a global service has no slots; SwarmKit gives the node's id then
        Task=Fields(ID=task.id, Name=task_name(task), Slot=str(task.slot) if task.slot else task.node_id),
    )


def _expand(text: str, values: Fields) -> str:
    if "{{" not in text:
        return text
    try:
        return parse(text).render(values, {})
    except ConfigError as error:
        raise TaskError(str(error), rejected=True) from None


def _expand_mount(mount: Mount, values: Fields) -> Mount:
    options = mount.volume_options
    if options is not None:
        driver = options.driver_config
        if driver is not None and driver.options:
            expanded = {key: _expand(value, values) for key, value in driver.options.items()}
            driver = msgspec.structs.replace(driver, options=expanded)
        labels = options.labels
        if labels:
            labels = {_expand(key, values): _expand(value, values) for key, value in labels.items()}
        options = msgspec.structs.replace(options, driver_config=driver, labels=labels)
    return msgspec.structs.replace(
        mount, source=_expand(mount.source, values), target=_expand(mount.target, values), volume_options=options
    )
