"""What is written is played."""

from __future__ import annotations

from pathlib import Path

from tests.replay import scenarios


def test_every_file_is_played_and_has_steps() -> None:
    here = Path(scenarios.__file__).parent
    played = [*scenarios.ORDER, *scenarios.CONTAINERS]
    assert sorted(str(file.relative_to(here).with_suffix("")) for file in here.rglob("*.txt")) == sorted(one.name for one in played)
    assert all(scenario.lines() for scenario in played)


def test_lines_that_go_on_and_comments() -> None:
    assert list(scenarios.lines("# why\nservice ls \\\n    -q\n\nnode ls << a # b\n")) == ["service ls -q", "node ls << a # b"]
