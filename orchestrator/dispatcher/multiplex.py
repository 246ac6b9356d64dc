"""Many connections over one: what a manager that doesn't lead brings its agents to the leader with.

Edge, of whatever carries it: both ends of a `Trunk` hold one `Connection` each, and its streams are `Connection`s themselves. A stream
has room for WINDOW_BYTES that its other end has not taken yet, so a slow agent holds up neither the others nor anybody's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Union

import msgspec

from orchestrator.dispatcher.connection import Connection
from orchestrator.errors import RemoteProtocolError
from orchestrator.security.peer import Peer

log = logging.getLogger(__name__)

WINDOW_BYTES = 64 * 1024


class _Ready(msgspec.Struct, frozen=True, tag="ready"):
    """By the side that was dialled, first of all: streams may be opened."""


class _Open(msgspec.Struct, frozen=True, tag="open"):
    """By the side that dialled: somebody is at its end of a new stream."""

    stream: int
    peer: Peer


class _Message(msgspec.Struct, frozen=True, tag="message"):
    stream: int
    message: bytes


class _Taken(msgspec.Struct, frozen=True, tag="taken"):
    """So many bytes more have been received by whom they were for."""

    stream: int
    bytes: int


class _End(msgspec.Struct, frozen=True, tag="end"):
    stream: int
    code: int = 1000
    reason: str = ""


_Frame = Union[_Ready, _Open, _Message, _Taken, _End]  # noqa: UP007
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[_Frame] = msgspec.msgpack.Decoder(_Frame)


class Stream:
    """One of the connections. peer: who is at the far end of the one that dialled."""

    def __init__(self, trunk: Trunk, number: int, peer: Peer) -> None:
        self._trunk, self._number, self.peer = trunk, number, peer
        self._inbox: deque[bytes] = deque()
        self._arrived, self._room = asyncio.Event(), asyncio.Event()
        self._underway_bytes = self._untold_bytes = 0
        self._closed = False
        self._code: int | None = None
        self.close_reason = ""

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def close_code(self) -> int | None:
        return self._code

    async def send(self, message: bytes) -> None:
        while self._underway_bytes >= WINDOW_BYTES and not self._closed:
            self._room.clear()
            await self._room.wait()
        if self._closed:
            raise ConnectionError("the stream has ended")
        self._underway_bytes += len(message)
        await self._trunk.write(_Message(self._number, message))

    async def receive(self, timeout_s: float | None) -> bytes | None:
        if self._untold_bytes >= WINDOW_BYTES // 2:
            told, self._untold_bytes = self._untold_bytes, 0
            with contextlib.suppress(ConnectionError):
                # the trunk's reader ends the streams
                await self._trunk.write(_Taken(self._number, told))
        async with asyncio.timeout(timeout_s):
            while not self._inbox and not self._closed:
                self._arrived.clear()
                await self._arrived.wait()
        if not self._inbox:
            return None
        message = self._inbox.popleft()
        self._untold_bytes += len(message)
        return message

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if not self._closed:
            self.ended(None, "")
            self._trunk.forget(self._number)
            with contextlib.suppress(ConnectionError):
                await self._trunk.write(_End(self._number, code, reason))

    # ---- for the trunk -------------------------------------------------------------------------------------------------------

    def arrived(self, message: bytes) -> None:
        self._inbox.append(message)
        self._arrived.set()

    def taken(self, count: int) -> None:
        self._underway_bytes -= count
        self._room.set()

    def ended(self, code: int | None, reason: str) -> None:
        """What has arrived can still be received. code None: nobody said why."""
        self._closed, self._code, self.close_reason = True, code, reason
        self._arrived.set()
        self._room.set()


class Trunk:
    """`run()` it: it reads, and returns when the connection has ended and every stream with it.

    The side that was dialled is told of streams by on_open, the other one, by on_ready, that it may `open` them.
    """

    def __init__(
        self, wire: Connection, *, on_open: Callable[[Stream], None] | None = None, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        self._wire, self._on_open, self._on_ready = wire, on_open, on_ready
        self._streams: dict[int, Stream] = {}
        self._opened = 0
        self._ready = False

    @property
    def ready(self) -> bool:
        return self._ready and not self._wire.closed

    async def open(self, peer: Peer) -> Stream:
        """ConnectionError: the trunk has ended."""
        if not self.ready:
            raise ConnectionError("the connection to the leader has ended")
        self._opened += 1
        stream = self._streams[self._opened] = Stream(self, self._opened, peer)
        await self.write(_Open(self._opened, peer))
        return stream

    async def run(self) -> None:
        """RemoteProtocolError: the other side speaks something else."""
        try:
            if self._on_open is not None:
                await self.write(_Ready())
            while (frame := await self._wire.receive(None)) is not None:
                try:
                    self._heard(_decoder.decode(frame))
                except msgspec.DecodeError as error:
                    raise RemoteProtocolError(f"a manager's message can't be read: {error}") from None
        finally:
            self._ready = False
            streams, self._streams = self._streams, {}
            for stream in streams.values():
                stream.ended(None, "the connection between the managers was lost")

    async def write(self, frame: _Frame) -> None:
        await self._wire.send(_encoder.encode(frame))

    async def close(self) -> None:
        await self._wire.close()

    def forget(self, number: int) -> None:
        self._streams.pop(number, None)

    def _heard(self, frame: _Frame) -> None:
        if isinstance(frame, _Ready):
            self._ready = True
            self._on_ready()
            return
        if isinstance(frame, _Open):
            if self._on_open is None or frame.stream in self._streams:
                raise RemoteProtocolError("a stream was opened that can't be")
            stream = self._streams[frame.stream] = Stream(self, frame.stream, frame.peer)
            self._on_open(stream)
            return
        known = self._streams.get(frame.stream)
        if known is None:
            # closed by this side meanwhile
            return
        match frame:
            case _Message():
                known.arrived(frame.message)
            case _Taken():
                known.taken(frame.bytes)
            case _End():
                self.forget(frame.stream)
                known.ended(frame.code, frame.reason)
