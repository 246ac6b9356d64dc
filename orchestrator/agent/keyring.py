"""This node's WireGuard keys, one an epoch. Private keys never leave the node.

Edge: one file, written before a key is used or published, so that a restart finds what the others have been told.
"""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from orchestrator.encryption import epochs
from orchestrator.local_state import read_private, save_private


class _Kept(msgspec.Struct, frozen=True):
    step: int
    keys: dict[int, str]


class Keyring:
    """`step`: what the managers said last. The keys are those it asks for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = _load(path)
        self.follow(self._kept.step)

    @property
    def step(self) -> int:
        return self._kept.step

    @property
    def private(self) -> dict[int, str]:
        """base64, by epoch."""
        return dict(self._kept.keys)

    @property
    def public(self) -> dict[str, str]:
        """base64, by epoch as text: as it is published."""
        return {str(epoch): _public(key) for epoch, key in self._kept.keys.items()}

    def follow(self, step: int) -> None:
        """Afterwards the keys for this step are there, and on disk. OSError: they can't be written; nothing has changed then."""
        keys = {epoch: self._kept.keys.get(epoch) or _new() for epoch in epochs(step)}
        if (step, keys) != (self._kept.step, self._kept.keys):
            kept = _Kept(step, keys)
            save_private(self._path, kept)
            self._kept = kept

    def erase(self) -> None:
        self._path.unlink(missing_ok=True)


def _load(path: Path) -> _Kept:
    kept = read_private(path, _Kept, "remove it, and this node makes itself new keys for encrypted networks")
    return kept or _Kept(0, {})


def _new() -> str:
    return base64.b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode()


def _public(key: str) -> str:
    private = X25519PrivateKey.from_private_bytes(base64.b64decode(key))
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()
