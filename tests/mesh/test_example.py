"""The example of DESIGN.md runs as printed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mesh.bed import sh

pytestmark = pytest.mark.root


def test_example() -> None:
    text = (Path(__file__).parents[2] / "mesh/DESIGN.md").read_text()
    match = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert match is not None
    tag = f"x{os.getpid() & 0xFFFFFF:06x}"
    spaces = {name: f"y{tag}{name}" for name in ("example", "c1", "c2")}
    example = match[1].replace('"demo"', f'"{tag}"')
    for name, space in spaces.items():
        example = example.replace(f"/run/netns/{name}", f"/run/netns/{space}")
    try:
        for space in spaces.values():
            sh(f"ip netns add {space} && ip -n {space} link set lo up")
        sh(f"ip -n {spaces['example']} addr add 192.0.2.1/32 dev lo")
        done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr
        first, second, third = done.stdout.splitlines()
        assert first.endswith("operations, {}") and int(first.split()[0]) > 10
        assert second == "()"
        assert ast.literal_eval(third) == {("front", "10.0.1.11"): 0, ("front", "10.0.1.12"): 0}
    finally:
        for space in spaces.values():
            sh(f"ip netns del {space}", check=False)
