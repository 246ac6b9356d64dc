"""The example in DESIGN.md is run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def test_the_example_in_the_design_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (PROJECT / "dnsd" / "DESIGN.md").read_text(), re.DOTALL)
    ended = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(r"\('127\.0\.0\.1', \d+\) \('web\. 5 IN A 10\.0\.0\.100',\) service web has a virtual IP: .*\n", ended.stdout)
