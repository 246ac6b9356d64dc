"""The keys that open what else lies on a node's disk, in one file: as they are, or, with autolock, sealed with the unlock key.

Edge: one file, written whole or not at all. Because it is one, turning autolock on or off and rotating the unlock key are one rename each:
whatever the moment of a crash, the file opens with the key before or the key after. What the keys open never changes with them.
Source: SwarmKit ca/keyreadwriter.go, manager/encryption (SWMKEY-1-...).
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path

import msgspec

from orchestrator.errors import ConfigError
from orchestrator.local_state import replace_private, unfinished
from orchestrator.security import secretbox

_FILE = "keyring.json"
_PREFIX = "SWMKEY-1-"
_FORMAT = 1


class Keyring(msgspec.Struct, frozen=True, kw_only=True):
    """passphrase: of the node's private keys (PEM). store_key: of the values in etcd; managers only, the same for all of them."""

    passphrase: bytes
    store_key: bytes = b""

    def __repr__(self) -> str:
        return "Keyring(...)"


class Locked(ConfigError):
    """The keys are sealed: an unlock key is needed."""


class WrongKey(ConfigError):
    """It isn't the unlock key that they were sealed with."""


class _File(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    sealed: bool
    keys: bytes


def new_passphrase() -> bytes:
    return base64.b64encode(os.urandom(32))


def load(directory: Path, unlock_key: bytes = b"") -> Keyring | None:
    """None: there is none. Locked, WrongKey; ConfigError: it can't be read."""
    path = directory / _FILE
    # of a write that a crash cut short
    unfinished(path).unlink(missing_ok=True)
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        if file.format != _FORMAT:
            raise ConfigError(f"{path} has format {file.format}, this meshd reads format {_FORMAT}: upgrade meshd")
        return msgspec.json.decode(_unsealed(file.keys, unlock_key) if file.sealed else file.keys, type=Keyring)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} can't be used: {error}; leave the cluster and join again") from None


def _unsealed(box: bytes, unlock_key: bytes) -> bytes:
    if not unlock_key:
        raise Locked("this node's keys are sealed: docker swarm unlock")
    try:
        return secretbox.decrypt(unlock_key, box)
    except ConfigError:
        raise WrongKey("swarm could not be unlocked: invalid key provided") from None


def save(directory: Path, keys: Keyring, unlock_key: bytes = b"") -> None:
    """Durable when it returns. unlock_key: b"" leaves it open."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    plain = msgspec.json.encode(keys)
    sealed = secretbox.encrypt(unlock_key, plain) if unlock_key else plain
    content = msgspec.json.encode(_File(format=_FORMAT, sealed=bool(unlock_key), keys=sealed))
    replace_private(directory / _FILE, content)


def erase(directory: Path) -> None:
    for path in (directory / _FILE, unfinished(directory / _FILE)):
        path.unlink(missing_ok=True)


# ---- unlock keys -----------------------------------------------------------------------------------------------------------------


def new_unlock_key() -> bytes:
    return secretbox.new_key()


def shown(unlock_key: bytes) -> str:
    """As users keep it; "" for none."""
    return _PREFIX + base64.b64encode(unlock_key).decode().rstrip("=") if unlock_key else ""


def parsed(text: str) -> bytes:
    """ConfigError, in SwarmKit's words: it isn't one."""
    encoded = text.strip().removeprefix(_PREFIX)
    try:
        if not text.strip().startswith(_PREFIX):
            raise ValueError(text)
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        if len(key) != secretbox.KEY_BYTES:
            raise ValueError(text)
    except (ValueError, binascii.Error):
        raise ConfigError("invalid key string") from None
    return key
