"""Secrets at rest: AES-256-GCM under the cluster's secret key.

Pure, but for key and nonce drawn from the system's randomness. Form: version byte 1, 12 bytes of nonce, ciphertext with its tag.
Random 96-bit nonces are safe for 2^32 messages a key (NIST SP 800-38D, 8.3); a cluster's secrets are far fewer.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orchestrator.errors import ConfigError

KEY_BYTES = 32
_VERSION = b"\x01"
_NONCE_BYTES = 12


def new_key() -> bytes:
    return os.urandom(KEY_BYTES)


def encrypt(key: bytes, plain: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return _VERSION + nonce + _cipher(key).encrypt(nonce, plain, _VERSION)


def decrypt(key: bytes, box: bytes) -> bytes:
    """ConfigError: made with another key, damaged, or of a form this version doesn't know."""
    if box[:1] != _VERSION or len(box) < 1 + _NONCE_BYTES + 16:
        raise ConfigError("the stored secret has a form this version of meshd doesn't know")
    nonce, sealed = box[1 : 1 + _NONCE_BYTES], box[1 + _NONCE_BYTES :]
    try:
        return _cipher(key).decrypt(nonce, sealed, _VERSION)
    except InvalidTag:
        raise ConfigError("the stored secret can't be decrypted: it is damaged or was made with another cluster's key") from None


def _cipher(key: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise ConfigError(f"the cluster's secret key has {len(key)} bytes, not {KEY_BYTES}")
    return AESGCM(key)
