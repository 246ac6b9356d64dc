"""From what a machine says about itself to findings.

Pure: text and numbers in, findings out; `host` collects them. Source: ufw(8), firewall-cmd(1), modules.builtin of kmod,
Documentation/networking/nf_conntrack-sysctl.rst, Docker Engine API 1.41 /info.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Literal

from orchestrator.diagnose.finding import Finding

ModuleState = Literal["loaded", "built in", "loadable", "missing"]

MODULES: dict[str, str] = {
    "vxlan": "networks between nodes are VXLAN tunnels",
    "bridge": "a network is a bridge on each node",
    "veth": "containers hang on veth pairs",
    "nf_tables": "VIPs and published ports are nftables' rules",
    "overlay": "the Engine stores images with it",
}
# without ip_vs the balancer is nftables; br_netfilter comes with an Engine that has bridge networks of its own
OPTIONAL_MODULES = ("ip_vs", "br_netfilter")
_MIN_MTU = 1330  # an IPv6 packet must have 1280 bytes; a capsule over IPv4 has 50
_FULL = 0.8
_SLOW_SYNC_MS = 100.0  # etcd's heartbeat interval: a disk that takes longer makes leaders fall
_DISK_BAD_BYTES, _DISK_NOTE_BYTES = 256 << 20, 2 << 30
_SKEW_NOTE_S, _SKEW_BAD_S = 2.0, 60.0


# ---- kernel --------------------------------------------------------------------------------------------------------------------


def module_state(name: str, loaded: Collection[str], builtin: str, dependencies: str) -> ModuleState:
    """loaded: names in /sys/module. builtin, dependencies: modules.builtin and modules.dep of the running kernel, "" if there are none."""
    if name in loaded:
        return "loaded"
    file = re.compile(rf"/{name.replace('_', '[_-]')}\.ko")
    if file.search(builtin):
        return "built in"
    return "loadable" if file.search(dependencies) else "missing"


def modules(states: Mapping[str, ModuleState], *, kernel_works: bool) -> list[Finding]:
    """kernel_works: everything was tried and works, so a module that can't be seen must be built in."""
    findings = []
    present = [name for name, state in states.items() if state in ("loaded", "built in")]
    idle = [name for name, state in states.items() if state == "loadable"]
    if present or idle:
        text = ", ".join(sorted(present)) or "none"
        later = f"; loaded when needed: {', '.join(sorted(idle))}" if idle else ""
        findings.append(Finding("ok", "modules", f"loaded or built in: {text}{later}"))
    if not kernel_works:
        findings += [
            Finding("bad", "modules", f"this kernel has no {name}: {MODULES[name]}", other_kernel(name))
            for name, state in states.items()
            if state == "missing" and name in MODULES
        ]
    return findings


def balancer(kind: str) -> Finding:
    if kind == "ipvs":
        return Finding("ok", "balancer", "IPVS: servers see their clients' addresses")
    what = "nftables, because this kernel has no ip_vs: servers see the node's address, not the client's"
    return Finding("note", "balancer", what, other_kernel("ip_vs"))


def encryption(unable: str) -> Finding:
    if not unable:
        return Finding("ok", "encryption", "networks made with `--opt encrypted` can be here")
    return Finding("note", "encryption", f"no task of a network made with `--opt encrypted` is placed here: {unable}", "")


def other_kernel(module: str) -> str:
    return f"use a kernel that has {module}, such as Debian's linux-image-amd64"


def sysctls(values: Mapping[str, str]) -> list[Finding]:
    """values: of those that exist, by name."""
    findings = []
    count, limit = _number(values, "net.netfilter.nf_conntrack_count"), _number(values, "net.netfilter.nf_conntrack_max")
    if limit and count > _FULL * limit:
        findings.append(
            Finding(
                "bad",
                "sysctls",
                f"{count} of {limit} tracked connections are in use: new ones will be dropped",
                f"sysctl -w net.netfilter.nf_conntrack_max={4 * limit}, and the same in /etc/sysctl.d",
            )
        )
    namespaces = _number(values, "user.max_net_namespaces")
    if 0 < namespaces < 256 or values.get("user.max_net_namespaces") == "0":
        findings.append(
            Finding(
                "bad" if namespaces < 16 else "note",
                "sysctls",
                f"only {namespaces} network namespaces may exist; every network and every task takes one",
                "sysctl -w user.max_net_namespaces=15000, and the same in /etc/sysctl.d",
            )
        )
    instances = _number(values, "fs.inotify.max_user_instances")
    if 0 < instances < 256:
        findings.append(
            Finding(
                "note",
                "sysctls",
                f"fs.inotify.max_user_instances is {instances}: with many containers the Engine runs out of them",
                "sysctl -w fs.inotify.max_user_instances=1024, and the same in /etc/sysctl.d",
            )
        )
    if not findings:
        findings.append(Finding("ok", "sysctls", "limits of connections, namespaces and inotify are high enough"))
    return findings


def _number(values: Mapping[str, str], name: str) -> int:
    text = values.get(name, "")
    return int(text) if text.isdigit() else 0


# ---- network -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    name: str
    mtu: int


def mtu(link: Link | None, address: str) -> list[Finding]:
    if link is None:
        return [
            Finding(
                "bad",
                "mtu",
                f"no link of this machine has the address {address}",
                "give --advertise-addr or --data-path-addr an own address",
            )
        ]
    if link.mtu < _MIN_MTU:
        return [
            Finding(
                "bad",
                "mtu",
                f"{link.name} ({address}) carries frames of {link.mtu} bytes: {link.mtu - 50} remain in a tunnel, IPv6 needs 1280",
                f"ip link set {link.name} mtu 1500, if the network below carries that",
            )
        ]
    return [Finding("ok", "mtu", f"{link.name} ({address}) has an MTU of {link.mtu}: networks have {link.mtu - 50}")]


def overlaps(pool: Sequence[str], routes: Iterable[tuple[str, str]], what: str) -> list[Finding]:
    """routes: (destination, link) of this machine, without its default route and without ours."""
    found = []
    for subnet in map(ip_network, pool):
        for destination, link in routes:
            other = ip_network(destination, strict=False)
            if other.version == subnet.version and other.prefixlen > 0 and subnet.overlaps(other):
                found.append(
                    Finding(
                        "bad",
                        "addresses",
                        f"{what} {subnet} overlaps {other}, which this machine reaches through {link}: tasks would not reach it",
                        "move one of them: `docker swarm init --default-addr-pool`, or another subnet for that link",
                    )
                )
    return found


def duplicate_owner(address: str, others: Collection[str]) -> list[Finding]:
    """others: MACs of other machines that answered for our address."""
    if not others:
        return [Finding("ok", "addresses", f"nobody else on the link has {address}")]
    return [
        Finding(
            "bad",
            "addresses",
            f"{address} is this machine's and also that of {', '.join(sorted(others))}: half of the packets go there",
            "give one of the two machines another address",
        )
    ]


def duplicates_in_cluster(nodes: Iterable[tuple[str, str]]) -> list[Finding]:
    """nodes: (name, tunnel address)."""
    by_address: dict[str, list[str]] = {}
    for name, address in nodes:
        by_address.setdefault(address, []).append(name)
    return [
        Finding(
            "bad",
            "addresses",
            f"{' and '.join(sorted(names))} say that their tunnels end at {address}",
            "let all but one of them leave and join again with an address of their own",
        )
        for address, names in sorted(by_address.items())
        if address and len(names) > 1
    ]


# ---- Engine --------------------------------------------------------------------------------------------------------------------


def engine(info: Mapping[str, Any], address: str) -> list[Finding]:
    """info: its answer to /info."""
    findings = [Finding("ok", "engine", f"Docker Engine {info.get('ServerVersion', '?')} answers at {address}")]
    swarm = (info.get("Swarm") or {}).get("LocalNodeState", "inactive")
    if swarm not in ("inactive", ""):
        findings.append(
            Finding(
                "bad",
                "engine",
                "the Engine itself is in a swarm: it holds the ports 2377 and 4789 and reaches into the same containers",
                f"docker -H {address} swarm leave --force",
            )
        )
    if not info.get("LiveRestoreEnabled"):
        findings.append(
            Finding(
                "note",
                "engine",
                "a restart of the Engine stops the containers of this node",
                'put {"live-restore": true} into /etc/docker/daemon.json and reload the Engine',
            )
        )
    for warning in info.get("Warnings") or ():
        if "bridge-nf-call" not in warning:
            findings.append(Finding("note", "engine", f"the Engine says: {warning}"))
    return findings


def apparmor(*, enabled: bool, has_parser: bool) -> list[Finding]:
    """The Engine loads a profile for each container where the kernel has AppArmor, by a program that isn't part of it."""
    if not enabled or has_parser:
        return []
    return [
        Finding("bad", "engine", "this kernel has AppArmor but apparmor_parser is missing: no container starts", "apt-get install apparmor")
    ]


# ---- firewalls -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opening:
    """A port that other nodes must reach here."""

    port: int
    protocol: str
    why: str


def openings(vxlan_port: int, *, manager: bool) -> list[Opening]:
    wanted = [Opening(2377, "tcp", "the cluster's TLS server"), Opening(vxlan_port, "udp", "the tunnels between nodes")]
    return [*wanted, Opening(2380, "tcp", "etcd of other managers")] if manager else wanted


def forward_policy(policy: str, *, has_docker_user: bool) -> list[Finding]:
    """policy: of iptables' FORWARD chain, "" where there is none."""
    if policy != "DROP":
        return [Finding("ok", "firewall", "forwarding is allowed")]
    if has_docker_user:
        return [
            Finding("ok", "firewall", "the Engine drops what is forwarded, except what DOCKER-USER accepts: meshd puts its rules there")
        ]
    return [
        Finding(
            "bad",
            "firewall",
            "iptables' FORWARD policy is DROP and there is no chain DOCKER-USER: nothing reaches a published port",
            "iptables -P FORWARD ACCEPT, or accept mesh-gw and mesh-in there; or let the Engine manage iptables",
        )
    ]


def ufw(status: str, wanted: Iterable[Opening]) -> list[Finding]:
    """status: what `ufw status` printed; "" where there is no ufw."""
    if not re.search(r"^Status: active", status, re.MULTILINE):
        return []
    findings = []
    for opening in wanted:
        port = re.compile(rf"^{opening.port}(/{opening.protocol})?\s.*\b(ALLOW|LIMIT)\b", re.MULTILINE)
        if not port.search(status):
            findings.append(
                Finding(
                    "note",
                    "firewall",
                    f"ufw is active and has no rule for port {opening.port}/{opening.protocol} ({opening.why})",
                    f"ufw allow from <the other nodes> to any port {opening.port} proto {opening.protocol}",
                )
            )
    if not re.search(r"\bALLOW FWD\b", status):
        findings.append(
            Finding(
                "note",
                "firewall",
                "ufw is active and drops what is forwarded: published ports and the tasks' way out",
                "ufw route allow in on mesh-in; ufw route allow out on mesh-in; the same for mesh-gw",
            )
        )
    return findings or [Finding("ok", "firewall", "ufw is active and has the ports open")]


def firewalld(listing: str, wanted: Iterable[Opening]) -> list[Finding]:
    """listing: `firewall-cmd --list-all`; "" where it isn't running."""
    if not listing.strip():
        return []
    ports = set(re.findall(r"\b(\d+)/(tcp|udp)\b", next((line for line in listing.splitlines() if line.strip().startswith("ports:")), "")))
    if re.search(r"target: ACCEPT", listing):
        return [Finding("ok", "firewall", "firewalld accepts everything in this zone")]
    missing = [o for o in wanted if (str(o.port), o.protocol) not in ports]
    findings = [
        Finding(
            "bad",
            "firewall",
            f"firewalld doesn't let port {opening.port}/{opening.protocol} in ({opening.why})",
            f"firewall-cmd --permanent --add-port={opening.port}/{opening.protocol} && firewall-cmd --reload",
        )
        for opening in missing
    ]
    return findings or [Finding("ok", "firewall", "firewalld has the ports open")]


# ---- clock, disk ---------------------------------------------------------------------------------------------------------------


def skew(name: str, seconds: float, uncertainty_s: float) -> Finding:
    """seconds: how far the peer's clock is ahead of ours."""
    certain = max(0.0, abs(seconds) - uncertainty_s)
    which = "ahead of" if seconds > 0 else "behind"
    if certain < _SKEW_NOTE_S:
        return Finding("ok", "clock", f"{name}'s clock agrees with ours")
    return Finding(
        "bad" if certain > _SKEW_BAD_S else "note",
        "clock",
        f"{name}'s clock is {certain:.0f} s {which} ours: certificates and restart delays go by it",
        "let both follow a time server: apt-get install systemd-timesyncd",
    )


def disk(path: str, free_bytes: int, what: str) -> list[Finding]:
    if free_bytes >= _DISK_NOTE_BYTES:
        return [Finding("ok", "disk", f"{free_bytes >> 30} GiB are free for {what} ({path})")]
    level: Literal["note", "bad"] = "bad" if free_bytes < _DISK_BAD_BYTES else "note"
    return [
        Finding(
            level, "disk", f"only {free_bytes >> 20} MiB are free for {what} ({path})", "make room: docker system prune, or a bigger disk"
        )
    ]


def sync_time(path: str, slowest_ms: float) -> list[Finding]:
    if slowest_ms <= _SLOW_SYNC_MS:
        return [Finding("ok", "disk", f"{path} writes to its disk within {max(slowest_ms, 0.1):.1f} ms")]
    return [
        Finding(
            "note",
            "disk",
            f"{path} took {slowest_ms:.0f} ms to write to its disk: etcd's leader falls when that is often above {_SLOW_SYNC_MS:.0f} ms",
            "on managers, give --state-dir a disk of its own, or an SSD",
        )
    ]
