"""What a trace found, as one value: JSON for programs, the input of the picture for people.

Pure.
"""

from __future__ import annotations

import msgspec

from mesh.trace.expect import Route
from mesh.trace.path import Path


class TraceReport(msgspec.Struct, frozen=True, kw_only=True):
    """nodes: id -> name; names: task id -> "web.1". kind: what the destination is to the entry node ("VIP", "published port", ...).
    source: the client's address. balancers: node id -> "ipvs" or "nftables". links: a link of a network's namespace -> the task behind it.
    problems: what the tables say against themselves, and nodes that couldn't watch. good: every probe got where it should."""

    service: str
    network: str
    destination: str
    port: int
    protocol: str
    client_node: str
    client_place: str
    entry: str
    source: str
    kind: str
    expected: tuple[Route, ...]
    problems: tuple[str, ...]
    paths: tuple[Path, ...]
    nodes: dict[str, str]
    names: dict[str, str]
    balancers: dict[str, str]
    links: dict[str, str]
    good: bool
