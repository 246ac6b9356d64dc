"""Asking as somebody inside a network namespace of a lab does: for a name, at a port.

Edge: requests and DNS questions from other namespaces.
"""

from __future__ import annotations

import contextlib

from orchestrator.lab.lab import Lab, Node
from orchestrator.lab.probe import dns_addresses, http_get, in_network
from tests.lab.cli import task_containers


def switch(lab: Lab) -> str:
    """The namespace outside of all nodes."""
    return f"/run/netns/{lab.layout.switch}"


def netns_of(node: Node, service: str) -> str:
    engine = node.engine()
    try:
        return f"/proc/{engine.api.inspect_container(task_containers(node, service)[0])['State']['Pid']}/ns/net"
    finally:
        engine.close()


def resolves(where: str, name: str) -> set[str]:
    with contextlib.suppress(OSError, ValueError):
        return set(in_network(where, lambda: dns_addresses(name)))
    return set()


def answers(where: str, address: str, port: int = 80) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return bool(in_network(where, lambda: http_get(address, port, 1.0)))
    return False
