"""Our own API beside its document: whatever is asked, the answer is one that the document tells of, in time, and a refusal has changed
nothing. The store is etcd. `make fuzz-api` asks more, and something else each time.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import requests
import schemathesis
from docker.transport import UnixHTTPAdapter
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from orchestrator.mesh_api import OPERATIONS, Operation, openapi
from orchestrator.store.etcd import EtcdStore
from orchestrator.store.snapshot import Snapshot
from tests.orchestrator.api import hostile
from tests.orchestrator.api.fakes import Setup, serving
from tests.orchestrator.api.fuzzing import loops_run, more, objects
from tests.orchestrator.store.etcds import Etcds

_ANSWER_S = 20.0
_URL = "http://meshd"
_CHECKS = [content_type_conformance, negative_data_rejection, not_a_server_error, response_schema_conformance, status_code_conformance]
# All but those whose bodies are files; what can't be asked wrongly is only asked as described.
_ASKED = [
    (operation, mode)
    for operation in OPERATIONS
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if operation.body is not bytes and (mode is GenerationMode.POSITIVE or operation.body or operation.query)
]
T = TypeVar("T")

COMPOSE: hostile.Json = {
    "name": "s",
    "services": {
        "web": {
            "image": "busybox:latest", "command": ["sh", "-c", "true"], "entrypoint": "sh", "environment": {"A": "b", "C": "${D:-e}"},
            "env_file": ["web.env"], "labels": ["a=b"], "hostname": "h", "user": "nobody", "working_dir": "/", "tty": True, "init": True,
            "ports": ["8080:80", {"target": 81, "published": "8081", "protocol": "udp", "mode": "host"}], "stop_grace_period": "1s",
            "networks": {"net": {"aliases": ["w"]}}, "secrets": ["key", {"source": "key", "target": "k", "mode": 288}], "configs": ["conf"],
            "volumes": ["data:/data:ro", "./x:/x", {"type": "tmpfs", "target": "/t", "tmpfs": {"size": 1}}], "dns": ["8.8.8.8"],
            "healthcheck": {"test": ["CMD", "true"], "interval": "1s", "timeout": "1s", "retries": 1, "start_period": "1s"},
            "logging": {"driver": "json-file", "options": {"max-size": "1m"}}, "ulimits": {"nofile": {"soft": 1, "hard": 2}},
            "cap_add": ["NET_ADMIN"], "sysctls": {"net.core.somaxconn": 1}, "extra_hosts": ["h:10.0.0.1"],
            "deploy": {
                "mode": "replicated", "replicas": 2, "labels": {"x": "y"}, "endpoint_mode": "vip",
                "update_config": {"parallelism": 1, "delay": "1s", "order": "start-first", "failure_action": "rollback", "monitor": "1s"},
                "restart_policy": {"condition": "any", "delay": "1s", "max_attempts": 1, "window": "1s"},
                "placement": {"constraints": ["node.role==manager"], "preferences": [{"spread": "node.labels.rack"}]},
                "resources": {"limits": {"cpus": "0.5", "memory": "64M"}, "reservations": {"memory": "8M"}},
            },
        },
        "db": {"image": "busybox", "networks": ["net"], "deploy": {"mode": "global"}},
    },
    "networks": {"net": {"driver": "overlay", "attachable": True, "ipam": {"config": [{"subnet": "10.98.0.0/24"}]}, "labels": {"a": "b"}}},
    "volumes": {"data": {"driver": "local", "driver_opts": {"a": "b"}}},
    "secrets": {"key": {"file": "key.txt"}},
    "configs": {"conf": {"content": "x"}},
    "x-own": {"a": 1},
}  # fmt: skip
REQUEST: hostile.Json = {
    "Compose": "{compose}", "Variables": {"D": "f"}, "Files": {"web.env": "QT1i", "key.txt": "eA=="}, "Directory": "/srv",
}  # fmt: skip


@dataclass
class Served:
    """A manager whose store is etcd, in a thread of its own; requests are made as any client makes them."""

    loop: asyncio.AbstractEventLoop
    setup: Setup
    session: requests.Session

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def ask(self, method: str, path: str, body: bytes | None = None) -> requests.Response:
        return self.session.request(method, _URL + path, data=body, timeout=_ANSWER_S)

    def snapshot(self) -> Snapshot:
        """What every manager sees."""

        async def newest() -> Snapshot:
            await self.setup.store.sync()
            return self.setup.store.snapshot()

        return self.run(newest())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    etcds = Etcds(tmp_path_factory.mktemp("etcd"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="api", daemon=True)
    thread.start()
    ready, end = threading.Event(), asyncio.Event()
    found: list[Served] = []

    async def serve() -> None:
        try:
            async with serving(tmp_path_factory.mktemp("fuzz")) as setup:
                store: EtcdStore = await etcds.open()
                setup.backend.new_store = lambda: store  # type: ignore[assignment, return-value]
                await setup.init()
                session = requests.Session()
                session.mount(_URL, UnixHTTPAdapter(f"http+unix://{setup.socket}"))
                found.append(Served(loop, setup, session))
                ready.set()
                await end.wait()
                await store.close()
        finally:
            ready.set()

    serving_ = asyncio.run_coroutine_threadsafe(serve(), loop)
    try:
        assert ready.wait(60)
        if not found:
            serving_.result(0)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(end.set)
        serving_.result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        etcds.stop()


SCHEMA = schemathesis.openapi.from_dict(openapi())


@pytest.mark.parametrize(("operation", "mode"), _ASKED, ids=[f"{operation.id}, {mode.value}" for operation, mode in _ASKED])
def test_answers_are_as_the_document_says(served: Served, operation: Operation, mode: GenerationMode) -> None:
    @more(30)
    @given(case=SCHEMA[operation.path][operation.method].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        before = served.snapshot()
        answer = case.call(base_url=_URL, session=served.session, timeout=_ANSWER_S)
        case.validate_response(answer, checks=_CHECKS)
        if answer.status_code >= 400:
            assert objects(served.snapshot()) == objects(before)

    ask()


def test_a_good_compose_file_is_good(served: Served) -> None:
    """Else the changes to it would prove nothing."""
    body = json.dumps({**REQUEST, "Compose": json.dumps(COMPOSE)}).encode()
    planned = served.ask("POST", "/mesh/v1/stacks/s/plan", body)
    assert (planned.status_code, planned.json()["Warnings"]) == (200, []), planned.text


@more(100)
@given(compose=hostile.bodies(COMPOSE), request=st.just(json.dumps(REQUEST).encode()) | hostile.bodies(REQUEST))
def test_any_compose_file_is_deployed_or_refused_whole(served: Served, compose: bytes, request: bytes) -> None:
    body = request.replace(b'"{compose}"', json.dumps(compose.decode(errors="replace")).encode())
    before = served.snapshot()
    planned = served.ask("POST", "/mesh/v1/stacks/s/plan", body)
    assert objects(served.snapshot()) == objects(before), "a plan changes nothing"
    answer = served.ask("PUT", "/mesh/v1/stacks/s", body)
    assert answer.status_code == planned.status_code, (planned.text, answer.text)
    if answer.status_code != 200:
        assert answer.status_code < 500 or answer.status_code == 501, f"{body!r}: {answer.text}"
        assert answer.json()["message"]
        assert objects(served.snapshot()) == objects(before), f"{body!r}: {answer.text}, but something was written"
        return
    assert answer.json()["Changes"] == planned.json()["Changes"]
    again = served.ask("POST", "/mesh/v1/stacks/s/plan", body).json()
    assert again["Changes"] == [], f"{body!r}: deployed, and yet {again['Changes']} differs"
    loops_run(served.snapshot())
    for shown in ("/mesh/v1/stacks", "/mesh/v1/stacks/s", "/mesh/v1/stacks/s/compose", "/services", "/networks", "/secrets", "/configs"):
        assert served.ask("GET", shown).status_code == 200, shown
    assert served.ask("DELETE", "/mesh/v1/stacks/s").status_code == 200
    assert objects(served.snapshot()).keys() == objects(before).keys()


@more(60)
@given(place=st.floats(0, 1), flipped=st.integers(1, 255), kept=st.floats(0, 1) | st.just(1.0))
def test_a_spoilt_backup_is_refused(served: Served, place: float, flipped: int, kept: float) -> None:
    backend = served.setup.backend
    packed = bytearray(served.ask("GET", "/mesh/v1/backup").content)
    packed[int(place * (len(packed) - 1))] ^= flipped
    del packed[int(kept * len(packed)) :]
    calls = len(backend.calls)
    backend.state = "inactive"
    try:
        answer = served.ask("POST", "/mesh/v1/restore?advertise-addr=10.0.0.9", bytes(packed))
    finally:
        backend.state = "manager"
    if answer.status_code == 200:
        # what was changed says nothing: gzip's header has a time
        assert answer.json()["ClusterID"] == next(iter(served.snapshot().tables["cluster"]))
    else:
        assert answer.status_code == 400 and answer.json()["message"], answer.text
        assert len(backend.calls) == calls
