"""What every `Runtime` must do, whoever implements it. A subclass gives `bed`: `runtime()` (a new view of one engine) and `kill(pid)`."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Protocol

import msgspec
import pytest

from orchestrator.agent.runtime import Container, Runtime
from orchestrator.errors import TaskError
from orchestrator.model import SECOND, ContainerSpec, Task, TaskSpec

from .wait import until

_numbers = itertools.count(1)


class Bed(Protocol):
    def runtime(self) -> Runtime: ...
    def kill(self, pid: int) -> None: ...


def make_task(*argv: str, **spec: Any) -> Task:
    spec = {"image": "bb:1", "args": list(argv) or ["sleep", "1000"], **spec}
    return Task(
        id=f"task{next(_numbers):04d}", service_id="s1", mesh_service_name="web", slot=1, node_id="n1",
        spec=TaskSpec(container_spec=ContainerSpec(**spec)),
    )  # fmt: skip


async def seen(runtime: Runtime, task_id: str) -> Container | None:
    return next((c for c in await runtime.containers() if c.task_id == task_id), None)


async def exited(runtime: Runtime, task_id: str) -> Container:
    for _ in range(500):
        container = await seen(runtime, task_id)
        assert container is not None
        if container.state == "exited":
            return container
        assert container.state == "running"
        await asyncio.sleep(0.01)
    raise AssertionError(f"{task_id} did not exit")


async def run(runtime: Runtime, task: Task) -> Container:
    await runtime.prepare(task, {})
    await runtime.start_held(task.id)
    await runtime.release(task.id)
    container = await seen(runtime, task.id)
    assert container is not None
    return container


class RuntimeContract:
    async def test_states_from_nothing_to_running(self, bed: Bed) -> None:
        runtime, task = bed.runtime(), make_task()
        task = msgspec.structs.replace(task, mesh_fence=30 * SECOND)
        assert await seen(runtime, task.id) is None
        created = await runtime.prepare(task, {})
        assert (created.state, created.task_id, created.pid, created.name) == ("created", task.id, 0, f"web.1.{task.id}")
        assert await seen(runtime, task.id) == created
        assert created.fence_s == 30.0
        held = await runtime.start_held(task.id)
        assert held.state == "held"
        assert held.pid > 0
        assert held.started_at is not None
        assert await seen(runtime, task.id) == held
        await runtime.release(task.id)
        running = await seen(runtime, task.id)
        assert running is not None
        assert (running.state, running.pid, running.id) == ("running", held.pid, created.id)

    async def test_every_call_can_be_repeated(self, bed: Bed) -> None:
        runtime, task = bed.runtime(), make_task()
        first = await runtime.prepare(task, {})
        assert (await runtime.prepare(task, {})).id == first.id
        held = await runtime.start_held(task.id)
        assert await runtime.start_held(task.id) == held
        await runtime.release(task.id)
        await runtime.release(task.id)
        running = await seen(runtime, task.id)
        assert running is not None
        assert running.pid == held.pid
        await runtime.stop(task.id, 0.1, "")
        await runtime.stop(task.id, 0.1, "")
        assert (await exited(runtime, task.id)).exit_code in (137, 143)
        await runtime.remove(task.id)
        await runtime.remove(task.id)
        assert await seen(runtime, task.id) is None

    @pytest.mark.parametrize("code", [0, 3])
    async def test_exit_code(self, bed: Bed, code: int) -> None:
        runtime, task = bed.runtime(), make_task("sh", "-c", f"exit {code}")
        await run(runtime, task)
        container = await exited(runtime, task.id)
        assert (container.exit_code, container.pid, container.error) == (code, 0, "")

    async def test_no_such_program(self, bed: Bed) -> None:
        runtime, task = bed.runtime(), make_task("nosuch", "x")
        await run(runtime, task)
        container = await exited(runtime, task.id)
        assert (container.exit_code, container.error) == (127, 'exec: "nosuch": executable file not found in $PATH')

    async def test_no_such_image(self, bed: Bed) -> None:
        task = make_task(image="nosuch")
        with pytest.raises(TaskError, match=r"^No such image: nosuch:latest( \(.+\))?$") as caught:
            await bed.runtime().prepare(task, {})
        assert caught.value.rejected
        assert await seen(bed.runtime(), task.id) is None

    async def test_missing_secret(self, bed: Bed) -> None:
        from orchestrator.model import SecretReference

        task = make_task(secrets=[SecretReference(secret_id="x", secret_name="password")])
        with pytest.raises(TaskError, match=r"^secret password is not known to this node$") as caught:
            await bed.runtime().prepare(task, {})
        assert caught.value.rejected

    async def test_a_held_one_is_stopped_at_once(self, bed: Bed) -> None:
        runtime, task = bed.runtime(), make_task()
        await runtime.prepare(task, {})
        await runtime.start_held(task.id)
        async with asyncio.timeout(5):
            await runtime.stop(task.id, 30.0, "")
        assert (await exited(runtime, task.id)).exit_code == 137

    async def test_created_or_absent_need_no_stop(self, bed: Bed) -> None:
        runtime, task = bed.runtime(), make_task()
        await runtime.stop("absent", 1.0, "")
        await runtime.remove("absent")
        await runtime.prepare(task, {})
        await runtime.stop(task.id, 1.0, "")
        container = await seen(runtime, task.id)
        assert container is not None
        assert container.state == "created"

    async def test_remove_kills(self, bed: Bed) -> None:
        runtime, task = bed.runtime(), make_task()
        await run(runtime, task)
        await runtime.remove(task.id)
        assert await seen(runtime, task.id) is None

    async def test_start_of_what_is_gone(self, bed: Bed) -> None:
        runtime, task = bed.runtime(), make_task()
        await runtime.prepare(task, {})
        await runtime.remove(task.id)
        with pytest.raises(TaskError):
            await runtime.start_held(task.id)

    async def test_a_fresh_process_sees_and_releases_what_another_held(self, bed: Bed) -> None:
        first, task, other = bed.runtime(), make_task(), make_task()
        held = await first.start_held((await first.prepare(task, {})).task_id)
        running = await run(first, other)
        second = bed.runtime()
        found = {container.task_id: container for container in await second.containers()}
        assert (found[task.id].state, found[task.id].pid) == ("held", held.pid)
        assert (found[other.id].state, found[other.id].pid) == ("running", running.pid)
        await second.release(task.id)
        container = await seen(second, task.id)
        assert container is not None
        assert (container.state, container.pid) == ("running", held.pid)

    async def test_a_death_is_an_event_and_soon_seen(self, bed: Bed) -> None:
        runtime, task = bed.runtime(), make_task()
        heard: list[tuple[str, str]] = []

        async def listen() -> None:
            async for event in runtime.events():
                heard.append((event.task_id, event.action))

        listening = asyncio.create_task(listen())
        try:
            await until(lambda: ("", "connected") in heard, "connected")
            container = await run(runtime, task)
            bed.kill(container.pid)
            await until(lambda: (task.id, "die") in heard, "die")
            after = await seen(runtime, task.id)
            assert after is not None
            assert after.pid == 0
            assert (await exited(runtime, task.id)).exit_code == 137
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
