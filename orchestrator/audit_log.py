"""Who changed what, when, and with which result: one JSON object a line, in files that are rotated by size.

Edge: files. Nothing of a request's or an answer's body is in it, nor a query: no secret, no environment, no token.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

import msgspec

from orchestrator.errors import ConfigError

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 1024 * 1024
KEPT = 4


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """who: the user, or the certificate's common name. detail: pid and program, or the certificate's subject. from_, to_version: of the
    object in the store before and after; 0: it wasn't or isn't there. status: of the answer; 0: the client went away before."""

    time: datetime
    transport: str
    who: str = ""
    detail: str = ""
    address: str = ""
    method: str
    path: str
    action: str
    kind: str
    id: str = ""
    name: str = ""
    from_version: int = 0
    to_version: int = 0
    status: int = 0

    @property
    def failed(self) -> bool:
        return self.status == 0 or self.status >= 400


class AuditLog:
    """Appends; a line is in the file when `write` returns. A disk that is full stops no request: it is told in the log, once."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handler = _PrivateFiles(path, max_bytes, kept)
        except OSError as error:
            raise ConfigError(f"--audit-log {path}: {error.strerror or error}") from None

    def write(self, record: Record) -> None:
        self._handler.handle(logging.makeLogRecord({"msg": msgspec.json.encode(record).decode()}))

    def close(self) -> None:
        self._handler.close()


def read(path: Path, kept: int = KEPT) -> Iterator[Record]:
    """Oldest first, through all files. What a crash cut off, or is no record, is passed over. ConfigError: there is no log."""
    if not path.exists():
        raise ConfigError(f"there is no audit log at {path}: say where it is with --log (`meshd daemon --audit-log` sets it)")
    for part in [*(path.with_name(f"{path.name}.{number}") for number in range(kept, 0, -1)), path]:
        try:
            lines = part.read_bytes().splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{part}: {error.strerror}") from None
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError):
                yield msgspec.json.decode(line, type=Record)


class _PrivateFiles(RotatingFileHandler):
    """Readable by their owner only, from the first byte on."""

    def __init__(self, path: Path, max_bytes: int, kept: int) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=kept, encoding="utf-8")
        self._complained = False

    def _open(self) -> TextIOWrapper:
        return open(os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not self._complained:
            log.exception("audit=%s state=not-written", self.baseFilename)
        self._complained = True
