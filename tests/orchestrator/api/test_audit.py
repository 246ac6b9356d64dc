"""The audit log: every change with who, what and result, and nothing that is secret."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from orchestrator.api.app import serve
from orchestrator.api.audit import Target, target
from orchestrator.api.endpoints import TcpEndpoint, UnixEndpoint
from orchestrator.audit_log import AuditLog, Record, read
from orchestrator.cli.audit import moment
from orchestrator.cli.main import main
from orchestrator.errors import ConfigError
from orchestrator.model import Service
from tests.orchestrator.api.fakes import FakeBackend
from tests.orchestrator.api.tls import client_context, files, free_port

SECRET = "the cat's name is Marmalade"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/services/create", Target("create", "service")),
        ("POST", "/services/web/update", Target("update", "service", "web")),
        ("DELETE", "/services/web", Target("remove", "service", "web")),
        ("POST", "/swarm/init", Target("init", "cluster")),
        ("POST", "/swarm/unlock", Target("unlock", "cluster")),
        ("POST", "/mesh/v1/restore", Target("restore", "cluster")),
        ("PUT", "/mesh/v1/stacks/shop", Target("deploy", "stack", "shop")),
        ("POST", "/mesh/v1/stacks/shop/rollback", Target("rollback", "stack", "shop")),
        ("DELETE", "/mesh/v1/stacks/shop", Target("remove", "stack", "shop")),
        ("POST", "/mesh/v1/stacks/shop/plan", None),
        ("POST", "/networks/n/connect", Target("connect", "network", "n")),
        ("POST", "/containers/create", Target("create", "container")),
        ("POST", "/containers/c/start", Target("start", "container", "c")),
        ("PUT", "/containers/c/archive", Target("archive", "container", "c")),
        ("POST", "/exec/e/start", Target("start", "exec", "e")),
        ("POST", "/images/create", Target("create", "image")),
        ("POST", "/images/reg.example:5000/a/b/push", Target("push", "image", "reg.example:5000/a/b")),
        ("DELETE", "/images/a/b:1", Target("remove", "image", "a/b:1")),
        ("POST", "/volumes/prune", Target("prune", "volume")),
        ("POST", "/build", Target("post", "build")),
        ("POST", "/commit", Target("post", "commit")),
        ("GET", "/mesh/v1/backup", Target("read", "backup")),
        ("GET", "/swarm/unlockkey", Target("read", "unlockkey")),
        *(("GET", path, None) for path in ("/services", "/services/web", "/containers/c/logs", "/info", "/")),
        *(("HEAD", path, None) for path in ("/_ping", "/containers/c/archive")),
        *(("POST", path, None) for path in ("/containers/c/wait", "/containers/c/resize", "/exec/e/resize", "/auth", "/mesh/v1/trace")),
    ],
)  # fmt: skip
def test_what_a_request_changes(method: str, path: str, expected: Target | None) -> None:
    assert target(method, path) == expected


@asynccontextmanager
async def audited(directory: Path, certificates: Path) -> AsyncIterator[tuple[Path, FakeBackend, aiohttp.ClientSession, str]]:
    """A manager that keeps an audit log; a session on its unix socket; its address over TLS."""
    backend, path, endpoint = (
        FakeBackend(str(directory / "engine.sock")),
        str(directory / "api.sock"),
        TcpEndpoint("127.0.0.1", free_port(), tls=True),
    )
    audit_log = AuditLog(directory / "audit" / "audit.log")
    runner = await serve(backend, [UnixEndpoint(path), endpoint], tls=files(certificates), audit_log=audit_log)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
        yield directory / "audit" / "audit.log", backend, session, f"https://127.0.0.1:{endpoint.port}"
    await runner.cleanup()
    audit_log.close()


async def post(session: aiohttp.ClientSession, url: str, body: Any, **options: Any) -> Any:
    async with session.post(url, json=body, **options) as response:
        return await response.json(content_type=None)


async def test_who_changed_what_with_which_result(tmp_path: Path, certificates: Path) -> None:
    began = datetime.now(UTC)
    async with audited(tmp_path, certificates) as (path, backend, session, far):
        await post(session, "http://d/v1.44/swarm/init", {"AdvertiseAddr": "10.0.0.1"})
        spec = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "busybox", "Env": [f"CAT={SECRET}"]}}}
        made = await post(
            session,
            "http://d/v1.44/services/create",
            spec,
            headers={"X-Registry-Auth": base64.urlsafe_b64encode(f'{{"password": "{SECRET}"}}'.encode()).decode()},
        )
        version = backend.store.snapshot().get(Service, made["ID"]).version.index
        async with aiohttp.ClientSession() as other:
            tls = client_context(certificates, "alice")
            await post(other, f"{far}/v1.44/services/web/update?version={version}", {**spec, "Labels": {"a": "b"}}, ssl=tls)
            await post(other, f"{far}/services/web/update?version={version}&note=Marmalade", spec, ssl=tls)
            data = base64.b64encode(SECRET.encode()).decode()
            await post(other, f"{far}/v1.44/secrets/create", {"Name": "cat", "Data": data}, ssl=tls)
            async with other.get(f"{far}/v1.44/services", ssl=tls) as response:
                assert response.status == 200
            async with other.delete(f"{far}/v1.44/services/nosuch", ssl=tls) as response:
                assert response.status == 404
        newer = backend.store.snapshot().get(Service, made["ID"]).version.index
        async with session.delete("http://d/services/web") as response:
            assert response.status == 200
        records = list(read(path))
    shown = [(r.action, r.kind, r.name, bool(r.id), r.from_version, r.to_version, r.status) for r in records]
    secret_version = records[4].to_version
    assert shown == [
        ("init", "cluster", "", True, 0, records[0].to_version, 200),
        ("create", "service", "web", True, 0, version, 201),
        ("update", "service", "web", True, version, newer, 200),
        ("update", "service", "web", True, newer, newer, 500),
        ("create", "secret", "cat", True, 0, secret_version, 201),
        ("remove", "service", "nosuch", False, 0, 0, 404),
        ("remove", "service", "web", True, newer, 0, 200),
    ]
    assert newer > version > 0 and secret_version
    assert [r.failed for r in records] == [False, False, False, True, False, True, False]
    local, remote = records[1], records[2]
    assert (local.transport, local.who, local.address) == ("unix", "root" if os.geteuid() == 0 else local.who, "")
    assert local.detail.startswith(f"uid={os.geteuid()} pid={os.getpid()} ")
    assert (remote.transport, remote.who, remote.detail, remote.address) == ("tls", "alice", "commonName=alice", "127.0.0.1")
    assert all(began <= record.time <= datetime.now(UTC) for record in records)
    content = path.read_text()
    assert "Marmalade" not in content and data not in content
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


async def test_a_client_that_goes_away_leaves_a_record(tmp_path: Path, certificates: Path) -> None:
    async with audited(tmp_path, certificates) as (path, backend, session, _):
        begun = asyncio.Event()

        async def forever(request: object) -> str:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        backend.leave = forever  # type: ignore[method-assign]
        backend.state = "worker"
        call = asyncio.create_task(post(session, "http://d/swarm/leave", None))
        await asyncio.wait_for(begun.wait(), 20)
        call.cancel()
        async with asyncio.timeout(20):
            while not (records := list(read(path))):
                await asyncio.sleep(0.02)
        assert [(r.action, r.status, r.failed) for r in records] == [("leave", 0, True)]


def a_record(number: int) -> Record:
    return Record(
        time=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number),
        transport="unix",
        who="alice" if number % 2 else "bob",
        method="POST",
        path=f"/services/{number}/update",
        action="update",
        kind="service",
        name=f"s{number}",
        from_version=number,
        to_version=number + 1,
        status=200 if number % 3 else 409,
    )


def test_rotation_keeps_the_newest_in_order_and_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for begin in (0, 50):
        # a restart in between goes on in the same file
        audit_log = AuditLog(path, max_bytes=2000, kept=2)
        for number in range(begin, begin + 50):
            audit_log.write(a_record(number))
        audit_log.close()
    with path.open("a") as file:
        file.write('{"time":"2026-01-01T0')
    numbers = [record.from_version for record in read(path)]
    assert numbers == list(range(100 - len(numbers), 100))
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "audit.log.1", tmp_path / "audit.log.2"]
    assert all(file.stat().st_size <= 2100 and file.stat().st_mode & 0o77 == 0 for file in tmp_path.iterdir())


def test_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.symlink_to("/dev/full")
    audit_log = AuditLog(path)
    audit_log.write(a_record(1))
    audit_log.write(a_record(2))
    with pytest.raises(ConfigError, match="--audit-log"):
        AuditLog(Path("/dev/null/audit.log"))


def test_the_command_line_filters(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit_log = AuditLog(path)
    for number in range(20):
        audit_log.write(a_record(number))

    def lines(*options: str) -> list[int]:
        done = CliRunner().invoke(main, ["audit", "--log", str(path), "--json", *options])
        assert done.exit_code == 0, done.output
        return [int(line.split('"name":"s')[1].split('"')[0]) for line in done.output.splitlines()]

    assert lines() == list(range(20))
    assert lines("--last", "3") == [17, 18, 19]
    assert lines("--who", "alice", "--last", "2") == [17, 19]
    assert lines("--failed") == [0, 3, 6, 9, 12, 15, 18]
    assert lines("--what", "s1", "--failed") == [12, 15, 18]
    assert lines("--since", "2026-01-01T00:18:00+00:00") == [18, 19]
    table = CliRunner().invoke(main, ["audit", "--log", str(path), "--last", "1"]).output
    assert [word for word in ("alice", "update", "service s19", "19 -> 20", "200") if word not in table] == []
    for options, sentence in (
        (["--since", "yesterday"], "give a duration such as 90m"),
        (["--log", str(tmp_path / "no")], "no audit log at"),
    ):
        done = CliRunner().invoke(main, ["audit", "--log", str(path), *options])
        assert (done.exit_code, sentence in done.output) == (2, True)


def test_durations() -> None:
    now = datetime(2026, 1, 10, tzinfo=UTC)
    assert moment("90m", now) == now - timedelta(minutes=90)
    assert moment("3d", now) == now - timedelta(days=3)
