"""`${VARIABLE}` in a compose file, from values given along with it.

Pure. Source: compose-spec, 12-interpolation.md: `$X`, `${X}`, `${X:-default}`, `${X-default}`, `${X:?error}`, `${X?error}`,
`${X:+replacement}`, `${X+replacement}`, `$$`; defaults may hold variables themselves. With ":" an empty value counts as none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from orchestrator.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")
_MAX_DEPTH = 16


def names_in(text: str) -> set[str]:
    """Variables whose values the text may ask for; more than it needs where a default is not used."""
    found: set[str] = set()
    for match in re.finditer(r"\$(\$|\{?([A-Za-z_][A-Za-z0-9_]*))", text):
        if match[2]:
            found.add(match[2])
    return found


def interpolate(text: str, values: Mapping[str, str], missing: set[str]) -> str:
    """The text with its variables replaced; those that are not set are "" and go into `missing`. ConfigError: not well formed, or `:?`."""
    return _Reader(text, values, missing).read()


class _Reader:
    def __init__(self, text: str, values: Mapping[str, str], missing: set[str]) -> None:
        self._text, self._values, self._missing = text, values, missing

    def read(self, depth: int = 0) -> str:
        if depth > _MAX_DEPTH:
            raise ConfigError(f"variables are nested more than {_MAX_DEPTH} deep in {self._text[:80]!r}")
        text, position = self._text, 0
        parts: list[str] = []
        while True:
            dollar = text.find("$", position)
            if dollar < 0:
                return "".join([*parts, text[position:]])
            parts.append(text[position:dollar])
            if text[dollar + 1 : dollar + 2] == "$":
                parts.append("$")
                position = dollar + 2
            elif text[dollar + 1 : dollar + 2] == "{":
                end = _closing(text, dollar + 2)
                parts.append(self._braced(text[dollar + 2 : end], depth))
                position = end + 1
            else:
                match = _NAME.match(text, dollar + 1)
                if match is None:
                    raise ConfigError(f"a $ in {text[:80]!r} begins no variable: write $$ for the sign itself")
                parts.append(self._value(match[0]))
                position = match.end()

    def _braced(self, inside: str, depth: int) -> str:
        match = _NAME.match(inside)
        operator = _OPERATOR.match(inside, match.end()) if match else None
        if match is None or (operator is None and match.end() != len(inside)):
            raise ConfigError(f"${{{inside[:80]}}} is no variable: expected ${{NAME}}, ${{NAME:-default}} or ${{NAME:?error}}")
        name = match[0]
        if operator is None:
            return self._value(name)
        rest = inside[operator.end() :]
        given = self._values.get(name)
        if operator[0].startswith(":") and given == "":
            given = None
        match operator[0][-1]:
            case "-":
                return given if given is not None else self._within(rest, depth)
            case "+":
                return self._within(rest, depth) if given is not None else ""
            case _:
                if given is None:
                    raise ConfigError(f"required variable {name} is missing a value: {self._within(rest, depth) or 'set it'}")
                return given

    def _within(self, text: str, depth: int) -> str:
        return _Reader(text, self._values, self._missing).read(depth + 1)

    def _value(self, name: str) -> str:
        if name not in self._values:
            self._missing.add(name)
        return self._values.get(name, "")


def _closing(text: str, start: int) -> int:
    """Where the brace opened before `start` closes."""
    open_braces = 1
    for position in range(start, len(text)):
        if text[position] == "{" and text[position - 1] == "$":
            open_braces += 1
        elif text[position] == "}":
            open_braces -= 1
            if not open_braces:
                return position
    raise ConfigError(f"a ${{ in {text[:80]!r} is never closed")
