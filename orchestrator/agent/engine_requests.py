"""Single requests to the Engine, and what its answers mean.

Edge: each function makes blocking calls with the client it is given. Source: Docker Engine API 1.41.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.utils
import requests
from docker.transport import UnixHTTPAdapter

from orchestrator.agent.container_spec import DNS_ADDRESS, LABEL_ADDRESS, ImageConfig
from orchestrator.agent.errors import EngineUnavailable
from orchestrator.errors import ConfigError, TaskError
from orchestrator.registry_auth import decoded as registry_auth_of

log = logging.getLogger(__name__)

EXIT_DEADLINE_S = 30
# in the resolv.conf of a container that joined a network of the cluster later: that, and what it asked before
_CHANGED = "# by meshd: on a network of the cluster"
_SAVED = "# by meshd: before: "
# the Engine answers 500 with these while its containerd restarts: not the task's fault
_TRANSIENT = ("connection refused: unavailable", "transport is closing", "ttrpc: closed", "code = Unavailable", "context deadline exceeded")


class OneConnection(UnixHTTPAdapter):  # type: ignore[misc, unused-ignore]
    """docker-py keeps a pool of connections for each URL, 25 of them a client whatever `num_pools` says: each container would leave some
    open. All requests of one client share one pool here, and so, one after the other, one connection."""

    def get_connection(self, url: str | bytes, proxies: Any = None) -> Any:
        return super().get_connection("http+docker://localhost", proxies)


def explanation(error: docker.errors.APIError) -> str:
    """The Engine's sentence. EngineUnavailable when it says that the Engine itself, not the request, is at fault."""
    text = str(error.explanation or error)
    if any(phrase in text for phrase in _TRANSIENT):
        raise EngineUnavailable(f"Docker Engine: {text}") from error
    return text


def image_config(client: docker.APIClient, name: str) -> ImageConfig | None:
    try:
        image = client.inspect_image(name)
    except docker.errors.NotFound:
        return None
    except docker.errors.APIError as error:
        if error.status_code == 400:
            raise TaskError(explanation(error), rejected=True) from error
        raise
    config = image.get("Config") or {}
    return ImageConfig(
        id=image["Id"],
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        environment=tuple(config.get("Env") or ()),
    )


def pull(client: docker.APIClient, name: str, registry_auth: str = "") -> str:
    """Try; why it failed, "" = it didn't. registry_auth: as in X-Registry-Auth."""
    try:
        repository, tag = docker.utils.parse_repository_tag(name)
        auth = registry_auth_of(registry_auth) if registry_auth else None
        for progress in client.pull(repository, tag or "latest", stream=True, decode=True, auth_config=auth):
            if "error" in progress:
                log.warning("image_pull failed image=%s error=%r", name, progress["error"])
                return str(progress["error"])
    except docker.errors.APIError as error:
        log.warning("image_pull failed image=%s error=%r", name, str(error.explanation or error))
        return str(error.explanation or error)
    except ConfigError as error:
        return str(error)
    return ""


def tagged(name: str) -> str:
    repository, tag = docker.utils.parse_repository_tag(name)
    return name if tag else f"{repository}:latest"


def name_itself(details: dict[str, Any]) -> None:
    """Add the container's own name to its /etc/hosts, as the Engine does on networks of its own. Many programs look it up."""
    address = (details["Config"].get("Labels") or {}).get(LABEL_ADDRESS, "")
    path = Path(details.get("HostsPath") or "/nonexistent")
    if address and details["HostConfig"]["NetworkMode"] == "none":
        with contextlib.suppress(OSError):
            line = f"{address}\t{details['Config']['Hostname']}\n"
            if line not in path.read_text():
                with path.open("a") as hosts:
                    hosts.write(line)


def ask_mesh(details: dict[str, Any]) -> Path | None:
    """Let a container that runs ask the node's DNS server instead of those it was given. Returns its resolv.conf if that is changed;
    None: it asked us from the start."""
    path = Path(details.get("ResolvConfPath") or "/nonexistent")
    ours = f"nameserver {DNS_ADDRESS}"
    with contextlib.suppress(OSError):
        lines = path.read_text().splitlines()
        if _CHANGED in lines:
            return path
        if [line for line in lines if line.startswith("nameserver")] != [ours]:
            kept = [_SAVED + line if line.startswith("nameserver") else line for line in lines]
            # written in place: the container has this very file mounted
            path.write_text("\n".join([_CHANGED, ours, *kept, ""]))
            return path
    return None


def ask_engine_again(path: Path) -> None:
    """Undo `ask_mesh`."""
    with contextlib.suppress(OSError):
        lines = path.read_text().splitlines()
        if _CHANGED in lines:
            kept = [line.removeprefix(_SAVED) for line in lines if line not in (_CHANGED, f"nameserver {DNS_ADDRESS}")]
            path.write_text("\n".join([*kept, ""]))


def stop_signal(client: docker.APIClient, container_id: str) -> str:
    with contextlib.suppress(docker.errors.NotFound):
        return client.inspect_container(container_id)["Config"].get("StopSignal") or "SIGTERM"
    return "SIGTERM"


def kill(client: docker.APIClient, container_id: str, signal: str) -> None:
    try:
        client.kill(container_id, signal)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        text = explanation(error)
        if "is paused" in text:
            client.unpause(container_id)
            client.kill(container_id, signal)
        elif error.status_code != 409 and "is not running" not in text:
            raise


def wait_exited(client: docker.APIClient, container_id: str) -> None:
    try:
        client.wait(container_id, timeout=EXIT_DEADLINE_S)
    except docker.errors.NotFound:
        return
    except requests.exceptions.RequestException as error:
        raise EngineUnavailable(f"container {container_id[:12]} did not exit within {EXIT_DEADLINE_S} s of being killed") from error
