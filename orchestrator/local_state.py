"""What a node remembers of its cluster between two starts, beside its certificate.

Edge: one JSON file, written whole or not at all. It is written last when a node comes into a cluster and removed first when it
leaves: without it the node is in no cluster, and what lies around is left from an attempt that did not get through.
"""

from __future__ import annotations

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
    path, temporary = directory / _FILE, directory / f".{_FILE}.tmp"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with temporary.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(msgspec.json.encode(state))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def erase(directory: Path) -> None:
    (directory / _FILE).unlink(missing_ok=True)
