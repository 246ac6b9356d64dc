"""The last applied state on disk, so that a dnsd that was killed serves the same names again by itself.

Edge. Written whole beside the old one and renamed over it. Not synced to disk: it matters only until the next boot, and then
namespaces are others anyway (the boot id says so).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from dnsd.encoded import EncodedZone
from dnsd.errors import ConfigError
from dnsd.model import ScopeSpec

_log = logging.getLogger("dnsd")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FORMAT = 2


class _Saved(msgspec.Struct, frozen=True, kw_only=True):
    """zones: packed zones by digest. identities: scope id -> identity of its namespace (paths may lead elsewhere by now)."""

    format: int
    boot_id: str
    zones: dict[str, bytes]
    scopes: tuple[ScopeSpec, ...]
    identities: dict[str, str]


class Loaded(msgspec.Struct, frozen=True):
    """zones: by digest."""

    zones: dict[str, EncodedZone]
    scopes: tuple[ScopeSpec, ...]
    identities: dict[str, str]


def save(path: Path, zones: dict[str, bytes], scopes: tuple[ScopeSpec, ...], identities: dict[str, str]) -> None:
    """ConfigError: it can't be written."""
    content = msgspec.msgpack.encode(_Saved(format=_FORMAT, boot_id=_boot_id(), zones=zones, scopes=scopes, identities=identities))
    beside = path.with_name(f"{path.name}.new")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
        beside.rename(path)
    except OSError as error:
        raise ConfigError(f"the state file {path} can't be written: {error.strerror}") from error


def load(path: Path) -> Loaded | None:
    """None: there is none, it is of another boot, or it is broken (said in the log; the next apply writes a good one).

    Scopes inside other namespaces are left out unless it is known which namespace was meant.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"the state file {path} can't be read: {error.strerror}") from error
    try:
        saved = msgspec.msgpack.decode(content, type=_Saved)
        zones = {digest: EncodedZone.unpacked(packed) for digest, packed in saved.zones.items()}
    except msgspec.DecodeError as error:
        _log.warning("event=state-ignored path=%s reason=%r", path, f"broken: {error}")
        return None
    if saved.format != _FORMAT or saved.boot_id != _boot_id():
        _log.info("event=state-ignored path=%s reason=%r", path, "of another boot or version")
        return None
    scopes = tuple(scope for scope in saved.scopes if not scope.netns or scope.id in saved.identities)
    return Loaded(zones, scopes, saved.identities)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
