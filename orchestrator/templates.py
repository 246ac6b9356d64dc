"""Placeholders in a service's environment, hostname and mounts: `{{.Node.Hostname}}`, `{{.Task.Slot}}`, ...

Pure: no I/O. Source: Docker's "create services using templates" and SwarmKit's template package, which runs Go's text/template over
`.Service.ID .Name .Labels`, `.Node.ID .Hostname .Platform`, `.Task.ID .Name .Slot`. Here the expressions themselves are
understood and nothing else of that language: a field, `index` of the labels by a key, text in quotes; `{{-` and `-}}` trim.
"""

from __future__ import annotations

import re

import msgspec

from orchestrator.errors import TaskError
from orchestrator.model import ContainerSpec, Mount, Node, Service, Task, TaskSpec

_ACTION = re.compile(r"(\s*)\{\{(-\s)?(.*?)(\s-)?\}\}(\s*)", re.DOTALL)
_COMMENT = re.compile(r"/\*.*\*/", re.DOTALL)
_INDEX = re.compile(r"index\s+(\.[A-Za-z.]+)\s+(\"(?:[^\"\\]|\\.)*\"|`[^`]*`)")
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"|`[^`]*`")

_Value = str | dict[str, str]


def task_name(task: Task) -> str:
    """`web.1.<task id>`, or `web.<node id>.<task id>` for a global service: also the name of the task's container."""
    return f"{task.mesh_service_name}.{task.slot or task.node_id}.{task.id}"


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


def _values(task: Task, service: Service | None, node: Node) -> dict[str, _Value]:
    platform = node.description.platform
    return {
        ".Service.ID": task.service_id,
        ".Service.Name": service.spec.name if service else task.mesh_service_name,
        ".Service.Labels": (service.spec.labels if service else None) or {},
        ".Node.ID": node.id,
        ".Node.Hostname": node.description.hostname,
        # as Go prints a struct
        ".Node.Platform": f"{{{platform.architecture} {platform.os}}}",
        ".Node.Platform.Architecture": platform.architecture,
        ".Node.Platform.OS": platform.os,
        ".Task.ID": task.id,
        ".Task.Name": task_name(task),
        # a global service has no slots; SwarmKit gives the node's id then
        ".Task.Slot": str(task.slot) if task.slot else task.node_id,
    }


def _expand(text: str, values: dict[str, _Value]) -> str:
    if "{{" not in text:
        return text
    parts: list[str] = []
    position = 0
    while (start := text.find("{{", position)) >= 0:
        match = _ACTION.match(text, _before_space(text, start, position))
        if match is None:
            raise TaskError(f"template: unclosed action in '{text}'", rejected=True)
        before, trim_left, action, trim_right, after = match.groups()
        parts.append(text[position : match.start()])
        parts.append("" if trim_left else before)
        parts.append(_evaluate(action.strip(), text, values))
        position = match.end() if trim_right else match.end() - len(after)
    return "".join(parts) + text[position:]


def _before_space(text: str, start: int, least: int) -> int:
    """Where the white space in front of `start` begins, not before `least`."""
    while start > least and text[start - 1].isspace():
        start -= 1
    return start


def _evaluate(action: str, text: str, values: dict[str, _Value]) -> str:
    if _COMMENT.fullmatch(action):
        return ""
    if _QUOTED.fullmatch(action):
        return _unquoted(action)
    if match := _INDEX.fullmatch(action):
        table = values.get(match[1])
        if isinstance(table, dict):
            return table.get(_unquoted(match[2]), "")
        raise TaskError(f"template: can't index {match[1]} in '{text}': only .Service.Labels has keys", rejected=True)
    value = values.get(action)
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        # as Go prints a map
        return f"map[{' '.join(f'{key}:{value[key]}' for key in sorted(value))}]"
    if action.startswith(".Service.Labels.") and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key := action.removeprefix(".Service.Labels.")):
        labels = values[".Service.Labels"]
        # what Go prints for a key that a map doesn't have
        return labels.get(key, "<no value>") if isinstance(labels, dict) else ""
    raise TaskError(f"template: unknown placeholder '{{{{{action}}}}}' in '{text}': there are {', '.join(sorted(values))}", rejected=True)


def _unquoted(text: str) -> str:
    return text[1:-1] if text[0] == "`" else re.sub(r"\\(.)", r"\1", text[1:-1])


def _expand_mount(mount: Mount, values: dict[str, _Value]) -> Mount:
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
