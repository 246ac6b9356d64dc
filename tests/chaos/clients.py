"""Clients of the cluster's API that create, change, read and delete through any manager, and write down what they were told.

Edge: HTTP over the managers' sockets. Values, keys and choices follow from the seed; what the cluster answers does not.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import aiohttp

from .history import ABSENT, Op

IMAGE = "meshd/demo:v1"
LABEL = "value"
PREFIX = "chaos-"
_TIMEOUT_S = 6.0
_PAUSE_S = (0.05, 0.4)
_MOST = {"configs": 8, "services": 4}
# requests that wait for one manager at a time
_MOST_WAITING = 2
_FRESH = {"Cache-Control": "no-cache"}

Collection = Literal["configs", "services"]


@dataclass(slots=True)
class _Key:
    """One object that clients know of, and what somebody has seen of it last."""

    name: str
    collection: Collection
    value: str = ABSENT
    version: int = 0
    spec: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    """status 0: none came. sent False: the request has not even left."""

    status: int
    body: Any = None
    sent: bool = True

    @property
    def outcome(self) -> Literal["ok", "refused", "maybe"]:
        if 200 <= self.status < 300:
            return "ok"
        message = self.body.get("message", "") if isinstance(self.body, dict) else ""
        sure = not self.sent or self.status in (400, 409) or "update out of sequence" in message
        return "refused" if sure else "maybe"


class Clients:
    """`run()` until cancelled; `ops` is the record. `finish()` asks every manager for everything, once it is well again."""

    def __init__(self, seed: int, sockets: Mapping[str, Path], count: int = 6) -> None:
        self.ops: list[Op] = []
        self._seed, self._sockets, self._count = seed, sockets, count
        self._keys: dict[str, _Key] = {}
        self._numbers = itertools.count(1)
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._waiting: Counter[str] = Counter()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._client(f"client-{number + 1}"))

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def finish(self) -> None:
        for server in sorted(self._sockets):
            await self._list("finish", server, "configs", fresh=True)
            await self._list("finish", server, "services", fresh=True)
            for key in sorted(self._keys):
                await self._read("finish", server, self._keys[key], fresh=True)

    async def leader(self) -> str:
        """Host name of the node that leads; "" if no manager can say for sure."""
        for server in Random().sample(sorted(self._sockets), len(self._sockets)):
            answer = await self._ask(server, "GET", "/nodes", fresh=True, timeout_s=1.0)
            for node in answer.body if answer.status == 200 else ():
                if (node.get("ManagerStatus") or {}).get("Leader"):
                    return str(node["Description"]["Hostname"])
        return ""

    # ---- one client ------------------------------------------------------------------------------------------------------------

    async def _client(self, name: str) -> None:
        random = Random(f"{self._seed} {name}")
        while True:
            await asyncio.sleep(random.uniform(*_PAUSE_S))
            # one that doesn't answer must not keep all clients from asking the others
            free = [server for server in sorted(self._sockets) if self._waiting[server] < _MOST_WAITING]
            if not free:
                continue
            server = random.choice(free)
            collection: Collection = random.choice(("configs", "configs", "services"))
            living = [key for key in self._keys.values() if key.collection == collection and key.version]
            action = random.choices(("create", "update", "read", "list", "delete"), (6, 45, 38, 6, 5))[0]
            fresh = random.random() < 0.5
            if (action == "create" or not living) and len(living) < _MOST[collection]:
                await self._create(name, server, collection, replicas=random.choice((0, 1, 1)))
            elif not living:
                continue
            elif action == "update":
                await self._update(name, server, random.choice(living), replicas=random.choice((0, 1, 2)))
            elif action == "list":
                await self._list(name, server, collection, fresh=fresh)
            elif action == "delete" and len(living) > 2:
                await self._delete(name, server, random.choice(living))
            else:
                await self._read(name, server, random.choice(living), fresh=fresh)

    async def _create(self, client: str, server: str, collection: Collection, *, replicas: int) -> None:
        key = _Key(f"{PREFIX}{collection[0]}{next(self._numbers)}", collection)
        value = self._value()
        self._keys[key.name] = key
        spec: dict[str, Any] = {"Name": key.name, "Labels": {LABEL: value}}
        if collection == "configs":
            spec["Data"] = base64.b64encode(b"chaos").decode()
        else:
            spec["TaskTemplate"] = {"ContainerSpec": {"Image": IMAGE, "Command": ["idle"]}}
            spec["Mode"] = {"Replicated": {"Replicas": replicas}}
        await self._write(client, server, "create", key, f"/{collection}/create", spec, value, ABSENT)
        await self._read(client, server, key, fresh=False)

    async def _update(self, client: str, server: str, key: _Key, *, replicas: int) -> None:
        base, version, spec, value = key.value, key.version, dict(key.spec or {}), self._value()
        spec["Labels"] = {LABEL: value}
        if key.collection == "services":
            spec["Mode"] = {"Replicated": {"Replicas": replicas}}
        await self._write(client, server, "update", key, f"/{key.collection}/{key.name}/update?version={version}", spec, value, base)
        await self._read(client, server, key, fresh=False)

    async def _write(
        self, client: str, server: str, kind: Literal["create", "update"], key: _Key, path: str, spec: dict[str, Any], value: str, base: str
    ) -> None:
        started = time.monotonic()
        # written down before it is sent: whoever sees it meanwhile must find it in the record, also if this client is cancelled
        self.ops.append(Op(client, server, kind, key.name, started, started, "maybe", value, base))
        at = len(self.ops) - 1
        answer = await self._ask(server, "POST", path, spec)
        self.ops[at] = Op(client, server, kind, key.name, started, time.monotonic(), answer.outcome, value, base)

    async def _delete(self, client: str, server: str, key: _Key) -> None:
        started = time.monotonic()
        self.ops.append(Op(client, server, "delete", key.name, started, started, "maybe"))
        at = len(self.ops) - 1
        answer = await self._ask(server, "DELETE", f"/{key.collection}/{key.name}")
        # "not found" may be the answer to the second try of a deletion that took effect at the first
        self.ops[at] = Op(client, server, "delete", key.name, started, time.monotonic(), answer.outcome)
        if answer.status in (200, 204, 404):
            key.version = 0

    async def _read(self, client: str, server: str, key: _Key, *, fresh: bool) -> None:
        started = time.monotonic()
        answer = await self._ask(server, "GET", f"/{key.collection}/{key.name}", fresh=fresh)
        if answer.status in (200, 404):
            self._saw(client, server, key, answer.body if answer.status == 200 else None, started, fresh=fresh)

    async def _list(self, client: str, server: str, collection: Collection, *, fresh: bool) -> None:
        asked = [key for key in self._keys.values() if key.collection == collection]
        started = time.monotonic()
        answer = await self._ask(server, "GET", f"/{collection}", fresh=fresh)
        if answer.status == 200:
            found = {obj["Spec"]["Name"]: obj for obj in answer.body}
            for key in asked:
                self._saw(client, server, key, found.get(key.name), started, fresh=fresh)

    def _saw(self, client: str, server: str, key: _Key, obj: dict[str, Any] | None, started: float, *, fresh: bool) -> None:
        value = obj["Spec"]["Labels"][LABEL] if obj else ABSENT
        version = int(obj["Version"]["Index"]) if obj else 0
        self.ops.append(Op(client, server, "read", key.name, started, time.monotonic(), value=value, version=version, fresh=fresh))
        if obj and version > key.version:
            key.value, key.version, key.spec = value, version, obj["Spec"]

    def _value(self) -> str:
        return f"v{next(self._numbers)}"

    async def _ask(
        self, server: str, method: str, path: str, body: Any = None, *, fresh: bool = False, timeout_s: float = _TIMEOUT_S
    ) -> _Answer:
        session = self._sessions.get(server)
        if session is None:
            session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._sockets[server]), limit=0))
            self._sessions[server] = session
        self._waiting[server] += 1
        try:
            async with asyncio.timeout(timeout_s):
                async with session.request(method, f"http://meshd{path}", json=body, headers=_FRESH if fresh else None) as response:
                    text = await response.text()
                    is_json = response.content_type == "application/json" and text
                    return _Answer(response.status, await response.json() if is_json else None)
        except aiohttp.ClientConnectorError:
            return _Answer(0, sent=False)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return _Answer(0)
        finally:
            self._waiting[server] -= 1
