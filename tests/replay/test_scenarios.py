"""What is written is played."""

from __future__ import annotations

from pathlib import Path

from tests.replay import scenarios


def test_every_file_is_played_and_has_steps() -> None:
    files = {file.stem for file in Path(scenarios.__file__).parent.glob("*.txt")}
    assert files == {scenario.name for scenario in scenarios.ORDER}
    assert all(scenario.lines() for scenario in scenarios.ORDER)


def test_lines_that_go_on_and_comments() -> None:
    assert list(scenarios.lines("# why\nservice ls \\\n    -q\n\nnode ls << a # b\n")) == ["service ls -q", "node ls << a # b"]
