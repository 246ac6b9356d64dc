"""The doors of the API: who gets in over TCP, and what a client may cost. Real sockets, real certificates."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from orchestrator.api import access
from orchestrator.api.app import announce, counted, serve
from orchestrator.api.connection import LimitedRunner, Limits
from orchestrator.api.endpoints import TcpEndpoint, TlsFiles, UnixEndpoint
from orchestrator.errors import ConfigError
from orchestrator.security import api_certificates
from orchestrator.security.api_certificates import ServerContext
from tests.orchestrator.agent.wait import until
from tests.orchestrator.api.fakes import FakeBackend, Setup
from tests.orchestrator.api.tls import client_context, files, free_port


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def served(
    tmp_path: Path, limits: Limits = Limits(), tls: TlsFiles | None = None
) -> AsyncIterator[tuple[FakeBackend, TcpEndpoint, str]]:
    """A node in no cluster and without an Engine, on TCP and on a unix socket."""
    backend = FakeBackend(str(tmp_path / "engine.sock"))
    endpoint, path = TcpEndpoint("127.0.0.1", free_port(), tls=tls is not None), str(tmp_path / "api.sock")
    runner = await serve(backend, [UnixEndpoint(path), endpoint], tls=tls, limits=limits)
    try:
        yield backend, endpoint, path
    finally:
        await runner.cleanup()


async def exchange(endpoint: TcpEndpoint, sent: bytes) -> tuple[int, str]:
    """Status and message of what comes back until the server closes."""
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    writer.write(sent)
    try:
        return parsed(await asyncio.wait_for(reader.read(), 20))
    finally:
        writer.close()


def parsed(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), str(json.loads(body)["message"])


# ---- TLS ---------------------------------------------------------------------------------------------------------------------------


async def test_a_client_of_the_ca_gets_in_and_nobody_else(tmp_path: Path, certificates: Path) -> None:
    other = tmp_path / "other"
    api_certificates.make(other, ["alice"], ["127.0.0.1"], now())
    old = tmp_path / "old"
    shutil.copytree(certificates, old)
    shutil.rmtree(old / "alice")
    api_certificates.make(old, ["alice"], [], now() - api_certificates.LIFE - timedelta(days=1))
    stranger = client_context(certificates)
    stranger.load_cert_chain(other / "alice" / "cert.pem", other / "alice" / "key.pem")
    server_as_client = client_context(certificates)
    server_as_client.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
    async with served(tmp_path, tls=files(certificates)) as (_, endpoint, _), aiohttp.ClientSession() as session:
        url = f"https://127.0.0.1:{endpoint.port}/_ping"
        async with session.get(url, ssl=client_context(certificates, "alice")) as response:
            assert await response.text() == "OK"
        async with session.get(url, ssl=client_context(certificates)) as response:
            assert response.status == 403
            assert "clients with a certificate of its CA only" in (await response.json())["message"]
        for context in (stranger, client_context(old, "alice"), server_as_client):
            with pytest.raises((aiohttp.ClientError, ssl.SSLError, OSError)):
                async with session.get(url, ssl=context) as response:
                    pytest.fail(f"let in: {await response.text()}")
        # and the client doesn't take another CA's server for ours
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            async with session.get(url, ssl=client_context(other, "alice")):
                pass
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        writer.write(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.0 400 ") and b"Client sent an HTTP request to an HTTPS server." in answer
        writer.close()


async def test_renewed_certificates_are_taken_up(tmp_path: Path) -> None:
    directory = tmp_path / "certs"
    api_certificates.make(directory, ["alice"], ["localhost"], now())
    context = ServerContext(*(getattr(files(directory), name) for name in ("ca", "certificate", "key")))
    first = context()
    assert context() is first
    # half a renewal: the old pair serves on
    key = (directory / "server-key.pem").read_bytes()
    (directory / "server-key.pem").write_bytes((directory / "alice" / "key.pem").read_bytes())
    assert context() is first
    (directory / "server-key.pem").write_bytes(key)
    assert len(api_certificates.make(directory, ["alice"], ["localhost"], now(), renew=True)) == 2
    assert context() is not first


def test_making_certificates_again_makes_what_is_missing(tmp_path: Path) -> None:
    directory = tmp_path / "certs"
    assert [path.name for path in api_certificates.make(directory, ["client"], ["localhost"], now())] == [
        "ca.pem",
        "server-cert.pem",
        "cert.pem",
    ]
    assert api_certificates.make(directory, ["client"], ["localhost"], now()) == []
    assert api_certificates.make(directory, ["client", "b"], ["localhost"], now()) == [directory / "b" / "cert.pem"]
    # cut off between key and certificate
    (directory / "server-key.pem").write_bytes((directory / "ca-key.pem").read_bytes())
    assert api_certificates.make(directory, [], ["localhost"], now()) == [directory / "server-cert.pem"]
    for path in directory.rglob("*key.pem"):
        assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="can't name a client"):
        api_certificates.make(directory, ["../up"], [], now())
    (directory / "ca-key.pem").unlink()
    with pytest.raises(ConfigError, match="which signs for it, is not"):
        api_certificates.make(directory, ["c"], [], now())


async def test_missing_and_unfit_certificates_are_named(tmp_path: Path, certificates: Path) -> None:
    good = files(certificates)
    for bad, sentence in (
        (replace(good, ca=tmp_path / "none.pem"), "none.pem is missing: `meshd api-certs` makes it"),
        (replace(good, key=certificates / "ca-key.pem"), "can't be used"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            async with served(tmp_path, tls=bad):
                pass
    async with served(tmp_path, tls=good) as (backend, endpoint, _):
        with pytest.raises(ConfigError, match="another program listens there"):
            await serve(backend, [endpoint], tls=good)
        with pytest.raises(ConfigError, match="cannot listen on tcp://"):
            await serve(backend, [replace(endpoint, tls=False)])


# ---- limits ------------------------------------------------------------------------------------------------------------------------


async def test_a_head_that_never_ends_and_a_silent_connection(tmp_path: Path) -> None:
    async with served(tmp_path, Limits(head_s=0.4)) as (_, endpoint, _):
        for sent in (b"", b"GET /_ping HTTP/1.1\r\nHost: d\r\nX-Slow: "):
            assert await exchange(endpoint, sent) == (408, "the request's head did not arrive within 0.4 s: send it again")
        # one that pauses between two requests is none of these; the second head that stops half-way is
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        writer.write(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\nOK")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.6)
        writer.write(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\nOK")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET")
        assert parsed(await asyncio.wait_for(reader.read(), 20))[0] == 408
        writer.close()


async def test_heads_are_bounded(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, endpoint, _):
        for head in (b"X-Long: " + b"a" * 70_000, b"\r\n".join(b"X-%d: a" % number for number in range(200))):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            writer.write(b"GET /_ping HTTP/1.1\r\nHost: d\r\n" + head + b"\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 20)).startswith(b"HTTP/1.0 400 ")
            writer.close()


async def test_bodies_are_bounded_in_size_and_time(manager: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    too_long = b"x" * (9 * 1024 * 1024)
    async with manager.session.post("http://d/v1.44/services/create", data=too_long) as response:
        assert response.status == 413
        assert "larger than 8388608 bytes: send less" in (await response.json())["message"]
    monkeypatch.setattr(access, "BODY_TIMEOUT_S", 0.3)
    for path in (b"/services/create", b"/networks/create", b"/mesh/v1/stacks/shop/plan"):
        reader, writer = await asyncio.open_unix_connection(manager.socket)
        writer.write(b"POST %s HTTP/1.1\r\nHost: d\r\nContent-Length: 100\r\n\r\n{" % path)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"did not arrive within 0.3 s" in await reader.readuntil(b"}")
        writer.close()


async def test_requests_are_paced_by_client(tmp_path: Path, certificates: Path) -> None:
    """The burst is ten seconds' worth; that of a hundredth a second is one. The local socket isn't paced, and clients not by each other."""
    async with (
        served(tmp_path, Limits(requests_per_s=0.01), files(certificates)) as (_, endpoint, path),
        aiohttp.ClientSession() as session,
    ):
        url = f"https://127.0.0.1:{endpoint.port}/_ping"
        for name in ("alice", "bob"):
            context = client_context(certificates, name)
            async with session.get(url, ssl=context) as response:
                assert response.status == 200
            async with session.get(url, ssl=context) as response:
                assert response.status == 429
                assert (await response.json())["message"].startswith(f"more than 0.01 requests a second from {name}: wait a second")
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as local:
            for _ in range(5):
                async with local.get("http://d/_ping") as response:
                    assert response.status == 200


async def test_connections_are_counted_and_given_back(tmp_path: Path) -> None:
    limits = Limits(connections=3, connections_per_client=2)
    ping = b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n"
    async with served(tmp_path, limits) as (_, endpoint, path):
        held = [await asyncio.open_connection(endpoint.host, endpoint.port) for _ in range(2)]
        for reader, writer in held:
            writer.write(ping)
            await reader.readuntil(b"\r\n\r\nOK")
        assert await exchange(endpoint, ping) == (503, "you have 2 connections to this API already: close some and try again")
        held.append(await asyncio.open_unix_connection(path))
        held[2][1].write(ping)
        await held[2][0].readuntil(b"\r\n\r\nOK")
        reader, writer = await asyncio.open_unix_connection(path)
        assert parsed(await reader.read())[1] == "this node serves 3 connections to its API already: close some and try again"
        writer.close()
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        # refused ones were never counted, closed ones no longer are
        async with asyncio.timeout(20):
            while True:
                reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
                writer.write(ping + ping)
                answered = (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                writer.close()
                if answered:
                    break


@asynccontextmanager
async def engine(path: Path) -> AsyncIterator[dict[str, int]]:
    """An Engine whose logs and attached containers never stop writing; counts the bytes it got rid of."""
    piece = b"%x\r\n%s\r\n" % (64 * 1024, bytes(64 * 1024))
    given = {"bytes": 0}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            streams = b"/containers/c/" in head
            if not streams:
                writer.write(b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
            elif head.startswith(b"POST"):
                writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while streams:
                writer.write(piece)
                await writer.drain()
                given["bytes"] += len(piece)
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        yield given


@pytest.mark.parametrize("request_head", [
    b"GET /v1.44/containers/c/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: d\r\n\r\n",
    b"POST /v1.44/containers/c/attach?stream=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n",
], ids=["logs", "attach"])  # fmt: skip
async def test_a_slow_reader_slows_its_stream_down_and_is_not_cut(tmp_path: Path, request_head: bytes) -> None:
    async with engine(tmp_path / "engine.sock") as given, served(tmp_path, Limits(head_s=0.2, answer_s=0.2)) as (_, endpoint, _):
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, limit=1024)
        writer.write(request_head)
        await reader.readuntil(b"\r\n\r\n")
        # not read from here on: the source comes to a stop with what fits into the buffers of kernel and transports
        async with asyncio.timeout(20):
            while (stuck := given["bytes"]) == 0 or await grows(given, stuck):
                pass
        assert stuck < 16 * 1024 * 1024
        received = 0
        while received < 2 * stuck:
            piece = await asyncio.wait_for(reader.read(1 << 20), 20)
            assert piece, "a stream was cut"
            received += len(piece)
        writer.close()


async def grows(given: dict[str, int], seen: int) -> bool:
    await asyncio.sleep(0.5)
    return given["bytes"] != seen


async def test_who_does_not_read_an_answer_is_cut_off(tmp_path: Path) -> None:
    """One that is no stream: it is in memory as a whole until it is read."""

    async def large(request: web.Request) -> web.Response:
        return web.Response(body=bytes(64 * 1024 * 1024))

    app = web.Application(middlewares=[counted])
    app.on_response_prepare.append(announce)
    app.router.add_get("/", large)
    runner = LimitedRunner(app, Limits(answer_s=0.3), shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "api.sock")).start()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "api.sock", limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: d\r\n\r\n")
    connection = await connected(runner)
    await until(lambda: connection.transport is None, "it is cut off", 20)
    received = 0
    with contextlib.suppress(ConnectionError):
        while piece := await asyncio.wait_for(reader.read(1 << 20), 20):
            received += len(piece)
    assert received < 64 * 1024 * 1024
    writer.close()
    await runner.cleanup()


async def connected(runner: web.AppRunner) -> web.RequestHandler:
    await until(lambda: runner.server and runner.server.connections, "a client is connected", 20)
    assert runner.server is not None
    return runner.server.connections[0]
