"""Looks at this machine: what it lacks to be a node, with or without meshd running.

Edge: asks programs, the kernel and the Engine; changes nothing that stays. What it means is decided in `judge`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh import check_kernel, detect_balancer, unable_to_encrypt
from mesh.linux import sysctl
from orchestrator import local_state
from orchestrator.addresses import choose_address, mtu_of, own_addresses
from orchestrator.diagnose import judge
from orchestrator.diagnose.finding import Finding
from orchestrator.errors import ApiError, MeshdError
from orchestrator.local_state import LocalState

_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_GATEWAY_POOL = ("172.30.0.0/16",)
_DEFAULT_POOL = ("10.0.0.0/8",)
_OUR_LINKS = ("mesh", "mg-", "mv-")
_SYNCS = 8
_SYNC_BYTES = 2048  # about an entry of etcd's log
_VXLAN_PORT = 4789


@dataclass(frozen=True, slots=True)
class Machine:
    """engine: "unix:///path". running: meshd answers here."""

    engine: str
    state_dir: Path
    running: bool


def examine(machine: Machine) -> list[Finding]:
    """Everything, part by part: one that fails is a finding, not the end."""
    try:
        local = local_state.load(machine.state_dir)
    except MeshdError as error:
        local = None
        broken = [Finding("bad", "state", str(error))]
    else:
        broken = []
    parts: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("programs", _programs),
        ("kernel", _kernel),
        ("sysctls", _sysctls),
        ("engine", lambda: _engine(machine.engine)),
        ("addresses", lambda: _addresses(local)),
        ("firewall", lambda: _firewall(local)),
        ("ports", lambda: _ports(machine, local)),
        ("clock", _clock),
        ("disk", lambda: _disk(machine.state_dir)),
    ]
    findings = broken
    for check, look in parts:
        try:
            findings += look()
        except (OSError, subprocess.SubprocessError, ValueError, MeshdError) as error:
            findings.append(Finding("note", check, f"could not be looked at: {error}"))
    return findings


def _programs() -> list[Finding]:
    findings = []
    found = []
    for program, package, why in (
        ("etcd", "etcd-server", "managers keep the cluster's state in it"),
        ("nft", "nftables", "the data plane's rules are loaded with it"),
        ("ip", "iproute2", "meshd asks it for this machine's addresses"),
    ):
        if _which(program):
            found.append(program)
        else:
            findings.append(Finding("bad", "programs", f"{program} is missing: {why}", f"apt-get install {package}"))
    return [*([Finding("ok", "programs", f"{', '.join(found)} are there")] if found else []), *findings]


def _which(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path=_PATH)


def _kernel() -> list[Finding]:
    problems = check_kernel()
    findings = [Finding("bad", "kernel", problem) for problem in problems]
    if not problems:
        findings.append(Finding("ok", "kernel", f"Linux {os.uname().release}: VXLAN, bridges, namespaces and nftables work"))
    findings.append(judge.balancer(detect_balancer()))
    findings.append(judge.encryption(unable_to_encrypt()))
    directory = Path("/lib/modules") / os.uname().release
    builtin, dependencies = _text(directory / "modules.builtin"), _text(directory / "modules.dep")
    loaded = {path.name for path in Path("/sys/module").iterdir()}
    names = [*judge.MODULES, *judge.OPTIONAL_MODULES]
    states = {name: judge.module_state(name, loaded, builtin, dependencies) for name in names}
    return findings + judge.modules(states, kernel_works=not problems)


def _sysctls() -> list[Finding]:
    names = (
        "net.netfilter.nf_conntrack_count",
        "net.netfilter.nf_conntrack_max",
        "user.max_net_namespaces",
        "fs.inotify.max_user_instances",
    )
    return judge.sysctls(sysctl.read(names))


def _engine(address: str) -> list[Finding]:
    from docker import DockerClient
    from docker.errors import DockerException

    try:
        client = DockerClient(base_url=address, timeout=5)
        try:
            info: dict[str, Any] = client.info()
        finally:
            client.close()
    except DockerException:
        return [Finding("bad", "engine", f"no Docker Engine answers at {address}", "start it, or say where it is with --engine")]
    root = info.get("DockerRootDir", "")
    space = judge.disk(root, shutil.disk_usage(root).free, "images and containers") if root and Path(root).exists() else []
    enabled = _text(Path("/sys/module/apparmor/parameters/enabled")).strip() == "Y"
    return judge.engine(info, address) + judge.apparmor(enabled=enabled, has_parser=bool(_which("apparmor_parser"))) + space


def _addresses(local: LocalState | None) -> list[Finding]:
    """MTU of the link that carries the tunnels, and what of this machine's networks is in the way of ours."""
    findings = []
    own = own_addresses()
    try:
        address = local.data_addr if local else choose_address("", own, "")
    except ApiError as error:
        return [Finding("note", "addresses", error.message, "say which with `docker swarm init --advertise-addr` (or join)")]
    link = own.get(address)
    findings += judge.mtu(judge.Link(link, mtu_of(link)) if link else None, address)
    listing = subprocess.run(["ip", "-json", "route", "show", "table", "main"], capture_output=True, timeout=10, check=True).stdout
    routes = [
        (route["dst"], route.get("dev", "?"))
        for route in json.loads(listing or b"[]")
        if route["dst"] != "default" and not route.get("dev", "").startswith(_OUR_LINKS)
    ]
    overlapping = judge.overlaps(_GATEWAY_POOL, routes, "the tasks' way out")
    if local is None:
        # once there is a cluster, its networks were given subnets that the store knows
        overlapping += [
            Finding("note", f.check, f.what, f.do) for f in judge.overlaps(_DEFAULT_POOL, routes, "the default pool of networks")
        ]
    return findings + overlapping


def _firewall(local: LocalState | None) -> list[Finding]:
    manager = local is None or bool(local.etcd_cluster) or any(local.advertise_addr in manager for manager in local.managers)
    wanted = judge.openings(_VXLAN_PORT, manager=manager)
    policy, has_docker_user = _forwarding()
    findings = judge.forward_policy(policy, has_docker_user=has_docker_user)
    findings += judge.ufw(_output("ufw", "status"), wanted)
    if _output("firewall-cmd", "--state").strip() == "running":
        findings += judge.firewalld(_output("firewall-cmd", "--list-all"), wanted)
    return findings


def _forwarding() -> tuple[str, bool]:
    """(policy of FORWARD, whether DOCKER-USER is there), in whichever of the two iptables there are rules."""
    policy, has_docker_user = "", False
    for program in ("iptables-nft", "iptables-legacy"):
        if program == "iptables-legacy" and "filter" not in _text(Path("/proc/net/ip_tables_names")).split():
            # asking would load the legacy modules
            continue
        listing = _output(program, "-S", "FORWARD")
        policy = "DROP" if "-P FORWARD DROP" in listing else policy
        has_docker_user = has_docker_user or "-j DOCKER-USER" in listing
    return policy, has_docker_user


def _ports(machine: Machine, local: LocalState | None) -> list[Finding]:
    """While meshd doesn't run, the ports it will want must be free."""
    if machine.running:
        return []
    findings = []
    for kind, name, port, why in (
        (socket.SOCK_STREAM, "tcp", 2377, "the cluster's TLS server"),
        (socket.SOCK_STREAM, "tcp", 2380, "etcd"),
        (socket.SOCK_DGRAM, "udp", _VXLAN_PORT, "the tunnels between nodes"),
    ):
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                # tunnels of a meshd that was stopped go on, by design
                if name == "udp" and local is not None:
                    continue
                do = "ss -lnp shows by whom" + ("" if name == "tcp" else "; or choose another with `docker swarm init --data-path-port`")
                findings.append(Finding("bad" if name == "tcp" else "note", "ports", f"port {port}/{name} ({why}) is taken", do))
    return findings or [Finding("ok", "ports", "the ports that meshd needs are free")]


def _clock() -> list[Finding]:
    """Whether the kernel's clock follows a time server. (How far those of other nodes are away is asked by the running meshd.)"""
    answer = _output("timedatectl", "show", "--property=NTPSynchronized", "--value").strip()
    if answer == "no":
        return [Finding("note", "clock", "this machine's clock follows no time server", "apt-get install systemd-timesyncd")]
    return [Finding("ok", "clock", "follows a time server")] if answer == "yes" else []


def _disk(state_dir: Path) -> list[Finding]:
    there = next(path for path in (state_dir, *state_dir.parents) if path.is_dir())
    findings = judge.disk(str(there), shutil.disk_usage(there).free, "meshd's state")
    slowest_ms = 0.0
    with tempfile.TemporaryFile(dir=there) as file:
        for _ in range(_SYNCS):
            file.write(b"\0" * _SYNC_BYTES)
            file.flush()
            before = time.monotonic()
            os.fdatasync(file.fileno())
            slowest_ms = max(slowest_ms, (time.monotonic() - before) * 1000)
    return findings + judge.sync_time(str(there), slowest_ms)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _output(program: str, *arguments: str) -> str:
    """What it printed; "" where it isn't, fails or hangs."""
    path = _which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10, env=os.environ | {"LC_ALL": "C"})
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
