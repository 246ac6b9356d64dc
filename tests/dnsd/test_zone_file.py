"""Zones written by hand: what they may say, what is said about bad ones, and the little server that follows its file."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from dnslib import QTYPE, RR, A

from dnsd import ConfigError, RouteSpec
from dnsd.zone_file import parse_zone
from tests.dnsd.ask import ask, until, values
from tests.dnsd.process import Process, asked, free_port
from tests.dnsd.upstream import Upstream

TOML = """
network = "shop"
forward = false
[[services]]
name = "web"
vips = ["10.0.0.2"]
ports = [{ name = "http", port = 80 }]
tasks = [{ name = "web.1", slot = 1, addresses = ["10.0.0.3"] }]
[[containers]]
name = "tool"
addresses = ["10.0.0.4"]
"""
YAML = """
network: shop
forward: false
services:
  - name: web
    vips: [10.0.0.2]
    ports: [{name: http, port: 80}]
    tasks: [{name: web.1, slot: 1, addresses: [10.0.0.3]}]
containers:
  - {name: tool, addresses: [10.0.0.4]}
"""


def test_toml_and_yaml_say_the_same() -> None:
    assert parse_zone(TOML.encode(), yaml=False, name="a") == parse_zone(YAML.encode(), yaml=True, name="a")


def test_an_empty_file_is_an_empty_zone() -> None:
    for yaml in (True, False):
        zone = parse_zone(b"", yaml=yaml, name="a")
        assert (zone.name, zone.services, zone.containers, zone.forward) == ("local", (), (), True)


def test_hosts_and_routes() -> None:
    zone = parse_zone(b'[hosts]\ndb = "10.0.0.9"\n"nas.lan" = ["10.0.0.8", "fd00::8"]\n[[routes]]\ndomain = "corp"', yaml=False, name="a")
    assert [(host.name, host.addresses) for host in zone.containers] == [("db", ("10.0.0.9",)), ("nas.lan", ("10.0.0.8", "fd00::8"))]
    assert zone.routes == (RouteSpec(domain="corp"),)


@pytest.mark.parametrize(
    ("content", "sentences"),
    [
        ("servces = []", ["z.toml: Object contains unknown field `servces`"]),
        ("[[services]]\nvips = []", ["z.toml: services[0]: Object missing required field `name`"]),
        ('[[services]]\nname = "w"\nvips = "10.0.0.1"', ["z.toml: services[0].vips: Expected `array`, got `str`"]),
        ('[[services]]\nname = "w"\nports = [{port = 0}]', ["z.toml: services[0].ports[0].port: Expected `int` >= 1"]),
        (
            '[[services]]\nname = "w"\nports = [{port = 1, protocol = "x"}]',
            ["z.toml: services[0].ports[0].protocol: Invalid enum value 'x'"],
        ),
        ("vip_ttl_s = -1", ["z.toml: vip_ttl_s: Expected `int` >= 0"]),
        ('network = ""', ["z.toml: network: '' is no name"]),
        ('upstreams = ["10.0.0.1", "nowhere"]', ["z.toml: upstreams[1]: 'nowhere' is no address"]),
        ('[[routes]]\ndomain = "a..b"\nupstreams = ["x"]', ["routes[0].domain: 'a..b' is no name", "routes[0].upstreams[0]: 'x' is no"]),
        ('[hosts]\na = "b"\nc = ["d"]', ["z.toml: hosts.a: 'b' is no address", "z.toml: hosts.c[0]: 'd' is no address"]),
        (
            '[[services]]\nname = "a"\naliases = ["b", ""]\n[[services]]\nname = "A"\n'
            'vips = ["10.0.0.300"]\ntasks = [{name = "t", addresses = ["x"]}]',
            [
                "z.toml: services[0].aliases[1]: '' is no name",
                "z.toml: services[1].name: services[0] already has the name 'A'",
                "z.toml: services[1].vips[0]: '10.0.0.300' is no address",
                "z.toml: services[1].tasks[0].addresses[0]: 'x' is no address",
            ],
        ),
        ('[[containers]]\nname = "x"\naddress = "10.0.0.1"', ["z.toml: containers[0]: Object contains unknown field `address`"]),
        ("[[", ["z.toml: Invalid initial character"]),
    ],
)
def test_bad_files(content: str, sentences: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_zone(content.encode(), yaml=False, name="z.toml")
    lines = str(raised.value).splitlines()
    assert len(lines) == len(sentences)
    for line, sentence in zip(lines, sentences, strict=True):
        assert sentence in line


@pytest.mark.parametrize("content", ["a: [", "services: 1", "- x", "\xff", "hosts: {1: 10.0.0.1}"])
def test_bad_yaml_is_said_in_one_line(content: str) -> None:
    with pytest.raises(ConfigError, match=r"^z\.yaml: .+$") as raised:
        parse_zone(content.encode("latin-1"), yaml=True, name="z.yaml")
    assert len(str(raised.value).splitlines()) == 1


# -- the plain little server ----------------------------------------------------------------------------------------------------


def serving(process: Process, path: Path, *ports: int) -> subprocess.Popen[str]:
    listens = [argument for port in ports for argument in ("--listen", f"127.0.0.1:{port}")]
    running = process.start("--zone", str(path), *listens)
    assert running.stdout is not None
    assert running.stdout.readline() == f"dnsd: serving {path} on {', '.join(f'127.0.0.1:{port}' for port in ports)}\n"
    return running


@pytest.mark.parametrize(("name", "content"), [("z.toml", TOML), ("z.yaml", YAML)])
async def test_plain_server(process: Process, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    ports = free_port(), free_port()
    running = serving(process, tmp_path / name, *ports)
    for port in ports:
        assert asked(port, "web.shop") == ["10.0.0.2"]
        assert asked(port, "tasks.web") == ["10.0.0.3"]
        assert asked(port, "tool") == ["10.0.0.4"]
    running.send_signal(signal.SIGINT)
    assert running.wait(5) == 0


async def test_a_changed_file_is_taken_a_bad_one_is_not(process: Process, tmp_path: Path) -> None:
    path, port = tmp_path / "z.toml", free_port()
    path.write_text(TOML)
    running = serving(process, path, port)
    # Replaced, as editors do; written in place; and read again when told to.
    (tmp_path / "new").write_text(TOML.replace("10.0.0.2", "10.0.0.22"))
    (tmp_path / "new").rename(path)
    await until(lambda: asked(port) == ["10.0.0.22"])
    path.write_text(TOML.replace("10.0.0.2", "10.0.0.300"))
    running.send_signal(signal.SIGHUP)
    path.unlink()
    assert asked(port) == ["10.0.0.22"]
    path.write_text(TOML.replace("10.0.0.2", "10.0.0.23"))
    await until(lambda: asked(port) == ["10.0.0.23"])
    stamp = path.stat()
    path.write_text(TOML.replace("10.0.0.2", "10.0.0.24"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    running.send_signal(signal.SIGHUP)
    await until(lambda: asked(port) == ["10.0.0.24"])
    path.write_text("vip_ttl_s = -1")
    running.send_signal(signal.SIGHUP)
    assert running.stderr is not None
    while "zone-kept" not in (line := running.stderr.readline()) or "vip_ttl_s" not in line:
        assert line
    assert asked(port) == ["10.0.0.24"]
    running.terminate()
    assert running.wait(5) == 0


async def test_authoritative_and_forwarding(process: Process, tmp_path: Path) -> None:
    def script(record: Any, tcp: bool) -> Any:
        reply = record.reply()
        reply.add_answer(RR(record.q.qname, QTYPE.A, ttl=60, rdata=A("192.0.2.1")))
        return reply

    async with Upstream(script) as upstream:
        path, port = tmp_path / "z.toml", free_port()
        path.write_text(f'upstreams = ["{upstream.address}"]\n[hosts]\ndb = "10.0.0.9"\n"www.example.org" = "10.0.0.8"')
        serving(process, path, port)
        address = ("127.0.0.1", port)
        assert values(await ask(address, "db.local")) == ["10.0.0.9"]
        assert values(await ask(address, "www.example.org")) == ["10.0.0.8"]
        assert values(await ask(address, "9.0.0.10.in-addr.arpa", "PTR")) == ["db.local."]
        assert (await ask(address, "nosuch")).header.rcode == 3
        assert values(await ask(address, "example.org")) == ["192.0.2.1"]
        assert upstream.asked == [("example.org.", False)]


def test_check(process: Process, tmp_path: Path) -> None:
    path = tmp_path / "z.toml"
    for content, code, out, error in (
        (TOML, 0, f"dnsd: {path} is good: 1 services, 1 hosts, network shop\n", ""),
        (
            '[hosts]\na = "b"\nc = "d"',
            2,
            "",
            f"dnsd: {path}: hosts.a: 'b' is no address: expected one such as 10.0.0.2 or fd00::2\n"
            f"dnsd: {path}: hosts.c: 'd' is no address: expected one such as 10.0.0.2 or fd00::2\n",
        ),
    ):
        path.write_text(content)
        ended = process.start("--zone", str(path), "--check")
        assert ended.communicate(timeout=20) == (out, error)
        assert ended.returncode == code


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give either --control SOCK or --zone FILE"),
        (["--zone", "a", "--control", "b"], "give either --control SOCK or --zone FILE"),
        (["--zone", "a", "--state-file", "b"], "--state-file goes with --control"),
        (["--control", "b", "--check"], "--listen, --metrics and --check go with --zone"),
        (["--zone", "/nonexistent.toml"], "the zone file /nonexistent.toml can't be read: No such file or directory"),
        (["--zone", "/etc/passwd"], "the zone file /etc/passwd must end in .toml, .yaml or .yml"),
        (["--zone", "/nonexistent.toml", "--listen", "here"], "'here' is no address"),
    ],
)
def test_bad_arguments(process: Process, arguments: list[str], sentence: str) -> None:
    ended = process.start(*(arguments or ["--state-file", "x"]))
    _, error = ended.communicate(timeout=20)
    assert ended.returncode == 2
    assert sentence in error
    assert "Traceback" not in error
