"""What several Engines stream while they pull or load, as one stream that clients show line by line.

Edge: reads Engines' answers, writes the client's; `Told` is pure. A line with an id (a layer) gets its node before it, as in
"node-2: 4f4fb700ef54": each node has lines of its own on the screen. What the nodes say without an id is said at the end, and once if all
of them say it. A failure on one node is the stream's error, and says on which nodes it is done. Source: docker CLI pkg/jsonmessage.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from orchestrator.api import codec
from orchestrator.api.broadcast import sentence
from orchestrator.api.engines import Engines, Member
from orchestrator.engine_http import CHUNK_BYTES, Answer, Engine
from orchestrator.errors import ApiError

Json = dict[str, Any]
Call = Callable[[Member, Engine], AbstractAsyncContextManager[aiohttp.ClientResponse]]

# an Engine that has said nothing for so long is left to itself; a registry may be slow, and an Engine unpacks in silence
STALL_S = 300.0
# lines that wait for the client; then the Engines wait
_WAITING_LINES = 256
_LINE_BYTES = 1 << 20


@dataclass(slots=True)
class Told:
    """What the nodes have said. `done`: as in "pulled on node-1"."""

    done: str
    names: Sequence[str]
    away: Sequence[tuple[str, str]] = ()
    last: dict[str, list[Json]] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    status: int = 0

    def line(self, name: str, said: Json) -> Json | None:
        """What the client is told at once; None: nothing yet."""
        error = said.get("errorDetail") or said.get("error")
        if error:
            self.failed(name, str(error.get("message") or "") if isinstance(error, dict) else str(error))
            return None
        if len(self.names) + len(self.away) == 1:
            return said
        if said.get("id"):
            return {**said, "id": f"{name}: {said['id']}"}
        self.last.setdefault(name, []).append(said)
        return None

    def failed(self, name: str, reason: str, status: int = 0) -> None:
        self.failures.append((name, reason))
        self.status = self.status or status

    def end(self) -> list[Json]:
        """What is to be said when all have ended."""
        said = [line for lines in self.last.values() for line in lines]
        common = [line for number, line in enumerate(said) if line not in said[:number]]
        ended = [name for name in self.names if name in self.last]
        lines = []
        for line in common:
            saying = [name for name in ended if line in self.last[name]]
            lines.append(line if len(saying) == len(ended) else _by(saying, line))
        lines += [{"status": f"{name} is away ({reason}) and is left out"} for name, reason in self.away]
        if self.failures:
            text = self.sentence()
            lines.append({"errorDetail": {"message": text}, "error": text})
        return lines

    def sentence(self) -> str:
        failed = {name for name, _ in self.failures}
        return sentence(sorted(self.failures), [name for name in self.names if name not in failed], self.done)


def _by(names: Sequence[str], line: Json) -> Json:
    key = "stream" if "stream" in line else "status"
    return {**line, key: f"{', '.join(names)}: {line.get(key, '')}"}


async def together(request: web.Request, engines: Engines, members: Sequence[Member], call: Call, done: str) -> web.StreamResponse:
    """The answers of all of `members` as one. ApiError: none of them began to answer."""
    asked = [member for member in members if not member.away]
    told = Told(done, [member.name for member in asked], [(member.name, member.away) for member in members if member.away])
    if not asked:
        raise ApiError(503, "; ".join(f"{name} is away ({reason})" for name, reason in told.away) or "the cluster has no node")
    queue: asyncio.Queue[tuple[str, Json | None]] = asyncio.Queue(maxsize=_WAITING_LINES)
    answer = web.StreamResponse(headers={"Content-Type": "application/json"})
    readers = [asyncio.create_task(_read(member, engines, call, told, queue)) for member in asked]
    left = len(readers)
    try:
        while left:
            name, said = await queue.get()
            if said is None:
                left -= 1
                continue
            if not answer.prepared:
                await answer.prepare(request)
            shown = told.line(name, said) if said else None
            if shown is not None:
                await answer.write(codec.encode(shown))
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    if not answer.prepared:
        if told.failures:
            raise ApiError(told.status or HTTPStatus.INTERNAL_SERVER_ERROR, told.sentence())
        await answer.prepare(request)
    for line in told.end():
        await answer.write(codec.encode(line))
    await answer.write_eof()
    return answer


async def _read(member: Member, engines: Engines, call: Call, told: Told, queue: asyncio.Queue[tuple[str, Json | None]]) -> None:
    try:
        async with call(member, engines.engine(member)) as response:
            if response.status >= HTTPStatus.BAD_REQUEST:
                refusal = Answer(response.status, {}, await response.read())
                told.failed(member.name, refusal.message(), response.status)
            else:
                # the head alone says that it has begun
                await queue.put((member.name, {}))
                async for line in lines(response.content):
                    await queue.put((member.name, line))
    except ApiError as error:
        told.failed(member.name, error.message, error.status)
    except (aiohttp.ClientError, OSError) as error:
        told.failed(member.name, f"the connection broke ({type(error).__name__})")
    except TimeoutError:
        told.failed(member.name, f"no progress for {STALL_S:g} s")
    # not for one that is cancelled: nobody takes it any more
    await queue.put((member.name, None))


async def lines(content: aiohttp.StreamReader, stall_s: float | None = STALL_S) -> AsyncIterator[Json]:
    """The JSON objects of a stream, one a line. TimeoutError: nothing came for so long."""
    rest = b""
    while True:
        async with asyncio.timeout(stall_s):
            chunk = await content.readany()
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole if chunk else [*whole, rest]:
            said = _object(line)
            if said:
                yield said
        if not chunk or len(rest) > _LINE_BYTES:
            return


def _object(line: bytes) -> Json:
    try:
        said = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return {}
    return said if isinstance(said, dict) else {}


class Fan:
    """A body for several Engines at once: each chunk goes to all of them, and the slowest sets the pace, up to a bound."""

    def __init__(self, source: AsyncIterator[bytes], stall_s: float = STALL_S) -> None:
        self._source = source
        self._stall_s = stall_s
        self._feeds: list[Feed] = []

    def feed(self) -> Feed:
        """One Engine's copy. All are taken before `run`."""
        feed = Feed()
        self._feeds.append(feed)
        return feed

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """`run` meanwhile; who leaves needs no more of it."""
        feeding = asyncio.create_task(self.run())
        try:
            yield
        finally:
            for feed in self._feeds:
                feed.close()
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def run(self) -> None:
        """Until the source has ended. If that breaks, so do the copies: half an image must not look like a whole one."""
        try:
            async for chunk in self._source:
                await asyncio.gather(*(feed.put(chunk, self._stall_s) for feed in self._feeds))
        except BaseException:
            for feed in self._feeds:
                feed.broken = True
            raise
        finally:
            await asyncio.gather(*(feed.put(b"", self._stall_s) for feed in self._feeds))


class Feed:
    """`close` it when its Engine has answered: then nobody waits for it to read on."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._gone = False
        self.broken = False

    async def put(self, chunk: bytes, stall_s: float) -> None:
        if self._gone:
            return
        try:
            async with asyncio.timeout(stall_s):
                await self._queue.put(chunk)
        except TimeoutError:
            self._gone = True

    async def chunks(self) -> AsyncIterator[bytes]:
        while chunk := await self._queue.get():
            yield chunk
        if self.broken:
            raise ConnectionResetError("the body broke off")

    def close(self) -> None:
        self._gone = True
        while not self._queue.empty():
            self._queue.get_nowait()


def body_of(request: web.Request) -> AsyncIterator[bytes]:
    return request.content.iter_chunked(CHUNK_BYTES)
