"""etcd as a child: it never outlives its parent, comes back when it dies, joins and leaves a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError, MemberRemoved, StoreUnavailable
from orchestrator.model import Claim
from orchestrator.store import Put, wait_for
from orchestrator.store import etcd_process as module
from orchestrator.store.etcd import EtcdStore
from orchestrator.store.etcd_process import EtcdConfig, EtcdProcess, check_version, command_line, peer_url
from tests.orchestrator.store.etcds import certificates, eventually, free_ports

Start = Callable[[EtcdConfig], Awaitable[EtcdProcess]]


def config_in(directory: Path, name: str = "m0") -> EtcdConfig:
    tls = certificates(directory) if not (directory / "tls").exists() else None
    client_port, peer_port = free_ports(2)
    return EtcdConfig(
        name=name,
        directory=directory / name,
        tls=tls or module.TLSFiles(*(directory / "tls" / part for part in ("ca.crt", "etcd.crt", "etcd.key"))),
        client_port=client_port,
        peer_addr="127.0.0.1",
        peer_port=peer_port,
        heartbeat_ms=50,
        election_ms=400,
    )


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started: list[EtcdProcess] = []

    async def start_one(config: EtcdConfig) -> EtcdProcess:
        process = EtcdProcess(config)
        started.append(process)
        await process.start()
        await process.wait_healthy(15)
        return process

    yield start_one
    for process in started:
        await process.stop()


def alive(pid: int) -> bool:
    return module._start_time(pid) != 0


# ---- decided without a process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.4.0", "3.4.23", "3.5.6", "3.5.26"])
def test_good_versions(version: str) -> None:
    assert check_version(f"etcd Version: {version}\nGit SHA: x\n") == version


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(f"etcd Version: 3.5.{minor}", "lose or corrupt data") for minor in range(6)]
    + [("etcd Version: 3.3.27", "not supported"), ("etcd Version: 3.6.0", "not supported"), ("hello", "unknown: 'hello'")],
)
def test_bad_versions_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_version(text)


def test_the_command_line_of_a_joiner(tmp_path: Path) -> None:
    config = replace(config_in(tmp_path), joining=True, initial_cluster=(("a", "https://10.0.0.1:2380"), ("m0", "https://10.0.0.2:2380")))
    arguments = command_line(config)
    assert "--initial-cluster-state=existing" in arguments
    assert "--initial-cluster=a=https://10.0.0.1:2380,m0=https://10.0.0.2:2380" in arguments
    assert {"--client-cert-auth=true", "--peer-client-cert-auth=true", "--enable-v2=false"} <= set(arguments)
    assert peer_url("fd00::1", 2380) == "https://[fd00::1]:2380"


# ---- one process --------------------------------------------------------------------------------------------------------------


async def test_no_binary_and_no_directory(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    with pytest.raises(ConfigError, match="there is no etcd-that-is-not-there in PATH: install etcd-server"):
        await EtcdProcess(replace(config, binary="etcd-that-is-not-there")).start()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be used: Not a directory"):
        await EtcdProcess(replace(config, directory=tmp_path / "file")).start()


async def test_a_disk_without_room_for_its_pid_is_told_and_nothing_is_left_running(tmp_path: Path, start: Start) -> None:
    config = config_in(tmp_path)
    # what can't be written stands for a full disk
    (config.directory / "etcd.new").mkdir(parents=True)
    etcd = EtcdProcess(config)
    with pytest.raises(ConfigError, match=r"etcd can't be started in .*: Is a directory"):
        await etcd.start()
    pid = etcd.pid
    await etcd.stop()
    assert etcd.pid == 0 and (not pid or not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize("port", ["client_port", "peer_port"])
async def test_a_taken_port_and_a_foreign_address_are_told(tmp_path: Path, start: Start, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        config = config_in(tmp_path)
        config = replace(config, client_port=number) if port == "client_port" else replace(config, peer_port=number)
        with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{number}: another program uses it"):
            await start(config)
    with pytest.raises(ConfigError, match=r"192\.0\.2\.7 is not an address of this node"):
        await start(replace(config, client_port=free_ports(1)[0], peer_addr="192.0.2.7"))


async def test_an_etcd_that_ends_at_once_is_told_in_its_own_words(tmp_path: Path, start: Start) -> None:
    config = config_in(tmp_path)
    with pytest.raises(ConfigError, match=r"etcd ended \(exit code 1\): .*couldn't find local name \"m0\""):
        await start(replace(config, initial_cluster=(("somebody else", config.peer_url),)))


async def test_it_comes_back_when_it_dies_and_ends_when_told(tmp_path: Path, start: Start) -> None:
    process = await start(config_in(tmp_path))
    running = asyncio.create_task(process.run())
    store = await EtcdStore.open([process.config.endpoint], process.config.tls)
    await store.commit([Put(Claim(id="before"))])
    first = process.pid
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: process.pid not in (0, first), what="restarted")
    await process.wait_healthy(15)
    assert process.restarts == 1 and not alive(first)
    await eventually(lambda: store.available)
    await store.commit([Put(Claim(id="after"))])
    assert {claim.id for claim in store.snapshot().all(Claim)} == {"before", "after"}
    await store.close()
    last = process.pid
    await process.stop()
    async with asyncio.timeout(5):
        await running
    assert not alive(last) and process.pid == 0


async def test_its_log_is_bounded(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOG_CHECK_S", 0.05)
    process = await start(config_in(tmp_path))
    running = asyncio.create_task(process.run())
    with open(process.log_path, "ab") as log:
        log.write(b"x" * (module._LOG_SIZE_BYTES + 1))
    await eventually(lambda: process.log_path.stat().st_size < 100_000)
    assert process.log_path.with_suffix(".log.1").stat().st_size > module._LOG_SIZE_BYTES
    assert process.log_path.stat().st_mode & 0o777 == 0o600
    await process.stop()
    await running


PARENT = """
import asyncio, sys
from pathlib import Path
{loop}
from orchestrator.store.etcd_process import EtcdConfig, EtcdProcess
from orchestrator.store.etcd_tls import TLSFiles
tls = Path({tls!r})
async def main():
    files = TLSFiles(tls / "ca.crt", tls / "etcd.crt", tls / "etcd.key")
    process = EtcdProcess(EtcdConfig(name="m0", directory=Path({directory!r}), tls=files,
        client_port={client_port}, peer_addr="127.0.0.1", peer_port={peer_port}, heartbeat_ms=50, election_ms=400))
    await process.start()
    await process.wait_healthy()
    print(process.pid, flush=True)
    await process.run()
{run}
"""


def parent(config: EtcdConfig, *, uvloop: bool) -> tuple[subprocess.Popen[str], int]:
    """A process that runs this etcd, and etcd's pid."""
    script = PARENT.format(
        tls=str(config.tls.ca.parent),
        directory=str(config.directory),
        client_port=config.client_port,
        peer_port=config.peer_port,
        loop="import uvloop" if uvloop else "",
        run="uvloop.run(main())" if uvloop else "asyncio.run(main())",
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("uvloop", [False, True])
async def test_it_dies_with_its_parent(tmp_path: Path, uvloop: bool) -> None:
    process, pid = parent(config_in(tmp_path), uvloop=uvloop)
    try:
        assert alive(pid) and os.getpgid(pid) == pid
        # garbage collection, idle time and other threads' ends don't end it
        await asyncio.sleep(0.5)
        assert alive(pid)
        process.kill()
        process.wait()
        await eventually(lambda: not alive(pid), timeout_s=3, what="etcd ended")
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_a_leftover_is_ended_first_and_the_data_adopted(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """An etcd that outlived its parent, because it was stopped when the signal came, holds ports and database."""
    monkeypatch.setattr(module, "_STOP_GRACE_S", 0.5)
    config = config_in(tmp_path)
    process, pid = parent(config, uvloop=False)
    try:
        store = await EtcdStore.open([config.endpoint], config.tls)
        await store.commit([Put(Claim(id="kept"))])
        await store.close()
        os.kill(pid, signal.SIGSTOP)
        process.kill()
        process.wait()
        assert alive(pid)
        second = await start(config)
        assert not alive(pid) and second.pid != pid
        store = await EtcdStore.open([config.endpoint], config.tls)
        assert store.snapshot().claim("kept") is not None
        await store.close()
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("what", ["reused pid", "another start time", "garbage", "gone"])
async def test_a_pid_file_never_costs_a_stranger_its_life(tmp_path: Path, start: Start, what: str) -> None:
    config = config_in(tmp_path)
    config.directory.mkdir()
    # the second one even looks like ours, but started at another time
    looks_ours = f"--data-dir={config.data_dir}" if what == "another start time" else "x"
    stranger = await asyncio.create_subprocess_exec("sh", "-c", "sleep 60 & wait", looks_ours, start_new_session=True)
    try:
        started = module._start_time(stranger.pid)
        text = {
            "reused pid": f"{stranger.pid} {started}\n",
            "another start time": f"{stranger.pid} {started - 1}\n",
            "garbage": "\0\0",
            "gone": "4194300 17\n",
        }[what]
        (config.directory / "etcd.pid").write_text(text)
        process = await start(config)
        assert stranger.returncode is None and alive(stranger.pid)
        assert (config.directory / "etcd.pid").read_text().split()[0] == str(process.pid)
    finally:
        os.killpg(stranger.pid, signal.SIGKILL)
        await stranger.wait()


# ---- members ------------------------------------------------------------------------------------------------------------------


async def test_join_promote_kill_remove(tmp_path: Path, start: Start) -> None:
    """Two learners join one member and are promoted; a dead one is removed; what an interrupted join left is replaced."""
    first = await start(config_in(tmp_path))
    client = first.client()
    store = await EtcdStore.open([first.config.endpoint], first.config.tls)
    await store.commit([Put(Claim(id="from the beginning"))])

    async def join(name: str, *, interrupted: bool) -> EtcdProcess:
        config = config_in(tmp_path, name)
        if interrupted:
            await client.add_learner(config.peer_url)
        member, members = await client.add_learner(config.peer_url)
        assert member.is_learner and member.peer_urls == (config.peer_url,)
        known = tuple((m.name or name, m.peer_urls[0]) for m in members)
        joined = await start(replace(config, joining=True, initial_cluster=known))
        await client.promote(member.id)
        await client.promote(member.id)
        return joined

    second = await join("m1", interrupted=True)
    third = await join("m2", interrupted=False)
    members = await client.members()
    assert {m.name for m in members} == {"m0", "m1", "m2"} and not any(m.is_learner for m in members)
    with pytest.raises(ConfigError, match="is a member of etcd already"):
        await client.add_learner(third.config.peer_url)
    beside_third = await EtcdStore.open([third.config.endpoint], third.config.tls)
    assert beside_third.snapshot().claim("from the beginning") is not None
    revision = await beside_third.commit([Put(Claim(id="from the third"))])
    await wait_for(store, lambda s: s.revision >= revision, 5)

    target = next(m.id for m in members if m.name == "m2")
    await client.move_leader(target)
    status_client = third.client()
    await eventually_leads(status_client)
    await status_client.close()

    gone = next(m.id for m in members if m.name == "m1")
    await second.stop()
    await client.remove(gone)
    await client.remove(gone)
    assert {m.name for m in await client.members()} == {"m0", "m2"}
    await store.commit([Put(Claim(id="with two"))])
    with pytest.raises(ConfigError, match="no member"):
        await client.promote(gone)
    await beside_third.close()

    # one that runs hears of it, stays down and says why, however often it is started
    watching = asyncio.create_task(third.run())
    await client.remove(target)
    async with asyncio.timeout(20):
        await watching
    assert third.removed.is_set() and third.restarts == 0
    await third.start()
    with pytest.raises(MemberRemoved):
        await third.wait_healthy(10)
    await store.commit([Put(Claim(id="alone"))])
    await store.close()
    await client.close()


async def eventually_leads(client: module.EtcdClient) -> None:
    async def leads() -> bool:
        return (await client.status()).is_leader

    await eventually(leads)


async def test_alone_out_of_three_it_runs_but_is_not_healthy(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    absent = tuple((f"m{i}", peer_url("127.0.0.1", port)) for i, port in enumerate([config.peer_port, *free_ports(2)]))
    process = EtcdProcess(replace(config, initial_cluster=absent))
    try:
        await process.start()
        with pytest.raises(StoreUnavailable, match="did not become healthy within 1 s"):
            await process.wait_healthy(1.0)
        assert process.pid
    finally:
        await process.stop()
