"""What a command said, as lines that are the same on two clusters which behave the same.

Pure: no I/O. Ids, times, tokens, certificates, the node's name and address become words in angle brackets; spaces that align columns
become two; JSON becomes one line a value, so that a difference is a value's and not a document's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one command did. code: its exit code, or an HTTP status."""

    stdout: str
    stderr: str = ""
    code: int = 0


_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d| [+-]\d{4} \w+)?"
_WORDS = tuple(
    (re.compile(pattern, re.DOTALL), word)
    for pattern, word in (
        (r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----(?:\n|\\n)?", "<pem>"),
        (r"\b[A-Z0-9]{4}(?::[A-Z0-9]{4}){11}\b", "<id>"),
        (r"(?<=time )\(\d{10}\)", "<time>"),
        (r"(Issuer (?:Subject|Public Key):\s+)\S+", r"\1<bytes>"),
        (r"SWMTKN-1-[0-9a-z]+-[0-9a-z]{25}", "<token>"),
        (_TIME, "<time>"),
        (r"(?:sha256:)?\b[0-9a-f]{64}\b", "<hash>"),
        (r"\b[0-9a-z]{25}\b", "<id>"),
        (r"\b[0-9a-f]{12}\b", "<id>"),
        (r"(?<=docker-import-)\d+", "<number>"),
        (r"(?<=\.)[0-9a-z]{12}(?=@)", "<id>"),
        (r"\b(?:(?:[Aa]bout|[Ll]ess than) )?(?:an?|\d+) (?:second|minute|hour)s?(?: ago)?\b", "<ago>"),
    )
)
# `docker service ls -q`, and the first column of a table whose first column is an id: the beginning of one
_SHORT_ID = re.compile(r"[0-9a-z]{12}")
_TABLE_OF_IDS = re.compile(r"(?:\w+ )?ID\s{2,}")
# members of JSON objects whose values say nothing here
_UNTOLD = {
    "Index": "<index>", "PID": "<pid>", "Pid": "<pid>", "EndpointID": "<endpoint>", "MacAddress": "<mac>", "LocalLBIndex": "<mark>",
    "Created": "<time>", "NFd": "<count>", "NGoroutines": "<count>", "NEventsListener": "<count>",
    "CertIssuerSubject": "<bytes>", "CertIssuerPublicKey": "<bytes>",
    "com.docker.network.driver.overlay.vxlanid_list": "<vni>",
}  # fmt: skip


def lines(outcome: Outcome, names: Mapping[str, str]) -> list[str]:
    """names: text of this side -> the word that stands for it, replaced in this order before anything else."""
    told = _json_lines(outcome.stdout, names)
    if told is None:
        told = _text_lines(outcome.stdout, names)
    told += [f"stderr: {line}" for line in _text_lines(outcome.stderr, names)]
    return [*told, f"exit {outcome.code}"]


def _json_lines(text: str, names: Mapping[str, str]) -> list[str] | None:
    """None if the text is no JSON object or array."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict | list):
        return None
    # sorted once ids have become words: maps whose keys are ids have no order
    return sorted(_in_words(f"{path}: {json.dumps(leaf)}", names) for path, leaf in _leaves("", value))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, member in sorted(value.items()):
            yield from _leaves(f"{path}.{key}", _told(key, member))
    elif isinstance(value, list) and value:
        for index, member in enumerate(value):
            yield from _leaves(f"{path}[{index}]", member)
    else:
        yield path, value


def _told(key: str, member: Any) -> Any:
    if member in ("", None) or (key == "Pid" and member == 0):
        return member
    if key == "Mounts" and isinstance(member, list):
        # an Engine keeps them in a map; in what was asked for they are in order, and called Target
        return sorted(member, key=lambda mount: str(mount.get("Destination", "")))
    return _UNTOLD.get(key, member)


def _text_lines(text: str, names: Mapping[str, str]) -> list[str]:
    told = [_even(line) for line in _in_words(text, names).splitlines() if line.strip()]
    table = bool(told) and _TABLE_OF_IDS.match(told[0]) is not None
    return [
        re.sub(r"^\S+", "<id>", line) if table and number else "<id>" if _SHORT_ID.fullmatch(line) else line
        for number, line in enumerate(told)
    ]


def _even(line: str) -> str:
    """Columns two spaces apart; lists that come from maps in alphabetical order."""
    line = re.sub(r"\s{2,}", "  ", line.rstrip())
    head, colon, words = line.partition(" Runtimes: ")
    return f"{head}{colon}{' '.join(sorted(words.split()))}" if colon else line


def _in_words(text: str, names: Mapping[str, str]) -> str:
    for name, word in names.items():
        text = text.replace(name, word)
    for pattern, word in _WORDS:
        text = pattern.sub(word, text)
    return text
