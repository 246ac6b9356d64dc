"""The node's TLS server: who is let in to what, and what everyone else is told."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from msgspec.structs import replace
from yarl import URL

from orchestrator.diagnose.node_side import NodeTracing
from orchestrator.dispatcher.messages import Heartbeat, Hello
from orchestrator.dispatcher.tls_app import MAX_BODY_BYTES, NodeServer
from orchestrator.errors import ApiError, ConfigError
from orchestrator.model import ManagerStatus, Node, NodeDescription
from orchestrator.security import ca
from orchestrator.security import join as joining
from orchestrator.security import listener as listener_module
from orchestrator.security.identity import ANY_MANAGER, Credentials, unverified_context
from orchestrator.security.join import ask_for_promotion, join, renew
from orchestrator.security.rate import RateLimit
from orchestrator.security.renewal import Renewal
from orchestrator.store.base import Delete
from tests.orchestrator.security.clusters import TestCluster, now

from .lab import Lab, Manager, fake_engine, until


@pytest.fixture
async def manager(lab: Lab, tmp_path: Path) -> AsyncIterator[Manager]:
    made = await lab.manager("m1", engine_socket=str(tmp_path / "engine.sock"))
    yield made


@pytest.fixture
async def worker(lab: Lab, tmp_path: Path) -> AsyncIterator[NodeServer]:
    server = NodeServer(
        await lab.cluster.node("w9"), engine_socket=str(tmp_path / "engine.sock"), manager=lambda: None, host="127.0.0.1", port=0
    )  # fmt: skip
    await server.start()
    server.managers_only.told(("m1", "m2"))
    yield server
    await server.stop()


async def no_difference() -> list[str]:
    return []


@pytest.fixture
async def traced(lab: Lab) -> AsyncIterator[NodeServer]:
    """A worker that has no network and no task."""
    server = NodeServer(
        await lab.cluster.node("w8"),
        engine_socket="/x",
        manager=lambda: None,
        host="127.0.0.1",
        port=0,
        tracing=NodeTracing(netns_prefix="none", state=lambda: None, pid_of=lambda task_id: 0, differences=no_difference),
    )
    await server.start()
    server.managers_only.told(("m1", "m2"))
    yield server
    await server.stop()


async def call(
    address: str, method: str, path: str, context: ssl.SSLContext, **more: Any
) -> tuple[int, dict[str, str] | str]:  # fmt: skip
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), timeout=aiohttp.ClientTimeout(total=10)) as session:
        async with session.request(method, f"https://{address}{path}", **more) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else text


def of(server: NodeServer) -> str:
    return f"127.0.0.1:{server.address[1]}"


# ---- certificates against routes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "path", "status", "text"),
    [
        ("nobody", "/v1/ca", 200, "BEGIN CERTIFICATE"),
        ("nobody", "/v1/dispatcher", 403, "certificate of a node of this cluster is needed"),
        ("nobody", "/v1/engine/info", 403, "certificate of a node of this cluster is needed"),
        ("nobody", "/v1/nothing", 404, "Not Found"),
        ("worker", "/v1/engine/info", 403, "only managers may use the Engine"),
        ("removed worker", "/v1/dispatcher", 403, "not part of this cluster any more"),
        ("other cluster's id", "/v1/dispatcher", 403, "certificate of a node of this cluster is needed"),
        ("demoted manager", "/v1/engine/info", 403, "only managers may use the Engine"),
        ("removed manager", "/v1/engine/info", 403, "only managers may use the Engine"),
        ("manager", "/v1/engine/info", 502, "does not answer at"),
    ],
)
async def test_who_gets_what(lab: Lab, manager: Manager, who: str, path: str, status: int, text: str) -> None:
    await lab.cluster.node("w1")
    await lab.cluster.node("m2", "manager")
    contexts = {
        "nobody": joining.joining_context(lab.cluster.root.certificate),
        "worker": lab.cluster.credentials("w1").client_context(),
        "manager": lab.cluster.credentials("m2", "manager").client_context(),
        "removed worker": lab.cluster.credentials("gone").client_context(),
        "removed manager": lab.cluster.credentials("gone", "manager").client_context(),
        "demoted manager": lab.cluster.credentials("w1", "manager").client_context(),
        "other cluster's id": lab.cluster.installed(lab.cluster.identity("w1", cluster_id="another")).client_context(),
    }
    found, answer = await call(manager.addr, "GET", path, contexts[who])
    assert found == status
    assert text in (answer["message"] if isinstance(answer, dict) else answer)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/trace"), ("POST", "/v1/trace/send")])
async def test_only_managers_look_into_a_nodes_networks(lab: Lab, traced: NodeServer, method: str, path: str) -> None:
    context = lab.cluster.credentials("w1").client_context("w8")
    assert await call(of(traced), method, path, context) == (
        403, {"message": "only managers may use the Engine of a node, or look into its networks"}
    )  # fmt: skip


async def test_probes_from_a_container_that_is_gone_are_a_sentence(lab: Lab, traced: NodeServer) -> None:
    context = lab.cluster.credentials("m1", "manager").client_context("w8")
    orders = {"place": "task:gone", "protocol": "tcp", "destination": "192.0.2.9", "port": 80, "mark": 1, "count": 1}
    found = await call(of(traced), "POST", "/v1/trace/send", context, json=orders)
    assert found == (200, {"error": "the container that should send the probes is not on this node (any more)"})
    status, _ = await call(of(traced), "POST", "/v1/trace/send", context, json=orders | {"mark": "x"})
    assert status == 400


@pytest.mark.parametrize("flaw", ["another CA", "expired", "not yet valid", "self-signed by a node"])
async def test_a_flawed_certificate_fails_the_handshake(lab: Lab, manager: Manager, caplog: pytest.LogCaptureFixture, flaw: str) -> None:
    caplog.set_level(logging.INFO)
    cluster = lab.cluster
    await cluster.node("m2", "manager")
    match flaw:
        case "another CA":
            identity = cluster.identity("m2", "manager", root=ca.new_root(cluster.cluster.id, now()))
        case "expired":
            identity = cluster.identity("m2", "manager", at=now() - timedelta(hours=2))
        case "not yet valid":
            identity = cluster.identity("m2", "manager", at=now() + timedelta(hours=3))
        case _:
            node = cluster.identity("w1")
            identity = cluster.identity("m2", "manager", root=ca.RootCA(node.certificate, node.key))
    context = unverified_context()
    credentials = cluster.installed(identity)
    context.load_cert_chain(*certificate_files(credentials))
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await call(manager.addr, "GET", "/v1/ca", context)
    await until(lambda: "handshake refused" in caplog.text)
    assert "PRIVATE" not in caplog.text


def certificate_files(credentials: Credentials) -> tuple[Path, Path]:
    return credentials._directory / "swarm-node.crt", credentials._directory / "swarm-node.key"


@pytest.mark.parametrize("flaw", ["another CA", "a worker", "expired"])
async def test_a_client_talks_to_no_server_but_a_manager_of_its_cluster(lab: Lab, flaw: str) -> None:
    cluster = lab.cluster
    match flaw:
        case "another CA":
            identity = cluster.identity("m1", "manager", root=ca.new_root(cluster.cluster.id, now()))
        case "a worker":
            identity = cluster.identity("w1", "worker")
        case _:
            identity = cluster.identity("m1", "manager", at=now() - timedelta(hours=2))
    server = NodeServer(cluster.installed(identity), engine_socket="/x", manager=lambda: None, host="127.0.0.1", port=0)
    await server.start()
    try:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await call(of(server), "GET", "/v1/ca", cluster.credentials("w2").client_context(ANY_MANAGER))
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await call(of(server), "GET", "/v1/ca", cluster.credentials("w2").client_context("m7"))
    finally:
        await server.stop()


async def test_a_client_may_ask_for_one_node_by_its_id(lab: Lab, worker: NodeServer) -> None:
    status, _ = await call(of(worker), "GET", "/v1/ca", lab.cluster.credentials("m2", "manager").client_context("w9"))
    assert status == 200


async def test_old_tls_is_not_spoken(manager: Manager) -> None:
    context = unverified_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await call(manager.addr, "GET", "/v1/ca", context)


async def test_plain_http_is_told_so(manager: Manager) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{manager.addr}/v1/ca") as response:
            assert (response.status, await response.text()) == (400, "Client sent an HTTP request to an HTTPS server.\n")


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"\x16\x03\x01\xff\xff" + b"\x00" * 50, b"\x16", "ünïcode".encode()])
async def test_garbage_does_not_disturb_others(lab: Lab, manager: Manager, data: bytes) -> None:
    _, writer = await asyncio.open_connection(*manager.server.address)
    writer.write(data)
    if not data:
        writer.write_eof()
    assert (await call(manager.addr, "GET", "/v1/ca", unverified_context()))[0] == 200
    writer.close()


async def test_a_worker_serves_its_root_and_its_engine_only(lab: Lab, worker: NodeServer) -> None:
    context = lab.cluster.credentials("m2", "manager").client_context("w9")
    for method, path in (("POST", "/v1/join"), ("POST", "/v1/renew"), ("GET", "/v1/dispatcher")):
        status, answer = await call(of(worker), method, path, context, data=b"{}")
        assert (status, answer) == (503, {"message": "this node is not a manager of the cluster: ask one of its managers"})
    assert (await call(of(worker), "GET", "/v1/ca", context))[0] == 200
    assert (await call(of(worker), "GET", "/v1/engine/info", context))[0] == 502


async def test_a_session_opened_before_the_removal_is_closed_and_no_new_one_opened(lab: Lab, manager: Manager) -> None:
    agent = await lab.agent("w1")
    await until(lambda: agent.completes == 1)
    await lab.store.commit([Delete("node", "w1")])
    await until(lambda: not agent.session.connected_to)
    status, _ = await call(manager.addr, "GET", "/v1/dispatcher", lab.cluster.credentials("w1").client_context())
    assert status == 403


@pytest.mark.parametrize("frame", ["text", "garbage", "no hello", "two hellos", "huge description"])
async def test_an_agent_that_breaks_the_protocol_is_closed(lab: Lab, manager: Manager, frame: str) -> None:
    encode = msgspec.msgpack.encode
    hello = encode(Hello(description=NodeDescription()))
    frames = {
        "garbage": [b"\xc1garbage"],
        "no hello": [encode(Heartbeat())],
        "two hellos": [hello, hello],
        "huge description": [encode(Hello(description=NodeDescription(hostname="x" * 70_000)))],
    }
    context = (await lab.cluster.node("w1")).client_context()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        async with session.ws_connect(f"https://{manager.addr}/v1/dispatcher") as ws:
            if frame == "text":
                await ws.send_str("hello")
            else:
                for one in frames[frame]:
                    await ws.send_bytes(one)
            async with asyncio.timeout(5):
                while (await ws.receive()).type is aiohttp.WSMsgType.BINARY:
                    pass
            assert ws.close_code == 1002
    await until(lambda: not manager.dispatcher.connected)


# ---- bodies ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, "not what this path takes"),
        (b"{", 400, "not what this path takes"),
        (b"[]", 400, "Expected `object`"),
        (b'{"token": 7, "csr": ""}', 400, "$.token"),
        (b'{"token": "SWMTKN-1-x", "csr": "y"}', 403, "A valid join token is necessary to join this cluster"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "larger than"),
    ],
)
async def test_bad_bodies(lab: Lab, manager: Manager, body: bytes, status: int, text: str) -> None:
    found, answer = await call(manager.addr, "POST", "/v1/join", unverified_context(), data=body)
    assert isinstance(answer, dict)
    assert (found, text in answer["message"]) == (status, True), answer
    assert lab.store.snapshot().count(Node) == 1


async def test_joining_is_rate_limited_by_address(manager: Manager) -> None:
    # without the refill, which a busy machine's requests would live on
    manager.server._joins = RateLimit(per_s=0.0, burst=3)
    statuses = [(await call(manager.addr, "POST", "/v1/join", unverified_context(), data=b"{}"))[0] for _ in range(5)]
    assert statuses == [400, 400, 400, 429, 429]


# ---- join and renew, end to end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["worker", "manager"])
async def test_join(lab: Lab, manager: Manager, tmp_path: Path, caplog: pytest.LogCaptureFixture, role: ca.Role) -> None:
    caplog.set_level(logging.DEBUG)
    token = lab.cluster.tokens.worker if role == "worker" else lab.cluster.tokens.manager
    result = await join([manager.addr], token, hostname="box", addr="127.0.0.1:5" if role == "manager" else "")
    assert (result.identity.role, result.identity.cluster_id) == (role, lab.cluster.cluster.id)
    node = lab.node(result.identity.node_id)
    assert (node.spec.role, node.description.hostname) == (role, "box")
    assert result.managers == (manager.addr,)
    assert result.bundle == ({} if role == "worker" else {"etcd": f"{node.id} at 127.0.0.1:5"})
    credentials = Credentials.create(tmp_path / "new", result.identity)
    for secret in (token, lab.cluster.tokens.manager, "PRIVATE KEY", result.identity.key, lab.cluster.root.key):
        assert secret not in caplog.text
        assert secret not in repr(result)
    agent = await lab.agent(node.id, credentials=credentials)
    await until(lambda: agent.completes == 1 and lab.node(node.id).status.state == "ready")


async def test_joins_that_fail(lab: Lab, manager: Manager, worker: NodeServer) -> None:
    token = lab.cluster.tokens.worker
    with pytest.raises(ApiError, match=r"^invalid join token$") as wrong:
        await join([manager.addr], "SWMTKN-1-bad-bad")
    assert wrong.value.status == 500
    stranger = TestCluster(lab.cluster.directory)
    await stranger.start()
    with pytest.raises(ApiError, match=r"^remote CA does not match fingerprint\. Expected: [0-9a-f]{64}$"):
        await join([manager.addr], stranger.tokens.worker)
    other_secret = token[:-25] + ("1" if token[-25] == "0" else "0") + token[-24:]
    with pytest.raises(ApiError, match=r"^rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster$"):
        await join([manager.addr], other_secret)
    with pytest.raises(ApiError, match=r'invalid remote address "manager:port"'):
        await join(["manager:port"], token)
    with pytest.raises(ApiError, match="at least one remote address"):
        await join([], token)
    with pytest.raises(ApiError, match='"sleepy"'):
        await join([manager.addr], token, availability="sleepy")
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    closed = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ApiError, match=f"{closed}: .*refused") as unreachable:
        await join([closed], token, timeout_s=0.6)
    assert unreachable.value.status == 503
    free.listen()
    with pytest.raises(ApiError, match=f"{closed}: no answer in time"):
        await join([closed], token, timeout_s=0.3)
    free.close()
    # A worker has the right root but is no manager: the token is not shown to it.
    with pytest.raises(ApiError, match="it is not a manager of this cluster"):
        await join([of(worker)], token, timeout_s=0.3)
    assert lab.store.snapshot().count(Node) == 2


async def test_join_tries_every_address(lab: Lab, manager: Manager) -> None:
    result = await join(["127.0.0.1:1", manager.addr], lab.cluster.tokens.worker)
    assert lab.node(result.identity.node_id)


async def test_forty_joins_at_once_are_forty_nodes(lab: Lab, manager: Manager) -> None:
    """More than the rate limit's burst: those refused for a moment try again."""
    results = await asyncio.gather(*(join([manager.addr], lab.cluster.tokens.worker) for _ in range(40)))
    assert len({result.identity.node_id for result in results}) == 40
    assert lab.store.snapshot().count(Node) == 41


async def test_renew(lab: Lab, manager: Manager) -> None:
    credentials = await lab.cluster.node("w1")
    old, context = credentials.identity, credentials.client_context()
    new = await renew(credentials, ["127.0.0.1:1", manager.addr])
    assert credentials.identity is new
    assert (new.node_id, new.role) == ("w1", "worker")
    assert new.subject.not_after > old.subject.not_after
    assert new.key != old.key
    loaded = Credentials.load(credentials._directory)
    assert loaded is not None
    assert loaded.identity.certificate == new.certificate
    # The context given out before now shows the new certificate.
    assert credentials.client_context() is context
    await lab.agent("w1", credentials=credentials)
    await until(lambda: "w1" in manager.dispatcher.connected)
    await lab.store.commit([Delete("node", "w1")])
    with pytest.raises(ApiError, match="not part of this cluster any more"):
        await renew(credentials, [manager.addr])
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1: .*refused"):
        await renew(credentials, ["127.0.0.1:1"])
    assert credentials.identity is new


async def test_promotion_needs_the_store_s_word_and_a_manager_s_certificate(lab: Lab, manager: Manager) -> None:
    credentials = await lab.cluster.node("w1")
    agent = await lab.agent("w1", credentials=credentials)
    await until(lambda: agent.roles == ["worker"])
    with pytest.raises(ApiError, match="w1 is a worker: `docker node promote w1`") as refused:
        await ask_for_promotion(credentials, [manager.addr], "127.0.0.1:5")
    assert refused.value.status == 403
    node = lab.node("w1")
    await lab.put(replace(node, spec=replace(node.spec, role="manager")))
    await until(lambda: agent.roles == ["worker", "manager"])
    with pytest.raises(ApiError, match="worker's certificate"):
        await ask_for_promotion(credentials, [manager.addr], "127.0.0.1:5")
    assert (await renew(credentials, [manager.addr])).role == "manager"
    # its own address is never asked
    bundle = await ask_for_promotion(credentials, ["127.0.0.1:5", "127.0.0.1:1", manager.addr], "127.0.0.1:5")
    assert bundle == {"etcd": "w1 at 127.0.0.1:5"}
    assert lab.node("w1").manager_status == ManagerStatus(addr="127.0.0.1:5")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1: .*refused"):
        await ask_for_promotion(credentials, ["127.0.0.1:1"], "127.0.0.1:5")
    # demoted: a manager for itself until its member is out
    node = lab.node("w1")
    await lab.put(replace(node, spec=replace(node.spec, role="worker")))
    await lab.put(replace(lab.node("w1"), manager_status=None))
    await until(lambda: agent.roles == ["worker", "manager", "worker"])
    assert (await renew(credentials, [manager.addr])).role == "worker"


async def test_renewal_comes_by_itself(lab: Lab, manager: Manager) -> None:
    credentials = await lab.cluster.node("w1")
    old = credentials.identity
    later = now() + timedelta(minutes=55)
    running = asyncio.create_task(Renewal(credentials, lambda: [manager.addr], now=lambda: later).run())
    await until(lambda: credentials.identity.certificate != old.certificate)
    running.cancel()


async def test_a_session_ends_with_its_certificate(lab: Lab, manager: Manager) -> None:
    credentials = lab.cluster.installed(lab.cluster.identity("w1", at=now() - timedelta(hours=1) + timedelta(seconds=2)))
    await lab.cluster.node("w1")
    await lab.agent("w1", credentials=credentials)
    await until(lambda: "w1" in manager.dispatcher.connected, deadline_s=2)
    await until(lambda: "w1" not in manager.dispatcher.connected, deadline_s=4)


# ---- the Engine ------------------------------------------------------------------------------------------------------------------------


async def test_the_engine_is_forwarded_as_it_is(lab: Lab, manager: Manager, tmp_path: Path) -> None:
    seen: list[tuple[str, str, bytes, dict[str, str]]] = []

    async def engine(request: web.Request) -> web.StreamResponse:
        seen.append((request.method, request.raw_path, await request.read(), dict(request.headers)))
        return web.Response(status=201, body=b"\x00\xffraw", headers={"Docker-Experimental": "false", "Content-Type": "application/x-tar"})

    runner = await fake_engine(str(tmp_path / "engine.sock"), engine)
    try:
        credentials = lab.cluster.credentials("m1", "manager")
        connector = aiohttp.TCPConnector(ssl=credentials.client_context("m1"))
        async with aiohttp.ClientSession(connector=connector) as session:
            url = URL(f"https://{manager.addr}/v1/engine/v1.41/containers/create?name=a%2Fb&x=%7B%22a%22%3A1%7D", encoded=True)
            body = b"x" * (3 * MAX_BODY_BYTES)
            async with session.post(url, data=body, headers={"X-Registry-Auth": "abc", "Connection": "X-Hop", "X-Hop": "1"}) as response:
                assert (response.status, await response.read()) == (201, b"\x00\xffraw")
                assert response.headers["Docker-Experimental"] == "false"
                assert response.content_type == "application/x-tar"
        [(method, path, got, headers)] = seen
        assert (method, path, got) == ("POST", "/v1.41/containers/create?name=a%2Fb&x=%7B%22a%22%3A1%7D", body)
        assert headers["X-Registry-Auth"] == "abc"
        assert "X-Hop" not in headers
    finally:
        await runner.cleanup()


async def test_engine_streams_flow_and_end_when_the_client_leaves(lab: Lab, manager: Manager, tmp_path: Path) -> None:
    go, left = asyncio.Event(), asyncio.Event()

    async def engine(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            await go.wait()
            await response.write(b"one line\n")
            await asyncio.Event().wait()
        finally:
            left.set()
        return response

    runner = await fake_engine(str(tmp_path / "engine.sock"), engine)
    try:
        connector = aiohttp.TCPConnector(ssl=lab.cluster.credentials("m1", "manager").client_context())
        async with aiohttp.ClientSession(connector=connector) as session:
            async with asyncio.timeout(5):
                response = await session.get(f"https://{manager.addr}/v1/engine/events")
                go.set()
                assert await response.content.readline() == b"one line\n"
            response.close()
        async with asyncio.timeout(5):
            await left.wait()
        upgrade = {"Connection": "Upgrade", "Upgrade": "tcp"}
        context = lab.cluster.credentials("m1", "manager").client_context()
        status, answer = await call(manager.addr, "POST", "/v1/engine/exec/1/start", context, headers=upgrade)
        assert (status, "ask with the header" in str(answer)) == (501, True)
    finally:
        await runner.cleanup()


# ---- the listener ----------------------------------------------------------------------------------------------------------------------


async def test_silent_connections_lock_nobody_out(manager: Manager) -> None:
    silent = [await asyncio.open_connection(*manager.server.address) for _ in range(100)]
    halfway = [await asyncio.open_connection(*manager.server.address) for _ in range(64)]
    for _, writer in halfway:
        writer.write(b"\x16\x03\x01\x02\x00\x01")
    async with asyncio.timeout(4):
        assert (await call(manager.addr, "GET", "/v1/ca", unverified_context()))[0] == 200
    for _, writer in [*silent, *halfway]:
        writer.close()


async def test_connections_without_certificate_live_for_a_while_only(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "ANONYMOUS_LIFE_S", 0.2)
    reader, writer = await asyncio.open_connection(*manager.server.address, ssl=unverified_context())
    async with asyncio.timeout(3):
        with pytest.raises(ConnectionError):
            if await reader.read() == b"":
                raise ConnectionResetError
    writer.close()


async def test_a_taken_port_gets_a_sentence(lab: Lab, manager: Manager) -> None:
    port = manager.server.address[1]
    server = NodeServer(manager.credentials, engine_socket="/x", manager=lambda: None, host="127.0.0.1", port=port)
    with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{port}: another program listens there"):
        await server.start()
    server = NodeServer(manager.credentials, engine_socket="/x", manager=lambda: None, host="192.0.2.1", port=port)
    with pytest.raises(ConfigError, match=r"can't listen on 192\.0\.2\.1"):
        await server.start()


async def test_openssl_sees_a_proper_server(lab: Lab, manager: Manager, tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_text(lab.cluster.root.certificate)
    process = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-connect", manager.addr, "-CAfile", str(tmp_path / "root.pem"), "-verify_return_error",
        "-verify_hostname", "m1", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert b"Verify return code: 0 (ok)" in out
    assert b"TLSv1.3" in out
