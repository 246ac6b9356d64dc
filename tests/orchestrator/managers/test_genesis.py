from __future__ import annotations

from datetime import UTC, datetime

from orchestrator.managers.genesis import FirstNode, Keys, first_objects, with_defaults
from orchestrator.model import SECOND, Claim, Cluster, ClusterSpec, JoinTokens, Network, Node, OrchestrationConfig, TLSInfo
from orchestrator.store.base import Put

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = Keys("cert", "key", "etcd cert", "etcd key", b"secret", JoinTokens(worker="w", manager="m"), TLSInfo(trust_root="cert"))
NODE = FirstNode(id="n", hostname="host", addr="192.0.2.1:2377", data_addr="192.0.2.7")


def _made(**options: object) -> dict[type, object]:
    changes = first_objects("c", "i", ClusterSpec(), KEYS, NODE, NOW, **options)  # type: ignore[arg-type]
    puts = [change.obj for change in changes if isinstance(change, Put)]
    assert len(puts) == len(changes)
    assert all(obj.version.index == 0 for obj in puts), "created, never overwritten"
    return {type(obj): obj for obj in puts}


def test_a_new_cluster_has_itself_its_first_manager_and_the_ingress_network() -> None:
    made = _made()
    node, ingress, claim, cluster = made[Node], made[Network], made[Claim], made[Cluster]
    assert isinstance(node, Node) and node.manager_status is not None
    assert (node.spec.role, node.status.addr, node.description.mesh_data_addr) == ("manager", "192.0.2.1", "192.0.2.7")
    assert isinstance(ingress, Network) and ingress.ingress
    assert isinstance(claim, Claim) and (claim.id, claim.owner) == ("network/ingress", ingress.id)
    assert isinstance(cluster, Cluster)
    assert (cluster.subnet_size, cluster.default_addr_pool, cluster.data_path_port) == (20, ["10.0.0.0/8"], 4789)


def test_what_the_user_says_is_kept() -> None:
    cluster = _made(address_pool=("172.20.0.0/14",), subnet_size=26, data_path_port=7789)[Cluster]
    assert isinstance(cluster, Cluster)
    assert (cluster.subnet_size, cluster.default_addr_pool, cluster.data_path_port) == (26, ["172.20.0.0/14"], 7789)


def test_defaults_fill_gaps_only() -> None:
    spec = with_defaults(ClusterSpec())
    assert (spec.orchestration.task_history_retention_limit, spec.dispatcher.heartbeat_period) == (5, 5 * SECOND)
    assert spec.ca_config.node_cert_expiry == 90 * 24 * 3600 * SECOND
    none = with_defaults(ClusterSpec(orchestration=OrchestrationConfig(task_history_retention_limit=0)))
    assert none.orchestration.task_history_retention_limit == 0, "0 is an answer, not a gap"
    assert with_defaults(spec) == spec


def test_keys_never_show_in_logs() -> None:
    assert "key" not in repr(KEYS)
