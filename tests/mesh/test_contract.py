"""What every balancer does on the running kernel: nftables here, IPVS in the virtual machine."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from mesh import Backend, LocalEndpoint, Network, PublishedPort, RemoteEndpoint, VirtualService
from tests.mesh.bed import Bed, say, sh
from tests.mesh.pair import EMPTY_VIP, VIP, Pair

pytestmark = pytest.mark.root


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


async def test_the_address_that_servers_see(pair: Pair) -> None:
    """The client's own with IPVS; that of the node that balanced with nftables."""
    bed, direct = pair.bed, pair.balancer == "ipvs"
    assert {bed.seen("a2", VIP)[1] for _ in range(bed.draws)} == {"10.9.1.12" if direct else "10.9.1.2"}
    assert {bed.seen("out", bed.underlay("b"), 8080)[1] for _ in range(bed.draws)} == {"192.0.2.99" if direct else "10.9.0.3"}
    assert bed.seen_udp("out", bed.underlay("a"), 5353) == ("b2", "192.0.2.99" if direct else "10.9.0.2")
    # a server that calls itself is seen as its node
    assert {bed.seen("a1", VIP) for _ in range(bed.draws)} >= {("a1", "10.9.1.2")}


async def test_big_answers_pass_the_routing_mesh(pair: Pair) -> None:
    """The client's frames are bigger than the tunnel's."""
    bed = pair.bed
    with bed.connect("out", "192.0.2.1", 8080) as s:
        assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1410
        s.sendall(b"x" * 100_000)
        assert s.recv(100)
    sizes = {sh(f"ip -n {bed.space('a1')} -o link show {link}").split(" mtu ")[1].split()[0] for link in ("eth0", "eth1")}
    assert sizes == {"1450"}


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


async def test_ipv6_network(pair: Pair) -> None:
    bed = pair.bed
    vip = "fd09::64"
    for name in pair.containers:
        # as the Engine leaves a container without networks
        for scope in ("all", "default"):
            sh(f"ip netns exec {bed.space(name)} sysctl -qw net.ipv6.conf.{scope}.disable_ipv6=1")
    for host in "ab":
        mesh, state, other = pair.meshes[host], pair.state(host), "b" if host == "a" else "a"
        network = Network(
            "n6",
            46,
            ("fd09::/64",),
            f"fd09::{'2' if host == 'a' else '3'}",
            local=tuple(LocalEndpoint(n, f"fd09::{b}", bed.path(n)) for n, b in pair.containers.items() if n[0] == host),
            remote=(
                RemoteEndpoint(f"fd09::{'3' if host == 'a' else '2'}", bed.underlay(other)),
                *(RemoteEndpoint(f"fd09::{b}", bed.underlay(other)) for n, b in pair.containers.items() if n[0] == other),
            ),
            services=(VirtualService(vip, (Backend("fd09::11"), Backend("fd09::21"))), VirtualService("fd09::65")),
        )
        state = replace(state, networks=(*state.networks, network))
        assert not (await mesh.apply(state)).errors
        assert (await mesh.apply(state, resync=True)).ops == ()
    assert bed.asked("a2", vip).keys() == {"a1", "b1"}
    assert bed.asked("a1", vip).keys() == {"a1", "b1"}
    assert bed.ask("a2", "fd09::65") == "refused"
    assert {bed.seen("a2", vip)[1] for _ in range(bed.draws)} == {"fd09::12" if pair.balancer == "ipvs" else "fd09::2"}
