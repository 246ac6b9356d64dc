"""Direct routing as no other balancer has it, with three nodes: whom servers see, affinity, drift, kills, packets on the wire."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mesh import Backend, LocalEndpoint, Network, PublishedPort, RemoteEndpoint, VirtualService
from mesh.container import FROM_INGRESS, FROM_UDP_PORT
from mesh.ipvs import MASQUERADED, TCP_TIMEOUT_S, port_mark, vip_mark
from mesh.linux import ipvs, policy
from mesh.linux.kernel import Kernel
from mesh.linux.namespace import inside
from mesh.plan import Op
from mesh.table import IpvsDestination, IpvsService, Policy
from tests.mesh.bed import Bed, say, sh
from tests.mesh.pair import ADDRESSES, VIP, Pair
from tests.mesh.wire import ARP, IP, TCP, Ether, Wire, icmpv6

pytestmark = [pytest.mark.root, pytest.mark.vm]

ALL = tuple(Backend(f"10.9.1.{ADDRESSES[name]}") for name in ("a1", "b1", "c1"))
EVERYWHERE = tuple(Backend(f"10.9.0.{ADDRESSES[name]}") for name in ("a1", "b1", "c1"))
OUTSIDE = "192.0.2.99"


@pytest.fixture
async def pair(bed: Bed) -> Pair:
    pair = Pair(bed, "ipvs")
    pair.backends = ALL
    pair.published = (
        PublishedPort("tcp", 8080, 80, EVERYWHERE),
        PublishedPort("udp", 5353, 53, EVERYWHERE),
        PublishedPort("tcp", 8081, 80, EVERYWHERE, source_nat=True),
    )
    await pair.apply()
    return pair


def seen(bed: Bed, client: str, address: str, port: int = 80) -> dict[str, str]:
    return dict(bed.seen(client, address, port) for _ in range(3))


async def test_servers_see_the_client_through_a_vip(pair: Pair) -> None:
    bed = pair.bed
    assert seen(bed, "a2", VIP) == {"a1": "10.9.1.12", "b1": "10.9.1.12", "c1": "10.9.1.12"}
    assert {bed.seen_udp("b2", VIP) for _ in range(3)} == {("a1", "10.9.1.22"), ("b1", "10.9.1.22"), ("c1", "10.9.1.22")}
    # one of the servers, calling itself: only its own node's LB address can bring the answer back
    assert seen(bed, "c1", VIP) == {"a1": "10.9.1.4", "b1": "10.9.1.4", "c1": "10.9.1.4"}


@pytest.mark.parametrize("node", ["a", "b", "c"])
async def test_servers_see_the_client_through_every_node(pair: Pair, node: str) -> None:
    bed, address = pair.bed, pair.bed.underlay(node)
    assert seen(bed, "out", address, 8080) == {"a1": OUTSIDE, "b1": OUTSIDE, "c1": OUTSIDE}
    assert {bed.seen_udp("out", address, 5353) for _ in range(3)} == {(name, OUTSIDE) for name in ("a1", "b1", "c1")}


async def test_servers_see_an_address_that_leads_back(pair: Pair) -> None:
    """Another node is seen as itself. 127.0.0.1 and the addresses of gateways mean nothing elsewhere: the LB address stands for them."""
    bed = pair.bed
    assert set(seen(bed, "a0", bed.underlay("b"), 8080).values()) == {bed.underlay("a")}
    assert set(seen(bed, "b0", bed.underlay("b"), 8080).values()) == {bed.underlay("b")}
    assert set(seen(bed, "b0", "127.0.0.1", 8080).values()) == {"10.9.0.3"}
    assert bed.seen_udp("b0", "127.0.0.1", 5353)[1] == "10.9.0.3"
    # a container, a server itself among them
    for client in ("b2", "b1"):
        assert seen(bed, client, bed.underlay("b"), 8080) == {"a1": "10.9.0.3", "b1": "10.9.0.3", "c1": "10.9.0.3"}
    # where the port asks for it
    assert seen(bed, "out", bed.underlay("a"), 8081) == {"a1": "10.9.0.2", "b1": "10.9.0.2", "c1": "10.9.0.2"}


async def test_affinity_and_hashing_schedulers_keep_a_client_with_its_server(pair: Pair) -> None:
    bed = pair.bed
    for scheduler, affinity_s in (("rr", 60), ("sh", 0), ("mh", 0)):
        pair.scheduler, pair.affinity_s = scheduler, affinity_s  # type: ignore[assignment]
        await pair.apply()
        assert len(seen(bed, "a2", VIP)) == 1, scheduler
    # affinity ends where draining begins
    pair.scheduler, pair.affinity_s = "rr", 60
    await pair.apply()
    ((server, _),) = seen(bed, "a2", VIP).items()
    await pair.serve(*(Backend(f"10.9.1.{ADDRESSES[n]}", n != server) for n in ("a1", "b1", "c1")))
    ((other, _),) = seen(bed, "a2", VIP).items()
    assert other != server
    for scheduler in ("wrr", "lc", "wlc"):
        pair.scheduler, pair.affinity_s, pair.backends = scheduler, 0, ALL  # type: ignore[assignment]
        await pair.apply()
        assert bed.ask("a2", VIP) in ("a1", "b1", "c1")


async def test_full_size_packets(pair: Pair) -> None:
    """1450 bytes through the tunnel from a container; 1500 from outside, whose first packet is answered with the size that fits."""
    bed = pair.bed
    await pair.serve(Backend("10.9.1.21"))
    assert bed.seen_udp("a2", VIP, size_bytes=1450 - 28) == ("b1", "10.9.1.12")
    # in fragments
    assert bed.seen_udp("a2", VIP, size_bytes=6000) == ("b1", "10.9.1.12")
    pair.published = (PublishedPort("udp", 5353, 53, EVERYWHERE[1:2]), PublishedPort("tcp", 8080, 80, EVERYWHERE[1:2]))
    await pair.apply()
    node = bed.underlay("a")
    with pytest.raises(OSError), inside(bed.path("out")):
        for _ in range(5):
            bed.seen_udp("out", node, 5353, size_bytes=1472)
    assert bed.seen_udp("out", node, 5353, size_bytes=1450 - 28) == ("b1", OUTSIDE)
    with bed.connect("out", node, 8080) as s:
        s.sendall(b"x" * 200_000)
        assert s.recv(10)


async def test_sctp(pair: Pair) -> None:
    sh("modprobe sctp")
    bed = pair.bed
    await pair.serve(Backend("10.9.1.21"))
    with inside(bed.path("b1")):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    with inside(bed.path("a2")):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    with listener, client:
        listener.bind(("0.0.0.0", 99))
        listener.listen()
        client.settimeout(5)
        client.connect((VIP, 99))
        accepted, address = listener.accept()
        with accepted:
            accepted.sendall(b"!")
            assert client.recv(1) == b"!" and address[0] == "10.9.1.12"


async def test_everything_of_direct_routing_is_repaired(pair: Pair) -> None:
    bed = pair.bed
    network, ingress, container = f"{bed.prefix('a')}-n1", f"{bed.prefix('a')}-n0", bed.path("a1")
    family = ipvs.family_id()
    with inside(bed.path("a1").replace(bed.space("a1"), network)):
        tables = ipvs.Ipvs(family)
        present = tables.read()[vip_mark(VIP)]
        tables.delete([present])
        foreign = IpvsService(4711, 4, "lc", 0, frozenset({IpvsDestination("10.9.1.99", 0, 1)}))
        tables.put([(foreign, None)])
        twin = tables.read()[vip_mark(VIP) | MASQUERADED]
        tables.put([(IpvsService(twin.mark, 4, "sh", 7), twin)])
        tables.put_timeout(900)
    sh(f"ip netns exec {ingress} nft flush map inet meshd port_marks && ip netns exec {ingress} nft delete table bridge meshd")
    with inside(container):
        policy.delete([Policy(FROM_INGRESS, "10.9.0.11"), Policy(FROM_UDP_PORT, udp_port=53)])
    sh(f"ip netns exec {bed.space('a1')} nft delete table inet meshd_{bed.prefix('a')}")
    sh(f"ip -n {bed.space('a1')} route flush table 0x6d61")
    report = await pair.meshes["a"].apply(pair.state("a"), resync=True)
    assert not report.errors
    named = {(one.kind, one.name, one.state) for one in report.drift}
    assert {
        ("IPVS service", str(vip_mark(VIP)), "missing"),
        ("IPVS service", "4711", "foreign"),
        ("IPVS service", str(twin.mark), "altered"),
        ("IPVS timeout", "", "altered"),
        ("element of port_marks:", f"{6} . {8080}", "missing"),
        ("nft table", "meshd", "missing"),
        ("nft table", f"meshd_{bed.prefix('a')}", "missing"),
    } <= named
    assert sum(kind == "routing rule" for kind, _, _ in named) == 2 and any(kind == "link" for kind, _, _ in named)
    assert (await pair.meshes["a"].apply(pair.state("a"), resync=True)).ops == ()
    with inside(f"/run/netns/{network}"):
        assert tables.read()[vip_mark(VIP)] == present and tables.timeout_s() == TCP_TIMEOUT_S
    with inside(f"/run/netns/{ingress}"):
        assert port_mark(6, 8080) in tables.read()
    assert seen(bed, "a2", VIP).keys() == {"a1", "b1", "c1"}
    assert seen(bed, "out", bed.underlay("b"), 8080) == {"a1": OUTSIDE, "b1": OUTSIDE, "c1": OUTSIDE}
    assert bed.seen_udp("out", bed.underlay("a"), 5353)[1] == OUTSIDE


@contextmanager
def load(bed: Bed, clients: dict[str, tuple[str, int]]) -> Iterator[list[str]]:
    """Clients that call one after the other, a new connection each, until the block ends; yields the list of answers so far."""
    answers: list[str] = []
    ended = threading.Event()

    def call(client: str, address: str, port: int) -> None:
        while not ended.wait(0.05):
            try:
                answers.append(bed.ask(client, address, port, timeout_s=15))
            except OSError as error:
                answers.append(repr(error))

    threads = [threading.Thread(target=call, args=(client, *where), daemon=True) for client, where in clients.items()]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join()


async def test_killed_in_the_middle_while_clients_call(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL between two operations of an apply that changes nearly everything; the next process finishes it. Nobody notices."""
    bed = pair.bed
    old = pair.published, ALL
    draining = Backend("10.9.0.11", 0), *EVERYWHERE[1:]
    new = (PublishedPort("tcp", 8080, 80, draining), PublishedPort("tcp", 9999, 80, EVERYWHERE)), (Backend("10.9.1.11", 0), *ALL[1:])
    mesh = pair.meshes["a"]
    run = Kernel.run
    with load(bed, {"a2": (VIP, 80), "out": (bed.underlay("a"), 8080)}) as answers:
        for round_number, survived in enumerate((3, 2)):
            pair.published, pair.backends = (new, old)[round_number % 2]
            # a network more or less as well
            pair.more = {"a": (pair.network("a", 2),)} if round_number % 2 == 0 else {}
            left = survived

            def run_or_die(kernel: Kernel, op: Op) -> None:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                run(kernel, op)

            child = os.fork()
            if child == 0:
                monkeypatch.setattr(Kernel, "run", run_or_die)
                asyncio.set_event_loop(None)
                asyncio.events._set_running_loop(None)
                asyncio.run(pair.fresh("a").apply(pair.state("a")))
                os._exit(1)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert os.WIFSIGNALED(status), "it had fewer operations than thought"
            report = await mesh.apply(pair.state("a"), resync=True)
            assert not report.errors and report.ops
        assert (await mesh.apply(pair.state("a"), resync=True)).ops == ()
    assert len(answers) > 10 and set(answers) <= {"a1", "b1", "c1"}
    await pair.apply()


async def test_networks_of_the_same_addresses_are_apart(pair: Pair, bed: Bed) -> None:
    """Two networks with one subnet and one VIP: told apart by their VNI alone."""
    same = "10.9.1"
    for name in ("a9", "b9"):
        bed.container(name)
    try:
        for host, other, name, last in (("a", "b", "a9", 11), ("b", "a", "b9", 21)):
            pair.more[host] = (
                Network(
                    "twin",
                    77,
                    (f"{same}.0/24",),
                    f"{same}.{2 if host == 'a' else 3}",
                    local=(LocalEndpoint(name, f"{same}.{last}", bed.path(name)),),
                    remote=(
                        RemoteEndpoint(f"{same}.{21 if host == 'a' else 11}", bed.underlay(other)),
                        RemoteEndpoint(f"{same}.{3 if host == 'a' else 2}", bed.underlay(other), balancer=True),
                    ),
                    services=(VirtualService(VIP, (Backend(f"{same}.11"), Backend(f"{same}.21"))),),
                ),
            )
        await pair.apply()
        with Wire(bed) as wire:
            assert bed.seen("a9", f"{same}.21") == ("b9", f"{same}.11")
            assert {bed.ask("a9", VIP) for _ in range(2)} == {"a9", "b9"}
            assert bed.seen("a1", f"{same}.21") == ("b1", f"{same}.11")
        vnis = {(vni, inner[IP].src, inner[IP].dst) for vni, inner in wire.tunnelled() if inner.haslayer(IP)}
        assert {vni for vni, _, _ in vnis} == {41, 77}
        assert {(41, f"{same}.11", f"{same}.21"), (77, f"{same}.11", f"{same}.21")} <= vnis
    finally:
        pair.more = {}
        await pair.apply()
        for name in ("a9", "b9"):
            bed.remove_container(name)


async def test_what_crosses_the_wire(pair: Pair) -> None:
    """Requests keep source and destination, only the frame goes to the server; answers go straight to the client; nothing is asked
    around, nothing is flooded."""
    bed = pair.bed
    await pair.serve(Backend("10.9.1.21"))
    pair.published = (PublishedPort("tcp", 8080, 80, EVERYWHERE[2:]),)
    await pair.apply()
    # nothing that neighbours know from before
    for space in (*(bed.space(n) for n in ADDRESSES), *(f"{bed.prefix(h)}-n{n}" for h in "abc" for n in (0, 1))):
        sh(f"ip -n {space} neigh flush nud reachable nud stale nud delay", check=False)
    with Wire(bed) as wire:
        assert bed.seen("a2", VIP) == ("b1", "10.9.1.12")
        assert bed.seen("out", bed.underlay("b"), 8080) == ("c1", OUTSIDE)
        # to nobody: asks around in its own network, and only there
        assert bed.ask("a2", "10.9.1.200", timeout_s=0.5) == "timeout"
    frames = wire.tunnelled()
    assert not [inner for _, inner in frames if inner.haslayer(ARP) or icmpv6(inner) or int(inner.dst[:2], 16) & 1]
    mac = {name: f"02:42:0a:09:01:{last:02x}" for name, last in ADDRESSES.items()}
    vip = {(inner[IP].src, inner[IP].dst, inner.dst) for vni, inner in frames if vni == 41}
    assert vip == {("10.9.1.12", VIP, mac["b1"]), (VIP, "10.9.1.12", mac["a2"])}
    ingress = {
        (inner[IP].src, inner[IP].dst, inner[TCP].dport, inner.dst) for vni, inner in frames if vni == 40 and inner[TCP].dport == 8080
    }
    # node b sends the client's own packet on to c1, addressed to b's LB address
    assert ingress == {(OUTSIDE, "10.9.0.3", 8080, "02:42:0a:09:00:1f")}
    answers = {(inner[IP].src, inner[IP].dst, inner.dst) for vni, inner in frames if vni == 40 and inner[TCP].sport == 8080}
    assert answers == {("10.9.0.3", OUTSIDE, "02:42:0a:09:00:03")}
    assert {(outer[IP].src, outer[IP].dst) for outer in wire.outer() if Ether in outer} <= {
        (bed.underlay(x), bed.underlay(y)) for x in "abc" for y in "abc" if x != y
    }
    with inside(f"/run/netns/{bed.prefix('a')}-n1"), open("/proc/thread-self/net/ip_vs_conn") as f:
        assert any("0A090115" in line for line in f)


async def test_a_connection_outlives_its_servers_drain(pair: Pair) -> None:
    """Weight 0 under load: not one failure, the open connection goes on and is counted where the server is until it ends."""
    bed = pair.bed
    await pair.serve(Backend("10.9.1.31"))
    with bed.connect("a2", VIP, 80) as old, load(bed, {"b2": (VIP, 80)}) as answers:
        assert say(old).startswith("c1 ")
        await pair.serve(Backend("10.9.1.31", 0), *ALL[:2])
        before = len(answers)
        while len(answers) < before + 4:
            await asyncio.sleep(0.05)
        counts = {h: (await m.open_connections({"n1": {"10.9.1.31"}}))["n1", "10.9.1.31"] for h, m in pair.meshes.items()}
        assert counts["a"] == counts["b"] == 0 and counts["c"] >= 1
        assert say(old).startswith("c1 ")
    assert set(answers) <= {"a1", "b1", "c1"} and set(answers[before + 1 :]) <= {"a1", "b1"}
    for _ in range(100):
        if (await pair.meshes["c"].open_connections({"n1": {"10.9.1.31"}}))["n1", "10.9.1.31"] == 0:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("its connections are never over")
    await pair.serve(*ALL[:2])
    assert bed.ask("a2", VIP) in ("a1", "b1")
