"""Our own API: routes, document and client say the same; the client and `meshd stack` do what they say."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import openapi_spec_validator
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from orchestrator.api import access
from orchestrator.api.app import make_app
from orchestrator.ask import NoDaemon
from orchestrator.cli.main import main
from orchestrator.client import Mesh
from orchestrator.errors import ConfigError
from orchestrator.mesh_api import OPENAPI_PATH, OPERATIONS, openapi
from orchestrator.model import Network, Secret, Service
from orchestrator.stacks.messages import StackRequest
from orchestrator.store.base import Change, Put
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.api.fakes import FakeBackend, Setup


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    app = make_app(FakeBackend("/nowhere"))
    routes = {
        (route.method, resource.canonical)
        for resource in app.router.resources()
        for route in resource
        # `*`: the Docker API of one node, below ours
        if resource.canonical.startswith("/mesh/v1/") and route.method not in ("HEAD", "*")
    }
    assert routes == {(operation.method, operation.path) for operation in OPERATIONS} | {("GET", OPENAPI_PATH)}


def test_the_client_has_a_method_for_each_operation_and_no_other() -> None:
    assert {name for name in vars(Mesh) if not name.startswith("_")} == {operation.id for operation in OPERATIONS}


def test_the_document_is_openapi_and_says_what_the_operations_say() -> None:
    document = openapi()
    openapi_spec_validator.validate(document)
    for operation in OPERATIONS:
        described = document["paths"][operation.path][operation.method.lower()]
        given = {parameter["name"] for parameter in described["parameters"]}
        assert given == {*operation.parameters, *operation.query}
        done, *refused = described["responses"]
        assert described["responses"][done]["content"].keys() == (set() if operation.answer is None else {operation.answer_type})
        assert refused == [str(status) for status in operation.statuses]


async def test_the_server_publishes_it(cluster: Setup) -> None:
    assert await cluster.ok("GET", OPENAPI_PATH) == openapi()


async def test_the_client_deploys_looks_and_goes_back(cluster: Setup) -> None:
    mesh = Mesh(cluster.socket)
    one, two = (StackRequest(compose=f"services: {{web: {{image: 'x:{tag}'}}}}") for tag in (1, 2))
    planned = await asyncio.to_thread(mesh.plan_stack, "shop", one)
    deployed = await asyncio.to_thread(mesh.deploy_stack, "shop", one, revision=0)
    assert planned == deployed and deployed.revision == 1
    with pytest.raises(ConfigError, match="is at revision 1, not 0"):
        await asyncio.to_thread(mesh.deploy_stack, "shop", two, revision=0)
    assert (await asyncio.to_thread(mesh.deploy_stack, "shop", two, revision=1)).revision == 2
    state = await asyncio.to_thread(mesh.stack, "shop")
    assert state.services[0].image == "x:2" and state.can_roll_back and state.drift == []
    assert await asyncio.to_thread(mesh.compose_file, "shop") == two.compose
    assert await asyncio.to_thread(lambda: mesh.compose_file("shop", previous=True)) == one.compose
    assert (await asyncio.to_thread(mesh.roll_back_stack, "shop")).changes[0].action == "update"
    assert [found.name for found in await asyncio.to_thread(mesh.list_stacks)] == ["shop"]
    assert (await asyncio.to_thread(mesh.remove_stack, "shop", revision=3)).changes[0].action == "remove"
    assert await asyncio.to_thread(mesh.list_stacks) == []
    assert (await asyncio.to_thread(mesh.backup))[:2] == b"\x1f\x8b"


async def test_a_revision_that_is_none_is_refused(cluster: Setup) -> None:
    await cluster.ok("PUT", "/mesh/v1/stacks/shop", {"Compose": "services: {web: {image: x}}"})
    assert await cluster.refused("DELETE", "/mesh/v1/stacks/shop?revision=x") == (400, 'revision: expected a number, not "x"')
    status, said = await cluster.refused("GET", "/mesh/v1/stacks/shop/compose?revision=7")
    assert (status, said) == (400, 'revision: expected "previous", not "7": other revisions are not kept')
    await cluster.ok("DELETE", "/mesh/v1/stacks/shop?revision=1")


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="start it"):
        Mesh(str(tmp_path / "none")).list_stacks()


async def meshd(cluster: Setup, *arguments: str, code: int = 0, **environment: str) -> str:
    words = ["stack", arguments[0], "--socket", cluster.socket, *arguments[1:]]
    result = await asyncio.to_thread(CliRunner().invoke, main, words, None, environment)
    assert result.exit_code == code, result.output
    return result.output


async def test_the_command_line(cluster: Setup, tmp_path: Path) -> None:
    file = tmp_path / "compose.yml"
    file.write_text(
        "services:\n  web:\n    image: meshd/demo:${TAG}\n    env_file: web.env\n    environment: [TOKEN]\n    secrets: [key]\n"
        "    volumes: ['./data:/data']\nsecrets: {key: {file: 'key-${TAG}.txt'}}\n"
    )
    (tmp_path / ".env").write_text("TAG=v1\n")
    (tmp_path / "web.env").write_text("MODE=fast\n")
    (tmp_path / "key-v1.txt").write_text("secret one")
    given = ("shop", "-c", str(file))
    assert "nothing is changed yet" in await meshd(cluster, "plan", *given, code=1)
    said = await meshd(cluster, "deploy", *given, TOKEN="t")
    assert "+ service shop_web" in said and "revision 1" in said
    service = next(cluster.store.snapshot().all(Service))
    container = service.spec.task_template.container_spec
    assert container is not None and container.mounts is not None
    assert (container.image, container.env) == ("meshd/demo:v1", ["MODE=fast", "TOKEN=t"])
    assert container.mounts[0].source == str(tmp_path / "data")
    assert cluster.backend.decrypt_secret(next(cluster.store.snapshot().all(Secret)).mesh_ciphertext) == b"secret one"
    assert "nothing differs" in await meshd(cluster, "plan", *given, TOKEN="t")
    assert "key-v2.txt)" in await meshd(cluster, "deploy", *given, TAG="v2", code=2)
    (tmp_path / "key-v2.txt").write_text("secret two")
    said = await meshd(cluster, "deploy", *given, TAG="v2", TOKEN="t")
    assert "- TaskTemplate.ContainerSpec.Image: meshd/demo:v1" in said and "+ TaskTemplate.ContainerSpec.Image: meshd/demo:v2" in said
    assert "shop_web" in await meshd(cluster, "show", "shop")
    assert "shop" in await meshd(cluster, "ls")
    assert json.loads(await meshd(cluster, "ls", "--json"))[0]["Revision"] == 2
    assert "revision 3" in await meshd(cluster, "rollback", "shop")
    assert "- service shop_web" in await meshd(cluster, "rm", "shop")
    assert "stack shop not found" in await meshd(cluster, "show", "shop", code=2)


async def test_the_command_line_waits_for_new_network_keys(cluster: Setup) -> None:
    async def rotated(*options: str) -> tuple[int, str]:
        words = ["rotate-network-keys", "--socket", cluster.socket, *options]
        result = await asyncio.to_thread(CliRunner().invoke, main, words)
        return result.exit_code, result.output

    def wanted() -> bool:
        snapshot = cluster.store.snapshot()
        assert snapshot.cluster is not None
        return snapshot.cluster.mesh_keys.wanted

    assert "no network of this cluster is encrypted" in (await rotated())[1]
    await cluster.store.commit([Put(Network(id="n", name="secret", mesh_encrypted=True))])
    assert not wanted()
    code, said = await rotated("--timeout", "0")
    assert code == 2 and "not all nodes have their new keys within 0 s" in said and wanted()

    def done(snapshot: Snapshot) -> list[Change]:
        assert snapshot.cluster is not None
        return [Put(replace(snapshot.cluster, mesh_keys=replace(snapshot.cluster.mesh_keys, wanted=False)))]

    await access.commit(cluster.store, done)
    waiting = asyncio.create_task(rotated())
    async with asyncio.timeout(30):
        while not wanted():
            await asyncio.sleep(0.01)
    await access.commit(cluster.store, done)
    assert await waiting == (0, "all nodes with encrypted networks use new keys\n")
