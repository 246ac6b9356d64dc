"""Constraints: syntax, error texts, and the answer of a node, against SwarmKit's own table."""

from __future__ import annotations

import itertools

import pytest

from orchestrator.control.constraints import Constraint, node_matches, parse, unmet
from orchestrator.errors import ConfigError
from orchestrator.model import EngineDescription, Node, NodeDescription, NodeSpec, NodeStatus, Platform

NODE = Node(
    id="nodeOne",
    spec=NodeSpec(labels={"disk": "SSD", "Zone": "a"}, role="manager"),
    description=NodeDescription(
        hostname="alpha",
        platform=Platform(architecture="x86_64", os="linux"),
        engine=EngineDescription(labels={"operatingsystem": "ubuntu 14.04"}),
    ),
    status=NodeStatus(state="ready", addr="192.168.1.5"),
)

BARE = Node(id="bare")


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("node.id==nodeOne", True),
        ("node.id == NODEONE", True),
        ("NODE.ID==nodeone", True),
        ("node.hostname==alpha", True),
        ("node.hostname==beta", False),
        ("node.role==Manager", True),
        ("node.role==worker", False),
        ("node.platform.os==Linux", True),
        ("node.platform.arch==x86_64", True),
        ("node.platform.arch==amd64", True),
        ("node.platform.arch==arm64", False),
        ("node.labels.disk==ssd", True),
        ("node.labels.DISK==ssd", False),
        ("Node.Labels.Zone==A", True),
        ("node.labels.zone==a", False),
        ("node.labels.none==x", False),
        ("engine.labels.operatingsystem==Ubuntu 14.04", True),
        ("node.ip==192.168.1.5", True),
        ("node.ip==192.168.1.6", False),
        ("node.ip==192.168.1.0/24", True),
        ("node.ip==192.168.2.0/24", False),
        ("node.ip==192.168.1.77/24", True),
        ("node.ip==fd00::1", False),
        ("node.ip==::/0", False),
    ],
)
def test_equality_and_its_negation_are_opposites(text: str, holds: bool) -> None:
    assert node_matches(parse([text]), NODE) is holds
    assert node_matches(parse([text.replace("==", "!=")]), NODE) is not holds


@pytest.mark.parametrize("key", ["node.hostname", "node.labels.x", "engine.labels.x", "node.ip", "node.platform.arch", "node.platform.os"])
def test_what_a_node_lacks_is_unequal(key: str) -> None:
    value = "1.2.3.4" if key == "node.ip" else "x"
    assert not node_matches(parse([f"{key}=={value}"]), BARE)
    assert node_matches(parse([f"{key}!={value}"]), BARE)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("node.id", "constraint expected one operator from ==, !="),
        ("", "constraint expected one operator from ==, !="),
        ("node.id=x", "constraint expected one operator from ==, !="),
        ("==x", "key '' is invalid"),
        ("1node==x", "key '1node' is invalid"),
        ("node id==x", "key 'node id' is invalid"),
        ("node.id==", "value '' is invalid"),
        ("node.id==a,b", "value 'a,b' is invalid"),
        ("node.id==a~b", "value 'a~b' is invalid"),
        ("node.id===x", "value '=x' is invalid"),
        ("node.idé==x", "key 'node.idé' is invalid"),
        ("node.foo==x", "key 'node.foo' is invalid: expected one of node.id"),
        ("node.labels.==x", "key 'node.labels.' is invalid: expected one of node.id"),
        ("node.ip==here", "value 'here' is invalid: expected an IP address or a subnet"),
    ],
)
def test_bad_text_is_answered_by_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([text])
    assert str(caught.value).startswith(sentence)


def test_parse_keeps_order_and_prints_back() -> None:
    texts = ["node.labels.Zone!=b", "node.role==manager"]
    assert parse(texts) == [Constraint("node.labels.Zone", False, "b"), Constraint("node.role", True, "manager")]
    assert [str(constraint) for constraint in parse(texts)] == texts


def test_unmet_names_exactly_the_failing_ones() -> None:
    texts = ["node.labels.disk==ssd", "node.role==worker", "node.hostname!=alpha", "node.id==nodeone"]
    for count in range(len(texts) + 1):
        for chosen in itertools.combinations(texts, count):
            failing = [str(constraint) for constraint in unmet(parse(chosen), NODE)]
            assert failing == [text for text in chosen if text in ("node.role==worker", "node.hostname!=alpha")]
            assert node_matches(parse(chosen), NODE) is (not failing)
