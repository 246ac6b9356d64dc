"""`python -m mesh` with the file of DESIGN.md: each command in a process of its own, as by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.bed import sh
from tests.mesh.test_static import TEXT

pytestmark = pytest.mark.root


class Machine:
    def __init__(self, directory: Path) -> None:
        self.prefix = f"k{os.getpid() & 0xFFFFFF:06x}"
        self.host, self.container = f"{self.prefix}h", f"{self.prefix}c"
        self.file = directory / "mesh.toml"
        self.file.write_text(TEXT.replace("/run/netns/c1", f"/run/netns/{self.container}"))

    def mesh(self, *arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "mesh", "--prefix", self.prefix, "--netns", f"/run/netns/{self.host}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    try:
        for space in (machine.host, machine.container):
            sh(f"ip netns add {space} && ip -n {space} link set lo up")
        sh(f"ip -n {machine.host} addr add 192.0.2.1/32 dev lo")
        yield machine
    finally:
        for entry in Path("/run/netns").glob(f"{machine.prefix}*"):
            sh(f"ip netns del {entry.name}", check=False)


def test_a_static_mesh_by_hand(machine: Machine) -> None:
    file, network = str(machine.file), f"{machine.prefix}-front"
    container = f"/run/netns/{machine.container}: nft table meshd_{machine.prefix} is missing"
    assert machine.mesh("verify", file, code=1).splitlines() == [container, f"{network}: namespace is missing"]
    planned = machine.mesh("apply", "--dry-run", file)
    assert f"{network}: namespace is missing" in machine.mesh("verify", file, code=1)
    assert machine.mesh("apply", file) == planned
    assert f"{network}: PutAddresses br0 10.0.1.100/32, 10.0.1.2/24" in planned.splitlines()
    assert machine.mesh("apply", file) == "nothing to do\n"
    assert machine.mesh("verify", file) == "nothing differs\n"
    assert "VNI 4097 from 192.0.2.1" in machine.mesh("show")
    sh(f"ip -n {network} addr del 10.0.1.100/32 dev br0")
    assert machine.mesh("verify", file, code=1) == f"{network}: address 10.0.1.100/32 is missing\n"
    assert machine.mesh("apply", file).count("\n") == 1
    assert "10.0.1.100/32" in json.loads(machine.mesh("show", "--json"))[network]["addresses"]
    sh(f"ip netns exec {machine.host} nft add table inet theirs")
    machine.mesh("flush")
    assert sh(f"ip netns exec {machine.host} nft list tables").strip() == "table inet theirs"
    assert sh(f"ip netns exec {machine.container} nft list tables") == ""
    assert not list(Path("/run/netns").glob(network))
    assert set(json.loads(machine.mesh("show", "--json"))) == {"host"}


def test_faults_are_sentences(machine: Machine) -> None:
    machine.file.write_text(TEXT.replace("vni = 4097", 'vni = "x"'))
    assert "networks[0].vni: expected `int`, got `str`" in machine.mesh("apply", str(machine.file), code=2)
    machine.file.write_text(TEXT.replace('underlay = "192.0.2.1"', 'underlay = "192.0.2.7"'))
    assert "no interface of this node has the address 192.0.2.7" in machine.mesh("verify", str(machine.file), code=2)
    machine.file.write_text(TEXT.replace("vni = 4097", "vni = 0"))
    assert "front: vni: 0 is not between" in machine.mesh("apply", str(machine.file), code=1)
    machine.host = "absent"
    assert "'/run/netns/absent' does not exist" in machine.mesh("show", code=2)
