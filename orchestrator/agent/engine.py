"""The Docker Engine as a `Runtime`: one blocking SDK call a thread, bounded; states read back, never remembered beyond what a list shows.

Edge: talks to the Engine's socket, reads /proc, holds pidfds. Source: Docker Engine API 1.41, pidfd_open(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import docker
import docker.errors
import docker.utils
import msgspec
import requests

from orchestrator.agent import hold
from orchestrator.agent.container_spec import (
    LABEL_ATTACHMENT,
    LABEL_CLUSTER,
    LABEL_FENCE,
    LABEL_TASK,
    ImageConfig,
    container_name,
    create_request,
    environment,
    spec_of,
    task_files,
)
from orchestrator.agent.engine_description import description
from orchestrator.agent.engine_requests import (
    EXIT_DEADLINE_S,
    OneConnection,
    ask_engine_again,
    ask_mesh,
    explanation,
    image_config,
    kill,
    name_itself,
    pull,
    stop_signal,
    tagged,
    wait_exited,
)
from orchestrator.agent.engine_watch import Death, EventStream
from orchestrator.agent.errors import EngineUnavailable
from orchestrator.agent.runtime import Container, RuntimeEvent
from orchestrator.agent.task_files import TaskFiles
from orchestrator.errors import TaskError
from orchestrator.model import NodeDescription, Task

T = TypeVar("T")
log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 120
RELEASE_DEADLINE_S = 30.0


class DockerRuntime:
    """state_dir, files_dir: see `TaskFiles`. Only containers labelled with `cluster_id` exist for it."""

    def __init__(
        self,
        *,
        engine_url: str,
        cluster_id: str,
        state_dir: Path,
        files_dir: Path,
        hostname: str = "",
        busybox: Path | None = None,
        workers: int = 16,
        pulls: int = 3,
    ) -> None:
        self._engine_url = engine_url
        self._cluster_id = cluster_id
        self._hostname = hostname
        self._files = TaskFiles(state_dir, files_dir, busybox)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="engine")
        # pulls have threads of their own: a slow registry must never keep a container from being stopped
        self._pull_threads = ThreadPoolExecutor(pulls, thread_name_prefix="engine-pull")
        self._local = threading.local()
        self._seen: dict[str, _Seen] = {}
        self._container_ids: dict[str, str] = {}
        self._deaths: dict[str, Death] = {}
        self._queues: set[asyncio.Queue[RuntimeEvent]] = set()
        self._preparing: set[str] = set()
        # creating and starting take the Engine's time; half of the threads stay free for looking and stopping
        self._building = asyncio.Semaphore(max(1, workers // 2))
        # of containers started by hand: container id -> attachment as last named, attachment -> container id, and the files by which they
        # ask us for names
        self._joined: dict[str, str] = {}
        self._attached: dict[str, str] = {}
        self._asking: dict[str, Path] = {}
        self._swept = False
        self._gpu_requests = False

    async def close(self) -> None:
        for death in self._deaths.values():
            death.close()
        self._deaths.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pull_threads.shutdown(wait=False, cancel_futures=True)

    async def describe(self) -> NodeDescription:
        info: dict[str, Any] = await self._call(lambda client: client.info())
        # an Engine with NVIDIA's runtime has its hook too, which device requests need
        self._gpu_requests = "nvidia" in (info.get("Runtimes") or {})
        return msgspec.structs.replace(description(info, self._hostname), mesh_tasks_dir=str(self._files.tasks_dir))

    async def containers(self, joined: Mapping[str, str] = MappingProxyType({})) -> list[Container]:
        self._joined = dict(joined)
        seen = await self._call(self._read_all)
        self._seen = {entry.container.id: entry for entry in seen}
        self._container_ids = {entry.container.task_id: entry.container.id for entry in seen}
        for container_id in self._deaths.keys() - self._seen.keys():
            self._deaths.pop(container_id).close()
        found = [self._shown(entry.container) for entry in seen]
        self._attached = {container.task_id: container.id for container in found if container.attachment}
        if not self._swept:
            self._swept = True
            self._files.sweep({container.task_id for container in found} | self._preparing)
        return found

    async def prepare(self, task: Task, files: dict[str, bytes], registry_auth: str = "") -> Container:
        spec = spec_of(task)
        self._preparing.add(task.id)
        try:
            if (there := await self._find(task.id)) is not None:
                return there
            image = await self._image(spec.image, registry_auth)

            def create(client: docker.APIClient) -> Container:
                gate = self._files.make_gate(task.id, [*image.environment, *environment(task)])
                paths = self._files.write(task.id, task_files(spec), files)
                request = create_request(
                    task, image, cluster_id=self._cluster_id, gate_dir=str(gate), file_paths=paths, gpu_requests=self._gpu_requests
                )
                try:
                    client.create_container_from_config(request, container_name(task))
                except docker.errors.APIError as error:
                    # made by a process that was killed before it saw the answer, or by a cancelled call
                    if error.status_code != 409:
                        raise TaskError(explanation(error), rejected=True) from error
                    if not self._list(client, task.id):
                        raise TaskError(explanation(error), rejected=True) from error
                return self._read_one(client, self._list(client, task.id)[0]).container

            async with self._building:
                container = await self._call(create)
            self._container_ids[task.id] = container.id
            return container
        finally:
            self._preparing.discard(task.id)

    async def prepare_attachment(self, task: Task) -> None:
        attachment = task.spec.network_attachment_spec
        environment = (attachment.mesh_environment if attachment is not None else None) or []
        await self._call(lambda client: self._files.make_gate(task.id, environment))

    async def forget_attachment(self, task_id: str) -> None:
        path = self._asking.pop(task_id, None)

        def forget(client: docker.APIClient) -> None:
            if path is not None:
                ask_engine_again(path)
            self._files.remove(task_id)

        await self._call(forget)

    async def start_held(self, task_id: str) -> Container:
        container_id = await self._container_id(task_id)

        def start(client: docker.APIClient) -> _Seen:
            try:
                client.start(container_id)
            except docker.errors.APIError as error:
                raise TaskError(f"starting container failed: {explanation(error)}") from error
            details: dict[str, Any] = client.inspect_container(container_id)
            name_itself(details)
            # a fresh one without a health check is listed so: no need to ask for it once more
            return _seen(details, "" if details["State"].get("Health") else "running")

        async with self._building:
            entry = await self._call(start)
        self._seen[container_id] = entry
        return self._shown(entry.container)

    async def release(self, task_id: str) -> None:
        entry = self._seen.get(self._container_ids.get(task_id, ""))
        if entry is not None and entry.container.attachment:
            await self._call(lambda client: self._introduce(client, entry.container))
        gate = self._files.gate(task_id)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RELEASE_DEADLINE_S
        pid = 0
        while not hold.open_gate(gate):
            if not pid:
                container = await self._find(task_id)
                pid = container.pid if container else 0
            if not pid or not hold.is_waiting(pid):
                break
            if loop.time() > deadline:
                raise TaskError(f"the container's first process did not ask for its network within {RELEASE_DEADLINE_S:g} s")
            await asyncio.sleep(0.005)
        if gate.is_dir():
            hold.mark_released(gate)

    async def stop(self, task_id: str, grace_s: float, signal: str) -> None:
        container = await self._find(task_id)
        if container is None or container.state in ("created", "exited"):
            return
        if container.state == "held" or grace_s <= 0:
            # nobody listens to a signal while the holder is the first process
            signal, grace_s = "SIGKILL", 0.0
        await self._call(lambda client: kill(client, container.id, signal or stop_signal(client, container.id)))
        death = self._deaths.get(container.id)
        if death is not None and signal != "SIGKILL":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(death.happened.wait(), grace_s)
            if not death.happened.is_set():
                await self._call(lambda client: kill(client, container.id, "SIGKILL"))
        await self._call(lambda client: wait_exited(client, container.id))
        self._seen.pop(container.id, None)

    async def remove(self, task_id: str) -> None:
        def remove(client: docker.APIClient) -> None:
            for listed in self._list(client, task_id):
                with contextlib.suppress(docker.errors.NotFound):
                    try:
                        client.remove_container(listed["Id"], v=True, force=True)
                    except docker.errors.APIError as error:
                        # somebody else's removal is under way: it counts when it is done
                        if error.status_code != 409:
                            raise
                        client.wait(listed["Id"], timeout=EXIT_DEADLINE_S, condition="removed")
            self._files.remove(task_id)

        await self._call(remove)
        self._seen.pop(self._container_ids.pop(task_id, ""), None)

    async def events(self) -> AsyncIterator[RuntimeEvent]:
        queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue()
        self._queues.add(queue)
        stream = EventStream(self._engine_url, self._task_of, asyncio.get_running_loop(), queue.put_nowait)
        stream.start()
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)
            stream.close()

    def _introduce(self, client: docker.APIClient, container: Container) -> None:
        details: dict[str, Any] = client.inspect_container(container.id)
        name_itself(details)
        if path := ask_mesh(details):
            self._asking[container.task_id] = path

    # ---- reading -------------------------------------------------------------------------------------------------------------

    def _list(self, client: docker.APIClient, task_id: str = "") -> list[dict[str, Any]]:
        """All of ours, or those of one task or attachment."""
        if (attached := self._attached.get(task_id)) is not None:
            found: list[dict[str, Any]] = client.containers(all=True, filters={"id": [attached]})
            return found
        labels = [f"{LABEL_CLUSTER}={self._cluster_id}", *([f"{LABEL_TASK}={task_id}"] if task_id else ())]
        listed: list[dict[str, Any]] = client.containers(all=True, filters={"label": labels})
        others = self._joined.keys() - {entry["Id"] for entry in listed}
        if others and not task_id:
            listed += client.containers(all=True, filters={"id": sorted(others)})
        return [entry for entry in listed if _task_id(entry["Labels"], self._joined.get(entry["Id"], ""))]

    def _read_all(self, client: docker.APIClient) -> list[_Seen]:
        found = []
        for listed in self._list(client):
            # one that vanished after the list is one that is gone
            with contextlib.suppress(docker.errors.NotFound):
                found.append(self._read_one(client, listed))
        return found

    def _read_one(self, client: docker.APIClient, listed: dict[str, Any]) -> _Seen:
        """Asks for the details only if the list shows a change: a node with a hundred containers is listed at every event."""
        mark = _mark(listed)
        known = self._seen.get(listed["Id"])
        if known is not None and known.mark == mark and not self._is_dead(listed["Id"]):
            return known
        details = client.inspect_container(listed["Id"])
        if details["State"]["Status"] != listed["State"]:
            # it changed between the two questions: were the list to say the same again, it would not be the same process
            mark = ""
        entry = _seen(details, mark, self._joined.get(listed["Id"], ""))
        container = entry.container
        if container.state == "exited" and container.exit_code in (126, 127) and not container.error:
            with contextlib.suppress(docker.errors.APIError):
                line = client.logs(container.id, tail=1).decode(errors="replace")
                entry = replace_container(entry, error=hold.complaint(line))
        return entry

    def _shown(self, container: Container) -> Container:
        """The container as callers see it; its process is watched from here on. Runs in the event loop."""
        if container.state != "running":
            if (death := self._deaths.pop(container.id, None)) is not None:
                death.happened.set()
                death.close()
            return container
        death = self._deaths.get(container.id)
        if death is None or death.pid != container.pid:
            if death is not None:
                death.close()
            death = Death(container.pid, lambda: self._died(container.id, container.task_id))
            self._deaths[container.id] = death
        if death.happened.is_set():
            return replace(container, pid=0)
        # an attachment's may be started again and again: whether it was ever released says nothing
        released = not hold.is_waiting(container.pid) if container.attachment else hold.is_released(self._files.gate(container.task_id))
        return container if released else replace(container, state="held")

    def _task_of(self, container_id: str, labels: Mapping[str, str]) -> str:
        """Whose container an event is about, "" = not ours. Called in the events' thread."""
        own = labels if labels.get(LABEL_CLUSTER) == self._cluster_id else {}
        return _task_id(own, self._joined.get(container_id, ""))

    def _died(self, container_id: str, task_id: str) -> None:
        self._seen.pop(container_id, None)
        for queue in self._queues:
            queue.put_nowait(RuntimeEvent(task_id, "die"))

    def _is_dead(self, container_id: str) -> bool:
        death = self._deaths.get(container_id)
        return death is not None and death.happened.is_set()

    async def _find(self, task_id: str) -> Container | None:
        def find(client: docker.APIClient) -> _Seen | None:
            listed = self._list(client, task_id)
            return self._read_one(client, listed[0]) if listed else None

        entry = await self._call(find)
        if entry is None:
            return None
        self._seen[entry.container.id] = entry
        self._container_ids[task_id] = entry.container.id
        return self._shown(entry.container)

    async def _container_id(self, task_id: str) -> str:
        if (known := self._container_ids.get(task_id)) is not None:
            return known
        container = await self._find(task_id)
        if container is None:
            raise TaskError("the container is gone")
        return container.id

    # ---- images --------------------------------------------------------------------------------------------------------------

    async def _image(self, name: str, registry_auth: str) -> ImageConfig:
        if not name:
            raise TaskError("No image specified", rejected=True)
        found = await self._call(lambda client: image_config(client, name))
        if found is None:
            why = await self._call(lambda client: pull(client, name, registry_auth), self._pull_threads)
            found = await self._call(lambda client: image_config(client, name))
            if found is None:
                raise TaskError(f"No such image: {tagged(name)}{f' ({why})' if why else ''}", rejected=True)
        return found

    # ---- calling -------------------------------------------------------------------------------------------------------------

    def _client(self) -> docker.APIClient:
        client: docker.APIClient | None = getattr(self._local, "client", None)
        if client is None:
            client = docker.APIClient(base_url=self._engine_url, version="auto", timeout=CALL_TIMEOUT_S)
            if self._engine_url.startswith("unix://"):
                client.get_adapter("http+docker://").close()
                client.mount("http+docker://", OneConnection(self._engine_url.removeprefix("unix://"), CALL_TIMEOUT_S))
            self._local.client = client
        return client

    async def _call(self, function: Callable[[docker.APIClient], T], threads: ThreadPoolExecutor | None = None) -> T:
        def call() -> T:
            try:
                return function(self._client())
            except docker.errors.APIError as error:
                raise EngineUnavailable(f"Docker Engine: {explanation(error)}") from error
            except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
                raise EngineUnavailable(f"Docker Engine at {self._engine_url} does not answer: {error}") from error

        return await asyncio.get_running_loop().run_in_executor(threads or self._threads, call)


class _Seen:
    """A container as last inspected. mark: what the list said of it then. Held isn't told apart from running here."""

    __slots__ = ("container", "mark")

    def __init__(self, container: Container, mark: str) -> None:
        self.container = container
        self.mark = mark


def replace_container(entry: _Seen, *, error: str) -> _Seen:
    return _Seen(replace(entry.container, error=error), entry.mark)


def _mark(listed: dict[str, Any]) -> str:
    """State and health, without the ageing part ("Up 3 seconds (healthy)")."""
    return f"{listed['State']}{listed['Status'].partition('(')[2]}" if listed["State"] == "running" else str(listed["State"])


def _task_id(labels: Mapping[str, str], joined: str) -> str:
    return labels.get(LABEL_TASK) or labels.get(LABEL_ATTACHMENT) or joined


def _seen(details: dict[str, Any], mark: str, joined: str = "") -> _Seen:
    state = details["State"]
    status = state["Status"]
    shown = "created" if status == "created" else "running" if status in ("running", "paused", "restarting") else "exited"
    health = (state.get("Health") or {}).get("Status", "")
    labels = details["Config"]["Labels"] or {}
    ports = sorted(int(port.partition("/")[0]) for port in details["Config"].get("ExposedPorts") or () if port.endswith("/tcp"))
    return _Seen(
        Container(
            id=details["Id"],
            task_id=_task_id(labels, joined),
            name=details["Name"].lstrip("/"),
            state=shown,
            pid=state["Pid"] if shown == "running" else 0,
            exit_code=state["ExitCode"] if shown == "exited" else 0,
            error=state.get("Error", ""),
            health="" if health == "none" else health,
            tcp_ports=tuple(ports),
            started_at=_time(state.get("StartedAt", "")) if shown != "created" else None,
            fence_s=float(fence) if (fence := labels.get(LABEL_FENCE)) else None,
            attachment=not labels.get(LABEL_TASK),
            own_network=details["HostConfig"]["NetworkMode"] not in ("none", "host"),
        ),
        mark,
    )


def _time(text: str) -> datetime | None:
    """The Engine's nanoseconds are more than datetime takes."""
    head, _, rest = text.partition(".")
    fraction = rest.rstrip("Z")[:6]
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(f"{head.rstrip('Z')}.{fraction or '0'}+00:00")
    return None
