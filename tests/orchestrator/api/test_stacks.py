"""Stacks on the server: the same services as `docker stack deploy` makes, planned, deployed whole or not at all, and back."""

from __future__ import annotations

import base64
import difflib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.model import Config, Network, Secret, Service, Stack
from orchestrator.store.base import Delete
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.api.fakes import Setup
from tests.orchestrator.api.test_clients import CLIS, Cli, needs_cli

FULL = """
version: "3.8"
x-env: &env {LANG: C, EMPTY: "", NUMBER: 7, FLAG: "true"}
services:
  web:
    image: meshd/demo:v1
    command: ["serve", "--port", "80"]
    entrypoint: /bin/sh -c 'exec "$$@"'
    environment: {<<: *env, VERSION: "${VERSION:-1}"}
    labels: {tier: front}
    hostname: host-{{.Task.Slot}}
    user: "1000"
    working_dir: /srv
    stop_signal: SIGINT
    stop_grace_period: 12s
    init: true
    tty: true
    stdin_open: true
    read_only: true
    cap_add: [NET_ADMIN]
    cap_drop: [MKNOD]
    sysctls: {net.core.somaxconn: 1024}
    ulimits: {nofile: {soft: 1000, hard: 2000}, nproc: 300}
    extra_hosts: ["db.local:10.1.2.3"]
    dns: 10.9.9.9
    dns_search: [example.org]
    volumes:
      - data:/data
      - /etc/hosts:/etc/hosts.ro:ro
      - {type: tmpfs, target: /tmp, tmpfs: {size: 1048576}}
      - {type: volume, source: data, target: /copy, volume: {nocopy: true}}
    networks: {front: {aliases: [www]}, back: }
    ports:
      - "8080:80"
      - "5000-5001:5000-5001/udp"
      - {target: 9000, published: 9001, mode: host}
    healthcheck: {test: "true", interval: 10s, timeout: 3s, retries: 2, start_period: 5s}
    logging: {driver: json-file, options: {max-size: 1m}}
    deploy:
      replicas: 2
      labels: {zone: a}
      endpoint_mode: vip
      update_config: {parallelism: 2, delay: 5s, order: start-first, failure_action: rollback, monitor: 20s, max_failure_ratio: 0.2}
      rollback_config: {parallelism: 0, order: stop-first}
      resources: {limits: {cpus: "0.5", memory: 64M}, reservations: {cpus: "0.25", memory: 32M}}
      restart_policy: {condition: on-failure, delay: 3s, max_attempts: 4, window: 90s}
      placement:
        constraints: [node.platform.os == linux]
        preferences: [{spread: node.labels.zone}]
        max_replicas_per_node: 3
  agent:
    image: meshd/demo:v1
    deploy: {mode: global}
    restart: always
networks:
  front: {}
  back: {driver: overlay, internal: true, attachable: true, labels: {kind: inner}, driver_opts: {com.docker.network.driver.mtu: "1400"}}
volumes:
  data: {labels: {keep: "yes"}}
"""

SMALL = """
services:
  web:
    image: meshd/demo:v1
    ports: ["8080:80"]
    secrets: [key]
    configs: [{source: conf, target: /etc/app.conf, mode: 0400}]
secrets: {key: {file: ./key.txt}}
configs: {conf: {content: "hello"}}
"""


SHOP = "/mesh/v1/stacks/shop"


def body(compose: str, **files: bytes) -> dict[str, Any]:
    return {
        "Compose": compose,
        "Files": {path.replace("__", "./").replace("_", "."): base64.b64encode(f).decode() for path, f in files.items()},
    }


async def deploy(node: Setup, compose: str, name: str = "shop", **files: bytes) -> Any:
    return await node.ok("PUT", f"/mesh/v1/stacks/{name}", body(compose, **files))


async def refused(node: Setup, status: int, words: str, method: str, path: str, sent: Any = None) -> None:
    found, message = await node.refused(method, path, sent)
    assert (found, words in message) == (status, True), (found, message)


def actions(answer: Any) -> list[tuple[str, str, str]]:
    return [(change["Action"], change["Kind"], change["Name"].partition("-")[0]) for change in answer["Changes"]]


def snapshot(node: Setup) -> Snapshot:
    return node.store.snapshot()


def named(node: Setup, name: str) -> Service:
    return next(service for service in snapshot(node).all(Service) if service.spec.name == name)


def plain(node: Setup, stack: str) -> dict[str, Any]:
    """The services of a stack without what differs from one stack to the other: ids, and the stack's own name."""
    networks = {network.id: network.name for network in snapshot(node).all(Network)}
    shown = {}
    for service in snapshot(node).all(Service):
        if service.spec.name.startswith(f"{stack}_"):
            text = json.dumps(whole(service.spec), sort_keys=True)
            for id, name in networks.items():
                text = text.replace(id, name)
            shown[service.spec.name.removeprefix(f"{stack}_")] = json.loads(text.replace(stack, "STACK"))
    return shown


def whole(value: Any) -> Any:
    """With the defaults that encoding may leave out."""
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        return {shown: whole(getattr(value, name)) for shown, name in names}
    if isinstance(value, dict):
        return {key: whole(member) for key, member in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


def without_empty(value: Any) -> Any:
    """Go writes empty members that mean nothing."""
    if isinstance(value, dict):
        kept = {key: without_empty(member) for key, member in value.items()}
        return {key: member for key, member in kept.items() if member not in ({}, [], "", None, False, 0)}
    return [without_empty(item) for item in value] if isinstance(value, list) else value


@needs_cli
@pytest.mark.parametrize("program", CLIS)
async def test_the_same_services_as_docker_stack_deploy_makes(cluster: Setup, tmp_path: Path, program: str) -> None:
    file = tmp_path / "compose.yml"
    # one cluster can't publish a port twice
    file.write_text(FULL.replace("8080:80", "8081:80").replace("5000-5001:", "6000-6001:").replace("published: 9001", "published: 9002"))
    cli = Cli(cluster.url, tmp_path, program)
    await cli("stack", "deploy", "--resolve-image", "never", "-c", str(file), "theirs")
    answer = await deploy(cluster, FULL, "ours")
    assert answer["Warnings"] == []
    ours, theirs = (without_empty(plain(cluster, stack)) for stack in ("ours", "theirs"))
    theirs = json.loads(json.dumps(theirs).replace("8081", "8080").replace("6000", "5000").replace("6001", "5001").replace("9002", "9001"))
    for specs in (ours, theirs):
        for spec in specs.values():
            # in the order they come in the one, by port in the other
            spec.get("EndpointSpec", {}).get("Ports", []).sort(key=str)
            spec["TaskTemplate"]["ContainerSpec"].get("Mounts", []).sort(key=str)
            for attachment in spec["TaskTemplate"]["Networks"]:
                attachment["Aliases"].sort()
            spec["TaskTemplate"]["Networks"].sort(key=lambda attachment: attachment["Target"])
    shown = [json.dumps(specs, indent=1, sort_keys=True).splitlines() for specs in (ours, theirs)]
    difference = "\n".join(difflib.unified_diff(*shown, "ours", "theirs", n=2, lineterm=""))
    assert not difference, difference
    networks = {network.name: network for network in snapshot(cluster).all(Network)}
    for name in ("front", "back"):
        mine, other = networks[f"ours_{name}"], networks[f"theirs_{name}"]
        assert (mine.internal, mine.attachable, mine.options) == (other.internal, other.attachable, other.options)
    # and the CLI takes the one for its own
    assert sorted((await cli("stack", "ls", "--format", "{{.Name}}")).split()) == ["ours", "theirs"]
    assert len((await cli("stack", "services", "-q", "ours")).split()) == 2
    await cli("stack", "rm", "ours")
    assert plain(cluster, "ours") == {}


async def test_a_stack_is_planned_deployed_changed_and_rolled_back(cluster: Setup) -> None:
    given = {"__key_txt": b"one"}
    planned = await cluster.ok("POST", "/mesh/v1/stacks/shop/plan", body(SMALL, **given))
    assert actions(planned) == [
        ("create", "network", "shop_default"), ("create", "secret", "shop_key"), ("create", "config", "shop_conf"),
        ("create", "service", "shop_web"),
    ]  # fmt: skip
    assert not list(snapshot(cluster).all(Service)) and not list(snapshot(cluster).all(Stack))
    first = await deploy(cluster, SMALL, **given)
    assert first["Revision"] == 1 and actions(first) == actions(planned)
    again = await deploy(cluster, SMALL, **given)
    assert again["Revision"] == 1 and again["Changes"] == []

    changed = SMALL.replace("demo:v1", "demo:v2").replace("8080", "8090")
    second = await deploy(cluster, changed, __key_txt=b"two")
    assert second["Revision"] == 2
    assert actions(second) == [("create", "secret", "shop_key"), ("update", "service", "shop_web")]
    fields = {field["Field"]: (field["Before"], field["After"]) for field in second["Changes"][1]["Fields"]}
    assert fields["TaskTemplate.ContainerSpec.Image"] == ("meshd/demo:v1", "meshd/demo:v2")
    assert any("PublishedPort=8080" in before and "PublishedPort=8090" in after for before, after in fields.values())

    back = await cluster.ok("POST", "/mesh/v1/stacks/shop/rollback")
    assert back["Revision"] == 3 and actions(back) == [("update", "service", "shop_web")]
    container = named(cluster, "shop_web").spec.task_template.container_spec
    assert container is not None and container.image == "meshd/demo:v1" and container.secrets is not None
    stored = snapshot(cluster).secret(container.secrets[0].secret_id)
    assert stored is not None and cluster.backend.decrypt_secret(stored.mesh_ciphertext) == b"one"
    # and forward again: what is two revisions back is kept until then, what is three back is not
    assert actions(await cluster.ok("POST", "/mesh/v1/stacks/shop/rollback")) == [("update", "service", "shop_web")]
    third = await deploy(cluster, changed, __key_txt=b"three")
    assert ("remove", "secret", "shop_key") in actions(third)

    gone = await cluster.ok("DELETE", "/mesh/v1/stacks/shop")
    assert {action for action, _, _ in actions(gone)} == {"remove"}
    for cls in (Service, Secret, Config, Stack):
        assert not list(snapshot(cluster).all(cls)), cls
    assert [network.name for network in snapshot(cluster).all(Network) if network.name.startswith("shop")] == []
    await refused(cluster, 404, "stack shop not found", "DELETE", "/mesh/v1/stacks/shop")


async def test_what_the_file_no_longer_names_goes_and_its_port_can_be_taken_at_once(cluster: Setup) -> None:
    await deploy(cluster, "services: {a: {image: x, ports: ['80:80'], networks: [n]}}\nnetworks: {n: {}}")
    answer = await deploy(cluster, "services: {b: {image: x, ports: ['80:80']}}")
    assert actions(answer) == [
        ("create", "network", "shop_default"), ("remove", "service", "shop_a"),
        ("create", "service", "shop_b"), ("remove", "network", "shop_n"),
    ]  # fmt: skip
    assert {service.spec.name for service in snapshot(cluster).all(Service)} == {"shop_b"}


async def test_nothing_is_half_deployed(cluster: Setup) -> None:
    await cluster.ok("POST", "/services/create", _service("taken", 80))
    before = snapshot(cluster)
    two = "services: {a: {image: x, networks: [n]}, b: {image: x, ports: ['80:80']}}\nnetworks: {n: {}}"
    await refused(cluster, 400, "port '80' is already in use by service 'taken'", "PUT", SHOP, body(two))
    await refused(
        cluster, 409, "service shop_a exists and is not of stack shop", "PUT", "/mesh/v1/stacks/shop", body(await _foreign(cluster))
    )
    external = "services: {a: {image: x, networks: [n]}}\nnetworks: {n: {external: true, name: outside}}"
    await refused(cluster, 400, 'network "outside" is declared as external', "PUT", "/mesh/v1/stacks/other", body(external))
    lost = "services: {a: {image: x, secrets: [s]}}\nsecrets: {s: {external: true}}"
    await refused(cluster, 400, "secret not found: s", "PUT", "/mesh/v1/stacks/other", body(lost))
    after = snapshot(cluster)
    for cls in (Network, Secret, Config, Stack):
        assert {obj.id for obj in before.all(cls)} == {obj.id for obj in after.all(cls)}


async def _foreign(cluster: Setup) -> str:
    await cluster.ok("POST", "/services/create", _service("shop_a", 0))
    return "services: {a: {image: x}}"


def _service(name: str, port: int) -> dict[str, Any]:
    ports = [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": port}] if port else []
    return {"Name": name, "TaskTemplate": {"ContainerSpec": {"Image": "x"}}, "EndpointSpec": {"Ports": ports}}


async def test_state_and_drift(cluster: Setup) -> None:
    await deploy(cluster, "services: {web: {image: x}}")
    service = named(cluster, "shop_web")
    # a file that doesn't say how many leaves it to `docker service scale`
    scaled = msgspec.to_builtins(service.spec)
    scaled["Mode"] = {"Replicated": {"Replicas": 3}}
    await cluster.ok("POST", f"/services/{service.id}/update?version={service.version.index}", scaled)
    assert (await cluster.ok("GET", "/mesh/v1/stacks/shop"))["Drift"] == []
    scaled["TaskTemplate"]["ContainerSpec"]["Image"] = "by-hand"
    service = named(cluster, "shop_web")
    await cluster.ok("POST", f"/services/{service.id}/update?version={service.version.index}", scaled)
    shown = await cluster.ok("GET", "/mesh/v1/stacks/shop")
    assert [field["Field"] for field in shown["Drift"][0]["Fields"]] == ["TaskTemplate.ContainerSpec.Image"]
    answer = await deploy(cluster, "services: {web: {image: x}}")
    assert actions(answer) == [("update", "service", "shop_web")]
    replicated = named(cluster, "shop_web").spec.mode.replicated
    assert replicated is not None and replicated.replicas == 3
    assert (await cluster.ok("GET", "/mesh/v1/stacks"))[0]["Name"] == "shop"
    service = named(cluster, "shop_web")
    await cluster.ok("DELETE", f"/services/{service.id}")
    assert (await cluster.ok("GET", "/mesh/v1/stacks/shop"))["State"] == "empty"
    assert actions(await deploy(cluster, "services: {web: {image: x}}")) == [("create", "service", "shop_web")]


async def test_a_secret_removed_by_hand_is_drift_and_a_rollback_says_what_is_missing(cluster: Setup) -> None:
    await deploy(cluster, SMALL, __key_txt=b"one")
    await deploy(cluster, "services: {web: {image: x}}")
    secret = next(snapshot(cluster).all(Secret))
    await cluster.ok("DELETE", f"/secrets/{secret.id}")
    await refused(cluster, 400, "is gone, and its content was not sent along", "POST", "/mesh/v1/stacks/shop/rollback")
    await cluster.store.commit([Delete("stack", "shop")])
    await refused(cluster, 404, "deploy it here to have revisions", "POST", "/mesh/v1/stacks/shop/rollback")


async def test_bad_requests_are_refused_in_words(cluster: Setup) -> None:
    await refused(cluster, 400, "invalid stack name 'A'", "PUT", "/mesh/v1/stacks/A", body("services: {a: {image: x}}"))
    await refused(cluster, 400, "there is no field 'imag'", "PUT", "/mesh/v1/stacks/a", body("services: {a: {imag: x}}"))
    await refused(cluster, 400, "invalid request", "PUT", "/mesh/v1/stacks/a", {"Compose": 1})
    await refused(cluster, 400, "invalid request", "PUT", "/mesh/v1/stacks/a", {"Compsoe": ""})
    await refused(
        cluster, 400, "expected base64", "PUT", "/mesh/v1/stacks/a", {"Compose": "services: {a: {image: x}}", "Files": {"a": "%"}}
    )
    await refused(cluster, 400, "must be absolute", "PUT", "/mesh/v1/stacks/a", body("services: {a: {image: x, volumes: ['/x:relative']}}"))
    await deploy(cluster, "services: {a: {image: x}}", "a")
    await refused(cluster, 409, "stack a is at revision 1, not 7", "PUT", "/mesh/v1/stacks/a?revision=7", body("services: {a: {image: y}}"))
    await refused(cluster, 404, "stack b not found", "GET", "/mesh/v1/stacks/b")
    await refused(cluster, 404, "has no previous revision", "GET", "/mesh/v1/stacks/a/compose?revision=previous")
