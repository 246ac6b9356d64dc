"""What the node's TLS port refuses, and that no refusal tells the log a secret."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest

from orchestrator.dispatcher import tls_app
from orchestrator.dispatcher.tls_app import MAX_BODY_BYTES
from orchestrator.model import Node
from orchestrator.security import ca, tokens
from orchestrator.security.identity import Identity, unverified_context
from tests.orchestrator.security.clusters import now

from .lab import Lab, Manager, until
from .test_node_server import call

Refused = Callable[[Lab, Manager], Awaitable[str]]
ENGINE = b"GET /v1/engine/info HTTP/1.1\r\nHost: x\r\n\r\n"
REFUSED: dict[str, Refused] = {}


def refusal(function: Refused) -> Refused:
    REFUSED[function.__name__] = function
    return function


@pytest.fixture
async def manager(lab: Lab) -> AsyncIterator[Manager]:
    await lab.cluster.node("w1")
    yield await lab.manager("m1")


def shown(lab: Lab, identity: Identity) -> ssl.SSLContext:
    """A client that shows this certificate and takes any server."""
    context = unverified_context()
    lab.cluster.installed(identity).show_in(context)
    return context


def join_body(token: str) -> bytes:
    return json.dumps({"token": token, "csr": ca.new_key_and_csr()[1]}).encode()


async def raw(manager: Manager, context: ssl.SSLContext | None, *parts: bytes, endless: bytes = b"") -> str:
    """What comes back for these bytes, followed by `endless` for ever; "" = the connection ended."""
    reader, writer = await asyncio.open_connection(*manager.server.address, ssl=context)

    async def send() -> None:
        for part in parts:
            writer.write(part)
        while endless:
            writer.write(endless)
            await writer.drain()

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(10):
            return (await reader.read(4096)).decode()
    except (ConnectionError, ssl.SSLError):
        return ""
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


def head(length: int | None, path: str = "/v1/join") -> bytes:
    body = f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{body}\r\n\r\n".encode()


@refusal
async def another_ca(lab: Lab, manager: Manager) -> str:
    root = ca.new_root(lab.cluster.cluster.id, now())
    return await raw(manager, shown(lab, lab.cluster.identity("m1", "manager", root=root)), ENGINE)


@refusal
async def expired(lab: Lab, manager: Manager) -> str:
    old = lab.cluster.identity("m1", "manager", at=now() - timedelta(hours=2))
    return await raw(manager, shown(lab, old), ENGINE)


@refusal
async def wrong_role(lab: Lab, manager: Manager) -> str:
    return await raw(manager, shown(lab, lab.cluster.identity("w1")), ENGINE)


@refusal
async def a_token_that_was_rotated(lab: Lab, manager: Manager) -> str:
    old = lab.cluster.tokens
    await lab.cluster.change_tokens(tokens.make_both(lab.cluster.root.certificate))
    answers = []
    for token in (old.worker, old.manager, lab.cluster.tokens.worker[:-1]):
        body = join_body(token)
        answers.append(await raw(manager, unverified_context(), head(len(body)), body))
    assert all(answer.startswith("HTTP/1.1 403") for answer in answers)
    return answers[0]


@refusal
async def plain_http(lab: Lab, manager: Manager) -> str:
    body = join_body(lab.cluster.tokens.manager)
    return await raw(manager, None, head(len(body)), body)


@refusal
async def oversized(lab: Lab, manager: Manager) -> str:
    body = join_body(lab.cluster.tokens.manager) + b" " * MAX_BODY_BYTES
    return await raw(manager, unverified_context(), head(len(body)), body)


@refusal
async def endless(lab: Lab, manager: Manager) -> str:
    return await raw(manager, unverified_context(), head(None), endless=b"1000\r\n" + b" " * 0x1000 + b"\r\n")


@refusal
async def an_endless_header(lab: Lab, manager: Manager) -> str:
    return await raw(manager, unverified_context(), b"GET /v1/ca HTTP/1.1\r\nX: ", endless=b"x" * 4096)


@refusal
async def endless_headers(lab: Lab, manager: Manager) -> str:
    return await raw(manager, unverified_context(), b"GET /v1/ca HTTP/1.1\r\n", endless=b"X: " + b"y" * 1000 + b"\r\n")


@refusal
async def a_body_that_stalls(lab: Lab, manager: Manager) -> str:
    return await raw(manager, unverified_context(), head(1000), join_body(lab.cluster.tokens.manager)[:100])


STATUSES = {
    "another_ca": (0,), "expired": (0,), "wrong_role": (403,), "a_token_that_was_rotated": (403,), "plain_http": (400,),
    # the answer may get lost where the client goes on sending
    "oversized": (413, 0), "endless": (413, 0), "an_endless_header": (400, 0), "endless_headers": (400, 0), "a_body_that_stalls": (408,),
}  # fmt: skip


@pytest.mark.parametrize("how", sorted(REFUSED))
async def test_it_is_refused_and_nothing_secret_is_logged(
    lab: Lab, manager: Manager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(tls_app, "BODY_TIMEOUT_S", 0.3)
    before = lab.cluster.tokens
    answer = await REFUSED[how](lab, manager)
    status = int(answer.split(" ")[1]) if answer else 0
    assert status in STATUSES[how], answer
    assert lab.store.snapshot().count(Node) == 2
    # it serves others as before
    assert (await call(manager.addr, "GET", "/v1/ca", unverified_context()))[0] == 200
    if not status and how in ("another_ca", "expired"):
        await until(lambda: "handshake refused" in caplog.text)
    after = lab.cluster.tokens
    for secret in (before.worker, before.manager, after.worker, after.manager, lab.cluster.root.key):
        for text in (caplog.text, answer):
            assert secret not in text
            assert secret[-25:-1] not in text
    assert "PRIVATE KEY" not in caplog.text
