"""Whatever is asked: an answer at once, never a failure of ours, nothing half-made; what is accepted can be shown and run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from orchestrator.model import Config, Node, Secret, Service
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.api import hostile
from tests.orchestrator.api.fakes import Setup, serving
from tests.orchestrator.api.fuzzing import loops_run, more

_ANSWER_S = 20
# Docker's own answer to a writer that comes too late
_TOO_LATE = "rpc error: code = Unknown desc = update out of sequence"
_SHOWN = ("/services?status=true", "/tasks", "/nodes", "/networks", "/secrets", "/configs", "/swarm", "/info")


@dataclass
class Target:
    """A manager with one object of each kind; `ask` is synchronous, as hypothesis is."""

    runner: asyncio.Runner
    setup: Setup

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        async def answered() -> tuple[int, bytes]:
            async with asyncio.timeout(_ANSWER_S):
                url = URL(f"http://d{path}", encoded=True)
                async with self.setup.session.request(method, url, data=body, allow_redirects=False) as answer:
                    return answer.status, await answer.read()

        return self.runner.run(answered())

    def begin(self) -> None:
        """The cluster as it is before every example."""

        async def fresh() -> None:
            self.setup.backend.state = "inactive"
            await self.setup.init()
            for path, body in (
                ("/networks/create", {"Name": "ov1", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.99.0.0/24"}]}}),
                ("/secrets/create", {"Name": "s1", "Data": "eA=="}),
                ("/configs/create", {"Name": "c1", "Data": "eA=="}),
                ("/services/create", {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}}),
            ):
                await self.setup.ok("POST", path, body)

        self.runner.run(fresh())

    @property
    def snapshot(self) -> Snapshot:
        return self.setup.store.snapshot()


@pytest.fixture
def target(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    # nobody allocates here
    monkeypatch.setattr("orchestrator.api.networks._ALLOCATION_WAIT_S", 0.0)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        setup = runner.run(stack.enter_async_context(serving(tmp_path_factory.mktemp("fuzz"))))
        try:
            yield Target(runner, setup)
        finally:
            runner.run(stack.aclose())


def _named(target: Target, request: hostile.Request) -> tuple[str, str, bytes]:
    """With ids and versions of what is there, for those that are told by placeholders."""
    snapshot = target.snapshot
    [web], [secret], [config], [node] = (list(snapshot.all(cls)) for cls in (Service, Secret, Config, Node))
    kind, _, _ = request.path.lstrip("/").removeprefix("v1.24/").removeprefix("v1.37/").removeprefix("v1.40/").partition("/")
    obj = {"services": web, "secrets": secret, "configs": config, "nodes": node}.get(kind, web)
    path = request.path.replace("{version}", str(obj.version.index)).replace("{id}", obj.id)
    body = request.body.replace(b"{secret}", secret.id.encode()).replace(b"{config}", config.id.encode())
    return request.method, path, body


def _no_number_too_big(value: object) -> None:
    match value:
        case dict():
            for member in value.values():
                _no_number_too_big(member)
        case list():
            for member in value:
                _no_number_too_big(member)
        case int():
            assert -(2**63) <= value < 2**64


@more(400)
@given(request=hostile.requests())
def test_any_request_is_answered_and_leaves_all_or_nothing(target: Target, request: hostile.Request) -> None:
    target.begin()
    before, calls = target.snapshot, len(target.setup.backend.calls)
    method, path, body = _named(target, request)
    status, answer = target.ask(method, path, body)
    if status >= 400:
        message = json.loads(answer)["message"] if method != "HEAD" else ""
        assert status < 500 or status in (501, 503) or message == _TOO_LATE, f"{method} {path} {body!r}: {status} {message}"
        assert method == "HEAD" or message, f"{method} {path}: {status} without a word"
        assert target.snapshot is before, f"{method} {path} {body!r}: {status} {message}, but something was written"
        assert len(target.setup.backend.calls) == calls
    elif target.setup.backend.state == "manager" and target.snapshot is not before:
        for shown in _SHOWN:
            status, answer = target.ask("GET", shown)
            assert status == 200, f"after {method} {path} {body!r}, {shown} is {status} {answer!r}"
            _no_number_too_big(json.loads(answer))
        loops_run(target.snapshot)


@more(150)
@given(data=st.data())
def test_a_node_outside_makes_no_half_cluster(target: Target, data: st.DataObject) -> None:
    target.setup.backend.state, target.setup.backend.store, target.setup.backend.node_id = "inactive", None, ""
    calls = len(target.setup.backend.calls)
    action, good = data.draw(st.sampled_from((("init", hostile.INIT), ("join", hostile.JOIN))))
    body = data.draw(hostile.bodies(good))
    status, answer = target.ask("POST", f"/swarm/{action}", body)
    if status >= 400:
        # the fake daemon refuses a token it does not know by 500, as the real one does
        assert status in (400, 501, 503) or (status, action) == (500, "join"), f"{body!r}: {status} {answer!r}"
        assert target.setup.backend.state == "inactive"
        assert action == "join" or len(target.setup.backend.calls) == calls
    else:
        for shown in ("/info", "/swarm", "/nodes"):
            status, answer = target.ask("GET", shown)
            assert status < 500 or target.setup.backend.state == "worker", answer


def test_a_good_body_is_good(target: Target) -> None:
    """Else the changes to it would prove nothing."""
    target.begin()
    for path, body in (
        ("/services/create", {**hostile.SERVICE, "Labels": {}}),
        ("/services/create", hostile.JOB),
        ("/networks/create", hostile.NETWORK),
        ("/secrets/create", hostile.SECRET),
        ("/configs/create", hostile.SECRET),
    ):
        method, path, raw = _named_good(target, path, body)
        status, answer = target.ask(method, path, raw)
        assert status == 201, (path, answer)


def _named_good(target: Target, path: str, body: hostile.Json) -> tuple[str, str, bytes]:
    raw = msgspec.json.encode(body)
    for kind, cls in (("secret", Secret), ("config", Config)):
        found = next(obj for obj in target.snapshot.all(cls) if obj.spec.name in ("s1", "c1"))
        raw = raw.replace(b"{%s}" % kind.encode(), found.id.encode())
    return "POST", path, raw
