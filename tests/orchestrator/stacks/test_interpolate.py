"""Variables in compose files: every form, every state of the variable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.stacks.interpolate import interpolate, names_in

VALUES = {"SET": "value", "EMPTY": ""}


@pytest.mark.parametrize(
    ("form", "set_", "empty", "unset"),
    [
        ("$X", "value", "", ""),
        ("${X}", "value", "", ""),
        ("${X-default}", "value", "", "default"),
        ("${X:-default}", "value", "default", "default"),
        ("${X+other}", "other", "other", ""),
        ("${X:+other}", "other", "", ""),
        ("${X?gone}", "value", "", None),
        ("${X:?gone}", "value", None, None),
        ("a${X}b$$c", "avalueb$c", "ab$c", "ab$c"),
        ("${X:-${SET}}", "value", "value", "value"),
        ("${X:-${NONE:-deep}}/x", "value/x", "deep/x", "deep/x"),
    ],
)
def test_every_form(form: str, set_: str | None, empty: str | None, unset: str | None) -> None:
    for name, expected in (("SET", set_), ("EMPTY", empty), ("UNSET", unset)):
        text = form.replace("X", name, 1)
        if expected is None:
            with pytest.raises(ConfigError, match=f"required variable {name} is missing a value: gone"):
                interpolate(text, VALUES, set())
        else:
            assert interpolate(text, VALUES, set()) == expected


def test_what_is_not_set_is_told_unless_there_is_a_default() -> None:
    missing: set[str] = set()
    assert interpolate("${A}$B${C:-c}", {}, missing) == "c"
    assert missing == {"A", "B"}


@pytest.mark.parametrize("text", ["$", "a $ b", "${", "${A", "${A:-${B}", "${1}", "${A!b}", "$1", "${}", "${A:-" * 20 + "}" * 20])
def test_what_is_not_well_formed_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        interpolate(text, {}, set())


@given(st.text(alphabet="$${}:-?+AB x", max_size=30))
def test_any_text_is_read_or_refused_and_names_are_found(text: str) -> None:
    missing: set[str] = set()
    try:
        read = interpolate(text, {}, missing)
    except ConfigError:
        return
    assert missing <= names_in(text)
    assert interpolate(text.replace("$", "$$"), {}, set()) == text
    if "$" not in text:
        assert read == text
