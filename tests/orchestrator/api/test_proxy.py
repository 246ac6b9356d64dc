"""What is not the cluster's reaches the Engine as it was sent, and comes back as it was answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.api.app import serve_unix
from orchestrator.api.remote_engine import _RequestDuplex
from orchestrator.errors import ConfigError
from tests.orchestrator.api.fakes import FakeEngine, Setup, a_node, other_node

ATTACH = (
    b"POST /v1.44/containers/%s/attach?stdin=1&stream=1%s HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
    b"Content-Type: text/plain\r\n%s\r\n"
)


@dataclass
class Way:
    """To an Engine through `setup`: this node's, or, with `query`, another's."""

    setup: Setup
    engine: FakeEngine
    query: str

    async def attach(self, container: bytes, extra: bytes = b"Content-Length: 0\r\n") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self.setup.socket)
        writer.write(ATTACH % (container, self.query.encode(), extra))
        return reader, writer


@pytest.fixture(params=["this node", "another node"])
async def way(request: pytest.FixtureRequest, manager: Setup, tmp_path: Path) -> AsyncIterator[Way]:
    if request.param == "this node":
        yield Way(manager, manager.engine, "")
        return
    engine = FakeEngine()
    async with other_node(manager, tmp_path, a_node("nb", "node-b"), engine.app()):
        yield Way(manager, engine, "&node=node-b")


async def test_the_version_is_lowered_to_the_engines(node: Setup) -> None:
    for asked, reached in (("/v1.44", "/v1.41"), ("/v1.30", "/v1.30"), ("", "/v1.41")):
        assert await node.ok("GET", f"{asked}/containers/json?all=1&filters=%7B%22label%22%3A%7B%22k%3Dv%22%3Atrue%7D%7D") == []
        assert node.engine.asked[-1] == ("GET", f"{reached}/containers/json?all=1&filters=%7B%22label%22%3A%7B%22k%3Dv%22%3Atrue%7D%7D")


async def test_answers_carry_our_headers_once(node: Setup) -> None:
    for path in ("/_ping", "/v1.44/containers/json", "/v1.44/nodes", "/v9.99/nodes"):
        async with node.session.get(f"http://d{path}") as response:
            assert response.headers.getall("Api-Version") == ["1.50"]
            assert response.headers.getall("Ostype") == ["linux"]
            assert response.headers.getall("Docker-Experimental") == ["false"]
            assert len(response.headers.getall("Server")) == 1
    async with node.session.head("http://d/_ping") as response:
        assert (response.status, response.headers["Swarm"], await response.read()) == (200, "inactive", b"")


async def test_the_head_of_wait_comes_before_its_body(way: Way) -> None:
    async with asyncio.timeout(20):
        async with way.setup.session.post(f"http://d/v1.44/containers/c1/wait?condition=next-exit{way.query}") as response:
            assert response.status == 200
            assert not way.engine.waiting.is_set()
            way.engine.waiting.set()
            assert await response.json() == {"StatusCode": 7}


async def test_head_and_headers_pass(way: Way) -> None:
    async with way.setup.session.head(f"http://d/v1.44/containers/c1/archive?path=/x{way.query}") as response:
        assert (response.status, response.headers["X-Docker-Container-Path-Stat"]) == (200, "e30=")


async def test_large_uploads_are_streamed(way: Way) -> None:
    async def chunks():  # type: ignore[no-untyped-def]
        for _ in range(64):
            yield b"x" * 1024 * 1024

    async with way.setup.session.put(f"http://d/v1.44/containers/c1/archive?path=/x{way.query}", data=chunks()) as response:
        assert response.status == 200
    assert way.engine.bodies[-1] == str(64 * 1024 * 1024).encode()


async def test_half_closed_input_reaches_the_container_and_output_goes_on(way: Way) -> None:
    async with asyncio.timeout(20):
        reader, writer = await way.attach(b"c1")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101")
        assert b"Upgrade: tcp" in head
        assert await reader.readline() == b"hello\n"
        writer.write(b"abc\n")
        assert await reader.readline() == b"ABC\n"
        writer.write(b"x" * 1_000_000)
        writer.write_eof()
        assert await reader.read() == b"X" * 1_000_000 + b"bye\n"
        writer.close()
    assert len(way.engine.stdin) == 1_000_004


async def test_a_body_before_the_upgrade_is_not_taken_for_input(way: Way) -> None:
    async with asyncio.timeout(20):
        reader, writer = await way.attach(b"c1", b"Content-Length: 2\r\n")
        writer.write(b"{}")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        writer.write_eof()
        assert await reader.read() == b"hello\nbye\n"
        writer.close()
    assert way.engine.stdin == b""


async def test_a_header_that_comes_more_than_once_arrives_as_often(way: Way) -> None:
    """A build's session names each method that its client offers so."""
    async with asyncio.timeout(20):
        offered = b"".join(b"X-Docker-Expose-Session-Grpc-Method: /moby.%d\r\n" % number for number in range(3))
        reader, writer = await way.attach(b"c1", offered + b"Content-Length: 0\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write_eof()
        await reader.read()
        writer.close()
    arrived = [value for name, value in way.engine.attached_with if name == "X-Docker-Expose-Session-Grpc-Method"]
    assert arrived == ["/moby.0", "/moby.1", "/moby.2"]


async def test_an_upgrade_that_the_engine_refuses_is_an_ordinary_answer(way: Way) -> None:
    async with asyncio.timeout(20):
        reader, writer = await way.attach(b"nosuch")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404")
        # the Engine says it itself, as it came
        assert b"Content-Type: application/json; charset=utf-8" in head
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        assert json.loads(await reader.readexactly(length)) == {"message": "No such container: nosuch"}
        # the connection still speaks HTTP
        writer.write(b"GET /v1.44/containers/json HTTP/1.1\r\nHost: d\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_killed_client_frees_the_engines_stream(way: Way) -> None:
    async with asyncio.timeout(20):
        reader, writer = await way.attach(b"silent")
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        await way.engine.client_gone.wait()


async def test_a_client_that_reads_nothing_stops_the_container_instead_of_filling_memory(way: Way) -> None:
    """What is under way between the two is kernel buffers and a chunk a hop; the Engine here would write for ever."""
    async with asyncio.timeout(30):
        reader, writer = await way.attach(b"flood")
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        written = -1
        while written != way.engine.flooded or not written:
            written = way.engine.flooded
            await asyncio.sleep(0.5)
        assert written < 16 * 1024 * 1024
        writer.transport.resume_reading()
        while way.engine.flooded < 2 * written:
            assert await reader.read(1024 * 1024)
        writer.transport.abort()
        await way.engine.client_gone.wait()


@pytest.mark.parametrize(("protocol", "words"), [(b"tcp", b"\r\nthe way is lost\r\n"), (b"h2c", b"")])
async def test_what_breaks_off_ends_with_words_where_they_are_read(
    manager: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: bytes, words: bytes
) -> None:
    """A container's terminal; not the HTTP/2 of a build's session, for which they would be nonsense."""

    async def lost(duplex: object) -> bytes:
        monkeypatch.undo()
        monkeypatch.setattr(_RequestDuplex, "read", broken)
        return b"hello\n"

    async def broken(duplex: object) -> bytes:
        raise ConnectionResetError("the way is lost")

    monkeypatch.setattr(_RequestDuplex, "read", lost)
    async with asyncio.timeout(20), other_node(manager, tmp_path, a_node("nb", "node-b"), FakeEngine().app()):
        reader, writer = await asyncio.open_unix_connection(manager.socket)
        writer.write(ATTACH.replace(b"Upgrade: tcp", b"Upgrade: " + protocol) % (b"c1", b"&node=node-b", b"Content-Length: 0\r\n"))
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == b"hello\n" + words
        writer.close()


async def test_an_engine_that_hangs_on_a_registry_is_not_waited_for(node: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.api.proxy._DISTRIBUTION_TIMEOUT_S", 0.1)
    assert await node.refused("GET", "/v1.44/distribution/reg.example:5000/x:1/json") == (
        504, "the Docker Engine of this node did not answer within 0.1 s",
    )  # fmt: skip


async def test_a_served_socket_is_not_taken_over_and_a_dead_one_is(node: Setup) -> None:
    with pytest.raises(ConfigError, match="another process serves"):
        await serve_unix(node.backend, node.socket)
    import socket as sockets

    dead = node.socket + ".dead"
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(dead)
    runner = await serve_unix(node.backend, dead)
    await runner.cleanup()
