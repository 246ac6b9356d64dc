"""Certificates from a CA that is not the managers': rotated to, used, rotated away from; and what it answers is not believed blindly."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from msgspec.structs import replace

from orchestrator.errors import ConfigError
from orchestrator.managers.root_rotation import ordered
from orchestrator.model import Cluster, ExternalCA, Node
from orchestrator.security import ca, rotation
from orchestrator.security.admission import JoinQuestion
from orchestrator.security.identity import Credentials, Identity
from orchestrator.security.registrar import Registrar
from orchestrator.store.base import Put

from .cfssl_server import CfsslServer, cfssl
from .clusters import CLUSTER_ID, TestCluster, now


@pytest.fixture
async def cluster(tmp_path: Path) -> TestCluster:
    (tmp_path / "nodes").mkdir()
    made = TestCluster(tmp_path / "nodes")
    await made.start()
    return made


async def order(cluster: TestCluster, manager: Credentials, **config: object) -> Cluster:
    spec = replace(cluster.cluster.spec, ca_config=replace(cluster.cluster.spec.ca_config, **config))
    changed = await ordered(cluster.cluster, spec, manager, now())
    await cluster.store.commit([Put(changed)])
    return cluster.cluster


async def finish(cluster: TestCluster) -> Cluster:
    after = rotation.finished(cluster.cluster, [])
    assert after is not None
    await cluster.store.commit([Put(after)])
    return cluster.cluster


def at(server: CfsslServer) -> list[ExternalCA]:
    return [ExternalCA(protocol="cfssl", url=server.url, ca_cert=server.root.certificate)]


async def test_to_an_external_ca_and_back(cluster: TestCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    manager = await cluster.node("m1", "manager")
    registrar = Registrar(cluster.store, manager)
    theirs = ca.new_root(CLUSTER_ID, now())
    async with cfssl(tmp_path, theirs, cluster.root.certificate) as server:
        rotating = await order(cluster, manager, signing_ca_cert=theirs.certificate, external_cas=at(server))
        assert (rotating.root_rotation_in_progress, server.asked) == (True, [])
        # nodes renew there, and the old root still vouches for what they get
        answer = await registrar.renew(ca.new_key_and_csr()[1], "m1", manager.identity.fingerprint, "127.0.0.1")
        assert server.asked == [""]
        assert ca.verify(answer.certificate, cluster.root.certificate, now()).role == "manager"
    after = await finish(cluster)
    assert (after.mesh_ca_cert, after.mesh_ca_key) == (theirs.certificate, "")
    key, csr = ca.new_key_and_csr()
    own = ca.issue(theirs, csr, node_id="m1", role="manager", cluster_id=CLUSTER_ID, now=now())
    manager.install(Identity.of(own, key, theirs.certificate))
    async with cfssl(tmp_path, theirs, theirs.certificate) as server:
        await order(cluster, manager, external_cas=at(server))
        joined = await registrar.join(JoinQuestion(token=cluster.tokens.worker, csr=ca.new_key_and_csr()[1]), "127.0.0.1")
        assert ca.verify(joined.certificate, theirs.certificate, now()).node_id == joined.node_id
        # from there to a root of ours: the external CA signs it
        await order(cluster, manager, force_rotate=1)
        assert server.asked == ["", "CA"]
        back = await finish(cluster)
        assert back.mesh_ca_key != ""
        answer = await registrar.renew(ca.new_key_and_csr()[1], joined.node_id, "key", "127.0.0.1")
        assert server.asked == ["", "CA"]
        ca.verify(answer.certificate, back.mesh_ca_cert, now())
    for secret in (theirs.key, cluster.root.key, "PRIVATE KEY", cluster.tokens.worker):
        assert secret not in caplog.text


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("refusal", "policy says no"),
        ("garbage", "not as cfssl does"),
        ("endless", "too long"),
        ("another key", "for another key"),
        ("another node", "names another node"),
        ("another role", "names another node, role"),
        ("another root", "not signed by this cluster's CA"),
        ("expired", "expired"),
        ("gone", "no external CA issued"),
    ],
)
async def test_what_an_external_ca_answers_is_checked(cluster: TestCluster, tmp_path: Path, wrong: str, text: str) -> None:
    manager = await cluster.node("m1", "manager")
    registrar = Registrar(cluster.store, manager)
    async with cfssl(tmp_path, cluster.root, cluster.root.certificate) as server:
        await order(cluster, manager, external_cas=at(server))
        server.wrong = wrong
        if wrong != "gone":
            with pytest.raises(ConfigError, match=text):
                await registrar.join(JoinQuestion(token=cluster.tokens.worker, csr=ca.new_key_and_csr()[1]), "127.0.0.1")
    if wrong == "gone":
        with pytest.raises(ConfigError, match=text):
            await registrar.join(JoinQuestion(token=cluster.tokens.worker, csr=ca.new_key_and_csr()[1]), "127.0.0.1")


async def test_orders_that_no_external_ca_stands_behind(cluster: TestCluster, tmp_path: Path) -> None:
    manager = await cluster.node("m1", "manager")
    theirs = ca.new_root(CLUSTER_ID, now())
    async with cfssl(tmp_path, theirs, cluster.root.certificate) as server:
        for different in (
            {"url": "https://127.0.0.1:1/sign"},
            # another CA's server: its certificate is not under the root it is to sign for
            {"ca_cert": (other := ca.new_root(CLUSTER_ID, now())).certificate},
        ):
            wanted = {"signing_ca_cert": different.get("ca_cert", theirs.certificate)}
            with pytest.raises(ConfigError, match="at least one valid, reachable external CA corresponding to the desired"):
                await order(cluster, manager, external_cas=[replace(at(server)[0], **different)], **wanted)
        await order(cluster, manager, signing_ca_cert=theirs.certificate, external_cas=at(server))
        await finish(cluster)
        with pytest.raises(ConfigError, match="from one external CA to a different external CA"):
            await order(cluster, manager, signing_ca_cert=other.certificate)
        server.wrong = "another key"
        with pytest.raises(ConfigError, match="it signed something else"):
            await order(cluster, manager, force_rotate=7)
        assert cluster.cluster.mesh_root_rotation is None


async def test_a_worker_gets_nothing_from_it(cluster: TestCluster, tmp_path: Path) -> None:
    worker = await cluster.node("w1")
    async with cfssl(tmp_path, cluster.root, cluster.root.certificate) as server:
        await order(cluster, worker, external_cas=at(server))
        with pytest.raises(ConfigError, match="managers only"):
            await Registrar(cluster.store, worker).renew(ca.new_key_and_csr()[1], "w1", "key", "127.0.0.1")
    assert cluster.store.snapshot().count(Node) == 1
