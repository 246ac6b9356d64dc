"""Files that describe a node's state, and what is said about those that don't."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from mesh.errors import ConfigError
from mesh.model import Backend, LocalEndpoint, Network, NodeState, RemoteEndpoint, VirtualService
from mesh.static import parse, read_file

TEXT = re.search(r"```toml\n(.*?)```", (Path(__file__).parents[2] / "mesh/DESIGN.md").read_text(), re.DOTALL)[1]  # type: ignore[index]
STATE = NodeState(
    "192.0.2.1",
    (
        Network(
            "front",
            4097,
            ("10.0.1.0/24",),
            "10.0.1.2",
            local=(LocalEndpoint("c1", "10.0.1.11", "/run/netns/c1"),),
            remote=(RemoteEndpoint("10.0.1.12", "192.0.2.2"),),
            services=(VirtualService("10.0.1.100", (Backend("10.0.1.11"), Backend("10.0.1.12", 2))),),
        ),
    ),
    balancer="nftables",
)


@pytest.mark.parametrize("name", ["mesh.toml", "mesh.yaml", "mesh.yml"])
def test_the_same_state_in_either_format(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(TEXT if name.endswith("toml") else yaml.safe_dump(tomllib.loads(TEXT)))
    assert read_file(file, balancer="nftables") == STATE
    assert read_file(file, balancer="ipvs").balancer == "ipvs"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("vni =", "vnii ="), "networks[0].vnii: there is no such field; is it vni?"),
        (("vip =", "zzz ="), "networks[0].services[0].zzz: there is no such field; known are vip, backends"),
        (("weight = 2", "weight = 'x'"), "networks[0].services[0].backends[1].weight: expected `int`, got `str`"),
        (('id = "front"', ""), "networks[0]: object missing required field `id`"),
        (("underlay =", "balancer = 'iptables'\nunderlay ="), "balancer: invalid enum value 'iptables'"),
        (('underlay = "192.0.2.1"', ""), "file: object missing required field `underlay`"),
        (("[[networks]]", "[[networks]"), "is not valid TOML"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text(TEXT.replace(*change))
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        read_file(file, balancer="nftables")


def test_what_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        read_file(tmp_path / "absent.toml", balancer="nftables")
    (tmp_path / "mesh.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"must end in \.toml"):
        read_file(tmp_path / "mesh.json", balancer="nftables")
    for nothing in (None, [], "text"):
        with pytest.raises(ConfigError, match="must be a table of fields"):
            parse(nothing, balancer="nftables")
