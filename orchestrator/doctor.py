"""`meshd doctor`: what this machine lacks to be a node, each as a sentence that says what to do.

Edge: looks at programs, the kernel and the Engine; changes nothing that stays.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from rich.console import Console

from mesh import check_kernel, detect_balancer


@dataclass(frozen=True, slots=True)
class Finding:
    """level: ok | note (works, but know this) | bad (fix it)."""

    level: str
    text: str


def programs() -> list[Finding]:
    findings = []
    for program, package, why in (
        ("etcd", "etcd-server", "managers keep the cluster's state in it"),
        ("nft", "nftables", "the data plane's rules are loaded with it"),
        ("ip", "iproute2", "used by the lab"),
    ):
        path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
        if path:
            findings.append(Finding("ok", f"{program}: {path}"))
        else:
            findings.append(Finding("bad", f"{program} is missing ({why}): apt-get install {package}"))
    return findings


def engine(address: str) -> list[Finding]:
    from docker import DockerClient
    from docker.errors import DockerException

    try:
        client = DockerClient(base_url=address, timeout=5)
        try:
            version = client.version()
        finally:
            client.close()
    except DockerException:
        return [Finding("bad", f"no Docker Engine answers at {address}: start it, or say where it is with --engine")]
    return [Finding("ok", f"Docker Engine {version['Version']} at {address}")]


def kernel() -> list[Finding]:
    findings = [Finding("bad", problem) for problem in check_kernel()]
    if not findings:
        findings.append(Finding("ok", "kernel: VXLAN, bridges, network namespaces and nftables work"))
    if detect_balancer() == "ipvs":
        findings.append(Finding("ok", "balancer: ipvs (direct routing: servers see the client's address)"))
    else:
        findings.append(
            Finding(
                "note",
                "balancer: nftables, because this kernel has no ip_vs; it works, but servers see the node's address, not the client's",
            )
        )
    return findings


def main(engine_address: str) -> int:
    """Print every finding; 0 if nothing is bad."""
    console = Console()
    if os.geteuid() != 0:
        console.print("[red]x[/] not root: meshd makes network namespaces and devices; run it with sudo", highlight=False)
        return 1
    findings = [*programs(), *kernel(), *engine(engine_address)]
    marks = {"ok": "[green]ok[/]", "note": "[yellow]!![/]", "bad": "[red]x [/]"}
    for finding in findings:
        console.print(f"{marks[finding.level]} {finding.text}", highlight=False, soft_wrap=True)
    bad = sum(finding.level == "bad" for finding in findings)
    console.print("[green]this machine can be a node[/]" if not bad else f"[red]{bad} to fix[/]")
    return 1 if bad else 0
