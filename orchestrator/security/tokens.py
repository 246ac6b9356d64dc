"""Join tokens: what lets a machine become a node, and in which role.

Pure, but for the secret drawn from the system's randomness. Source: SwarmKit ca/config.go:
`SWMTKN-1-<sha256 of the root certificate, 50 base-36 digits>-<128 random bits, 25 base-36 digits>`.
The digest lets the joiner trust the manager, the secret lets the manager trust the joiner.
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass

from orchestrator.errors import MeshdError
from orchestrator.ids import base36
from orchestrator.model import JoinTokens
from orchestrator.security.ca import Role, digest

_FORM = re.compile(r"SWMTKN-1-([0-9a-z]{50})-([0-9a-z]{25})", re.ASCII)


class InvalidToken(MeshdError):
    """The token is not one, or not this cluster's. The text is Docker's."""


@dataclass(frozen=True, slots=True)
class Token:
    """digest: of the root certificate. The secret is kept out of `repr`, so out of logs."""

    digest: str
    secret: str

    def __repr__(self) -> str:
        return f"Token(digest={self.digest!r}, secret=...)"


def make(root_certificate: str) -> str:
    return f"SWMTKN-1-{digest(root_certificate)}-{base36(secrets.randbits(128), 25)}"


def make_both(root_certificate: str) -> JoinTokens:
    return JoinTokens(worker=make(root_certificate), manager=make(root_certificate))


def parse(text: str) -> Token:
    """InvalidToken with Docker's text: any other form, and numbers that don't fit 256 and 128 bits."""
    match = _FORM.fullmatch(text)
    if match is None or int(match[1], 36) >= 1 << 256 or int(match[2], 36) >= 1 << 128:
        raise InvalidToken("invalid join token")
    return Token(match[1], match[2])


def role_of(token: str, tokens: JoinTokens) -> Role | None:
    """The role this token gives; None = not one of ours. Compared in constant time, both always."""
    given = token.encode(errors="replace")
    worker = hmac.compare_digest(given, tokens.worker.encode()) and bool(tokens.worker)
    manager = hmac.compare_digest(given, tokens.manager.encode()) and bool(tokens.manager)
    return "manager" if manager else "worker" if worker else None


def rotated(tokens: JoinTokens, role: Role, root_certificate: str) -> JoinTokens:
    """The tokens with a new one for `role`; the old one is void once this is stored."""
    new = make(root_certificate)
    return JoinTokens(worker=new, manager=tokens.manager) if role == "worker" else JoinTokens(worker=tokens.worker, manager=new)
