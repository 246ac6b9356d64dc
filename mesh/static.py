"""A NodeState written in a file: TOML or YAML, the fields named as in `mesh.model`.

Edge: reads the file; `parse` is pure. Every complaint names the field by its path ("networks[0].services[1].vip").
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import yaml

from mesh.errors import ConfigError
from mesh.model import Balancer, NodeState


def read_file(path: Path, *, balancer: Balancer) -> NodeState:
    """`balancer`: where the file names none. Raises ConfigError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"can't be read: {error}") from error
    try:
        match path.suffix:
            case ".toml":
                document: object = tomllib.loads(text)
            case ".yaml" | ".yml":
                document = yaml.safe_load(text)
            case _:
                raise ConfigError(str(path), "the name must end in .toml, .yaml or .yml")
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(path), f"is not valid {path.suffix[1:].upper()}: {' '.join(str(error).split())}") from error
    return parse(document, balancer=balancer)


def parse(document: object, *, balancer: Balancer) -> NodeState:
    """Raises ConfigError for the first field that is unknown, missing or of the wrong kind."""
    if not isinstance(document, Mapping):
        raise ConfigError("file", "must be a table of fields, beginning with `underlay`")
    _known_fields(document, NodeState, "")
    try:
        return msgspec.convert({"balancer": balancer, **document}, NodeState)
    except msgspec.ValidationError as error:
        # "Expected `int`, got `str` - at `$.networks[0].vni`"
        what, _, path = str(error).partition(" - at `$")
        raise ConfigError(path.strip("`.") or "file", what[0].lower() + what[1:]) from error


def _known_fields(value: object, kind: Any, path: str) -> None:
    """Raises ConfigError for a field that `kind` doesn't have: msgspec passes over those of dataclasses."""
    # of `Encryption | None` the one that has fields
    kind = next((one for one in get_args(kind) if is_dataclass(one)), kind) if isinstance(value, Mapping) else kind
    if isinstance(value, Mapping) and is_dataclass(kind):
        kinds = get_type_hints(kind)
        names = [f.name for f in fields(kind)]
        for name, member in value.items():
            where = f"{path}.{name}".strip(".")
            if name not in kinds:
                close = difflib.get_close_matches(str(name), names, 1)
                raise ConfigError(where, f"there is no such field; {f'is it {close[0]}?' if close else 'known are ' + ', '.join(names)}")
            _known_fields(member, kinds[name], where)
    elif isinstance(value, list):
        for number, member in enumerate(value):
            _known_fields(member, next(iter(get_args(kind)), None), f"{path}[{number}]")
