"""Certificates of a living cluster, over real TLS: the root is rotated, nodes come back after expiry, managers lose their rights."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace

from orchestrator.dispatcher.tls_app import NodeServer
from orchestrator.errors import ApiError, ConfigError
from orchestrator.managers.root_rotation import RootRotation, ordered
from orchestrator.model import NodeDescription, NodeSpec
from orchestrator.node_sessions import NodeSessions
from orchestrator.security import admission, ca, renewal
from orchestrator.security import join as joining
from orchestrator.security.identity import Credentials, joining_context
from orchestrator.security.join import join, readmit, readmit_question
from orchestrator.security.registrar import Registrar
from orchestrator.security.renewal import Renewal
from orchestrator.store.base import Delete
from tests.orchestrator.security.clusters import TestCluster, now

from .lab import Agent, Lab, Manager, fake_engine, until
from .test_node_server import call


class Member:
    """A node as `node.NodeRuntime` puts it together, without an Engine: session and renewal, each knowing of the other."""

    def __init__(self, lab: Lab, node_id: str, credentials: Credentials, managers: list[Manager], own: Manager | None = None) -> None:
        self.lab, self.node_id, self.credentials, self.managers, self.own = lab, node_id, credentials, managers, own
        self.root = credentials.identity.root_certificate
        self.agent: Agent | None = None
        registrar = Registrar(lab.store, credentials)
        self.renewal = Renewal(
            credentials,
            lambda: [manager.addr for manager in managers],
            registrar=lambda: registrar if own is not None else None,
            connected=lambda: self.connected,
            on_change=self._changed,
        )
        self.task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self.agent is not None and self.agent.session.connected_to != ""

    async def start(self) -> None:
        self.agent = await self.lab.agent(self.node_id, self.managers, credentials=self.credentials, on_trust=self.renewal.told)
        self.task = asyncio.create_task(self.renewal.run())

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if self.agent is not None:
            await self.agent.stop()
            self.lab.agents.remove(self.agent)
            self.agent = None

    def _changed(self) -> None:
        if self.own is not None and self.credentials.identity.root_certificate != self.root:
            self.own.server.end_old_root()
        self.root = self.credentials.identity.root_certificate
        if self.agent is not None:
            description = NodeDescription(hostname=self.node_id, mesh_data_addr="127.0.0.1", tls_info=self.credentials.identity.tls_info)
            self.agent.session.describe(description)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "SPREAD_S", 0.0)
    monkeypatch.setattr(renewal, "LOOK_S", 0.05)
    monkeypatch.setattr(renewal, "RETRY_FIRST_S", 0.05)
    monkeypatch.setattr(renewal, "RETRY_LAST_S", 0.2)
    monkeypatch.setattr(renewal, "LOST", timedelta(seconds=0.3))


@contextlib.asynccontextmanager
async def running(lab: Lab, manager: Manager, *node_ids: str) -> AsyncIterator[dict[str, Member]]:
    """The manager as a node, the workers, and the leader's loop that ends rotations."""
    rotating = asyncio.create_task(RootRotation(lab.store, fence=lambda: manager.fence, now=now).lead())
    members = {"m1": Member(lab, "m1", manager.credentials, [manager], own=manager)}
    for node_id in node_ids:
        joined = await join([manager.addr], lab.cluster.tokens.worker, hostname=node_id)
        credentials = Credentials.create(lab.cluster.directory / node_id, joined.identity)
        members[node_id] = Member(lab, joined.identity.node_id, credentials, [manager])
    try:
        for member in members.values():
            await member.start()
        await until(lambda: all(lab.node(member.node_id).status.state == "ready" for member in members.values()))
        yield members
    finally:
        for member in members.values():
            await member.stop()
        rotating.cancel()
        await asyncio.gather(rotating, return_exceptions=True)


async def rotate(lab: Lab, manager: Manager, **config: Any) -> None:
    """As the API does it."""
    cluster = lab.cluster.cluster
    asked = replace(cluster.spec.ca_config, force_rotate=cluster.spec.ca_config.force_rotate + 1, **config)
    changed = await ordered(cluster, replace(cluster.spec, ca_config=asked), manager.credentials, now())
    await lab.put(changed)


async def rotated(lab: Lab, manager: Manager, *members: Member) -> None:
    """To its end: these, and nobody else who is connected, show certificates of the new root and trust it alone."""
    before = lab.cluster.cluster.mesh_ca_cert
    await rotate(lab, manager)
    await until(lambda: lab.cluster.cluster.mesh_ca_cert != before, "the rotation ends")
    after = lab.cluster.cluster.mesh_ca_cert
    await until(lambda: all(member.credentials.identity.root_certificate == after for member in members), "all trust the new root")
    for member in members:
        await until(lambda member=member: lab.node(member.node_id).description.tls_info == lab.cluster.cluster.tls_info, "all say so")


async def test_the_root_is_rotated_and_agents_are_back_at_once(lab: Lab, at_once: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    manager = await lab.manager("m1")
    async with running(lab, manager, "a", "b") as members:
        old, old_tokens = lab.cluster.cluster, lab.cluster.tokens
        sessions = {name: member.agent for name, member in members.items()}
        await rotated(lab, manager, *members.values())
        for name, member in members.items():
            agent = member.agent
            assert agent is sessions[name]
            assert agent is not None
            # with its certificate of the new root
            await until(lambda member=member: member.connected)
            # on disk, too: as after a restart
            loaded = Credentials.load(member.credentials._directory)
            assert loaded is not None
            assert loaded.identity.root_certificate == lab.cluster.cluster.mesh_ca_cert
        # tokens of before name a root that is gone; those of now let in
        with pytest.raises(ApiError, match="remote CA does not match fingerprint"):
            await join([manager.addr], old_tokens.worker)
        joined = await join([manager.addr], lab.cluster.tokens.worker)
        # a certificate that the old root signs now, as who has its key could, opens nothing
        forged = lab.cluster.installed(lab.cluster.identity("m1", "manager", root=ca.RootCA(old.mesh_ca_cert, old.mesh_ca_key)))
        context = joining_context(lab.cluster.cluster.mesh_ca_cert)
        forged.show_in(context)
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await call(manager.addr, "GET", "/v1/engine/info", context)
        secrets = [old.mesh_ca_key, lab.cluster.cluster.mesh_ca_key, old_tokens.worker, lab.cluster.tokens.manager, joined.identity.key]
    for secret in [*secrets, "PRIVATE KEY"]:
        assert secret not in caplog.text


async def test_who_has_the_old_roots_key_loses_what_is_open(lab: Lab, at_once: None, tmp_path: Path) -> None:
    """The reason to rotate: somebody makes certificates of his own, for years."""
    engine = tmp_path / "engine.sock"
    manager = await lab.manager("m1", engine_socket=str(engine))
    async with endless_engine(engine), running(lab, manager, "a") as members:
        old = ca.RootCA(lab.cluster.cluster.mesh_ca_cert, lab.cluster.cluster.mesh_ca_key)
        forged = lab.cluster.installed(lab.cluster.identity("m1", "manager", root=old))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=forged.client_context())) as session:
            stream = await session.get(f"https://{manager.addr}/v1/engine/logs")
            assert await stream.content.readline() == b"line\n"
            await rotated(lab, manager, *members.values())
            await ended(stream)
            stream.close()


async def test_nodes_that_were_away_come_back_after_any_number_of_rotations(lab: Lab, at_once: None) -> None:
    manager = await lab.manager("m1")
    async with running(lab, manager, "here", "away") as members:
        away, others = members["away"], [members["m1"], members["here"]]
        await away.stop()
        key = away.credentials.identity.key
        await until(lambda: lab.node(away.node_id).mesh_disconnected_since is not None)
        await lab.put(replace(lab.node(away.node_id), status=replace(lab.node(away.node_id).status, state="down")))
        for _ in range(2):
            await rotated(lab, manager, *others)
        await away.start()
        await until(lambda: away.connected, "it is accepted again")
        identity = away.credentials.identity
        assert (identity.node_id, identity.root_certificate) == (away.node_id, lab.cluster.cluster.mesh_ca_cert)
        assert identity.key != key
        # who never was a node of this cluster doesn't
        stranger = lab.cluster.installed(lab.cluster.identity(away.node_id, root=ca.new_root(lab.cluster.cluster.id, now())))
        with pytest.raises(ConfigError, match="doesn't follow from the one this node knows"):
            await readmit(stranger, [manager.addr])


async def test_an_order_is_replaced_on_the_way_and_taken_back(lab: Lab, at_once: None) -> None:
    manager = await lab.manager("m1")
    async with running(lab, manager, "a") as members:
        # a node that never renews keeps the rotation from ending
        await lab.agent("slow", managers=[manager])
        await until(lambda: lab.node("slow").status.state == "ready")
        first = lab.cluster.cluster
        await rotate(lab, manager)
        await rotate(lab, manager)
        wanted = lab.cluster.cluster.mesh_root_rotation
        assert wanted is not None
        issuer = ca.tls_info(wanted.ca_cert).cert_issuer_public_key
        await until(lambda: members["a"].credentials.identity.tls_info.cert_issuer_public_key == issuer, "it renews under the second order")
        assert members["a"].credentials.identity.root_certificate == first.mesh_ca_cert
        assert lab.cluster.cluster.root_rotation_in_progress
        await rotate(lab, manager, signing_ca_cert=first.mesh_ca_cert, signing_ca_key=first.mesh_ca_key)
        await until(lambda: members["a"].credentials.identity.tls_info == first.tls_info, "it comes back")
        assert (lab.cluster.cluster.mesh_root_rotation, lab.cluster.cluster.join_tokens) == (None, first.join_tokens)


# ---- expired ---------------------------------------------------------------------------------------------------------------------------


async def expired_node(lab: Lab, node_id: str = "w1", *, ago: timedelta = timedelta(hours=2)) -> Credentials:
    """A node of the store whose certificate has expired, for an hour less than `ago`."""
    await lab.cluster.node(node_id)
    credentials = lab.cluster.installed(lab.cluster.identity(node_id, at=now() - ago))
    await lab.put(replace(lab.node(node_id), mesh_certificate=admission.first_certificate(credentials.identity.certificate)))
    return credentials


async def test_a_known_node_comes_back_with_an_expired_certificate(lab: Lab, at_once: None) -> None:
    manager = await lab.manager("m1")
    credentials = await expired_node(lab)
    old = credentials.identity
    member = Member(lab, "w1", credentials, [manager])
    await member.start()
    await until(lambda: member.connected, "its session is there")
    assert credentials.identity.key != old.key
    assert credentials.identity.subject.not_after > now()
    # the key of before has served: the answer might have been lost, so it does until the next renewal, and then no more
    assert lab.node("w1").mesh_certificate is not None
    for _ in range(2):
        await joining.renew(credentials, [manager.addr])
    stolen = lab.cluster.installed(old)
    with pytest.raises(ApiError, match="not the key that node w1 was last certified for"):
        await readmit(stolen, [manager.addr])
    await member.stop()


async def test_who_is_not_known_stays_out(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    manager = await lab.manager("m1")
    credentials = await expired_node(lab)
    other = await expired_node(lab, "w2")
    forgotten = await expired_node(lab, "w3", ago=timedelta(days=99))
    context = joining_context(lab.cluster.root.certificate)
    _, csr = ca.new_key_and_csr()
    good = readmit_question(credentials.identity, csr)
    foreign = readmit_question(other.identity, csr)
    bad = [
        (replace(good, csr=ca.new_key_and_csr()[1]), 403, "not signed by the node's key"),
        (replace(good, node_id="w2"), 403, "not signed by the node's key"),
        (replace(good, node_id="nobody"), 403, "not part of this cluster any more"),
        (replace(good, key=foreign.key), 403, "not signed by the node's key"),
        (replace(foreign, node_id="w1"), 403, "not signed by the node's key"),
        (replace(good, key="x"), 400, "can't be read"),
        (replace(good, signature="?"), 400, "can't be read"),
        (replace(good, signature="x" * 5000), 400, "too long"),
        (readmit_question(credentials.identity, "no request"), 400, "signing request"),
        (readmit_question(forgotten.identity, csr), 403, "too long ago"),
        (readmit_question(replace_node(credentials, "w2"), csr), 403, "not the key that node w2 was last certified for"),
    ]
    for question, status, text in bad:
        found, answer = await call(manager.addr, "POST", "/v1/readmit", context, json=msgspec_dict(question))
        assert isinstance(answer, dict)
        assert (found, text in answer["message"]) == (status, True), answer
    await lab.store.commit([Delete("node", "w1")])
    with pytest.raises(ApiError, match="not part of this cluster any more"):
        await readmit(credentials, [manager.addr])
    for secret in (credentials.identity.key, other.identity.key, lab.cluster.root.key, "PRIVATE KEY"):
        assert secret not in caplog.text


def replace_node(credentials: Credentials, node_id: str) -> Any:
    """The identity as if it were another node's, with its own key."""
    identity = credentials.identity
    subject = ca.Subject(node_id, "worker", identity.cluster_id, identity.subject.not_before, identity.subject.not_after)
    return type(identity)(subject, identity.certificate, identity.key, identity.root_certificate)


def msgspec_dict(question: admission.ReadmitQuestion) -> dict[str, str]:
    return {name: getattr(question, name) for name in question.__struct_fields__}


async def test_a_lost_answer_locks_nobody_out(lab: Lab) -> None:
    manager = await lab.manager("m1")
    credentials = await expired_node(lab)
    context = joining_context(lab.cluster.root.certificate)
    for _ in range(3):
        # answered, and never installed
        question = readmit_question(credentials.identity, ca.new_key_and_csr()[1])
        assert (await call(manager.addr, "POST", "/v1/readmit", context, json=msgspec_dict(question)))[0] == 200
    assert (await readmit(credentials, [manager.addr])).node_id == "w1"


async def test_a_manager_renews_itself_when_its_own_certificate_has_expired(lab: Lab, at_once: None) -> None:
    """The whole cluster was off for longer than certificates live."""
    manager = await lab.manager("m1")
    manager.credentials.install(lab.cluster.identity("m1", "manager", at=now() - timedelta(hours=2)))
    worker = await expired_node(lab)
    members = [Member(lab, "m1", manager.credentials, [manager], own=manager), Member(lab, "w1", worker, [manager])]
    for member in members:
        await member.start()
    await until(lambda: all(member.connected for member in members), "all are back")
    for member in members:
        await member.stop()


async def test_a_shorter_life_takes_effect_at_once(lab: Lab, at_once: None) -> None:
    manager = await lab.manager("m1")
    async with running(lab, manager, "a", "b") as members:
        sessions = {name: member.agent for name, member in members.items()}
        cluster = lab.cluster.cluster
        config = replace(cluster.spec.ca_config, node_cert_expiry=2 * 3600 * 10**9)
        await lab.put(await ordered(cluster, replace(cluster.spec, ca_config=config), manager.credentials, now()))

        def short(member: Member) -> bool:
            return member.credentials.identity.subject.not_after < now() + timedelta(hours=3)

        await until(lambda: all(short(member) for name, member in members.items() if name != "m1"))
        assert {name: member.agent for name, member in members.items()} == sessions
        assert all(member.connected for member in members.values())


# ---- revocation ------------------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def endless_engine(path: Path) -> AsyncIterator[None]:
    async def engine(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"line\n")
            await asyncio.sleep(0.01)

    runner = await fake_engine(str(path), engine)
    try:
        yield
    finally:
        await runner.cleanup()


async def ended(stream: aiohttp.ClientResponse) -> None:
    async with asyncio.timeout(10):
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            while await stream.content.readline():
                pass


@pytest.mark.parametrize("how", ["demoted", "removed"])
@pytest.mark.parametrize("where", ["worker", "manager"])
async def test_a_manager_that_is_one_no_more_loses_the_engines_at_once(lab: Lab, tmp_path: Path, how: str, where: str) -> None:
    """Also what it has open, also at workers, which have no store; its certificate is good for weeks."""
    engine = tmp_path / "engine.sock"
    manager = await lab.manager("m1", engine_socket=str(engine))
    await lab.cluster.node("m2", "manager", addr="127.0.0.1:9")
    credentials = await lab.cluster.node("w1")
    server = NodeServer(credentials, engine_socket=str(engine), manager=lambda: None, host="127.0.0.1", port=0)
    await server.start()
    target = manager.server if where == "manager" else server
    address, node_id = f"127.0.0.1:{target.address[1]}", "m1" if where == "manager" else "w1"
    fallen = lab.cluster.credentials("m2", "manager").client_context(node_id)
    kept = lab.cluster.credentials("m1", "manager").client_context(node_id)
    try:
        async with endless_engine(engine):
            if where == "worker":
                # before it has heard who is a manager, nobody is
                status, answer = await call(address, "GET", "/v1/engine/logs", fallen)
                assert (status, "not heard yet" in str(answer)) == (503, True)
            await lab.agent(node_id, credentials=credentials if where == "worker" else manager.credentials,
                            on_trust=lambda trust: target.managers_only.told(trust.managers))  # fmt: skip
            await until(lambda: target.managers_only._managers == {"m1", "m2"})
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=fallen)) as session,
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=kept)) as other,
            ):
                cut, goes_on = [await one.get(f"https://{address}/v1/engine/logs") for one in (session, other)]
                assert await cut.content.readline() == b"line\n"
                if how == "demoted":
                    await lab.put(replace(lab.node("m2"), spec=NodeSpec(role="worker")))
                else:
                    await lab.store.commit([Delete("node", "m2")])
                await ended(cut)
                status, answer = await call(address, "GET", "/v1/engine/logs", fallen)
                assert (status, "only managers may use the Engine" in str(answer)) == (403, True)
                for _ in range(100):
                    assert await goes_on.content.readline() == b"line\n"
                cut.close()
                goes_on.close()
    finally:
        await server.stop()


async def test_what_is_relayed_from_a_node_ends_when_the_node_is_removed(lab: Lab, tmp_path: Path) -> None:
    engine = tmp_path / "engine.sock"
    server = NodeServer(await lab.cluster.node("w1"), engine_socket=str(engine), manager=lambda: None, host="127.0.0.1", port=0)
    await server.start()
    server.managers_only.told(("m1",))
    address = f"127.0.0.1:{server.address[1]}"
    await lab.put(replace(lab.node("w1"), description=NodeDescription(mesh_api_addr=address)))
    sessions = NodeSessions(await lab.cluster.node("m1", "manager"))
    following = asyncio.create_task(sessions.follow(lab.store))
    try:
        async with endless_engine(engine):
            session, base = sessions.to(lab.store.snapshot(), "w1")
            assert sessions.to(lab.store.snapshot(), "w1")[0] is session
            stream = await session.get(f"{base}/engine/logs")
            assert await stream.content.readline() == b"line\n"
            await lab.store.commit([Delete("node", "w1")])
            await ended(stream)
            with pytest.raises(ApiError, match="not known to this cluster any more"):
                sessions.to(lab.store.snapshot(), "w1")
    finally:
        following.cancel()
        await sessions.close()
        await server.stop()


async def test_the_same_cluster_and_nobody_else(lab: Lab) -> None:
    """Roots of another cluster bridge nothing, whatever is in between says."""
    manager = await lab.manager("m1")
    stranger = TestCluster(lab.cluster.directory)
    credentials = stranger.installed(stranger.identity("w1", at=now() - timedelta(hours=2)))
    with pytest.raises(ConfigError, match="doesn't follow from the one this node knows"):
        await readmit(credentials, [manager.addr])
