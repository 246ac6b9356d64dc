"""The data plane on the running kernel: two hosts, five containers, real servers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from mesh import (
    Backend,
    ConfigError,
    KernelUnsupported,
    NamespaceGone,
    Network,
    VirtualService,
    check_kernel,
    detect_balancer,
)
from mesh.errors import KernelError
from mesh.linux.kernel import Kernel
from mesh.operations import Op
from tests.mesh.bed import Bed, say, sh
from tests.mesh.pair import VIP, Pair

pytestmark = pytest.mark.root


@pytest.fixture
async def pair(bed: Bed) -> Pair:
    pair = Pair(bed)
    await pair.apply()
    return pair


async def test_host_port_reaches_one_container_of_this_node_only(pair: Pair) -> None:
    bed = pair.bed
    assert bed.ask("out", "192.0.2.1", 9090) == "a1"
    assert bed.ask("a0", "127.0.0.1", 9090) == "a1"
    assert bed.ask("out", "192.0.2.2", 9090) == "refused"


@pytest.mark.parametrize("bridge_netfilter", ["0", "1"])
async def test_host_port_of_the_container_beside(pair: Pair, bridge_netfilter: str) -> None:
    """The Engine loads br_netfilter, and translated frames then stay on the bridge."""
    bed = pair.bed
    sh(f"ip netns exec {bed.space('a0')} sysctl -qw net.bridge.bridge-nf-call-iptables={bridge_netfilter}")
    for client in ("a1", "a2"):
        assert bed.ask(client, "192.0.2.1", 9090, timeout_s=1) == "a1"
        assert bed.ask(client, "192.0.2.1", 8080) in ("a2", "b2")
    gateway = sh(f"ip -n {bed.space('a2')} -4 -o addr show eth-gw").split()[3].partition("/")[0]
    assert bed.ask("a1", gateway, timeout_s=0.3) == "timeout"


async def test_containers_get_out_but_not_at_each_other_by_the_gateway(pair: Pair) -> None:
    bed = pair.bed
    bed.serve("out")
    with bed.connect("a1", "192.0.2.99", 80) as s:
        # masqueraded: the outside knows the node only
        assert say(s).split() == ["out", "::ffff:192.0.2.1"]
    gateway = sh(f"ip -n {bed.space('a2')} -4 -o addr show eth-gw").split()[3].partition("/")[0]
    assert gateway.startswith("172.30.")
    assert bed.ask("a1", gateway, timeout_s=0.3) == "timeout"
    # nor by way of the host, nor from outside
    sh(f"ip -n {bed.space('a1')} route add {gateway}/32 via 172.30.0.1")
    assert bed.ask("a1", gateway, timeout_s=0.3) == "timeout"
    sh(f"ip -n {bed.space('a1')} route del {gateway}/32")
    sh(f"ip -n {bed.space('out')} route add 172.30.0.0/16 via 192.0.2.1")
    assert bed.ask("out", gateway, timeout_s=0.3) == "timeout"
    sh(f"ip -n {bed.space('out')} route del 172.30.0.0/16")


# command, and the object that the report must name
DAMAGE = {
    "tunnel row": (
        "bridge -n {n1} fdb del 02:42:0a:09:01:15 dev vx0 dst 192.0.2.2 self",
        "{n1}: forwarding row 02:42:0a:09:01:15 is altered",
    ),
    "bridge row": ("bridge -n {n1} fdb del 02:42:0a:09:01:15 dev vx0 master", "{n1}: forwarding row 02:42:0a:09:01:15 is altered"),
    "flood row": (
        "bridge -n {n1} fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.77 self permanent",
        "{n1}: forwarding row 00:00:00:00:00:00 is not ours",
    ),
    "neighbour": ("ip -n {n1} neigh del 10.9.1.21 dev vx0", "{n1}: neighbour 10.9.1.21 is missing"),
    "vip": ("ip -n {n1} addr del 10.9.1.100/32 dev br0", "{n1}: address 10.9.1.100/32 is missing"),
    "rule": ("ip netns exec {n1} nft flush chain inet meshd prerouting", "{n1}: nft chain prerouting is altered"),
    "foreign rule in our chain": ("ip netns exec {n1} nft insert rule inet meshd prerouting drop", "{n1}: nft chain prerouting is altered"),
    "element": (
        "ip netns exec {n1} nft delete element inet meshd vips4 '{{ 10.9.1.100 }}'",
        "{n1}: element of vips4: 10.9.1.100 is missing",
    ),
    "table": ("ip netns exec {n1} nft delete table inet meshd", "{n1}: nft table meshd is missing"),
    "host table": ("ip netns exec {host} nft delete table inet meshd_{prefix}", "host: nft table meshd_{prefix} is missing"),
    "sysctl": ("ip netns exec {n1} sysctl -qw net.ipv4.ip_forward=0", "{n1}: sysctl net.ipv4.ip_forward is altered"),
    "tunnel device": ("ip -n {n1} link del vx0", "{n1}: tunnel device is missing"),
    "tunnel down": ("ip -n {n1} link set vx0 down", "{n1}: tunnel device is altered"),
    "tunnel out of the bridge": ("ip -n {n1} link set vx0 nomaster", "{n1}: tunnel device is altered"),
    "bridge": ("ip -n {n1} link del br0", "{n1}: bridge br0 is missing"),
    "container's link": ("ip -n {c} link del eth1", "{n1}: link"),
    "container's address": ("ip -n {c} addr flush dev eth1", "{n1}: link"),
    "container's link down": ("ip -n {c} link set eth1 down", "{n1}: link"),
    "container's default route": ("ip -n {c} route del default", "host: link"),
    "uplink": ("ip -n {host} link del {prefix}-in", "host: link {prefix}-in is missing"),
    "uplink's route": ("ip -n {host} route del 10.9.0.2", "host: route 10.9.0.2 is missing"),
    "gateway bridge": ("ip -n {host} link del {prefix}-gw", "host: bridge {prefix}-gw is missing"),
    "namespace": ("ip netns del {n1}", "{n1}: namespace is missing"),
    "ingress namespace": ("ip netns del {prefix}-n0", "{prefix}-n0: namespace is missing"),
    "another node behind a row": (
        "bridge -n {n1} fdb replace 02:42:0a:09:01:15 dev vx0 dst 192.0.2.77 self permanent",
        "{n1}: forwarding row 02:42:0a:09:01:15 is altered",
    ),
    "another MAC of a neighbour": (
        "ip -n {n1} neigh replace 10.9.1.21 lladdr 02:00:00:00:00:99 dev vx0 nud permanent",
        "{n1}: neighbour 10.9.1.21 is altered",
    ),
    "another backend of an element": (
        "ip netns exec {n1} nft 'delete element inet meshd backends4 {{ 10.9.1.100 . 0 }};"
        " add element inet meshd backends4 {{ 10.9.1.100 . 0 : 10.9.1.99 }}'",
        "{n1}: element of backends4: 10.9.1.100 . 0 is altered",
    ),
    "foreign address": ("ip -n {n1} addr add 10.9.1.77/32 dev br0", "{n1}: address 10.9.1.77/32 is not ours"),
    "foreign map": ("ip netns exec {n1} nft 'add map inet meshd m {{ type mark : mark; }}'", "{n1}: nft map m is not ours"),
    "table switched off": ("ip netns exec {n1} nft 'add table inet meshd {{ flags dormant; }}'", "{n1}: nft table meshd is altered"),
}


@pytest.mark.parametrize("what", DAMAGE)
async def test_damage_is_repaired(pair: Pair, what: str) -> None:
    bed = pair.bed
    prefix = bed.prefix("a")
    command, name = (text.format(n1=f"{prefix}-n1", host=bed.space("a0"), prefix=prefix, c=bed.space("a1")) for text in DAMAGE[what])
    sh(command)
    report = await pair.meshes["a"].apply(pair.state("a"), resync=True)
    assert report.ops and not report.errors
    assert any(str(one).startswith(name) for one in report.drift), report.drift
    assert (await pair.meshes["a"].apply(pair.state("a"), resync=True)).ops == ()
    assert bed.asked("a1", VIP).keys() == {"a1", "b1"}
    assert bed.ask("out", "192.0.2.1", 8080) in ("a2", "b2")
    assert bed.ask("a1", "192.0.2.2", 8080) in ("a2", "b2")


@pytest.mark.parametrize("what", ["element", "tunnel device", "namespace"])
async def test_a_change_planned_by_a_picture_that_is_no_longer_true_is_planned_again(pair: Pair, what: str) -> None:
    bed = pair.bed
    await pair.serve(Backend("10.9.1.11"), Backend("10.9.1.21"))
    prefix = bed.prefix("a")
    sh(DAMAGE[what][0].format(n1=f"{prefix}-n1", host=bed.space("a0"), prefix=prefix, c=bed.space("a1")))
    pair.backends = (Backend("10.9.1.21"),)
    pair.containers["b3"] = 23
    pair.bed.container("b3", server=False)
    try:
        report = await pair.meshes["a"].apply(pair.state("a"))
        assert report.ops and not report.errors
        assert (await pair.meshes["a"].apply(pair.state("a"), resync=True)).ops == ()
        await pair.meshes["b"].apply(pair.state("b"))
        assert bed.asked("a2", VIP).keys() == {"b1"}
    finally:
        bed.remove_container("b3")


HEARD = (
    "tunnel row",
    "bridge row",
    "vip",
    "rule",
    "element",
    "host table",
    "tunnel device",
    "container's link down",
    "uplink",
    "namespace",
)


@pytest.mark.parametrize("what", HEARD)
async def test_damage_is_heard_of(pair: Pair, what: str) -> None:
    """Without waiting for the next resync."""
    bed, mesh = pair.bed, pair.meshes["a"]
    prefix = bed.prefix("a")
    await mesh.apply(pair.state("a"), resync=True)
    said = asyncio.Event()
    await mesh.watch(said.set)
    sh(DAMAGE[what][0].format(n1=f"{prefix}-n1", host=bed.space("a0"), prefix=prefix, c=bed.space("a1")))
    await asyncio.wait_for(said.wait(), 10)
    assert (await mesh.apply(pair.state("a"), resync=True)).drift


async def test_killed_between_operations_the_next_process_converges(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(bed)
    real = Kernel.run
    left = 0

    def run(kernel: Kernel, op: Op) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt  # nothing catches it: the apply ends here, as by SIGKILL
        left -= 1
        real(kernel, op)

    total = 0
    try:
        await pair.meshes["a"].flush()
        complete = False
        while not complete:
            left = total
            monkeypatch.setattr(Kernel, "run", run)
            mesh = pair.fresh("a")
            try:
                await mesh.apply(pair.state("a"))
                complete = True
            except KeyboardInterrupt:
                pass
            await mesh.close()
            monkeypatch.setattr(Kernel, "run", real)
            mesh = pair.fresh("a")
            report = await mesh.apply(pair.state("a"))
            assert not report.errors
            assert (await mesh.apply(pair.state("a"), resync=True)).ops == ()
            await mesh.flush()
            await mesh.close()
            total += 7
        assert total > 20
    finally:
        for mesh in pair.meshes.values():
            await mesh.flush()
            await mesh.close()
        bed.meshes.clear()


async def test_what_others_made_stays_and_flush_leaves_nothing_of_ours(pair: Pair) -> None:
    bed = pair.bed
    host = bed.space("a0")
    before_links = sh(f"ip -n {host} -o link").count("\n")
    sh(f"ip netns exec {host} nft add table inet theirs && ip -n {host} link add name theirs type bridge")
    sh(f"ip -n {host} link add mg-theirs type veth peer name mg-other && ip netns add {bed.prefix('a')}-theirs")
    # another node of this machine, of the same prefix, and its containers: no link leads there from here
    elsewhere = bed.space("out")
    sh(f"ip netns exec {elsewhere} nft add table inet meshd_{bed.prefix('a')}")
    report = await pair.meshes["a"].apply(pair.state("a"), resync=True)
    assert report.ops == ()
    assert before_links > 4
    report = await pair.meshes["a"].flush()
    assert not report.errors
    links = {line.split(": ")[1].partition("@")[0] for line in sh(f"ip -n {host} -o link").splitlines()}
    assert links == {"lo", "eth0", "theirs", "mg-theirs", "mg-other"}
    assert sh(f"ip netns exec {host} nft list tables").strip() == "table inet theirs"
    assert sh(f"ip netns exec {elsewhere} nft list tables").strip() == f"table inet meshd_{bed.prefix('a')}"
    assert [sh(f"ip netns exec {bed.space(name)} nft list tables") for name in ("a1", "a2")] == ["", ""]
    assert sh(f"ip -n {host} route").strip() == "192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.1"
    # under our prefix, but without our mark
    assert [p.name for p in Path("/run/netns").glob(bed.prefix("a") + "-*")] == [f"{bed.prefix('a')}-theirs"]
    assert sh(f"ip -n {bed.space('a1')} -o link").count("\n") == 1
    sh(f"ip netns del {bed.prefix('a')}-theirs && ip netns exec {elsewhere} nft delete table inet meshd_{bed.prefix('a')}")
    sh(f"ip -n {host} link del theirs && ip -n {host} link del mg-theirs && ip netns exec {host} nft delete table inet theirs")


async def test_a_container_that_vanished_is_reported_and_stops_nobody(pair: Pair) -> None:
    bed = pair.bed
    bed.container("a9", server=False)
    pair.containers["a9"] = 19
    await pair.apply()
    assert bed.ask("a9", VIP) in ("a1", "b1")
    bed.remove_container("a9")
    state = pair.state("a")
    for resync in (False, True):
        report = await pair.meshes["a"].apply(state, resync=resync)
        assert report.errors.keys() == {"sandbox:a9", "endpoint:n0/a9", "endpoint:n1/a9"}
        assert all(isinstance(e, NamespaceGone) for e in report.errors.values())
    # the same name, another namespace
    bed.container("a9", server=False)
    await pair.apply()
    assert bed.ask("a9", VIP) in ("a1", "b1")
    del pair.containers["a9"]
    await pair.apply()
    assert sh(f"ip -n {bed.space('a9')} -o link").count("\n") == 1
    bed.remove_container("a9")


async def test_links_are_numbered_by_network(pair: Pair) -> None:
    shown = sh(f"ip -n {pair.bed.space('a1')} -4 -o addr")
    assert "eth0    inet 10.9.0.11/24" in shown and "eth1    inet 10.9.1.11/24" in shown


async def test_a_wrong_network_freezes_itself_and_nothing_else(pair: Pair) -> None:
    bed = pair.bed
    state = pair.state("a")
    wrong = replace(state.networks[1], services=(VirtualService("10.77.0.1"),))
    report = await pair.meshes["a"].apply(replace(state, networks=(state.networks[0], wrong), published=()))
    assert isinstance(report.errors["network:n1"], ConfigError)
    assert "10.77.0.1 is in none of the subnets" in str(report.errors["network:n1"])
    assert bed.ask("a2", VIP) in ("a1", "b1")
    assert bed.ask("out", "192.0.2.1", 8080) == "refused"
    with pytest.raises(ConfigError, match=r"no interface of this node has the address 192\.0\.2\.55"):
        await pair.meshes["a"].apply(replace(state, underlay="192.0.2.55"))


@pytest.mark.skipif(detect_balancer() == "ipvs", reason="the kernel has ip_vs")
async def test_a_balancer_the_kernel_lacks_changes_nothing(pair: Pair) -> None:
    with pytest.raises(KernelUnsupported, match="choose the nftables balancer"):
        await pair.meshes["a"].apply(replace(pair.state("a"), balancer="ipvs"))
    assert (await pair.meshes["a"].apply(pair.state("a"), resync=True)).ops == ()


async def test_a_taken_vni_is_a_sentence(pair: Pair, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.linux.kernel._TUNNEL_WAIT_S", 0.1)
    sh(f"ip -n {bed.space('a0')} link add theirs type vxlan id 77 local 192.0.2.1 dstport 4789")
    state = pair.state("a")
    taken = Network("n7", 77, ("10.9.7.0/24",), "10.9.7.2")
    report = await pair.meshes["a"].apply(replace(state, networks=(*state.networks, taken)))
    (key,) = report.errors
    assert "VNI 77 on UDP port 4789 is in use by another VXLAN device" in str(report.errors[key])
    assert isinstance(report.errors[key], KernelError)
    sh(f"ip -n {bed.space('a0')} link del theirs")
    assert not (await pair.meshes["a"].apply(replace(state, networks=(*state.networks, taken)))).errors


async def test_docker_user_chain_of_an_engine_that_drops_forwarding(pair: Pair) -> None:
    bed = pair.bed
    host = bed.space("a0")
    assert bed.ask("out", "192.0.2.1", 8080) in ("a2", "b2")
    sh(f"ip netns exec {host} iptables -N DOCKER-USER && ip netns exec {host} iptables -A FORWARD -j DOCKER-USER")
    sh(f"ip netns exec {host} iptables -P FORWARD DROP")
    assert bed.ask("out", "192.0.2.1", 8080, timeout_s=0.3) == "timeout"
    report = await pair.meshes["a"].apply(pair.state("a"), resync=True)
    assert len(report.ops) == 4 and not report.errors
    assert bed.ask("out", "192.0.2.1", 8080) in ("a2", "b2")
    assert (await pair.meshes["a"].apply(pair.state("a"), resync=True)).ops == ()
    await pair.meshes["a"].flush()
    assert sh(f"ip netns exec {host} iptables -S DOCKER-USER").splitlines() == ["-N DOCKER-USER"]
    for cleared in ("-P FORWARD ACCEPT", "-F", "-X DOCKER-USER"):
        sh(f"ip netns exec {host} iptables {cleared}")


def test_check_kernel_and_balancer() -> None:
    assert check_kernel() == []
    assert detect_balancer() in ("ipvs", "nftables")
