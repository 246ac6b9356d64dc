"""`docker run --network <overlay>`, `docker network connect`: what is committed, what the Engine is asked, what the client is shown."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from orchestrator.agent import hold
from orchestrator.api.attached import ImageConfig, Wanted, command_line
from orchestrator.api.attached_views import Attachments, committed
from orchestrator.errors import ApiError
from orchestrator.model import ContainerStatus, Network, Task, TaskState, is_attachment
from orchestrator.store.base import Delete, Put
from tests.orchestrator.agent.wait import until
from tests.orchestrator.api.fakes import Setup

ID = "c1" * 32


def run_request(*networks: str, **more: Any) -> dict[str, Any]:
    """As `docker run` sends it."""
    mode, *_ = networks or ("default",)
    ours = {"Image": "bb:1", "HostConfig": {"NetworkMode": mode}, "NetworkingConfig": {"EndpointsConfig": {n: {} for n in networks}}}
    return {**ours, **more}


@pytest.fixture
async def att(cluster: Setup) -> AsyncIterator[Setup]:
    """With an attachable network "att"."""
    await cluster.ok("POST", "/networks/create", {"Name": "att", "Driver": "overlay", "Attachable": True})
    yield cluster


def attachments(setup: Setup) -> list[Task]:
    return [task for task in setup.store.snapshot().all(Task) if is_attachment(task)]


def network(setup: Setup, name: str = "att") -> Network:
    return next(network for network in setup.store.snapshot().all(Network) if network.name == name)


async def test_a_container_is_made_held_and_without_a_network_of_its_engine(att: Setup) -> None:
    asked = run_request("att", Cmd=["x", "y"], Env=["c.d=2"], Labels={"mine": "1"}, Tty=True)
    asked["NetworkingConfig"]["EndpointsConfig"]["att"] = {"Aliases": ["data"], "IPAMConfig": {"IPv4Address": "10.0.1.77"}}
    answer = await att.ok("POST", "/v1.41/containers/create?name=db", asked)
    assert answer == {"Id": ID, "Warnings": []}
    assert att.engine.asked[-1] == ("POST", "/v1.41/containers/create?name=db")
    (task,) = attachments(att)
    sent = json.loads(att.engine.bodies[-1])
    assert (sent["Entrypoint"], sent["Cmd"], sent["Tty"]) == (list(hold.ENTRYPOINT), ["/entry", "x", "y"], True)
    assert sent["HostConfig"]["NetworkMode"] == "none"
    assert sent["HostConfig"]["Dns"] == ["127.0.0.11"]
    gate = {"Type": "bind", "Source": f"/state/tasks/{task.id}/gate", "Target": "/.meshd", "ReadOnly": True}
    assert sent["HostConfig"]["Mounts"] == [gate]
    assert sent["NetworkingConfig"] == {}
    assert sent["Labels"] == {
        "mine": "1", "io.meshd.cluster": att.store.snapshot().cluster.id, "io.meshd.attachment": task.id, "io.meshd.address": "10.0.1.100",
        "io.meshd.entrypoint": "1",
    }  # fmt: skip
    assert (task.name, task.node_id) == ("db", att.backend.node_id)
    (config,) = task.spec.networks or ()
    assert (config.aliases, config.mesh_addresses) == (["data", ID[:12]], ["10.0.1.77"])
    spec = task.spec.network_attachment_spec
    assert spec is not None
    assert (spec.container_id, spec.mesh_environment) == (ID, ["a.b=1", "c.d=2"])
    detail = await att.ok("GET", "/networks/att")
    assert detail["Containers"] is None, "not before its agent has seen it"
    assert await att.refused("DELETE", "/networks/att") == (
        400, f"rpc error: code = FailedPrecondition desc = network {network(att).id} is in use by task {task.id}",
    )  # fmt: skip
    assert await att.ok("GET", "/tasks") == []
    assert [one["ID"] for one in await att.ok("GET", '/tasks?filters={"runtime":["attachment"]}')] == [task.id]


async def test_members_in_any_case(att: Setup) -> None:
    await att.ok(
        "POST", "/containers/create?name=db", {"image": "bb:1", "cmd": ["x"], "hostConfig": {"networkmode": "att", "Privileged": True}}
    )
    sent = json.loads(att.engine.bodies[-1])
    assert (sent["Cmd"], sent["HostConfig"]["NetworkMode"], sent["HostConfig"]["Privileged"]) == (["/entry", "x"], "none", True)
    assert len({key.lower() for key in sent}) == len(sent)
    assert len({key.lower() for key in sent["HostConfig"]}) == len(sent["HostConfig"])


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (run_request("closed"), 403, "Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed not ma"),
        (run_request("att", "other"), 400, "networks of the cluster (att) and of a node (other) can't be joined by one container"),
        (run_request("att", Image="nosuch"), 404, "No such image: nosuch"),
        (run_request("att", MacAddress="02:42:0a:00:00:01"), 400, "the MAC address of a container on an overlay network follows from"),
        (run_request("att", HostConfig={"NetworkMode": "att", "PublishAllPorts": True}), 400, "ports of a container on an overlay network"),
        (
            run_request("att", HostConfig={"NetworkMode": "att", "PortBindings": {"80/tcp": [{"HostPort": ""}]}}),
            400, "port 80/tcp of a container on an overlay network needs a host port: -p PORT:80",
        ),
        (run_request("full"), 500, "attaching to network failed, make sure your network options are correct and check manager logs: "),
    ],
)  # fmt: skip
async def test_what_can_not_be_leaves_nothing(att: Setup, request_: dict[str, Any], status: int, text: str) -> None:
    for name, attachable in (("closed", False), ("full", True)):
        await att.ok("POST", "/networks/create", {"Name": name, "Driver": "overlay", "Attachable": attachable})
    refused = await att.refused("POST", "/containers/create", request_)
    assert (refused[0], refused[1][: len(text)]) == (status, text)
    assert not att.engine.bodies, "no container was asked for"
    await nothing_left(att)


async def nothing_left(setup: Setup) -> None:
    await until(lambda: not attachments(setup), "nothing is left")


async def test_the_engines_refusal_frees_the_addresses(att: Setup) -> None:
    att.engine.containers["db"] = {"Id": "d" * 64}
    refused = await att.refused("POST", "/containers/create?name=db", run_request("att"))
    assert refused == (409, "Conflict. The container name is already in use")
    await nothing_left(att)


async def test_a_published_port_is_the_nodes(att: Setup) -> None:
    host = {"NetworkMode": "att", "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}}
    await att.ok("POST", "/containers/create?name=db", run_request("att", HostConfig=host))
    (task,) = attachments(att)
    (port,) = task.mesh_endpoint_ports or ()
    assert (port.target_port, port.published_port, port.publish_mode, port.protocol) == (80, 8080, "host", "tcp")
    assert json.loads(att.engine.bodies[-1])["HostConfig"]["PortBindings"] == {}
    full = "no suitable node (port already in use on 1 node)"
    assert await att.refused("POST", "/containers/create?name=db2", run_request("att", HostConfig=host)) == (409, full)
    # asked at the same moment, when no task has it yet, it goes to one of them all the same
    host = {**host, "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8081"}]}}
    answers = [att.call("POST", f"/containers/create?name=at-once{n}", run_request("att", HostConfig=host)) for n in range(2)]
    [answer] = [answer for status, answer in await asyncio.gather(*answers) if status != 201]
    assert answer["message"] == full or answer["message"].endswith("Bind for 0.0.0.0:8081 failed: port is already allocated")


# ---- connect, disconnect ---------------------------------------------------------------------------------------------------------


def a_container(mode: str = "none", labels: dict[str, str] | None = None, networks: tuple[str, ...] = ("none",)) -> dict[str, Any]:
    return {
        "Id": ID, "Name": "/old", "Config": {"Labels": labels or {}}, "HostConfig": {"NetworkMode": mode},
        "NetworkSettings": {"Networks": {name: {} for name in networks}},
    }  # fmt: skip


async def test_connected_and_disconnected(att: Setup) -> None:
    await att.ok("POST", "/networks/create", {"Name": "two", "Driver": "overlay", "Attachable": True})
    att.engine.containers["old"] = a_container()
    await att.ok("POST", "/networks/att/connect", {"Container": "old", "EndpointConfig": {"Aliases": ["q"]}})
    await att.ok("POST", "/networks/two/connect", {"Container": "old"})
    (task,) = attachments(att)
    assert [(config.target, config.aliases) for config in task.spec.networks or ()] == [
        (network(att).id, ["q", ID[:12]]), (network(att, "two").id, [ID[:12]]),
    ]  # fmt: skip
    assert len(task.networks_attachments or ()) == 2
    again = await att.refused("POST", "/networks/two/connect", {"Container": "old"})
    assert again == (403, "endpoint with name old already exists in network two")
    shown = Attachments(att.store.snapshot()).inspected(a_container())
    assert {name: net["IPAddress"] for name, net in shown["NetworkSettings"]["Networks"].items()} == {
        "att": "10.0.1.100",
        "two": "10.0.1.100",
    }
    await att.ok("POST", "/networks/att/disconnect", {"Container": "old"})
    assert await att.refused("POST", "/networks/att/disconnect", {"Container": "old"}) == (
        500, "container old is not connected to network att",
    )  # fmt: skip
    await att.ok("POST", "/networks/two/disconnect", {"Container": "old"})
    await nothing_left(att)
    await att.ok("DELETE", "/networks/two")


async def test_two_connections_at_the_same_moment_are_one_attachment(att: Setup) -> None:
    names = ["att", *(f"n{number}" for number in range(4))]
    for name in names[1:]:
        await att.ok("POST", "/networks/create", {"Name": name, "Driver": "overlay", "Attachable": True})
    att.engine.containers["old"] = a_container()
    await asyncio.gather(*(att.ok("POST", f"/networks/{name}/connect", {"Container": "old"}) for name in names))
    (task,) = attachments(att)
    assert {config.target for config in task.spec.networks or ()} == {network(att, name).id for name in names}


@pytest.mark.parametrize(
    ("container", "status", "text"),
    [
        (a_container("host"), 403, "container sharing network namespace with another container or host cannot be connected"),
        (a_container("container:x"), 403, "container sharing network namespace with another container or host cannot be connected"),
        (a_container(labels={"io.meshd.task": "t"}), 403, "container old is a task's: its networks are those of its service"),
        (a_container("br", networks=("br",)), 403, "container old is on network br, where its Engine answers for names"),
        (None, 404, "No such container: nosuch"),
    ],
)
async def test_what_can_not_be_connected(att: Setup, container: dict[str, Any] | None, status: int, text: str) -> None:
    if container is not None:
        att.engine.containers["old"] = container
    refused = await att.refused("POST", "/networks/att/connect", {"Container": "old" if container is not None else "nosuch"})
    assert (refused[0], refused[1][: len(text)]) == (status, text)
    assert attachments(att) == []


async def test_a_full_network_is_left_again(att: Setup) -> None:
    await att.ok("POST", "/networks/create", {"Name": "full", "Driver": "overlay", "Attachable": True})
    await att.ok("POST", "/containers/create?name=db", run_request("att"))
    att.engine.containers["db"] = {**a_container(), "Name": "/db"}
    status, text = await att.refused("POST", "/networks/full/connect", {"Container": "db"})
    assert (status, text.rpartition(": ")[2]) == (500, "pool exhausted 4/4 of network full")
    (task,) = attachments(att)
    assert [config.target for config in task.spec.networks or ()] == [network(att).id]


# ---- pure ------------------------------------------------------------------------------------------------------------------------


def engines_rule(entrypoint: list[str] | None, cmd: list[str] | None, image: ImageConfig) -> list[str]:
    """moby daemon/commit.go merge() and daemon/container.go mergeAndVerifyConfig(), written down once more."""
    if not entrypoint:
        cmd = cmd or image.cmd
        if entrypoint is None:
            entrypoint = image.entrypoint
    if entrypoint == [""]:
        entrypoint = None
    return [*(entrypoint or []), *(cmd or [])]


def test_the_command_line_is_what_the_engine_would_run() -> None:
    given: list[list[str] | None] = [None, [], [""], ["a"], ["a", "b"]]
    of_image: list[list[str] | None] = [None, [], ["i"], ["i", "j"]]
    for entrypoint, cmd, image_entrypoint, image_cmd in itertools.product(given, given, of_image, of_image):
        image = ImageConfig(entrypoint=image_entrypoint, cmd=image_cmd)
        expected = engines_rule(entrypoint, cmd, image)
        wanted = Wanted(entrypoint=entrypoint, cmd=cmd)
        if expected:
            first, second = command_line(wanted, image)
            assert [*first, *second] == expected, wanted
        else:
            with pytest.raises(ApiError, match="no command specified"):
                command_line(wanted, image)


async def test_a_client_sees_the_container_it_asked_for(att: Setup) -> None:
    """The Engine's own answers about what we asked it for, turned back."""
    await att.ok("POST", "/containers/create?name=db", run_request("att", Cmd=["x"], Labels={"mine": "1"}))
    sent = json.loads(att.engine.bodies[-1])
    engines = {
        "Id": ID, "Name": "/db", "Path": sent["Entrypoint"][0], "Args": [*sent["Entrypoint"][1:], *sent["Cmd"]],
        "Config": {"Entrypoint": sent["Entrypoint"], "Cmd": sent["Cmd"], "Labels": sent["Labels"]},
        "HostConfig": sent["HostConfig"], "Mounts": [{"Type": "bind", "Destination": "/.meshd"}, {"Type": "volume", "Destination": "/d"}],
        "NetworkSettings": {"Networks": {"none": {}}, "Ports": {}},
    }  # fmt: skip
    snapshot = att.store.snapshot()
    shown = Attachments(snapshot).inspected(copy.deepcopy(engines))
    assert (shown["Path"], shown["Args"]) == ("/entry", ["x"])
    assert shown["Config"] == {"Entrypoint": ["/entry"], "Cmd": ["x"], "Labels": {"mine": "1"}}
    assert (shown["HostConfig"]["NetworkMode"], shown["HostConfig"]["Mounts"]) == ("att", None)
    assert [mount["Destination"] for mount in shown["Mounts"]] == ["/d"]
    att_settings = shown["NetworkSettings"]["Networks"].pop("att")
    assert shown["NetworkSettings"]["Networks"] == {}
    assert (att_settings["IPAddress"], att_settings["IPPrefixLen"]) == ("10.0.1.100", 24)
    line = {
        "Id": ID, "Command": " ".join([*sent["Entrypoint"], *sent["Cmd"]]), "Labels": sent["Labels"], "State": "running", "Ports": [],
        "Mounts": engines["Mounts"], "HostConfig": {"NetworkMode": "none"}, "NetworkSettings": {"Networks": {"none": {}}},
    }  # fmt: skip
    told = Attachments(snapshot).listed(line)
    assert (told["Command"], told["Labels"], told["HostConfig"]) == ("/entry x", {"mine": "1"}, {"NetworkMode": "att"})
    assert list(told["NetworkSettings"]["Networks"]) == ["att"]
    # an image made of it runs what it runs, and its containers are nothing of ours
    image = committed(engines, None)
    assert image is not None and (image["Entrypoint"], image["Cmd"]) == (["/entry"], ["x"])
    assert image["Labels"] == {name: "" for name in sent["Labels"] if name != "mine"}
    # somebody else's container is left alone
    assert committed({"Config": {"Cmd": ["x"], "Labels": None}}, None) is None
    other = {"Id": "e" * 64, "Command": "x", "Labels": {}, "HostConfig": {"NetworkMode": "none"}}
    assert Attachments(snapshot).listed(copy.deepcopy(other)) == other


async def running(setup: Setup, id: str) -> None:
    """A container of this id has been started on the network, and its agent has said so."""
    await setup.ok("POST", "/containers/create?name=db", run_request("att"))
    (task,) = attachments(setup)
    status = msgspec.structs.replace(
        task.status, state=TaskState.RUNNING, timestamp=datetime.now(UTC), container_status=ContainerStatus(container_id=id, pid=7)
    )
    await setup.store.commit([Put(msgspec.structs.replace(task, status=status))])


async def test_network_inspect_shows_containers_once_they_are_there(att: Setup) -> None:
    await running(att, ID)
    detail = await att.ok("GET", "/networks/att")
    assert {id: (one["Name"], one["IPv4Address"]) for id, one in detail["Containers"].items()} == {ID: ("db", "10.0.1.100/24")}


async def test_a_removed_containers_networks_are_left_when_the_client_is_told(att: Setup) -> None:
    """`docker compose down` looks whether a network has containers before it removes it."""
    await running(att, ID)
    assert list((await att.ok("GET", "/networks/att"))["Containers"]) == [ID]
    assert (await att.call("DELETE", f"/containers/{ID}?link=1"))[0] == 204
    assert attachments(att), "a link is no container"
    assert (await att.call("DELETE", f"/containers/{ID}"))[0] == 204
    assert (await att.ok("GET", "/networks/att"))["Containers"] is None
    assert (await att.call("DELETE", "/networks/att"))[0] == 204


async def test_a_network_waits_for_the_word_that_its_removed_container_is_gone(att: Setup) -> None:
    # what the Engine says of this one is that there is no such container
    await running(att, "nosuch")
    removing = asyncio.create_task(att.call("DELETE", "/networks/att"))
    await until(lambda: ("GET", "/v1.41/containers/nosuch/json") in att.engine.asked, "its Engine is asked", 10)
    assert not removing.done()
    (task,) = attachments(att)
    await att.store.commit([Delete("task", task.id, task.version.index)])
    assert await removing == (204, None)
