"""Two clusters that behave the same say the same; two that don't, don't."""

from __future__ import annotations

import json

import pytest

from tests.replay.normalise import Outcome, lines

NAMES = {"192.0.2.1": "<address>", "node-1": "<node>"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kyd2cm93yyj5upp0rvykgt9xg", "4ylkkqy5tfrc55ma3rl7czknd"),
        ("2026-11-29T10:40:00.1234Z", "2026-11-29T10:41:00Z"),
        ("Running 5 seconds ago", "Running less than a second ago"),
        ("SWMTKN-1-184al3s33t65rdnz-5lhjzl2motua2y5ph50uv3ueo", "SWMTKN-1-2ue4b3jse6s0r-69guz4l9ks9jgm6lqno2hq7va"),
        ("ID     NAME\nabcdefabcdef   web", "ID  NAME\nzzzzzzzzzzzz  web"),
        ("abcdefabcdef\n", "zzzzzzzzzzzz\n"),
        ("-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nABC\n-----END CERTIFICATE-----\n"),
        (" Runtimes: b a", " Runtimes: a b"),
        ("container 0123456789ab is running", "container ba9876543210 is running"),
        (
            json.dumps({"Mounts": [{"Destination": "/a"}, {"Destination": "/b"}]}),
            json.dumps({"Mounts": [{"Destination": "/b"}, {"Destination": "/a"}]}),
        ),
        (json.dumps({"Pid": 5, "Created": 7}), json.dumps({"Pid": 6, "Created": 8})),
        (json.dumps({"Version": {"Index": 5}, "ID": "x"}), json.dumps({"ID": "x", "Version": {"Index": 7}})),
        (json.dumps({"C": {"a" * 64: 1, "b" * 64: 2}}), json.dumps({"C": {"f" * 64: 2, "0" * 64: 1}})),
    ],
)
def test_the_same(one: str, other: str) -> None:
    assert lines(Outcome(one), NAMES) == lines(Outcome(other), NAMES)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("web 2/2", "web 1/2"),
        ("ID  NAME\nabcdefabcdef  web", "ID  NAME\nabcdefabcdef  other"),
        (json.dumps({"Index": 1, "State": "running"}), json.dumps({"Index": 1, "State": "failed"})),
        (json.dumps({"MacAddress": ""}), json.dumps({"MacAddress": "02:42:0a:00:00:02"})),
        (json.dumps([1, 2]), json.dumps([2, 1])),
        (json.dumps({"Pid": 0}), json.dumps({"Pid": 6})),
        (json.dumps({"Mounts": [{"Target": "/a"}, {"Target": "/b"}]}), json.dumps({"Mounts": [{"Target": "/b"}, {"Target": "/a"}]})),
        ("Running 5 seconds ago", "Failed 5 seconds ago"),
    ],
)
def test_not_the_same(one: str, other: str) -> None:
    assert lines(Outcome(one), NAMES) != lines(Outcome(other), NAMES)


def test_names_streams_and_codes_are_told() -> None:
    outcome = Outcome("node-1 at 192.0.2.1\n", "went  wrong\n", 3)
    assert lines(outcome, NAMES) == ["<node> at <address>", "stderr: went  wrong", "exit 3"]


def test_json_is_a_line_a_value() -> None:
    assert lines(Outcome('{"A": {"B": [1, {}]}, "C": []}'), {}) == [".A.B[0]: 1", ".A.B[1]: {}", ".C: []", "exit 0"]
