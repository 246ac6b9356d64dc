"""`docker events` of many clients: each event once to each, the past joined to what comes, one connection an Engine, bounded memory."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from orchestrator.api import event_fan, event_filters, events
from orchestrator.api.event_fan import Fan, Listener
from orchestrator.api.event_filters import Described
from orchestrator.api.event_position import OVERLAP_NS, Position
from orchestrator.api.filters import Filters, parse
from orchestrator.store.base import Put
from tests.orchestrator.agent import wait
from tests.orchestrator.api.fake_stores import FakeStores, three_nodes
from tests.orchestrator.api.fakes import Setup

until = functools.partial(wait.until, deadline_s=30)

# ---- the fan: pure ---------------------------------------------------------------------------------------------------------------

ALL, ONLY_A = Filters(), Filters({"type": ("a",)})
# two lines of one byte
LIMIT_BYTES = 2 * 65


class Client:
    """Someone who listens, and what is known of them without asking the fan."""

    def __init__(self, fan: Fan, wanted: Filters) -> None:
        self.listener = fan.listen(wanted)
        self.due: list[bytes] = []
        self.read: list[bytes] = []

    def checked(self) -> None:
        unread = list(self.listener._lines)
        assert self.read == self.due[: len(self.read)], "in order, none twice, none missing"
        if self.listener.lost:
            assert not unread, "nothing is held for one that lost events"
            assert len(self.read) + self.listener.lost == len(self.due), "the number it is told is the number it lost"
        else:
            assert self.read + unread == self.due
        assert len(unread) <= 2


def played(steps: tuple[str, ...]) -> None:
    fan = Fan(LIMIT_BYTES)
    clients = {"x": Client(fan, ALL), "y": Client(fan, ONLY_A)}
    numbers = iter(b"0123456789")
    for step in steps:
        match step.split():
            case ["publish", kind]:
                line = bytes([next(numbers)])
                for client in clients.values():
                    if client.listener.wanted is ALL or kind == "a":
                        client.due.append(line)
                fan.publish(line, lambda wanted, kind=kind: wanted.exact("type", kind))  # type: ignore[misc]
            case ["read", name] if name in clients:
                clients[name].read += clients[name].listener.take(1)
            case ["leave", name] if name in clients:
                fan.leave(clients.pop(name).listener)
            case ["join", name] if name not in clients:
                clients[name] = Client(fan, ALL)
        for client in clients.values():
            client.checked()
    assert {id(wanted) for wanted in fan.wanted()} <= {id(client.listener.wanted) for client in clients.values()}


def test_every_listener_gets_every_event_once_whatever_others_do() -> None:
    steps = ("publish a", "publish b", "read x", "read y", "leave x", "join x")
    for sequence in itertools.product(steps, repeat=5):
        played(sequence)


def test_what_several_want_is_asked_once() -> None:
    fan = Fan()
    listeners = [fan.listen(Filters({"type": types, "event": ()})) for types in (("a", "b"), ("b", "a"), ("a",), ())]
    asked: list[Filters] = []
    fan.publish(b"line", lambda wanted: asked.append(wanted) or True)  # type: ignore[func-returns-value]
    assert len(asked) == 3
    assert all(listener.take() == [b"line"] for listener in listeners)


def test_a_listener_reads_piece_by_piece() -> None:
    listener = Listener(ALL)
    for line in (b"aaa", b"bb", b"cccc"):
        listener.add(line, event_fan.UNREAD_BYTES)
    assert [listener.take(5), listener.take(1), listener.take(1)] == [[b"aaa", b"bb"], [b"cccc"], []]


# ---- where an Engine's stream is: pure -------------------------------------------------------------------------------------------


def test_over_broken_connections_each_event_is_told_once() -> None:
    """All orders in which five events' times may be swapped with a neighbour's, times all points at which connections break."""
    apart_ns = OVERLAP_NS * 2 // 5
    times_of = [order for order in itertools.permutations(range(5)) if all(abs(place - time) <= 1 for place, time in enumerate(order))]
    assert len(times_of) == 8
    tried = 0
    for order, breaks, repeats in itertools.product(times_of, itertools.product(range(4), repeat=3), (False, True)):
        published = [(b"%d" % number, (time + 1) * apart_ns) for number, time in enumerate(order)]
        position, told, happened = Position(0), [], 0
        # on each connection so many more events happen and are sent, one more happens unseen, and it breaks; the last one stays
        for more in (*breaks, 5):
            kept = published[:happened]
            while kept and any(time < position.resume_ns for _, time in kept):
                # as the Engine looks for the beginning: from the newest back to the first that is older
                kept = kept[1 + max(number for number, (_, time) in enumerate(kept) if time < position.resume_ns) :]
            live = published[happened : happened + more]
            for line, time_ns in [*kept, *(kept[-1:] if repeats else []), *live]:
                if position.admits(line, time_ns):
                    told.append(line)
            happened = min(happened + more + 1, 5)
        assert told == [line for line, _ in published], (order, breaks)
        tried += 1
    assert tried == 8 * 64 * 2


def test_a_position_forgets_what_an_engine_cannot_say_again() -> None:
    position = Position(0)
    for number in range(1000):
        assert position.admits(b"%d" % number, number)
    assert len(position._recent) == 256
    assert position.admits(b"much later", 10 * OVERLAP_NS)
    assert (len(position._recent), position.resume_ns) == (1, 9 * OVERLAP_NS)
    assert position.admits(b"the clock was set back", 5)


# ---- filters: pure ---------------------------------------------------------------------------------------------------------------

STARTED = Described(
    "container", "start", "abcdef", "local", {"image": "docker.io/library/nginx:1.27@sha256:00", "name": "web", "tier": "x"}
)
EXECUTED = Described("container", "exec_start: sh -c true", "abcdef", "local", {"image": "busybox", "name": "web"})
TAGGED = Described("image", "tag", "sha256:12", "local", {"name": "host:5000/team/app:2"})
SERVED = Described("service", "update", "s1", "swarm", {"name": "api"}, {"tier": "y"})


@pytest.mark.parametrize(
    ("filters", "event", "expected"),
    [
        ("", STARTED, True),
        ('{"type":[]}', STARTED, True),
        ('{"type":["container"]}', STARTED, True),
        ('{"type":["image","volume"]}', STARTED, False),
        ('{"bogus":["x"]}', STARTED, True),
        ('{"event":["star"]}', STARTED, False),
        ('{"event":["exec_start"]}', EXECUTED, True),
        ('{"event":["exec_start: sh"]}', EXECUTED, False),
        ('{"container":["abc"]}', STARTED, True),
        ('{"container":["we"]}', STARTED, True),
        ('{"container":["eb"]}', STARTED, False),
        ('{"image":["nginx"]}', STARTED, True),
        ('{"image":["nginx:1.27"]}', STARTED, False),
        ('{"image":["docker.io/library/nginx:1.27@sha256:00"]}', STARTED, True),
        ('{"image":["host:5000/team/app"]}', TAGGED, True),
        ('{"image":["app"]}', TAGGED, False),
        ('{"label":["tier"]}', STARTED, True),
        ('{"label":["tier=x","name"]}', STARTED, True),
        ('{"label":["tier=y"]}', STARTED, False),
        ('{"label":["tier=y"]}', SERVED, True),
        ('{"label":["name"]}', SERVED, False),
        ('{"scope":["swarm"]}', SERVED, True),
        ('{"scope":["swarm"]}', STARTED, False),
        ('{"volume":["web"]}', STARTED, True),
        ('{"volume":["x"]}', STARTED, False),
    ],
)
def test_filters_as_docker_has_them(filters: str, event: Described, expected: bool) -> None:
    assert event_filters.passes(parse(filters, None), event) is expected


# ---- whole streams ---------------------------------------------------------------------------------------------------------------


class Stream:
    """A client's, read to its end in the background."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.events: list[dict[str, Any]] = []
        self.ended = asyncio.create_task(self._read(response))

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        while line := await response.content.readline():
            self.events.append(json.loads(line))

    def ids(self) -> list[str]:
        return [event["Actor"]["ID"] for event in self.events if event["Type"] != "daemon"]

    def of_daemon(self) -> list[tuple[str, str]]:
        return [(event["Action"], event["Actor"]["Attributes"]["node.name"]) for event in self.events if event["Type"] == "daemon"]


class Watched:
    """Three nodes, whose Engines' clocks differ, and clients of node-a."""

    def __init__(self, setup: Setup, stores: dict[str, FakeStores]) -> None:
        self.setup = setup
        self.engines = {name: store.events for name, store in stores.items()}

    @asynccontextmanager
    async def stream(self, query: str = "") -> AsyncIterator[Stream]:
        async with self.setup.session.get(f"http://d/v1.44/events{query}") as response:
            assert response.status == 200
            stream = Stream(response)
            try:
                yield stream
            finally:
                stream.ended.cancel()

    async def set_state(self, node_id: str, state: str) -> None:
        node = self.setup.store.snapshot().node(node_id)
        assert node is not None
        await self.setup.store.commit([Put(replace(node, status=replace(node.status, state=state)))])


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    stores = {name: FakeStores(name) for name in ("node-a", "node-b", "node-c")}
    stores["node-b"].events.ahead_s, stores["node-c"].events.ahead_s = 300.0, -300.0
    async with three_nodes(tmp_path, stores) as setup:
        yield Watched(setup, stores)


async def test_many_clients_are_one_connection_an_engine(watched: Watched) -> None:
    queries = ["", '?filters={"type":["volume"]}', '?filters={"node":["node-b"]}', '?filters={"type":["secret"]}']
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(watched.stream(query)) for query in queries * 50]
        for name, engine in watched.engines.items():
            assert len(engine.asked) <= 1
            await until(lambda engine=engine: engine.open == 1, "the source is connected")
            engine.publish("volume", "create", name)
        due = [set(watched.engines), set(watched.engines), {"node-b"}, set()] * 50
        await until(lambda: all(len(stream.events) >= len(ids) for stream, ids in zip(streams, due, strict=True)), "all are told")
        for stream, ids in zip(streams, due, strict=True):
            assert sorted(stream.ids()) == sorted(ids)
            assert all(event["Actor"]["Attributes"]["node.name"] == event["Actor"]["ID"] for event in stream.events)
        assert [len(engine.asked) for engine in watched.engines.values()] == [1, 1, 1]
    for engine in watched.engines.values():
        await until(lambda engine=engine: engine.open == 0, "nobody listens any more")


async def test_only_the_engines_that_are_wanted_are_asked(watched: Watched) -> None:
    async with watched.stream('?filters={"type":["secret","node"]}'), watched.stream('?filters={"scope":["swarm"]}'):
        async with watched.stream('?filters={"node":["node-b"]}'):
            await until(lambda: watched.engines["node-b"].open == 1, "one source")
        await until(lambda: watched.engines["node-b"].open == 0, "no source")
    assert [len(engine.asked) for engine in watched.engines.values()] == [0, 1, 0]


async def test_the_head_says_that_nothing_is_missed(watched: Watched) -> None:
    for engine in watched.engines.values():
        engine.publish("volume", "create", "before")
    async with watched.stream() as stream:
        # the Engines' connections may not even be open yet
        for engine in watched.engines.values():
            engine.publish("volume", "create", "after")
        await until(lambda: len(stream.events) >= 3, "told by all three")
        assert stream.ids() == ["after"] * 3


async def test_the_past_and_what_comes_join_without_a_gap(watched: Watched) -> None:
    """Clients join while the Engines and the cluster go on and on; each event is told once, in its Engine's order."""
    published = 0

    def publish() -> None:
        nonlocal published
        if published == 250:
            # an Engine keeps 256, and all of them are expected
            return
        for engine in watched.engines.values():
            engine.publish("volume", "create", str(published))
        published += 1

    for _ in range(10):
        publish()
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(20):
            joining = asyncio.create_task(stack.enter_async_context(watched.stream("?since=0")))
            while not joining.done():
                publish()
                await asyncio.sleep(0)
            streams.append(joining.result())
            await watched.setup.ok("POST", "/configs/create", {"Name": f"c{len(streams)}", "Data": "eA=="})
        expected = [str(number) for number in range(published)]

        def told(stream: Stream, node: str) -> list[str]:
            return [event["Actor"]["ID"] for event in stream.events if event["Actor"]["Attributes"].get("node.name") == node]

        def configs(stream: Stream) -> list[str]:
            return [event["Actor"]["Attributes"]["name"] for event in stream.events if event["Type"] == "config"]

        for number, stream in enumerate(streams):
            await until(lambda stream=stream: all(len(told(stream, node)) >= published for node in watched.engines), f"stream {number}")
            assert [told(stream, node) for node in watched.engines] == [expected] * 3
            await until(lambda stream=stream: len(configs(stream)) >= 20, f"stream {number}'s configs")
            assert configs(stream) == [f"c{number}" for number in range(1, 21)]
        assert all(engine.open == 1 for engine in watched.engines.values())


async def test_a_stream_ends_at_until_and_tells_the_past_before(watched: Watched) -> None:
    watched.engines["node-a"].publish("volume", "create", "past")
    end = time.time() + 0.5
    # as dockerd: `until` alone asks for the past, too
    for query in (f"?since=0&until={end:.9f}", f"?until={end:.9f}"):
        async with watched.stream(query + '&filters={"type":["volume"]}') as stream:
            if query.startswith("?since"):
                await until(lambda stream=stream: stream.ids() == ["past"], "the past is told first")
                watched.engines["node-a"].publish("volume", "create", "then")
            await stream.ended
            assert stream.ids() == ["past", "then"]


async def test_broken_connections_and_restarts_are_told_and_nothing_twice(watched: Watched) -> None:
    engine = watched.engines["node-b"]
    async with watched.stream('?filters={"node":["node-b"]}') as stream:
        await until(lambda: engine.open == 1, "connected")
        engine.publish("volume", "create", "1")
        await until(lambda: stream.ids() == ["1"], "told")
        engine.cut()
        await until(lambda: ("disconnect", "node-b") in stream.of_daemon(), "told that the connection broke")
        engine.publish("volume", "create", "2")
        await until(lambda: stream.ids() == ["1", "2"], "told afterwards")
        assert stream.of_daemon() == [("disconnect", "node-b"), ("connect", "node-b")]
        engine.away = True
        engine.restart()
        await until(lambda: len(stream.of_daemon()) == 3, "told that the Engine is gone")
        engine.publish("volume", "create", "3")
        engine.away = False
        await until(lambda: len(stream.of_daemon()) == 4, "told that it is back")
        await until(lambda: stream.ids() == ["1", "2", "3"], "told afterwards")


async def test_a_node_that_is_lost_comes_back(watched: Watched) -> None:
    engine = watched.engines["node-c"]
    await watched.set_state("nc", "down")
    async with watched.setup.session.get('http://d/v1.44/events?since=0&filters={"type":["volume","daemon"]}') as response:
        assert response.headers["Warning"] == '199 meshd "could not be asked: node-c (the node is down); their events are not shown"'
        stream = Stream(response)
        engine.publish("volume", "create", "meanwhile")
        await watched.set_state("nc", "ready")
        await until(lambda: ("connect", "node-c") in stream.of_daemon(), "told that it is there")
        # it happened after the client had come
        await until(lambda: stream.ids() == ["meanwhile"], "told what happened in between")
        stream.ended.cancel()


async def test_a_client_that_reads_nothing_is_told_what_it_lost(watched: Watched) -> None:
    engine = watched.engines["node-a"]
    async with watched.setup.session.get("http://d/v1.44/events") as response:
        await until(lambda: engine.open == 1, "connected")
        fan = watched.setup.app[events.FAN]
        (listener,) = (listener for alike in fan._alike.values() for listener in alike)
        large, count = "x" * 100_000, 0
        while not listener.lost:
            engine.publish("volume", "create", str(count), filler=large)
            count += 1
            await asyncio.sleep(0.001)
            assert count < 1000
        *read, last = [json.loads(line) async for line in response.content]
    assert [event["Actor"]["ID"] for event in read] == [str(number) for number in range(len(read))]
    assert (last["Type"], last["Action"]) == ("daemon", "disconnect")
    assert "reads slower than the cluster changes" in last["Actor"]["Attributes"]["reason"]
    assert 0 < len(read) < count


async def test_a_source_serves_those_who_remain(watched: Watched) -> None:
    engine = watched.engines["node-a"]
    async with watched.stream() as stream:
        for number in range(20):
            async with watched.stream():
                engine.publish("volume", "create", str(number))
        await until(lambda: len(stream.ids()) >= 20, "all told")
        assert stream.ids() == [str(number) for number in range(20)]
        assert len(engine.asked) == 1
