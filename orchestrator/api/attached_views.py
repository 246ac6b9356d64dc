"""Containers on networks of the cluster as an Engine that knows those would show them.

Pure: no I/O. The holder (`attached.held`) is taken out and the networks are put in; what is shown is the container that was asked for. An
image that is made of a container has neither the holder nor our labels. Source: Docker Engine API 1.44, ContainerInspect, ContainerList,
ImageCommit.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from orchestrator.agent import hold
from orchestrator.agent.container_spec import LABEL_ADDRESS, LABEL_ATTACHMENT, LABEL_CLUSTER, LABEL_FENCE, LABEL_TASK
from orchestrator.api.attached import LABEL_ENTRYPOINT
from orchestrator.api.views import Json, mac
from orchestrator.model import Task, is_attachment
from orchestrator.store.snapshot import Snapshot

_OURS = (LABEL_CLUSTER, LABEL_ATTACHMENT, LABEL_ADDRESS, LABEL_ENTRYPOINT)
_HEAD = " ".join(hold.ENTRYPOINT) + " "


class Attachments:
    """Those of a snapshot, by their containers."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._by_container: dict[str, Task] = {}
        for task in snapshot.tasks_attaching():
            spec, status = task.spec.network_attachment_spec, task.status.container_status
            for id in (spec.container_id if spec else "", status.container_id if status else ""):
                if id:
                    self._by_container[id] = task

    def of(self, container_id: str, labels: Mapping[str, str] | None) -> Task | None:
        """labels: the container's, which say it from the moment that it is made."""
        named = self._snapshot.task((labels or {}).get(LABEL_ATTACHMENT, ""))
        return named if named is not None and is_attachment(named) else self._by_container.get(container_id)

    def inspected(self, details: Mapping[str, Any]) -> Json:
        """`docker inspect`."""
        shown = dict(details)
        configured, host = dict(shown.get("Config") or {}), dict(shown.get("HostConfig") or {})
        labels = configured.get("Labels") or {}
        task = self.of(str(shown.get("Id", "")), labels)
        if labels.get(LABEL_ATTACHMENT):
            entrypoint, command = _command_line(configured)
            shown["Path"], shown["Args"] = (entrypoint + command)[0], (entrypoint + command)[1:]
            configured |= {"Entrypoint": entrypoint or None, "Cmd": command or None, "Labels": _theirs(labels)}
            host |= {"NetworkMode": self._mode(task), "Dns": [], "Mounts": _without_gate(host.get("Mounts"), "Target") or None}
            shown |= {"Config": configured, "HostConfig": host, "Mounts": _without_gate(shown.get("Mounts"), "Destination")}
        if task is not None:
            settings = dict(shown.get("NetworkSettings") or {})
            settings["Networks"] = self._networks(task, settings.get("Networks"))
            settings["Ports"] = {**(settings.get("Ports") or {}), **_bindings(task)}
            shown["NetworkSettings"] = settings
        return shown

    def listed(self, entry: Mapping[str, Any]) -> Json:
        """One line of `docker ps`."""
        shown = dict(entry)
        labels = shown.get("Labels") or {}
        task = self.of(str(shown.get("Id", "")), labels)
        shown["Command"] = str(shown.get("Command", "")).removeprefix(_HEAD)
        if labels.get(LABEL_ATTACHMENT):
            shown["Labels"] = _theirs(labels)
            shown["Mounts"] = _without_gate(shown.get("Mounts"), "Destination")
            shown["HostConfig"] = {**(shown.get("HostConfig") or {}), "NetworkMode": self._mode(task)}
        if task is not None:
            settings = dict(shown.get("NetworkSettings") or {})
            settings["Networks"] = self._networks(task, settings.get("Networks"))
            shown["NetworkSettings"] = settings
            if shown.get("State") == "running":
                shown["Ports"] = [*(shown.get("Ports") or ()), *_listed_ports(task)]
        return shown

    def _mode(self, task: Task | None) -> str:
        first = next(iter(task.spec.networks or ()), None) if task is not None else None
        network = self._snapshot.network(first.target) if first is not None else None
        return network.name if network is not None else "none"

    def _networks(self, task: Task, local: Mapping[str, Any] | None) -> Json:
        """The Engine's own "none" goes: it is how we asked."""
        found: Json = {name: settings for name, settings in (local or {}).items() if name != "none"}
        configs = {config.target: config for config in task.spec.networks or ()}
        for joined in task.networks_attachments or ():
            network, asked = self._snapshot.network(joined.network.id), configs.get(joined.network.id)
            if network is None:
                continue
            aliases = list((asked.aliases if asked else None) or ())
            addresses = [ipaddress.ip_interface(address) for address in joined.addresses or ()]
            v4 = next((address for address in addresses if address.version == 4), None)
            v6 = next((address for address in addresses if address.version == 6), None)
            chosen = {f"IPv{6 if ':' in address else 4}Address": address for address in (asked.mesh_addresses if asked else None) or ()}
            found[network.name] = {
                "IPAMConfig": chosen or None,
                "Links": None,
                "Aliases": aliases or None,
                "NetworkID": network.id,
                "EndpointID": task.id,
                "Gateway": "",
                "IPAddress": str(v4.ip) if v4 else "",
                "IPPrefixLen": v4.network.prefixlen if v4 else 0,
                "IPv6Gateway": "",
                "GlobalIPv6Address": str(v6.ip) if v6 else "",
                "GlobalIPv6PrefixLen": v6.network.prefixlen if v6 else 0,
                "MacAddress": mac(str(v4.ip)) if v4 else "",
                "DriverOpts": None,
                "DNSNames": [task.name, *aliases],
            }
        return found


def attachment_of(snapshot: Snapshot, container_id: str, labels: Mapping[str, str] | None = None) -> Task | None:
    return Attachments(snapshot).of(container_id, labels)


def is_task(labels: Mapping[str, str] | None) -> bool:
    """Whether a container with these labels is a service's."""
    return bool((labels or {}).get(LABEL_TASK))


def committed(details: Mapping[str, Any], body: Any) -> Json | None:
    """The body of a commit of this container: what it was asked to run, and labels that make nothing of ours of its image's containers.
    None: as it was sent; there was no holder."""
    configured = details.get("Config") or {}
    labels = configured.get("Labels") or {}
    if not (labels.get(LABEL_ATTACHMENT) or labels.get(LABEL_TASK)):
        return None
    entrypoint, command = _command_line(configured)
    sent = body if isinstance(body, dict) else {}
    ours = {name: "" for name in (*_OURS, LABEL_TASK, LABEL_FENCE) if name in labels}
    run = {"Entrypoint": sent.get("Entrypoint") or entrypoint, "Cmd": sent.get("Cmd") or command}
    return {**sent, **run, "Labels": {**(sent.get("Labels") or {}), **ours}}


def _command_line(configured: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(entrypoint, command) that were asked for. What a service's task runs is all command."""
    argv = list(configured.get("Cmd") or ())
    words = int((configured.get("Labels") or {}).get(LABEL_ENTRYPOINT) or 0)
    return argv[:words], argv[words:]


def _theirs(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name not in _OURS}


def _without_gate(mounts: Any, key: str) -> list[Any]:
    return [mount for mount in mounts or () if mount.get(key) != hold.MOUNT]


def _bindings(task: Task) -> Json:
    ports: Json = {}
    for port in task.mesh_endpoint_ports or ():
        binding = {"HostIp": "0.0.0.0", "HostPort": str(port.published_port)}
        ports.setdefault(f"{port.target_port}/{port.protocol}", []).append(binding)
    return ports


def _listed_ports(task: Task) -> list[Json]:
    return [
        {"IP": "0.0.0.0", "PrivatePort": port.target_port, "PublicPort": port.published_port, "Type": port.protocol}
        for port in task.mesh_endpoint_ports or ()
    ]
