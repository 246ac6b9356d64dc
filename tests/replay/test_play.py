"""What is asked again and what is not."""

from __future__ import annotations

import pytest

from tests.replay import scenarios
from tests.replay.play import only_asks


@pytest.mark.parametrize(
    "line",
    [
        "service ls",
        "service inspect web",
        "sorted service ps web",
        "@node-2 node ls",
        "inspect --type node self",
        "info",
        "service logs --raw done",
        "stack services st",
        "swarm join-token -q worker",
        "GET /services",
        'py: client.services.get("web").attrs["Spec"]',
        "py: [n.name for n in client.networks.list()]",
        "py: api.inspect_swarm()",
    ],
)
def test_asks(line: str) -> None:
    assert only_asks(line)


@pytest.mark.parametrize(
    "line",
    [
        "service rm ls",
        "service update -d --label-add ps=inspect info",
        "swarm join-token --rotate -q worker",
        "swarm init",
        "node update --availability drain node-2",
        "POST /services/create {}",
        'py: client.services.get("web").update(labels={})',
        'py: net = client.networks.create("ls")',
        "py: service.remove()",
        "py: client.swarm.leave()",
    ],
)
def test_changes(line: str) -> None:
    assert not only_asks(line)


def test_most_steps_ask() -> None:
    lines = [line for scenario in scenarios.ORDER for line in scenario.lines()]
    assert sum(only_asks(line) for line in lines) > len(lines) / 3
