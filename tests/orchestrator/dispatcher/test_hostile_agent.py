"""A worker with a valid certificate that asks for more: over real TLS, whatever it says it gets what is its own and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from msgspec.structs import replace

from orchestrator.dispatcher.connection import AGENTS, RELAY
from orchestrator.dispatcher.messages import (
    PROTOCOL,
    Applied,
    Describe,
    FromAgent,
    Heartbeat,
    Hello,
    Leave,
    Statuses,
    TaskReport,
)
from orchestrator.dispatcher.server import MAX_DESCRIPTION_BYTES
from orchestrator.model import (
    ContainerSpec,
    NodeDescription,
    Secret,
    SecretReference,
    SecretSpec,
    Service,
    ServiceSpec,
    TaskSpec,
    TaskState,
    TaskStatus,
)
from orchestrator.security import ca
from orchestrator.security.identity import Credentials
from orchestrator.store.base import Delete
from tests.orchestrator.security.clusters import now

from .lab import Lab, Manager, until
from .test_node_server import call

VICTIM, HOSTILE = "victim", "hostile"
VICTIMS = (b"the victim's password", b"victims-net", b"victims-task", b"victims-service", b"10.0.1.", b"victims-secret")
OWN = b"its own password"
encode = msgspec.msgpack.encode


@dataclass
class Hostile:
    """credentials: good ones of a worker. received: every byte that managers ever sent it."""

    lab: Lab
    manager: Manager
    credentials: Credentials
    received: bytearray = field(default_factory=bytearray)

    async def say(self, *messages: FromAgent | bytes, path: str = AGENTS, till_closed: bool = False) -> int | None:
        """Over one connection, until it has been sent what is its own, or was closed: how, None: it was not."""
        connector = aiohttp.TCPConnector(ssl=self.credentials.client_context())
        seen = bytearray()
        async with asyncio.timeout(10), aiohttp.ClientSession(connector=connector) as session:
            async with session.ws_connect(f"https://{self.manager.addr}{path}", max_msg_size=0) as ws:
                with contextlib.suppress(ConnectionError):
                    for message in messages:
                        await ws.send_bytes(message if isinstance(message, bytes) else encode(message))
                while till_closed or OWN not in seen:
                    if (frame := await ws.receive()).type is not aiohttp.WSMsgType.BINARY:
                        break
                    seen += frame.data
                self.received += seen
                return ws.close_code

    async def ask(self, method: str, path: str, **more: object) -> int:
        status, answer = await call(self.manager.addr, method, path, self.credentials.client_context(), **more)
        self.received += str(answer).encode()
        return status

    def learnt(self) -> list[bytes]:
        return [secret for secret in VICTIMS if secret in self.received]


def task_of(node: str) -> dict[str, object]:
    secret = f"{node}s-secret"
    spec = TaskSpec(container_spec=ContainerSpec(image="busybox", secrets=[SecretReference(secret_id=secret, secret_name=secret)]))
    return {"spec": spec, "service_id": f"{node}s-service"}


@pytest.fixture
async def hostile(lab: Lab) -> AsyncIterator[Hostile]:
    """Two workers, each with a network, a service, a task and a secret; one of them is hostile."""
    manager = await lab.manager("m1")
    for number, (node, password) in enumerate([(VICTIM, VICTIMS[0]), (HOSTILE, OWN)], start=1):
        await lab.put(Secret(id=f"{node}s-secret", spec=SecretSpec(name=f"{node}s-secret"), mesh_ciphertext=password))
        await lab.put(Service(id=f"{node}s-service", spec=ServiceSpec(name=f"{node}s-service")))
        await lab.network(f"{node}s-net", vni=4096 + number)
    await lab.agent(VICTIM)
    credentials = await lab.cluster.node(HOSTILE)
    for number, node in enumerate((VICTIM, HOSTILE), start=1):
        await lab.attach(node, f"{node}s-net", f"10.0.{number}.250/24")
        await lab.assign(f"{node}s-task", node, (f"{node}s-net",), f"10.0.{number}.5/24")
        await lab.change(f"{node}s-task", **task_of(node))
    await until(lambda: lab.node(VICTIM).status.state == "ready")
    yield Hostile(lab, manager, credentials)


HELLO = Hello(description=NodeDescription(hostname=HOSTILE), version=PROTOCOL)
AS_ANOTHER = Hello(
    description=NodeDescription(hostname=VICTIM, mesh_api_addr="127.0.0.1:1", mesh_data_addr="127.0.0.1", mesh_permits=["privileged"]),
    version=PROTOCOL,
)


async def test_its_session_has_its_own_and_nothing_else(hostile: Hostile) -> None:
    await hostile.say(HELLO)
    # so that what follows means something: it does get what is its own
    assert OWN in hostile.received
    assert b"10.0.2.5" in hostile.received
    assert hostile.learnt() == []


@pytest.mark.parametrize(
    "hello",
    [
        AS_ANOTHER,
        # fields that a careless manager might go by
        encode({**msgspec.to_builtins(HELLO), "node_id": VICTIM, "id": VICTIM, "peer": {"node_id": VICTIM}}),
        # what it says it has is not what it is due: no bucket of anything else is sent
        replace(HELLO, have=b"\0" * 16 * 256),
        replace(HELLO, have=b"\xff" * 16),
        replace(HELLO, have=b"x" * 60_000),
        replace(HELLO, version=PROTOCOL - 1),
    ],
    ids=["as another", "with another's id", "empty token", "false token", "endless token", "older"],
)  # fmt: skip
async def test_whoever_it_says_it_is_it_is_itself(hostile: Hostile, hello: FromAgent | bytes) -> None:
    victim = hostile.lab.node(VICTIM)
    await hostile.say(hello, Heartbeat(sequence=1))
    assert hostile.learnt() == []
    assert hostile.lab.node(VICTIM) == victim
    assert VICTIM in hostile.manager.dispatcher.connected
    assert hostile.lab.node(HOSTILE).spec.role == "worker"


async def test_it_reports_on_nothing_but_its_own_tasks(hostile: Hostile, caplog: pytest.LogCaptureFixture) -> None:
    lab = hostile.lab
    before, own = lab.task("victims-task"), lab.task("hostiles-task")
    # ASSIGNED is behind it, REMOVE and ORPHANED are for managers to say
    states = [state for state in TaskState if state is not TaskState.ASSIGNED]
    forged = tuple(TaskReport(task_id="victims-task", status=TaskStatus(state=state, message="forged")) for state in states)
    never = tuple(TaskReport(task_id="hostiles-task", status=TaskStatus(state=TaskState(state))) for state in ("remove", "orphaned", "new"))
    nothing = TaskReport(task_id="x" * 10_000, status=TaskStatus(state=TaskState.RUNNING, message="y" * 1_000_000))
    await hostile.say(HELLO, Statuses(sequence=1, reports=(*forged, *never, nothing)), Heartbeat(sequence=1))
    # its own, and so that all before has been dealt with
    honest = TaskReport(task_id="hostiles-task", status=TaskStatus(state=TaskState.FAILED, err="e" * 1_000_000))
    await hostile.say(HELLO, Statuses(sequence=2, reports=(honest,)), Heartbeat(sequence=1))
    await until(lambda: lab.task("hostiles-task").status.state is TaskState.FAILED)
    assert len(lab.task("hostiles-task").status.err) < 10_000
    assert own.status.state is TaskState.ASSIGNED
    assert lab.task("victims-task") == before
    assert "the task belongs to another node" in caplog.text
    assert hostile.learnt() == []


async def test_it_acknowledges_for_nobody_else_and_leaves_alone(hostile: Hostile) -> None:
    """A drain that waits for the victim's word still does."""
    lab, acks = hostile.lab, hostile.manager.dispatcher.acks
    [victim] = lab.agents
    victim.acknowledge = False
    changed = (await lab.change("victims-task", desired_state=TaskState.SHUTDOWN)).version.index
    await until(lambda: victim.revision >= changed)
    await hostile.say(HELLO, Applied(revision=1 << 60, open_connections={"victims-task": 0, **{str(n): n for n in range(30_000)}}), Leave())
    await until(lambda: lab.node(HOSTILE).status.state == "down")
    assert lab.node(VICTIM).status.state == "ready"
    assert (acks.applied(VICTIM) or 0) < changed
    assert hostile.learnt() == []


@pytest.mark.parametrize(
    "messages",
    [
        (b"\xc1",),
        (HELLO, HELLO),
        (Heartbeat(),),
        (b"x" * (5 * 1024 * 1024),),
        (HELLO, b"x" * (5 * 1024 * 1024)),
        (replace(HELLO, description=NodeDescription(hostname="x" * MAX_DESCRIPTION_BYTES)),),
        (HELLO, Describe(description=NodeDescription(mesh_facts={"x" * MAX_DESCRIPTION_BYTES: ""}))),
        (b"\xdd\xff\xff\xff\xff",),
        (encode({"type": "complete", "revision": 1, "rows": []}),),
    ],
    ids=["garbage", "two hellos", "no hello", "huge", "huge later", "huge description", "huge facts", "endless array", "a manager's"],
)  # fmt: skip
async def test_what_is_no_message_of_an_agent_ends_the_session(hostile: Hostile, messages: tuple[FromAgent | bytes, ...]) -> None:
    # RFC 6455, 7.4.1: protocol error, too big; or cut in the middle of what it was sending
    assert await hostile.say(*messages, till_closed=True) in (1002, 1009, 1006)
    await until(lambda: HOSTILE not in hostile.manager.dispatcher.connected)
    assert VICTIM in hostile.manager.dispatcher.connected
    assert hostile.learnt() == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/engine/info"),
        ("POST", "/v1/engine/containers/create"),
        ("GET", "/v1/engine/../engine/info"),
        ("GET", "/v1//engine/info"),
        ("GET", "/v1/Engine/info"),
        ("GET", "/v1/%65ngine/info"),
        ("GET", RELAY),
        ("POST", "/v1/promote"),
        ("GET", "/v1/join"),
        ("GET", "/swarm"),
    ],
)
async def test_managers_routes_are_closed_to_it(hostile: Hostile, method: str, path: str) -> None:
    body = {"json": {"addr": "127.0.0.1:1"}} if path.endswith("promote") else {}
    assert await hostile.ask(method, path, **body) in (403, 404, 405)
    assert hostile.lab.node(HOSTILE).manager_status is None
    assert hostile.learnt() == []


async def test_it_can_bring_no_agent_as_a_manager_does(hostile: Hostile) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await hostile.say(HELLO, path=RELAY)
    assert refused.value.status == 403


async def test_a_request_for_a_certificate_is_for_a_key_and_for_nothing_else(hostile: Hostile) -> None:
    """Names, roles and extensions in it are not looked at."""
    key = ca.load_key(ca.new_key_and_csr()[0])
    name = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COMMON_NAME, "m1"),
            x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-manager"),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, hostile.lab.cluster.cluster.id),
        ]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("swarm-manager"), x509.DNSName(VICTIM)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    csr = request.public_bytes(serialization.Encoding.PEM).decode()
    context = hostile.credentials.client_context()
    status, answer = await call(hostile.manager.addr, "POST", "/v1/renew", context, json={"csr": csr, "node_id": "m1", "role": "manager"})
    assert status == 200
    assert isinstance(answer, dict)
    subject = ca.verify(answer["certificate"], hostile.lab.cluster.root.certificate, now())
    assert (subject.node_id, subject.role) == (HOSTILE, "worker")
    certificate = ca.load_certificate(answer["certificate"])
    assert ca.dns_names(certificate) == {HOSTILE, "swarm-worker"}
    assert not ca.may_sign(certificate)


async def test_removed_it_is_gone_at_once(hostile: Hostile) -> None:
    talking = asyncio.create_task(hostile.say(HELLO, till_closed=True))
    await until(lambda: HOSTILE in hostile.manager.dispatcher.connected)
    await hostile.lab.store.commit([Delete("node", HOSTILE)])
    assert await talking == 4001
    assert await hostile.ask("POST", "/v1/renew", json={"csr": ca.new_key_and_csr()[1]}) == 403
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await hostile.say(HELLO)
    assert refused.value.status == 403


async def test_nothing_secret_is_logged_meanwhile(hostile: Hostile, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await hostile.say(HELLO, Heartbeat(sequence=1))
    await hostile.say(AS_ANOTHER, b"\xc1")
    await hostile.ask("GET", "/v1/engine/info")
    await hostile.ask("POST", "/v1/readmit", json={"node_id": VICTIM, "csr": "x", "key": "y", "signature": "z"})
    await hostile.ask("POST", "/v1/join", json={"token": hostile.lab.cluster.tokens.manager[:-1] + "?", "csr": "x"})
    tokens = hostile.lab.cluster.tokens
    for secret in (
        VICTIMS[0].decode(),
        OWN.decode(),
        "PRIVATE KEY",
        tokens.worker[-25:],
        tokens.manager[-25:-1],
        hostile.lab.cluster.root.key,
    ):
        assert secret not in caplog.text
