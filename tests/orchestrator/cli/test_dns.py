"""`meshd dns` against a real DNS server: answers explained, queries logged, figures; and a sentence for every mistake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families

from dnsd import Client, DnsState, ScopeSpec, ServiceName, TaskName, ZoneSpec
from orchestrator.cli.main import main
from tests.dnsd.process import Process, asked, free_port

TASKS = (
    TaskName(id="id-of-one", name="web.1.one", slot=1, addresses=("10.0.1.11",)),
    TaskName(id="id-of-two", name="web.2.two", slot=2, addresses=("10.0.1.12",), serving=False, left_out="draining"),
    TaskName(id="id-of-three", name="web.3.three", slot=3, addresses=("10.0.1.13",), serving=False, running=False),
)
CLIENT = ServiceName(id="c", name="client", tasks=(TaskName(id="id-of-client", name="client.1.abc", slot=1, addresses=("10.0.1.9",)),))


class Node:
    """A node's state directory with a dnsd that serves two tasks of it."""

    def __init__(self, state_dir: Path, port: int) -> None:
        self.state_dir = state_dir
        self.port = port

    def meshd(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["dns", "--state-dir", str(self.state_dir), *arguments])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("dns")
    process, port = Process(directory), free_port()
    zone = ZoneSpec(network="n", name="front", services=(ServiceName(id="w", name="web", vips=("10.0.1.2",), tasks=TASKS), CLIENT))
    scopes = tuple(
        ScopeSpec(id=id, netns="", networks=("n",), listen=f"127.0.0.1:{listen}", forward=False)
        for id, listen in (("id-of-client", port), ("id-of-one", 0))
    )

    async def apply() -> None:
        client = Client(process.control, timeout_s=30)
        assert (await client.apply(DnsState(zones=(zone,), scopes=scopes))).failed == {}
        await client.close()

    try:
        process.start()
        asyncio.run(apply())
        yield Node(directory, port)
    finally:
        process.end()


def test_an_answer_explained(node: Node) -> None:
    result = node.meshd("query", "web", "--as", "client")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "web A, asked by client.1.abc (scope id-of-client; networks front)"
    assert lines[1:3] == ["NOERROR, from network front", "  web. 5 IN A 10.0.1.2"]
    assert lines[3] == "why: service web has a virtual IP: connections to it are spread over its serving tasks"
    rows = [[cell.strip() for cell in line.replace("┃", "│").split("│")] for line in lines[4:] if "─" not in line and "━" not in line]
    assert rows == [
        ["task", "addresses", "state", "offered"],
        ["web.1.one", "10.0.1.11", "serving", "yes"],
        ["web.2.two", "10.0.1.12", "draining", "left out"],
        ["web.3.three", "10.0.1.13", "not running", "left out"],
    ]


def test_for_programs_and_in_reverse(node: Node) -> None:
    said = json.loads(node.meshd("query", "10.0.1.11", "--as", "id-of-one", "--json").output)
    assert (said["type"], said["records"]) == ("PTR", ["11.1.0.10.in-addr.arpa. 0 IN PTR web.1.one.front."])
    said = json.loads(node.meshd("query", "tasks.web", "AAAA", "--as", "web.1", "--json").output)
    assert (said["rcode"], said["records"], said["asker"]) == ("NOERROR", [], "web.1.one")
    assert "no AAAA record" in node.meshd("query", "web", "AAAA", "--as", "client").output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("query", "web", "--as", "clint"), "no task 'clint' on this node: did you mean client.1.abc?"),
        (("query", "web", "--as", "web.2"), "web.2 is not on this node: ask on the node where it runs"),
        (("query", "a..b", "--as", "client"), "'a..b' is no name"),
        (("query", "web", "B", "--as", "client"), "'B' is no record type"),
        (("log", "--task", "nobody"), "no task 'nobody' on this node"),
        (("--state-dir", "/nonexistent", "query", "web", "--as", "client"), "no DNS server here: there is no /nonexistent/dnsd.sock"),
        (("query", "web"), "Missing option '--as'"),
    ],
)
def test_mistakes(node: Node, arguments: tuple[str, ...], sentence: str) -> None:
    result = node.meshd(*arguments)
    assert result.exit_code == 2
    assert sentence in result.output


def test_what_a_task_asks(node: Node) -> None:
    assert "From now on the queries of client.1.abc are remembered" in node.meshd("log", "--task", "client.1", "--no-follow").output
    assert asked(node.port) == ["10.0.1.2"]
    assert asked(node.port, "nosuch") == []
    result = node.meshd("log", "--task", "client.1", "--no-follow", "--json")
    assert [(one["name"], one["rcode"]) for one in map(json.loads, result.stdout.splitlines())] == [
        ("web.", "NOERROR"),
        ("nosuch.", "NXDOMAIN"),
    ]
    result = node.meshd("log", "--task", "client.1", "--off")
    assert [line.split("  ")[1:] for line in result.stdout.splitlines()] == [
        ["web. A", "NOERROR", "10.0.1.2"],
        ["nosuch. A", "NXDOMAIN", ""],
    ]
    assert "are no longer remembered" in result.stderr
    assert "were not remembered" in node.meshd("log", "--task", "client.1", "--off").stderr


def test_figures(node: Node) -> None:
    families = {family.name: family for family in text_string_to_metric_families(node.meshd("metrics").output)}
    assert {sample.labels["state"]: sample.value for sample in families["dnsd_scopes"].samples} == {"open": 2, "failed": 0}
