"""Init, join, leave, tokens, nodes: answers and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from msgspec.structs import replace

from orchestrator.api.app import make_app
from orchestrator.errors import StoreUnavailable
from orchestrator.model import Node, Task, TaskState, TaskStatus
from orchestrator.store.base import Put
from orchestrator.store.memory import MemoryStore
from tests.orchestrator.api.fakes import Setup, a_node

NO_SWARM = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'
WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "
    "Please run this command on a manager node or promote the current node to a manager."
)
CLUSTER_PATHS = ["/nodes", "/services?status=true", "/tasks", "/secrets", "/configs", "/swarm", "/nodes/x", "/services/x", "/tasks/x/logs"]


@pytest.mark.parametrize("path", CLUSTER_PATHS)
async def test_outside_a_cluster_docker_says_503(node: Setup, path: str) -> None:
    assert await node.refused("GET", path) == (503, NO_SWARM)
    node.backend.state = "worker"
    assert await node.refused("GET", path) == (503, WORKER)


async def test_init_answers_the_node_id_and_fills_in_the_defaults(node: Setup) -> None:
    sent = {
        "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.78.0.1", "DataPathAddr": "", "DataPathPort": 0, "ForceNewCluster": False,
        "Spec": {"Labels": None, "Orchestration": {}, "Raft": {"ElectionTick": 0, "HeartbeatTick": 0}, "Dispatcher": {}, "CAConfig": {},
                 "TaskDefaults": {}, "EncryptionConfig": {"AutoLockManagers": False}},
        "AutoLockManagers": False, "Availability": "", "DefaultAddrPool": [], "SubnetSize": 24,
    }  # fmt: skip
    assert await node.ok("POST", "/v1.44/swarm/init", sent) == node.backend.node_id
    swarm = await node.ok("GET", "/v1.44/swarm")
    assert swarm["Spec"]["Orchestration"] == {"TaskHistoryRetentionLimit": 5}
    assert swarm["Spec"]["Raft"] == {
        "SnapshotInterval": 10000, "KeepOldSnapshots": 0, "LogEntriesForSlowFollowers": 500, "ElectionTick": 10, "HeartbeatTick": 1,
    }  # fmt: skip
    assert swarm["Spec"]["CAConfig"]["NodeCertExpiry"] == 7776000000000000
    assert swarm["JoinTokens"] == {"Worker": "SWMTKN-1-x-worker0", "Manager": "SWMTKN-1-x-manager0"}
    assert not [key for key in swarm if key.startswith("Mesh")], "the keys of the CA stay inside"
    assert await node.refused("POST", "/swarm/init", sent) == (
        503,
        'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.',
    )
    assert len(node.backend.calls) == 1


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"Availability": "sleepy"}, 400, 'invalid Availability: "sleepy"'),
        ({"DefaultAddrPool": ["10.0.0.0/99"]}, 400, "invalid CIDR address: 10.0.0.0/99"),
        ({"DefaultAddrPool": ["10.0.0.0/24"], "SubnetSize": 20}, 400, 'invalid CIDR: "10.0.0.0/24". Subnet size is too small for pool: 20'),
        ({"DataPathPort": 80}, 400, "Datapath port number is not in valid range (1024-49151) : 80"),
        ({"Spec": {"Name": "other"}}, 400, "rpc error: code = InvalidArgument desc = cluster name must be 'default'"),
        ({"SubnetSize": "big"}, 400, "invalid request: Expected `int`, got `str` - at `$.SubnetSize`"),
    ],
)
async def test_a_bad_init_makes_no_cluster(node: Setup, change: dict, status: int, text: str) -> None:
    assert await node.refused("POST", "/swarm/init", {"AdvertiseAddr": "10.0.0.1", **change}) == (status, text)
    assert node.backend.calls == []


async def test_join(node: Setup) -> None:
    bad = {"RemoteAddrs": ["10.0.0.9:2377"], "JoinToken": "SWMTKN-1-bad-bad", "ListenAddr": "0.0.0.0:2377", "Availability": ""}
    assert await node.refused("POST", "/swarm/join", bad) == (500, "invalid join token")
    assert await node.refused("POST", "/swarm/join", {**bad, "RemoteAddrs": []}) == (400, "at least 1 RemoteAddr is required to join")
    await node.ok("POST", "/swarm/join", {**bad, "JoinToken": "SWMTKN-1-x-worker0"})
    assert node.backend.state == "worker"
    assert (await node.refused("POST", "/swarm/join", bad))[0] == 503
    await node.ok("POST", "/swarm/leave")
    assert node.backend.state == "inactive"
    assert await node.refused("POST", "/swarm/leave") == (503, "This node is not part of a swarm")


async def test_the_last_manager_leaves_only_by_force(manager: Setup) -> None:
    status, text = await manager.refused("POST", "/swarm/leave")
    assert status == 503
    assert text.startswith("You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager")
    await manager.ok("POST", "/swarm/leave?force=1")
    assert manager.backend.calls[-1] == ("leave", True)


async def test_update_and_rotation(manager: Setup) -> None:
    swarm = await manager.ok("GET", "/swarm")
    spec = {**swarm["Spec"], "Orchestration": {"TaskHistoryRetentionLimit": 3}, "Dispatcher": {"HeartbeatPeriod": 6_000_000_000}}
    seen = swarm["Version"]["Index"]
    await manager.ok("POST", f"/swarm/update?rotateWorkerToken=true&rotateManagerToken=false&version={seen}", spec)
    after = await manager.ok("GET", "/swarm")
    assert after["Version"]["Index"] > seen
    assert after["Spec"]["Orchestration"] == {"TaskHistoryRetentionLimit": 3}
    assert after["Spec"]["Dispatcher"] == {"HeartbeatPeriod": 6_000_000_000}
    assert after["JoinTokens"] == {"Worker": "SWMTKN-1-x-worker01", "Manager": "SWMTKN-1-x-manager0"}
    stale = await manager.refused("POST", f"/swarm/update?version={seen}", spec)
    assert stale == (500, "rpc error: code = Unknown desc = update out of sequence")
    assert (await manager.refused("POST", "/swarm/update", spec))[0] == 400
    short = {**spec, "CAConfig": {"NodeCertExpiry": 1_000_000_000}}
    current = after["Version"]["Index"]
    assert await manager.refused("POST", f"/swarm/update?version={current}", short) == (
        400, "rpc error: code = InvalidArgument desc = minimum certificate expiry time is: 1h0m0s",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"CAConfig": {"SigningCAKey": "y"}}, "if a signing CA key is provided, the signing CA cert must also be provided"),
        ({"CAConfig": {"SigningCACert": "x", "SigningCAKey": "y"}}, "could not parse the desired CA certificate"),
        ({"CAConfig": {"ExternalCAs": [{"Protocol": "acme", "URL": "https://x"}]}}, 'invalid CAProtocol "acme"'),
        ({"CAConfig": {"ExternalCAs": [{"Protocol": "cfssl", "URL": "http://x"}]}}, "has to be an https:// address"),
        ({"Raft": {"SnapshotInterval": -1}}, "Raft settings cannot be negative"),
    ],
)
async def test_an_update_that_would_do_nothing_is_refused(manager: Setup, part: dict[str, Any], text: str) -> None:
    before = await manager.ok("GET", "/swarm")
    status, message = await manager.refused("POST", f"/swarm/update?version={before['Version']['Index']}", {**before["Spec"], **part})
    assert status in (400, 501)
    assert text in message
    assert await manager.ok("GET", "/swarm") == before


async def test_what_an_update_leaves_out_stays(manager: Setup) -> None:
    before = await manager.ok("GET", "/swarm")
    await manager.ok("POST", f"/swarm/update?version={before['Version']['Index']}", {"Name": "default", "Labels": {"a": "b"}})
    after = await manager.ok("GET", "/swarm")
    assert after["Spec"] == {**before["Spec"], "Labels": {"a": "b"}}


async def test_nodes_are_listed_filtered_and_updated(manager: Setup) -> None:
    await manager.store.commit([Put(a_node("workerid1", "node-b")), Put(a_node("workerid2", "node-c", state="down"))])
    listed = await manager.ok("GET", "/nodes")
    assert [node["Description"]["Hostname"] for node in listed] == ["node-a", "node-b", "node-c"]
    first = listed[0]
    assert first["ManagerStatus"] == {"Leader": True, "Reachability": "reachable", "Addr": "10.0.0.1:2377"}
    assert first["Spec"] == {"Labels": {}, "Role": "manager", "Availability": "active"}
    assert "MeshAPIAddr" not in first["Description"]
    filtered = await manager.ok("GET", '/nodes?filters={"role":{"worker":true},"membership":{"accepted":true}}')
    assert [node["ID"] for node in filtered] == ["workerid1", "workerid2"]
    for reference in ("workerid1", "node-b"):
        assert (await manager.ok("GET", f"/nodes/{reference}"))["ID"] == "workerid1"
    assert (await manager.ok("GET", "/nodes/node-a"))["ID"] == manager.backend.node_id
    assert await manager.refused("GET", "/nodes/workerid") == (400, "node workerid is ambiguous (2 matches found)")
    assert await manager.refused("GET", "/nodes/nosuch") == (404, "node nosuch not found")

    seen = (await manager.ok("GET", "/nodes/node-b"))["Version"]["Index"]
    await manager.ok(
        "POST", f"/nodes/workerid1/update?version={seen}", {"Labels": {"disk": "ssd"}, "Role": "worker", "Availability": "drain"}
    )
    after = await manager.ok("GET", "/nodes/node-b")
    assert after["Spec"] == {"Labels": {"disk": "ssd"}, "Role": "worker", "Availability": "drain"}
    assert after["Version"]["Index"] > seen
    assert (await manager.refused("POST", f"/nodes/workerid1/update?version={seen}", after["Spec"]))[0] == 500
    assert [node["ID"] for node in await manager.ok("GET", '/nodes?filters={"node.label":["disk=ssd"]}')] == ["workerid1"]
    bad = {**after["Spec"], "Availability": "lazy"}
    assert await manager.refused("POST", f"/nodes/workerid1/update?version={after['Version']['Index']}", bad) == (
        400, 'invalid Availability: "lazy"',
    )  # fmt: skip


async def test_the_last_manager_is_not_demoted_nor_removed(manager: Setup) -> None:
    self = await manager.ok("GET", "/nodes/node-a")
    spec = {**self["Spec"], "Role": "worker"}
    assert await manager.refused("POST", f"/nodes/node-a/update?version={self['Version']['Index']}", spec) == (
        400, "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm",
    )  # fmt: skip
    status, text = await manager.refused("DELETE", "/nodes/node-a?force=1")
    assert status == 400
    assert "is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal" in text


@pytest.mark.parametrize(("name", "role"), [("workerid1", "manager"), ("manager2", "worker")])
async def test_promotion_and_demotion_are_written_for_the_leader_and_the_node(manager: Setup, name: str, role: str) -> None:
    third = a_node("manager3", "node-c", "manager")
    await manager.store.commit([Put(a_node("workerid1", "node-b")), Put(a_node("manager2", "node-d", "manager")), Put(third)])
    before = await manager.ok("GET", f"/nodes/{name}")
    await manager.ok("POST", f"/nodes/{name}/update?version={before['Version']['Index']}", {**before["Spec"], "Role": role})
    after = await manager.ok("GET", f"/nodes/{name}")
    assert after["Spec"]["Role"] == role
    # what the node is for the others only changes once its etcd has joined or is out
    assert after.get("ManagerStatus") == before.get("ManagerStatus")


async def test_a_demotion_that_would_cost_the_quorum_is_refused(manager: Setup) -> None:
    lost = a_node("manager2", "node-b", "manager")
    assert lost.manager_status is not None
    await manager.store.commit([Put(replace(lost, manager_status=replace(lost.manager_status, reachability="unreachable")))])
    self = await manager.ok("GET", "/nodes/node-a")
    status, text = await manager.refused(
        "POST", f"/nodes/node-a/update?version={self['Version']['Index']}", {**self["Spec"], "Role": "worker"}
    )
    assert (status, text.split(" desc = ")[1]) == (400, "can't remove member from the raft: this would result in a loss of quorum")


async def test_a_ready_node_is_not_removed_and_a_removed_one_orphans_its_tasks(manager: Setup) -> None:
    await manager.store.commit([Put(a_node("workerid1", "node-b"))])
    tasks = [Task(id=f"t{n}", node_id="workerid1", service_id="s", status=TaskStatus(state=TaskState.RUNNING)) for n in range(3)]
    await manager.store.commit([Put(task) for task in tasks])
    assert await manager.refused("DELETE", "/nodes/node-b") == (
        400, "rpc error: code = FailedPrecondition desc = node workerid1 is not down and can't be removed",
    )  # fmt: skip
    await manager.ok("DELETE", "/nodes/node-b?force=1")
    snapshot = manager.store.snapshot()
    assert snapshot.get(Node, "workerid1") is None
    assert {task.status.state for task in snapshot.all(Task)} == {TaskState.ORPHANED}


async def test_info_and_version_have_the_cluster_in_them(manager: Setup) -> None:
    info = await manager.ok("GET", "/v1.44/info")
    assert info["Swarm"]["NodeID"] == manager.backend.node_id
    assert info["Swarm"]["LocalNodeState"] == "active"
    assert info["Swarm"]["ControlAvailable"] is True
    assert (info["Swarm"]["Nodes"], info["Swarm"]["Managers"]) == (1, 1)
    assert info["Swarm"]["RemoteManagers"] == [{"NodeID": manager.backend.node_id, "Addr": "10.0.0.1:2377"}]
    assert "JoinTokens" not in info["Swarm"]["Cluster"]
    assert "meshd.balancer=nftables" in info["Labels"]
    version = await manager.ok("GET", "/version")
    assert (version["ApiVersion"], version["MinAPIVersion"]) == ("1.50", "1.24")
    assert version["Components"][0]["Details"]["ApiVersion"] == "1.50"


async def test_info_without_an_engine_still_tells_the_role(manager: Setup) -> None:
    manager.backend.engine_socket = "/nonexistent"
    async with TestClient(TestServer(make_app(manager.backend))) as client:
        info = await (await client.get("/info")).json()
        assert info["Swarm"]["ControlAvailable"] is True
        assert "does not answer at unix:///nonexistent" in info["Warnings"][-1]
        assert (await (await client.get("/version")).json())["ApiVersion"] == "1.50"
        refused = await client.get("/containers/json")
        assert refused.status == 503


async def test_an_answer_says_how_fresh_it_is_and_is_as_fresh_as_it_is_asked_to_be(manager: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    async with TestClient(TestServer(make_app(manager.backend))) as client:

        async def ask(path: str, **headers: str) -> tuple[int, str | None, str | None]:
            answer = await client.get(path, headers=headers)
            return answer.status, answer.headers.get("X-Meshd-Revision"), answer.headers.get("X-Meshd-Stale")

        revision = str(manager.store.snapshot().revision)
        assert await ask("/v1.44/services") == (200, revision, None)
        assert await ask("/services", **{"Cache-Control": "no-cache"}) == (200, revision, None)
        # what this node's Engine answers has no revision of the cluster's
        assert (await ask("/version"))[1] is None

        async def no_quorum() -> None:
            raise StoreUnavailable("no quorum")

        monkeypatch.setattr(manager.store, "sync", no_quorum)
        monkeypatch.setattr(MemoryStore, "available", False)
        assert await ask("/services") == (200, revision, "true")
        assert (await ask("/v1.44/services", **{"Cache-Control": "no-cache"}))[0] == 503
        assert (await ask("/version", **{"Cache-Control": "no-cache"}))[0] == 200


# ---- autolock ----------------------------------------------------------------------------------------------------------------------


async def test_autolock_is_turned_on_rotated_and_off(manager: Setup) -> None:
    assert await manager.ok("GET", "/swarm/unlockkey") == {"UnlockKey": ""}

    async def updated(autolock: bool, query: str = "") -> str:
        swarm = await manager.ok("GET", "/swarm")
        spec = {**swarm["Spec"], "EncryptionConfig": {"AutoLockManagers": autolock}}
        await manager.ok("POST", f"/swarm/update?version={swarm['Version']['Index']}{query}", spec)
        # its own disk follows before the client hears of it
        assert manager.backend.calls[-1] == "follow unlock key"
        shown = await manager.ok("GET", "/swarm")
        assert shown["Spec"]["EncryptionConfig"] == {"AutoLockManagers": autolock}
        assert "UnlockKey" not in json.dumps(shown)
        return str((await manager.ok("GET", "/swarm/unlockkey"))["UnlockKey"])

    first = await updated(True)
    assert first.startswith("SWMKEY-1-") and await updated(True) == first
    second = await updated(True, "&rotateManagerUnlockKey=true")
    assert second.startswith("SWMKEY-1-") and second != first
    assert await updated(False, "&rotateManagerUnlockKey=true") == ""
    third = await updated(True)
    assert third not in ("", first, second)


@pytest.mark.parametrize("body", [{"AutoLockManagers": True}, {"Spec": {"EncryptionConfig": {"AutoLockManagers": True}}}])
async def test_a_cluster_may_begin_with_autolock(node: Setup, body: dict[str, Any]) -> None:
    await node.ok("POST", "/swarm/init", {"AdvertiseAddr": "10.0.0.1", **body})
    assert node.backend.calls[0].auto_lock_managers


async def test_unlock_is_for_locked_nodes(node: Setup) -> None:
    key = {"UnlockKey": "SWMKEY-1-RfDxeu2iq7nGIBLBahUOld4hn9jzUyY4uoUl7RqIr80"}
    assert await node.refused("POST", "/swarm/unlock", key) == (503, "This node is not part of a swarm")
    await node.init()
    assert await node.refused("POST", "/swarm/unlock", key) == (409, "swarm is not locked")
    node.backend.state = "locked"
    locked = 'Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.'
    paths = ("/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs", "/swarm/unlockkey", "/mesh/v1/backup")
    assert [await node.refused("GET", path) for path in paths] == [(503, locked)] * len(paths)
    assert (await node.refused("POST", "/swarm/init", {}))[0] == (await node.refused("POST", "/swarm/join", {}))[0] == 503
    info = await node.ok("GET", "/info")
    assert (info["Swarm"]["LocalNodeState"], info["Swarm"]["ControlAvailable"]) == ("locked", False)
    async with node.session.get("http://d/_ping") as response:
        assert response.headers["Swarm"] == "locked"
    assert "Please unlock it first or use `--force`" in (await node.refused("POST", "/swarm/leave"))[1]
    await node.ok("POST", "/swarm/unlock", key)
    assert node.backend.calls[-1] == ("unlock", key["UnlockKey"])
    node.backend.state = "locked"
    await node.ok("POST", "/swarm/leave?force=1")


async def test_a_version_that_only_another_manager_has_shown_is_not_out_of_sequence(
    manager: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    await manager.ok("POST", "/configs/create", {"Name": "c", "Data": "eA=="})
    first = await manager.ok("GET", "/configs/c")
    behind = [manager.store.snapshot()]
    await manager.ok("POST", f"/configs/c/update?version={first['Version']['Index']}", {**first["Spec"], "Labels": {"a": "1"}})
    newest = await manager.ok("GET", "/configs/c")

    async def catch_up() -> None:
        behind.clear()

    followed = manager.store.snapshot
    monkeypatch.setattr(manager.store, "snapshot", lambda: behind[0] if behind else followed())
    monkeypatch.setattr(manager.store, "sync", catch_up)
    await manager.ok("POST", f"/configs/c/update?version={newest['Version']['Index']}", {**newest["Spec"], "Labels": {"a": "2"}})
    # one that was replaced is out of sequence as ever
    status, message = await manager.refused("POST", f"/configs/c/update?version={newest['Version']['Index']}", newest["Spec"])
    assert (status, message) == (500, "rpc error: code = Unknown desc = update out of sequence")
