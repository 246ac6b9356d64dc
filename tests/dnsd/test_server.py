"""The server on loopback with real sockets, and its sockets inside namespaces."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from dnslib import DNSRecord

from dnsd import ConfigError, DnsError, DnsState, ScopeSpec, Server, ServiceName, TaskName, ZoneSpec
from dnsd.resolvers import NodeResolvers
from tests.dnsd.ask import ask, ask_tcp, query, until, values


def zone(network: str, vip: str = "10.0.0.2", *, tasks: int = 100, name: str = "web") -> ZoneSpec:
    names = tuple(TaskName(id=f"t{i}", name=f"{name}.{i}.x", slot=i, addresses=(f"10.1.0.{i}",)) for i in range(1, tasks + 1))
    return ZoneSpec(network=network, name=f"net{network}", services=(ServiceName(id=name, name=name, vips=(vip,), tasks=names),))


def scope(id: str, *networks: str, netns: str = "", listen: str = "127.0.0.1:0", stack: str = "") -> ScopeSpec:
    return ScopeSpec(id=id, netns=netns, networks=networks, listen=listen, stack=stack)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(NodeResolvers(Path("/nonexistent"), Path("/nonexistent")))
    yield server
    await server.close()


async def test_udp_and_tcp(server: Server) -> None:
    await server.apply(DnsState(zones=(zone("a"),), scopes=(scope("s", "a"),)))
    address = server.address("s")
    assert values(await ask(address, "web")) == ["10.0.0.2"]
    cut = await ask(address, "tasks.web")
    assert (cut.header.tc, len(cut.rr)) == (1, 30)
    # As a resolver goes on: the same question over TCP. Several queries in one write are answered in order.
    first, second, third = await ask_tcp(address, query("tasks.web", query_id=1), query("nosuch", query_id=2), query("web", query_id=3))
    assert (first.header.id, first.header.tc, len(first.rr)) == (1, 0, 100)
    assert (second.header.id, second.header.rcode) == (2, 3)
    assert values(third) == ["10.0.0.2"]


async def test_junk_is_survived(server: Server) -> None:
    await server.apply(DnsState(zones=(zone("a"),), scopes=(scope("s", "a"),)))
    address = server.address("s")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for size in range(0, 300, 7):
            sock.sendto(os.urandom(size), address)
    # Somebody who doesn't wait for the answer.
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(query("web"), address)
    assert values(await ask(address, "web")) == ["10.0.0.2"]
    assert "bugs" not in server.status().counters


async def test_queries_are_counted_by_type_and_rcode_and_logged_for_one_scope(server: Server) -> None:
    await server.apply(DnsState(zones=(zone("a"),), scopes=(scope("s", "a"), scope("t", "a"))))
    logged: list[tuple[str, int | None]] = []
    (listener,) = [listener for listener in server._listeners.values() if listener.address == server.address("s")]
    listener.log = lambda packet, peer, response: logged.append((str(DNSRecord.parse(packet).q.qname), response and response[3] & 15))
    for address in (server.address("s"), server.address("t")):
        for name, kind in (("web", "A"), ("web", "AAAA"), ("nosuch", "A"), ("nosuch.example.com", "A")):
            await ask(address, name, kind)
    await ask_tcp(server.address("t"), query("web"))
    expected = [(1, 0, 3), (1, 2, 2), (1, 3, 2), (28, 0, 2)]
    assert list(server.traffic.by_type_and_rcode()) == expected
    assert sum(server.traffic.own_s.buckets) == 7
    assert sum(server.traffic.forwarded_s.buckets) == 2
    assert sorted(logged) == [("nosuch.", 3), ("nosuch.example.com.", 2), ("web.", 0), ("web.", 0)]


async def test_a_bug_of_ours_costs_one_answer(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    await server.apply(DnsState(zones=(zone("a"),), scopes=(scope("s", "a"),)))
    (listener,) = server._listeners.values()

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    listener.log = fail
    await ask(server.address("s"), "web")
    await until(lambda: server.counters["bugs"] == 1)
    assert "a bug" in caplog.text
    listener.log = None
    assert values(await ask(server.address("s"), "web")) == ["10.0.0.2"]


async def test_many_at_once(server: Server) -> None:
    await server.apply(DnsState(zones=(zone("a"),), scopes=(scope("s", "a"),)))
    address = server.address("s")
    records = await asyncio.gather(*(ask(address, f"web.{number % 100 + 1}", query_id=number) for number in range(300)))
    for number, record in enumerate(records):
        assert (record.header.id, values(record)) == (number, [f"10.1.0.{number % 100 + 1}"])


async def test_swap_under_load_loses_nothing_and_mixes_nothing(server: Server) -> None:
    """Versions of a zone in which all names agree on one address: every answer must be of one version, and never go back."""

    def version(number: int) -> DnsState:
        services = tuple(ServiceName(id=f"s{i}", name=f"s{i}", vips=(f"10.0.{number >> 8}.{number & 255}",)) for i in range(200))
        return DnsState(zones=(ZoneSpec(network="a", name="net", services=services),), scopes=(scope("s", "a"),))

    await server.apply(version(1))
    address = server.address("s")
    done = asyncio.Event()
    applied = 1

    async def asker(number: int) -> int:
        loop, asked, latest = asyncio.get_running_loop(), 0, 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect(address)
            while not done.is_set():
                asked += 1
                before = applied
                await loop.sock_sendall(sock, query(f"s{asked % 200}", query_id=asked & 0xFFFF))
                async with asyncio.timeout(2):
                    record = DNSRecord.parse(await loop.sock_recv(sock, 4096))
                assert record.header.id == asked & 0xFFFF
                (value,) = values(record)
                high, low = map(int, value.split(".")[2:])
                latest, previous = high * 256 + low, latest
                assert latest >= previous
                assert before <= latest <= applied + 1
        return asked

    asking = [asyncio.create_task(asker(number)) for number in range(8)]
    for number in range(2, 120):
        await server.apply(version(number))
        applied = number
        # Let the askers ask.
        target = server.status().counters["queries"] + 20
        await until(lambda: server.status().counters["queries"] >= target or any(task.done() for task in asking))  # noqa: B023
    done.set()
    assert sum(await asyncio.gather(*asking)) > 1000


async def test_who_asks_does_not_wait_for_a_large_zone(server: Server) -> None:
    """Compiling it, and taking the one before it apart, are interrupted for queries again and again."""
    tasks = zone("a", tasks=5).services[0].tasks
    services = tuple(ServiceName(id=f"s{n}", name=f"s{n}", tasks=tasks) for n in range(2000))
    await server.apply(DnsState(zones=(zone("a"),), scopes=(scope("s", "a"),)))
    for vip in ("10.0.0.3", "10.0.0.4"):
        large = ZoneSpec(network="a", name="neta", services=zone("a", vip).services + services)
        applying = asyncio.create_task(server.apply(DnsState(zones=(large,), scopes=(scope("s", "a"),))))
        answers = []
        while not applying.done():
            answers += values(await ask(server.address("s"), "web"))
        assert len(answers) > 5
        assert values(await ask(server.address("s"), "web")) == [vip]


async def test_what_did_not_change_keeps_its_socket(server: Server) -> None:
    state = DnsState(zones=(zone("a"), zone("b", "10.0.0.3")), scopes=(scope("s", "a"), scope("t", "b")))
    await server.apply(state)
    address = server.address("s")
    listeners = dict(server._listeners)
    views = {place: listener.view for place, listener in listeners.items()}
    await server.apply(DnsState(zones=(zone("a"), zone("b", "10.0.0.9")), scopes=state.scopes))
    assert server._listeners == listeners
    assert server.address("s") == address
    # The untouched zone's view is the same, with the answers it has built; the other is new.
    assert [listener.view is views[place] for place, listener in server._listeners.items()] == [True, False]
    assert values(await ask(server.address("t"), "web")) == ["10.0.0.9"]


async def test_networks_of_a_scope_may_change(server: Server) -> None:
    zones = (zone("a"), zone("b", "10.0.0.3"))
    for networks, vip in ((("a", "b"), "10.0.0.2"), (("b", "a"), "10.0.0.3"), (("b",), "10.0.0.3"), (("gone", "a"), "10.0.0.2")):
        await server.apply(DnsState(zones=zones, scopes=(scope("s", *networks),)))
        assert values(await ask(server.address("s"), "web")) == [vip]


async def test_scopes_that_cannot_open_are_named_and_others_go_on(server: Server) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        scopes = (
            scope("good", "a"),
            scope("taken", "a", listen=f"127.0.0.1:{port}"),
            scope("foreign", "a", listen="192.0.2.1:5353"),
            scope("nonsense", "a", listen="web:53"),
            scope("dead", "a", netns="/proc/999999999/ns/net"),
        )
        applied = await server.apply(DnsState(zones=(zone("a"),), scopes=scopes))
        assert set(applied.failed) == {"taken", "foreign", "nonsense", "dead"}
        assert applied.failed["taken"] == f"127.0.0.1:{port} is already in use by another program"
        assert applied.failed["foreign"] == "192.0.2.1:5353 can't be listened on: this machine has no such address"
        assert "is no address" in applied.failed["nonsense"]
        assert applied.failed["dead"] == "the network namespace /proc/999999999/ns/net does not exist: its sandbox is gone"
        assert values(await ask(server.address("good"), "web")) == ["10.0.0.2"]
        with pytest.raises(DnsError, match="already in use"):
            server.address("taken")
    # The same state again: what failed is tried again.
    applied = await server.apply(DnsState(zones=(zone("a"),), scopes=scopes))
    assert set(applied.failed) == {"foreign", "nonsense", "dead"}
    assert values(await ask(server.address("taken"), "web")) == ["10.0.0.2"]
    assert {status.id: bool(status.reason) for status in server.status().scopes} == {
        **dict.fromkeys(("good", "taken"), False),
        **dict.fromkeys(("foreign", "nonsense", "dead"), True),
    }


async def test_contradictions_change_nothing(server: Server) -> None:
    await server.apply(DnsState(zones=(zone("a"),), scopes=(scope("s", "a"),)))
    for state, what in (
        (DnsState(zones=(zone("b"), zone("b"))), "network 'b' is given more than once"),
        (DnsState(scopes=(scope("t"), scope("t"))), "scope 't' is given more than once"),
    ):
        with pytest.raises(ConfigError, match=what):
            await server.apply(state)
    assert values(await ask(server.address("s"), "web")) == ["10.0.0.2"]


async def test_two_scopes_on_one_address(server: Server) -> None:
    await server.apply(DnsState(zones=(zone("a"),), scopes=(scope("s", "a"),)))
    listen = f"127.0.0.1:{server.address('s')[1]}"
    await server.apply(DnsState())
    applied = await server.apply(DnsState(zones=(zone("a"),), scopes=(scope("s", "a", listen=listen), scope("t", "a", listen=listen))))
    assert list(applied.failed) == ["t"]
    assert "already serves scope 's'" in applied.failed["t"]
    # A scope under a new id takes the socket over.
    listeners = dict(server._listeners)
    assert (await server.apply(DnsState(zones=(zone("a"),), scopes=(scope("u", "a", listen=listen),)))).failed == {}
    assert server._listeners == listeners


async def test_problems_are_said(server: Server) -> None:
    bad = ZoneSpec(network="n", name="net", services=(ServiceName(id="s", name="s", vips=("nonsense",)),))
    with_upstream = ScopeSpec(id="s", netns="", networks=("n",), listen="127.0.0.1:0", upstreams=("nowhere",))
    applied = await server.apply(DnsState(zones=(bad,), scopes=(with_upstream,)))
    assert len(applied.problems) == 2
    assert applied.failed == {}


async def test_close_frees_the_address() -> None:
    server = Server(NodeResolvers(Path("/nonexistent"), Path("/nonexistent")))
    await server.apply(DnsState(zones=(zone("a"),), scopes=(scope("s", "a"),)))
    address = server.address("s")
    await server.close()
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.bind(address)


# -- namespaces -----------------------------------------------------------------------------------------------------------------

PREFIX = f"dnsdt{os.getpid()}-"


def run(*command: str, check: bool = True) -> str:
    return subprocess.run(command, check=check, capture_output=True, text=True).stdout


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    names = [f"{PREFIX}{letter}" for letter in "ab"]
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield [f"/run/netns/{name}" for name in names]
    finally:
        for name in names:
            if Path(f"/run/netns/{name}").exists():
                run("ip", "netns", "del", name, check=False)


ASK = """
import socket, sys
packet = bytes.fromhex(sys.argv[1])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(2)
sock.sendto(packet, ("127.0.0.11", 53))
print(sock.recv(4096).hex())
"""


async def ask_inside(netns: str, name: str) -> list[str]:
    """From within a namespace, as a container does; a process of its own."""
    command = ["nsenter", f"--net={netns}", "python3", "-c", ASK, query(name).hex()]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 5)
    assert process.returncode == 0
    return values(DNSRecord.parse(bytes.fromhex(out.decode())))


@pytest.mark.root
async def test_same_name_other_scope_other_answer(server: Server, namespaces: list[str]) -> None:
    one, two = namespaces
    scopes = (scope("one", "a", netns=one, listen="127.0.0.11:53"), scope("two", "b", netns=two, listen="127.0.0.11:53"))
    applied = await server.apply(DnsState(zones=(zone("a"), zone("b", "10.0.0.3")), scopes=scopes))
    assert applied.failed == {}
    assert await ask_inside(one, "web") == ["10.0.0.2"]
    assert await ask_inside(two, "web") == ["10.0.0.3"]
    assert await ask_inside(one, "web.netb") == []
    # Nothing of it in our own namespace.
    assert "127.0.0.11:53 " not in run("ss", "-Hlnu")


@pytest.mark.root
async def test_a_closed_scope_does_not_pin_its_namespace(server: Server) -> None:
    """The namespace of a sandbox that ended is gone as soon as the scope is: a veth's other end disappears with it."""
    name, link = f"{PREFIX}c", f"dt{os.getpid()}"[:14]
    holder = await asyncio.create_subprocess_exec("unshare", "--net", "sleep", "600")
    try:
        netns = f"/proc/{holder.pid}/ns/net"
        own = os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116
        await until(lambda: os.stat(netns).st_ino != own)  # noqa: PTH116
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "e0", "netns", str(holder.pid))
        # Its loopback is down: a sandbox gets DNS before it gets anything else.
        scoped = scope(name, "a", netns=netns, listen="127.0.0.11:53")
        assert (await server.apply(DnsState(zones=(zone("a"),), scopes=(scoped,)))).failed == {}
        assert server.identities().keys() == {name}
        holder.kill()
        await holder.wait()
        assert Path(f"/sys/class/net/{link}").exists()
        await server.apply(DnsState(zones=(zone("a"),)))
        await until(lambda: not Path(f"/sys/class/net/{link}").exists())
    finally:
        if holder.returncode is None:
            holder.kill()
            await holder.wait()
        run("ip", "link", "del", link, check=False)


@pytest.mark.root
async def test_a_dead_namespace_is_let_go_without_being_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsd.server._WATCH_S", 0.05)
    link = f"dx{os.getpid()}"[:14]
    holder = await asyncio.create_subprocess_exec("unshare", "--net", "sleep", "600")
    try:
        netns = f"/proc/{holder.pid}/ns/net"
        own = os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116
        await until(lambda: os.stat(netns).st_ino != own)  # noqa: PTH116
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "e0", "netns", str(holder.pid))
        scoped = scope("s", "a", netns=netns, listen="127.0.0.11:53")
        assert (await server.apply(DnsState(zones=(zone("a"),), scopes=(scoped,)))).failed == {}
        holder.kill()
        await holder.wait()
        await until(lambda: not Path(f"/sys/class/net/{link}").exists())
        (status,) = server.status().scopes
        assert "is gone" in status.reason
    finally:
        if holder.returncode is None:
            holder.kill()
            await holder.wait()
        run("ip", "link", "del", link, check=False)


@pytest.mark.root
async def test_another_namespace_behind_the_same_path(server: Server, namespaces: list[str]) -> None:
    path = namespaces[0]
    state = DnsState(zones=(zone("a"),), scopes=(scope("s", "a", netns=path, listen="127.0.0.11:53"),))
    await server.apply(state)
    before = server.identities()["s"]
    name = Path(path).name
    run("ip", "netns", "del", name)
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    # Told to, it serves the new one; as a leftover of the old one it must not.
    assert (await server.apply(state)).failed == {}
    assert server.identities()["s"] != before
    assert await ask_inside(path, "web") == ["10.0.0.2"]
    await server.apply(DnsState())
    applied = await server.apply(state, expected={"s": before})
    assert applied.failed == {"s": f"{path} is another network namespace than before: its sandbox is gone"}


@pytest.mark.root
async def test_what_is_no_namespace(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    scopes = (scope("file", netns=str(tmp_path / "file")), scope("pid", netns="/proc/self/ns/pid"))
    applied = await server.apply(DnsState(scopes=scopes))
    assert applied.failed["file"] == f"{tmp_path}/file is no network namespace"
    assert applied.failed["pid"] == "/proc/self/ns/pid is no network namespace"
