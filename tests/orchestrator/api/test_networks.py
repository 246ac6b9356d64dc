"""Networks, secrets and configs; what goes to the Engine instead."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from orchestrator.model import Claim, Node, NodeDescription, NodeEncryption, NodeStatus, Secret
from orchestrator.store.base import Put
from tests.orchestrator.api.fakes import Setup
from tests.orchestrator.api.test_services import a_spec, filtered, settled


def an_overlay(name: str = "ov1", *subnets: str, **more: Any) -> dict[str, Any]:
    """As the docker CLI sends it."""
    return {
        "Driver": "overlay", "Scope": "",
        "IPAM": {"Driver": "default", "Options": {}, "Config": [{"Subnet": subnet} for subnet in subnets]},
        "Internal": False, "Attachable": False, "Ingress": False, "ConfigOnly": False, "ConfigFrom": None, "Options": {}, "Labels": {},
        "Name": name, **more,
    }  # fmt: skip


async def test_an_overlay_has_its_subnet_as_soon_as_it_is_created(cluster: Setup) -> None:
    answer = await cluster.ok("POST", "/v1.44/networks/create", an_overlay(Attachable=True))
    assert answer["Warning"] == ""
    shown = await cluster.ok("GET", "/v1.44/networks/ov1")
    created = shown.pop("Created")
    assert created.startswith("20")
    assert shown == {
        "Name": "ov1", "Id": answer["Id"], "Scope": "swarm", "Driver": "overlay", "EnableIPv4": True, "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": [{"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1"}]},
        "Internal": False, "Attachable": True, "Ingress": False, "ConfigFrom": {"Network": ""}, "ConfigOnly": False,
        "Containers": None, "Options": {"com.docker.network.driver.overlay.vxlanid_list": "4097"}, "Labels": None,
    }  # fmt: skip


async def add_nodes(cluster: Setup, **said: NodeEncryption) -> None:
    """By name: what each says of encryption."""
    nodes = [
        Node(id=name, description=NodeDescription(hostname=name, mesh_encryption=own), status=NodeStatus(state="ready"))
        for name, own in said.items()
    ]
    await cluster.store.commit([Put(node) for node in nodes])


async def test_an_encrypted_network_needs_a_node_that_can_encrypt(manager: Setup) -> None:
    encrypted = an_overlay("secret", Options={"encrypted": ""})
    await add_nodes(manager, h1=NodeEncryption(unable="this node's kernel has no WireGuard"))
    status, text = await manager.refused("POST", "/networks/create", encrypted)
    assert status == 501 and text.endswith("no node of this cluster can have encrypted networks (this node's kernel has no WireGuard)")
    assert (await manager.refused("POST", "/mesh/v1/network-keys/rotate"))[1].endswith("there are no keys to change")
    await add_nodes(manager, h2=NodeEncryption(keys={"0": "k", "1": "k"}))
    answer = await manager.ok("POST", "/networks/create", encrypted)
    assert answer["Warning"] == "h1, node-a can't have encrypted networks: no task of this network is placed there"
    network = manager.store.snapshot().network(answer["Id"])
    assert network is not None and network.mesh_encrypted
    shown = await manager.ok("GET", "/networks/secret")
    assert shown["Options"]["encrypted"] == "" and "MeshEncrypted" not in shown
    status, text = await manager.refused("POST", "/networks/create", an_overlay("in", Ingress=True, Options={"encrypted": ""}))
    assert status == 501 and "the ingress network can't be encrypted" in text
    await manager.ok("POST", "/mesh/v1/network-keys/rotate")
    assert (await manager.ok("GET", "/mesh/v1/network-keys"))["UnderWay"] is True
    plain = await manager.ok("POST", "/networks/create", an_overlay("plain", Options={"encrypted": "false"}))
    stored = manager.store.snapshot().network(plain["Id"])
    assert plain["Warning"] == "" and stored is not None and not stored.mesh_encrypted


async def test_nulls_as_stack_deploy_sends_them(cluster: Setup) -> None:
    sent = an_overlay("st_n1", IPAM=None, Options=None, Labels={"com.docker.stack.namespace": "st"})
    await cluster.ok("POST", "/networks/create", sent)
    listed = await filtered(cluster, "/networks", {"label": {"com.docker.stack.namespace=st": True}})
    assert [network["Name"] for network in listed if network["Driver"] == "overlay"] == ["st_n1"]
    assert listed[0]["Labels"] == {"com.docker.stack.namespace": "st"}


async def test_the_list_has_the_engines_networks_too(cluster: Setup) -> None:
    await cluster.ok("POST", "/networks/create", an_overlay())
    assert [network["Name"] for network in await cluster.ok("GET", "/networks")] == ["ov1", "bridge"]
    cluster.backend.state = "worker"
    assert [network["Name"] for network in await cluster.ok("GET", "/networks")] == ["bridge"]


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        (an_overlay("bad name"), 400, "rpc error: code = InvalidArgument desc = name must be valid as a DNS name component"),
        (an_overlay("host"), 409, "network with name host already exists"),
        (an_overlay("a", "nonsense"), 400, "invalid subnet nonsense: invalid CIDR block notation"),
        (an_overlay("a", "10.1.0.1/24"), 400, "invalid subnet 10.1.0.1/24: it should be 10.1.0.0/24"),
        (an_overlay("a", "10.1.0.0/31"), 400, "invalid subnet 10.1.0.0/31: it must hold at least 8 addresses"),
        (an_overlay("a", "127.0.0.0/8"), 400, "invalid subnet 127.0.0.0/8: loopback, link-local and multicast addresses can't be used"),
        (an_overlay("a", "fd00::/64"), 400, "invalid subnet fd00::/64: the network has no IPv6 enabled"),
        (an_overlay("a", "10.1.0.0/16", "10.1.2.0/24"), 400, "multiple overlapping subnet configuration: 10.1.0.0/16, 10.1.2.0/24"),
        (
            an_overlay("a", IPAM={"Config": [{"Subnet": "10.1.0.0/24", "Gateway": "10.2.0.1"}]}), 400,
            "no matching subnet for gateway 10.2.0.1",
        ),
        (
            an_overlay("a", IPAM={"Driver": "magic"}), 400,
            "rpc error: code = InvalidArgument desc = invalid IPAM driver magic: only default is supported",
        ),
        (
            an_overlay("a", Driver="macvlan", Scope="swarm"), 400,
            "swarm-scoped networks of driver macvlan are not supported: use the overlay driver",
        ),
        (
            an_overlay("a", Options={"encrypted": ""}), 501,
            "rpc error: code = Unimplemented desc = no node of this cluster can have encrypted networks",
        ),
        (
            an_overlay("a", Options={"encrypted": "perhaps"}), 400,
            "rpc error: code = InvalidArgument desc = invalid value 'perhaps' of the option encrypted: leave it out, or give true or false",
        ),
        (
            an_overlay("a", Options={"meshd.dns.forward": "no"}), 400,
            "rpc error: code = InvalidArgument desc = option meshd.dns.forward: 'no' is neither true nor false",
        ),
        (
            an_overlay("a", ConfigFrom=1),
            400,
            "overlay networks can't be made from configuration networks: say what the network should have",
        ),
        (an_overlay("a", EnableIPv4=False), 400, "IPv4 cannot be disabled in a Swarm scoped network"),
        (an_overlay("a", Scope="local"), 400, "cannot downgrade network scope for overlay networks"),
        (an_overlay(["a"]), 400, "invalid request: Expected `str`, got `array` - at `$.Name`"),  # type: ignore[arg-type]
        (an_overlay("a", Internal="yes"), 400, "invalid request: Expected `bool`, got `str` - at `$.Internal`"),
    ],
)  # fmt: skip
async def test_a_bad_network_is_refused_and_nothing_is_left(manager: Setup, sent: Any, status: int, text: str) -> None:
    before = manager.store.snapshot().revision
    assert await manager.refused("POST", "/networks/create", sent) == (status, text)
    assert manager.store.snapshot().revision == before


async def test_names_and_subnets_are_unique(cluster: Setup) -> None:
    await cluster.ok("POST", "/networks/create", an_overlay("ov1", "10.55.0.0/24"))
    assert await cluster.refused("POST", "/networks/create", an_overlay("ov1")) == (409, "network with name ov1 already exists")
    assert await cluster.refused("POST", "/networks/create", an_overlay("ov2", "10.55.0.128/25")) == (
        403, "Pool overlaps with other one on this address space: 10.55.0.128/25 with 10.55.0.0/24 of network ov1",
    )  # fmt: skip
    await cluster.ok("POST", "/networks/create", an_overlay("ing", "10.60.0.0/24", Ingress=True))
    status, text = await cluster.refused("POST", "/networks/create", an_overlay("ing2", Ingress=True))
    assert (status, text.endswith("is already present")) == (409, True)


async def test_an_overlay_in_a_node_without_cluster(node: Setup) -> None:
    assert (await node.refused("POST", "/networks/create", an_overlay()))[0] == 503


async def test_a_network_in_use_is_not_removed(cluster: Setup) -> None:
    network = await cluster.ok("POST", "/networks/create", an_overlay())
    spec = a_spec()
    spec["TaskTemplate"]["Networks"] = [{"Target": network["Id"]}]
    service = await cluster.ok("POST", "/services/create", spec)
    await settled(cluster, service["ID"], 1)
    assert await cluster.refused("DELETE", "/networks/ov1") == (
        400, f"rpc error: code = FailedPrecondition desc = network {network['Id']} is in use by service {service['ID']}",
    )  # fmt: skip
    detail = await cluster.ok("GET", "/networks/ov1?verbose=true")
    assert [member["IPv4Address"] for member in detail["Containers"].values()] == ["10.0.1.11/24"]
    assert [member["MacAddress"] for member in detail["Containers"].values()] == ["02:42:0a:00:01:0b"]
    assert detail["Services"]["web"]["VIP"] == "10.0.1.2"
    assert detail["Services"]["web"]["Tasks"][0]["EndpointIP"] == "10.0.1.11"
    # `docker stack rm` removes the network right after the service, whose tasks are still there
    await cluster.ok("DELETE", "/services/web")
    await cluster.ok("DELETE", "/networks/ov1")
    assert await cluster.refused("GET", "/networks/ov1?scope=swarm") == (404, "network ov1 not found")
    assert not list(cluster.store.snapshot().all(Claim))


@pytest.mark.parametrize("sent", [{"Image": "a"}, {"Image": "a", "HostConfig": {"NetworkMode": "host"}}, {"HostConfig": 1}])
async def test_other_containers_are_the_engines(cluster: Setup, sent: dict[str, Any]) -> None:
    await cluster.call("POST", "/containers/create?name=c1", sent)
    assert cluster.engine.asked[-1] == ("POST", "/v1.41/containers/create?name=c1")
    assert json.loads(cluster.engine.bodies[-1]) == sent


async def test_local_networks_are_the_engines(cluster: Setup) -> None:
    await cluster.ok("POST", "/v1.44/networks/create", {"Name": "br", "Driver": "bridge", "Labels": {"a": "b"}})
    assert cluster.engine.asked[-1] == ("POST", "/v1.41/networks/create")
    assert json.loads(cluster.engine.bodies[-1]) == {"Name": "br", "Driver": "bridge", "Labels": {"a": "b"}, "CheckDuplicate": True}
    assert (await cluster.refused("GET", "/networks/nosuch"))[0] == 404
    assert cluster.engine.asked[-1] == ("GET", "/v1.41/networks/nosuch")


async def test_prune_takes_only_unused_networks(cluster: Setup) -> None:
    used = await cluster.ok("POST", "/networks/create", an_overlay("used"))
    await cluster.ok("POST", "/networks/create", an_overlay("unused"))
    await cluster.ok("POST", "/networks/create", an_overlay("kept", Labels={"keep": ""}))
    spec = a_spec()
    spec["TaskTemplate"]["Networks"] = [{"Target": used["Id"]}]
    await cluster.ok("POST", "/services/create", spec)
    pruned = await cluster.ok("POST", '/networks/prune?filters={"label!":["keep"]}')
    assert pruned == {"NetworksDeleted": ["oldbridge", "unused"]}
    assert [network["Name"] for network in await filtered(cluster, "/networks", {"driver": ["overlay"]})][:2] == ["kept", "used"]


async def test_secrets_are_stored_encrypted_and_never_shown(manager: Setup) -> None:
    created = await manager.ok("POST", "/secrets/create", {"Name": "sec1", "Labels": {"a": "b"}, "Data": "c2VjZGF0YQ=="})
    stored = manager.store.snapshot().get(Secret, created["ID"])
    assert stored is not None
    assert stored.spec.data == ""
    assert manager.backend.decrypt_secret(stored.mesh_ciphertext) == b"secdata"
    for path in ("/secrets/sec1", f"/secrets/{created['ID']}"):
        shown = await manager.ok("GET", path)
        assert shown["Spec"] == {"Name": "sec1", "Labels": {"a": "b"}}
        assert set(shown) == {"ID", "Version", "CreatedAt", "UpdatedAt", "Spec"}
    assert (await manager.refused("POST", "/secrets/create", {"Name": "sec1", "Data": "eA=="})) == (
        409, "rpc error: code = AlreadyExists desc = secret sec1 already exists",
    )  # fmt: skip


async def test_configs_are_shown_with_their_data(manager: Setup) -> None:
    created = await manager.ok("POST", "/configs/create", {"Name": "cfg1", "Labels": {}, "Data": "Y2ZnZGF0YQ=="})
    assert (await manager.ok("GET", f"/configs/{created['ID']}"))["Spec"] == {"Name": "cfg1", "Labels": {}, "Data": "Y2ZnZGF0YQ=="}
    assert [config["ID"] for config in await filtered(manager, "/configs", {"name": {"cfg": True}})] == [created["ID"]]
    assert await filtered(manager, "/configs", {"names": ["cfg"]}) == []


@pytest.mark.parametrize("kind", ["secret", "config"])
async def test_payloads_never_change(manager: Setup, kind: str) -> None:
    spec = {"Name": "st_s1", "Labels": {}, "Data": "czE="}
    await manager.ok("POST", f"/{kind}s/create", spec)
    seen = (await manager.ok("GET", f"/{kind}s/st_s1"))["Version"]["Index"]
    await manager.ok("POST", f"/{kind}s/st_s1/update?version={seen}", {**spec, "Labels": {"new": ""}})
    after = await manager.ok("GET", f"/{kind}s/st_s1")
    assert after["Spec"]["Labels"] == {"new": ""}
    current = after["Version"]["Index"]
    only_labels = (400, "rpc error: code = InvalidArgument desc = only updates to Labels are allowed")
    assert await manager.refused("POST", f"/{kind}s/st_s1/update?version={current}", {**spec, "Data": "czI="}) == only_labels
    assert await manager.refused("POST", f"/{kind}s/st_s1/update?version={current}", {**spec, "Name": "other"}) == only_labels
    assert (await manager.refused("POST", f"/{kind}s/st_s1/update?version={seen}", spec))[0] == 500
    await manager.ok("DELETE", f"/{kind}s/st_s1")
    assert await manager.refused("DELETE", f"/{kind}s/st_s1") == (404, f"{kind} st_s1 not found")
    assert not list(manager.store.snapshot().all(Claim))


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"Name": "", "Data": "eA=="}, "name must be provided"),
        (
            {"Name": "-x", "Data": "eA=="},
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
        ),
        ({"Name": "x", "Data": ""}, "secret data must be larger than 0 and less than 512000 bytes"),
    ],
)
async def test_bad_secrets(manager: Setup, spec: Any, text: str) -> None:
    assert await manager.refused("POST", "/secrets/create", spec) == (400, f"rpc error: code = InvalidArgument desc = {text}")
    assert await manager.refused("POST", "/secrets/create", {"Name": "x", "Data": "???"}) == (400, "illegal base64 data in Data")


async def test_a_secret_in_use_is_not_removed(manager: Setup) -> None:
    id = (await manager.ok("POST", "/secrets/create", {"Name": "sec1", "Data": "eA=="}))["ID"]
    for name in ("a", "b"):
        spec = a_spec(name)
        spec["TaskTemplate"]["ContainerSpec"]["Secrets"] = [{"File": {"Name": "s"}, "SecretID": id, "SecretName": "sec1"}]
        await manager.ok("POST", "/services/create", spec)
    prefix = "rpc error: code = InvalidArgument desc = secret 'sec1' is in use by the following"
    assert await manager.refused("DELETE", "/secrets/sec1") == (400, f"{prefix} services: a, b")
    await manager.ok("DELETE", "/services/b")
    assert await manager.refused("DELETE", "/secrets/sec1") == (400, f"{prefix} service: a")


async def test_large_configs_pass_and_too_large_ones_do_not(manager: Setup) -> None:
    for size, status in ((1000 * 1024, 201), (1000 * 1024 + 1, 400)):
        data = base64.b64encode(b"x" * size).decode()
        answer, _ = await manager.call("POST", "/configs/create", {"Name": f"c{size}", "Data": data})
        assert answer == status
    status, answer = await manager.call("POST", "/configs/create", raw=b"x" * (9 * 1024 * 1024))
    assert (status, "larger than" in answer["message"]) == (413, True)


async def test_two_creations_of_one_name_at_the_same_moment(manager: Setup) -> None:
    answers = await asyncio.gather(*(manager.call("POST", "/configs/create", {"Name": "c", "Data": "eA=="}) for _ in range(3)))
    assert sorted(status for status, _ in answers) == [201, 409, 409]
