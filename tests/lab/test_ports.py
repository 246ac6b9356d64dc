"""Ports of `docker run -p`: published by the node's Engine, shown with the node's address, and reached over TCP."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from orchestrator.lab.lab import Lab, Node, wait_until
from orchestrator.lab.probe import http_get, in_network
from tests.lab.asking import answers, switch
from tests.lab.cli import IMAGE, Cli

pytestmark = [pytest.mark.root, pytest.mark.engine, pytest.mark.cluster]

DEADLINE_S = 20
ON_2 = ("-e", "constraint:node==node-2")


def place_of(cli: Cli, container: str) -> str:
    return cli.ok("inspect", "--format", "{{.Node.Name}}", container)


def answers_as(where: str, address: str, port: int, container: str) -> None:
    """Wait until whoever listens there, seen from that namespace, is the container."""
    wait_until(lambda: answers(where, address, port), DEADLINE_S, f"{address}:{port} answers")
    assert in_network(where, lambda: http_get(address, port))[0].startswith(container)


def inside(node: Node) -> str:
    return f"/proc/{node.init_pid}/ns/net"


def test_a_chosen_port_is_the_nodes_and_the_next_container_goes_where_it_is_free(lab: Lab, fleet: Cli) -> None:
    nodes = {node.name: node for node in lab.nodes}
    ids = {name: fleet.ok("run", "-d", "--name", name, "-p", "8097:80", IMAGE) for name in ("one", "two", "three")}
    places = {name: place_of(fleet, name) for name in ids}
    assert sorted(places.values()) == sorted(nodes), "one on each"
    for name, place in places.items():
        address = nodes[place].address
        shown = "0.0.0.0" if place == "node-1" else address
        assert f"{shown}:8097" in fleet.ok("port", name, "80/tcp").splitlines()
        assert f"{shown}:8097->80/tcp" in fleet.ok("ps", "--filter", f"name=^{name}$", "--format", "{{.Ports}}")
        answers_as(switch(lab), address, 8097, ids[name][:12])
    fleet.ok("rm", "-f", "two")
    assert place_of(fleet, fleet.ok("run", "-d", "--name", "four", "-p", "8097:80", IMAGE)) == places.pop("two")
    # nowhere free: it is made, as Docker does, and starts once the port is
    assert "port is already allocated" in fleet.fails("run", "-d", "--name", "late", "-p", "8097:80", IMAGE)
    places["four"] = place_of(fleet, "four")
    fleet.ok("rm", "-f", next(name for name, place in places.items() if place == place_of(fleet, "late")))
    fleet.ok("start", "late")


def test_all_ports_and_those_of_one_address(lab: Lab, fleet: Cli) -> None:
    id = fleet.ok("run", "-d", *ON_2, "-P", IMAGE)
    address, _, port = fleet.ok("port", id, "80/tcp").partition(":")
    assert address == lab.nodes[1].address
    answers_as(switch(lab), address, int(port), id[:12])
    # loopback means this machine, however full it is; an address means its node
    for _ in range(3):
        fleet.ok("run", "-d", "-e", "constraint:node==node-1", IMAGE)
    id = fleet.ok("run", "-d", "-p", "127.0.0.1::80", IMAGE)
    assert place_of(fleet, id) == "node-1"
    [shown] = fleet.ok("port", id, "80/tcp").splitlines()
    assert re.fullmatch(r"127\.0\.0\.1:\d+", shown)
    port = shown.rpartition(":")[2]
    answers_as(inside(lab.nodes[0]), "127.0.0.1", int(port), id[:12])
    assert not answers(switch(lab), lab.nodes[0].address, int(port))
    id = fleet.ok("run", "-d", "-p", f"{lab.nodes[2].address}:8097:80", IMAGE)
    assert place_of(fleet, id) == "node-3"
    answers_as(switch(lab), lab.nodes[2].address, 8097, id[:12])


@pytest.fixture
def listener(lab: Lab) -> Iterator[int]:
    """A program on node-2 that has a port of all its addresses."""
    sockets: list[socket.socket] = []

    def listen() -> tuple[str, ...]:
        sockets.append(socket.create_server(("", 0)))
        return ()

    in_network(inside(lab.nodes[1]), listen)
    yield sockets[0].getsockname()[1]
    sockets[0].close()


def test_ports_that_services_and_programs_have(fleet: Cli, listener: int) -> None:
    fleet.create("web", "-p", "8098:80", "--publish", "mode=host,published=8099,target=80", replicas="1/1")
    assert "port already in use on 3 nodes" in fleet.fails("run", "-d", "-p", "8098:80", IMAGE)
    task = fleet.ok("service", "ps", "-q", "--no-trunc", "web")
    node = fleet.ok("inspect", "--type", "task", "--format", "{{.NodeID}}", task)
    assert "port already in use on 1 node" in fleet.fails("run", "-d", "-e", f"constraint:node=={node}", "-p", "8099:80", IMAGE)
    assert fleet.ok("inspect", "--format", "{{.Node.ID}}", fleet.ok("run", "-d", "-p", "8099:80", IMAGE)) != node
    # of a program that is no container only its machine knows
    refused = fleet.fails("run", "-d", "--name", "late", *ON_2, "-p", f"{listener}:80", IMAGE)
    assert "driver failed programming external connectivity" in refused and "address already in use" in refused
    assert fleet.ok("ps", "-a", "--filter", "name=^late$", "--format", "{{.State}}") == "created"
