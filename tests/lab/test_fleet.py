"""The stock CLI at three nodes as if they were one machine: containers on overlays, images, volumes, networks, events, builds."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.lab.lab import Lab, Node, wait_until
from tests.lab.asking import answers, resolves, switch
from tests.lab.cli import IMAGE, Cli
from tests.orchestrator.agent import registry as registry_program

pytestmark = [pytest.mark.root, pytest.mark.engine, pytest.mark.cluster]

NODES = ["node-1", "node-2", "node-3"]


def start(cli: Cli, node: str, *options: str, name: str, command: tuple[str, ...] = ()) -> str:
    """The container's id."""
    return cli.ok("run", "-d", "-l", "fleet", "--name", name, "-e", f"constraint:node=={node}", *options, IMAGE, *command)


def inside(lab: Lab, cli: Cli, container: str) -> str:
    """The network namespace of a container that runs, wherever."""
    return f"/proc/{cli.ok('inspect', '--format', '{{.State.Pid}}', container)}/ns/net"


def address_of(cli: Cli, container: str, network: str) -> str:
    return cli.ok("inspect", "--format", f'{{{{(index .NetworkSettings.Networks "{network}").IPAddress}}}}', container)


def images_on(node: Node) -> set[str]:
    engine = node.engine()
    try:
        return {tag for image in engine.api.images() for tag in image["RepoTags"] or ()}
    finally:
        engine.close()


# ---- containers on overlay networks ----------------------------------------------------------------------------------------------


def test_containers_started_by_hand_live_on_an_overlay(lab: Lab, fleet: Cli) -> None:
    fleet.ok("network", "create", "-d", "overlay", "--attachable", "att")
    fleet.ok("network", "create", "-d", "overlay", "closed")
    refused = fleet.fails("run", "--rm", "--network", "closed", IMAGE, "true")
    assert "Could not attach to network closed" in refused and "not manually attachable" in refused
    fleet.create("web", "--network", "att", "--replicas", "2", replicas="2/2")
    vip = fleet.ok("service", "inspect", "web", "--format", "{{range .Endpoint.VirtualIPs}}{{.Addr}}{{end}}").partition("/")[0]
    # on a worker and on the manager; the names are there before the application's first line
    start(fleet, "node-2", "--network", "att", "--network-alias", "data", "-p", "8095:80", name="db")
    first_words = fleet.ok("run", "--rm", "--network", "att", "-e", "constraint:node==node-1", IMAGE, "nslookup", "data")
    db = address_of(fleet, "db", "att")
    assert db and f"Address: {db}" in first_words
    start(fleet, "node-1", "--network", "att", name="front")
    for container in ("db", "front"):
        where = inside(lab, fleet, container)
        assert resolves(where, "web") == {vip}
        wait_until(lambda where=where: answers(where, vip), 10, f"{container} reaches the service")
    # its published port is its node's
    wait_until(lambda: answers(switch(lab), lab.nodes[1].address, 8095), 10, "the published port")
    assert fleet.ok("port", "db", "80").endswith(":8095")
    # a task, and a container on another node, find it by its name and alias, and it answers
    task = fleet.ok("ps", "-q", "--filter", "label=com.docker.swarm.service.name=web").split()[0]
    for asker in (task, "front"):
        where = inside(lab, fleet, asker)
        for name in ("db", "data"):
            wait_until(lambda where=where, name=name: resolves(where, name) == {db}, 10, f"{name} is known to {asker}")
        wait_until(lambda where=where: answers(where, db), 10, f"{asker} reaches the container")
    assert fleet.ok("ps", "--filter", "name=^db$", "--format", "{{.Names}} {{.Command}} {{.Image}}") == f'db "serve" {IMAGE}'
    shown = fleet.json("network", "inspect", "att")[0]["Containers"]
    assert isinstance(shown, dict)
    assert {"db", "front"} <= {container["Name"] for container in shown.values()}
    # stopped, nobody is sent to it; started again it is who it was
    fleet.ok("stop", "-t", "0", "db")
    where = inside(lab, fleet, "front")
    wait_until(lambda: resolves(where, "db") == set(), 10, "a stopped container has no name")
    fleet.ok("start", "db")
    wait_until(lambda: resolves(where, "db") == {db} and answers(where, db), 10, "started again")
    # so it is when it was restarted while its node had no meshd: it waits for its network until that is back
    lab.nodes[1].kill("meshd")
    at_engine(lab.nodes[1], "restart", "-t", "0", "db")
    wait_until(lambda: resolves(where, "db") == {db} and answers(where, db), 30, "restarted")
    refused = fleet.fails("network", "rm", "att")
    assert "is in use by" in refused
    fleet.ok("rm", "-f", "db", "front")
    fleet.ok("service", "rm", "web")
    fleet.ok("network", "rm", "att")


def test_connected_and_disconnected_while_it_runs(lab: Lab, fleet: Cli) -> None:
    for name in ("one", "two"):
        fleet.ok("network", "create", "-d", "overlay", "--attachable", name)
    start(fleet, "node-3", "--network", "none", name="late")
    start(fleet, "node-1", "--network", "one", "--ip", _free_address(fleet, "one"), name="early")
    assert address_of(fleet, "early", "one") == _free_address(fleet, "one")
    fleet.ok("network", "connect", "--alias", "late-alias", "one", "late")
    fleet.ok("network", "connect", "two", "late")
    fleet.ok("network", "connect", "two", "early")
    assert "already exists in network one" in fleet.fails("network", "connect", "one", "late")
    early, late = inside(lab, fleet, "early"), inside(lab, fleet, "late")
    both = {address_of(fleet, "late", "one"), address_of(fleet, "late", "two")}
    wait_until(lambda: resolves(early, "late") and resolves(early, "late") <= both, 10, "late is known")
    wait_until(lambda: resolves(late, "early") != set(), 10, "late asks for names")
    assert fleet.ok("exec", "late", "nslookup", "early")
    wait_until(lambda: answers(early, address_of(fleet, "late", "two")), 10, "reached on the second network")
    fleet.ok("network", "disconnect", "two", "late")
    fleet.ok("network", "disconnect", "one", "late")
    wait_until(lambda: resolves(early, "late") == set(), 10, "late is gone")
    assert "is not connected to network" in fleet.fails("network", "disconnect", "one", "late")
    fleet.ok("network", "connect", "one", "late")
    fleet.ok("network", "disconnect", "one", "late")
    assert fleet.ok("inspect", "--format", "{{.State.Running}}", "late") == "true"
    fleet.ok("rm", "-f", "late", "early")
    fleet.ok("network", "rm", "one", "two")


def _free_address(cli: Cli, network: str) -> str:
    gateway = cli.ok("network", "inspect", network, "--format", "{{range .IPAM.Config}}{{.Gateway}}{{end}}")
    return gateway.rpartition(".")[0] + ".77"


# ---- images ----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def registries(lab: Lab, layer: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """The same registry on every node's loopback."""
    program = [sys.executable, registry_program.__file__, "5000", "ann", "s3cret", str(layer)]
    started = []
    try:
        for node in lab.nodes:
            started.append(subprocess.Popen([*node.exec_prefix(), *program], stdout=subprocess.PIPE, text=True))
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_pulled_by_all_nodes_with_progress_of_each(lab: Lab, fleet: Cli, tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    subprocess.run(["tar", "-C", "/etc", "-cf", str(layer), "hostname"], check=True)
    auth = base64.b64encode(b"ann:s3cret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"127.0.0.1:5000": {"auth": auth}}}))
    pull = ("--config", str(tmp_path), "pull", "127.0.0.1:5000/app:1")
    with registries(lab, layer) as started:
        told = fleet.ok(*pull)
        for node in lab.nodes:
            assert f"{node.name}: 1: Pulling from app" in told
            assert "127.0.0.1:5000/app:1" in images_on(node)
        assert told.count("Status: Downloaded newer image for 127.0.0.1:5000/app:1") == 1
        assert "127.0.0.1:5000/app:1" in fleet.ok("images", "--format", "{{.Repository}}:{{.Tag}}")
        fleet.ok("rmi", "127.0.0.1:5000/app:1")
        assert not any("127.0.0.1:5000/app:1" in images_on(node) for node in lab.nodes)
        # one node's way to the registry is gone: it is named, and so are those that have it
        started[1].kill()
        started[1].wait()
        refused = fleet.run(*pull)
        assert refused.returncode == 1
        assert "node-2: " in refused.stderr and "pulled on node-1, node-3" in refused.stderr
        assert ["127.0.0.1:5000/app:1" in images_on(node) for node in lab.nodes] == [True, False, True]
        fleet.ok("rmi", "127.0.0.1:5000/app:1")


def test_loaded_tagged_imported_and_removed_everywhere(lab: Lab, fleet: Cli, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    subprocess.run(["tar", "-C", "/etc", "-cf", str(tmp_path / "root.tar"), "hostname"], check=True)
    fleet.ok("import", str(tmp_path / "root.tar"), "made:1")
    ids = {_image_id(node, "made:1") for node in lab.nodes}
    assert len(ids) == 1, "an import is one image"
    fleet.ok("save", "-o", str(archive), "made:1")
    fleet.ok("tag", "made:1", "made:2")
    assert all({"made:1", "made:2"} <= images_on(node) for node in lab.nodes)
    assert sorted(fleet.ok("rmi", "made:1", "made:2").splitlines())[-2:] == ["Untagged: made:1", "Untagged: made:2"]
    assert not any("made:1" in images_on(node) for node in lab.nodes)
    assert fleet.ok("load", "-i", str(archive)).endswith("Loaded image: made:1")
    assert {_image_id(node, "made:1") for node in lab.nodes} == ids
    places = fleet.json("image", "inspect", "made:1")
    assert places[0]["Id"] in ids
    assert "No such image: made:9" in fleet.fails("rmi", "made:9")
    # what one node alone has is inspected, saved and removed there
    at_engine(lab.nodes[2], "tag", "made:1", "only:3")
    assert fleet.ok("image", "inspect", "--format", "{{.Id}}", "only:3") in ids
    fleet.ok("save", "-o", str(archive), "only:3")
    fleet.ok("rmi", "only:3")
    # in use on one node: it goes from the others, and the error says so
    fleet.ok("create", "-l", "fleet", "--name", "user", "-e", "constraint:node==node-2", "made:1", "x")
    refused = fleet.fails("rmi", "made:1")
    assert "node-2: conflict" in refused and "removed from node-1, node-3" in refused
    assert ["made:1" in images_on(node) for node in lab.nodes] == [False, True, False]
    fleet.ok("rm", "user")
    fleet.ok("rmi", "made:1")


def at_engine(node: Node, *arguments: str) -> None:
    """At the node's own Engine."""
    subprocess.run(["docker", "-H", f"unix://{node.layout.engine_socket}", *arguments], check=True, capture_output=True)


def _image_id(node: Node, name: str) -> str:
    engine = node.engine()
    try:
        return str(engine.api.inspect_image(name)["Id"])
    finally:
        engine.close()


def test_built_on_one_node(lab: Lab, fleet: Cli, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nENV MADE=here\nRUN echo built\n")
    command = fleet.command("build", "-t", "built:1", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "DOCKER_BUILDKIT": "0"})
    assert done.returncode == 0 and "Successfully tagged built:1" in done.stdout, done.stdout + done.stderr
    # as any image it is run where it is, and brought to the others by load
    assert fleet.ok("run", "--rm", "--network", "none", "built:1", "sh", "-c", "echo $MADE") == "here"
    fleet.ok("save", "-o", str(tmp_path / "built.tar"), "built:1")
    fleet.ok("load", "-i", str(tmp_path / "built.tar"))
    assert all("built:1" in images_on(node) for node in lab.nodes)


# ---- volumes, networks, events, totals -------------------------------------------------------------------------------------------


def test_volumes_of_all_nodes(lab: Lab, fleet: Cli) -> None:
    assert fleet.ok("volume", "create", "data") == "data"
    fleet.ok("volume", "create", "node-2/only")
    assert set(fleet.ok("volume", "ls", "-q").split()) >= {"data", "only"}
    places = {name: fleet.ok("volume", "inspect", "--format", '{{index .Labels "com.meshd.node"}}', name) for name in ("data", "only")}
    assert places == {"data": ",".join(NODES), "only": "node-2"}
    assert fleet.ok("volume", "ls", "-q", "--filter", "node=node-3", "--filter", "name=only") == ""
    start(fleet, "node-3", "--network", "none", "-v", "data:/data", name="user")
    refused = fleet.fails("volume", "rm", "data")
    assert "volume is in use" in refused
    assert fleet.ok("volume", "inspect", "--format", '{{index .Labels "com.meshd.node"}}', "data") == ",".join(NODES)
    fleet.ok("rm", "-f", "user")
    fleet.ok("volume", "rm", "data", "only")
    assert "no such volume" in fleet.fails("volume", "rm", "data")


def test_networks_of_single_nodes(fleet: Cli) -> None:
    def names() -> list[str]:
        return sorted(fleet.ok("network", "ls", "--filter", "scope=local", "--format", "{{.Name}}").split())

    before = names()
    assert len(before) == len(set(before)), "what every Engine has is shown once"
    for name in ("node-2/br", "node-3/br", "node-3/lone"):
        fleet.ok("network", "create", "--internal", name)
    try:
        assert names() == sorted([*before, "node-2/br", "node-3/br", "lone"])
        assert "is ambiguous (2 matches found: node-2/br, node-3/br)" in fleet.fails("network", "inspect", "br")
        assert fleet.ok("network", "inspect", "--format", "{{.Driver}} {{.Internal}}", "node-3/br") == "bridge true"
    finally:
        fleet.ok("network", "rm", "node-2/br", "node-3/br", "lone")
    assert names() == before


def test_events_of_all_nodes_and_of_the_cluster(fleet: Cli) -> None:
    command = fleet.command("events", "--format", "{{json .}}")
    since = f"{time.time():.3f}"
    listening = subprocess.Popen([*command, "--since", since], stdout=subprocess.PIPE, text=True)
    try:
        fleet.ok("volume", "create", "node-3/events")
        fleet.ok("config", "create", "events", "/etc/hostname")
        fleet.ok("volume", "rm", "events")
        fleet.ok("config", "rm", "events")
        assert listening.stdout is not None
        seen: set[tuple[str, str, str]] = set()
        wanted = {("volume", "create", "node-3"), ("volume", "destroy", "node-3"), ("config", "create", ""), ("config", "remove", "")}
        for line in listening.stdout:
            event = json.loads(line)
            seen.add((event["Type"], event["Action"], event["Actor"]["Attributes"].get("node.name", "")))
            if wanted <= seen:
                break
    finally:
        listening.kill()
        listening.wait()
    past = subprocess.run([*command, "--since", since, "--until", f"{time.time():.3f}"], capture_output=True, text=True, timeout=60)
    times = [json.loads(line)["timeNano"] for line in past.stdout.splitlines()]
    assert len(times) >= 4 and times == sorted(times)


def test_totals(lab: Lab, fleet: Cli) -> None:
    start(fleet, "node-2", "--network", "none", name="one")
    start(fleet, "node-3", "--network", "none", name="two")
    info = json.loads(fleet.ok("info", "--format", "{{json .}}"))
    own = []
    for node in lab.nodes:
        engine = node.engine()
        own.append(engine.info())
        engine.close()
    for key in ("Containers", "ContainersRunning", "Images", "NCPU", "MemTotal"):
        assert info[key] == sum(shown[key] for shown in own), key
    rows = [row[0].strip() for row in info["DriverStatus"]]
    assert set(NODES) <= set(rows)
    assert info["Swarm"]["Nodes"] == 3
    used = json.loads(fleet.ok("system", "df", "--format", "{{json .}}").splitlines()[1])
    assert (used["Type"], used["TotalCount"], used["Active"]) == ("Containers", str(info["Containers"]), str(info["ContainersRunning"]))
