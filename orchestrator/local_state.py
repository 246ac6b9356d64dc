"""What a node remembers of its cluster between two starts, beside its certificate.

Edge: one JSON file, written whole or not at all. It is written last when a node comes into a cluster and removed first when it
leaves: without it the node is in no cluster, and what lies around is left from an attempt that did not get through.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from orchestrator.errors import ConfigError

_FILE = "node.json"


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
    path = directory / _FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=LocalState)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} can't be used: {error}; restore it, or remove it to let the node leave its cluster") from None


def save(directory: Path, state: LocalState) -> None:
    """Durable when it returns."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(directory / _FILE, msgspec.json.encode(state))


def write_private(path: Path, content: bytes) -> None:
    """Whole or not at all, durable when it returns, for the owner only."""
    fresh = path.with_name(f".{path.name}.tmp")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # the new name, too, is on disk
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


def erase(directory: Path) -> None:
    (directory / _FILE).unlink(missing_ok=True)
