"""Errors of the data plane, named for the caller's next move.

Pure. The text of each is one sentence for the operator; where something can be done about it, it says what.
"""

from __future__ import annotations

import errno as _errno
import os


class MeshError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(MeshError):
    """The desired state is wrong: tell whoever wrote it. `field` is the path of the culprit ("network n1: subnets")."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class KernelError(MeshError):
    """The kernel refused `op`: keep dirty, back off, apply again. `errno` is the kernel's, 0 where a tool gave none."""

    def __init__(self, op: str, errno: int, detail: str = "") -> None:
        reason = detail or (os.strerror(errno) if errno else "failed")
        super().__init__(f"{op}: {reason}" + (f" ({_errno.errorcode.get(errno, errno)})" if errno else ""))
        self.op = op
        self.errno = errno


class KernelUnsupported(KernelError):
    """The kernel or a tool lacks something for good: report once, stop asking."""


class NamespaceGone(KernelError):
    """A container's network namespace vanished: its process ended. The next state won't name it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"open network namespace {path}", _errno.ENOENT, "it does not exist (the container ended)")
        self.path = path
