"""The picture is well-formed and shows what there was."""

from __future__ import annotations

from xml.etree import ElementTree

from .picture import Bar, Story, svg


def test_a_run_is_drawn() -> None:
    story = Story(
        "seed <1>",
        ["node-1", "node-2"],
        60.0,
        bars=[Bar("node-1", 3.0, 9.0, "stop", "stop etcd"), Bar("node-2", 5.0, 5.0, "kill", "kill meshd")],
        leaders=[(0.5, "node-1"), (4.0, "node-2")],
        writes=[1.1, 1.2, 30.0],
        failures=[(40.0, "dns")],
        calm_until_s=30.0,
        healed_s=50.0,
        summary=["all is well"],
    )
    drawn = svg(story)
    texts = {element.text for element in ElementTree.fromstring(drawn).iter() if element.text}
    assert {
        "seed <1>",
        "node-1",
        "healed",
        "all is well",
        "dns failed",
        "stop etcd",
        "kill meshd",
        "node-2 leads from 4.0 s to 60.0 s",
    } <= texts
    assert "2 writes acknowledged in second 1" in texts


def test_a_run_without_events_is_drawn_too() -> None:
    ElementTree.fromstring(svg(Story("nothing", ["node-1"], 0.0)))
