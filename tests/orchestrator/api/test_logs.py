"""Logs of services over several nodes, and the event stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.events import moment
from orchestrator.api.frames import STDERR, STDOUT, FrameReader, Line, RawReader, frame
from orchestrator.errors import ApiError, RemoteProtocolError
from orchestrator.model import ContainerSpec, ContainerStatus, Service, ServiceSpec, Task, TaskSpec, TaskState, TaskStatus
from orchestrator.store.base import Put
from tests.orchestrator.api.fakes import Setup

SHOW = "stdout=1&stderr=1"


def at(second: int, text: str, stream: int = STDOUT) -> bytes:
    return frame(stream, f"2026-01-01T00:00:{second:02}.000000000Z {text}\n".encode())


def a_task(number: int, node: str, tty: bool = False) -> Task:
    spec = TaskSpec(container_spec=ContainerSpec(image="busybox", tty=tty))
    status = TaskStatus(state=TaskState.RUNNING, container_status=ContainerStatus(container_id=f"c{number}"))
    return Task(id=f"t{number}", service_id="s1", slot=number, node_id=node, spec=spec, status=status, mesh_service_name="web")


@pytest.fixture
async def logging(manager: Setup) -> AsyncIterator[Setup]:
    """Service web with tasks t1 on node n1, t2 on n2; both nodes' Engines are the fake one."""
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(manager.backend.engine_socket)) as session:
        for node in ("n1", "n2"):
            manager.backend.engines[node] = (session, "http://engine")
        spec = ServiceSpec(name="web", task_template=TaskSpec(container_spec=ContainerSpec(image="busybox")))
        await manager.store.commit([Put(Service(id="s1", spec=spec)), Put(a_task(1, "n1")), Put(a_task(2, "n2"))])
        manager.engine.logs = {
            "c1": at(1, "one") + at(4, "four", STDERR),
            "c2": at(2, "two") + at(3, "three") + at(5, "five"),
        }
        yield manager


async def fetched(node: Setup, path: str) -> list[tuple[int, str]]:
    async with node.session.get(f"http://d{path}") as response:
        assert response.status == 200
        return list(parsed(await response.read()))


def parsed(data: bytes) -> Iterator[tuple[int, str]]:
    while data:
        size = int.from_bytes(data[4:8], "big")
        yield data[0], data[8 : 8 + size].decode()
        data = data[8 + size :]


async def test_logs_of_all_nodes_are_merged_by_time(logging: Setup) -> None:
    assert await fetched(logging, f"/v1.44/services/web/logs?{SHOW}&tail=all") == [
        (STDOUT, "one\n"), (STDOUT, "two\n"), (STDOUT, "three\n"), (STDERR, "four\n"), (STDOUT, "five\n"),
    ]  # fmt: skip
    assert logging.engine.log_queries[0] == {"stdout": "1", "stderr": "1", "timestamps": "1", "tail": "all"}


async def test_details_and_timestamps_as_the_cli_wants_them(logging: Setup) -> None:
    lines = await fetched(logging, f"/tasks/t1/logs?{SHOW}&details=1&timestamps=1&tail=1&since=5")
    context = "com.docker.swarm.node.id=n1,com.docker.swarm.service.id=s1,com.docker.swarm.task.id=t1"
    assert lines[0] == (STDOUT, f"2026-01-01T00:00:01.000000000Z {context} one\n")
    assert logging.engine.log_queries[-1]["since"] == "5"
    assert logging.engine.log_queries[-1]["tail"] == "1"


async def test_a_node_that_is_away_is_named_after_all_the_rest(logging: Setup) -> None:
    del logging.backend.engines["n2"]
    lines = await fetched(logging, f"/services/web/logs?{SHOW}")
    assert [text for _, text in lines[:2]] == ["one\n", "four\n"]
    stream, text = lines[2]
    assert stream == 3
    assert text.endswith("node n2 is not available")


async def test_neither_stream_is_an_error(logging: Setup) -> None:
    assert await logging.refused("GET", "/services/web/logs") == (400, "Bad parameters: you must choose at least one stream")
    assert await logging.refused("GET", "/services/nosuch/logs?stdout=1") == (404, "service nosuch not found")


async def test_follow_attaches_to_tasks_that_come_later(logging: Setup) -> None:
    async with asyncio.timeout(5):
        async with logging.session.get(f"http://d/services/web/logs?{SHOW}&follow=1&tail=0") as response:
            received = bytearray()
            while len(list(parsed(bytes(received)))) < 5:
                received += await response.content.readany()
            logging.engine.logs["c3"] = at(9, "late")
            await logging.store.commit([Put(a_task(3, "n1"))])
            while len(list(parsed(bytes(received)))) < 6:
                received += await response.content.readany()
    assert list(parsed(bytes(received)))[-1] == (STDOUT, "late\n")
    assert [query["tail"] for query in logging.engine.log_queries] == ["0", "0", "all"]


async def test_a_tty_is_shown_raw(logging: Setup) -> None:
    await logging.store.commit([Put(a_task(4, "n1", tty=True))])
    logging.engine.logs["c4"] = b"2026-01-01T00:00:01.000000000Z $ ls\r\n2026-01-01T00:00:02.000000000Z a  b\r\n"
    async with logging.session.get(f"http://d/tasks/t4/logs?{SHOW}") as response:
        assert await response.read() == b"$ ls\r\na  b\r\n"


@given(st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=40))), st.integers(1, 9))
def test_frames_are_the_same_however_they_are_cut(messages: list[tuple[int, bytes]], size: int) -> None:
    data = b"".join(frame(stream, b"T " + message) for stream, message in messages) + b"\x01\x00\x00"
    reader = FrameReader()
    lines = [line for start in range(0, len(data), size) for line in reader.feed(data[start : start + size])]
    assert lines == [Line("T", stream, message) for stream, message in messages]


@given(st.lists(st.text("ab \r", max_size=10)), st.integers(1, 9))
def test_raw_lines_are_the_same_however_they_are_cut(texts: list[str], size: int) -> None:
    data = "\n".join(f"T {text}" for text in texts).encode()
    reader = RawReader()
    lines = [line for start in range(0, len(data), size) for line in reader.feed(data[start : start + size])]
    assert b"".join(line.message for line in [*lines, *reader.end()]).decode() == "\n".join(texts)


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        list(FrameReader().feed(b"2026-01-01T00:00"))


# ---- events ------------------------------------------------------------------------------------------------------------------------


async def test_events_of_cluster_and_engine_in_one_stream(manager: Setup) -> None:
    async with asyncio.timeout(10):
        async with manager.session.get("http://d/v1.44/events") as response:
            assert response.status == 200
            manager.engine.events.publish("container", "start", "c1")
            assert json.loads(await response.content.readline())["Type"] == "container"
            created = await manager.ok("POST", "/configs/create", {"Name": "c", "Data": "eA=="})
            event = json.loads(await response.content.readline())
            assert (event["Type"], event["Action"], event["scope"]) == ("config", "create", "swarm")
            assert event["Actor"] == {"ID": created["ID"], "Attributes": {"name": "c"}}
            assert event["timeNano"] // 1_000_000_000 == event["time"]
            await manager.ok("DELETE", "/configs/c")
            assert json.loads(await response.content.readline())["Action"] == "remove"


async def test_past_events_until_now_and_filters(manager: Setup) -> None:
    start = datetime.now(UTC).timestamp() - 5
    async with asyncio.timeout(10):
        # the journal runs from soon after the node became a manager
        async with manager.session.get("http://d/events?" + 'filters={"type":["config"]}') as response:
            while True:
                await manager.call("POST", "/configs/create", {"Name": f"c{datetime.now(UTC).timestamp()}", "Data": "eA=="})
                try:
                    async with asyncio.timeout(0.2):
                        if json.loads(await response.content.readline())["Type"] == "config":
                            break
                except TimeoutError:
                    continue
        await manager.ok("POST", "/configs/create", {"Name": "last", "Data": "eA=="})
        await manager.ok("POST", "/secrets/create", {"Name": "other", "Data": "eA=="})
        until = datetime.now(UTC).timestamp() + 0.2
        async with manager.session.get(f'http://d/events?since={start}&until={until}&filters={{"type":{{"config":true}}}}') as response:
            lines = [json.loads(line) for line in (await response.read()).splitlines()]
    of_cluster = [line for line in lines if line.get("scope") == "swarm"]
    assert of_cluster[-1]["Actor"]["Attributes"]["name"] == "last"
    assert {line["Type"] for line in of_cluster} == {"config"}
    assert not any(path.partition("?")[0].endswith("/events") for _, path in manager.engine.asked), "no Engine knows of configs"
    assert await manager.refused("GET", "/events?since=5&until=4") == (400, "`since` time (5) cannot be after `until` time (4)")


def test_moments() -> None:
    assert moment("") is None
    assert moment("1795405385") == moment("1795405385.0") == datetime.fromtimestamp(1795405385, UTC)
    assert moment("2026-01-01T00:00:00Z") == datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(ApiError):
        moment("yesterday")
