"""What a node remembers of its cluster between two starts, beside its certificate; and how files that are nobody else's are written.

Edge: one JSON file, written whole or not at all. It is written last when a node comes into a cluster and removed first when it
leaves: without it the node is in no cluster, and what lies around is left from an attempt that did not get through.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from orchestrator.errors import ConfigError

_FILE = "node.json"
T = TypeVar("T")


class LocalState(msgspec.Struct, frozen=True, kw_only=True):
    """advertise_addr, data_addr: IP addresses. listen: "ip:port". managers: "ip:port", as last heard. etcd_cluster: what etcd was
    first started with (`--initial-cluster`); only managers have it."""

    cluster_id: str
    node_id: str
    advertise_addr: str
    data_addr: str
    listen: str
    managers: tuple[str, ...] = ()
    etcd_cluster: str = ""


def load(directory: Path) -> LocalState | None:
    """None: the node is in no cluster. ConfigError: the file can't be read."""
    return read_private(directory / _FILE, LocalState, "restore it, or remove it to let the node leave its cluster")


def save(directory: Path, state: LocalState) -> None:
    """Durable when it returns."""
    save_private(directory / _FILE, state)


def erase(directory: Path) -> None:
    (directory / _FILE).unlink(missing_ok=True)


# ---- private files ---------------------------------------------------------------------------------------------------------------


def read_private(path: Path, kind: type[T], remedy: str) -> T | None:
    """What `save_private` has written; None: nothing. ConfigError, with the remedy: it can't be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} can't be used: {error}; {remedy}") from None


def save_private(path: Path, content: msgspec.Struct) -> None:
    """`write_private`, as JSON, in a directory that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(path, msgspec.json.encode(content))


def write_private(path: Path, content: bytes) -> None:
    """Whole or not at all, durable when it returns, for the owner only."""
    fresh = unfinished(path)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


def unfinished(path: Path) -> Path:
    """What a crash may leave of a `write_private`."""
    return path.with_name(f".{path.name}.tmp")


def sync_directory(path: Path) -> None:
    """New names in it, too, are on disk."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def replace_private(path: Path, content: bytes) -> None:
    """`write_private`; what the file held before is overwritten where it lay, as far as its file system writes in place."""
    with contextlib.ExitStack() as stack:
        before = None
        with contextlib.suppress(FileNotFoundError):
            before = stack.enter_context(open(path, "r+b"))
        write_private(path, content)
        if before is not None:
            before.write(bytes(os.fstat(before.fileno()).st_size))
            before.flush()
            os.fsync(before.fileno())
