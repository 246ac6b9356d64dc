from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from orchestrator.errors import Conflict
from orchestrator.model import CAConfig, ClusterSpec, Leadership, ManagerStatus, Node, NodeSpec
from orchestrator.security import admission, ca, tokens
from orchestrator.security.admission import JoinAnswer, JoinQuestion, Refused, admit, managers_of
from orchestrator.security.registrar import Registrar
from orchestrator.store.base import Delete, Put

from .clusters import TestCluster, now

NOW = now()
KEY, CSR = ca.new_key_and_csr()


@pytest.fixture
async def cluster(tmp_path: Path) -> TestCluster:
    made = TestCluster(tmp_path)
    await made.start()
    return made


def question(token: str, **more: str) -> JoinQuestion:
    return JoinQuestion(token=token, csr=CSR, **more)  # type: ignore[arg-type]


def registrar(cluster: TestCluster) -> Registrar:
    return Registrar(cluster.store, cluster.credentials("m0", "manager"), lambda: NOW)


async def joined(cluster: TestCluster, asked: JoinQuestion) -> JoinAnswer:
    return await registrar(cluster).join(asked, "10.0.0.9")


async def test_a_worker_joins(cluster: TestCluster) -> None:
    answer = await joined(cluster, question(cluster.tokens.worker, hostname="box", addr="10.0.0.2"))
    node = cluster.store.snapshot().node(answer.node_id)
    assert node is not None
    assert (node.spec.role, node.spec.availability, node.status.state, node.status.addr) == ("worker", "active", "unknown", "10.0.0.9")
    assert (node.description.hostname, node.description.mesh_api_addr, node.description.mesh_data_addr) == (
        "box",
        "10.0.0.2:2377",
        "10.0.0.2",
    )
    assert node.manager_status is None
    subject = ca.verify(answer.certificate, answer.root_certificate, NOW)
    assert (subject.node_id, subject.role, subject.cluster_id) == (answer.node_id, "worker", cluster.cluster.id)
    # A worker's word about its addresses gets into no certificate.
    assert "10.0.0.2" not in str(ca.load_certificate(answer.certificate).extensions)
    assert "10.0.0.9" in str(ca.load_certificate(answer.certificate).extensions)


async def test_a_manager_joins(cluster: TestCluster) -> None:
    answer = await joined(cluster, question(cluster.tokens.manager, addr="10.0.0.2:99", availability="drain"))
    node = cluster.store.snapshot().node(answer.node_id)
    assert node is not None
    assert (node.spec.role, node.spec.availability) == ("manager", "drain")
    assert node.manager_status == ManagerStatus(addr="10.0.0.2:99")


async def test_a_join_repeated_is_the_same_node(cluster: TestCluster) -> None:
    first = await joined(cluster, question(cluster.tokens.worker))
    second = await joined(cluster, question(cluster.tokens.worker))
    assert first.node_id == second.node_id
    assert cluster.store.snapshot().count(Node) == 1
    with pytest.raises(Refused, match="already part of the cluster as a worker") as refused:
        admit(cluster.store.snapshot(), question(cluster.tokens.manager), "10.0.0.9", NOW)
    assert refused.value.status == 409


async def test_a_token_rotated_meanwhile_admits_nobody(cluster: TestCluster) -> None:
    old = cluster.tokens
    changes = admit(cluster.store.snapshot(), question(old.worker), "10.0.0.9", NOW).changes
    await cluster.change_tokens(tokens.rotated(old, "worker", cluster.root.certificate))
    with pytest.raises(Conflict):
        await cluster.store.commit(changes)
    with pytest.raises(Refused, match=admission.WRONG_TOKEN):
        admit(cluster.store.snapshot(), question(old.worker), "10.0.0.9", NOW)


@pytest.mark.parametrize(
    ("more", "status", "text"),
    [
        ({"token": "SWMTKN-1-bad-bad"}, 403, "valid join token"),
        ({"token": "", "csr": "garbage"}, 403, "valid join token"),
        ({"csr": "garbage"}, 400, "signing request"),
        ({"availability": "sleepy"}, 400, "invalid Availability"),
        ({"addr": "manager.example"}, 400, "not an IP address"),
        ({"addr": "10.0.0.1:0"}, 400, "not an IP address"),
        ({"addr": "10.0.0.1:x"}, 400, "not an IP address"),
        ({"hostname": "h" * 256}, 400, "longer than 255"),
    ],
)
async def test_bad_questions_get_status_and_sentence(cluster: TestCluster, more: dict[str, str], status: int, text: str) -> None:
    asked = msgspec.structs.replace(question(cluster.tokens.worker), **more)
    with pytest.raises(Refused, match=text) as refused:
        admit(cluster.store.snapshot(), asked, "10.0.0.9", NOW)
    assert refused.value.status == status


async def test_the_token_stays_out_of_repr(cluster: TestCluster) -> None:
    assert cluster.tokens.worker not in repr(question(cluster.tokens.worker))
    answer = await joined(cluster, question(cluster.tokens.manager))
    assert "k1" not in repr(msgspec.structs.replace(answer, bundle={"k1": "v1"}))


async def test_renewal_gives_the_role_of_the_store_and_the_life_of_the_cluster(cluster: TestCluster) -> None:
    spec = ClusterSpec(ca_config=CAConfig(node_cert_expiry=int(timedelta(days=2).total_seconds() * 1e9)))
    await cluster.store.commit(
        [Put(msgspec.structs.replace(cluster.cluster, spec=spec)), Put(Node(id="n1", spec=NodeSpec(role="manager")))]
    )
    answer = await registrar(cluster).renew(CSR, "n1", "key", "10.0.0.9")
    subject = ca.verify(answer.certificate, cluster.root.certificate, NOW)
    assert (subject.role, subject.not_after - NOW) == ("manager", timedelta(days=2))
    await cluster.store.commit([Delete("node", "n1")])
    with pytest.raises(Refused, match="not part of this cluster any more"):
        await registrar(cluster).renew(CSR, "n1", "key", "10.0.0.9")


async def test_the_leader_is_named_first(cluster: TestCluster) -> None:
    assert managers_of(cluster.store.snapshot()) == ()
    await cluster.node("m1", "manager", addr="10.0.0.1:2377")
    await cluster.node("m2", "manager", addr="10.0.0.2:2377")
    await cluster.node("w1")
    await cluster.store.commit([Put(Leadership(node_id="m2", addr="10.0.0.2:2377"))])
    assert managers_of(cluster.store.snapshot()) == ("10.0.0.2:2377", "10.0.0.1:2377")


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("10.0.0.1", ("10.0.0.1", 2377)), ("10.0.0.1:1", ("10.0.0.1", 1)), ("[fd00::1]:5", ("fd00::1", 5)), ("fd00::1", ("fd00::1", 2377)),
        ("[fd00::1]", ("fd00::1", 2377)), ("", None), (":1", None), ("a:0", None), ("a:65536", None), ("a:+1", None), ("a:１", None),
    ],
)  # fmt: skip
def test_endpoints(text: str, result: tuple[str, int] | None) -> None:
    if result is None:
        with pytest.raises(ValueError):
            admission.split_endpoint(text)
    else:
        assert admission.split_endpoint(text) == result
