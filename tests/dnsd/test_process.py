"""dnsd as a process: control socket, client, state file, signals, being killed; and the plain little server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dnslib import DNSRecord

from dnsd import VERSION, Client, ConfigError, DnsState, DnsUnavailable, ScopeSpec, Server, ServiceName, TaskName, ZoneSpec, state_file
from dnsd.control import Control
from dnsd.encoded import EncodedZone, encode
from dnsd.errors import RemoteProtocolError
from dnsd.reopen import reopen
from dnsd.sockets import Request, close_all, open_sockets
from tests.dnsd.ask import query, until, values
from tests.dnsd.process import PROJECT, Process, asked, free_port


def zone(network: str = "a", vip: str = "10.0.0.2", services: int = 1) -> ZoneSpec:
    names = ["web", *(f"s{number}" for number in range(1, services))]
    tasks = (TaskName(id="t", name="web.1.x", slot=1, addresses=("10.0.0.9",)),)
    return ZoneSpec(
        network=network, name=f"net{network}", services=tuple(ServiceName(id=name, name=name, vips=(vip,), tasks=tasks) for name in names)
    )


def scope(port: int, *networks: str, id: str = "s", netns: str = "") -> ScopeSpec:
    return ScopeSpec(id=id, netns=netns, networks=networks or ("a",), listen=f"127.0.0.1:{port}", forward=False)


@pytest.fixture
async def client(process: Process) -> AsyncIterator[Client]:
    client = Client(process.control)
    yield client
    await client.close()


async def test_apply_status_and_a_clean_end(process: Process, client: Client) -> None:
    # The client may come first.
    applying = asyncio.create_task(client.status())
    running = process.start()
    status = await applying
    assert (status.version, status.pid, status.zones, status.scopes) == (VERSION, running.pid, (), ())
    assert process.control.stat().st_mode & 0o777 == 0o600
    port = free_port()
    applied = await client.apply(DnsState(zones=(zone(),), scopes=(scope(port), scope(port, id="twin"))))
    assert list(applied.failed) == ["twin"]
    assert asked(port) == ["10.0.0.2"]
    status = await client.status()
    assert [(one.network, one.name, one.names) for one in status.zones] == [("a", "neta", 3)]
    assert [(one.id, one.listen, bool(one.reason)) for one in status.scopes] == [
        ("s", f"127.0.0.1:{port}", False),
        ("twin", f"127.0.0.1:{port}", True),
    ]
    assert status.counters["queries"] == 1
    running.terminate()
    assert running.wait(5) == 0
    assert not process.control.exists()
    assert asked(port) is None
    fast = Client(process.control, timeout_s=0.2)
    with pytest.raises(DnsUnavailable, match="no dnsd at"):
        await fast.status()


async def test_explanations_and_logs_over_the_control_socket(process: Process, client: Client) -> None:
    process.start()
    port = free_port()
    await client.apply(DnsState(zones=(zone(),), scopes=(scope(port, id="t"),)))
    explanation = await client.explain("web.1", "tasks.web")
    assert (explanation.asker, explanation.records, explanation.network) == ("web.1.x", ("tasks.web. 0 IN A 10.0.0.9",), "neta")
    assert not (await client.log("web")).was_on
    assert asked(port) == ["10.0.0.2"]
    logged = await client.log("web.1.x", on=False)
    assert (logged.asker, logged.was_on, [(one.name, one.rcode) for one in logged.queries]) == ("web.1.x", True, [("web.", "NOERROR")])
    for call in (client.explain("wob", "web"), client.log("wob")):
        with pytest.raises(ConfigError, match=r"no task 'wob' on this node: did you mean web\.1\.x\?"):
            await call
    # The same connection goes on.
    assert [(one.type, one.rcode, one.count) for one in (await client.status()).answers] == [("A", "NOERROR", 1)]


async def test_killed_and_back_from_the_state_file(process: Process, client: Client) -> None:
    running = process.start()
    port = free_port()
    await client.apply(DnsState(zones=(zone(services=500),), scopes=(scope(port),)))
    running.kill()
    running.wait()
    assert asked(port) is None
    assert process.control.exists()
    process.start()
    await until(lambda: asked(port) is not None)
    assert asked(port, "s499") == ["10.0.0.2"]
    # The client goes on by itself, and the next state counts.
    assert (await client.apply(DnsState(zones=(zone(vip="10.0.0.3"),), scopes=(scope(port),)))).failed == {}
    assert asked(port) == ["10.0.0.3"]
    assert asked(port, "s499") == []


async def test_meshd_may_die(process: Process, client: Client) -> None:
    """Its clients, its terminal and its parent may go; dnsd stays."""
    port = free_port()
    starter = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=-3, stderr=-3).pid)"
    command = [sys.executable, "-m", "dnsd", "--control", str(process.control)]
    started = subprocess.run([sys.executable, "-c", starter, *command], cwd=PROJECT, capture_output=True, text=True, check=True)  # noqa: ASYNC221
    pid = int(started.stdout)
    try:
        await client.apply(DnsState(zones=(zone(),), scopes=(scope(port),)))
        await client.close()
        os.kill(pid, signal.SIGHUP)
        assert asked(port) == ["10.0.0.2"]
        assert (await client.status()).pid == pid
    finally:
        os.kill(pid, signal.SIGTERM)
        await until(lambda: not process.control.exists())


async def test_a_zone_is_sent_once(process: Process, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    real = Client._exchange

    async def spy(self: Client, request: Any) -> Any:
        if hasattr(request, "bodies"):
            sent.append(len(request.bodies))
        return await real(self, request)

    monkeypatch.setattr(Client, "_exchange", spy)
    process.start()
    port = free_port()
    one, two = zone("a"), zone("b", "10.0.0.3")
    await client.apply(DnsState(zones=(one, two), scopes=(scope(port),)))
    await client.apply(DnsState(zones=(one, two), scopes=(scope(port, "b"),)))
    assert asked(port) == ["10.0.0.3"]
    await client.apply(DnsState(zones=(one, zone("b", "10.0.0.4")), scopes=(scope(port, "b"),)))
    assert asked(port) == ["10.0.0.4"]
    # Another client learns what is there already.
    other = Client(process.control)
    await other.apply(DnsState(zones=(one,), scopes=(scope(port),)))
    # And what that one dropped is asked for again.
    await client.apply(DnsState(zones=(one, zone("b", "10.0.0.4")), scopes=(scope(port, "b"),)))
    assert asked(port) == ["10.0.0.4"]
    await other.close()
    assert sent == [2, 0, 1, 0, 0, 1]


async def test_refused_states_change_nothing(process: Process, client: Client) -> None:
    process.start()
    port = free_port()
    await client.apply(DnsState(zones=(zone(),), scopes=(scope(port),)))
    with pytest.raises(ConfigError, match="scope 's' is given more than once"):
        await client.apply(DnsState(scopes=(scope(port), scope(port))))
    with pytest.raises(ConfigError, match="more than once"):
        await client.apply(DnsState(zones=(zone(), zone(vip="10.0.0.7"))))
    assert asked(port) == ["10.0.0.2"]
    assert (await client.status()).counters["applied"] == 1


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\5hello", b"\xff\xff\xff\xff", b"\0\0\0\2\x81\xa1", b"\0\0"])
async def test_junk_on_the_control_socket(process: Process, client: Client, junk: bytes) -> None:
    process.start()
    await client.status()
    reader, writer = await asyncio.open_unix_connection(str(process.control))
    writer.write(junk)
    writer.write_eof()
    await asyncio.wait_for(reader.read(), 3)
    writer.close()
    assert (await client.status()).counters["queries"] == 0


async def test_something_else_on_the_other_end(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    conversations = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.append(writer)
        writer.write(b"220 mail.example.com ESMTP\r\n" * 10)

    server = await asyncio.start_unix_server(greet, str(path))
    try:
        with pytest.raises(RemoteProtocolError, match=r"no dnsd control socket|can't be read"):
            await Client(path, timeout_s=1).status()
    finally:
        for writer in conversations:
            writer.close()
        server.close()


async def test_only_one_serves_a_control_socket(process: Process, client: Client) -> None:
    process.start()
    await client.status()
    second = process.start()
    _, error = second.communicate(timeout=5)
    assert second.returncode == 2
    assert error.strip() == f"dnsd: another dnsd already serves {process.control}: only one can; end it first or choose another path"
    # The first one goes on, its socket is still there.
    await client.close()
    assert (await client.status()).pid == process.running[0].pid


async def test_what_is_no_socket_is_not_replaced(process: Process, tmp_path: Path) -> None:
    process.control.write_text("precious")
    ended = process.start()
    _, error = ended.communicate(timeout=5)
    assert (ended.returncode, process.control.read_text()) == (2, "precious")
    assert "is no socket" in error
    ended = process.start("--control", str(tmp_path / "nowhere" / "sock"))
    _, error = ended.communicate(timeout=5)
    assert ended.returncode == 2
    assert error.strip() == f"dnsd: the control socket {tmp_path}/nowhere/sock can't be created: No such file or directory"


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80"])
async def test_a_broken_state_file_is_no_obstacle(process: Process, client: Client, content: bytes) -> None:
    process.state.write_bytes(content)
    process.start()
    port = free_port()
    await client.apply(DnsState(zones=(zone(),), scopes=(scope(port),)))
    loaded = state_file.load(process.state)
    assert loaded is not None
    assert [one.decode() for one in loaded.zones.values()] == [zone()]


async def test_an_unwritable_state_file_is_said(process: Process, client: Client, tmp_path: Path) -> None:
    process.start("--control", str(process.control), "--state-file", str(tmp_path / "gone" / "state"))
    port = free_port()
    applied = await client.apply(DnsState(zones=(zone(),), scopes=(scope(port),)))
    assert applied.problems == (f"the state file {tmp_path}/gone/state can't be written: No such file or directory",)
    assert asked(port) == ["10.0.0.2"]


def test_a_state_of_another_boot_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    body = EncodedZone(encode(zone())).packed
    inside = scope(53, id="inside", netns="/proc/1/ns/net")
    state_file.save(path, {"digest": body}, (scope(53), inside), {})
    loaded = state_file.load(path)
    # A scope whose namespace nobody wrote down could be anywhere by now.
    assert loaded is not None
    assert [one.id for one in loaded.scopes] == ["s"]
    state_file.save(path, {"digest": body}, (scope(53), inside), {"inside": "4:1"})
    loaded = state_file.load(path)
    assert loaded is not None
    assert [one.id for one in loaded.scopes] == ["s", "inside"]
    monkeypatch.setattr(state_file, "_boot_id", lambda: "another")
    assert state_file.load(path) is None
    assert state_file.load(tmp_path / "none") is None


async def test_more_sockets_than_the_soft_limit(process: Process, client: Client) -> None:
    process.start(by=("sh", "-c", 'ulimit -S -n 96; exec "$@"', "sh"))
    scopes = tuple(ScopeSpec(id=f"s{n}", netns="", networks=("a",), listen=f"127.0.1.{n}:0") for n in range(1, 101))
    assert (await client.apply(DnsState(zones=(zone(),), scopes=scopes))).failed == {}


def test_too_many_sockets_are_said() -> None:
    """As in a process whose hard limit is too low."""
    held, limits = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    request = Request("", ("127.0.0.1", 0))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], 512), limits[1]))
        with pytest.raises(ConfigError, match="may not open more files; raise its limit"):
            while True:
                held.append(open_sockets(request))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        close_all(held)


async def test_reopened_sockets_are_used_or_closed(tmp_path: Path) -> None:
    """What is asked between the sockets' opening and all the rest is answered; if there is no rest, they are free again."""
    path, port = tmp_path / "state", free_port()
    state_file.save(path, {"digest": EncodedZone(encode(zone())).packed}, (scope(port),), {})
    for control in (tmp_path / "sock", tmp_path / "nowhere" / "sock"):
        reopened = reopen(path)
        assert [place for place, _ in reopened.opened.items()] == [("", f"127.0.0.1:{port}", "")]
        server = Server()
        serving = Control(server, control, path)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asker:
            asker.connect(("127.0.0.1", port))
            asker.send(query("web"))
            if control.parent.exists():
                await serving.open(reopened)
                async with asyncio.timeout(5):
                    assert values(DNSRecord.parse(await asyncio.get_running_loop().sock_recv(asker, 4096))) == ["10.0.0.2"]
                await serving.close()
            else:
                with pytest.raises(ConfigError, match="can't be created"):
                    await serving.open(reopened)
        await server.close()
        assert asked(port) is None


@pytest.mark.root
async def test_killed_with_scopes_in_namespaces(process: Process, client: Client) -> None:
    """Two sandboxes; dnsd is killed, one sandbox ends; back by itself, it serves the other within a second."""
    holders = [await asyncio.create_subprocess_exec("unshare", "--net", "sh", "-c", "ip link set lo up; exec sleep 600") for _ in range(2)]
    try:
        own = os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116
        paths = [f"/proc/{holder.pid}/ns/net" for holder in holders]
        await until(lambda: all(os.stat(path).st_ino != own for path in paths))  # noqa: PTH116
        scopes = tuple(ScopeSpec(id=path, netns=path, networks=("a",)) for path in paths)
        running = process.start()
        assert (await client.apply(DnsState(zones=(zone(services=300),), scopes=scopes))).failed == {}
        running.kill()
        running.wait()
        holders[1].kill()
        await holders[1].wait()
        process.start()
        status = await client.status()
        assert [bool(one.reason) for one in status.scopes] == [path == paths[1] for path in sorted(paths)]
    finally:
        for holder in holders:
            with contextlib.suppress(ProcessLookupError):
                holder.kill()
            await holder.wait()
