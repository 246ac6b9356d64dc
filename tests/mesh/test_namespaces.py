"""The data plane on the running kernel: two hosts, five containers, real servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mesh import (
    Backend,
    Balancer,
    ConfigError,
    HostPort,
    IpvsScheduler,
    KernelUnsupported,
    LocalEndpoint,
    NamespaceGone,
    Network,
    NodeMesh,
    NodeState,
    PublishedPort,
    RemoteEndpoint,
    Sandbox,
    VirtualService,
    check_kernel,
    detect_balancer,
)
from mesh.errors import KernelError
from mesh.linux.kernel import Kernel
from mesh.plan import Op
from tests.mesh.bed import Bed, say, sh

pytestmark = pytest.mark.root

VIP, EMPTY_VIP = "10.9.1.100", "10.9.1.101"
ADDRESSES = {"a1": 11, "a2": 12, "b1": 21, "b2": 22}
"""Last byte of each container's address, on both networks."""


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    bed = Bed()
    try:
        for name in ADDRESSES:
            bed.container(name)
        yield bed
    finally:
        bed.close()


class Pair:
    """The two nodes and the one cluster state both are given, each its side of it."""

    def __init__(self, bed: Bed, balancer: Balancer = "nftables") -> None:
        self.bed = bed
        self.balancer = balancer
        # what is applied stays, and so do the meshes that know of it
        self.meshes = {host: bed.meshes.get(host) or bed.meshes.setdefault(host, self.fresh(host)) for host in bed.hosts}
        self.backends = (Backend("10.9.1.11"), Backend("10.9.1.21"))
        self.published = (
            PublishedPort("tcp", 8080, 80, (Backend("10.9.0.12"), Backend("10.9.0.22"))),
            PublishedPort("udp", 5353, 53, (Backend("10.9.0.22"),)),
        )
        self.scheduler: IpvsScheduler = "rr"
        self.containers = dict(ADDRESSES)
        # drawn at random, both of two are seen but for odds of 1e-12; taken in turn, they are seen at once
        bed.draws = 40 if balancer == "nftables" else 4

    def fresh(self, host: str) -> NodeMesh:
        return NodeMesh(self.bed.prefix(host), host_netns=self.bed.path(f"{host}0"))

    def state(self, host: str) -> NodeState:
        other = "b" if host == "a" else "a"
        lb = {"a": 2, "b": 3}

        def network(number: int, ingress: bool, services: tuple[VirtualService, ...]) -> Network:
            return Network(
                id=f"n{number}",
                vni=40 + number,
                subnets=(f"10.9.{number}.0/24",),
                lb_address=f"10.9.{number}.{lb[host]}",
                ingress=ingress,
                local=tuple(LocalEndpoint(n, f"10.9.{number}.{b}", self.bed.path(n)) for n, b in self.containers.items() if n[0] == host),
                remote=(
                    RemoteEndpoint(f"10.9.{number}.{lb[other]}", self.bed.underlay(other), balancer=True),
                    *(RemoteEndpoint(f"10.9.{number}.{b}", self.bed.underlay(other)) for n, b in self.containers.items() if n[0] == other),
                ),
                services=services,
            )

        return NodeState(
            underlay=self.bed.underlay(host),
            networks=(
                network(0, True, ()),
                network(1, False, (VirtualService(VIP, self.backends, self.scheduler), VirtualService(EMPTY_VIP))),
            ),
            sandboxes=tuple(Sandbox(n, self.bed.path(n)) for n in self.containers if n[0] == host),
            published=self.published,
            host_ports=(HostPort("tcp", 9090, 80, "a1"),) if host == "a" else (),
            balancer=self.balancer,
        )

    async def apply(self, *, resync: bool = False) -> None:
        for host, mesh in self.meshes.items():
            report = await mesh.apply(self.state(host), resync=resync)
            assert not report.errors

    async def serve(self, *backends: Backend) -> None:
        self.backends = backends
        await self.apply()


@pytest.fixture(params=["nftables", pytest.param("ipvs", marks=pytest.mark.vm)])
async def pair(bed: Bed, request: pytest.FixtureRequest) -> Pair:
    pair = Pair(bed, request.param)
    await pair.apply()
    return pair


async def test_vip_is_balanced_over_local_and_remote_backends(pair: Pair) -> None:
    bed = pair.bed
    for client in ("a2", "b2"):
        assert bed.asked(client, VIP).keys() == {"a1", "b1"}
    # a backend that calls its own service is balanced, too
    assert bed.asked("a1", VIP).keys() == {"a1", "b1"}
    assert {bed.udp("a2", VIP) for _ in range(bed.draws)} == {"a1", "b1"}
    assert bed.ping("a2", VIP) and bed.ping("b1", VIP)
    # containers reach each other and the LB addresses directly
    assert bed.ask("a1", "10.9.1.22") == "b2"
    assert bed.ping("b1", "10.9.1.2") and bed.ping("b1", "10.9.1.3")


async def test_a_vip_nobody_serves_refuses_at_once(pair: Pair) -> None:
    bed = pair.bed
    assert bed.ask("a1", EMPTY_VIP) == "refused"
    assert [bed.udp("a1", EMPTY_VIP) for _ in range(20)] == ["refused"] * 20
    assert bed.ping("a1", EMPTY_VIP)


async def test_weights_share_and_weight_0_only_keeps_what_is_established(pair: Pair) -> None:
    bed = pair.bed
    # of IPVS's schedulers those with a "w" heed weights; of nftables any
    pair.scheduler = "wrr"
    await pair.serve(Backend("10.9.1.11", 9), Backend("10.9.1.21", 1))
    counts = bed.asked("a2", VIP, times=10 * bed.draws)
    assert counts["a1"] > 3 * counts["b1"] > 0
    await pair.serve(Backend("10.9.1.11", 1))
    with bed.connect("a2", VIP, 80) as old:
        assert say(old).startswith("a1 ")
        await pair.serve(Backend("10.9.1.11", 0), Backend("10.9.1.21"))
        assert bed.asked("a2", VIP).keys() == {"b1"}
        assert say(old).startswith("a1 ")
        wanted = {"n1": {"10.9.1.11", "10.9.1.12"}, "unknown": {"10.0.0.1"}}
        open_now = await pair.meshes["a"].open_connections(wanted)
        assert open_now == {("n1", "10.9.1.11"): 1, ("n1", "10.9.1.12"): 0, ("unknown", "10.0.0.1"): 0}
        # both are on a: b has nothing to wait for
        assert (await pair.meshes["b"].open_connections(wanted))["n1", "10.9.1.11"] == 0
        # all draining: refused at once, the old one goes on
        await pair.serve(Backend("10.9.1.11", 0), Backend("10.9.1.21", 0))
        assert bed.ask("a2", VIP) == "refused"
        assert say(old).startswith("a1 ")
    closed = {"n1": {"10.9.1.11"}}
    deadline_ok = False
    for _ in range(100):
        if (await pair.meshes["a"].open_connections(closed))["n1", "10.9.1.11"] == 0:
            deadline_ok = True
            break
    assert deadline_ok


async def test_connections_of_a_backend_that_is_gone_are_cut_and_its_udp_clients_move_on(pair: Pair) -> None:
    bed = pair.bed
    await pair.serve(Backend("10.9.1.11"))
    with bed.connect("a2", VIP, 80) as old:
        assert say(old).startswith("a1 ")
        assert bed.udp("a2", VIP, source_port=5000) == "a1"
        await pair.serve(Backend("10.9.1.21"))
        with pytest.raises(ConnectionError):
            say(old)
        assert bed.udp("a2", VIP, source_port=5000) == "b1"
    # a client refused a moment ago, from the same port
    await pair.serve()
    assert bed.udp("a2", VIP, source_port=5001) == "refused"
    await pair.serve(Backend("10.9.1.21"))
    assert bed.udp("a2", VIP, source_port=5001) == "b1"


async def test_scaling_in_and_out_under_load_fails_no_request(pair: Pair) -> None:
    bed = pair.bed
    answers: set[str] = set()
    for number in range(12):
        a, b = Backend("10.9.1.11", number % 3 != 0), Backend("10.9.1.21", number % 3 != 1)
        await pair.serve(a, b, *((Backend("10.9.1.22"),) if number % 2 else ()))
        answers |= bed.asked("a2", VIP, times=8).keys() | bed.asked("b2", VIP, times=8).keys()
    assert answers == {"a1", "b1", "b2"}


async def test_published_port_on_every_node_from_everywhere(pair: Pair) -> None:
    bed = pair.bed
    both = {"a2", "b2"}
    for node in ("192.0.2.1", "192.0.2.2"):
        assert bed.asked("out", node, 8080).keys() == both
        assert {bed.udp("out", node, 5353) for _ in range(3)} == {"b2"}
    for host in ("a0", "b0"):
        assert bed.asked(host, "127.0.0.1", 8080).keys() == both
        assert bed.asked(host, bed.underlay(host[0]), 8080).keys() == both
        assert bed.udp(host, "127.0.0.1", 5353) == "b2"
    # from containers, a backend itself among them
    for client in ("a1", "a2", "b1"):
        assert bed.asked(client, "192.0.2.1", 8080).keys() == both
        assert bed.asked(client, "172.30.0.1", 8080).keys() == both
    # a port of another number and a published port nobody serves
    pair.published = (PublishedPort("tcp", 8081, 80), *pair.published)
    await pair.apply()
    assert bed.ask("out", "192.0.2.1", 8081) == "refused"
    assert bed.ask("a0", "127.0.0.1", 8081) == "refused"
    assert bed.ask("out", "192.0.2.1", 8082) == "refused"
    pair.published = ()
    await pair.apply()
    assert bed.ask("out", "192.0.2.1", 8080) == "refused"


async def test_big_answers_pass_the_routing_mesh(pair: Pair) -> None:
    """The client's frames are bigger than the tunnel's."""
    bed = pair.bed
    with bed.connect("out", "192.0.2.1", 8080) as s:
        assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1410
        s.sendall(b"x" * 100_000)
        assert s.recv(100)
    sizes = {sh(f"ip -n {bed.space('a1')} -o link show {link}").split(" mtu ")[1].split()[0] for link in ("eth0", "eth1")}
    assert sizes == {"1450"}


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


async def test_a_fresh_process_adopts_without_touching(pair: Pair) -> None:
    bed = pair.bed
    with bed.connect("a2", VIP, 80) as old:
        say(old)
        for host in "ab":
            mesh = pair.fresh(host)
            report = await mesh.apply(pair.state(host))
            assert report.ops == () and not report.errors
            assert (await mesh.apply(pair.state(host), resync=True)).ops == ()
            assert (await mesh.apply(pair.state(host))).ops == ()
            await mesh.close()
        say(old)


DAMAGE = {
    "tunnel row": "bridge -n {n1} fdb del 02:42:0a:09:01:15 dev vx0 dst 192.0.2.2 self",
    "bridge row": "bridge -n {n1} fdb del 02:42:0a:09:01:15 dev vx0 master",
    "flood row": "bridge -n {n1} fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.77 self permanent",
    "neighbour": "ip -n {n1} neigh del 10.9.1.21 dev vx0",
    "vip": "ip -n {n1} addr del 10.9.1.100/32 dev br0",
    "rule": "ip netns exec {n1} nft flush chain inet meshd prerouting",
    "foreign rule in our chain": "ip netns exec {n1} nft insert rule inet meshd prerouting drop",
    "element": "ip netns exec {n1} nft delete element inet meshd vips4 '{{ 10.9.1.100 }}'",
    "table": "ip netns exec {n1} nft delete table inet meshd",
    "host table": "ip netns exec {host} nft delete table inet meshd_{prefix}",
    "sysctl": "ip netns exec {n1} sysctl -qw net.ipv4.ip_forward=0",
    "tunnel device": "ip -n {n1} link del vx0",
    "tunnel down": "ip -n {n1} link set vx0 down",
    "tunnel out of the bridge": "ip -n {n1} link set vx0 nomaster",
    "bridge": "ip -n {n1} link del br0",
    "container's link": "ip -n {c} link del eth1",
    "container's address": "ip -n {c} addr flush dev eth1",
    "container's link down": "ip -n {c} link set eth1 down",
    "container's default route": "ip -n {c} route del default",
    "uplink": "ip -n {host} link del {prefix}-in",
    "uplink's route": "ip -n {host} route del 10.9.0.2",
    "gateway bridge": "ip -n {host} link del {prefix}-gw",
    "namespace": "ip netns del {n1}",
    "ingress namespace": "ip netns del {prefix}-n0",
}


@pytest.mark.parametrize("what", DAMAGE)
async def test_damage_is_repaired(pair: Pair, what: str) -> None:
    bed = pair.bed
    prefix = bed.prefix("a")
    sh(DAMAGE[what].format(n1=f"{prefix}-n1", host=bed.space("a0"), prefix=prefix, c=bed.space("a1")))
    report = await pair.meshes["a"].apply(pair.state("a"), resync=True)
    assert report.ops and report.drift and not report.errors
    assert (await pair.meshes["a"].apply(pair.state("a"), resync=True)).ops == ()
    assert bed.asked("a1", VIP).keys() == {"a1", "b1"}
    assert bed.ask("out", "192.0.2.1", 8080) in ("a2", "b2")
    assert bed.ask("a1", "192.0.2.2", 8080) in ("a2", "b2")


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
    sh(DAMAGE[what].format(n1=f"{prefix}-n1", host=bed.space("a0"), prefix=prefix, c=bed.space("a1")))
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
    report = await pair.meshes["a"].apply(pair.state("a"), resync=True)
    assert report.ops == ()
    assert before_links > 4
    report = await pair.meshes["a"].flush()
    assert not report.errors
    links = {line.split(": ")[1].partition("@")[0] for line in sh(f"ip -n {host} -o link").splitlines()}
    assert links == {"lo", "eth0", "theirs", "mg-theirs", "mg-other"}
    assert sh(f"ip netns exec {host} nft list tables").strip() == "table inet theirs"
    assert sh(f"ip -n {host} route").strip() == "192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.1"
    # under our prefix, but without our mark
    assert [p.name for p in Path("/run/netns").glob(bed.prefix("a") + "-*")] == [f"{bed.prefix('a')}-theirs"]
    assert sh(f"ip -n {bed.space('a1')} -o link").count("\n") == 1
    sh(f"ip netns del {bed.prefix('a')}-theirs")
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


async def test_ipv6_network(pair: Pair) -> None:
    bed = pair.bed
    vip = "fd09::64"
    for name in ADDRESSES:
        # as the Engine leaves a container without networks
        for scope in ("all", "default"):
            sh(f"ip netns exec {bed.space(name)} sysctl -qw net.ipv6.conf.{scope}.disable_ipv6=1")
    for host, mesh in pair.meshes.items():
        state, other = pair.state(host), "b" if host == "a" else "a"
        network = Network(
            "n6",
            46,
            ("fd09::/64",),
            f"fd09::{'2' if host == 'a' else '3'}",
            local=tuple(LocalEndpoint(n, f"fd09::{b}", bed.path(n)) for n, b in ADDRESSES.items() if n[0] == host),
            remote=(
                RemoteEndpoint(f"fd09::{'3' if host == 'a' else '2'}", bed.underlay(other)),
                *(RemoteEndpoint(f"fd09::{b}", bed.underlay(other)) for n, b in ADDRESSES.items() if n[0] == other),
            ),
            services=(VirtualService(vip, (Backend("fd09::11"), Backend("fd09::21"))), VirtualService("fd09::65")),
        )
        state = replace(state, networks=(*state.networks, network))
        assert not (await mesh.apply(state)).errors
        assert (await mesh.apply(state, resync=True)).ops == ()
    assert bed.asked("a2", vip).keys() == {"a1", "b1"}
    assert bed.asked("a1", vip).keys() == {"a1", "b1"}
    assert bed.ask("a2", "fd09::65") == "refused"


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
