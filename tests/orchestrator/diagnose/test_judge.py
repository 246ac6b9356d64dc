"""What a machine says, and what the doctor makes of it: each trouble found, and nothing found on a healthy machine."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from mesh.trace.echo import WAYS
from orchestrator.diagnose import judge
from orchestrator.diagnose.finding import Finding, is_well
from orchestrator.diagnose.peers import etcd_findings, tunnel_finding
from orchestrator.store.etcd_client import EtcdMember, EtcdStatus


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_modules_are_found_wherever_they_are() -> None:
    builtin = "kernel/drivers/net/veth.ko\nkernel/net/bridge/bridge.ko\n"
    dependencies = "kernel/net/netfilter/ipvs/ip_vs.ko.xz: kernel/net/x.ko\nkernel/net/netfilter/nf-tables.ko.zst:\n"
    found = {
        name: judge.module_state(name, {"vxlan"}, builtin, dependencies) for name in ("vxlan", "veth", "ip_vs", "nf_tables", "overlay")
    }
    assert found == {"vxlan": "loaded", "veth": "built in", "ip_vs": "loadable", "nf_tables": "loadable", "overlay": "missing"}


def test_a_module_that_cant_be_seen_is_bad_only_if_the_kernel_fails() -> None:
    states: dict[str, judge.ModuleState] = {"vxlan": "missing", "ip_vs": "missing", "bridge": "loaded"}
    assert levels(judge.modules(states, kernel_works=True)) == ["ok"]
    failing = judge.modules(states, kernel_works=False)
    assert levels(failing) == ["ok", "bad"]
    assert "no vxlan" in failing[1].what and "linux-image-amd64" in failing[1].do


@pytest.mark.parametrize(
    ("values", "level", "text"),
    [
        ({}, "ok", ""),
        ({"net.netfilter.nf_conntrack_count": "80", "net.netfilter.nf_conntrack_max": "100"}, "ok", ""),
        ({"net.netfilter.nf_conntrack_count": "81", "net.netfilter.nf_conntrack_max": "100"}, "bad", "81 of 100 tracked connections"),
        ({"user.max_net_namespaces": "0"}, "bad", "only 0 network namespaces"),
        ({"user.max_net_namespaces": "100"}, "note", "only 100 network namespaces"),
        ({"user.max_net_namespaces": "15000", "fs.inotify.max_user_instances": "128"}, "note", "inotify.max_user_instances is 128"),
    ],
)
def test_sysctls(values: dict[str, str], level: str, text: str) -> None:
    (finding,) = judge.sysctls(values)
    assert finding.level == level
    assert text in finding.what
    assert finding.level == "ok" or finding.do.startswith("sysctl -w")


def test_mtu() -> None:
    assert levels(judge.mtu(judge.Link("eth0", 1500), "192.0.2.1")) == ["ok"]
    assert levels(judge.mtu(judge.Link("tun0", 1280), "192.0.2.1")) == ["bad"]
    assert "no link of this machine has the address 192.0.2.9" in judge.mtu(None, "192.0.2.9")[0].what


def test_overlaps() -> None:
    routes = [("172.16.0.0/12", "eth1"), ("192.0.2.0/24", "eth0"), ("fd00::/8", "eth0"), ("10.1.2.3", "tun0")]
    (finding,) = judge.overlaps(["172.30.0.0/16"], routes, "the way out")
    assert "172.30.0.0/16 overlaps 172.16.0.0/12" in finding.what and "eth1" in finding.what
    assert judge.overlaps(["10.2.0.0/16"], routes, "x") == []
    assert len(judge.overlaps(["10.0.0.0/8"], routes, "x")) == 1


def test_duplicates() -> None:
    assert levels(judge.duplicate_owner("192.0.2.1", [])) == ["ok"]
    assert "02:00:00:00:00:01" in judge.duplicate_owner("192.0.2.1", ["02:00:00:00:00:01"])[0].what
    assert judge.duplicates_in_cluster([("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", ""), ("d", "")]) == []
    (finding,) = judge.duplicates_in_cluster([("b", "192.0.2.1"), ("a", "192.0.2.1"), ("c", "192.0.2.2")])
    assert finding.level == "bad" and finding.what.startswith("a and b say that their tunnels end at 192.0.2.1")


def test_engine() -> None:
    good = {"ServerVersion": "20.10", "LiveRestoreEnabled": True, "Swarm": {"LocalNodeState": "inactive"}}
    assert levels(judge.engine(good, "unix:///x")) == ["ok"]
    swarm = judge.engine(good | {"Swarm": {"LocalNodeState": "active"}}, "unix:///x")
    assert levels(swarm) == ["ok", "bad"] and "swarm leave" in swarm[1].do
    assert levels(judge.engine(good | {"LiveRestoreEnabled": False}, "x")) == ["ok", "note"]
    warned = good | {"Warnings": ["WARNING: bridge-nf-call-iptables is disabled", "WARNING: No swap limit support"]}
    assert [f.what for f in judge.engine(warned, "x")[1:]] == ["the Engine says: WARNING: No swap limit support"]


def test_apparmor_needs_its_parser() -> None:
    assert judge.apparmor(enabled=False, has_parser=False) == [] == judge.apparmor(enabled=True, has_parser=True)
    assert levels(judge.apparmor(enabled=True, has_parser=False)) == ["bad"]


def test_forwarding() -> None:
    assert levels(judge.forward_policy("", has_docker_user=False)) == ["ok"]
    assert levels(judge.forward_policy("ACCEPT", has_docker_user=False)) == ["ok"]
    assert levels(judge.forward_policy("DROP", has_docker_user=True)) == ["ok"]
    assert levels(judge.forward_policy("DROP", has_docker_user=False)) == ["bad"]


UFW = """Status: active

To                         Action      From
--                         ------      ----
22/tcp                     ALLOW       Anywhere
2377/tcp                   ALLOW       192.0.2.0/24
4789/udp                   {udp}       192.0.2.0/24

Anywhere on mesh-in        ALLOW FWD   Anywhere
"""
WORKER, MANAGER = judge.openings(4789, manager=False), judge.openings(4789, manager=True)


def test_ufw() -> None:
    assert judge.ufw("Status: inactive", WORKER) == [] == judge.ufw("", WORKER)
    assert levels(judge.ufw(UFW.format(udp="ALLOW"), WORKER)) == ["ok"]
    (closed,) = judge.ufw(UFW.format(udp="DENY"), WORKER)
    assert "4789/udp" in closed.what and "port 4789 proto udp" in closed.do
    assert ["2380/tcp" in f.what for f in judge.ufw(UFW.format(udp="ALLOW"), MANAGER)] == [True]
    assert len(judge.ufw("Status: active\n", MANAGER)) == 4, "three ports and forwarding"


def test_firewalld() -> None:
    listing = "public (active)\n  target: {target}\n  services: ssh\n  ports: 2377/tcp {more}\n  protocols: \n"
    assert judge.firewalld("", WORKER) == []
    assert levels(judge.firewalld(listing.format(target="default", more="4789/udp"), WORKER)) == ["ok"]
    (closed,) = judge.firewalld(listing.format(target="default", more="4789/tcp"), WORKER)
    assert "--add-port=4789/udp" in closed.do
    assert levels(judge.firewalld(listing.format(target="ACCEPT", more=""), MANAGER)) == ["ok"]


@pytest.mark.parametrize(
    ("seconds", "uncertainty_s", "level", "text"),
    [
        (0.9, 0.5, "ok", "agrees"),
        (-2.4, 0.5, "ok", "agrees"),
        (2.9, 0.5, "note", "2 s ahead of ours"),
        (-70, 0.5, "bad", "70 s behind ours"),
        (5, 4, "ok", "agrees"),
    ],
)
def test_skew(seconds: float, uncertainty_s: float, level: str, text: str) -> None:
    finding = judge.skew("node-2", seconds, uncertainty_s)
    assert finding.level == level and text in finding.what


def test_disk() -> None:
    assert [judge.disk("/x", size << 20, "state")[0].level for size in (100, 1000, 10_000)] == ["bad", "note", "ok"]
    assert levels(judge.sync_time("/x", 3.0)) == ["ok"] and levels(judge.sync_time("/x", 300.0)) == ["note"]


def test_every_outcome_of_the_four_ways_through_a_tunnel_is_judged() -> None:
    """Small before full before whole: what fails first is what is said."""
    for values in itertools.product((False, True), repeat=len(WAYS)):
        ways = dict(zip(WAYS, values, strict=True))
        finding = tunnel_finding("node-2 (192.0.2.2)", ways, "eth0", 1500, 4789)
        if not ways["small"]:
            assert finding.level == "bad" and "UDP 4789" in finding.do
            assert finding.what.startswith("node-2 (192.0.2.2) answers, but") == ways["direct"]
        elif not ways["full"]:
            assert finding.level == "bad" and "1500 bytes of eth0" in finding.do
        else:
            assert finding.level == ("ok" if ways["sealed"] else "note")


@dataclass(frozen=True)
class Case:
    status: dict[str, object]
    members: list[EtcdMember]
    level: str
    text: str


HEALTHY = {
    "member_id": 1, "leader_id": 1, "is_learner": False, "version": "3.4.23", "revision": 9, "raft_term": 2, "raft_index": 9,
    "db_size_bytes": 4096, "db_used_bytes": 4096, "errors": (),
}  # fmt: skip
ONE = [EtcdMember(1, "a", ("https://192.0.2.1:2380",), False)]
TWO = [*ONE, EtcdMember(2, "b", ("https://192.0.2.2:2380",), False)]


@pytest.mark.parametrize(
    "case",
    [
        Case({}, ONE, "ok", "1 voting"),
        Case({"leader_id": 0}, ONE, "bad", "no leader"),
        Case({}, TWO, "note", "two managers"),
        Case({}, [*ONE, EtcdMember(2, "", (), True)], "note", "1 of 2 members of etcd never started"),
        Case({"db_used_bytes": 900 << 20}, ONE, "bad", "900 of 1000 MiB"),
        Case({"errors": ("NOSPACE",)}, ONE, "bad", "NOSPACE"),
    ],
)
def test_etcd(case: Case) -> None:
    findings = etcd_findings(EtcdStatus(**HEALTHY | case.status), case.members, 1000 << 20)  # type: ignore[arg-type]
    assert [(f.level, case.text in f.what) for f in findings] == [(case.level, True)]


def test_one_bad_finding_is_enough() -> None:
    assert is_well([]) and is_well([Finding("ok", "x", "y"), Finding("note", "x", "y")])
    assert not is_well([Finding("ok", "x", "y"), Finding("bad", "x", "y")])
