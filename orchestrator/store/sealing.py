"""Values as they lie in etcd: encrypted under a key that is not in etcd. A disk, a WAL, an old revision shows names, never what they hold.

Pure, but for the salt drawn from the system's randomness. Form: version byte 1, 16 bytes of salt, 12 of nonce, AES-256-GCM's ciphertext
and tag; the etcd key is authenticated too, so no value passes for another's. Each process draws a salt, derives a key of its own from it
(HKDF-SHA256) and counts its nonces: none is ever used twice, however many values a cluster writes.
"""

from __future__ import annotations

import itertools
import os
from functools import lru_cache
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orchestrator.errors import ConfigError

KEY_BYTES = 32
_VERSION = b"\x01"
_SALT_BYTES, _NONCE_BYTES = 16, 12
_HEAD_BYTES = 1 + _SALT_BYTES + _NONCE_BYTES


def new_key() -> bytes:
    return os.urandom(KEY_BYTES)


class Sealing(Protocol):
    def seal(self, name: bytes, value: bytes) -> bytes: ...

    def open(self, name: bytes, box: bytes) -> bytes:
        """ConfigError: it isn't a value of this name under this key."""
        ...


class Open:
    """Values as they are: for stores without a key."""

    def seal(self, name: bytes, value: bytes) -> bytes:
        return value

    def open(self, name: bytes, box: bytes) -> bytes:
        return box


class Sealed:
    """Under `key`."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError(f"the store's key has {len(key)} bytes, not {KEY_BYTES}")
        self._salt = os.urandom(_SALT_BYTES)
        self._nonces = itertools.count(1)
        # one a start of every manager since the oldest value: seldom more than these
        self._cipher = lru_cache(maxsize=256)(lambda salt: AESGCM(_derived(key, salt)))

    def seal(self, name: bytes, value: bytes) -> bytes:
        nonce = next(self._nonces).to_bytes(_NONCE_BYTES, "big")
        return _VERSION + self._salt + nonce + self._cipher(self._salt).encrypt(nonce, value, name)

    def open(self, name: bytes, box: bytes) -> bytes:
        if box[:1] != _VERSION or len(box) < _HEAD_BYTES:
            raise ConfigError("the value has a form this version of meshd doesn't know")
        try:
            return self._cipher(box[1 : 1 + _SALT_BYTES]).decrypt(box[1 + _SALT_BYTES : _HEAD_BYTES], box[_HEAD_BYTES:], name)
        except InvalidTag:
            raise ConfigError("the value is damaged, or was written with another key") from None


def sealing(key: bytes) -> Sealing:
    return Sealed(key) if key else Open()


def _derived(key: bytes, salt: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, b"meshd store value").derive(key)
