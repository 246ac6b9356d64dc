"""Accepts in the DOCKER-USER chain of a Docker Engine that manages iptables: it sets the policy of FORWARD to DROP, and a drop can't be
undone from another table.

Edge. Source: iptables(8); docs.docker.com, "Packet filtering and firewalls". Rules are recognised by their comment.
"""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Final

from mesh.errors import KernelError
from mesh.linux import elements
from mesh.linux.netlink import NETLINK_NETFILTER, Netlink

_CHAIN: Final = "DOCKER-USER"
_COMMENT: Final = "meshd"


def tool() -> str | None:
    """The iptables variant whose filter table has the chain; None: there is no such Engine here."""
    with Netlink(NETLINK_NETFILTER) as netlink:
        found = elements.has_chain(netlink, "ip", "filter", _CHAIN)
    if found:
        return shutil.which("iptables-nft") or shutil.which("iptables")
    try:
        legacy = "filter" in Path("/proc/thread-self/net/ip_tables_names").read_text().split()
    except OSError:
        return None
    program = shutil.which("iptables-legacy") if legacy else None
    return program if program and _run(program, "-n", "-L", _CHAIN).returncode == 0 else None


def in_nft(program: str) -> bool:
    """Whether its rules are nft's, and part of the rule set's generation."""
    return not program.endswith("legacy")


def rules(program: str, links: frozenset[str]) -> frozenset[str]:
    """Ours among the chain's rules that name one of the links, as "-i mesh-gw"."""
    listing = _run(program, "-S", _CHAIN).stdout.splitlines()
    found = set()
    for line in listing:
        words = line.split()
        if f"--comment {_COMMENT}" in line.replace('"', "") and words[0] == "-A":
            found |= {f"{a} {b}" for a, b in pairwise(words) if a in ("-i", "-o") and b in links}
    return frozenset(found)


def put(program: str, rule: str) -> None:
    _checked(program, "-I", _CHAIN, rule)


def delete(program: str, rule: str) -> None:
    _checked(program, "-D", _CHAIN, rule)


def _checked(program: str, verb: str, chain: str, rule: str) -> None:
    done = _run(program, verb, chain, *rule.split(), "-m", "comment", "--comment", _COMMENT, "-j", "ACCEPT")
    if done.returncode:
        raise KernelError(f"change {chain}", 0, done.stderr.strip() or "iptables failed")


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, "-w", "5", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
