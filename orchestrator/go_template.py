"""The part of Go's text/template that service templates and templated configs are written in.

Pure: no I/O. Source: Go text/template. There are fields, text, numbers, `|`, parentheses, trimming `{{- -}}`, comments, `if` / `else` /
`end`, and functions; not `range`, `with`, variables and nested templates: those are refused by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

from orchestrator.errors import ConfigError

Value: TypeAlias = Union[str, int, bool, "Fields", Mapping[str, str], None]
Function: TypeAlias = Callable[..., Value]

# Go trims where the dash stands beside white space; quoted text may hold braces
_ACTION = re.compile(r"\{\{(-(?=\s))?((?:\"(?:[^\"\\]|\\.)*\"|`[^`]*`|/\*.*?\*/|(?!\}\}).)*?)((?<=\s)-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"\s*(?:(\"(?:[^\"\\]|\\.)*\")|(`[^`]*`)|(-?\d+)(?![\w.])|((?:\.[A-Za-z_]\w*)+|\.)|([A-Za-z_]\w*)|([()|])|(\S))",
    re.DOTALL,
)
_COMMENT = re.compile(r"\s*/\*.*\*/\s*", re.DOTALL)
_UNSUPPORTED = ("range", "with", "define", "template", "block", "break", "continue")


class Fields(dict[str, Value]):
    """A struct: an unknown field is an error. (A map's unknown key is `<no value>`.)"""


@dataclass(frozen=True, slots=True)
class _Literal:
    value: Value


@dataclass(frozen=True, slots=True)
class _Field:
    """`of` None: of the root."""

    path: tuple[str, ...]
    of: _Expression | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    function: str
    arguments: tuple[_Expression, ...]


_Expression: TypeAlias = _Literal | _Field | _Call


@dataclass(frozen=True, slots=True)
class _If:
    """The first branch whose condition holds; a condition None always does."""

    branches: tuple[tuple[_Expression | None, tuple[_Part, ...]], ...]


_Part: TypeAlias = str | _Expression | _If


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> Template:
    """ConfigError: it is no template that is understood here."""
    return Template(text)


class Template:
    def __init__(self, text: str) -> None:
        self._text = text
        self._pieces = _pieces(text)
        self._position = 0
        parts, end = self._parts(within=False)
        assert not end
        self._root = parts

    def render(self, root: Fields, functions: Mapping[str, Function]) -> str:
        """ConfigError: a field or function that doesn't exist, or one that fails."""
        return _Rendering(self._text, root, {**_FUNCTIONS, **functions}).text_of(self._root)

    def _parts(self, *, within: bool) -> tuple[tuple[_Part, ...], str]:
        """Up to the end, or, `within` an if, up to its next else or end, which is returned."""
        parts: list[_Part] = []
        while self._position < len(self._pieces):
            is_action, piece = self._pieces[self._position]
            self._position += 1
            if not is_action:
                parts.append(piece)
                continue
            word = piece.split(None, 1)[0] if piece.split() else ""
            if word in ("else", "end"):
                if not within:
                    raise ConfigError(f"template: unexpected {{{{{word}}}}} in {_quoted(self._text)}")
                return tuple(parts), piece
            if word == "if":
                parts.append(self._if(piece.removeprefix("if")))
            elif word in _UNSUPPORTED:
                raise ConfigError(f"template: {{{{{word}}}}} is not supported, only fields, functions and if: {_quoted(self._text)}")
            elif not _COMMENT.fullmatch(piece):
                parts.append(_Parser(piece, self._text).whole())
        if within:
            raise ConfigError(f"template: {{{{if}}}} without {{{{end}}}} in {_quoted(self._text)}")
        return tuple(parts), ""

    def _if(self, condition: str) -> _If:
        branches: list[tuple[_Expression | None, tuple[_Part, ...]]] = []
        following: _Expression | None = _Parser(condition, self._text).whole()
        while True:
            parts, end = self._parts(within=True)
            branches.append((following, parts))
            if end == "end":
                return _If(tuple(branches))
            if following is None:
                raise ConfigError(f"template: two {{{{else}}}} in one {{{{if}}}}: {_quoted(self._text)}")
            rest = end.removeprefix("else").strip()
            following = _Parser(rest.removeprefix("if"), self._text).whole() if rest else None


def _pieces(text: str) -> list[tuple[bool, str]]:
    """(is it an action, its text), in order, white space trimmed where a dash asks for it."""
    pieces: list[tuple[bool, str]] = []
    position, trim = 0, False
    while (start := text.find("{{", position)) >= 0:
        match = _ACTION.match(text, start)
        if match is None:
            raise ConfigError(f"template: unclosed action in {_quoted(text)}")
        before = text[position:start]
        before = before.lstrip() if trim else before
        pieces.append((False, before.rstrip() if match[1] else before))
        pieces.append((True, match[2].strip()))
        position, trim = match.end(), bool(match[3])
    rest = text[position:]
    pieces.append((False, rest.lstrip() if trim else rest))
    return pieces


class _Parser:
    """One pipeline."""

    def __init__(self, action: str, text: str) -> None:
        self._action, self._text = action, text
        self._tokens = [match for match in _TOKEN.finditer(action) if match[0].strip()]
        self._at = 0

    def whole(self) -> _Expression:
        expression = self._pipeline()
        if self._at < len(self._tokens):
            raise self._error(f"unexpected {self._tokens[self._at][0].strip()!r}")
        return expression

    def _pipeline(self) -> _Expression:
        expression = self._command(None)
        while self._takes("|"):
            expression = self._command(expression)
        return expression

    def _command(self, piped: _Expression | None) -> _Expression:
        token = self._peek()
        if token is not None and token[5] and token[5] not in ("true", "false", "nil"):
            self._at += 1
            arguments = []
            while (following := self._peek()) is not None and following[6] not in (")", "|"):
                arguments.append(self._operand())
            return _Call(token[5], tuple(arguments) + (() if piped is None else (piped,)))
        if piped is not None:
            raise self._error("a pipe leads to a function")
        operand = self._operand()
        if (following := self._peek()) is not None and following[6] not in (")", "|"):
            raise self._error(f"can't give arguments to {token[0].strip()!r}" if token else "unexpected end")
        return operand

    def _operand(self) -> _Expression:
        token = self._peek()
        if token is None:
            raise self._error("missing value")
        self._at += 1
        quoted, raw, number, path, word, sign, _ = token.groups()
        if quoted:
            return _Literal(re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), quoted[1:-1]))
        if raw:
            return _Literal(raw[1:-1])
        if number:
            return _Literal(int(number))
        if path:
            return _Field(tuple(path.split(".")[1:]) if path != "." else ())
        if word in ("true", "false", "nil"):
            return _Literal({"true": True, "false": False}.get(word))
        if word:
            return _Call(word, ())
        if sign == "(":
            inner = self._pipeline()
            if not self._takes(")"):
                raise self._error("unclosed parenthesis")
            following = self._peek()
            if following is not None and following[4] and not following[0][0].isspace():
                self._at += 1
                return _Field(tuple(following[4].split(".")[1:]), inner)
            return inner
        raise self._error(f"unexpected {token[0].strip()!r}")

    def _peek(self) -> re.Match[str] | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _takes(self, sign: str) -> bool:
        token = self._peek()
        if token is None or token[6] != sign:
            return False
        self._at += 1
        return True

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"template: {what} in '{{{{{self._action}}}}}'")


class _Rendering:
    def __init__(self, text: str, root: Fields, functions: Mapping[str, Function]) -> None:
        self._text, self._root, self._functions = text, root, functions

    def text_of(self, parts: Sequence[_Part]) -> str:
        return "".join(self._part(part) for part in parts)

    def _part(self, part: _Part) -> str:
        match part:
            case str():
                return part
            case _If(branches):
                for condition, inner in branches:
                    if condition is None or truth(self._value(condition)):
                        return self.text_of(inner)
                return ""
            case _:
                return shown(self._value(part))

    def _value(self, expression: _Expression) -> Value:
        match expression:
            case _Literal(value):
                return value
            case _Field(path, of):
                return self._field(self._root if of is None else self._value(of), path)
            case _Call(name, arguments):
                function = self._functions.get(name)
                if function is None:
                    raise ConfigError(f"template: unknown function {name!r} in {_quoted(self._text)}: there are {_listed(self._functions)}")
                values = [self._value(argument) for argument in arguments]
                try:
                    return function(*values)
                except TypeError:
                    raise ConfigError(f"template: {name} can't take these {len(values)} values in {_quoted(self._text)}") from None

    def _field(self, value: Value, path: tuple[str, ...]) -> Value:
        for number, name in enumerate(path):
            if isinstance(value, Fields):
                if name not in value:
                    whole = "." + ".".join(path)
                    raise ConfigError(
                        f"template: unknown placeholder '{{{{{whole}}}}}' in {_quoted(self._text)}: there are {_listed(_paths(self._root))}"
                    )
                value = value[name]
            elif isinstance(value, Mapping):
                value = value.get(name)
            else:
                raise ConfigError(f"template: .{'.'.join(path[:number])} has no field {name} in {_quoted(self._text)}")
        return value


def _paths(fields: Fields, prefix: str = "") -> list[str]:
    found = []
    for name, value in fields.items():
        found.append(f"{prefix}.{name}")
        if isinstance(value, Fields):
            found += _paths(value, f"{prefix}.{name}")
    return found


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(sorted(names))


def _quoted(text: str) -> str:
    """A config may be long: its beginning says which it is."""
    return f"'{text if len(text) <= 100 else text[:97] + '...'}'"


# ---- values ----------------------------------------------------------------------------------------------------------------------


def shown(value: Value) -> str:
    """As Go prints it."""
    match value:
        case None:
            return "<no value>"
        case bool():
            return "true" if value else "false"
        case Fields():
            return f"{{{' '.join(shown(inner) for inner in value.values())}}}"
        case Mapping():
            return f"map[{' '.join(f'{key}:{value[key]}' for key in sorted(value))}]"
        case _:
            return str(value)


def truth(value: Value) -> bool:
    return True if isinstance(value, Fields) else bool(value)


def _index(table: Value, *keys: Value) -> Value:
    for key in keys:
        if isinstance(table, Fields) or not isinstance(table, Mapping):
            raise ConfigError("template: only maps can be indexed, such as .Service.Labels")
        table = table.get(shown(key), "")
    return table


def _printf(form: Value, *values: Value) -> str:
    """%s %d %v %q %t and %%."""
    rest = list(values)

    def one(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        if match[1] not in "sdvqt" or not rest:
            raise ConfigError(f"template: printf {shown(form)!r} can't print its {len(values)} values: it knows %s %d %v %q %t")
        text = shown(rest.pop(0))
        return f'"{text}"' if match[1] == "q" else text

    return re.sub(r"%(.)", one, shown(form))


def _and(*values: Value) -> Value:
    return next((value for value in values if not truth(value)), values[-1])


def _or(*values: Value) -> Value:
    return next((value for value in values if truth(value)), values[-1])


def _length(value: Value) -> int:
    if not isinstance(value, str | Mapping):
        raise ConfigError("template: len of something that has none")
    return len(value.encode()) if isinstance(value, str) else len(value)


_FUNCTIONS: Mapping[str, Function] = {
    "and": lambda first, *rest: _and(first, *rest),
    "eq": lambda one, first, *rest: one in (first, *rest),
    "index": lambda table, *keys: _index(table, *keys),
    # SwarmKit's own: join SEPARATOR TEXT...
    "join": lambda separator, *texts: shown(separator).join(map(shown, texts)),
    "len": _length,
    "ne": lambda one, other: one != other,
    "not": lambda value: not truth(value),
    "or": lambda first, *rest: _or(first, *rest),
    "print": lambda *values: "".join(map(shown, values)),
    "printf": _printf,
}
