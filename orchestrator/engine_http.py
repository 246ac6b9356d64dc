"""A Docker Engine over HTTP: requests at an API version it speaks, and connections that leave HTTP behind (attach, exec).

Edge: the Engine's unix socket, or whatever a subclass reaches it through. Source: moby api/server/middleware/version.go; docker CLI
hijack.go; RFC 9110, 7.6.1.
"""

from __future__ import annotations

import asyncio
import functools
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import aiohttp
import msgspec
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from orchestrator.errors import ApiError

CHUNK_BYTES = 256 * 1024
Body = bytes | AsyncIterator[bytes] | None

# They speak of one connection only.
_HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade", "host",
})  # fmt: skip
# what aiohttp would add on its own: an Engine must see what its client sent
AUTOMATIC_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
# how long an Engine is believed to speak what it spoke whose answers don't say so
_VERSION_TTL_S = 5.0
_ANNOUNCED = "Api-Version"
_VERSIONED = re.compile(r"/v([0-9]+\.[0-9]+)(?=/)")


class EngineAway(ApiError):
    """The Engine can't be asked: the message says whose and why."""

    def __init__(self, message: str, status: int = 503) -> None:
        super().__init__(status, message)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. headers: in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return self.status < HTTPStatus.BAD_REQUEST

    def json(self) -> Any:
        """None when it is no JSON."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            return None

    def message(self) -> str:
        """The sentence of a refusal."""
        value = self.json()
        text = value.get("message") if isinstance(value, dict) else None
        return text if isinstance(text, str) else self.body.decode(errors="replace").strip()


def slow(name: str, timeout_s: float | None) -> EngineAway:
    within = f" within {timeout_s:g} s" if timeout_s is not None else ""
    return EngineAway(f"{name} did not answer{within}", 504)


class Duplex(Protocol):
    """A connection that left HTTP behind. `head`: the Engine's answer as it sent it, `101` and headers, blank line included."""

    @property
    def head(self) -> bytes: ...

    async def read(self) -> bytes:
        """b"" at the Engine's end. ConnectionError: the way to the Engine broke."""
        ...

    async def write(self, data: bytes) -> None:
        """Returns when the other side has taken most of it. ConnectionError: nobody is there any more."""
        ...

    async def write_eof(self) -> None:
        """Only input ends; output goes on."""
        ...

    def close(self) -> None: ...


class Engine(ABC):
    """One Engine, wherever it runs. `name` completes the sentence "... does not answer"."""

    name: str

    def __init__(self, name: str) -> None:
        self.name = name
        self._versions: tuple[str, str] | None = None
        self._versions_until = 0.0
        # what its answers said when it was asked for them
        self._announced = ""

    @abstractmethod
    def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, data: Body = None, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """path: percent-encoded, with its version. EngineAway: not there, or not within timeout_s."""

    @abstractmethod
    async def upgrade(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Duplex | Answer:
        """Answer: the Engine refused to upgrade. EngineAway."""

    async def path(self, raw: str) -> str:
        """`raw` (with or without version) with a version that the Engine speaks: the asked one, or the nearest.

        It is asked once, for the answer takes it long (it starts programs to ask them in turn).
        """
        loop = asyncio.get_running_loop()
        if self._versions is None or (not self._announced and loop.time() >= self._versions_until):
            async with self.request("GET", "/version", timeout_s=10) as response:
                spoken = await response.json(content_type=None) if response.status == HTTPStatus.OK else {}
            self._versions = (spoken.get("MinAPIVersion") or "1.12", spoken.get("ApiVersion") or "1.24")
            self._announced = response.headers.get(_ANNOUNCED, "")
            self._versions_until = loop.time() + _VERSION_TTL_S
        return at_version(raw, *self._versions)

    def heard(self, response: aiohttp.ClientResponse) -> None:
        """For subclasses: an answer has begun. An Engine that was upgraded under us, or set back, says another version in all of them."""
        if self._versions is not None and response.headers.get(_ANNOUNCED, "") != self._announced:
            self._versions = None

    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """One request with a small answer; path: with or without version."""
        try:
            async with asyncio.timeout(timeout_s):
                sent = {"Content-Type": "application/json", **(headers or {})} if body else headers
                answer = await self._ask_once(method, path, sent, body)
                # Refused unread, if it is at a version that was spoken only before the Engine was set back.
                if answer.status == HTTPStatus.BAD_REQUEST and self._versions is None:
                    answer = await self._ask_once(method, path, sent, body)
                return answer
        except TimeoutError:
            raise slow(self.name, timeout_s) from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineAway(f"{self.name} broke the connection ({type(error).__name__})") from None

    async def _ask_once(self, method: str, path: str, headers: Mapping[str, str] | None, body: bytes | None) -> Answer:
        async with self.request(method, await self.path(path), headers=headers, data=body) as response:
            return Answer(response.status, response.headers, await response.read())


class LocalEngine(Engine):
    """The Engine of this node, at its unix socket. One session, opened at first use."""

    def __init__(self, socket_path: str) -> None:
        super().__init__("the Docker Engine of this node")
        self.socket_path = socket_path
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self.socket_path, limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=CHUNK_BYTES,
                skip_auto_headers=AUTOMATIC_HEADERS,
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def away(self, error: Exception) -> EngineAway:
        if isinstance(error, aiohttp.ClientConnectorError | OSError):
            return EngineAway(f"{self.name} does not answer at unix://{self.socket_path}: is dockerd running?")
        return EngineAway(f"{self.name} broke the connection ({type(error).__name__})")

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, data: Body = None, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=5)
        url = URL(f"http://engine{path}", encoded=True)
        return self._requested(
            self.session.request(method, url, headers=headers, data=data, allow_redirects=False, timeout=timeout), timeout_s
        )

    @asynccontextmanager
    async def _requested(
        self, request: AbstractAsyncContextManager[aiohttp.ClientResponse], timeout_s: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Failures before the answer are an EngineAway; those while its body is read stay aiohttp's."""
        try:
            response = await request.__aenter__()
        except TimeoutError:
            raise slow(self.name, timeout_s) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self.away(error) from None
        self.heard(response)
        try:
            yield response
        finally:
            await request.__aexit__(None, None, None)

    async def upgrade(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Duplex | Answer:
        try:
            reader, writer = await asyncio.open_unix_connection(self.socket_path, limit=CHUNK_BYTES)
        except OSError as error:
            raise self.away(error) from None
        upgraded = False
        try:
            lines = [f"{method} {path} HTTP/1.1", "Host: engine"]
            lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() not in _REWRITTEN]
            lines.append(f"Content-Length: {len(body)}")
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status, answered = _parse_head(head)
            if status != HTTPStatus.SWITCHING_PROTOCOLS:
                return Answer(status, answered, await _body(answered, reader))
            upgraded = True
            return _SocketDuplex(head, reader, writer)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            raise self.away(error) from None
        finally:
            if not upgraded:
                writer.close()


_REWRITTEN = frozenset({"host", "content-length", "transfer-encoding"})


class _SocketDuplex:
    def __init__(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = head
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        return await self._reader.read(CHUNK_BYTES)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()


def at_version(raw: str, oldest: str, newest: str) -> str:
    """The path at the asked version, brought into what is spoken; one without version gets the newest."""
    found = _VERSIONED.match(raw)
    asked = found[1] if found else newest
    version = max(min(asked, newest, key=version_key), oldest, key=version_key)
    return f"/v{version}{raw[found.end() :] if found else raw}"


def version_of(path: str) -> str:
    """The API version that a path begins with, "" if none."""
    found = _VERSIONED.match(path)
    return found[1] if found else ""


# a request compares its version with a dozen others, always the same few
@functools.lru_cache(maxsize=256)
def version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def end_to_end(headers: Mapping[str, str] | CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers that are not only this connection's."""
    kept: CIMultiDict[str] = CIMultiDict(headers)
    named = {name.strip().lower() for value in kept.getall("Connection", []) for name in value.split(",")}
    for name in {name for name in kept if name.lower() in _HOP_BY_HOP or name.lower() in named}:
        kept.popall(name, None)
    return kept


def _parse_head(head: bytes) -> tuple[int, CIMultiDict[str]]:
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = CIMultiDict((name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in rest if line))
    return int(first.split(" ", 2)[1]), headers


async def _body(headers: Mapping[str, str], reader: asyncio.StreamReader) -> bytes:
    """Of an ordinary answer where an upgrade was asked for: no such container, not running, ..."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        return body
    return await reader.readexactly(int(headers.get("content-length", "0")))
