"""Errors, named for the caller's next move.

Pure. Each class says what the catcher should do; the text is a sentence for the operator.
"""

from __future__ import annotations


class MeshdError(Exception):
    """Base of everything meshd raises on purpose."""


class ConfigError(MeshdError):
    """Bad input or environment: tell the operator (exit 2)."""


class MemberRemoved(ConfigError):
    """The other managers have let this one go: its data are worth nothing, it may ask for a new place."""


class ApiError(MeshdError):
    """An answer of the Docker API: HTTP status + the message Docker's users know."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class StoreError(MeshdError):
    """Base of the store's failures."""


class Conflict(StoreError):
    """Somebody else changed one of the objects first: read again, plan again. Nothing was written."""


class Compacted(StoreError):
    """The watch's start is gone: list again."""


class StoreUnavailable(StoreError):
    """No quorum or no etcd: freeze, retry later. Whether the write happened is unknown."""


class TaskError(MeshdError):
    """A task can't run: the sentence goes into its status. fatal: REJECTED (never tried), else FAILED."""

    def __init__(self, message: str, *, rejected: bool = False) -> None:
        super().__init__(message)
        self.rejected = rejected


class RemoteProtocolError(MeshdError):
    """The other side broke the protocol: drop the connection."""
