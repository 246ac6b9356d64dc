"""Who is in the cluster, and as what, as a node of a lab shows it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.lab.lab import Node
from tests.lab.cli import Cli


def members(node: Node) -> dict[str, str]:
    """Host name -> "Leader", "Reachable", "Unreachable" or "" for a worker; {} while this node is no manager."""
    done = Cli(node).run("node", "ls", "--format", "{{.Hostname}}={{.ManagerStatus}}")
    return dict(line.split("=") for line in done.stdout.splitlines()) if done.returncode == 0 else {}


def managers(node: Node) -> dict[str, str]:
    return {name: status for name, status in members(node).items() if status}


def leader_seen_by(node: Node) -> str:
    return next((name for name, status in managers(node).items() if status == "Leader"), "")


def three_managers_agree(nodes: Sequence[Node]) -> bool:
    """Each of the nodes shows the same three."""
    views = [managers(node) for node in nodes]
    return all(sorted(view.values()) == ["Leader", "Reachable", "Reachable"] and view == views[0] for view in views)
