"""Credentials for a registry, as clients send them with a service (`--with-registry-auth`) and as the Engine takes them.

Pure: no I/O. Source: Docker Engine API 1.44, "Authentication": URL-safe base64 of a JSON object in the header X-Registry-Auth.
"""

from __future__ import annotations

import base64
import binascii
import json

from orchestrator.errors import ConfigError

HEADER = "X-Registry-Auth"


def decoded(header: str) -> dict[str, str]:
    """username, password, ... ConfigError (without a word of what it says): it is no such header."""
    try:
        # Go's clients pad, others don't; some send the other alphabet
        raw = base64.b64decode(header.translate(str.maketrans("-_", "+/")) + "=" * (-len(header) % 4), validate=True)
        found = json.loads(raw)
    except (binascii.Error, ValueError):
        raise ConfigError(f"invalid {HEADER} header: it must be JSON in URL-safe base64") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ConfigError(f"invalid {HEADER} header: it must be an object of texts")
    return found


def given(header: str) -> bool:
    """Whether it says anything: the CLI may send an empty object."""
    return bool(header) and any(decoded(header).values())
