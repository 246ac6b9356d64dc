"""Logs of services over several nodes, and the event stream."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.events import moment
from orchestrator.api.frames import STDERR, STDOUT, FrameReader, Line, RawReader, frame, shown
from orchestrator.api.log_position import LogPosition
from orchestrator.errors import ApiError, RemoteProtocolError
from orchestrator.model import ContainerSpec, ContainerStatus, Service, ServiceSpec, Task, TaskSpec, TaskState, TaskStatus
from orchestrator.store.base import Put
from tests.orchestrator.agent.wait import until
from tests.orchestrator.api.fake_logs import parsed
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
        manager.engine.logs.logs = {
            "c1": at(1, "one") + at(4, "four", STDERR),
            "c2": at(2, "two") + at(3, "three") + at(5, "five"),
        }
        yield manager


async def fetched(node: Setup, path: str) -> list[tuple[int, str]]:
    async with node.session.get(f"http://d{path}") as response:
        assert response.status == 200
        return texts(await response.read())


def texts(data: bytes) -> list[tuple[int, str]]:
    return [(stream, payload.decode()) for stream, payload in parsed(data)]


class Followed:
    """What a client that follows has read so far."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._received = bytearray()

    async def lines(self, count: int) -> list[tuple[int, str]]:
        """Once there are that many."""
        async with asyncio.timeout(20):
            while len(texts(bytes(self._received))) < count:
                self._received += await self._response.content.readany()
        return texts(bytes(self._received))


async def test_logs_of_all_nodes_are_merged_by_time(logging: Setup) -> None:
    assert await fetched(logging, f"/v1.44/services/web/logs?{SHOW}&tail=all") == [
        (STDOUT, "one\n"), (STDOUT, "two\n"), (STDOUT, "three\n"), (STDERR, "four\n"), (STDOUT, "five\n"),
    ]  # fmt: skip
    assert logging.engine.logs.queries[0] == {"stdout": "1", "stderr": "1", "timestamps": "1", "tail": "all"}


async def test_details_and_timestamps_as_the_cli_wants_them(logging: Setup) -> None:
    lines = await fetched(logging, f"/tasks/t1/logs?{SHOW}&details=1&timestamps=1&tail=1&since=5")
    context = "com.docker.swarm.node.id=n1,com.docker.swarm.service.id=s1,com.docker.swarm.task.id=t1"
    assert lines[0] == (STDOUT, f"2026-01-01T00:00:01.000000000Z {context} one\n")
    assert logging.engine.logs.queries[-1]["since"] == "5"
    assert logging.engine.logs.queries[-1]["tail"] == "1"


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
    async with logging.session.get(f"http://d/services/web/logs?{SHOW}&follow=1&tail=0") as response:
        client = Followed(response)
        await until(lambda: logging.engine.logs.following == 2, "both are followed", 20)
        await logging.engine.logs.write("c1", at(6, "six"))
        assert await client.lines(1) == [(STDOUT, "six\n")]
        logging.engine.logs.logs["c3"] = at(9, "late")
        await logging.store.commit([Put(a_task(3, "n1"))])
        assert (await client.lines(2))[-1] == (STDOUT, "late\n")
    assert [query["tail"] for query in logging.engine.logs.queries] == ["0", "0", "all"]


async def test_follow_shows_the_past_in_order_of_time_and_goes_on_from_there(logging: Setup) -> None:
    async with logging.session.get(f"http://d/services/web/logs?{SHOW}&follow=1") as response:
        client = Followed(response)
        assert [text for _, text in await client.lines(5)] == ["one\n", "two\n", "three\n", "four\n", "five\n"]
        # of the same moment as the last one, and alike
        await logging.engine.logs.write("c2", at(5, "five") + at(6, "six"))
        assert [text for _, text in await client.lines(7)][5:] == ["five\n", "six\n"]


async def test_a_stream_that_breaks_is_taken_up_where_it_broke_and_says_so(logging: Setup) -> None:
    async with logging.session.get(f"http://d/services/web/logs?{SHOW}&follow=1&details=1") as response:
        client = Followed(response)
        await client.lines(5)
        await until(lambda: logging.engine.logs.following == 2, "both are followed", 20)
        session = logging.backend.engines.pop("n2")
        await logging.engine.logs.cut()
        stream, text = (await client.lines(6))[5]
        context = "com.docker.swarm.node.id=n2,com.docker.swarm.service.id=s1,com.docker.swarm.task.id=t2"
        assert (stream, text) == (STDERR, f"{context} meshd: node n2 is not available: its lines are shown once it is back\n")
        await logging.engine.logs.write("c2", at(7, "seven"))
        logging.backend.engines["n2"] = session
        # c1's stream broke as well, and was made again before there was anything to say
        await logging.engine.logs.write("c1", at(8, "eight"))
        shown = [text.removeprefix(f"{context} ") for _, text in (await client.lines(8))[6:]]
        assert sorted(text.rpartition(" ")[2] for text in shown) == ["eight\n", "seven\n"]


async def test_a_log_that_cannot_be_read_is_said_once(logging: Setup) -> None:
    logging.engine.logs.refusal = (501, "configured logging driver does not support reading")
    async with logging.session.get(f"http://d/tasks/t1/logs?{SHOW}&follow=1") as response:
        _, text = (await Followed(response).lines(1))[0]
        assert text.startswith("meshd: node n1: ") and "does not support reading" in text and "once it is back" not in text


async def test_a_tty_is_shown_raw(logging: Setup) -> None:
    await logging.store.commit([Put(a_task(4, "n1", tty=True))])
    logging.engine.logs.logs["c4"] = b"2026-01-01T00:00:01.000000000Z $ ls\r\n2026-01-01T00:00:02.000000000Z a  b\r\n"
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


@pytest.mark.parametrize(
    ("message", "expected"),
    [(" text\n", b"x=1,z=2 text\n"), ("y=5 text\n", b"x=1,y=5,z=2 text\n"), ("a=b,zz=1 a b\n", b"a=b,x=1,z=2,zz=1 a b\n")],
)
def test_details_are_added_to_the_log_drivers(message: str, expected: bytes) -> None:
    assert shown(Line("T", STDOUT, message.encode()), timestamps=False, details=("z=2", "x=1")) == expected


def test_over_broken_streams_each_line_is_shown_once() -> None:
    """Six lines, of which neighbours may be of one moment, alike, or swapped; all points at which streams break."""
    orders = [(0, 1, 2, 3, 4, 5), (0, 0, 0, 1, 2, 2), (1, 0, 2, 3, 5, 4), (0, 0, 0, 0, 0, 0), (0, 9, 18, 27, 36, 45)]
    for times, alike in itertools.product(orders, (False, True)):
        log = [
            (tenth, Line(f"2026-01-01T00:00:0{tenth // 10}.{tenth % 10}00000000Z", STDOUT, b"same" if alike else b"%d" % number))
            for number, tenth in enumerate(times)
        ]
        start = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
        for breaks in itertools.product(range(4), repeat=3):
            position, read = LogPosition(), []
            # so many lines come on each stream; the last one goes on to the end
            for count in (*breaks, 10):
                since = float(position.resume() or 0) - 1e-7
                sent = [line for tenth, line in log if start + tenth / 10 >= since]
                read += [line for line in sent[:count] if position.admits(line)]
            assert read == [line for _, line in log], (times, breaks)


def test_a_position_in_a_fast_log_is_small_and_repeats_nothing() -> None:
    position = LogPosition()
    lines = [Line(f"2026-01-01T00:00:00.{number:09d}Z", STDOUT, b"same") for number in range(1000)]
    assert all(position.admits(line) for line in lines)
    since = position.resume()
    assert since == f"{int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())}.{1000 - 256 + 1:09d}"
    assert not any(position.admits(line) for line in lines[1000 - 256 + 1 :])
    assert position.admits(lines[-1])


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
