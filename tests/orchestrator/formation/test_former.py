"""Machines on loopback addresses that come into one cluster by themselves; strangers, and who sits in between, get nothing."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from orchestrator.errors import ApiError, ConfigError
from orchestrator.formation.decision import Answer, Membership, Question, Record
from orchestrator.formation.door import PATH, Door, ask
from orchestrator.formation.former import Daemon, Former, load_record
from orchestrator.formation.order import Order, own_peer, read
from orchestrator.security.admission import split_endpoint
from orchestrator.security.identity import unverified_context
from tests.orchestrator.agent.wait import until

SECRET = b"0123456789abcdef0123456789abcdef"
QUESTION = Question(machine="m", own="10.0.0.1:2377", plan="p", founds=False)


def free_port(host: str) -> int:
    with socket.socket() as asker:
        asker.bind((host, 0))
        return int(asker.getsockname()[1])


class Machine:
    """A daemon that is in a cluster once it has founded or joined one. Its door stays open then, as the real one's TLS server answers."""

    def __init__(self, own: str, order: Order, directory: Path) -> None:
        self.own, self.order, self.directory = own, order, directory
        self.member: Membership | None = None
        self.founded = 0
        self.role = ""
        self.fails = 0
        self.former = self._former()

    def _former(self) -> Former:
        async def found(own: str) -> None:
            assert own == self.own
            self._maybe_fail()
            self.founded += 1
            self.role, self.member = "manager", Membership("c", (own,), {"worker": "W", "manager": "M"})

        async def join(own: str, managers: tuple[str, ...], token: str) -> None:
            self._maybe_fail()
            self.role = {"W": "worker", "M": "manager"}[token]
            self.member = Membership("c", managers, {"worker": "W", "manager": "M"} if token == "M" else None)

        async def addresses() -> list[str]:
            return [split_endpoint(self.own)[0]]

        daemon = Daemon(
            member=lambda: self.member,
            busy=lambda: False,
            addresses=addresses,
            listen=lambda own: split_endpoint(own or self.own),
            found=found,
            join=join,
        )
        return Former(self.order, self.directory, daemon, every_s=0.05)

    def _maybe_fail(self) -> None:
        if self.fails:
            self.fails -= 1
            raise ApiError(503, "not just now")

    async def restart(self) -> None:
        await self.former.stop()
        self.former = self._former()
        self.former.start()


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[list[Machine]]:
    """Three peers and a later one; none is started."""
    owns = [f"127.0.0.{number}:{free_port(f'127.0.0.{number}')}" for number in (2, 3, 4, 5)]
    order = Order(tuple(owns[:3]), 3, SECRET)
    made = [Machine(own, order, tmp_path / str(number)) for number, own in enumerate(owns)]
    yield made
    for machine in made:
        await machine.former.stop()


async def test_three_become_one_cluster_and_a_later_one_joins_it(machines: list[Machine]) -> None:
    *peers, later = machines
    for machine in (later, peers[0], peers[2]):
        machine.former.start()
    await until(lambda: "all 3 are there" in peers[0].former.why, "the founder says that somebody is missing", 30)
    assert f"{peers[1].own}: connection refused" in peers[0].former.why
    await until(lambda: load_record(peers[2].directory) not in (None,) and bool(load_record(peers[2].directory).follows), "a promise", 30)  # type: ignore[union-attr]
    await peers[2].restart()
    await peers[0].restart()
    assert not any(machine.member for machine in machines)
    peers[0].fails = 1
    peers[1].former.start()
    await until(lambda: all(machine.member for machine in machines), "all are in the cluster", 30)
    assert [machine.founded for machine in machines] == [1, 0, 0, 0]
    assert [machine.role for machine in machines] == ["manager", "manager", "manager", "worker"]
    await until(lambda: all((load_record(m.directory) or Record(machine="")).cluster == "c" for m in machines), "it is on record", 30)
    assert [machine.former.why for machine in machines] == [""] * 4


async def test_who_left_a_cluster_does_not_come_back_by_itself(machines: list[Machine]) -> None:
    for machine in machines[:3]:
        machine.former.start()
    await until(lambda: all(machine.member for machine in machines[:3]), "all are in the cluster", 30)
    machines[1].member = None
    await machines[1].restart()
    await until(lambda: "was in a cluster and left it" in machines[1].former.why, "it says so", 30)
    assert machines[1].member is None


async def test_a_token_file_is_tried_until_it_does(tmp_path: Path) -> None:
    token = tmp_path / "token"
    machine = Machine("127.0.0.2:1", Order(("127.0.0.9:2377",), token_file=token), tmp_path / "state")
    machine.former.start()
    try:
        await until(lambda: "can't be read" in machine.former.why, "the file is missing", 30)
        machine.fails = 2
        token.write_text("W\n")
        await until(lambda: machine.role == "worker", "it joined", 30)
        assert machine.former.door is None
    finally:
        await machine.former.stop()


# ---- the door ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    made = Door(SECRET, lambda question: Answer(cluster="c", token=f"for {question.machine}"))
    await made.open("127.0.0.1", 0)
    yield made
    await made.close()


def endpoint(door: Door) -> str:
    return "{}:{}".format(*door.address)


async def test_who_knows_the_secret_is_answered(door: Door) -> None:
    assert await ask(endpoint(door), QUESTION, SECRET) == Answer(cluster="c", token="for m")


async def test_an_answer_that_comes_in_pieces_is_read_whole() -> None:
    said = Answer(cluster="c", managers=("10.0.0.1:2377", "10.0.0.2:2377"))

    class Slow(Door):
        async def serve(self, request: web.Request, certificate: str) -> web.StreamResponse:  # type: ignore[override]
            whole = await super().serve(request, certificate)
            assert isinstance(whole.body, bytes)
            response = web.StreamResponse(headers=whole.headers)
            await response.prepare(request)
            for piece in (whole.body[:10], whole.body[10:]):
                await response.write(piece)
                await asyncio.sleep(0.05)
            return response

    slow = Slow(SECRET, lambda question: said)
    await slow.open("127.0.0.1", 0)
    try:
        assert await ask(endpoint(slow), QUESTION, SECRET) == said
    finally:
        await slow.close()


async def test_who_does_not_know_it_is_told_nothing_else(door: Door) -> None:
    assert await ask(endpoint(door), QUESTION, SECRET + b"!") == "the join secret is another one there"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=unverified_context())) as session:
        url = f"https://{endpoint(door)}{PATH}"
        for body, status in ((b"", 403), (b"x" * 70_000, 413)):
            async with session.post(url, data=body) as response:
                assert response.status == status
                assert "c" not in (await response.json(content_type=None) if response.content_type == "application/json" else "")
        async with session.get(url) as response:
            assert response.status == 405


async def test_an_answer_without_proof_is_not_believed() -> None:
    """A server that says yes to everybody, as a stranger who wants nodes would."""
    liar = Door(b"", lambda question: Answer(cluster="his", token="his"))
    liar.serve = _unproven  # type: ignore[method-assign]
    await liar.open("127.0.0.1", 0)
    try:
        assert await ask(endpoint(liar), QUESTION, SECRET) == "it does not know the join secret"
    finally:
        await liar.close()


async def _unproven(request: object, certificate: str) -> object:
    return web.json_response({"cluster": "his", "token": "his"})


async def test_who_sits_in_between_can_pass_nothing_on(door: Door) -> None:
    """He shows a certificate of his own and passes on what he is sent; the proof in it is for his certificate, not for the door's."""
    host, port = door.address
    seen: list[str] = []

    class Between(Door):
        async def serve(self, request, certificate):  # type: ignore[no-untyped-def]
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=unverified_context())) as session:
                async with session.post(f"https://{host}:{port}{PATH}", data=await request.read(), headers=request.headers) as response:
                    seen.append(await response.text())
                    return web.Response(status=response.status, body=seen[-1], headers={"Meshd-Proof": "x"})

    between = Between(b"", lambda question: Answer())
    await between.open("127.0.0.1", 0)
    try:
        assert await ask(endpoint(between), QUESTION, SECRET) == "the join secret is another one there"
        assert len(seen) == 1 and "token" not in seen[0]
    finally:
        await between.close()


async def test_the_door_speaks_tls_1_3_only_and_frees_its_port(door: Door) -> None:
    host, port = door.address
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(host, port, ssl=old)
    await door.close()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((host, port))
    assert await ask(f"{host}:{port}", QUESTION, SECRET) == "connection refused"


# ---- the command line ----------------------------------------------------------------------------------------------------------


def secret_file(tmp_path: Path, text: str = SECRET.decode() + "\n") -> str:
    path = tmp_path / "secret"
    path.write_text(text)
    return str(path)


def test_an_order_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    file = secret_file(tmp_path)
    order = read(["10.0.0.10, 10.0.0.9:2377", "10.0.0.9"], 2, file, "", member=False)
    assert order is not None
    assert order.peers == ("10.0.0.9:2377", "10.0.0.10:2377") and order.founder == "10.0.0.9:2377" and order.secret == SECRET
    other = read(["10.0.0.9", "10.0.0.10"], 2, file, "", member=False)
    assert other is not None and other.digest == order.digest
    assert SECRET.decode() not in repr(order)
    assert read([], 0, "", "", member=False) is None
    assert own_peer(order, ["10.0.0.10", "172.17.0.1"]) == "10.0.0.10:2377" and own_peer(order, ["10.0.0.1"]) == ""
    with pytest.raises(ConfigError, match="names this machine more than once"):
        own_peer(order, ["10.0.0.9", "10.0.0.10"])


@pytest.mark.parametrize(
    ("retry_join", "expect", "secret", "token", "says"),
    [
        ([], 3, "", "", "--bootstrap-expect needs --retry-join"),
        ([], 0, "file", "", "--join-secret-file needs --retry-join"),
        (["10.0.0.1,10.0.0.2"], 3, "file", "", "exactly the 3 machines .* it names 2"),
        (["10.0.0.1"], 1, "", "", "needs --join-secret-file: before there is a cluster"),
        (["10.0.0.1"], 1, "file", "token", "give one of them"),
        (["10.0.0.1"], 0, "", "", "needs --join-secret-file or --join-token-file"),
        (["node-1"], 0, "file", "", "'node-1': expected an IP address"),
        (["10.0.0.1"], 1, "/nowhere/secret", "", "/nowhere/secret is missing; make one"),
        (["10.0.0.1"], 1, "short", "", "has 5 characters, at least 32"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, retry_join: list[str], expect: int, secret: str, token: str, says: str) -> None:
    path = {"file": secret_file(tmp_path), "short": str(tmp_path / "short")}.get(secret, secret)
    (tmp_path / "short").write_text("short")
    with pytest.raises(ConfigError, match=says):
        read(retry_join, expect, path, token, member=False)


def test_a_member_without_its_secret_runs_on_and_lets_nobody_in() -> None:
    order = read(["10.0.0.1"], 1, "/nowhere/secret", "", member=True)
    assert order is not None and order.secret == b""
