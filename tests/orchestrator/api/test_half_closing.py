"""A client over TLS that ends its input, as the docker CLI does, and waits for output."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from orchestrator.api.app import serve
from orchestrator.api.endpoints import TcpEndpoint
from tests.orchestrator.api.fakes import Setup
from tests.orchestrator.api.tls import client_context, files, free_port

T = TypeVar("T")
ATTACH = (
    b"POST /v1.44/containers/c1/attach?stdin=1&stream=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
    b"Content-Length: 0\r\n\r\n"
)


class Client:
    """TLS on memory, so that its own direction can be ended alone (Go: tls.Conn.CloseWrite)."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        self._run(self._tls.do_handshake)

    def _run(self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._socket.sendall(self._out.read())
                received = self._socket.recv(65536)
                self._in.write(received) if received else self._in.write_eof()
            finally:
                self._socket.sendall(self._out.read())

    def send(self, data: bytes) -> None:
        self._run(lambda: self._tls.write(data))

    def end_input(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._socket.sendall(self._out.read())

    def receive(self) -> bytes:
        """b"" at the server's end."""
        try:
            return self._run(lambda: self._tls.read(65536))
        except ssl.SSLZeroReturnError:
            return b""

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def port(node: Setup, certificates: Path) -> AsyncIterator[int]:
    endpoint = TcpEndpoint("127.0.0.1", free_port(), tls=True)
    runner = await serve(node.backend, [endpoint], tls=files(certificates))
    yield endpoint.port
    await runner.cleanup()


async def test_output_goes_on_after_the_end_of_input(node: Setup, port: int, certificates: Path) -> None:
    sent = b"x" * 100_000

    def talk() -> bytes:
        client = Client(port, client_context(certificates, "alice"))
        client.send(ATTACH)
        received = b""
        while b"hello\n" not in received:
            received += client.receive()
        client.send(sent)
        client.end_input()
        received = received.partition(b"hello\n")[2]
        while chunk := client.receive():
            received += chunk
        client.close()
        return received

    assert await asyncio.wait_for(asyncio.to_thread(talk), 30) == sent.upper() + b"bye\n"
    assert node.engine.stdin == sent


async def test_a_killed_client_frees_the_engines_stream(node: Setup, port: int, certificates: Path) -> None:
    def talk() -> None:
        client = Client(port, client_context(certificates, "alice"))
        client.send(ATTACH.replace(b"/c1/", b"/silent/"))
        while b"hello\n" not in client.receive():
            pass
        client.close()

    async with asyncio.timeout(30):
        await asyncio.to_thread(talk)
        await node.engine.client_gone.wait()
