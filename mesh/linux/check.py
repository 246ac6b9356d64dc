"""Ask the kernel of this node what it can do, before anything depends on it.

Edge. Everything is tried in a namespace of its own that ends with the thread that made it: nothing is left behind, whatever happens.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from mesh.encryption import NO_IPV6, NO_WIREGUARD
from mesh.errors import KernelError, MeshError
from mesh.linux import ipvs, link, nftables, sysctl, wireguard
from mesh.linux.namespace import unshare_network
from mesh.linux.netlink import NETLINK_ROUTE, Netlink
from mesh.model import Balancer
from mesh.table import Attachment, Bridge, Tunnel

_SCRIPT = """add table inet meshd_check
add map inet meshd_check backends { type ipv4_addr . mark : ipv4_addr; }
add chain inet meshd_check prerouting { type nat hook prerouting priority -100; policy accept; }
add rule inet meshd_check prerouting meta mark set numgen random mod 2
add rule inet meshd_check prerouting fib daddr type local dnat ip to ip daddr . meta mark map @backends
"""


def detect_balancer() -> Balancer:
    """ "ipvs" where the kernel has it or can load it, else "nftables"."""
    try:
        ipvs.load_module()
        return "ipvs" if ipvs.family_id() is not None else "nftables"
    except (MeshError, OSError):
        return "nftables"


def unable_to_encrypt() -> str:
    """Why this node can't have encrypted networks, "" = it can. Loads nothing: most nodes never need it."""
    if not wireguard.possible():
        return NO_WIREGUARD
    return "" if sysctl.exists("net.ipv6.conf.all.disable_ipv6") else NO_IPV6


def check_kernel() -> list[str]:
    """What is missing, as sentences that say what to do; empty when all is there."""
    if os.geteuid() != 0:
        return ["The data plane needs root: run meshd as root."]
    problems: list[str] = []
    thread = threading.Thread(target=_check, args=(problems,), name="check-kernel")
    thread.start()
    thread.join()
    return problems


def _check(problems: list[str]) -> None:
    try:
        unshare_network()
    except KernelError as error:
        problems.append(f"Network namespaces are not available ({error}): the kernel needs CONFIG_NET_NS, a container --privileged.")
        return
    missing = "nftables is missing or too old: install the package nftables (1.0 or later) and the kernel's nft_nat, nft_numgen, nft_fib"
    tries: list[tuple[Callable[[], None], str]] = [
        (_try_bridge, "The kernel has no bridges: load the module bridge (CONFIG_BRIDGE)"),
        (_try_veth, "The kernel has no veth pairs: load the module veth (CONFIG_VETH)"),
        (_try_vxlan, "The kernel has no VXLAN: load the module vxlan (CONFIG_VXLAN)"),
        (_try_nftables, missing),
    ]
    for attempt, sentence in tries:
        try:
            attempt()
        except (MeshError, OSError) as error:
            problems.append(f"{sentence} ({error}).")


def _try_bridge() -> None:
    with Netlink(NETLINK_ROUTE) as netlink:
        link.put_bridge(netlink, Bridge("check", "02:42:00:00:00:01", 1450))


def _try_veth() -> None:
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Netlink(NETLINK_ROUTE) as netlink:
            link.create_veth(netlink, Attachment("check-a", "here", 0, "check-b", "02:42:00:00:00:02", 1450), "check-b", descriptor)
    finally:
        os.close(descriptor)


def _try_vxlan() -> None:
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Netlink(NETLINK_ROUTE) as netlink:
            link.create_tunnel(netlink, Tunnel(1, "127.0.0.1", 4789, 1450), descriptor)
    finally:
        os.close(descriptor)


def _try_nftables() -> None:
    nftables.load(_SCRIPT)
