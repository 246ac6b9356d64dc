"""Secrets and configs as a task's node gets them; what templates say of their task and of each other; what never shows."""

from __future__ import annotations

import base64

import msgspec
import pytest

from orchestrator.agent.rows import Rows
from orchestrator.dispatcher.file_rows import file_rows, registry_row
from orchestrator.dispatcher.messages import ConfigRow, RegistryRow, SecretRow, TaskRow
from orchestrator.dispatcher.parts import AssignmentParts
from orchestrator.errors import TaskError
from orchestrator.model import (
    STATE_ORDER,
    Config,
    ConfigReference,
    ContainerSpec,
    Driver,
    FileTarget,
    Node,
    NodeDescription,
    Secret,
    SecretReference,
    SecretSpec,
    Service,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)
from orchestrator.store.base import Event
from orchestrator.store.snapshot import Snapshot

NODE = Node(id="n1", description=NodeDescription(hostname="alpha"))
GOLANG = Driver(name="golang")


def secret(id: str, data: str, *, templated: bool = False) -> Secret:
    return Secret(id=id, spec=SecretSpec(name=f"name-{id}", templating=GOLANG if templated else None), mesh_ciphertext=data.encode())


def config(id: str, data: bytes, *, templated: bool = True) -> Config:
    spec = SecretSpec(name=f"name-{id}", data=base64.b64encode(data).decode(), templating=GOLANG if templated else None)
    return Config(id=id, spec=spec)


def rows_of(*objects: Secret | Config, slot: int = 3) -> dict[str, SecretRow | ConfigRow]:
    """Of a task that sees every object at its id."""
    spec = ContainerSpec(
        env=["MODE=test", "EMPTY="],
        secrets=[SecretReference(secret_id=o.id, file=FileTarget(name=o.id)) for o in objects if isinstance(o, Secret)],
        configs=[ConfigReference(config_id=o.id, file=FileTarget(name=o.id)) for o in objects if isinstance(o, Config)],
    )
    task = Task(id=f"t{slot}", service_id="s", slot=slot, node_id="n1", mesh_service_name="web", spec=TaskSpec(container_spec=spec))
    snapshot = Snapshot()
    for obj in (NODE, Service(id="s", spec=ServiceSpec(name="web", labels={"a": "b"})), task, *objects):
        snapshot = snapshot.with_object(obj)
    rows = list(file_rows(snapshot, task, NODE, lambda secret: secret.mesh_ciphertext or None))
    return {row.id: row for row in rows}


def test_a_template_knows_its_task_its_environment_and_the_task_s_other_files() -> None:
    text = '{{.Service.Name}}.{{.Task.Slot}} {{env "MODE"}}{{env "EMPTY"}}{{env "NONE"}}'
    text += ' {{secret "pw"}} {{config "plain"}} {{.Service.Labels.a}}'
    rows = rows_of(config("c", text.encode()), config("plain", b"x={{1}}", templated=False), secret("pw", "hunter2"))
    assert rows["t3/c"].data == b"web.3 test hunter2 x={{1}} b" and not rows["t3/c"].error
    assert rows["plain"].data == b"x={{1}}" and rows["pw"].data == b"hunter2"
    assert set(rows) == {"t3/c", "plain", "pw"}


def test_secrets_may_be_templates_too() -> None:
    assert rows_of(secret("s1", "{{.Node.Hostname}}:{{secret `s2`}}", templated=True), secret("s2", "x"))["t3/s1"].data == b"alpha:x"


def test_each_task_sees_its_own() -> None:
    assert [rows_of(config("c", b"{{.Task.Slot}}"), slot=slot)[f"t{slot}/c"].data for slot in (1, 2)] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b'{{secret "none"}}', "secret target none not found"),
        (b'{{config "none"}}', "config target none not found"),
        (b'{{secret "sealed"}}', "secret target sealed not found"),
        (b'{{secret "binary"}}', "config"),
        (b"\xff", "no text in UTF-8"),
        (b"{{.Nope}}", "unknown placeholder"),
        (b"{{nope}}", "unknown function 'nope'"),
    ],
)
def test_a_template_that_can_not_be_rendered_rejects_its_task_with_a_sentence(text: bytes, error: str) -> None:
    objects = [config("c", text), secret("sealed", "")]
    if b"binary" in text:
        objects.append(config("binary", b"\xff", templated=False))
        error = "secret target binary not found"
    rows = rows_of(*objects)
    assert error in rows["t3/c"].error and rows["t3/c"].data == b""
    known = Rows()
    task = Task(id="t3", spec=TaskSpec(container_spec=ContainerSpec(configs=[ConfigReference(config_id="c", config_name="c")])))
    known.update(1, [TaskRow(task=task), *rows.values()], [], True)
    with pytest.raises(TaskError, match="config c: template") as caught:
        known.contents(task)
    assert caught.value.rejected


def test_an_agent_prefers_what_was_rendered_for_the_task() -> None:
    known = Rows()
    spec = ContainerSpec(secrets=[SecretReference(secret_id="x", secret_name="x")], configs=[ConfigReference(config_id="y")])
    task = Task(id="t1", spec=TaskSpec(container_spec=spec))
    rows = [
        SecretRow(id="x", name="x", data=b"all"),
        SecretRow(id="t1/x", name="x", data=b"mine"),
        SecretRow(id="t2/x", name="x", data=b""),
    ]
    known.update(1, rows, [], True)
    assert known.contents(task) == {"x": b"mine"}
    known.update(2, [], ["secret/t1/x"], False)
    assert known.contents(task) == {"x": b"all"}


@pytest.mark.parametrize("state", list(TaskState))
def test_credentials_are_there_until_the_image_is(state: TaskState) -> None:
    service = Service(id="s", mesh_registry_auth=b"header")
    task = Task(id="t", service_id="s", node_id="n1", status=TaskStatus(state=state))
    snapshot = Snapshot().with_object(service)
    row = registry_row(snapshot, task, lambda secret: secret.mesh_ciphertext)
    assert row == (RegistryRow(service_id="s", auth="header") if STATE_ORDER[state] < STATE_ORDER[TaskState.READY] else None)
    assert registry_row(snapshot, task, lambda secret: None) is None
    known = Rows()
    if row is not None:
        assert "header" not in repr(row)
        known.update(1, [row], [], True)
        assert known.registry_auths == {"s": "header"}
        known.update(2, [], [row.key], False)
    assert known.registry_auths == {}


def test_new_credentials_reach_a_task_that_waits_for_its_image() -> None:
    service = Service(id="s", mesh_registry_auth=b"old")
    task = Task(id="t", service_id="s", node_id="n1", status=TaskStatus(state=TaskState.PREPARING))
    before = Snapshot().with_object(NODE).with_object(service).with_object(task)
    parts = AssignmentParts(before, lambda secret: secret.mesh_ciphertext)
    assert b"old" in parts.of("n1")["own/n1"]["registry/s"]
    changed = msgspec.structs.replace(service, mesh_registry_auth=b"new")
    parts.follow(before.with_object(changed), [Event(kind="service", id="s", revision=2, old=service, new=changed)])
    assert b"new" in parts.of("n1")["own/n1"]["registry/s"]


def test_contents_never_show() -> None:
    for row in (SecretRow(id="i", name="n", data=b"hunter2"), ConfigRow(id="i", name="n", data=b"hunter2")):
        assert "hunter2" not in f"{row} {row!r} {[row]}"
        assert b"hunter2" in msgspec.msgpack.encode(row)
