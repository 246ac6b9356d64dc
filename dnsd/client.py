"""Talking to a dnsd process through its control socket.

Edge. The connection is made when first needed and made again whenever it broke; a zone is sent only if dnsd doesn't have it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from dnsd.encoded import digest_of, encode
from dnsd.errors import ConfigError, DnsUnavailable, RemoteProtocolError
from dnsd.messages import (
    AppliedReply,
    Apply,
    Ask,
    Explain,
    Explained,
    Hello,
    Log,
    Logged,
    Missing,
    Refused,
    Reply,
    Request,
    StatusReply,
    Welcome,
    frame,
    read_reply,
)
from dnsd.model import Applied, DnsState, Explanation, Status, ZoneSpec
from dnsd.version import VERSION

# dnsd starts in a quarter of a second; a client that comes first waits for it.
_RETRY_S = 0.05

_T = TypeVar("_T")


class Client:
    """One call at a time, others queue. timeout_s bounds each call, connecting included.

    DnsUnavailable: no dnsd answered in time. RemoteProtocolError: something else listens there. ConfigError: dnsd refused the state.
    """

    def __init__(self, path: str | Path, *, timeout_s: float = 5.0) -> None:
        self._path = Path(path)
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._there: set[str] = set()
        self._encoded: dict[str, tuple[ZoneSpec, str, bytes]] = {}
        self._calling = asyncio.Lock()

    async def apply(self, state: DnsState) -> Applied:
        """`state` replaces all that dnsd serves. On return it is in force, but for what the result names."""
        bodies = self._encode(state.zones)

        async def converse() -> Applied:
            await self._connect()
            for _ in range(3):
                unknown = {digest: body for digest, body in bodies.items() if digest not in self._there}
                reply = await self._exchange(Apply(tuple(bodies), unknown, state.scopes))
                if isinstance(reply, Missing):
                    self._there -= set(reply.zones)
                    continue
                if isinstance(reply, AppliedReply):
                    self._there = set(bodies)
                    return reply.applied
                raise RemoteProtocolError(f"dnsd answered apply with {type(reply).__name__}")
            raise RemoteProtocolError("dnsd keeps asking for zones it was sent")

        async with self._calling:
            return await self._persist(converse)

    async def status(self) -> Status:
        reply = await self._ask(Ask(), StatusReply)
        return reply.status

    async def explain(self, asker: str, name: str, kind: str = "A") -> Explanation:
        """See `Server.explain`. ConfigError: the sentence says what is wrong with the asker, the name or the type."""
        reply = await self._ask(Explain(asker, name, kind), Explained)
        return reply.explanation

    async def log(self, asker: str, *, on: bool = True, after: int = 0) -> Logged:
        """Switch the log of that asker's queries on or off, and read it: those with a number greater than `after`."""
        return await self._ask(Log(asker, on, after), Logged)

    async def close(self) -> None:
        async with self._calling:
            self._drop()

    async def _ask(self, request: Request, expected: type[_T]) -> _T:
        async def converse() -> _T:
            await self._connect()
            reply = await self._exchange(request)
            if not isinstance(reply, expected):
                raise RemoteProtocolError(f"dnsd answered {type(request).__name__} with {type(reply).__name__}")
            return reply

        async with self._calling:
            return await self._persist(converse)

    async def _persist(self, converse: Callable[[], Awaitable[_T]]) -> _T:
        """Tries again on a fresh connection until the deadline: dnsd may just be starting, or starting again."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await converse()
            except (OSError, asyncio.IncompleteReadError) as error:  # TimeoutError is an OSError
                self._drop()
                if time.monotonic() + _RETRY_S >= deadline:
                    reason = "it doesn't answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or "it hung up"
                    raise DnsUnavailable(f"no dnsd at {self._path}: {reason}") from error
            except BaseException:
                # Half a conversation is of no use to the next one.
                self._drop()
                raise
            await asyncio.sleep(_RETRY_S)

    async def _connect(self) -> None:
        if self._streams is not None:
            return
        self._streams = await asyncio.open_unix_connection(str(self._path))
        reply = await self._exchange(Hello(VERSION))
        if not isinstance(reply, Welcome):
            raise RemoteProtocolError(f"dnsd answered hello with {type(reply).__name__}")
        self._there = set(reply.zones)

    async def _exchange(self, request: Request) -> Reply:
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(frame(request))
        await writer.drain()
        reply = await read_reply(reader)
        if isinstance(reply, Refused):
            raise ConfigError(reply.reason)
        return reply

    def _encode(self, zones: Sequence[ZoneSpec]) -> dict[str, bytes]:
        """Digest -> encoded zone, in order. What was encoded for the last call and is the same object is not encoded again."""
        encoded: dict[str, tuple[ZoneSpec, str, bytes]] = {}
        for zone in zones:
            before = self._encoded.get(zone.network)
            if before is None or before[0] is not zone:
                body = encode(zone)
                before = (zone, digest_of(body), body)
            encoded[zone.network] = before
        if len(encoded) != len(zones):
            raise ConfigError("a network is given more than once")
        self._encoded = encoded
        return {digest: body for _, digest, body in encoded.values()}

    def _drop(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
