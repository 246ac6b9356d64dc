from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.lab.layout import MAX_NODES, check_count, engine_command, layout


def test_every_node_has_its_own_names_and_addresses() -> None:
    lab = layout(Path("/x/lab-1"))
    nodes = [lab.node(i) for i in range(1, MAX_NODES + 1)]
    for attribute in ("name", "address", "port", "directory", "cgroup", "meshd_socket", "engine_socket"):
        values = {str(getattr(node, attribute)) for node in nodes}
        assert len(values) == MAX_NODES, attribute
    assert lab.client_address not in {node.address for node in nodes}
    # IFNAMSIZ: link names have at most 15 characters
    assert all(len(node.port) <= 15 for node in nodes)


def test_two_state_directories_are_two_labs() -> None:
    one, two = layout(Path("/a/one")), layout(Path("/a/two"))
    assert one.switch != two.switch
    assert one.marker != two.marker
    assert one.node(1).cgroup != two.node(1).cgroup


def test_labs_with_equal_directory_names_share_nothing() -> None:
    one, two = layout(Path("/a/lab")), layout(Path("/b/lab"))
    assert one.switch != two.switch
    assert one.marker != two.marker
    assert one.node(1).cgroup != two.node(1).cgroup


def test_a_lab_that_is_there_keeps_its_name() -> None:
    assert layout(Path("/a/lab"), name="lab").switch == "meshd-lab-lab"


@pytest.mark.parametrize(("name", "index"), [("node-1", 1), ("1", 1), ("node-3", 3)])
def test_nodes_are_found_by_name_and_by_number(name: str, index: int) -> None:
    assert layout(Path("/x")).node_named(name, 3).index == index


@pytest.mark.parametrize("name", ["node-0", "node-4", "4", "", "web", "node-", "-1", "node-1x"])
def test_unknown_nodes_are_named_in_the_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"it has node-1, node-2, node-3"):
        layout(Path("/x")).node_named(name, 3)


@pytest.mark.parametrize("subnet", ["", "banana", "192.0.2.0/30", "192.0.2.1/24", "fd00::/64"])
def test_bad_subnets_are_refused_with_the_option_named(subnet: str) -> None:
    with pytest.raises(ConfigError, match="--subnet"):
        layout(Path("/x"), subnet)


@pytest.mark.parametrize("count", [-1, 0, 201, 10**9])
def test_impossible_sizes_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="1 to 200"):
        check_count(count, layout(Path("/x")))


def test_an_engine_shares_nothing_with_another_one() -> None:
    lab = layout(Path("/x"))
    one, two = engine_command(lab.node(1)), engine_command(lab.node(2))
    assert set(one) & set(two) == {"dockerd", "--live-restore", "--exec-opt=native.cgroupdriver=cgroupfs"}


def test_a_directory_too_deep_for_sockets_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unix\(7\)"):
        layout(Path("/" + "x" * 90))
